"""A report as one HTML page that needs no other file: numbers, bars, curves, pictures, published tables, settings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from vlad.report import charts as charts
from vlad.report import html as html
from vlad.report.sections import comparisons_section, published_section, robustness_section
from vlad.report.text import place_name, shown_places

if TYPE_CHECKING:
    from vlad.report import Report

KINDS = {
    "missed": "Missed: anomalous, lowest scores",
    "false alarm": "False alarms: normal, highest scores",
    "found": "Found: anomalous, highest scores",
}


def page(report: Report) -> str:
    """The whole page; pictures and drawings are inside it."""
    sections = (
        *(_head, _means, _bars, robustness_section, comparisons_section, published_section),
        *(_curves, _pictures, _values, _settings),
    )
    body = "\n".join(part for section in sections if (part := section(report)))
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(_title(report)), body=body)


def _title(report: Report) -> str:
    return str(report.settings.get("title") or f"Anomaly detection: {', '.join(report.detectors)}")


def _head(report: Report) -> str:
    data = report.settings["data"]
    pictures = sum(one["normal"] + one["anomalous"] for categories in data.values() for one in categories.values())
    count = sum(map(len, data.values()))
    said = [f"{pictures} test pictures", f"{count} categor{'y' if count == 1 else 'ies'}", ", ".join(data)]
    legend = []
    for number, (label, one) in enumerate(report.settings["detectors"].items()):
        words = f", prompts {one['prompts']}" if one["prompts"] else ""
        setting = f"{one['setting']}; {one['encoder']}, {one['resolution']} px{words}"
        stamp = f' <span class="warn">trained on the tested data: {escape(", ".join(one["leaks"]))}</span>'
        legend.append(
            f'<li><i class="swatch {charts.colour(number)}"></i><span><b>{escape(label)}</b> '
            f'<span class="soft">{escape(setting)}</span>{stamp if one["leaks"] else ""}</span></li>'
        )
    when = str(report.settings.get("started", ""))[:10]
    note = f'<p class="soft">{escape(" · ".join(said))}{" · " + when if when else ""}</p>'
    return f'<header><h1>{escape(_title(report))}</h1>{note}<ul class="legend">{"".join(legend)}</ul></header>'


def _means(report: Report) -> str:
    metrics = [metric for metric in html.present(report) if html.clean(report, metric=metric)]
    means = [row for row in report.mean() if row.condition == "clean"]
    datasets = list(dict.fromkeys(row.dataset for row in means))
    overall = "all" if "all" in datasets else datasets[0]
    rows: list[str] = []
    notes: dict[str, list[str]] = {}
    for label in report.detectors:
        found = {row.metric: row for row in means if row.detector == label and row.dataset == overall}
        best = {
            m: max((r.value for r in means if (r.metric, r.dataset) == (m, overall)), default=math.nan) for m in metrics
        }
        cells = []
        for metric in metrics:
            row = found.get(metric)
            lead = len(report.detectors) > 1 and row is not None and row.value == best[metric]
            cells.append(html.number(row, lead))
            if row is not None and row.reason:
                reasons = {r.reason for r in means if (r.metric, r.dataset) == (metric, overall)}
                who = f" of {label}" if len(reasons) > 1 else ""  # means over other categories: not to be compared
                notes.setdefault(row.reason, []).append(html.heading(metric) + who)
        rows.append(html.row([escape(label), *cells]))
    over = "data sets, each the mean of its categories" if overall == "all" else "categories"
    note = f"Percent, unweighted mean over {over}; below it the 95 % interval of a bootstrap over pictures."
    table = html.table(["", *map(html.heading, metrics)], rows)
    return html.card(
        "Mean", note, table, html.listed(f"{', '.join(dict.fromkeys(ms))}: {why}" for why, ms in notes.items())
    )


def _bars(report: Report) -> str:
    drawn = []
    for metric in ("image_auroc", "pixel_auroc", "pixel_aupro"):
        if metric not in html.present(report):
            continue
        rows = []
        for place in html.places(report):
            values: list[tuple[float, tuple[float, float] | None]] = []
            for label in report.detectors:
                found = html.clean(report, detector=label, dataset=place[0], category=place[1], metric=metric)
                values.append((found[0].value, found[0].interval) if found else (math.nan, None))
            if not all(math.isnan(value) for value, _ in values):
                rows.append((place_name(*place), values))
        lowest = min((v for _, values in rows for v, _ in values if not math.isnan(v)), default=0)
        start = 0.0 if metric == "pixel_aupro" or lowest < 0.45 else 0.4
        drawn.append(f"<h3>{html.heading(metric)}</h3>{charts.bars(rows, report.detectors, start)}")
    note = (
        "Percent; thin lines are 95 % intervals. AUROC: 50 is chance. Categories without masks have no pixel metrics."
    )
    return html.card(
        "By category",
        note,
        f'<div class="pairs"><div>{drawn[0]}</div><div>{"".join(drawn[1:])}</div></div>' if drawn else "",
    )


def _curves(report: Report) -> str:
    blocks = []
    for place in html.places(report):
        graphs = []
        for key, title, end in (
            ("image_roc", "ROC, pictures", 1.0),
            ("pixel_roc", "ROC, pixels", 1.0),
            ("pro", "PRO, regions", 0.3),
        ):
            lines = [
                (index, curves[key])
                for index, label in enumerate(report.detectors)
                if key in (curves := report.curves.get((label, *place), {}))
            ]
            if lines:
                graphs.append(charts.curve(lines, title, end, diagonal=end == 1.0))
        if graphs:
            inside = f'<div class="row">{"".join(graphs)}</div>'
            blocks.append(f"<div><h3>{escape(place_name(*place))}</h3>{inside}</div>")
    note = "Over the false positive rate in percent; region overlap (PRO) up to 30 %, as AUPRO counts it."
    return html.card("Curves", note, f'<div class="pairs">{"".join(blocks)}</div>') if blocks else ""


def _pictures(report: Report) -> str:
    blocks = []
    for number, place in enumerate(html.places(report)):
        inner = []
        for label in report.detectors:
            shown = report.shown.get((label, *place), [])
            if shown:
                inner.append(f"<h3>{escape(label)}</h3>" if len(report.detectors) > 1 else "")
                inner += list(_kinds(shown))
        if inner:
            opened = " open" if number < 1 else ""
            blocks.append(f"<details{opened}><summary>{escape(place_name(*place))}</summary>{''.join(inner)}</details>")
    note = (
        "Each photo with the annotated defects outlined in green, and its map in colour. One colour scale for all "
        "pictures of a category: cold up to the 80 % quantile of all its pixels, hot at the 99.9 % one."
    )
    return html.card("Best and worst pictures", note, *blocks) if blocks else ""


def _kinds(shown: list[dict[str, Any]]) -> Iterator[str]:
    for kind, title in KINDS.items():
        figures = [_figure(one) for one in shown if one["kind"] == kind]
        if figures:
            yield f'<div class="soft">{title}</div><div class="pictures">{"".join(figures)}</div>'


def _figure(one: dict[str, Any]) -> str:
    name = escape(one["name"])
    images = [f'<img alt="{name}" src="data:image/jpeg;base64,{one["photo"]}">']
    if "map" in one:
        images.append(f'<img alt="map of {name}" src="data:image/jpeg;base64,{one["map"]}">')
    return f"<figure><span>{''.join(images)}</span><figcaption>{one['score']:.3f} · {name}</figcaption></figure>"


def _values(report: Report) -> str:
    metrics, blocks = html.present(report), []
    for label in report.detectors:
        rows = []
        for place in shown_places(report):
            own = {row.metric: row for row in html.clean(report, detector=label, dataset=place[0], category=place[1])}
            first = next(iter(own.values()), None)
            counts = f"<br><small>{first.normal} normal, {first.anomalous} anomalous</small>" if first else ""
            kind = "mean" if place[1] == "mean" else ""
            rows.append(
                html.row([escape(place_name(*place)) + counts, *(html.number(own.get(m)) for m in metrics)], kind)
            )
        table = html.table(["", *map(html.heading, metrics)], rows)
        blocks.append(f"<h3>{escape(label)}</h3>{table}")
    why: dict[str, list[str]] = {}
    for row in html.clean(report):
        if row.reason:
            why.setdefault(f"{html.heading(row.metric)}: {row.reason}", []).append(
                place_name(row.dataset, row.category)
            )
    grouped: dict[tuple[str, str], list[str]] = {}
    for text, places in why.items():
        metric, _, reason = text.partition(": ")
        grouped.setdefault((reason, ", ".join(dict.fromkeys(places))), []).append(metric)
    notes = [f"n/a for {where} ({', '.join(found)}): {reason}." for (reason, where), found in grouped.items()]
    errors = {row.metric: row.error for row in report.rows if row.error}
    notes += [
        f"{html.heading(metric)} was counted in bins: exact to ±{100 * error:.2f}." for metric, error in errors.items()
    ]
    note = (
        "Percent, 95 % interval below; ± is the deviation over seeds. F1max is taken at the best threshold for "
        "these labels."
    )
    return html.card("All values", note, *blocks, html.listed(notes))


def _settings(report: Report) -> str:
    settings = report.settings
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in settings.get("seconds", {}).items())
    peak = ", ".join(f"{name} {value / 2**20:.0f} MB" for name, value in settings.get("peak_memory", {}).items())
    facts = {
        "VLAD": f"{settings['vlad']}{', commit ' + settings['commit'] if settings.get('commit') else ''}",
        "normal pictures": f"{settings['shots']}, seeds {settings['seeds']}" if settings["shots"] else "none (shots 0)",
        "metrics at": f"{settings['metric_size']} size, masks resized: {settings['mask_resize']}",
        "anomalous, nothing marked": f"counted as {settings['empty_mask']} pixels"
        if settings["empty_mask"] == "normal"
        else "left out of pixel metrics",
        "bootstrap": f"{settings['bootstrap']} draws, stratified, over pictures",
        "time": seconds + " (a pass that detectors share counts with the first of them)",
        "peak memory": peak,
    }
    blocks = [html.facts(facts)]
    listed: list[str] = []
    for label, one in settings["detectors"].items():
        kept = {key: value for key, value in one.items() if key not in ("pack", "leaks", "options")}
        kept["options"] = ", ".join(f"{name} {value}" for name, value in one["options"].items())
        kept["trained_on"] = ", ".join(one["trained_on"]) or "none"
        kept["leaks"] = ", ".join(one["leaks"]) or "none"
        listed.append(f"<div><h3>{escape(label)}</h3>{html.facts(kept)}</div>")
    blocks.append(f'<div class="pairs">{"".join(listed)}</div>')
    names = {place_name(d, c): f"“{one['name']}”" for d, found in settings["data"].items() for c, one in found.items()}
    blocks.append(f"<h3>Words for the categories</h3>{html.facts(names)}")
    if report.references:
        drawn = {
            f"{place_name(*key[1:])}, seed {seed}": ", ".join(files)
            for key, found in report.references.items()
            for seed, files in found.items()
        }
        blocks.append(f"<details><summary>Normal pictures fitted on</summary>{html.facts(drawn)}</details>")
    return html.card("Settings and cost", "", *blocks)
