"""Reports put together, and what corruptions cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from vlad.report import ALL, Report
from vlad.report.text import LOWER_IS_BETTER


def joined(reports: Sequence[Report], title: str = "") -> Report:
    """Several runs as one report, with a title; a detector that stands in several keeps the settings of the first."""
    first = reports[0]
    settings = {**first.settings, **({"title": title} if title else {})}
    for key in ("detectors", "data"):
        settings[key] = {name: value for one in reversed(reports) for name, value in one.settings[key].items()}
        order = [name for one in reports for name in one.settings[key]]
        settings[key] = {name: settings[key][name] for name in dict.fromkeys(order)}
    settings["seconds"] = {
        name: math.fsum(one.settings["seconds"].get(name, 0.0) for one in reports)
        for name in dict.fromkeys(name for one in reports for name in one.settings["seconds"])
    }
    parts = {
        key: {place: value for one in reports for place, value in getattr(one, key).items()}
        for key in ("curves", "shown", "draws", "references")
    }
    return Report(tuple(row for one in reports for row in one.rows), settings, **parts)


def drops(report: Report, metric: str) -> Iterator[tuple[str, str, dict[int, float], float, float]]:
    """Of each detector and corruption: (label, kind, severity -> mean, mean over severities, drop); last kind "all".

    The drop is relative to the clean mean; of a rate of alarms it is the rise, in absolute terms.
    """
    severities = report.settings["severities"]
    for label in report.detectors:
        clean = report.value(metric, detector=label)
        table = {
            kind: {level: report.value(metric, detector=label, condition=f"{kind} {level}") for level in severities}
            for kind in report.settings["corrupt"]
        }
        table[ALL] = {level: _mean_of(found[level] for found in table.values()) for level in severities}
        for kind, found in table.items():
            mean = _mean_of(found.values())
            drop = mean - clean if metric in LOWER_IS_BETTER else 1 - mean / clean if clean else math.nan
            yield label, kind, found, mean, drop


def _mean_of(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan
