"""What the metrics take in, checked, and how they say that they cannot be computed."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Scores = Any  # a floating-point NumPy array, or a torch tensor on a GPU


class UndefinedMetricWarning(UserWarning):
    """A metric is NaN for these inputs; the message says why."""


class Measured(NamedTuple):
    """Several metrics of the same pictures."""

    values: dict[str, float]  # NaN where undefined
    reasons: dict[str, str]  # why, for each NaN among the values


def nan(metric: str, reason: str, depth: int = 3) -> float:
    """NaN, with a warning that points at the line which called the public function, `depth` frames up."""
    warnings.warn(f"{metric} is NaN: {reason}", UndefinedMetricWarning, stacklevel=depth)
    return math.nan


def check_limit(limit: float) -> None:
    if not 0 < limit <= 1:
        raise ValueError(f"limit is {limit}; expected a false positive rate above 0 and at most 1")


class Pair(NamedTuple):
    """One picture's scores and its truth, of the same shape: [H, W], or [n] for picture scores."""

    scores: Scores
    truth: np.ndarray  # bool, True = anomalous


def is_tensor(values: Any) -> bool:
    torch = sys.modules.get("torch")  # who has no torch in memory has no tensor either
    return torch is not None and isinstance(values, torch.Tensor)


def to_numpy(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if is_tensor(values) else np.asarray(values)


def pairs(maps: Any, masks: Any = None, first: int = 0) -> list[Pair]:
    """Every picture's scores with its truth, checked.

    Args:
        maps: [n, H, W] array or tensor, list of [H, W] of any sizes; or picture scores [n], which make ONE pair.
        masks: truth of the same shapes, nonzero = anomalous; None, also in a list, means that nothing is.
        first: what the first picture is called in messages.

    Returns:
        Pairs whose scores are of one dtype and on one device; nothing is copied that need not be.

    Raises:
        ValueError: numbers or sizes of maps and masks differ, a map is not [H, W], or a score is NaN or infinite.
        TypeError: scores are not numbers.
    """
    if masks is not None and len(maps) != len(masks):
        raise ValueError(f"{len(maps)} maps or scores came with {len(masks)} masks or labels; give one for each")
    if not len(maps):
        return []
    if _dimensions(maps[0]) == 0:
        scores = _checked_scores(_gathered(maps), "the scores")
        return [Pair(scores, _checked_truth(None if masks is None else _gathered(masks), scores, "the labels have"))]
    rows = _alike([_checked_map(row, f"map {index}") for index, row in enumerate(maps, first)])
    truths = enumerate(zip(rows, [None] * len(rows) if masks is None else masks, strict=True), first)
    return [Pair(row, _checked_truth(mask, row, f"mask {index} has")) for index, (row, mask) in truths]


def _dimensions(values: Any) -> int:
    return values.ndim if hasattr(values, "ndim") else np.ndim(values)


def _gathered(values: Any) -> Any:
    """A sequence of n scalars as one [n]."""
    return values if hasattr(values, "ndim") else np.asarray([float(value) for value in values])


def _checked_map(values: Any, what: str) -> Scores:
    values = _checked_scores(values, what)
    if values.ndim != 2:
        raise ValueError(f"{what} has shape {tuple(values.shape)}; expected [H, W] (put a single map into a list)")
    return values


def _checked_scores(values: Any, what: str) -> Scores:
    values = _floating(values, what)
    finite = values.isfinite() if is_tensor(values) else np.isfinite(values)
    if not finite.all():
        finite = to_numpy(finite)
        bad, where = finite.size - np.count_nonzero(finite), tuple(int(axis[0]) for axis in np.nonzero(~finite))
        raise ValueError(f"{what}: {bad} of {finite.size} values are NaN or infinite, the first at {where}")
    return values


def _floating(values: Any, what: str) -> Scores:
    """float32 or float64, without loss; a CPU tensor becomes an array, one on a GPU stays there."""
    if is_tensor(values):
        values = values.detach()
        if values.is_floating_point() and values.element_size() < 4:
            values = values.float()
        if values.device.type not in ("cpu", "mps") and values.is_floating_point():  # mps has no float64
            return values
        values = values.cpu().numpy()
    values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        raise TypeError(f"{what}: {values.dtype} values; expected numbers")
    if values.dtype.kind == "f" and values.itemsize < 8:
        return values.astype(np.float32, copy=False)
    return values.astype(np.float64, copy=False)


def _alike(rows: list[Scores]) -> list[Scores]:
    """The same dtype and device for all: where they differ, float64 arrays, in which every float32 is exact."""
    kinds = {(row.dtype, str(row.device) if is_tensor(row) else "") for row in rows}
    return rows if len(kinds) == 1 else [to_numpy(row).astype(np.float64) for row in rows]


def _checked_truth(truth: Any, scores: Scores, what: str) -> np.ndarray:
    shape = tuple(scores.shape)
    if truth is None:
        return np.zeros(shape, bool)
    truth = to_numpy(truth)
    if truth.shape != shape:
        hint = "they look transposed" if truth.shape == shape[::-1] else "resize the map to the mask"
        raise ValueError(f"{what} shape {truth.shape} but the scores {shape}; give equal shapes ({hint})")
    if truth.dtype.kind == "f" and np.isnan(truth).any():
        raise ValueError(f"{what} NaN among the values; expected 0 for normal, anything else for anomalous")
    return truth.astype(bool, copy=False)


def only_maps(pictures: list[Pair]) -> list[Pair]:
    if any(truth.ndim != 2 for _, truth in pictures):
        raise ValueError("picture scores came for a metric of pixels or regions; give maps [n, H, W] and their masks")
    return pictures


def only_scores(pictures: list[Pair]) -> Pair:
    if any(truth.ndim != 1 for _, truth in pictures):
        raise ValueError("maps came for a metric of picture scores; give scores [n], and labels [n] where asked")
    return pictures[0] if pictures else Pair(np.zeros(0), np.zeros(0, bool))


def empty_masks(masks: Any, labels: Sequence[int]) -> list[int]:
    """Indices of the pictures that are labelled anomalous although no pixel of their mask is.

    Raises:
        ValueError: a picture is labelled normal although its mask is not empty.
    """
    filled = [mask is not None and bool(to_numpy(mask).any()) for mask in masks]
    if len(filled) != len(labels):
        raise ValueError(f"{len(filled)} masks came with {len(labels)} labels; give one for each")
    for index, (label, marked) in enumerate(zip(labels, filled, strict=True)):
        if marked and not label:
            raise ValueError(f"picture {index} is labelled normal but its mask is not empty; mend one of them")
    return [index for index, (label, marked) in enumerate(zip(labels, filled, strict=True)) if label and not marked]
