"""The scored folder as a table that a spreadsheet opens: one row a picture, flat columns."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from vlad.files import cell, write_whole
from vlad.folder.lines import recorded
from vlad.records import Line

SHEET = "results.csv"
FACTS = ("verdict", "score", "threshold", "p_value")
COLUMNS = ("source", *FACTS, "regions", "x0", "y0", "x1", "y1", "area", "error", "notes")


def write_sheet(folder: Path) -> Path:
    """Writes `results.csv` of the folder's lines; its path."""
    target = folder / SHEET
    write_whole(target, _sheet(recorded(folder / "results.jsonl")).encode("utf-8", "replace"))
    return target


def _sheet(lines: Iterable[Line]) -> str:
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(COLUMNS)
    rows.writerows(map(_row, lines))
    return text.getvalue()


def _row(line: Line) -> list[object]:
    regions = line.get("regions") or []
    largest = max(regions, key=lambda region: region["area"], default=None)
    place = [*largest["box"], largest["area"]] if largest else [""] * 5
    facts = [line.get(key) for key in FACTS]
    words = [cell(text) for text in (line["error"] or "", "; ".join(map(str, line.get("notes") or ())))]
    return [cell(line["source"]), *facts, len(regions), *place, *words]
