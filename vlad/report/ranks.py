"""Many detectors over several data sets: mean ranks, and how far two must lie apart to differ.

Friedman's test in the form of Iman and Davenport asks whether they differ at all; Nemenyi's critical difference says
which ones. Both count data sets, not pictures: with few of them little is shown.

Source: Demsar, Statistical comparisons of classifiers over multiple data sets (JMLR 7, 2006), section 3.2.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from vlad.report.values import CLEAN, MEAN, Findings

METRICS = ("image_auroc", "pixel_ap", "pixel_aupro")  # that tables rank by
LEAST = 3  # detectors and places, below which there is nothing to rank
ALPHA = 0.05


class Ranks(NamedTuple):
    """How detectors rank by one metric.

    Attributes:
        means: (detector, its mean rank), the best first; 1 is the best, ties share.
        places: what they were ranked on, each once.
        over: "data sets", each the mean of its categories, or "categories" of a single one.
        p: that they are all alike.
        critical: the difference of mean ranks from which on two differ at ALPHA.
        alike: the longest runs of `means` in which no two differ.
    """

    metric: str
    means: list[tuple[str, float]]
    places: list[str]
    over: str
    p: float
    critical: float
    alike: list[list[str]]


def ranks(report: Findings, metric: str) -> Ranks | None:
    """The ranks where LEAST detectors have a value on LEAST data sets, or on categories where there is one set."""
    several = len({row.dataset for row in report.rows}) > 1
    rows = [
        row for row in (report.mean() if several else report.rows) if (row.metric, row.condition) == (metric, CLEAN)
    ]
    table: dict[str, dict[str, float]] = {}
    for row in rows:
        if not math.isnan(row.value) and (row.category == MEAN) == several and row.dataset != "all":
            table.setdefault(row.dataset if several else row.category, {})[row.detector] = row.value
    whole = {place: own for place, own in table.items() if len(own) == len(report.detectors)}
    if len(report.detectors) < LEAST or len(whole) < LEAST:
        return None
    values = np.array([[own[label] for label in report.detectors] for own in whole.values()])  # [places, detectors]
    mean, p, critical = friedman(values)
    order = np.argsort(mean, kind="stable")
    means = [(report.detectors[index], float(mean[index])) for index in order]
    over = "data sets" if several else "categories"
    return Ranks(metric, means, list(whole), over, p, critical, list(_alike(means, critical)))


def friedman(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """(mean ranks [detectors], p, critical difference) of values [places, detectors], of which higher is better."""
    from scipy import stats

    places, detectors = values.shape
    ranked = stats.rankdata(-values, axis=1)
    mean = ranked.mean(0)
    spread = ((ranked - (detectors + 1) / 2) ** 2).sum() / (detectors - 1)  # ties make it smaller
    chi = places**2 * ((mean - (detectors + 1) / 2) ** 2).sum() / spread if spread else 0.0
    left = places * (detectors - 1) - chi
    p = 0.0 if left <= 1e-9 else stats.f.sf((places - 1) * chi / left, detectors - 1, (detectors - 1) * (places - 1))
    quantile = stats.studentized_range.ppf(1 - ALPHA, detectors, math.inf) / math.sqrt(2)
    return mean, float(p), float(quantile * math.sqrt(detectors * (detectors + 1) / (6 * places)))


def _alike(means: list[tuple[str, float]], critical: float) -> Iterator[list[str]]:
    end = 0
    for start, (_, rank) in enumerate(means):
        last = max(number for number, (_, other) in enumerate(means) if other - rank < critical)
        if last > start and last + 1 > end:
            end = last + 1
            yield [label for label, _ in means[start:end]]


def said(found: Ranks) -> str:
    """What was tested on what, one sentence."""
    differ = "they differ" if found.p < ALPHA else "no difference is shown"
    return (
        f"mean ranks over {len(found.places)} {found.over}; Friedman test p = {found.p:.3g}, {differ}; two ranks "
        f"differ from {found.critical:.2f} on (critical difference, Nemenyi, 5 %)"
    )
