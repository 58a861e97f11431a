"""What an evaluation found: rows, means, paired comparisons; as a table, JSON, CSV and one HTML page."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from vlad.files import write_whole
from vlad.report import text
from vlad.report.values import ALL as ALL
from vlad.report.values import CLEAN as CLEAN
from vlad.report.values import MEAN as MEAN
from vlad.report.values import Comparison as Comparison
from vlad.report.values import Findings, plain
from vlad.report.values import Row as Row


class Report(Findings):
    """What `vlad.evaluate` returns: `rows`, `settings`, `mean()`, `value(...)`, `compare()`, and these outputs."""

    def table(self, metrics: Sequence[str] = text.TABLE) -> str:
        """Text for a terminal, in percent; few-shot values with their deviation over seeds; what is n/a below."""
        return text.table(self, metrics)

    def to_dict(self) -> dict[str, Any]:
        """Everything but curves and pictures as plain values for JSON, full precision, NaN as None."""
        comparisons = [
            {**one._asdict(), "difference": one.difference._asdict()}
            for one in self.compare()
            if len(self.detectors) > 1
        ]
        return {
            "settings": self.settings,
            "rows": [row.to_dict() for row in self.rows],
            "means": [row.to_dict() for row in self.mean()],
            "comparisons": plain(comparisons),
            "references": {"/".join(key): dict(value) for key, value in self.references.items()},
        }

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes report.json, report.csv and report.html, each whole; returns the folder. The page stands alone."""
        from vlad.report.page import page

        place = Path(folder)
        content = json.dumps(plain(self.to_dict()), indent=1, allow_nan=False)
        write_whole(place / "report.json", content.encode())
        write_whole(place / "report.csv", _csv([*self.rows, *self.mean()]).encode())
        write_whole(place / "report.html", page(self).encode())
        return place

    @classmethod
    def join(cls, reports: Sequence[Report], title: str = "") -> Report:
        """Several runs as one report; a detector that stands in several keeps the settings of the first."""
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
        return cls(tuple(row for one in reports for row in one.rows), settings, **parts)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Report:
        """The rows, settings and references that `save` wrote, without curves, pictures and draws.

        Raises:
            FileNotFoundError: there is no report.json.
        """
        file = Path(folder) / "report.json" if Path(folder).is_dir() else Path(folder)
        raw = json.loads(file.read_text(encoding="utf-8"))
        references = {_three(key): value for key, value in raw["references"].items()}
        return cls(tuple(Row.from_dict(row) for row in raw["rows"]), raw["settings"], references=references)


def _three(key: str) -> tuple[str, str, str]:
    first, second, third = key.split("/", 2)
    return first, second, third


def _csv(rows: Iterable[Row]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    columns = [one.name for one in fields(Row) if one.name != "interval"]
    writer.writerow([*columns, "low", "high"])
    for row in rows:
        values = (plain(getattr(row, name)) for name in columns)
        writer.writerow(["" if value is None else value for value in (*values, *(row.interval or ("", "")))])
    return file.getvalue()
