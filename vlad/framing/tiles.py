"""Tiles of a picture: where they lie, and what was said of them put together again.

Tiles lie on the lattice of the encoder's patches, so that their maps meet without being resampled; they are squares of
the scorer's side and lie within the picture, which is enlarged where it is smaller.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlad.framing import Look
from vlad.maps import to_size

MOST = 1024  # tiles of one look; 20 megapixels at their own size are 709
OVERLAP = 0.25  # of a tile's side that lies over the next, at least (design: 0 and 0.5 gave no better maps)
SPREAD = 0.5  # of half a tile: standard deviation of the weight with which its places count


@dataclass(frozen=True)
class Layout:
    """Where the tiles of one look at one picture lie, in pixels of its copy at work size."""

    size: tuple[int, int]  # (H, W) of that copy
    side: int  # of a tile
    patch: int
    rows: tuple[int, ...]  # upper edges
    columns: tuple[int, ...]  # left edges

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(upper, left) edge of each tile, row by row."""
        return ((row, column) for row in self.rows for column in self.columns)


def work_size(look: Look, size: tuple[int, int], side: int, patch: int) -> tuple[int, int]:
    """(H, W) of the copy that tiles are cut from, of a picture of `size` (H, W)."""
    shorter = min(size)
    if look.kind == "tiles":
        times = patch * _rounded(side / patch * (look.value - (look.value - 1) * OVERLAP)) / shorter
    else:
        times = max(look.value, side / shorter)
    height, width = (max(side, patch * _rounded(length * times / patch)) for length in size)
    return height, width


def layout(look: Look, size: tuple[int, int], side: int, patch: int) -> Layout:
    """The tiles of a picture of `size` (H, W).

    Raises:
        ValueError: they are more than MOST.
    """
    work = work_size(look, size, side, patch)
    found = Layout(work, side, patch, *(_edges(length, side, patch) for length in work))
    if len(found) > MOST:
        fits = look.value * math.sqrt(MOST / len(found))
        words = f"tiles={int(fits)}" if look.kind == "tiles" else f"tile_scale={math.floor(fits * 50) / 50:g}"
        raise ValueError(f"it has {size[1]} x {size[0]} pixels, {len(found)} tiles; {MOST} fit, with {words}")
    return found


def _edges(length: int, side: int, patch: int) -> tuple[int, ...]:
    """Where tiles begin along a side."""
    if length <= side:
        return (0,)
    steps = math.ceil((length - side) / (patch * max(1, _rounded(side * (1 - OVERLAP) / patch))))
    return tuple(patch * _rounded(step * (length - side) / patch / steps) for step in range(steps + 1))


def _rounded(value: float) -> int:
    """Halves up: `round` would take half of 49 patches for 24."""
    return math.floor(value + 0.5)


class Canvas:
    """The maps of tiles as one map: at each place their mean, weighted by how close to a tile's middle it lies."""

    def __init__(self, where: Layout):
        self.where = where
        self.sum: Tensor | None = None  # [h, w]

    def add(self, maps: Tensor, corners: Sequence[tuple[int, int]]) -> None:
        """Takes the maps [k, h, w] of the tiles at these (upper, left) edges; of all tiles the same h and w."""
        patches = self.where.side // self.where.patch
        fine = max(1, round(max(maps.shape[1:]) / patches))  # places of the map along a patch
        if maps.shape[1:] != (patches * fine, patches * fine):
            maps = to_size(maps, (patches * fine, patches * fine))
        if self.sum is None:
            height, width = (length // self.where.patch * fine for length in self.where.size)
            self.sum, self.fine = maps.new_zeros(height, width), fine
        weight = _weights(patches * fine).to(maps)
        for one, corner in zip(maps, corners, strict=True):
            top, left = (edge // self.where.patch * fine for edge in corner)
            self.sum[top : top + len(weight), left : left + len(weight)] += one * torch.outer(weight, weight)

    def mean(self) -> Tensor | None:
        """[h, w]; None where the tiles had no maps."""
        if self.sum is None:
            return None
        height, width = self.sum.shape  # the weights of all tiles at a place are a product of the two
        down, across = self._covered(self.where.rows, height), self._covered(self.where.columns, width)
        return self.sum / torch.outer(down, across)

    def _covered(self, edges: Sequence[int], length: int) -> Tensor:
        assert self.sum is not None
        weight = _weights(self.where.side // self.where.patch * self.fine).to(self.sum)
        found = self.sum.new_zeros(length)
        for edge in edges:
            start = edge // self.where.patch * self.fine
            found[start : start + len(weight)] += weight
        return found


def _weights(places: int) -> Tensor:
    """[places] of the places along a tile."""
    apart = (torch.arange(places) + 0.5) * 2 / places - 1  # -1 and 1 at the edges
    return (-0.5 * (apart / SPREAD).square()).exp()
