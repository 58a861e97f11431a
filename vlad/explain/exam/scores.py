"""The numbers that judge explanations: small functions of plain values, each with an example worked by hand.

All values are in [0, 1], and larger is better, but for calibration error. What cannot be computed is None.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlad.explain.interview.votes import SURE_ANOMALOUS, SURE_NORMAL
from vlad.images.places import Box
from vlad.metrics import auroc

BINS = 10  # of the calibration error

# Decisions


@dataclass(frozen=True)
class Decisions:
    """How decisions fit the truth; an answer that could not be read is wrong, whatever the truth was."""

    accuracy: float
    precision: float | None
    recall: float | None
    f1: float | None


def decisions(said: Sequence[bool | None], truth: Sequence[bool]) -> Decisions:
    """Accuracy, precision, recall and F1 of "anomalous"; None in `said` is an answer that could not be read.

    >>> decisions([True, True, False, None], [True, False, False, True])
    Decisions(accuracy=0.5, precision=0.5, recall=0.5, f1=0.5)

    Raises:
        ValueError: no decisions, or not one for each picture.
    """
    if not truth or len(said) != len(truth):
        raise ValueError(f"{len(said)} decisions came for {len(truth)} pictures; expected one each, and at least one")
    hits = sum(bool(one and true) for one, true in zip(said, truth, strict=True))
    raised, anomalous = sum(one is True for one in said), sum(truth)
    right = sum(one is not None and one == true for one, true in zip(said, truth, strict=True))
    f1 = 2 * hits / (raised + anomalous) if raised + anomalous else None
    precision, recall = hits / raised if raised else None, hits / anomalous if anomalous else None
    return Decisions(right / len(truth), precision, recall, f1)


# Probabilities


def calibration_error(probabilities: Sequence[float], truth: Sequence[bool], bins: int = BINS) -> float | None:
    """Expected calibration error: over equal bins of p, the gap between mean p and the true share, weighted by size.

    Two pictures at p = 0.95 of which one is anomalous, two at 0.05 of which none is: (2 * 0.45 + 2 * 0.05) / 4.

    >>> round(calibration_error([0.95, 0.95, 0.05, 0.05], [True, False, False, False]), 4)
    0.25

    Source: Guo 2017, On calibration of modern neural networks (arXiv:1706.04599), eq. 3.
    """
    p, y = np.asarray(probabilities, float), np.asarray(truth, float)
    if not len(p):
        return None
    place = np.minimum((p * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    gaps = np.abs(np.bincount(place, p - y, minlength=bins))  # counts times the gap of a bin
    return float(gaps.sum() / counts.sum())


def coverage(probabilities: Sequence[float], truth: Sequence[bool]) -> tuple[float, float | None]:
    """(share of pictures that are decided, accuracy on those): anomalous from 0.65, normal up to 0.35, else unsure.

    >>> coverage([0.9, 0.5, 0.1, 0.7], [True, True, False, False])
    (0.75, 0.6666666666666666)

    Raises:
        ValueError: no probabilities.
    """
    if not probabilities:
        raise ValueError("no probabilities given; expected one for each picture")
    pairs = list(zip(probabilities, truth, strict=True))
    decided = [(p >= SURE_ANOMALOUS) == true for p, true in pairs if not SURE_NORMAL < p < SURE_ANOMALOUS]
    return len(decided) / len(pairs), sum(decided) / len(decided) if decided else None


def calibration(probabilities: Sequence[float], truth: Sequence[bool]) -> dict[str, float | int | None]:
    """How far p(anomalous) can be trusted: "pictures", "ece", "auroc", "coverage" and "accuracy_decided"."""
    if not probabilities:
        return {"pictures": 0}
    share, right = coverage(probabilities, truth)
    ranked = auroc(list(probabilities), list(map(int, truth))) if 0 < sum(truth) < len(truth) else None
    return {
        "pictures": len(probabilities),
        "ece": calibration_error(probabilities, truth),
        "auroc": ranked,
        "coverage": share,
        "accuracy_decided": right,
    }


# Places


def box_iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes.

    >>> box_iou((0, 0, 4, 4), (2, 0, 6, 4))  # 8 shared of 24
    0.3333333333333333
    """
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


def mask_box(mask: np.ndarray) -> Box:
    """The box round all marked pixels of a mask [H, W] that has some."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def mask_center(mask: np.ndarray) -> tuple[float, float]:
    """(x, y), the mean position of the marked pixels; the middle of the first pixel is 0.5."""
    rows, columns = np.nonzero(mask)
    return float(columns.mean()) + 0.5, float(rows.mean()) + 0.5


def inside(center: tuple[float, float], box: Box) -> bool:
    """Whether a point lies in a box."""
    return box[0] <= center[0] < box[2] and box[1] <= center[1] < box[3]
