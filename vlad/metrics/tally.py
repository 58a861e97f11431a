"""Scores counted against their truth: the one sort from which every rank metric follows.

A rank metric depends on the scores only through the number of normal pixels above, and at or above, each anomalous one.
`tally` therefore sorts the normal pixels once, looks the distinct anomalous scores up in them, and keeps one row per
distinct score. The metrics are sums over these rows; a row is a group of ties, and ties always enter together.
The bins of a histogram are such groups as well (`metrics.stream`), so both forms share the formulas below.

Checked against scikit-learn and against MVTec's own evaluation code (tests/golden/metrics.npz).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import ndimage

from vlad.metrics.inputs import Pair, Scores, is_tensor, to_numpy


@dataclass(frozen=True)
class Tally:
    """Counts at K groups of tied scores, highest first. "Pixels" are pictures where scores came with labels."""

    threshold: np.ndarray  # [K] the lowest score of the group
    anomalous: np.ndarray  # int64 [K] anomalous pixels in the group
    above: np.ndarray  # int64 [K] normal pixels above the group
    reached: np.ndarray  # int64 [K] normal pixels above it or in it
    share: np.ndarray  # float64 [K] the part of all regions in the group, each weighing the same; sum 1
    normals: int  # normal pixels in all

    @property
    def hits(self) -> np.ndarray:
        """int64 [K]: anomalous pixels above the group or in it."""
        return np.cumsum(self.anomalous)

    @property
    def undefined(self) -> str:
        """Why no rank metric can be computed, or ""."""
        missing = [kind for kind, count in (("anomalous", self.anomalous.sum()), ("normal", self.normals)) if not count]
        return f"nothing is {' or '.join(missing)}" if missing else ""


# ---------------------------------------------------------------- regions


def region_ids(mask: np.ndarray) -> np.ndarray:
    """The region of each anomalous pixel, in raster order, counted from 0.

    Regions are 8-connected: pixels that touch at a corner belong together. Each mask is labelled once, however many
    methods are measured against it: labels are remembered under the mask's own bits.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return np.zeros(0, np.uint8)
    window = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return _labelled(np.packbits(window).tobytes(), window.shape)


@lru_cache(maxsize=1024)
def _labelled(bits: bytes, shape: tuple[int, int]) -> np.ndarray:
    window = np.unpackbits(np.frombuffer(bits, np.uint8), count=shape[0] * shape[1]).reshape(shape).astype(bool)
    labels, count = ndimage.label(window, structure=np.ones((3, 3), bool))
    ids = (labels[window] - 1).astype(np.min_scalar_type(count))
    ids.flags.writeable = False  # every caller is given this same array
    return ids


def region_weights(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """1 / (size of its region) for each anomalous pixel, in raster order, and the number of regions."""
    ids = region_ids(mask)
    sizes = np.bincount(ids)
    return 1.0 / sizes[ids], len(sizes)


# ---------------------------------------------------------------- counting


def tally(pictures: Sequence[Pair], regions: bool = False) -> Tally:
    """The counts of all pictures together; `regions` weighs every region alike (needs maps), else every pixel."""
    anomalous = [anomalous_scores(picture) for picture in pictures if picture.truth.any()]
    if not regions:
        return count(pictures, anomalous)
    weighed = [region_weights(truth) for _, truth in pictures if truth.any()]
    total = sum(number for _, number in weighed)
    return count(pictures, anomalous, [weights / total for weights, _ in weighed])


def anomalous_scores(picture: Pair) -> np.ndarray:
    """Scores of the anomalous pixels, in raster order."""
    return to_numpy(picture.scores[_index(picture.truth, picture.scores)])


def count(pictures: Sequence[Pair], anomalous: list[np.ndarray], weights: list[np.ndarray] | None = None) -> Tally:
    """The tally of anomalous scores, with their weights (sum 1, default equal), against the pictures' normal pixels."""
    scores = np.concatenate(anomalous) if anomalous else np.zeros(0)
    threshold, group = np.unique(scores, return_inverse=True)
    number = np.bincount(group, minlength=len(threshold))
    share = number / max(len(scores), 1) if not weights else np.bincount(group, np.concatenate(weights))
    above, reached, normals = ranks(pictures, threshold)
    return Tally(threshold[::-1], number[::-1], above[::-1], reached[::-1], share[::-1], normals)


def ranks(pictures: Sequence[Pair], values: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Normal pixels above each of the ascending `values`, at or above it (int64 [K] both), and in all.

    The sort is the only costly step of all rank metrics; it runs where the scores are.
    """
    if any(is_tensor(scores) for scores, _ in pictures):
        below, up_to, total = _ranks_on_device(pictures, values)
    else:
        ordered = _pooled_normals(pictures)
        ordered.sort()
        below, up_to, total = np.searchsorted(ordered, values), np.searchsorted(ordered, values, "right"), len(ordered)
    return total - up_to, total - below, total


def _pooled_normals(pictures: Sequence[Pair]) -> np.ndarray:
    """All normal scores in one new array, filled picture by picture: the only copy that is made of them."""
    counts = [truth.size - np.count_nonzero(truth) for _, truth in pictures]
    pooled = np.empty(sum(counts), pictures[0].scores.dtype if pictures else np.float64)
    for (scores, truth), end, number in zip(pictures, np.cumsum(counts), counts, strict=True):
        pooled[end - number : end] = scores.reshape(-1) if number == truth.size else scores[~truth]
    return pooled


def _ranks_on_device(pictures: Sequence[Pair], values: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    import torch

    ordered = torch.cat([scores[_index(~truth, scores)] for scores, truth in pictures]).sort().values
    wanted = torch.as_tensor(np.ascontiguousarray(values), device=ordered.device)
    ordered = ordered.to(torch.promote_types(ordered.dtype, wanted.dtype))
    below, up_to = (torch.searchsorted(ordered, wanted.to(ordered.dtype), right=right) for right in (False, True))
    return to_numpy(below), to_numpy(up_to), len(ordered)


def _index(mask: np.ndarray, scores: Scores) -> Any:
    """The mask where the scores are, to index them."""
    return sys.modules["torch"].as_tensor(mask, device=scores.device) if is_tensor(scores) else mask


# ---------------------------------------------------------------- the formulas


def roc_area(rows: Tally) -> float:
    """Share of (anomalous, normal) pairs in the right order, ties counting half; in integers up to the division."""
    wrong_twice = int((rows.anomalous * (rows.above + rows.reached)).sum())
    return 1 - wrong_twice / (2 * rows.normals * int(rows.anomalous.sum()))


def precision_steps(rows: Tally) -> float:
    """Average precision: recall gained at each threshold times the precision there (not a trapezoid)."""
    return float((rows.anomalous * (rows.hits / (rows.hits + rows.reached))).sum() / rows.anomalous.sum())


def f1_scores(rows: Tally) -> np.ndarray:
    """[K] F1 at each threshold."""
    return 2 * rows.hits / (rows.anomalous.sum() + rows.hits + rows.reached)


def coverage_area(rows: Tally, limit: float) -> float:
    """Mean area under the region curves against the false positive rate, up to `limit`, as a share of `limit`."""
    return float((rows.share * coverage_areas(rows, limit)).sum() / limit)


def coverage_areas(rows: Tally, limit: float) -> np.ndarray:
    """[K] the area below `limit` that a group adds for each unit of its share.

    A group that spans the rates from a to b raises the curve linearly in between: it adds the triangle over [a, b] and
    the rectangle over [b, limit]; of a group that straddles the limit, the part of the triangle before it.
    """
    start, end = rows.above / rows.normals, rows.reached / rows.normals  # a, b: [K]
    before = np.maximum(limit - start, 0) - np.maximum(limit - end, 0)  # the part of [a, b] below the limit
    triangle = before**2 / (2 * np.maximum(end - start, 0.5 / rows.normals))  # b - a is 0 or at least 1 / normals
    return np.maximum(limit - end, 0) + triangle
