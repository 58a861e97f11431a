"""From the measures of each draw of normal pictures to what a report has of a detector on a category."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from vlad.evaluate.inputs import Group, Place
from vlad.evaluate.measure import Measures, Value
from vlad.evaluate.parts import Part
from vlad.evaluate.walk import Condition, Entrant
from vlad.metrics import resampling
from vlad.report import Row
from vlad.report.pictures import thumbnails


def rows_of(label: str, place: Place, condition: Condition, measures: list[Measures], group: Group) -> list[Row]:
    """One row for each metric, over the seeds."""
    labels = Counter(sample.label for sample in group.tests)
    rows = []
    for metric, value in _merged(measures, statistics.fmean).items():
        drawn = [one.draws[metric] for one in measures if metric in one.draws]
        rows.append(
            Row(
                detector=label,
                dataset=place[0],
                category=place[1],
                metric=metric,
                value=value.value,
                n=labels.total(),
                normal=labels[0],
                anomalous=labels[1],
                reason=value.reason,
                interval=value.interval or (resampling.interval(np.mean(drawn, axis=0)) if drawn else None),
                deviation=_deviation([one.values[metric].value for one in measures]),
                threshold=value.threshold,
                error=value.error,
                condition=str(condition),
                empty_masks=measures[0].counts["empty_masks"],
            )
        )
    return rows


def part_of(rows: list[Row], own: list[tuple[Measures, Entrant]]) -> Part:
    """What is kept of a detector on a category: rows, and of its first seed curves and pictures."""
    first = own[0][0]
    shared = [name for name in first.draws if all(name in one.draws for one, _ in own)]  # NaN for a seed: no draws
    draws = {name: np.mean([one.draws[name] for one, _ in own], axis=0) for name in shared}
    return {
        "rows": [row.to_dict() for row in rows],
        "curves": first.curves,
        "shown": thumbnails(first.shown, first.colours),
        "draws": {
            name: [round(value, 6) if np.isfinite(value) else None for value in column.tolist()]
            for name, column in draws.items()
        },
        "references": {str(entrant.seed): entrant.references for _, entrant in own if entrant.references},
    }


def _merged(parts: Sequence[Measures], combine: Callable[[list[float]], float]) -> dict[str, Value]:
    """The values over the seeds of a few-shot run; a metric that is NaN for one seed is NaN."""
    first = parts[0].values
    found = {}
    for name in first:
        values = [part.values[name] for part in parts]
        reason = next((one.reason for one in values if one.reason), "")
        error = max(one.error for one in values)
        threshold = first[name].threshold if len(parts) == 1 else None
        interval = first[name].interval if len(parts) == 1 else None
        found[name] = Value(combine([one.value for one in values]), reason, threshold, error, interval)
    return found


def _deviation(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds (ddof 1); None for a single one or where one is NaN."""
    if len(values) < 2 or any(math.isnan(value) for value in values):
        return None
    return float(np.std(values, ddof=1))
