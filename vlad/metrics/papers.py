"""AUPRO as many papers' programs have it, under a name of its own: not the exact one of `vlad.metrics.aupro`.

It takes 200 thresholds at even steps of score, so that it depends on how scores are spread and not on their order
alone: the same ranking gives other numbers. Take it only to compare with tables that were made so (AnomalyCLIP, MuSc,
APRIL-GAN, FiLo, FAPrompt, VCP-CLIP, Crane and others).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vlad.metrics.inputs import nan, only_maps, pairs, to_numpy
from vlad.metrics.tally import region_weights

STEPS = 200


def aupro_200(maps: Any, masks: Any, limit: float = 0.3) -> float:
    """The mean coverage of regions over false positive rates below `limit`, which are stretched to [0, 1] before.

    Args:
        maps, masks: as in `vlad.metrics.aupro`.

    Returns:
        In [0, 1]; NaN where nothing is marked, nothing is normal, or fewer than two thresholds lie below `limit`.
    """
    pictures = only_maps(pairs(maps, masks))
    regions = 0
    low = min((to_numpy(scores).min() for scores, _ in pictures), default=0.0)
    high = max((to_numpy(scores).max() for scores, _ in pictures), default=0.0)
    if not high > low:
        return nan("aupro_200", "all scores are the same")
    steps = np.arange(low, high, (high - low) / STEPS)  # in the maps' own precision, as there
    normal, covered = np.zeros(len(steps) + 1), np.zeros(len(steps) + 1)
    for scores, truth in pictures:
        values = to_numpy(scores)
        normal += _over(values[~truth], steps, None)
        if truth.any():
            weights, count = region_weights(truth)
            covered += _over(values[truth], steps, weights)
            regions += count
    if not regions or not normal.sum():
        return nan("aupro_200", "nothing is anomalous" if not regions else "nothing is normal")
    rates, heights = (_above(column) for column in (normal / normal.sum(), covered / regions))
    kept = rates < limit
    width = float(np.ptp(rates[kept])) if kept.any() else 0.0
    if not width:
        return nan("aupro_200", f"fewer than two of its thresholds have a false positive rate below {limit}")
    return float(-np.trapezoid(heights[kept], (rates[kept] - rates[kept].min()) / width))


def _over(values: np.ndarray, steps: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """[steps + 1]: how many values lie above exactly 0, 1, 2, ... of the steps."""
    return np.bincount(np.searchsorted(steps, values, side="left"), weights, minlength=len(steps) + 1)


def _above(column: np.ndarray) -> np.ndarray:
    """[steps]: what lies above each of them."""
    return column[::-1].cumsum()[::-1][1:]
