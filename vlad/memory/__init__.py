"""What a detector keeps of its normal pictures: rows of tokens, whose they are, and which of them may be left out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.memory.nearest import FAISS_ROWS, METRICS, Cells, faiss_module, nearest, scaled

PROJECTED = 128  # dimensions in which a coreset is chosen
EXACT_ROWS = 20_000  # up to here a coreset starts from every row's distances to all others
ALL_ROWS_OF = 64  # pictures of which every row is kept, as in the papers
ROOM = FAISS_ROWS  # rows, about, for more pictures than that: what a search bears beside a pass of `tiny`


Made = TypeVar("Made")


def layer_tokens(encoder: Any, pixels: Tensor, layers: tuple[int, ...], sizes: Sequence[int]) -> Tensor:
    """[B, N, sizes * layers * C]: patch tokens averaged over size x size neighbours, for every size and layer, side by
    side, each of length 1.

    The cosine distance of two such rows is the mean of their parts' cosine distances. Source: PatchCore
    (arXiv:2106.08265) carried over to a tower whose layers share one grid; several sizes as in MuSc's LNAMD
    (arXiv:2401.16753), but joined before the search, so that all parts are of one place.
    """
    found = encoder(pixels, layers=layers)
    parts = [neighbourhood_mean(tokens.float(), found.grid, size) for size in sizes for tokens in found.patches]
    return torch.cat([F.normalize(tokens, dim=-1) for tokens in parts], -1)


def neighbourhood_mean(tokens: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """[B, N, C]: each token averaged with its size x size neighbours; outside the picture counts as zeros.

    Source: PatchCore (arXiv:2106.08265), local patch features; zeros at the border as in the official code.
    """
    square = tokens.transpose(1, 2).unflatten(2, grid)  # [B, C, rows, columns]
    pooled = F.avg_pool2d(square, size, stride=1, padding=size // 2)
    return pooled[..., : grid[0], : grid[1]].flatten(2).transpose(1, 2)


def coreset(rows: Tensor, count: int, *, start: str | None = None, seed: int = 0) -> Tensor:
    """[count] row numbers in the order greedy k-centre selection takes them: each time the row farthest from all taken.

    Args:
        rows: [n, C]; wider ones than 128 are compared through a seeded random projection to 128.
        count: 1 to n.
        start: what ranks the first: "exact" (length of the row of all distances), "approximate" (mean distance to ten
            random rows), None takes the exact one up to 20,000 rows.
        seed: of the projection and the ten rows.

    Raises:
        ValueError: count or start is wrong.

    Source: PatchCore (arXiv:2106.08265), algorithm 1, as in the official code. Memory is O(n): the squares of all n
    distances of a row sum up to n |x|^2 + sum |y|^2 - 2 x . sum y, so no n x n matrix is built.
    """
    n = len(rows)
    if not 1 <= count <= n:
        raise ValueError(f"a coreset of {count} rows asked; expected 1 to {n}, the rows there are")
    start = start or ("exact" if n <= EXACT_ROWS else "approximate")
    x = _projected(rows.float(), seed)
    squares = x.square().sum(1)  # [n]
    if start == "exact":
        wide = x.double()
        farthest = (n * wide.square().sum(1) + wide.square().sum() - 2 * wide @ wide.sum(0)).clamp_min(0).sqrt().float()
    elif start == "approximate":
        farthest = torch.stack([_lengths(x, squares, i) for i in coreset_start(n, seed)], 1).mean(1)
    else:
        raise ValueError(f"start is {start!r}; expected 'exact', 'approximate' or None")
    taken = torch.empty(count, dtype=torch.long, device=x.device)
    for position in range(count):
        taken[position] = number = farthest.argmax()
        farthest = torch.minimum(farthest, _lengths(x, squares, number))
    return taken


def coreset_start(n: int, seed: int) -> list[int]:
    """The ten (or all) random rows that an approximate coreset measures its start from."""
    return np.random.RandomState(seed).choice(n, min(10, n), replace=False).tolist()


def _lengths(x: Tensor, squares: Tensor, number: int | Tensor) -> Tensor:
    return (squares + squares[number] - 2 * (x @ x[number])).clamp_min(0).sqrt()


def _projected(x: Tensor, seed: int) -> Tensor:
    if x.shape[1] <= PROJECTED:
        return x
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(x.shape[1], PROJECTED, generator=generator) / PROJECTED**0.5
    return x @ directions.to(x.device)


def middle_layers(depth: int) -> tuple[int, ...]:
    """The layers, from 1, whose tokens a memory keeps by default: after half and after three quarters of the blocks.

    Early blocks see little but edges; the last one is shaped by what it was trained to say about the whole picture.
    """
    return tuple(dict.fromkeys((max(1, depth // 2), max(1, depth * 3 // 4))))


def quarters(depth: int) -> tuple[int, ...]:
    """The layers, from 1, after each quarter of the blocks: 6, 12, 18 and 24 of 24."""
    return tuple(dict.fromkeys(max(1, depth * part // 4) for part in (1, 2, 3, 4)))


def checked_layers(layers: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """The layers given, else the middle ones; ValueError where the tower has no such layer."""
    if layers is None:
        return middle_layers(depth)
    if not len(layers) or not all(isinstance(layer, int) and 1 <= layer <= depth for layer in layers):
        raise ValueError(f"layers is {layers!r}; expected numbers from 1 to {depth}, the blocks of the encoder")
    return tuple(layers)


class Memory(nn.Module):
    """Rows of tokens [M, C] and the picture each comes from. Its tensors are part of the detector that has it.

    Attributes:
        rows: [M, C], float32, or float16 where the encoder's own arithmetic is coarser than that.
        stores: what rows may be kept in.
        owners: [M] int32, positions in `ids`.
        ids: one text per picture, each once; never read as a path.
        share: part of the rows that `condense` keeps, chosen as a coreset.
        search: "exact", or "faiss": approximate above FAISS_ROWS rows on the CPU, never within `excluding`.
        in_parts: whether a picture may have several parts, each of `per_picture` rows.
        rows_each: rows kept of each picture, its own coreset; None: all.
    """

    parts: ClassVar[tuple[str, ...]] = ("rows", "owners")  # the tensors that a file keeps
    stores: ClassVar[tuple[torch.dtype, ...]] = (torch.float16, torch.float32)

    rows: Tensor
    owners: Tensor

    def __init__(
        self,
        width: int | None = None,
        *,
        exact: bool = True,
        share: float = 1.0,
        metric: str = "cosine",
        search: str = "exact",
        per_picture: int | None = None,
    ):
        """`width`: of the tokens, None takes that of the first. `exact`: store float32; float16 costs 4e-5 in distance.
        `per_picture`: rows that a file must hold of each picture, in order; None allows any."""
        super().__init__()
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}; expected the part of the rows to keep, above 0 and at most 1")
        if metric not in METRICS:
            raise ValueError(f"metric is {metric!r}; expected one of {', '.join(METRICS)}")
        if search not in ("exact", "faiss"):
            raise ValueError(f"search is {search!r}; expected 'exact' or 'faiss'")
        if search == "faiss":
            faiss_module()
        self.search, self.per_picture = search, per_picture
        self._cells: Cells | None = None
        self._made: tuple[Tensor, Any] | None = None
        self.store = torch.float32 if exact else torch.float16
        self.width, self.share, self.metric = width, share, metric
        self.ids: list[str] = []
        self.rows_each: int | None = None
        self.condensed = self.in_parts = False
        self.excluded: Tensor | None = None
        self.register_buffer("rows", None)
        self.register_buffer("owners", None)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cells": None}  # an index of faiss cannot be copied; it is made anew

    def __len__(self) -> int:
        return 0 if self.rows is None else len(self.rows)

    def clear(self) -> None:
        """Forgets everything."""
        self._buffers.update(rows=None, owners=None)
        self.ids, self._cells, self.condensed = [], None, False

    def expect(self, pictures: int, alone: Sequence[int] = ()) -> None:
        """So many pictures will be added, of which but those of the numbers `alone`, or all where there are none, will
        be left out of sight: of many it keeps less."""
        many = pictures > ALL_ROWS_OF and self.per_picture is None
        self.rows_each = max(1, ROOM // pictures) if many else None

    def add(self, tokens: Tensor, ids: Sequence[str] | None = None) -> None:
        """Appends pictures: [B, P, C] tokens, lengths taken out where the metric is cosine; ids default to positions.

        Raises:
            ValueError: other widths than before, or an id that is here already.
        """
        ids = [str(len(self.ids) + i) for i in range(len(tokens))] if ids is None else list(ids)
        if len(ids) != len(tokens) or len({*ids, *self.ids}) != len(ids) + len(self.ids):
            raise ValueError(f"ids {ids} for {len(tokens)} pictures; expected one each that is not in the memory yet")
        rows = self.kept(tokens.detach())
        if self.rows_each is not None and rows.shape[1] > self.rows_each:
            rows = torch.stack([one[coreset(one, self.rows_each).sort().values] for one in rows])
        width = self.width if self.rows is None else self.rows.shape[1]
        if width not in (None, rows.shape[-1]):
            raise ValueError(f"tokens are {rows.shape[-1]} wide, the memory's are {width}")
        numbers = torch.arange(len(self.ids), len(self.ids) + len(tokens), dtype=torch.int32, device=rows.device)
        owners, rows = numbers.repeat_interleave(rows.shape[1]), rows.flatten(0, 1)
        self.rows = rows if self.rows is None else torch.cat([self.rows, rows])
        self.owners = owners if self.owners is None else torch.cat([self.owners, owners])
        self.ids = [*self.ids, *ids]

    def join(self, number: int, rows: int) -> None:
        """Makes the pictures from `number` on, parts of one, this one; of its rows a coreset of so many is kept."""
        own = self.owners >= number
        self.ids, self.owners = self.ids[: number + 1], self.owners.clamp_max(number)
        if self.per_picture is None and int(own.sum()) > max(1, rows):
            part = self.rows[own]
            kept = torch.cat([self.rows[~own], part[coreset(part, max(1, rows)).sort().values]])
            self.rows, self.owners = kept, self.owners[: len(kept)]

    def kept(self, tokens: Tensor) -> Tensor:
        """[B, R, C]: the rows that are kept of pictures' tokens [B, P, C]."""
        return scaled(tokens, self.metric).to(self.store)

    def condense(self, seed: int = 0) -> None:
        """Keeps a coreset of `share` of the rows, in their order; at least one row. Once: then it is condensed."""
        if self.share < 1 and len(self) and not self.condensed:
            kept = _coreset_rows(self.rows, self.share, seed)
            self.rows, self.owners = self.rows[kept], self.owners[kept]
        self.condensed = True

    def distance(self, tokens: Tensor, k: int = 1) -> Tensor:
        """[B, P] float32: mean distance of tokens [B, P, C] to their k closest rows, in the memory's metric.

        Within `excluding` the rows of one picture per query picture are not seen; a coreset is then chosen anew from
        the others, as if that picture had never been given, unless it was condensed before.

        Raises:
            ValueError: the memory is empty, or of another width.
        """
        if self.excluded is None or self.share == 1 or self.condensed:
            without = None if self.excluded is None else self.excluded.repeat_interleave(tokens.shape[1])
            return self._search(tokens.flatten(0, 1), self.rows, k, self.owners, without).view(-1, tokens.shape[1])
        found = []
        for position, one in enumerate(tokens):
            found.append(self._search(one, self.rows_for(position), k))
        return torch.stack(found)

    def closest(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Distances [B, P] and the rows [B, P, C] they lead to, float32, of the row closest to each of [B, P, C]."""
        if self.excluded is None:
            how: dict[str, Any] = {"metric": self.metric, "arithmetic": self._arithmetic()}
            distance, index = nearest(tokens.flatten(0, 1), self.rows, **how)
            shape = (-1, tokens.shape[1])
            return distance[:, 0].unflatten(0, shape), self.rows[index[:, 0]].float().unflatten(0, shape)
        distances, found = [], []
        for position, one in enumerate(tokens):
            rows = self.rows_for(position)
            distance, index = nearest(one, rows, metric=self.metric, arithmetic=self._arithmetic())
            distances.append(distance[:, 0])
            found.append(rows[index[:, 0]].float())
        return torch.stack(distances), torch.stack(found)

    def rows_for(self, position: int) -> Tensor:
        """The rows that the picture at this position of a batch sees: all, or within `excluding` those left."""
        if self.excluded is None:
            return self.rows
        rows = self.rows[self.owners != self.excluded[position]]
        return rows if self.share == 1 or self.condensed else rows[_coreset_rows(rows, self.share, 0)]

    def seen(
        self, make: Callable[[Tensor], Made], tokens: Tensor, how: Callable[[Tensor, Made], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """What `how` gives, [B, ...] each, of tokens [B, ...] beside what `make` gives of the rows that they see.

        Of all rows that is made once; within `excluding`, for every picture anew. `make` is the same at every call.

        Raises:
            ValueError: the memory is empty.
        """
        if self.rows is None:
            raise ValueError("the memory is empty; remember at least one normal picture first")
        if self.excluded is not None:
            found = [how(one[None], make(self.rows_for(position))) for position, one in enumerate(tokens)]
            return tuple(torch.cat(parts) for parts in zip(*found, strict=True))
        exporting = torch.compiler.is_exporting()  # the rows are other objects then, and what is made is a constant
        if self._made is None or (self._made[0] is not self.rows and not exporting):
            self._made = self.rows, make(self.rows)
        return how(tokens, self._made[1])

    def _search(
        self, queries: Tensor, rows: Tensor, k: int, owners: Tensor | None = None, without: Tensor | None = None
    ) -> Tensor:
        if rows is None:
            raise ValueError("the memory is empty; remember at least one normal picture first")
        big = len(rows) > FAISS_ROWS and rows.device.type == "cpu"
        if self.search == "faiss" and big and self.excluded is None:
            if self._cells is None or self._cells.memory is not rows:
                self._cells = Cells(rows, self.metric)
            return self._cells.nearest(queries, k)[0].mean(1)
        how: dict[str, Any] = {"metric": self.metric, "arithmetic": self._arithmetic(), "without": without}
        return nearest(queries, rows, k, owners=owners, **how)[0].mean(1)

    def _arithmetic(self) -> torch.dtype:
        from vlad.encoders.dtypes import fastest_safe_dtype

        return torch.float32 if self.store == torch.float32 else fastest_safe_dtype(self.rows.device)

    @contextmanager
    def excluding(self, numbers: Tensor) -> Iterator[None]:
        """Until the block ends, the i-th picture of a batch does not see the rows of picture numbers[i]."""
        self.excluded = numbers if self.owners is None else numbers.to(self.owners)
        try:
            yield
        finally:
            self.excluded = None

    def restore(self, tensors: Mapping[str, Tensor], ids: Sequence[str], device: torch.device) -> None:
        """Takes rows and owners from a file, once they are checked.

        Raises:
            ValueError: wrong shapes or dtypes, values that are not finite, or rows of pictures that are not named.
        """
        rows, owners = tensors.get("rows"), tensors.get("owners")
        if rows is None or owners is None:
            raise ValueError("a memory needs both rows and owners")
        if rows.ndim != 2 or rows.dtype not in self.stores or not rows.numel():
            raise ValueError(f"rows are {list(rows.shape)} {rows.dtype}; expected [M, C] of float16 or float32")
        if self.width not in (None, rows.shape[1]):
            raise ValueError(f"rows are {rows.shape[1]} wide; the encoder's tokens are {self.width}")
        if owners.shape != rows.shape[:1] or owners.dtype != torch.int32:
            raise ValueError(f"owners are {list(owners.shape)} {owners.dtype}; expected [{len(rows)}] of int32")
        if int(owners.min()) < 0 or int(owners.max()) >= len(ids):
            raise ValueError(f"rows belong to pictures {int(owners.min())} to {int(owners.max())} of {len(ids)}")
        if self.per_picture is not None:
            counts = owners.long().bincount(minlength=len(ids))
            whole = counts % self.per_picture == 0 if self.in_parts else counts == self.per_picture
            if not whole.all() or not counts.all() or (owners.diff() < 0).any():
                raise ValueError(f"of each of its {len(ids)} pictures it should hold {self.per_picture} rows, in order")
        lengths = rows.float().norm(dim=1)
        if not torch.isfinite(lengths).all() or (self.metric == "cosine" and (lengths - 1).abs().max() > 0.01):
            raise ValueError("rows are not finite, or not of length 1")
        self.store = torch.promote_types(self.store, rows.dtype)  # float32 where the encoder is exact: so is its search
        self.rows, self.owners, self.ids = rows.to(device, self.store), owners.to(device), list(ids)


def _coreset_rows(rows: Tensor, share: float, seed: int) -> Tensor:
    """The row numbers of a coreset, ascending."""
    return coreset(rows, max(1, int(len(rows) * share)), seed=seed).sort().values
