"""How sure a metric is, and whether two detectors differ: bootstrap over pictures, paired tests, Holm's correction.

Pictures are drawn, never pixels: the pixels of a picture belong together. Normal and anomalous pictures are drawn
apart, so that every draw has both, in the numbers of the test set. The same seed gives every detector the same draws:
differences between detectors are then paired.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vlad import metrics
from vlad.metrics import stream as metrics_stream
from vlad.metrics.stream import Bounded, Histogram

LEVEL = 0.95
WILCOXON_MINIMUM = 10  # categories; below that the smallest p-value of the signed-rank test says little


class Difference(NamedTuple):
    """What pairs of values tell: the first less the second."""

    mean: float
    interval: tuple[float, float]
    p: float  # two-sided
    test: str
    wins: int  # of the first
    ties: int
    losses: int


def stratified(labels: Sequence[int], draws: int, seed: int = 0) -> np.ndarray:
    """int64 [draws, n]: how often each draw takes each picture; as many of each label as there are."""
    given = np.asarray(labels)
    random = np.random.default_rng(seed)
    taken = np.zeros((draws, len(given)), np.int64)
    for label in np.unique(given):
        members = np.flatnonzero(given == label)
        taken[:, members] = random.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
    return taken


def score_draws(scores: Sequence[float], labels: Sequence[int], taken: np.ndarray) -> dict[str, np.ndarray]:
    """auroc, ap and f1_max of picture scores in each of the draws, [draws] each."""
    values, truth, places = np.asarray(scores, np.float64), np.asarray(labels), np.arange(len(labels))
    rows = [np.repeat(places, times) for times in taken]
    measured = [metrics.score_metrics(values[row], truth[row]).values for row in rows]
    return {name: np.array([one[name] for one in measured]) for name in ("auroc", "ap", "f1_max")}


def pixel_draws(
    counted: Sequence[Histogram], taken: np.ndarray, limits: dict[str, float] | None = None
) -> dict[str, np.ndarray]:
    """auroc, ap, f1_max and the AUPROs named in `limits`, of pixels, in each of the draws, [draws] each.

    Args:
        counted: one histogram for each picture, all with the same edges.
        taken: [draws, n] of `stratified`.
    """
    normal, anomalous, weight = (
        taken.astype(np.float64) @ np.stack([getattr(one, key) for one in counted])  # [draws, bins]
        for key in ("normal", "anomalous", "weight")
    )
    regions = taken @ np.array([one.regions for one in counted])
    edges = counted[0].edges
    drawn = [
        Histogram(edges, n.astype(np.int64), a.astype(np.int64), w, int(r))
        for n, a, w, r in zip(normal, anomalous, weight, regions, strict=True)
    ]
    found = {
        "auroc": [metrics_stream.auroc(one).value for one in drawn],
        "ap": [metrics_stream.average_precision(one).value for one in drawn],
        "f1_max": [metrics_stream.f1_max(one)[0].value for one in drawn],
    }
    for name, limit in (limits or {}).items():
        found[name] = [metrics_stream.aupro(one, limit).value for one in drawn]
    return {name: np.array(values) for name, values in found.items()}


def mean_draws(values: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """[draws] the mean over the drawn pictures of one value each; NaN values take no part."""
    known = ~np.isnan(values)
    weights = taken[:, known]
    return weights @ values[known] / np.maximum(weights.sum(1), 1)


def interval(drawn: np.ndarray, level: float = LEVEL) -> tuple[float, float] | None:
    """The percentile interval of the draws; None without a draw that is a number."""
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return None
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired(
    first: Sequence[float], second: Sequence[float], drawn_first: np.ndarray, drawn_second: np.ndarray
) -> Difference:
    """The mean difference over categories, its interval and its p-value.

    Args:
        first, second: one value for each category that both have.
        drawn_first, drawn_second: [draws] the same means, in the same draws; may be empty.

    Ten categories and more are compared by Wilcoxon's signed-rank test, fewer by the draws: twice the share of them
    on the other side of zero.
    """
    differences = np.asarray(first) - np.asarray(second)
    drawn = drawn_first - drawn_second
    bounds = interval(drawn) or (math.nan, math.nan)
    sides = (int((differences > 0).sum()), int((differences == 0).sum()), int((differences < 0).sum()))
    if len(differences) >= WILCOXON_MINIMUM:
        return Difference(float(differences.mean()), bounds, _signed_rank(differences), "Wilcoxon", *sides)
    p = math.nan
    if len(drawn):
        side = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
        p = min(1.0, 2 * (side + 1) / (len(drawn) + 1))
    return Difference(float(differences.mean()), bounds, p, "bootstrap", *sides)


def _signed_rank(differences: np.ndarray) -> float:
    from scipy import stats

    return float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """The p-values corrected for there being several (Holm's step-down); NaN stay NaN and do not count."""
    order = sorted((value, index) for index, value in enumerate(p) if not math.isnan(value))
    corrected, highest = [math.nan] * len(p), 0.0
    for rank, (value, index) in enumerate(order):
        highest = max(highest, min(1.0, value * (len(order) - rank)))
        corrected[index] = highest
    return corrected


def half_width(bounded: Bounded) -> float:
    """How far the value may be from the exact one."""
    return max(bounded.high - bounded.value, bounded.value - bounded.low)
