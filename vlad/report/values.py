"""What an evaluation found, as values: rows, their means, detectors compared in pairs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from vlad.forms import closest
from vlad.metrics import resampling

CLEAN, MEAN, ALL = "clean", "mean", "all"


@dataclass(frozen=True)
class Row:
    """One metric of one detector on one category, or its mean over categories (category "mean")."""

    detector: str
    dataset: str
    category: str
    metric: str
    value: float  # in [0, 1]; NaN where undefined
    n: int  # test pictures
    normal: int
    anomalous: int
    reason: str = ""  # why the value is NaN; of a mean, what it leaves out
    interval: tuple[float, float] | None = None  # 95 %, bootstrap over pictures; of rates at a threshold exact
    deviation: float | None = None  # over seeds, ddof 1
    threshold: float | None = None  # of F1max: chosen on the test labels; of "own_...": the detector's own
    error: float = 0.0  # how far the value may be from the exact one
    condition: str = CLEAN  # or a corruption with its severity, "noise 3"
    empty_masks: int = 0  # anomalous pictures in which nothing is marked

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN becomes None."""
        return {key: plain(value) for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Row:
        """The row that `to_dict` wrote."""
        known = {one.name: raw[one.name] for one in fields(cls)}
        known["value"] = math.nan if known["value"] is None else known["value"]
        known["interval"] = tuple(known["interval"]) if known["interval"] else None
        return cls(**known)


class Comparison(NamedTuple):
    """Two detectors on the categories that both have a value for."""

    first: str
    second: str
    dataset: str
    metric: str
    categories: int
    difference: resampling.Difference  # first less second
    p_holm: float  # corrected for all comparisons of the same call


@dataclass(frozen=True)
class Findings:
    """Rows and what follows from them.

    Attributes:
        rows: one for each detector, data set, category, condition and metric.
        settings: what the numbers depend on, and seconds and memory.
        curves, shown: by (detector, data set, category), for the page.
        draws: (detector, data set, category, metric) -> [draws], paired over detectors.
        references: (detector, data set, category) -> seed -> file names of the normal pictures fitted on.
        predictions: (detector, data set, category) -> for each test picture its source, label, score and verdict.
    """

    rows: tuple[Row, ...]
    settings: Mapping[str, Any]
    curves: Mapping[tuple[str, str, str], Any] = field(default_factory=dict)
    shown: Mapping[tuple[str, str, str], Any] = field(default_factory=dict)
    draws: Mapping[tuple[str, str, str, str], np.ndarray] = field(default_factory=dict)
    references: Mapping[tuple[str, str, str], Mapping[str, list[str]]] = field(default_factory=dict)
    predictions: Mapping[tuple[str, str, str], list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def detectors(self) -> list[str]:
        """Labels in order."""
        return list(self.settings["detectors"])

    def select(self, **wanted: str) -> list[Row]:
        """The rows with these values in these fields; means with category="mean"."""
        pool = [*self.rows, *self.mean()] if wanted.get("category") == MEAN else self.rows
        return [row for row in pool if all(getattr(row, key) == value for key, value in wanted.items())]

    def value(self, metric: str, **wanted: str) -> float:
        """One number: of the category, or of the mean where no category is named; clean pictures if not told otherwise.

        Raises:
            ValueError: no such metric, or the words given fit no row or several.
        """
        if metric not in (known := {row.metric for row in self.rows}):
            raise ValueError(f"metric is {metric!r}; {closest(metric, sorted(known))}")
        where = {"category": MEAN, "condition": CLEAN, **wanted}
        rows = self.select(metric=metric, **where)
        if len(rows) > 1 and where["category"] == MEAN and "dataset" not in wanted:
            rows = [row for row in rows if row.dataset == ALL] or rows
        if len(rows) != 1:
            raise ValueError(f"{len(rows)} rows of {metric} fit {where}; say detector=, dataset= and category=")
        return rows[0].value

    def mean(self) -> list[Row]:
        """Unweighted means over the categories of a data set, and over data sets (dataset "all") where there are more.

        A category whose value is NaN is left out; `reason` names it and counts.
        """
        return list(self._means)

    @cached_property
    def _means(self) -> list[Row]:
        groups: dict[tuple[str, str, str, str], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((row.detector, row.condition, row.metric, row.dataset), []).append(row)
        means = [self._mean(rows) for rows in groups.values()]
        if len({row.dataset for row in self.rows}) < 2:
            return means
        over: dict[tuple[str, str, str], list[Row]] = {}
        for row in means:
            over.setdefault((row.detector, row.condition, row.metric), []).append(row)
        return means + [self._mean(rows, ALL) for rows in over.values()]

    def _mean(self, rows: list[Row], dataset: str | None = None) -> Row:
        defined = [row for row in rows if not math.isnan(row.value)]
        first = rows[0]
        drawn = [self._drawn(row) for row in defined]
        whole = bool(drawn) and all(len(one) for one in drawn)
        return Row(
            detector=first.detector,
            dataset=dataset or first.dataset,
            category=MEAN,
            metric=first.metric,
            value=math.fsum(row.value for row in defined) / len(defined) if defined else math.nan,
            n=sum(row.n for row in defined),
            normal=sum(row.normal for row in defined),
            anomalous=sum(row.anomalous for row in defined),
            reason=_left_out(rows, dataset is not None),
            interval=resampling.interval(np.mean(drawn, axis=0)) if whole else None,
            deviation=None,
            error=sum(row.error for row in defined) / max(len(defined), 1),
            condition=first.condition,
            empty_masks=sum(row.empty_masks for row in rows),
        )

    def _drawn(self, row: Row) -> np.ndarray:
        """[draws] of a row, or of a mean; empty where there are none."""
        if row.condition != CLEAN:
            return np.zeros(0)
        if row.category != MEAN:
            return self.draws.get((row.detector, row.dataset, row.category, row.metric), np.zeros(0))
        parts = [
            column
            for (detector, dataset, _, metric), column in self.draws.items()
            if (detector, dataset, metric) == (row.detector, row.dataset, row.metric)
        ]
        return np.mean(parts, axis=0) if parts else np.zeros(0)

    def compare(self, metrics: Sequence[str] = ("image_auroc", "pixel_aupro")) -> list[Comparison]:
        """Every pair of detectors, paired by category; p-values corrected (Holm) over all that is returned.

        Data sets of several categories are compared apart, and all of them together ("all").
        """
        places = {(row.dataset, row.category): None for row in self.rows}
        sizes = Counter(dataset for dataset, _ in places)
        datasets = [dataset for dataset, size in sizes.items() if size > 1 or len(sizes) == 1]
        found = []
        for metric in metrics:
            for dataset in datasets if len(sizes) == 1 else [*datasets, ALL]:
                for pair in combinations(self.detectors, 2):
                    if one := self._compared(*pair, dataset, metric):
                        found.append(one)
        corrected = resampling.holm([one.difference.p for one in found])
        return [one._replace(p_holm=p) for one, p in zip(found, corrected, strict=True)]

    def _compared(self, first: str, second: str, dataset: str, metric: str) -> Comparison | None:
        tables: list[dict[tuple[str, str], Row]] = []
        for detector in (first, second):
            rows = self.select(detector=detector, metric=metric, condition=CLEAN)
            tables.append({(r.dataset, r.category): r for r in rows if dataset in (ALL, r.dataset)})
        places = [p for p in tables[0] if p in tables[1] and not any(math.isnan(t[p].value) for t in tables)]
        if not places:
            return None
        values = [[table[place].value for place in places] for table in tables]
        drawn = [[self._drawn(table[place]) for place in places] for table in tables]
        whole = all(len(column) for columns in drawn for column in columns)
        means = [np.mean(columns, axis=0) if whole else np.zeros(0) for columns in drawn]
        difference = resampling.paired(values[0], values[1], means[0], means[1])
        return Comparison(first, second, dataset, metric, len(places), difference, math.nan)


def _left_out(rows: Iterable[Row], datasets: bool) -> str:
    rows = list(rows)
    nothing = [row for row in rows if math.isnan(row.value)]
    if not nothing:
        return ""
    names = ", ".join(row.dataset if datasets else row.category for row in nothing)
    return f"mean of {len(rows) - len(nothing)} of {len(rows)}; without a value: {names}"


def plain(value: Any) -> Any:
    """The value with NaN and infinities as None, tuples as lists, NumPy numbers as Python's."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
