"""How well scores and maps find what is anomalous: exact metrics, from one sort.

Maps are [n, H, W] arrays or tensors (on any device), or lists of [H, W] of different sizes; masks have the same shapes,
nonzero = anomalous, and None in a list is a picture without a mask. Functions that say "or scores" also take picture
scores [n] with labels [n]. Pixels are pooled over all pictures given, normal ones included: call once a category.
A pixel is positive where its score is at least the threshold, everywhere.

No value here moves when all scores are rescaled by one increasing function, save the threshold beside F1 and what is
measured at a threshold that the caller gives. All values are in [0, 1] except Kendall's tau. What cannot be
computed is NaN, with a warning (`UndefinedMetricWarning`) or an entry in `Measured.reasons` that says why; scores that
are NaN or infinite are refused.

`metrics.stream` has the same metrics for more maps than memory holds, with bounds on their error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vlad.metrics import tally as tallies
from vlad.metrics.aupimo import aupimo as aupimo
from vlad.metrics.aupimo import aupimo_summary as aupimo_summary
from vlad.metrics.decisions import fixed_rate_metrics as fixed_rate_metrics
from vlad.metrics.decisions import macro_mean as macro_mean
from vlad.metrics.decisions import mean_std_threshold as mean_std_threshold
from vlad.metrics.decisions import per_sample as per_sample
from vlad.metrics.decisions import severity_metrics as severity_metrics
from vlad.metrics.decisions import threshold_metrics as threshold_metrics
from vlad.metrics.inputs import Measured as Measured
from vlad.metrics.inputs import UndefinedMetricWarning as UndefinedMetricWarning
from vlad.metrics.inputs import check_limit, nan, only_maps, pairs, to_numpy
from vlad.metrics.inputs import empty_masks as empty_masks
from vlad.metrics.tally import Tally


class Defect(NamedTuple):
    """One annotated defect of MVTec LOCO: a mask file, or one pixel value of it."""

    mask: Any  # [H, W], nonzero = the defect
    threshold: float  # pixels to find before it counts as found whole ("saturation")
    relative: bool = False  # the threshold is a share of the defect's own area


class Curve(NamedTuple):
    """Points on the curves that a report draws, from (0, 0) to (1, 1); float64 [points] each."""

    false_positive_rate: np.ndarray  # ascending
    true_positive_rate: np.ndarray  # over the false positive rate: ROC
    region_overlap: np.ndarray  # over the false positive rate: PRO; for picture scores the true positive rate again
    precision: np.ndarray  # over the true positive rate: precision-recall


# ---------------------------------------------------------------- rank metrics


def auroc(maps: Any, masks: Any) -> float:
    """Area under the ROC curve of pixels, or scores; ties count half. NaN without anomalous or without normal ones."""
    return _one("AUROC", _tally(maps, masks), tallies.roc_area)


def average_precision(maps: Any, masks: Any) -> float:
    """Step sum of precision over recall, of pixels or scores; not the trapezoid that some papers call AP or AUPR."""
    return _one("average precision", _tally(maps, masks), tallies.precision_steps)


def f1_max(maps: Any, masks: Any) -> tuple[float, float]:
    """(the best F1 over all thresholds, the largest threshold that reaches it), of pixels or scores.

    The threshold is an oracle's: it is chosen on the very labels that it is measured on.
    """
    rows = _tally(maps, masks)
    return (nan("F1-max", rows.undefined), math.nan) if rows.undefined else _best_f1(rows)


def aupro(maps: Any, masks: Any, limit: float = 0.3) -> float:
    """Area under the per-region overlap curve up to a false positive rate of `limit` in (0, 1], divided by `limit`.

    Regions are 8-connected and weigh alike, whatever their size. Equals MVTec's official evaluation.
    """
    check_limit(limit)
    return _one("AUPRO", _tally(maps, masks, regions=True), lambda rows: tallies.coverage_area(rows, limit))


def spro(maps: Any, defects: Sequence[Sequence[Defect]], limit: float = 0.05) -> float:
    """Area under the saturated per-region overlap curve of MVTec LOCO up to a false positive rate of `limit`.

    Args:
        maps: as everywhere.
        defects: for each map its defects, none for a normal picture; normal pixels are those outside all of them.

    Saturated overlap is a sum over the pixels of a defect after all, ordered by score: the first `saturation` of them
    count 1 / saturation each, the others nothing. So it needs no loop over thresholds and is exact.

    Source: MVTec LOCO (doi:10.1007/s11263-022-01578-9), section 4.
    """
    check_limit(limit)
    if len(maps) != len(defects):
        raise ValueError(f"{len(maps)} maps came with {len(defects)} lists of defects; give each one, empty if need be")
    found = [[to_numpy(defect.mask) != 0 for defect in listed] for listed in defects]
    pictures = pairs(maps, [np.logical_or.reduce(masks) if masks else None for masks in found])
    scores, weights = [], []
    for picture, masks, listed in zip(pictures, found, defects, strict=True):
        for mask, defect in zip(masks, listed, strict=True):
            if mask.any():
                scores.append(np.sort(tallies.anomalous_scores(picture._replace(truth=mask)))[::-1])
                weights.append(_saturating(len(scores[-1]), defect))
    return _one(
        "sPRO",
        tallies.count(pictures, scores, [weight / len(weights) for weight in weights]),
        lambda rows: tallies.coverage_area(rows, limit),
    )


def _saturating(area: int, defect: Defect) -> np.ndarray:
    """[area] what each pixel adds to the defect's saturated overlap, from the highest score to the lowest; sum 1."""
    saturation = defect.threshold * area if defect.relative else min(defect.threshold, area)
    if not 0 < saturation <= area:
        raise ValueError(f"a defect saturates at {saturation} of its {area} pixels; expected more than 0, at most all")
    return np.clip(saturation - np.arange(area), 0, 1) / saturation


def score_metrics(scores: Any, labels: Any) -> Measured:
    """auroc, ap, f1_max and f1_max_threshold of picture (or sample) scores [n] with labels [n]."""
    return _ranked(_tally(scores, labels))


def pixel_metrics(
    maps: Any,
    masks: Any,
    labels: Sequence[int] | None = None,
    *,
    limits: Sequence[float] = (0.3, 0.05),
    empty_mask: str = "normal",
) -> Measured:
    """auroc, ap, f1_max, f1_max_threshold and aupro_<limit> for every limit, all from one sort.

    Args:
        maps, masks: as everywhere, but no picture scores.
        labels: [n] the data set's labels; needed only to know anomalous pictures whose mask is empty.
        empty_mask: what those are: "normal" counts their pixels as normal ones (as most papers do), "skip" leaves
            them out. `empty_masks` lists them.
    """
    if empty_mask not in ("normal", "skip"):
        raise ValueError(f"unknown empty_mask {empty_mask!r}; known: normal, skip")
    for limit in limits:
        check_limit(limit)
    pictures = only_maps(pairs(maps, masks))
    if empty_mask == "skip":
        if labels is None:
            raise ValueError('empty_mask="skip" needs labels, to tell an empty mask from a normal picture')
        left_out = set(empty_masks([truth for _, truth in pictures], labels))
        pictures = [picture for index, picture in enumerate(pictures) if index not in left_out]
    return _ranked(tallies.tally(pictures, regions=True), limits)


def curve(maps: Any, masks: Any, *, limit: float = 0.3, points: int = 1000) -> Curve:
    """About `points` points on the ROC, PRO and precision-recall curves of pixels or scores, to draw them.

    Where there are more, half are taken at false positive rates geometric in [1e-6, 1], half evenly in [0, limit].
    Empty where the metrics are undefined. Areas come from `auroc`, `aupro` ..., which use every point.
    """
    pictures = pairs(maps, masks)
    rows = tallies.tally(pictures, regions=all(truth.ndim == 2 for _, truth in pictures))
    if rows.undefined:
        return Curve(*(np.zeros(0) for _ in Curve._fields))
    wanted = np.arange(len(rows.reached))
    if len(wanted) > points // 2:  # each group of ties gives two points, its start and its end
        rates = np.concatenate([np.geomspace(1e-6, 1, points // 4), np.linspace(0, limit, points // 4)])
        wanted = np.unique(np.searchsorted(rows.reached, rates * rows.normals).clip(max=wanted[-1]))
    false = _ends(rows.above, rows.reached, wanted, rows.normals)
    true = _ends(rows.hits - rows.anomalous, rows.hits, wanted, rows.anomalous.sum())
    overlap = np.cumsum(rows.share)
    return Curve(
        false / rows.normals,
        true / rows.anomalous.sum(),
        _ends(overlap - rows.share, overlap, wanted, 1.0),
        np.where(true + false > 0, true / np.maximum(true + false, 1), 1.0),
    )


def _ends(starts: np.ndarray, ends: np.ndarray, wanted: np.ndarray, last: float) -> np.ndarray:
    """0, then start and end of each wanted group in turn, then the last value."""
    return np.concatenate([[0.0], np.stack([starts[wanted], ends[wanted]], axis=1).ravel(), [last]])


def _tally(maps: Any, masks: Any, regions: bool = False) -> Tally:
    pictures = pairs(maps, masks)
    return tallies.tally(only_maps(pictures) if regions else pictures, regions)


def _one(metric: str, rows: Tally, formula: Callable[[Tally], float]) -> float:
    return nan(metric, rows.undefined, depth=4) if rows.undefined else formula(rows)


def _best_f1(rows: Tally) -> tuple[float, float]:
    scores = tallies.f1_scores(rows)
    best = int(np.argmax(scores))  # the first of equals: the largest threshold
    return float(scores[best]), float(rows.threshold[best])


def _ranked(rows: Tally, limits: Sequence[float] = ()) -> Measured:
    names = ["auroc", "ap", "f1_max", "f1_max_threshold", *(f"aupro_{limit:g}" for limit in limits)]
    if rows.undefined:
        return Measured(dict.fromkeys(names, math.nan), dict.fromkeys(names, rows.undefined))
    areas = (tallies.coverage_area(rows, limit) for limit in limits)
    values = (tallies.roc_area(rows), tallies.precision_steps(rows), *_best_f1(rows), *areas)
    return Measured(dict(zip(names, values, strict=True)), {})
