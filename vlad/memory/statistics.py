"""What a detector keeps of its normal pictures when their mean and covariance are all it needs: sums, not rows."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vlad.memory import Memory


class Moments(NamedTuple):
    """Of n samples, float64: n, their mean [C], their covariance [C, C] (divided by n), the mean of |x - mean|^4."""

    samples: int
    mean: Tensor
    covariance: Tensor
    fourth: Tensor

    @classmethod
    def of(cls, tokens: Tensor) -> "Moments":
        """Of tokens [n, C]."""
        mean = tokens.double().mean(0)
        centred = tokens.double() - mean
        return cls(len(tokens), mean, centred.T @ centred / len(tokens), centred.square().sum(1).square().mean())


class Statistics(Memory):
    """Sums over the tokens of normal pictures, a row of float64 for each picture.

    A row holds the number of tokens and the sums of |x|^4, of x, of |x|^2 x and of x_i x_j for i <= j: pictures are
    added and left out by adding rows, exactly. `condense` makes one row of all; more pictures can be added then, but
    none of those in it left out. A row takes 4 C^2 bytes, however many pictures are in it.
    """

    stores = (torch.float64,)

    def __init__(self, width: int):
        """`width`: C, of the tokens."""
        super().__init__(2 + 2 * width + width * (width + 1) // 2, metric="euclidean")
        self.store, self.token_width = torch.float64, width
        self.alone = torch.zeros(0, dtype=torch.int32)

    def expect(self, pictures: int, alone: Sequence[int] = ()) -> None:
        """Those of the numbers `alone` keep rows of their own; all others become one as they are added."""
        self.alone = torch.tensor(alone, dtype=torch.int32)

    def add(self, tokens: Tensor, ids: Sequence[str] | None = None) -> None:
        """As `Memory` does."""
        super().add(tokens, ids)
        if len(self.alone):
            own = torch.isin(self.owners, self.alone.to(self.owners))
            if not own.all():
                rest, owner = self.rows[~own].sum(0, keepdim=True), self.owners[~own][:1]
                self.rows, self.owners = torch.cat([rest, self.rows[own]]), torch.cat([owner, self.owners[own]])

    def kept(self, tokens: Tensor) -> Tensor:
        """[B, 1, ...]: the sums over each picture's tokens [B, P, C]."""
        if tokens.shape[-1] != self.token_width:
            raise ValueError(f"tokens are {tokens.shape[-1]} wide, the memory's are {self.token_width}")
        return torch.stack([_sums(one) for one in tokens.double()])[:, None]

    def moments(self, rows: Tensor) -> Moments:
        """Of the tokens whose sums these rows [M, ...] hold."""
        return _moments(rows.sum(0), self.token_width)

    def join(self, number: int, rows: int) -> None:
        own = self.owners >= number
        self.ids, self.owners = self.ids[: number + 1], torch.cat([self.owners[~own], self.owners[own][:1]])
        self.rows = torch.cat([self.rows[~own], self.rows[own].sum(0, keepdim=True)])

    def condense(self, seed: int = 0) -> None:
        """Makes one row of all."""
        if len(self):
            self.rows, self.owners = self.rows.sum(0, keepdim=True), self.owners[:1]

    def restore(self, tensors: Mapping[str, Tensor], ids: Sequence[str], device: torch.device) -> None:
        """As `Memory` does; ValueError, too, where no tokens were counted."""
        rows = tensors.get("rows")
        if rows is not None and rows.dtype != torch.float64:
            raise ValueError(f"rows are {rows.dtype}; sums are kept in float64, tokens alone in float16 or float32")
        super().restore(tensors, ids, device)
        if not (self.rows[:, 0] >= 1).all():
            raise ValueError("rows are of no tokens at all")


def _sums(tokens: Tensor) -> Tensor:
    """A row of tokens [P, C]."""
    squares = tokens.square().sum(1)  # [P]
    products = tokens.T @ tokens
    upper = products[tuple(torch.triu_indices(*products.shape, device=tokens.device))]
    parts = [tokens.new_tensor([len(tokens)]), squares.square().sum()[None], tokens.sum(0), squares @ tokens, upper]
    return torch.cat(parts)


def _moments(row: Tensor, C: int) -> Moments:
    """What the sums of a row say.

    With Q = E x x^T, E|x - m|^4 is E|x|^4 - 4 m . E|x|^2 x + 2 |m|^2 trace Q + 4 m . Q m - 3 |m|^4.
    """
    count, row = row[0], row / row[0]
    fourth, mean, cubes, upper = row[1], row[2 : 2 + C], row[2 + C : 2 + 2 * C], row[2 + 2 * C :]
    products = row.new_zeros(C, C)
    products[tuple(torch.triu_indices(C, C, device=row.device))] = upper
    products = products + products.triu(1).T
    square = mean @ mean
    fourth = fourth - 4 * mean @ cubes + 2 * square * products.trace() + 4 * mean @ products @ mean - 3 * square**2
    return Moments(int(count), mean, products - torch.outer(mean, mean), fourth.clamp_min(0))
