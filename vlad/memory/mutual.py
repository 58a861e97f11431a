"""Pictures compared with each other patch by patch, each unordered pair once, in bounded memory.

Features of N pictures [N, P, C] have length 1. Beside what the caller holds there are blocks of WORK_BYTES in all and a
table of N * N * P float32, which lies in a file past TABLE_BYTES.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from vlad.memory.spill import PairTable

TABLE_BYTES = 64 * 2**20  # distances of all pairs that stay in memory
WORK_BYTES = 64 * 2**20  # features of a panel of pictures and their products with one more
CACHED_BYTES = 8 * 2**20  # products of small pictures that a processor still finds in its cache


class Pictures(Protocol):
    """Features [N, P, C] as a tensor gives them, or made when a slice is asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, numbers: slice, /) -> Tensor: ...


def barrier(grid: tuple[int, int], radius: int) -> Tensor:
    """[P, P]: 0 between places at most `radius` rows and columns apart, -inf between others."""
    places = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1]))  # [P, 2]
    apart = (places[:, None] - places[None]).abs().amax(-1)
    return torch.zeros(apart.shape).masked_fill(apart > radius, -torch.inf)


def similarities(ours: Tensor, theirs: Tensor, wall: Tensor | None = None) -> Tensor:
    """[I, P, P] cosines of the patches of I pictures [I, P, C] with those of one [P, C], `wall` [P, P] added."""
    products = (ours.flatten(0, 1) @ theirs.T).unflatten(0, ours.shape[:2])
    return products if wall is None else products.add_(wall.to(products))


def interval_bounds(others: int, interval: tuple[float, float]) -> tuple[int, int]:
    """(low, high): ranks low + 1 to high of the ascending distances to `others` pictures count; at least one does.

    A bound below 1 is a share of the others, rounded down; from 1 on it is a number of pictures.
    """
    low, high = (int(others * bound) if bound < 1 else int(bound) for bound in interval)
    high = min(max(high, 1), others)
    return min(low, high - 1), high


def interval_mean(cosines: Tensor, others: int, interval: tuple[float, float]) -> Tensor:
    """[...] mean Euclidean distance over the interval's ranks, of cosines [n, ...] with the most similar patches.

    The n - others pictures that do not count have -inf. Features have length 1, so |a - b|^2 = 2 - 2 a . b.

    Source: MuSc (arXiv:2401.16753), mutual scoring with interval average.
    """
    low, high = interval_bounds(others, interval)
    closest = cosines.topk(high, dim=0, sorted=low > 0).values[low:]
    return (2 - 2 * closest).clamp_min(0).sqrt().mean(0)


def mutual_scores(
    features: Pictures,
    interval: tuple[float, float] = (0.0, 0.3),
    *,
    wall: Tensor | None = None,
    arithmetic: torch.dtype = torch.float32,
    advance: Callable[[int], None] | None = None,
) -> Tensor:
    """[N, P] float32: how far N >= 2 pictures' patches are from what the others show.

    Args:
        features: [N, P, C] of length 1.
        interval: which of the distances to the others are averaged; see `interval_bounds`.
        wall: [P, P] from `barrier`.
        arithmetic: of the products; bfloat16 moves scores by some 1e-3.
        advance: called with the pairs of pictures compared since the last call, N (N - 1) / 2 in all.

    Source: MuSc (arXiv:2401.16753). A pair's product gives each of the two its closest patches, row- and columnwise.
    """
    N, (P, C) = len(features), features[0:1].shape[1:]
    table = PairTable(N, P, TABLE_BYTES)
    panel, ahead = block_sizes(P, C)
    for start in range(0, N, panel):
        ours = features[start : start + panel].to(arithmetic)  # [I, P, C]
        table.write(start, start, _among(ours, wall))
        for first in range(start + len(ours), N, ahead):
            theirs = features[first : first + ahead].to(arithmetic)  # [J, P, C]
            pairs = [_both_ways(ours, one, wall) for one in theirs]
            table.write(start, first, torch.stack([rows for rows, _ in pairs], 1))  # [I, J, P]
            table.write(first, start, torch.stack([columns for _, columns in pairs]))  # [J, I, P]
            if advance:
                advance(len(ours) * len(theirs))
        if advance:
            advance(len(ours) * (len(ours) - 1) // 2)
    device = ours.device
    return torch.stack([interval_mean(table.row(i).to(device), N - 1, interval) for i in range(N)])


def _both_ways(ours: Tensor, one: Tensor, wall: Tensor | None) -> tuple[Tensor, Tensor]:
    """[I, P] twice: each of our patches with its closest there, and each of that picture's with its closest here."""
    products = similarities(ours, one, wall)
    return products.amax(2).float(), products.amax(1).float()


def _among(ours: Tensor, wall: Tensor | None) -> Tensor:
    """[I, I, P] of a panel with itself, -inf where a picture would meet itself."""
    found = ours.new_full((len(ours), *ours.shape[:2]), -torch.inf, dtype=torch.float32)
    for j in range(1, len(ours)):
        found[:j, j], found[j, :j] = _both_ways(ours[:j], ours[j], wall)
    return found


def block_sizes(P: int, C: int) -> tuple[int, int]:
    """(pictures of a panel, pictures made ready at once for it) so that features and products take WORK_BYTES."""
    feature, product = 4 * P * C, 4 * P * P
    ahead = max(1, min(16, CACHED_BYTES // feature))
    fits = (WORK_BYTES - 3 * ahead * feature) // (feature + product)  # features pass through two more stages
    return max(1, min(fits, max(4, CACHED_BYTES // product))), ahead


def kept_cosines(queries: Tensor, kept: Pictures, wall: Tensor | None, arithmetic: torch.dtype) -> Tensor:
    """[n, B, P]: cosine of each patch of [B, P, C] with the most similar one in each of n kept pictures."""
    queries = queries.to(arithmetic)
    found = [similarities(queries, kept[j : j + 1][0].to(arithmetic), wall).amax(2).float() for j in range(len(kept))]
    return torch.stack(found)
