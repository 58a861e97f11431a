"""The small pieces of a report's page: sections, tables, remarks, numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from typing import Any

from vlad.report import Report, Row
from vlad.report.text import HEADINGS, percent


def card(title: str, note: str, *content: str) -> str:
    """A section of the page; `note` and `content` are HTML already."""
    said = f'<p class="soft">{note}</p>' if note else ""
    return f'<section class="card"><h2>{escape(title)}</h2>{said}{"".join(content)}</section>'


def table(head: Iterable[str], rows: Iterable[str]) -> str:
    """A table of rows that are HTML already."""
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def row(cells: Iterable[str], kind: str = "") -> str:
    """A table row of cells that are HTML already."""
    return f'<tr class="{kind}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def listed(lines: Iterable[str]) -> str:
    """Small remarks; nothing where there are none."""
    inside = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="soft remarks">{inside}</ul>' if inside else ""


def facts(said: dict[str, Any]) -> str:
    """Names with values; empty ones are left out."""
    lines = "".join(
        f"<dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd>" for key, value in said.items() if value != ""
    )
    return f"<dl>{lines}</dl>"


def clean(report: Report, **wanted: str) -> list[Row]:
    """Rows of clean pictures."""
    return report.select(condition="clean", **wanted)


def present(report: Report) -> list[str]:
    """The metrics of the tables that have a value somewhere."""
    there = {row.metric for row in report.rows if not math.isnan(row.value)}
    return [metric for metric in HEADINGS if metric in there and metric != "image_fpr_at_clean_threshold"]


def heading(metric: str) -> str:
    """A metric in words."""
    return HEADINGS.get(metric, metric)


def number(row: Row | None, lead: bool = False) -> str:
    """Percent, below it the interval; underlined where it leads."""
    if row is None or math.isnan(row.value):
        return f'<span class="soft" title="{escape(row.reason if row else "")}">n/a</span>'
    interval = f"<br><small>{100 * row.interval[0]:.1f} to {100 * row.interval[1]:.1f}</small>" if row.interval else ""
    return (f'<span class="best">{percent(row)}</span>' if lead else percent(row)) + interval


def places(report: Report) -> list[tuple[str, str]]:
    """(data set, category) in order."""
    return [(dataset, category) for dataset, found in report.settings["data"].items() for category in found]
