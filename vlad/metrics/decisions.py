"""Metrics of decisions and of grouped scores: at a given threshold, at a fixed rate, by sample, by severity."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from vlad.metrics.inputs import Measured, only_scores, pairs, to_numpy
from vlad.metrics.tally import tally


def threshold_metrics(maps: Any, masks: Any, threshold: float) -> Measured:
    """f1, iou, balanced_accuracy, fpr and fnr of pixels (pooled), or of scores with labels, at one threshold.

    The threshold comes from elsewhere (`mean_std_threshold`, a detector, another data set), never from these labels.
    With maps, f1 is the "segF1" of MVTec AD 2.
    """
    if math.isnan(threshold):
        raise ValueError("the threshold is NaN; give a number")
    hits = alarms = anomalous = pixels = 0
    for scores, truth in pairs(maps, masks):
        found = to_numpy(scores).astype(np.float64) >= threshold  # else the threshold is rounded to float32
        inside = int(np.count_nonzero(found & truth))
        hits, alarms = hits + inside, alarms + int(np.count_nonzero(found)) - inside
        anomalous, pixels = anomalous + int(np.count_nonzero(truth)), pixels + truth.size
    normal = pixels - anomalous
    fpr = alarms / normal if normal else math.nan
    fnr = 1 - hits / anomalous if anomalous else math.nan
    f1 = 2 * hits / (anomalous + hits + alarms) if anomalous else math.nan
    values = {"f1": f1, "iou": f1 / (2 - f1), "balanced_accuracy": 1 - (fpr + fnr) / 2, "fpr": fpr, "fnr": fnr}
    reason = "nothing is anomalous" if not anomalous else "nothing is normal"
    return Measured(values, {name: reason for name, value in values.items() if math.isnan(value)})


def mean_std_threshold(maps: Any, deviations: float = 3.0) -> float:
    """Mean plus so many (population) standard deviations of the pixels of normal maps; MVTec AD 2's own threshold.

    The maps, at least one, are of normal pictures that the metrics do not see; or scores [n].
    """
    if not len(maps):
        raise ValueError("no maps came; a threshold needs at least one map of a normal picture")
    rows = [to_numpy(scores) for scores, _ in pairs(maps)]
    pixels = sum(row.size for row in rows)
    mean = sum(row.sum(dtype=np.float64) for row in rows) / pixels
    variance = sum(np.square(row - mean, dtype=np.float64).sum() for row in rows) / pixels
    return float(mean + deviations * math.sqrt(variance))


def fixed_rate_metrics(
    scores: Any,
    labels: Any,
    *,
    escapes: Sequence[float] = (0.02, 0.05, 0.1),
    tail: float = 0.05,
    recall: float = 0.95,
) -> Measured:
    """What a production line asks of picture scores [n] with labels [n].

    Returns:
        overkill_at_escape_<e>: share of normals at or above the e-quantile of the anomalous scores.
        pg: share of normals below the `tail`-quantile of the anomalous scores ("per good").
        pb: share of anomalous above the (1 - `tail`)-quantile of the normal scores ("per bad").
        fpr_at_tpr_<recall>: the lowest false positive rate that finds at least `recall` of the anomalous.
        Quantiles are linearly interpolated.
    """
    picture = only_scores(pairs(scores, labels))
    values, truth = to_numpy(picture.scores).astype(np.float64), picture.truth
    normal, anomalous = values[~truth], values[truth]
    names = [*(f"overkill_at_escape_{escape:g}" for escape in escapes), "pg", "pb", f"fpr_at_tpr_{recall:g}"]
    rows = tally([picture])
    if rows.undefined:
        return Measured(dict.fromkeys(names, math.nan), dict.fromkeys(names, rows.undefined))
    overkill = [(normal >= np.quantile(anomalous, escape)).mean() for escape in escapes]
    pg, pb = (normal < np.quantile(anomalous, tail)).mean(), (anomalous > np.quantile(normal, 1 - tail)).mean()
    enough = np.searchsorted(rows.hits, recall * len(anomalous) * (1 - 1e-12))  # 0.95 * 20 is 19, whatever its last bit
    rates = [*overkill, pg, pb, rows.reached[enough] / rows.normals]
    return Measured({name: float(rate) for name, rate in zip(names, rates, strict=True)}, {})


def per_sample(scores: Any, labels: Any, samples: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels of the samples, in order of first appearance: the highest among the pictures of each.

    For sets with several views of one object. `samples` holds each picture's sample; it must tell apart samples of
    different defect types that share a number.
    """
    picture = only_scores(pairs(scores, labels))
    if len(samples) != len(picture.truth):
        raise ValueError(f"{len(samples)} samples came with {len(picture.truth)} scores; give one for each")
    best: dict[Hashable, tuple[float, int]] = {}
    for score, label, sample in zip(to_numpy(picture.scores), picture.truth, samples, strict=True):
        highest, worst = best.get(sample, (-math.inf, 0))
        best[sample] = max(highest, float(score)), max(worst, int(label))
    return np.array([score for score, _ in best.values()]), np.array([label for _, label in best.values()], np.int64)


def severity_metrics(scores: Any, levels: Sequence[float]) -> Measured:
    """How well scores [n] follow severity levels [n], 0 = normal; half levels are rounded up.

    Returns:
        kendall_tau_b: in [-1, 1], over all pictures.
        concordance: share of the pairs of different level in the right order, tied scores counting half.
        auroc_0_vs_<level> for every level present, and auroc_0_vs_all.

    Source: MAD-Bench (arXiv:2411.14515).
    """
    values = to_numpy(only_scores(pairs(scores)).scores)
    grades = np.ceil(np.asarray(levels, np.float64))
    if grades.shape != values.shape or not (grades >= 0).all():
        raise ValueError(f"{len(values)} scores came with levels {grades.shape}; give each score a level of 0 or more")
    by_level = {int(level): values[grades == level] for level in np.unique(grades)}
    counts = {levels: _compare(by_level[levels[0]], by_level[levels[1]]) for levels in combinations(by_level, 2)}
    from_normal = {str(high): found for (low, high), found in counts.items() if low == 0}
    from_normal["all"] = _total(from_normal.values())
    everything = _total(counts.values())
    result = {"kendall_tau_b": _tau_b(values, everything), "concordance": _in_order(everything)}
    result |= {f"auroc_0_vs_{level}": _in_order(found) for level, found in from_normal.items()}
    reason = "pictures of level 0, or of another level, are missing" if len(by_level) > 1 else "all are of one level"
    reasons = {name: reason for name, value in result.items() if math.isnan(value)}
    if "kendall_tau_b" in reasons and len(by_level) > 1:
        reasons["kendall_tau_b"] = "all scores are equal"
    return Measured(result, reasons)


# Pairs of pictures of different level: the higher level scores higher, they tie, it scores lower.
Order = tuple[int, int, int]


def _compare(low: np.ndarray, high: np.ndarray) -> Order:
    ordered = np.sort(low)
    below, up_to = (int(np.searchsorted(ordered, high, side).sum()) for side in ("left", "right"))
    return below, up_to - below, len(low) * len(high) - up_to


def _total(orders: Iterable[Order]) -> Order:
    right, tied, wrong = (sum(column) for column in zip((0, 0, 0), *orders, strict=True))
    return right, tied, wrong


def _in_order(found: Order) -> float:
    return (found[0] + found[1] / 2) / sum(found) if sum(found) else math.nan


def _tau_b(values: np.ndarray, found: Order) -> float:
    """Kendall's tau-b, given the pairs of different level: those in order less the others, over what ties leave."""
    repeats = np.unique(values, return_counts=True)[1]
    untied = (len(values) ** 2 - int((repeats**2).sum())) // 2  # pairs of different score
    return (found[0] - found[2]) / math.sqrt(sum(found) * untied) if untied and sum(found) else math.nan


def macro_mean(values: Mapping[str, float]) -> tuple[float, list[str]]:
    """(the unweighted mean over categories, the categories left out because their value is NaN); NaN if all are."""
    defined = [value for value in values.values() if not math.isnan(value)]
    mean = math.fsum(defined) / len(defined) if defined else math.nan
    return mean, [name for name, value in values.items() if math.isnan(value)]
