"""What an evaluation writes as it goes: one file for each detector and category, so that a killed run can go on.

    out/run.json                 what the numbers depend on; going on with other settings is refused
    out/parts/<detector>-<data set>-<category>-<digest>.json

A part appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlad.datasets.samples import Sample
from vlad.evaluate.guests import Result
from vlad.evaluate.inputs import Place
from vlad.evaluate.walk import Entrant
from vlad.files import write_whole
from vlad.records import keep_settings
from vlad.report import Report, Row

logger = logging.getLogger(__name__)

RUN, PARTS = "run.json", "parts"
Part = dict[str, Any]  # rows, curves, shown, draws, seconds, references


class Parts:
    """The finished parts of one run, in memory and, with a folder, on disk.

    Raises:
        ValueError: the folder holds parts of other settings.
    """

    def __init__(self, out: Path | None, settings: Mapping[str, Any]) -> None:
        self.folder = out
        self.found: dict[tuple[str, Place], Part] = {}
        if out is None:
            return
        keep_settings(out / RUN, settings, begun=(out / RUN).exists())

    def has(self, label: str, place: Place) -> bool:
        """Whether this part is finished, in this run or in the one before."""
        if self.folder is not None and (label, place) not in self.found:
            file = self._file(label, place)
            if file.exists():
                self.found[label, place] = json.loads(file.read_text(encoding="utf-8"))
                logger.info("%s: done before, read from %s", "/".join(place), file.name)
        return (label, place) in self.found

    def add(self, label: str, place: Place, part: Part) -> None:
        """Keeps a finished part."""
        if self.folder is not None:
            write_whole(self._file(label, place), json.dumps(part).encode())
        self.found[label, place] = part

    def _file(self, label: str, place: Place) -> Path:
        assert self.folder is not None
        return self.folder / PARTS / f"{_name(label, place)}.json"

    def report(self, settings: Mapping[str, Any], order: Mapping[tuple[str, Place], int]) -> Report:
        """All parts together, in the order of detectors and categories."""
        parts = dict(sorted(self.found.items(), key=lambda item: order[item[0]]))
        seconds: dict[str, float] = {}
        for part in parts.values():
            for name, value in part["seconds"].items():
                seconds[name] = seconds.get(name, 0.0) + value
        rows = tuple(Row.from_dict(row) for part in parts.values() for row in part["rows"])
        keyed = {(label, *place): part for (label, place), part in parts.items()}
        return Report(
            rows,
            {**settings, "seconds": seconds},
            curves={key: part["curves"] for key, part in keyed.items()},
            shown={key: part["shown"] for key, part in keyed.items()},
            draws=dict(_draws(keyed)),
            predictions={key: part["predictions"] for key, part in keyed.items() if "predictions" in part},
            references={key: part["references"] for key, part in keyed.items() if part["references"]},
        )


def _name(label: str, place: Place) -> str:
    """Of the files of a detector on a category."""
    name = "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", text)[:40] for text in (label, *place))
    return f"{name}-{hashlib.sha256(chr(0).join((label, *place)).encode()).hexdigest()[:8]}"


def write_maps(
    folder: Path, entrants: Sequence[Entrant], place: Place, sample: Sample, results: Sequence[Result]
) -> None:
    """Writes what each entrant's map of a picture is; its `maps` get the place, with the folder's name, "" for none."""
    for entrant, (_, amap) in zip(entrants, results, strict=True):
        if amap is None:
            entrant.maps.append("")
            continue
        name = _name(entrant.label, place) + ("" if entrant.seed is None else f"-seed{entrant.seed}")
        kind = re.sub(r"[^A-Za-z0-9_.]+", "_", sample.defect)
        file = folder / name / kind / f"{len(entrant.maps):05}_{sample.image.stem}.npy"
        content = io.BytesIO()
        np.save(content, np.asarray(amap, np.float32))
        write_whole(file, content.getvalue())
        entrant.maps.append(file.relative_to(folder.parent).as_posix())


def _draws(parts: Mapping[tuple[str, str, str], Part]) -> Iterator[tuple[tuple[str, str, str, str], np.ndarray]]:
    for key, part in parts.items():
        for metric, drawn in part["draws"].items():
            yield (*key, metric), np.array([np.nan if value is None else value for value in drawn])
