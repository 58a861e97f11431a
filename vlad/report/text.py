"""The tables of a report for a terminal, in percent."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vlad.report import ranks as ranking
from vlad.report.published import repeated
from vlad.report.values import ALL, Findings, Row

HEADINGS = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max": "image F1max",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_f1_max": "pixel F1max",
    "pixel_aupro": "AUPRO",
    "pixel_aupro_200": "papers' AUPRO",
    "pixel_aupro_0.05": "AUPRO@5%",
    "aupimo": "AUPIMO",
    "spro_0.05": "sPRO@5%",
    "specimen_auroc": "object AUROC",
    "specimen_ap": "object AP",
    "specimen_f1_max": "object F1max",
    "image_fpr_at_clean_threshold": "alarms",
}
OWN = {  # at the detector's own threshold
    "own_precision": "precision",
    "own_recall": "recall",
    "own_false_alarms": "false alarms",
    "own_misses": "misses",
    "own_f1": "F1",
}
TABLE = (
    "image_auroc",
    "image_ap",
    "image_f1_max",
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1_max",
    "pixel_aupro",
    "pixel_aupro_200",
    "aupimo",
    "spro_0.05",
)
LOWER_IS_BETTER = ("image_fpr_at_clean_threshold", "own_false_alarms", "own_misses")


def table(report: Findings, metrics: Sequence[str]) -> str:
    """One table for each detector, then robustness, then what has no value and why."""
    present = {row.metric for row in report.rows if not math.isnan(row.value)}
    metrics = [metric for metric in metrics if metric in present] or ["image_auroc"]
    lines: list[str] = []
    for label, settings in report.settings["detectors"].items():
        rows = [row for row in (*report.rows, *report.mean()) if row.detector == label and row.condition == "clean"]
        places = shown_places(report)
        found = {(row.dataset, row.category, row.metric): row for row in rows}
        body = [_line(place, [found.get((*place, metric)) for metric in metrics]) for place in places]
        lines += [headline(label, settings), "", *aligned([["", *(HEADINGS[m] for m in metrics), "n"], *body]), ""]
    lines += _repeated(report)
    lines += _ranked(report)
    lines += _decided(report)
    lines += _robustness(report)
    lines += _missing(report, metrics)
    lines.append(cost(report.settings))
    return "\n".join(lines)


def shown_places(report: Findings) -> list[tuple[str, str]]:
    """The categories, then the means that say more than a category: of data sets with several, and of all."""
    places = list(dict.fromkeys((row.dataset, row.category) for row in report.rows))
    sizes = Counter(dataset for dataset, _ in places)
    means = [(dataset, "mean") for dataset, size in sizes.items() if size > 1]
    return places + means + ([("all", "mean")] if len(sizes) > 1 else [])


def headline(label: str, settings: dict[str, Any]) -> str:
    """One line that states a detector's setting."""
    stamp = f" -- TRAINED ON THE TESTED DATA ({', '.join(settings['leaks'])})" if settings["leaks"] else ""
    return f"{label}: {setting_words(settings)}{stamp}"


def setting_words(settings: Mapping[str, Any]) -> str:
    """How a detector was run: shots, encoder, resolution, words."""
    if settings["encoder"] is None:  # not VLAD's
        return f"{settings['setting']}, {settings['method']}"
    words = f", prompts {settings['prompts']}" if settings["prompts"] else ""
    words += f", its own words “{settings['words']}”" if settings.get("words") else ""
    return f"{settings['setting']}, encoder {settings['encoder']}, {settings['resolution']} px{words}"


def cost(settings: Any) -> str:
    """One line: seconds by part, memory, device."""
    parts = ", ".join(f"{name} {value:.1f} s" for name, value in settings["seconds"].items())
    peak = settings.get("peak_memory", {}).get("process")
    devices = ", ".join(dict.fromkeys(one["device"] for one in settings["detectors"].values() if one["device"]))
    memory = f"; peak memory {peak / 2**20:.0f} MB" if peak else ""
    return f"metrics at {settings['metric_size']} size; {parts}{memory}; {devices}"


def heading(metric: str) -> str:
    """A metric in words."""
    return {**HEADINGS, **OWN}.get(metric, metric)


def percent(row: Row | None) -> str:
    """ "87.3", with the deviation over seeds "87.3±1.2", or "n/a"."""
    if row is None or math.isnan(row.value):
        return "n/a"
    return f"{100 * row.value:.1f}" + (f"±{100 * row.deviation:.1f}" if row.deviation is not None else "")


def place_name(dataset: str, category: str) -> str:
    """ "mvtec_ad/screw"; a category that already begins with its data set is not doubled."""
    return category if category.split("/")[0] == dataset else f"{dataset}/{category}"


def _line(place: tuple[str, str], rows: Sequence[Row | None]) -> list[str]:
    known = next((row for row in rows if row is not None), None)
    return [place_name(*place), *(percent(row) for row in rows), str(known.n if known else 0)]


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def _robustness(report: Findings) -> list[str]:
    if not report.settings["corrupt"]:
        return []
    severities = report.settings["severities"]
    lines = []
    present = {row.metric for row in report.rows if not math.isnan(row.value)}
    for metric in ("image_auroc", "pixel_aupro", "image_fpr_at_clean_threshold"):
        if metric not in present:
            continue
        change = "rise" if metric in LOWER_IS_BETTER else "drop"
        cells = [["", "", "clean", *map(str, severities), "mean", change]]
        for label, kind, found, mean, drop in drops(report, metric):
            values = (report.value(metric, detector=label), *found.values(), mean, drop)
            cells.append([label, kind, *("n/a" if math.isnan(value) else f"{100 * value:.1f}" for value in values)])
        lines += [f"{HEADINGS[metric]} on changed pictures, by severity", "", *aligned(cells), ""]
    return lines


def _missing(report: Findings, metrics: Sequence[str]) -> list[str]:
    """Each reason once, with the categories and how many they are."""
    why: dict[str, list[str]] = {}
    for row in report.rows:
        if row.condition == "clean" and row.reason and row.metric in metrics:
            why.setdefault(row.reason, []).append(place_name(row.dataset, row.category))
    lines = []
    for reason, places in why.items():
        names = list(dict.fromkeys(places))
        lines.append(f"n/a for {len(names)} ({', '.join(names)}): {reason}")
    marked = [row for row in report.rows if row.metric == "pixel_auroc" and not math.isnan(row.value)]
    empty = {place_name(row.dataset, row.category): row.empty_masks for row in marked if row.empty_masks}
    lines += [f"{place}: {count} anomalous pictures have nothing marked" for place, count in empty.items()]
    lines += split_notes(report)
    return [*lines, ""] if lines else []


def _repeated(report: Findings) -> list[str]:
    """Measured and published values with their difference; nothing where no detector repeats any."""
    if not (found := repeated(report)):
        return []
    cells = [["beside published values", "", "measured", "published", "difference"]]
    for one in found:
        values = [f"{100 * value:.1f}" for value in (one.measured, one.published)]
        difference = f"{100 * (one.measured - one.published):+.1f}"
        cells.append([f"{one.dataset}, {one.detector}", heading(one.metric), *values, difference])
    sources = dict.fromkeys(f"published: {one.dataset}, {one.detector}: {one.source}" for one in found)
    return [*aligned(cells), *sources, ""]


def _ranked(report: Findings) -> list[str]:
    """Mean ranks by the metrics that have them; nothing where detectors or data sets are few."""
    lines: list[str] = []
    for metric in ranking.METRICS:
        if found := ranking.ranks(report, metric):
            cells = [[f"{number}.", label, f"{rank:.2f}"] for number, (label, rank) in enumerate(found.means, 1)]
            lines += [f"{heading(metric)}, {ranking.said(found)}", "", *aligned(cells)]
            lines += [f"not told apart: {'; '.join(group)}" for group in found.alike] + [""]
    return lines


def _decided(report: Findings) -> list[str]:
    """How detectors decide at their own thresholds; nothing where none has one."""
    lines: list[str] = []
    for label, places in decisions(report).items():
        cells = [["", "threshold", *OWN.values(), "anomalous found", "normal alarmed"]]
        for place, (threshold, rows, found, alarms) in places.items():
            cells.append([place, threshold, *(with_interval(rows.get(metric)) for metric in OWN), found, alarms])
        lines += [f"{label}, at its own threshold; 95 % intervals", "", *aligned(cells), ""]
    return lines


def decisions(report: Findings) -> dict[str, dict[str, tuple[str, dict[str, Row], str, str]]]:
    """Detector -> place -> (threshold, rows by metric, anomalous pictures found, normal ones alarmed), where known."""
    found: dict[str, dict[str, tuple[str, dict[str, Row], str, str]]] = {}
    table: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in (*report.rows, *report.mean()):
        if row.metric in OWN and row.condition == "clean":
            table.setdefault((row.detector, row.dataset, row.category), {})[row.metric] = row
    for label in report.detectors:
        for place in shown_places(report):
            if rows := table.get((label, *place)):
                any_row = next(iter(rows.values()))
                threshold = "" if any_row.threshold is None else f"{any_row.threshold:.4f}"
                caught = _count(rows.get("own_recall"), any_row.anomalous, place)
                alarmed = _count(rows.get("own_false_alarms"), any_row.normal, place)
                found.setdefault(label, {})[place_name(*place)] = (threshold, rows, caught, alarmed)
    return found


def _count(row: Row | None, total: int, place: tuple[str, str]) -> str:
    """ "11 of 12"; over several seeds with one digit, of a mean nothing."""
    if row is None or math.isnan(row.value) or place[1] == "mean":
        return ""
    return f"{row.value * total:.{0 if row.deviation is None else 1}f} of {total}"


def with_interval(row: Row | None) -> str:
    """ "91.7 (61.5 to 99.8)"."""
    if row is None or math.isnan(row.value) or row.interval is None:
        return percent(row)
    return f"{percent(row)} ({100 * row.interval[0]:.1f} to {100 * row.interval[1]:.1f})"


def split_notes(report: Findings) -> list[str]:
    """Where normal test pictures were set aside to fit on, one line a category."""
    return [
        f"{place_name(dataset, category)}: no pictures for training; of {one['set_aside'] + one['normal']} normal "
        f"ones, {one['set_aside']} drawn with seed 0 are fitted on and not tested"
        for dataset, found in report.settings["data"].items()
        for category, one in found.items()
        if one.get("set_aside")
    ]


def drops(report: Findings, metric: str) -> Iterator[tuple[str, str, dict[int, float], float, float]]:
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
