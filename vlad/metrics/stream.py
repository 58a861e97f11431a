"""The metrics of any number of maps in bounded memory, each with rigorous bounds on its error.

    edges = stream.choose_edges(scores of some normal pixels)
    counted = stream.histogram(maps, masks, edges)           # any iterables, read one picture at a time
    stream.aupro(counted)                                    # Bounded(value=0.8144, low=0.8139, high=0.8150)

Pictures are counted into fixed bins. Inside a bin the order of the scores is forgotten, so each metric takes the bin as
a group of ties, by the same formulas as `metrics`, and returns the interval in which the exact value lies whatever the
order was. The edges only decide how narrow that interval is: they should be quantiles of normal scores, not evenly
spaced scores. Histograms with the same edges add up (`merge`): over machines, or over resampled pictures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import digamma

from vlad.metrics import tally as tallies
from vlad.metrics.inputs import check_limit, nan, only_maps, only_scores, pairs, to_numpy
from vlad.metrics.tally import Tally


class Bounded(NamedTuple):
    """A metric in which the exact value lies in [low, high]; all three NaN where it is undefined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Histogram:
    """Pixels in bins: bin 0 lies below edges[0], bin b from edges[b - 1] (inclusive) to edges[b], the last on up."""

    edges: np.ndarray  # float64 [B] ascending
    normal: np.ndarray  # int64 [B + 1] normal pixels
    anomalous: np.ndarray  # int64 [B + 1] anomalous pixels
    weight: np.ndarray  # float64 [B + 1] sum of 1 / (size of its region) over the anomalous pixels
    regions: int


def choose_edges(scores: Any, bins: int = 1020) -> np.ndarray:
    """At most `bins` distinct edges, ascending, float64, from a sample of normal scores (array or tensor of any shape).

    Half lie at false positive rates geometric in [1e-5, 1], half at even ones, so that the low rates of AUPRO and the
    whole of AUROC are resolved alike. A score that is met at several of these rates gets a bin of its own, in which no
    order is lost. A sample of some 10^5 pixels from several pictures is plenty.

    Raises:
        ValueError: the sample is empty or holds NaN or infinite scores.
    """
    if bins < 2:
        raise ValueError(f"bins is {bins}; expected at least 2")
    ordered = np.sort(to_numpy(only_scores(pairs(scores.reshape(-1))).scores))
    if not len(ordered):
        raise ValueError("the sample of scores is empty; give the scores of some normal pixels")
    rates = np.concatenate([np.geomspace(1e-5, 1, bins // 2), np.linspace(0, 1, bins - bins // 2)])
    places = np.unique(len(ordered) - np.ceil(rates * len(ordered)).clip(min=1).astype(int))
    edges, met = np.unique(ordered[places].astype(np.float64), return_counts=True)
    return np.union1d(edges, np.nextafter(edges[met > 1], np.inf))


def histogram(maps: Iterable[Any], masks: Iterable[Any], edges: np.ndarray) -> Histogram:
    """The counts of all pictures.

    Args:
        maps, masks: of equal length, [H, W] each, generators too; a mask may be None. Refused as in `metrics`.
        edges: [B] ascending.
    """
    normal, anomalous, weight = (np.zeros(len(edges) + 1, kind) for kind in (np.int64, np.int64, np.float64))
    total = 0
    for index, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        pictures = only_maps(pairs([scores], [mask], first=index))
        _, reached, normals = tallies.ranks(pictures, edges)
        normal -= np.diff(reached, prepend=normals, append=0)
        truth = pictures[0].truth
        if truth.any():
            weights, regions = tallies.region_weights(truth)
            bins = np.searchsorted(edges, tallies.anomalous_scores(pictures[0]), "right")
            anomalous += np.bincount(bins, minlength=len(normal))
            weight += np.bincount(bins, weights, minlength=len(normal))
            total += regions
    return Histogram(edges, normal, anomalous, weight, total)


def merge(histograms: Iterable[Histogram]) -> Histogram:
    """The histogram of all pictures of these, at least one; a histogram given twice counts twice.

    Raises:
        ValueError: there is none, or their edges differ.
    """
    parts = list(histograms)
    if not parts or any(not np.array_equal(part.edges, parts[0].edges) for part in parts):
        raise ValueError(f"cannot merge {len(parts)} histograms; give one or more, counted with the same edges")
    normal, anomalous, weight = (
        np.sum([getattr(part, name) for part in parts], axis=0) for name in ("normal", "anomalous", "weight")
    )
    return Histogram(parts[0].edges, normal, anomalous, weight, sum(part.regions for part in parts))


def auroc(counted: Histogram) -> Bounded:
    """Area under the pixel ROC curve: the pairs that share a bin count half, and might count nothing or whole."""
    rows, tied = _tally(counted)
    if rows.undefined:
        return _nothing("AUROC", rows)
    value = tallies.roc_area(rows)
    unordered = (rows.anomalous / rows.anomalous.sum() * ((rows.reached - rows.above) / rows.normals))[~tied].sum()
    return Bounded(value, value - float(unordered) / 2, value + float(unordered) / 2)


def average_precision(counted: Histogram) -> Bounded:
    """Average precision: at worst a bin's normal pixels all come before its anomalous ones, at best after them."""
    rows, tied = _tally(counted)
    if rows.undefined:
        return _nothing("average precision", rows)
    best = rows.anomalous * (rows.hits / (rows.hits + np.where(tied, rows.reached, rows.above)))
    # at worst the sum of j / (j + reached) over the bin's hits j, in closed form by harmonic numbers
    harmonic = digamma(rows.hits + rows.reached + 1.0) - digamma(rows.hits - rows.anomalous + rows.reached + 1.0)
    worst = np.where(tied, best, rows.anomalous - rows.reached * harmonic)
    low, high = (float(steps.sum() / rows.anomalous.sum()) for steps in (worst, best))
    return Bounded(tallies.precision_steps(rows), low, high)


def f1_max(counted: Histogram) -> tuple[Bounded, float]:
    """(best F1, its threshold): reached at a bin's edge, and surpassed at most if a bin's hits all come first.

    The threshold is -inf where it lies below all edges.
    """
    rows, tied = _tally(counted)
    if rows.undefined:
        return _nothing("F1-max", rows), math.nan
    scores = tallies.f1_scores(rows)
    best = int(np.argmax(scores))
    high = (2 * rows.hits / (rows.anomalous.sum() + rows.hits + np.where(tied, rows.reached, rows.above))).max()
    return Bounded(float(scores[best]), float(scores[best]), float(high)), float(rows.threshold[best])


def aupro(counted: Histogram, limit: float = 0.3) -> Bounded:
    """Area under the region overlap curve up to `limit`: at worst a bin's normal pixels come first, at best last."""
    check_limit(limit)
    rows, tied = _tally(counted)
    if rows.undefined:
        return _nothing("AUPRO", rows)
    areas = tallies.coverage_areas(rows, limit)
    worst, best = (
        np.where(tied, areas, np.maximum(limit - false / rows.normals, 0)) for false in (rows.reached, rows.above)
    )
    value, low, high = (float((rows.share * area).sum() / limit) for area in (areas, worst, best))
    return Bounded(value, low, high)


def _tally(counted: Histogram) -> tuple[Tally, np.ndarray]:
    """One row for each bin with anomalous pixels, highest first, and whether no more than one score fits into the bin.

    The other bins can change no value and no bound.
    """
    lowest = np.concatenate([[-np.inf], counted.edges])
    tied = np.nextafter(lowest, np.inf) >= np.append(counted.edges, np.inf)
    reached = np.cumsum(counted.normal[::-1])
    rows = np.flatnonzero(counted.anomalous[::-1])
    tally = Tally(
        threshold=lowest[::-1][rows],
        anomalous=counted.anomalous[::-1][rows],
        above=(reached - counted.normal[::-1])[rows],
        reached=reached[rows],
        share=counted.weight[::-1][rows] / max(counted.regions, 1),
        normals=int(counted.normal.sum()),
    )
    return tally, tied[::-1][rows]


def _nothing(metric: str, rows: Tally) -> Bounded:
    value = nan(metric, rows.undefined, depth=4)
    return Bounded(value, value, value)
