"""Tables of a report for papers and pages: Markdown and LaTeX, in percent, the best of each column in bold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from vlad.report.text import aligned, heading, percent, place_name, shown_places
from vlad.report.values import ALL, CLEAN, MEAN, Findings, Row

CROSSED = ("image_auroc", "pixel_auroc", "pixel_ap", "pixel_aupro")
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
_LATEX |= {sign: f"\\{sign}" for sign in "&%$#_{}"}


Line = tuple[str, list[tuple[str, bool]]]  # a name, and texts with whether each is the best of its column


def markdown(report: Findings, metrics: Sequence[str], categories: bool = False) -> str:
    """A table with pipes; `categories` adds a line for each of them."""
    return _as_markdown(*_cells(report, metrics, categories))


def latex(report: Findings, metrics: Sequence[str], categories: bool = False) -> str:
    """A `tabular` with the rules of the package booktabs; `categories` as in `markdown`."""
    return _as_latex(*_cells(report, metrics, categories))


def by_dataset(report: Findings, metrics: Sequence[str], kind: str = "text") -> str:
    """For each metric a table with a line for each detector and a column for each data set, the mean of its categories.

    Args:
        kind: "text", "markdown" or "latex"; text has no bold.
    """
    present = {row.metric for row in report.rows if not math.isnan(row.value)}
    blocks = []
    for metric in (metric for metric in metrics if metric in present):
        head, rows = _crossed(report, metric)
        if kind == "text":
            blocks.append(
                "\n".join(aligned([head, *([name, *(text for text, _ in cells)] for name, cells in rows)])) + "\n"
            )
        else:
            blocks.append(_as_markdown(head, rows) if kind == "markdown" else _as_latex(head, rows))
    return "\n".join(blocks)


def _crossed(report: Findings, metric: str) -> tuple[list[str], list[Line]]:
    """Headings and lines; "-" where a detector was not measured."""
    found = {
        (row.detector, row.dataset): row for row in report.mean() if (row.metric, row.condition) == (metric, CLEAN)
    }
    datasets = list(dict.fromkeys(row.dataset for row in report.rows))
    lines = []
    for label in report.detectors:
        own = [found.get((label, dataset)) for dataset in datasets]
        best = [_best(found.get((other, dataset)) for other in report.detectors) for dataset in datasets]
        cells = [
            ("-", False) if row is None else (percent(row), row.value == top)
            for row, top in zip(own, best, strict=True)
        ]
        lines.append((label, cells))
    return [heading(metric), *datasets], lines


def _as_markdown(head: list[str], rows: list[Line]) -> str:
    lines = [head, ["---", *(["---:"] * (len(head) - 1))]]
    lines += [[name, *(f"**{text}**" if best else text for text, best in cells)] for name, cells in rows]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)


def _as_latex(head: list[str], rows: list[Line]) -> str:
    body = [
        [_escaped(name), *(f"\\textbf{{{_escaped(text)}}}" if best else _escaped(text) for text, best in cells)]
        for name, cells in rows
    ]
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule", _line(map(_escaped, head)), r"\midrule"]
    return "\n".join([*lines, *map(_line, body), r"\bottomrule", r"\end{tabular}"]) + "\n"


def _line(cells: Iterator[str] | Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in text)


def _cells(report: Findings, metrics: Sequence[str], categories: bool) -> tuple[list[str], list[Line]]:
    """(headings, lines of a name and a (text, whether it is the best) for each metric that has values)."""
    present = {row.metric for row in report.rows if not math.isnan(row.value)}
    metrics = [metric for metric in metrics if metric in present]
    found = {(row.detector, row.dataset, row.category, row.metric): row for row in _rows(report)}
    places = shown_places(report) if categories else [_overall(report)]
    lines = []
    for place in places:
        best = {metric: _best(found.get((label, *place, metric)) for label in report.detectors) for metric in metrics}
        for label in report.detectors:
            own = [found.get((label, *place, metric)) for metric in metrics]
            several = len(report.detectors) > 1
            cells = [
                (percent(row), several and row is not None and row.value == best[metric])
                for row, metric in zip(own, metrics, strict=True)
            ]
            name = f"{place_name(*place)}, {label}" if categories and several else label
            lines.append((name if several or not categories else place_name(*place), cells))
    return ["", *map(heading, metrics)], lines


def _rows(report: Findings) -> list[Row]:
    return [row for row in (*report.rows, *report.mean()) if row.condition == CLEAN]


def _overall(report: Findings) -> tuple[str, str]:
    datasets = list(dict.fromkeys(row.dataset for row in report.rows))
    return (ALL, MEAN) if len(datasets) > 1 else (datasets[0], MEAN)


def _best(rows: Iterator[Row | None]) -> float:
    return max((row.value for row in rows if row is not None and not math.isnan(row.value)), default=math.nan)
