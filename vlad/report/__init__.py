"""What an evaluation found: rows, means, paired comparisons; as a table, JSON, CSV and one HTML page."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from vlad.files import cell, write_whole
from vlad.report import details, ranks, tables, text
from vlad.report.ranks import Ranks
from vlad.report.values import ALL as ALL
from vlad.report.values import CLEAN as CLEAN
from vlad.report.values import MEAN as MEAN
from vlad.report.values import Comparison as Comparison
from vlad.report.values import Findings, plain
from vlad.report.values import Row as Row


class Report(Findings):
    """What `vlad.evaluate` returns: `rows`, `settings`, `mean()`, `value(...)`, `compare()`, and these outputs."""

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        places = {(row.dataset, row.category) for row in self.rows}
        return f"Report({', '.join(self.detectors)}; {len(places)} categories; print it for its table)"

    def table(self, metrics: Sequence[str] = text.TABLE) -> str:
        """Text for a terminal, in percent; few-shot values with their deviation over seeds; what is n/a below."""
        return text.table(self, metrics)

    def to_markdown(self, metrics: Sequence[str] = text.TABLE, categories: bool = False) -> str:
        """The means as a table with pipes, in percent, a line for each detector; with `categories` those too."""
        return tables.markdown(self, metrics, categories)

    def to_latex(self, metrics: Sequence[str] = text.TABLE, categories: bool = False) -> str:
        """As `to_markdown`, for LaTeX with the package booktabs."""
        return tables.latex(self, metrics, categories)

    def ranks(self, metric: str = "image_auroc") -> Ranks | None:
        """Mean ranks over data sets with their critical difference; None below three detectors or data sets."""
        return ranks.ranks(self, metric)

    def by_dataset(self, metrics: Sequence[str] = tables.CROSSED, kind: str = "text") -> str:
        """For each metric a line for each detector and a column for each data set; "text", "markdown" or "latex"."""
        return tables.by_dataset(self, metrics, kind)

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
        """Writes report.json, report.csv, report.html and predictions.csv (a line for each detector and picture), each
        whole; returns the folder. The page stands alone.

        What only `load` needs lies beside: report.details.json (curves, pictures) and report.draws.safetensors.
        """
        from vlad.report.page import page

        place = Path(folder)
        content = json.dumps(plain(self.to_dict()), indent=1, allow_nan=False)
        write_whole(place / "report.json", content.encode())
        write_whole(place / "report.csv", _csv([*self.rows, *self.mean()]).encode())
        write_whole(place / "report.html", page(self).encode())
        if self.predictions:
            write_whole(place / "predictions.csv", _predictions(self).encode(errors="surrogateescape"))
        details.write(place / "report.json", self)
        return place

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Report:
        """The report that `save` wrote; of a report.json that stands alone, without curves, pictures and draws.

        Raises:
            FileNotFoundError: there is no report.json.
        """
        file = Path(folder) / "report.json" if Path(folder).is_dir() else Path(folder)
        if not file.is_file():
            raise FileNotFoundError(f"there is no report {file}; give a folder that `vlad eval --out` wrote")
        raw = json.loads(file.read_text(encoding="utf-8"))
        references = {_place(key, raw["settings"]): value for key, value in raw["references"].items()}
        rows = tuple(Row.from_dict(row) for row in raw["rows"])
        return cls(rows, raw["settings"], references=references, **details.read(file))

    @classmethod
    def join(cls, reports: Sequence[Report | str | os.PathLike[str]], title: str = "") -> Report:
        """Several reports, or their folders, as one; a detector that stands in several keeps the settings of the first.

        Raises:
            ValueError: none; they were measured in different ways; or two of them have the same detector on the same
                category.
        """
        found = [one if isinstance(one, Report) else cls.load(one) for one in reports]
        _check_joined(found)
        settings = {**found[0].settings, **({"title": title} if title else {})}
        for key in ("detectors", "data"):
            first = {name: value for one in reversed(found) for name, value in one.settings[key].items()}
            settings[key] = {name: first[name] for one in found for name in one.settings[key]}
        settings["data"] = {
            name: {category: value for one in found for category, value in one.settings["data"].get(name, {}).items()}
            for name in settings["data"]
        }
        settings["seconds"] = {
            name: math.fsum(one.settings["seconds"].get(name, 0.0) for one in found)
            for name in dict.fromkeys(name for one in found for name in one.settings["seconds"])
        }
        parts = {
            key: {place: value for one in found for place, value in getattr(one, key).items()}
            for key in ("curves", "shown", "draws", "references", "predictions")
        }
        return cls(tuple(row for one in found for row in one.rows), settings, **parts)


def _place(key: str, settings: Mapping[str, Any]) -> tuple[str, str, str]:
    """(detector, data set, category) of the three joined by slashes, which each of them may hold itself."""
    for label in settings["detectors"]:
        for dataset in settings["data"]:
            if key.startswith(f"{label}/{dataset}/"):
                return label, dataset, key.removeprefix(f"{label}/{dataset}/")
    raise ValueError(f"the report has references of {key!r}, but no such detector and data set")


def _check_joined(reports: Sequence[Report]) -> None:
    if not reports:
        raise ValueError("no report to join; give at least one")
    for key in ("metric_size", "mask_resize", "empty_mask", "corrupt", "severities"):
        values = {json.dumps(one.settings.get(key)): None for one in reports}
        if len(values) > 1:
            raise ValueError(f"the reports were measured with different {key}: {', '.join(values)}; join equal ones")
    seen: set[tuple[str, str, str]] = set()
    for one in reports:
        own = {(row.detector, row.dataset, row.category) for row in one.rows}
        if both := sorted(own & seen):
            where = f"{both[0][0]} on {text.place_name(*both[0][1:])}"
            raise ValueError(f"two of the reports have {where}; leave one out, or give its detector another label")
        seen |= own


def _csv(rows: Iterable[Row]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    columns = [one.name for one in fields(Row) if one.name != "interval"]
    writer.writerow([*columns, "low", "high"])
    for row in rows:
        values = (plain(getattr(row, name)) for name in columns)
        writer.writerow(["" if value is None else cell(value) for value in (*values, *(row.interval or ("", "")))])
    return file.getvalue()


def _predictions(report: Report) -> str:
    file = io.StringIO()
    columns = ["source", "defect", "label", "score", "threshold", "verdict", "seed"]
    columns += ["map"] if any("map" in line for lines in report.predictions.values() for line in lines) else []
    writer = csv.DictWriter(file, ("detector", "dataset", "category", *columns), lineterminator="\n")
    writer.writeheader()
    for (detector, dataset, category), lines in report.predictions.items():
        own = {"detector": detector, "dataset": dataset, "category": category}
        writer.writerows({key: cell(value) for key, value in {**own, **line}.items()} for line in lines)
    return file.getvalue()
