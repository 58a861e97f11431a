"""A report as one HTML page that needs no other file: numbers, bars, curves, pictures, published tables, settings.

What stands on the page is gathered here, as plain values; how it looks is in `templates/report.html.j2`, which escapes
every text. Only drawings (`charts`) are markup already.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from vlad.report import charts
from vlad.report.compared import comparisons, published_tables, robustness
from vlad.report.ranks import METRICS, ranks, said
from vlad.report.text import HEADINGS, OWN, decisions, heading, place_name, setting_words, shown_places, split_notes
from vlad.report.values import Findings, Row

KINDS = {
    "missed": "Missed: anomalous, lowest scores",
    "false alarm": "False alarms: normal, highest scores",
    "found": "Found: anomalous, highest scores",
}


def page(report: Findings) -> str:
    """The whole page; pictures and drawings are inside it."""
    environment = Environment(
        loader=PackageLoader("vlad.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["heading"] = environment.globals["heading"] = heading
    environment.globals["colour"] = charts.colour
    sections = {
        "legend": list(_legend(report)),
        "means": _means(report),
        "bars": list(_bars(report)),
        "decisions": decisions(report),
        "own": OWN,
        "ranks": [(one, said(one)) for metric in METRICS if (one := ranks(report, metric))],
        "robustness": robustness(report),
        "comparisons": comparisons(report),
        "published": published_tables(report),
        "curves": list(_curves(report)),
        "pictures": list(_pictures(report)),
        "values": _values(report),
        "facts": _facts(report.settings),
        "detectors": {label: _detector(one) for label, one in report.settings["detectors"].items()},
        "words": {place_name(*place): f"“{one['name']}”" for place, one in _categories(report).items()},
        "references": _references(report),
    }
    title = report.settings.get("title") or f"Anomaly detection: {', '.join(report.detectors)}"
    return environment.get_template("report.html.j2").render(title=title, subtitle=_subtitle(report), **sections)


def _subtitle(report: Findings) -> str:
    data = report.settings["data"]
    categories = [one for found in data.values() for one in found.values()]
    pictures = sum(one["normal"] + one["anomalous"] for one in categories)
    count = f"{len(categories)} categor{'y' if len(categories) == 1 else 'ies'}"
    when = str(report.settings.get("started", ""))[:10]
    return " · ".join(filter(None, (f"{pictures} test pictures", count, ", ".join(data), when)))


def _legend(report: Findings) -> Iterator[dict[str, Any]]:
    for label, one in report.settings["detectors"].items():
        yield {"label": label, "setting": setting_words(one), "leaks": ", ".join(one["leaks"])}


def _clean(report: Findings, **wanted: str) -> list[Row]:
    return report.select(condition="clean", **wanted)


def _present(report: Findings) -> list[str]:
    """The metrics of the tables that have a value somewhere."""
    there = {row.metric for row in report.rows if not math.isnan(row.value)}
    return [metric for metric in HEADINGS if metric in there and metric != "image_fpr_at_clean_threshold"]


def _categories(report: Findings) -> dict[tuple[str, str], Any]:
    """(data set, category) -> its words and counts, in order."""
    data = report.settings["data"]
    return {(dataset, category): one for dataset, found in data.items() for category, one in found.items()}


def _means(report: Findings) -> dict[str, Any]:
    metrics = [metric for metric in _present(report) if _clean(report, metric=metric)]
    means = [row for row in report.mean() if row.condition == "clean"]
    datasets = list(dict.fromkeys(row.dataset for row in means))
    overall = "all" if "all" in datasets else datasets[0]
    of_all = [row for row in means if row.dataset == overall]
    best = {m: max((row.value for row in of_all if row.metric == m), default=math.nan) for m in metrics}
    lines = []
    for label in report.detectors:
        own = {row.metric: row for row in of_all if row.detector == label}
        leads = [len(report.detectors) > 1 and m in own and own[m].value == best[m] for m in metrics]
        lines.append((label, list(zip((own.get(metric) for metric in metrics), leads, strict=True))))
    over = "data sets, each the mean of its categories" if overall == "all" else "categories"
    return {"metrics": metrics, "lines": lines, "over": over, "notes": list(_mean_notes(of_all, metrics))}


def _mean_notes(means: list[Row], metrics: list[str]) -> Iterator[str]:
    """What means leave out; said of a detector where those of the others leave out something else."""
    notes: dict[str, list[str]] = {}
    for row in means:
        if row.reason and row.metric in metrics:
            several = len({one.reason for one in means if one.metric == row.metric}) > 1
            notes.setdefault(row.reason, []).append(heading(row.metric) + (f" of {row.detector}" if several else ""))
    for reason, whose in notes.items():
        yield f"{', '.join(dict.fromkeys(whose))}: {reason}"


def _bars(report: Findings) -> Iterator[tuple[str, Markup]]:
    """(metric, drawing) of the metrics that have values."""
    for metric in ("image_auroc", "pixel_auroc", "pixel_aupro"):
        if metric not in _present(report):
            continue
        rows = []
        for dataset, category in _categories(report):
            found = {row.detector: row for row in _clean(report, dataset=dataset, category=category, metric=metric)}
            own = [found.get(label) for label in report.detectors]
            values = [(row.value, row.interval) if row else (math.nan, None) for row in own]
            if not all(math.isnan(value) for value, _ in values):
                rows.append((place_name(dataset, category), values))
        lowest = min((v for _, values in rows for v, _ in values if not math.isnan(v)), default=0)
        start = 0.0 if metric == "pixel_aupro" or lowest < 0.45 else 0.4
        yield metric, Markup(charts.bars(rows, report.detectors, start))


def _curves(report: Findings) -> Iterator[tuple[str, list[Markup]]]:
    """(category, drawings) of those that have curves."""
    kinds = (("image_roc", "ROC, pictures", 1.0), ("pixel_roc", "ROC, pixels", 1.0), ("pro", "PRO, regions", 0.3))
    for place in _categories(report):
        own = [report.curves.get((label, *place), {}) for label in report.detectors]
        graphs = []
        for key, title, end in kinds:
            if lines := [(index, curves[key]) for index, curves in enumerate(own) if key in curves]:
                graphs.append(Markup(charts.curve(lines, title, end, diagonal=end == 1.0)))
        if graphs:
            yield place_name(*place), graphs


def _pictures(report: Findings) -> Iterator[tuple[str, dict[str, Any]]]:
    """(category, detector -> title -> pictures) of those that have pictures."""
    for place in _categories(report):
        found = {}
        for label in report.detectors:
            shown = report.shown.get((label, *place), [])
            kinds = {title: [one for one in shown if one["kind"] == kind] for kind, title in KINDS.items()}
            if shown:
                found[label] = {title: pictures for title, pictures in kinds.items() if pictures}
        if found:
            yield place_name(*place), found


def _values(report: Findings) -> dict[str, Any]:
    metrics, tables = _present(report), {}
    for label in report.detectors:
        lines = []
        for dataset, category in shown_places(report):
            own = {row.metric: row for row in _clean(report, detector=label, dataset=dataset, category=category)}
            cells = [(own.get(metric), False) for metric in metrics]
            lines.append((place_name(dataset, category), category == "mean", next(iter(own.values()), None), cells))
        tables[label] = lines
    notes = [*_gaps(_clean(report)), *_errors(report.rows), *split_notes(report)]
    return {"metrics": metrics, "tables": tables, "notes": notes}


def _gaps(rows: Iterable[Row]) -> Iterator[str]:
    """Each reason for a missing value once, with the categories and metrics that it holds for."""
    why: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.reason:
            why.setdefault((heading(row.metric), row.reason), []).append(place_name(row.dataset, row.category))
    grouped: dict[tuple[str, str], list[str]] = {}
    for (metric, reason), places in why.items():
        grouped.setdefault((reason, ", ".join(dict.fromkeys(places))), []).append(metric)
    for (reason, where), metrics in grouped.items():
        yield f"n/a for {where} ({', '.join(metrics)}): {reason}."


def _errors(rows: Iterable[Row]) -> Iterator[str]:
    for metric, error in {row.metric: row.error for row in rows if row.error}.items():
        yield f"{heading(metric)} was counted in bins: exact to ±{100 * error:.2f}."


def _facts(settings: Any) -> dict[str, str]:
    """What the numbers depend on and what they cost."""
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in settings.get("seconds", {}).items())
    peak = ", ".join(f"{name} {value / 2**20:.0f} MB" for name, value in settings.get("peak_memory", {}).items())
    empty = "counted as normal pixels" if settings["empty_mask"] == "normal" else "left out of pixel metrics"
    return {
        "VLAD": f"{settings['vlad']}{', commit ' + settings['commit'] if settings.get('commit') else ''}",
        "normal pictures": f"{settings['shots']}, seeds {settings['seeds']}" if settings["shots"] else "none (shots 0)",
        "metrics at": f"{settings['metric_size']} size, masks resized: {settings['mask_resize']}",
        "anomalous, nothing marked": empty,
        "bootstrap": f"{settings['bootstrap']} draws, stratified, over pictures",
        "time": seconds + " (a pass that detectors share counts with the first of them)",
        "peak memory": peak,
    }


def _detector(one: dict[str, Any]) -> dict[str, Any]:
    facts = {key: value for key, value in one.items() if key not in ("pack", "leaks", "options")}
    facts["options"] = ", ".join(f"{name} {value}" for name, value in one["options"].items())
    return facts | {key: ", ".join(one[key]) or "none" for key in ("trained_on", "leaks")}


def _references(report: Findings) -> dict[str, str]:
    """The normal pictures fitted on, by category and seed."""
    return {
        f"{place_name(*key[1:])}, seed {seed}": ", ".join(files)
        for key, found in report.references.items()
        for seed, files in found.items()
    }
