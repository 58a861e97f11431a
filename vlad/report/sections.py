"""The sections of a report's page that compare: with changed pictures, detectors with each other, with papers."""

from __future__ import annotations

import math
from html import escape

from vlad.report import Report
from vlad.report import charts as charts
from vlad.report import html as html
from vlad.report.published import METRICS, published, why_not
from vlad.report.summary import drops
from vlad.report.text import LOWER_IS_BETTER, percent


def robustness_section(report: Report) -> str:
    """Metrics over severities, drawn and as tables; nothing without corruptions."""
    if not report.settings["corrupt"]:
        return ""
    blocks = []
    for metric in ("image_auroc", "pixel_aupro", "image_fpr_at_clean_threshold"):
        if metric not in {row.metric for row in report.rows if not math.isnan(row.value)}:
            continue
        found = list(drops(report, metric))
        clean = [report.value(metric, detector=label) for label in report.detectors]
        values = [value for _, _, levels, _, _ in found for value in (*levels.values(), *clean)]
        low = 0.0 if min(values, default=0) < 0.5 else 0.5
        graphs = []
        for kind in report.settings["corrupt"]:
            lines = [(report.detectors.index(label), levels) for label, one, levels, _, _ in found if one == kind]
            graphs.append(charts.severity(lines, clean, kind, low))
        change = "rise" if metric in LOWER_IS_BETTER else "drop"
        cells = [
            html.row([escape(label), escape(kind), *(f"{100 * value:.1f}" for value in (*levels.values(), mean, drop))])
            for label, kind, levels, mean, drop in found
        ]
        head = ["", "", *(f"severity {level}" for level in report.settings["severities"]), "mean", change]
        title = "share of normal pictures over the clean threshold" if change == "rise" else html.heading(metric)
        listed = f"<details><summary>Table</summary>{html.table(head, cells)}</details>"
        blocks.append(f'<h3>{escape(title)}</h3><div class="row">{"".join(graphs)}</div>{listed}')
    note = (
        "The same test pictures, changed; means over categories, in percent. Drop: relative to the clean mean. "
        "The threshold is the detector's own, else the one that 5 % of the clean normal pictures reach."
    )
    return html.card("On changed pictures", note, *blocks)


def comparisons_section(report: Report) -> str:
    """Detectors in pairs; nothing for a single one."""
    found = report.compare() if len(report.detectors) > 1 else []
    rows = []
    for one in found:
        low, high = one.difference.interval
        spread = "" if math.isnan(low) else f"<br><small>{100 * low:+.1f} to {100 * high:+.1f}</small>"
        p = "n/a" if math.isnan(one.p_holm) else f"{one.p_holm:.3f}" if one.p_holm >= 0.001 else "&lt; 0.001"
        sides = f"{one.difference.wins} / {one.difference.ties} / {one.difference.losses}"
        names = f"{escape(one.first)} less {escape(one.second)}"
        where = escape(one.dataset)
        mean = f"{100 * one.difference.mean:+.1f}{spread}"
        rows.append(html.row([names, where, html.heading(one.metric), mean, sides, p, one.difference.test]))
    note = "Paired by category, same bootstrap draws; p two-sided, corrected for the number of lines (Holm)."
    head = ["", "data", "metric", "mean difference", "wins / ties / losses", "p", "test"]
    return html.card("Detectors against each other", note, html.table(head, rows)) if rows else ""


def published_section(report: Report) -> str:
    """Our means beside the papers', for whole data sets; why not for the others."""
    blocks: list[str] = []
    without: dict[str, list[str]] = {}
    for dataset, categories in report.settings["data"].items():
        reason = why_not(dataset, categories)
        if reason:
            without.setdefault(reason, []).append(dataset)
            continue
        rows = []
        for label in report.detectors:
            means = {r.metric: r for r in html.clean(report, detector=label, dataset=dataset, category="mean")}
            one = report.settings["detectors"][label]
            own = [f"{escape(label)} <small>(this run)</small>", escape(one["setting"])]
            trained = escape(", ".join(one["trained_on"]) or "none")
            rows.append(html.row([*own, trained, *(percent(means.get(metric)) for metric in METRICS), "VLAD"], "ours"))
        for paper in sorted(published(dataset), key=lambda one: (one.setting, one.method)):
            numbers = [f"{100 * paper.values[m]:.1f}" if m in paper.values else "" for m in METRICS]
            facts = [escape(text) for text in (paper.method, paper.setting, paper.train_data)]
            rows.append(html.row([*facts, *numbers, f"<small>{escape(paper.source)}</small>"]))
        head = ["", "setting", "trained on", *map(html.heading, METRICS), "source"]
        blocks.append(f"<details open><summary>{escape(dataset)}</summary>{html.table(head, rows)}</details>")
    note = (
        "Whole data sets only. Mind the setting: what a method was trained on, how many normal pictures it saw, and "
        "whether it saw the test set as a batch. Papers' AUPRO comes from several programs, which differ by up to tens "
        "of points."
    )
    remarks = html.listed(f"Not compared, {', '.join(names)}: {reason}" for reason, names in without.items())
    return html.card("Beside published numbers", note, *blocks, remarks)
