"""MuSc: a pile of unlabelled pictures scores itself; what few of the others have is odd.

Paper: "MuSc: Zero-Shot Industrial Anomaly Classification and Segmentation with Mutual Scoring of the Unlabeled Images"
(arXiv:2401.16753), official code xrli-U/MuSc. Needs: the whole set at once. No text, no normals, no training.

1. Patch tokens of four layers; all of a picture's together are given mean 0 and variance 1, averaged over r x r
   neighbours (r = 1, 3, 5) and brought to length 1 (LNAMD).
2. A patch's distance to another picture is that to its closest patch there; the mean of the smallest 30 % over the
   others is its score (mutual scoring). The map is the mean over layers and r, bilinear with align_corners=True.
3. A picture's score is its map's maximum, then averaged over the pictures with the closest class embeddings (RsCIN).

Known differences: scores are not rescaled to the set's minimum and maximum. RsCIN's averages commute with that, so the
order is the same and a score keeps its meaning. Where 30 % of the others are less than one (fewer than 5 pictures), the
closest one counts; the official code gives NaN. Unlike pictures (negative cosine) weigh 0 in RsCIN. Subsets are drawn
at random from a seed; the official ones know the defects. An encoder of another depth is tapped at its quarters.

Cost: one matrix product per unordered pair of pictures, layer and r. Beside blocks it keeps the tokens of all pictures,
in a file past TOKEN_BYTES, and one table of distances (see vlad.memory.mutual); sets whose table would not fit
TABLE_FILE_BYTES are split at random into as few equal parts as it takes.

`fit(pictures)` keeps a set to compare with: from then on each picture is scored against it, alone and without step 3,
so that `stream` works.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.encoders.encoder import Encoder
from vlad.maps import to_size
from vlad.memory import Memory, neighbourhood_mean, quarters
from vlad.memory.mutual import WORK_BYTES, barrier, interval_mean, kept_cosines, mutual_scores, similarities
from vlad.memory.spill import Records
from vlad.scorer import Scorer, Scores

logger = logging.getLogger(__name__)

TOKEN_BYTES = 2 * 2**30  # tokens of all pictures and layers that stay in memory
TABLE_FILE_BYTES = 8 * 2**30  # distances of all pairs in one layer and r; larger sets are split
SMALLEST_PART = 40  # pictures, where a split was asked for: 30 % of the others are then more than ten
MANY = 256  # pictures from which on it is said what comparing them takes
PEAKS = 16  # maps that are brought to pixels at once
SAME = 0.9999  # cosine of class embeddings from which two pictures pass for one that was given twice


def standardised(tokens: Tensor) -> Tensor:
    """[B, P, C] float32: all values of a picture together have mean 0 and (biased) variance 1."""
    return F.layer_norm(tokens.float(), tokens.shape[1:])  # eps 1e-5, as in the official code


def neighbourhood_features(tokens: Tensor, grid: tuple[int, int], degree: int) -> Tensor:
    """[B, P, C] of length 1: standardised tokens averaged over degree x degree neighbours, with zeros outside.

    Source: MuSc (arXiv:2401.16753), LNAMD. The official unfolding and adaptive pooling to C bins are this very average.
    """
    return F.normalize(tokens if degree == 1 else neighbourhood_mean(tokens, grid, degree), dim=-1)


def neighbour_weights(classes: Tensor, rows: slice, k: int) -> Tensor:
    """[rows, N] float64: cosines of class embeddings [N, D], the k largest of each row only, brought to the sum 1."""
    cosines = (classes[rows] @ classes.T).double().clamp_min(0)
    largest = cosines.topk(min(k, len(classes)), dim=1)
    weights = torch.zeros_like(cosines).scatter_(1, largest.indices, largest.values)
    return weights / weights.sum(1, keepdim=True)


def smoothed(scores: Tensor, classes: Tensor, ks: Sequence[int] = (1, 2, 3)) -> Tensor:
    """[N] float64: each score averaged over the pictures most like its own, itself among them; the mean over all k.

    Args:
        scores: [N].
        classes: [N, D] class embeddings of length 1.
        ks: numbers of pictures averaged; at most N count.

    Source: MuSc (arXiv:2401.16753), RsCIN, without the rescaling.
    """
    at_once = max(1, WORK_BYTES // (32 * len(classes)))
    scores = scores.double()
    parts = []
    for start in range(0, len(classes), at_once):
        rows = slice(start, start + at_once)
        parts.append(torch.stack([neighbour_weights(classes, rows, k) @ scores for k in ks]).mean(0))
    return torch.cat(parts)


def to_pixels(grids: Tensor, side: int) -> Tensor:
    """[B, side, side] from [B, rows, columns]: bilinear, align_corners=True, not antialiased."""
    return to_size(grids, (side, side), align_corners=True)


def equal_parts(N: int, parts: int, seed: int) -> list[list[int]]:
    """The numbers below N, ascending, in `parts` random groups whose sizes differ by one at most."""
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    return [part.sort().values.tolist() for part in order.tensor_split(parts)]


def repeated(classes: Tensor) -> int:
    """How many of the class embeddings [N, D] are those of an earlier picture, as far as can be told."""
    at_once = max(1, WORK_BYTES // (8 * len(classes)))
    count = 0
    for start in range(0, len(classes), at_once):
        alike = (classes[start : start + at_once] @ classes.T > SAME).tril(start - 1)
        count += int(alike.any(1).sum())
    return count


class _Layer:
    """Features of one layer and degree, of some of the kept pictures: read and averaged when they are asked for."""

    def __init__(
        self, read: Callable[[Sequence[int]], Tensor], numbers: Sequence[int], grid: tuple[int, int], degree: int
    ):
        self.read, self.numbers, self.grid, self.degree = read, numbers, grid, degree

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, numbers: slice, /) -> Tensor:
        return neighbourhood_features(self.read(self.numbers[numbers]).float(), self.grid, self.degree)


class MuSc(Scorer):
    """See the module.

    Args:
        layers: tapped layers, from 1; None takes the quarters.
        degrees: odd sides of the squares of neighbours that are averaged.
        interval: which of a patch's distances to the other pictures count; see `interval_bounds`.
        neighbours: numbers of pictures that a score is averaged over; (1, 8, 9) for VisA in the paper, () for none.
        radius: compare only places at most so many rows and columns apart, for aligned pictures; None compares all.
        parts: split the set at random into so many parts, each scored by itself; None splits only where it must.
        seed: of the split.
    """

    in_place_of_it: Callable[[Iterable[Tensor]], Iterable[Scores]] | None = None  # for those who share a set
    words = "none"
    map_range: ClassVar[tuple[float, float]] = (0.0, 2**0.5)  # up to patches that have nothing in common
    region_level: ClassVar[float] = 0.7  # about where the maps of good parts end, with `tiny`

    def __init__(
        self,
        encoder: Encoder,
        *,
        resolution: int | None = None,
        layers: Sequence[int] | None = None,
        degrees: Sequence[int] = (1, 3, 5),
        interval: tuple[float, float] = (0.0, 0.3),
        neighbours: Sequence[int] = (1, 2, 3),
        radius: int | None = None,
        parts: int | None = None,
        seed: int = 0,
    ):
        if resolution is None and (encoder.resolution, encoder.patch_size) == (336, 14):
            resolution = 518  # ViT-L-14-336, as in the paper
        super().__init__(encoder, resolution=resolution)
        self.layers = quarters(encoder.depth) if layers is None else tuple(layers)
        self.degrees, self.interval, self.neighbours = tuple(degrees), (interval[0], interval[1]), tuple(neighbours)
        self.radius, self.parts, self.seed = radius, parts, seed
        self._check()
        self.options.update(layers=list(self.layers), degrees=list(degrees), interval=list(interval))
        self.options.update(neighbours=list(neighbours), radius=radius, parts=parts, seed=seed)
        exact = encoder.dtype == torch.float32
        self.store = torch.float32 if exact else torch.float16
        how: dict[str, Any] = {"metric": "euclidean", "per_picture": (self.resolution // encoder.patch_size) ** 2}
        self.kept = nn.ModuleList(Memory(encoder.width, exact=exact, **how) for _ in self.layers)

    def _check(self) -> None:
        """Raises ValueError where an option cannot be."""
        low, high = self.interval
        ordered = low >= 0 and high > 0 and (low < high or low < 1 <= high)
        expected = {
            "layers": (all(1 <= one <= self.encoder.depth for one in self.layers), f"1 to {self.encoder.depth}"),
            "degrees": (all(one >= 1 and one % 2 for one in self.degrees), "odd numbers such as (1, 3, 5)"),
            "interval": (ordered, "(low, high) such as (0, 0.3)"),
            "neighbours": (all(one >= 1 for one in self.neighbours), "numbers from 1 such as (1, 2, 3), or ()"),
            "radius": (self.radius is None or self.radius >= 0, "a number of patches from 0, or None"),
            "parts": (self.parts is None or self.parts >= 1, "1 or more, or None"),
        }
        for option, (right, words) in expected.items():
            if not right or (option in ("layers", "degrees") and not getattr(self, option)):
                raise ValueError(f"{option} is {getattr(self, option)!r}; expected {words}")

    @property
    def score_set(self) -> Callable[[Iterable[Tensor]], Iterable[Scores]] | None:
        """None once `remember` has kept a set to compare with."""
        return None if self.references else self.in_place_of_it or self._mutual

    def _mutual(self, batches: Iterable[Tensor]) -> Iterator[Scores]:
        """Scores [B] and maps [B, S, S] for each batch of pixels [B, 3, S, S], once all have been seen.

        Raises:
            ValueError: there is only one picture.
        """
        tokens, classes = Records(TOKEN_BYTES), []
        for pixels in batches:
            layers, image = self.seen(pixels)
            for one in layers:  # [L, P, C]
                tokens.append(one)
            classes.append(image)
            self.report("reading", len(tokens), 0)
            if len(tokens) >= MANY > len(tokens) - len(layers):
                self._say_cost(layers)
        if not len(tokens):
            return
        if len(tokens) == 1:
            raise ValueError(
                "musc scores pictures against each other and was given one; give predict the whole set, or keep "
                "pictures to compare with by fit"
            )
        grids = self._grids(tokens, self.encoder.grid(pixels))
        scores, sizes = self.set_scores(grids, torch.cat(classes)), [len(part) for part in classes]
        for part, of_part in zip(grids.split(sizes), scores.split(sizes), strict=True):
            yield self.set_said(part, of_part)

    # For those who share a set among workers; `_mutual` is the same in one process

    def seen(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(patch tokens [B, L, P, C] as they are kept, class embeddings [B, D]) of pixels, in main memory."""
        image, layers = self._tokens(pixels)
        return torch.stack(layers, 1).to(self.store).cpu(), image.float().cpu()

    def set_grid(self) -> tuple[int, int]:
        """(rows, columns) of patches of each picture."""
        side = self.resolution // self.encoder.patch_size
        return side, side

    def set_parts(self, N: int) -> list[list[int]]:
        """The numbers of N pictures in the parts that are scored each by itself."""
        rows, columns = self.set_grid()
        return equal_parts(N, self._part_count(N, rows * columns), self.seed)

    def set_rows(
        self, rows: Sequence[int], part: Sequence[int], read: Callable[[Sequence[int], int], Tensor]
    ) -> Tensor:
        """[rows, ...] maps on the grid, float64, of some pictures of a part, compared with all others of it.

        Args:
            read: (numbers of pictures, place of a layer) -> tokens [n, P, C], as `seen` gave them.

        Each pair is compared twice, once for each of the two, so that no table of pairs leaves a worker.
        """
        grid, others = self.set_grid(), len(part) - 1
        own, lines = torch.tensor([part.index(row) for row in rows]), torch.arange(len(rows))
        wall, found = self._wall(grid), torch.zeros(len(rows), grid[0] * grid[1], dtype=torch.float64)

        def at_hand(numbers: Sequence[int], layer: int) -> Tensor:
            return read(numbers, layer).to(self.encoder.device)

        for layer in range(len(self.layers)):
            for degree in self.degrees:
                queries = _Layer(partial(at_hand, layer=layer), rows, grid, degree)[:]
                kept = _Layer(partial(at_hand, layer=layer), part, grid, degree)
                cosines = kept_cosines(queries, kept, wall, self.encoder.dtype)  # [n, B, P]
                cosines[own.to(cosines.device), lines.to(cosines.device)] = -torch.inf
                found += interval_mean(cosines, others, self.interval).double().cpu()
        return (found / (len(self.layers) * len(self.degrees))).unflatten(1, grid)

    def set_scores(self, grids: Tensor, classes: Tensor) -> Tensor:
        """[N] float64 of the maps on the grid [N, rows, columns] and class embeddings [N, D] of a whole set."""
        if same := repeated(classes):
            logger.warning("%d of %d pictures look like another one: repeats make each other normal", same, len(grids))
        peaks = torch.cat([to_pixels(some, self.resolution).amax((1, 2)) for some in grids.split(PEAKS)])
        return smoothed(peaks, classes, self.neighbours) if self.neighbours else peaks

    def set_said(self, grids: Tensor, scores: Tensor) -> Scores:
        """What is said of the pictures of some maps on the grid and their scores."""
        return Scores(scores, to_pixels(grids, self.resolution).float())

    def forward(self, pixels: Tensor) -> Scores:
        """Of pixels [B, 3, S, S] against the kept set.

        Raises:
            RuntimeError: no set was kept.
        """
        if not self.references:
            raise RuntimeError(
                "musc has nothing to compare with: give predict a whole set, or call fit(pictures) first"
            )
        grid = self.encoder.grid(pixels)
        wall = self._wall(grid)
        found = []
        for memory, tokens in zip(self.memories().values(), self._tokens(pixels)[1], strict=True):
            n = len(memory.ids)
            rows = memory.rows.unflatten(0, (n, -1))  # [n, P, C]
            for degree in self.degrees:
                kept = _Layer(rows.__getitem__, range(n), grid, degree)
                queries = neighbourhood_features(tokens, grid, degree)
                cosines = kept_cosines(queries, kept, wall, self.encoder.dtype)  # [n, B, P]
                without = memory.excluded
                if without is not None:
                    cosines[without.long(), torch.arange(len(pixels), device=without.device)] = -torch.inf
                found.append(interval_mean(cosines, n - (without is not None), self.interval))  # [B, P]
        maps = to_pixels(torch.stack(found).double().mean(0).unflatten(1, grid), pixels.shape[-1])
        return Scores(maps.amax((1, 2)), maps.float())

    def remember(self, batches: Iterable[Tensor]) -> None:
        for pixels in batches:
            for memory, tokens in zip(self.memories().values(), self._tokens(pixels)[1], strict=True):
                memory.add(tokens)

    def _tokens(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(class embeddings [B, D] of length 1, standardised patch tokens [B, P, C] of each layer)."""
        features = self.encoder(pixels, self.layers, positions="bicubic")  # not antialiased, as in the official code
        return features.image, [standardised(tokens) for tokens in features.patches]

    def _grids(self, tokens: Records, grid: tuple[int, int]) -> Tensor:
        """[N, rows, columns] float64 in main memory: the pictures' maps before they are brought to pixels."""
        N, P = len(tokens), grid[0] * grid[1]
        groups = self.set_parts(N)
        passes = len(self.layers) * len(self.degrees)
        done, total = 0, passes * sum(len(group) * (len(group) - 1) // 2 for group in groups)

        def advance(pairs: int) -> None:
            nonlocal done
            done += pairs
            self.report("comparing", done, total)

        sums = torch.zeros(N, P, dtype=torch.float64)
        how: dict[str, Any] = {"wall": self._wall(grid), "arithmetic": self.encoder.dtype, "advance": advance}
        for group in groups:
            for layer in range(len(self.layers)):

                def read(numbers: Sequence[int], layer: int = layer) -> Tensor:
                    return tokens.read(numbers, layer).to(self.encoder.device)

                for degree in self.degrees:
                    sums[group] += mutual_scores(_Layer(read, group, grid, degree), self.interval, **how).cpu()
        return (sums / passes).unflatten(1, grid)

    def _say_cost(self, layers: Tensor) -> None:
        """What comparing takes here, by the time of pairs of these [B, L, P, C]; how many will come is unknown yet."""
        pictures = layers[:, 0].to(self.encoder.device, self.encoder.dtype)
        started = time.perf_counter()
        for one in pictures:
            similarities(pictures, one).amax().item()
        pairs = 1000 * 999 / 2 * len(self.layers) * len(self.degrees)
        minutes = pairs * (time.perf_counter() - started) / len(pictures) ** 2 / 60
        logger.warning(
            "comparing 1,000 pictures with each other takes about %.1f minutes here, and three times as many nine "
            "times as long; vlad.load('musc', parts=N) compares within N random parts alone, which takes an N-th",
            minutes,
        )

    def _part_count(self, N: int, P: int) -> int:
        """Into how many parts N pictures of P patches are split."""
        largest = max(4, int((TABLE_FILE_BYTES / (4 * P)) ** 0.5))
        count = max(min(self.parts or 1, N // SMALLEST_PART), -(-N // largest), 1)
        if count != (self.parts or 1):
            logger.warning(
                "%d pictures are scored in %d random parts; %s asked for", N, count, self.parts or "no split was"
            )
        return count

    def _wall(self, grid: tuple[int, int]) -> Tensor | None:
        return None if self.radius is None else barrier(grid, self.radius).to(self.encoder.device)
