"""AUPIMO: for each anomalous picture, how much of its defect is found at almost no false positives on normal pictures.

The false positive rate F(t) is the mean over NORMAL pictures of their share of pixels at or above t: the surroundings
of a defect do not enter it. For picture i, T_i(t) is the share of its anomalous pixels at or above t;

    AUPIMO_i = 1 / ln(U / L) * integral of T_i d(ln F)   over F in [L, U]

exactly: T_i is linear in ln F inside a group of tied normal scores, and interpolated at L and U. The official code
takes the nearest attained rates instead of L and U but still divides by ln(U / L): 1 to 2 % too high on small sets.

Only the normal scores above the rate U matter, one pixel in ten thousand, and nothing else is kept or sorted.

Source: AUPIMO (arXiv:2401.01984).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlad.metrics.inputs import Pair, empty_masks, nan, only_maps, pairs, to_numpy
from vlad.metrics.tally import anomalous_scores


def aupimo(
    maps: Any, masks: Any, bounds: tuple[float, float] = (1e-5, 1e-4), labels: Sequence[int] | None = None
) -> np.ndarray:
    """One value in [0, 1] for each anomalous picture, NaN for the normal ones; float64 [n].

    Args:
        maps, masks: [n, H, W], or lists of [H, W] of different sizes.
        bounds: the false positive rates (L, U), 0 < L < U <= 1.
        labels: [n] the data set's labels. A picture labelled anomalous with an empty mask is then neither normal nor
            scored; without labels every picture with an empty mask is normal.

    All values are NaN, with a warning, where no picture is normal or anomalous, or where the normal pixels are so few
    (or so tied) that no rate as low as L is attained: they should number 1 / L, better ten times that.
    """
    lower, upper = bounds
    if not 0 < lower < upper <= 1:
        raise ValueError(f"bounds are {bounds}; expected two false positive rates, 0 < lower < upper <= 1")
    pictures = only_maps(pairs(maps, masks))
    unclear = empty_masks([truth for _, truth in pictures], labels) if labels is not None else []
    anomalous = [index for index, (_, truth) in enumerate(pictures) if truth.any()]
    normals = [picture for index, picture in enumerate(pictures) if index not in {*anomalous, *unclear}]
    values = np.full(len(pictures), np.nan)
    if not (anomalous and normals):
        nan("AUPIMO", f"no picture {'has anomalous pixels' if normals else 'is normal'}")
        return values
    thresholds, rates = _normal_tail(normals, upper)
    if rates[0] > lower * (1 + 1e-9):  # a sum of 1 / pixels may end a bit above the rate that it means
        nan("AUPIMO", f"the lowest false positive rate attained is {rates[0]:.2g}, above the lower bound {lower:.2g}")
        return values
    above_weight, reached_weight = _weights(rates, lower, upper)
    for index in anomalous:
        above, reached = _found(pictures[index], thresholds[1:])
        values[index] = above @ above_weight + reached @ reached_weight
    return values


def aupimo_summary(values: np.ndarray) -> dict[str, float]:
    """Mean, median, quartiles and the share of zeros of the pictures that have a value; NaN where none has."""
    values = values[~np.isnan(values)]
    names = ("aupimo", "aupimo_median", "aupimo_lower_quartile", "aupimo_upper_quartile", "aupimo_zeros")
    if not len(values):
        return dict.fromkeys(names, np.nan)
    summary = (values.mean(), *np.quantile(values, [0.5, 0.25, 0.75]), (values == 0).mean())
    return {name: float(value) for name, value in zip(names, summary, strict=True)}


def _normal_tail(normals: list[Pair], upper: float) -> tuple[np.ndarray, np.ndarray]:
    """The distinct normal scores, descending, down to the first whose rate exceeds `upper`, and their rates.

    Each picture weighs 1 / n, spread over its pixels. A further picture can only raise the rate of a score, hence what
    falls below the cut once never comes back, and the tail stays small all the while.
    """
    tail, weights, cut = np.zeros(0), np.zeros(0), -np.inf
    for scores, truth in normals:
        new = to_numpy(scores[scores >= cut])
        tail = np.concatenate([tail, new])
        weights = np.concatenate([weights, np.full(len(new), 1 / (len(normals) * truth.size))])
        order = np.argsort(-tail)
        tail, weights = tail[order], weights[order]
        beyond = np.searchsorted(np.cumsum(weights), upper, side="right")
        if beyond < len(tail):
            cut = float(tail[beyond])
            kept = np.searchsorted(-tail, -cut, side="right")  # ties whole
            tail, weights = tail[:kept], weights[:kept]
    first = np.flatnonzero(np.diff(tail, prepend=np.inf))  # of each group of ties
    return tail[first], np.cumsum(np.add.reduceat(weights, first))


def _weights(rates: np.ndarray, lower: float, upper: float) -> tuple[np.ndarray, np.ndarray]:
    """What a pixel share just above each score, and at it, adds to the integral; the same for every picture.

    Segment k runs from rates[k - 1], where the share is that above score k, to rates[k], where it is that at or above
    it. The segment before rates[0] starts at ln 0 and lies below the lower bound.
    """
    start, end = np.log(rates[:-1]), np.log(rates[1:])
    first, last = (np.clip(edge, np.log(lower), np.log(upper)) for edge in (start, end))
    part = (last - first) / np.log(upper / lower)
    middle = ((first + last) / 2 - start) / (end - start)  # where in the segment, in [0, 1] if it counts at all
    return part * (1 - middle), part * middle


def _found(picture: Pair, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of the picture's anomalous pixels above each of the descending thresholds, and at or above it."""
    inside = anomalous_scores(picture)
    highest = np.sort(inside[inside >= thresholds[-1]]) if len(thresholds) else inside[:0]
    above = len(highest) - np.searchsorted(highest, thresholds, "right")
    reached = len(highest) - np.searchsorted(highest, thresholds, "left")
    return above / len(inside), reached / len(inside)
