"""What a report's page says by comparing: with changed pictures, detectors with each other, with papers."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from vlad.report import charts
from vlad.report.published import METRICS, published, repeated, why_not
from vlad.report.text import LOWER_IS_BETTER, drops, heading
from vlad.report.values import Findings


def robustness(report: Findings) -> list[dict[str, Any]]:
    """Of each metric its values over severities, drawn and in lines; none without corruptions."""
    present = {row.metric for row in report.rows if not math.isnan(row.value)}
    metrics = ("image_auroc", "pixel_aupro", "image_fpr_at_clean_threshold") if report.settings["corrupt"] else ()
    return [_severities(report, metric) for metric in metrics if metric in present]


def _severities(report: Findings, metric: str) -> dict[str, Any]:
    found = list(drops(report, metric))
    clean = [report.value(metric, detector=label) for label in report.detectors]
    values = [value for _, _, levels, _, _ in found for value in (*levels.values(), *clean)]
    low = 0.0 if min(values, default=0) < 0.5 else 0.5
    graphs = []
    for kind in report.settings["corrupt"]:
        lines = [(report.detectors.index(label), levels) for label, one, levels, _, _ in found if one == kind]
        graphs.append(Markup(charts.severity(lines, clean, kind, low)))
    alarms = metric in LOWER_IS_BETTER
    return {
        "title": "share of normal pictures over the clean threshold" if alarms else heading(metric),
        "graphs": graphs,
        "severities": report.settings["severities"],
        "change": "rise" if alarms else "drop",
        "lines": [(label, kind, [*levels.values(), mean, drop]) for label, kind, levels, mean, drop in found],
    }


def comparisons(report: Findings) -> list[Any]:
    """Detectors in pairs; none for a single one."""
    return report.compare() if len(report.detectors) > 1 else []


def published_tables(report: Findings) -> dict[str, Any]:
    """Our means beside the papers', for whole data sets; why not for the others."""
    tables: dict[str, Any] = {}
    without: dict[str, list[str]] = {}
    for dataset, categories in report.settings["data"].items():
        if reason := why_not(dataset, categories):
            without.setdefault(reason, []).append(dataset)
            continue
        ours = []
        for label in report.detectors:
            rows = report.select(condition="clean", detector=label, dataset=dataset, category="mean")
            means, one = {row.metric: row for row in rows}, report.settings["detectors"][label]
            trained = ", ".join(one["trained_on"]) or "none"
            ours.append((label, one["setting"], trained, [means.get(metric) for metric in METRICS]))
        papers = sorted(published(dataset), key=lambda one: (one.setting, one.method))
        tables[dataset] = {"ours": ours, "papers": papers}
    notes = [f"Not compared, {', '.join(names)}: {reason}" for reason, names in without.items()]
    return {"metrics": METRICS, "tables": tables, "notes": notes, "repeated": repeated(report)}
