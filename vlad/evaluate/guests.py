"""Detectors that are not VLAD's: any object with `predict`, and scores that somebody else's program has written.

An object's `predict(pictures)` takes a list of uint8 RGB arrays [H, W, 3] and gives one result for each: a number, a
(score, map) pair, or anything with `.score` and perhaps `.map`. Higher is more anomalous. With shots it also needs
`fit(paths)`; with `full_shot = True` it is fitted on all normal pictures for training, whatever the shots.
`describe(name)`, `threshold` and `trained_on` are used where it has them.
"""

from __future__ import annotations

import copy
import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlad.datasets.samples import Sample

Result = tuple[float, np.ndarray | None]  # score, map float32 [h, w]
TABLES = (".csv", ".parquet")
MAPS = (".npy", ".tiff", ".tif", ".png")


class Guest:
    """An object with `predict`, as an evaluation sees it.

    Raises:
        TypeError: it has no `predict`.
    """

    pack = name = None
    transductive = False

    def __init__(self, model: Any) -> None:
        if not callable(getattr(model, "predict", None)):
            raise TypeError(
                f"detectors holds a {type(model).__name__}; expected what vlad.load returns, or an object with predict"
            )
        self.model = model
        self.method = str(getattr(model, "method", type(model).__name__))
        self.references: list[str] = []

    @property
    def threshold(self) -> float | None:
        """The model's own, where it has one."""
        own = getattr(self.model, "threshold", None)
        return float(own) if isinstance(own, int | float) else None

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Names of data sets, where the model says so."""
        own = getattr(self.model, "trained_on", None) or ()
        return (own,) if isinstance(own, str) else tuple(own)

    @property
    def full_shot(self) -> bool:
        """Whether it is trained on all normal pictures of each category, whatever the shots of the others."""
        return bool(getattr(self.model, "full_shot", False))

    def copy(self) -> Guest:
        """One that learns in this one's stead."""
        return Guest(copy.deepcopy(self.model))

    def describe(self, name: str) -> None:
        """Words for what the pictures show, where the model takes any."""
        if callable(describe := getattr(self.model, "describe", None)):
            describe(name)

    def fit(self, normals: Sequence[Path]) -> None:
        """TypeError where the model cannot be fitted."""
        if not callable(fit := getattr(self.model, "fit", None)):
            raise TypeError(f"{self.method} has no fit(paths), but shots are asked for; leave it out, or shots=0")
        fit(list(normals))
        self.references = [path.as_posix() for path in normals]

    def results(self, pictures: Sequence[np.ndarray], samples: Sequence[Sample], changed: bool) -> list[Result]:
        """What the model says of pictures; `changed` where they are corrupted."""
        said = list(self.model.predict(list(pictures)))
        if len(said) != len(pictures):
            raise ValueError(f"{self.method} gave {len(said)} results for {len(pictures)} pictures; expected one each")
        return [_result(one, self.method) for one in said]


def _result(one: Any, method: str) -> Result:
    score, amap = one if isinstance(one, tuple) and len(one) == 2 else (one, None)
    if hasattr(one, "score"):
        score, amap = one.score, getattr(one, "map", None)
    try:
        found = float(score)
        array = None if amap is None else np.asarray(amap, np.float32)
    except (TypeError, ValueError, RuntimeError):
        what = f"a {type(one).__name__}"
        raise TypeError(f"{method} gave {what} for a picture; expected a number, (score, map), or .score") from None
    if array is not None and array.ndim != 2:
        raise ValueError(f"{method} gave a map of shape {array.shape}; expected [h, w]")
    return found, array


class Finished(Guest):
    """Scores and maps that are there already.

    Args:
        table: CSV or parquet with the columns source and score; a column map may name a file, relative to the table.
        maps: folder with a map for each picture, called like its source with another suffix: .npy, .tiff or .png.

    A picture's row is the one whose source is its path, or the end of it.

    Raises:
        FileNotFoundError: no such table.
        ImportError: it is parquet, and pyarrow is not installed.
        ValueError: a column is missing, a score is no number, or a source stands there twice.
    """

    def __init__(self, table: str | os.PathLike[str], maps: str | os.PathLike[str] | None = None) -> None:
        self.model, self.references = None, []
        self.table, self.maps = Path(table).expanduser(), None if maps is None else Path(maps).expanduser()
        self.method = self.table.stem
        self.rows = _rows(self.table)
        self.taken: dict[str, Path] = {}

    def copy(self) -> Guest:
        """Itself: nothing in it changes."""
        return self

    def fit(self, normals: Sequence[Path]) -> None:
        """TypeError: the scores are there already."""
        raise TypeError(f"{self.table} holds finished scores; they cannot be fitted, so leave shots out")

    def results(self, pictures: Sequence[np.ndarray], samples: Sequence[Sample], changed: bool) -> list[Result]:
        """The rows of the pictures' files."""
        if changed:
            raise ValueError(f"{self.table} holds scores of the pictures as they are; leave corruptions out")
        return [self._row(sample.image) for sample in samples]

    def _row(self, image: Path) -> Result:
        parts = Path(os.path.abspath(image)).parts
        ends = ("/".join(parts[start:]).replace("//", "/") for start in range(len(parts)))
        source = next((end for end in ends if end in self.rows), None)
        if source is None:
            raise ValueError(f"{self.table} has no row for {image}; its sources are such as {next(iter(self.rows))}")
        if self.taken.setdefault(source, image) != image:
            raise ValueError(f"{self.table}: {source} fits {image} and {self.taken[source]}; write longer paths")
        row = self.rows[source]
        return float(row["score"]), self._map(source, row.get("map") or "")

    def _map(self, source: str, named: str) -> np.ndarray | None:
        if named:
            return _read_map(self.table.parent / named)
        if self.maps is None:
            return None
        places = [self.maps / Path(source.lstrip("/")).with_suffix(suffix) for suffix in MAPS]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise FileNotFoundError(f"there is no map {places[0]}, nor with {', '.join(MAPS[1:])}")
        return _read_map(found)


def is_table(one: Any) -> bool:
    """Whether it names a file of finished scores."""
    return isinstance(one, str | os.PathLike) and os.fspath(one).endswith(TABLES)


def _rows(table: Path) -> dict[str, Mapping[str, Any]]:
    """Source as it is written, with forward slashes -> its row."""
    if not table.is_file():
        raise FileNotFoundError(f"there is no table of scores {table}")
    columns, lines = _parquet(table) if table.suffix == ".parquet" else _csv(table)
    if missing := {"source", "score"} - set(columns):
        found = ", ".join(columns) or "an empty file"
        raise ValueError(f"{table}: the column {min(missing)} is missing; found {found}")
    rows: dict[str, Mapping[str, Any]] = {}
    for number, row in enumerate(lines, 1):
        where, source = f"{table}, row {number}", Path(row["source"] or "").as_posix()
        if source in rows:
            raise ValueError(f"{where}: {source} stands there twice; keep one row for each picture")
        try:
            float(row["score"])
        except (TypeError, ValueError):
            raise ValueError(f"{where}: score is {row['score']!r}; expected a number") from None
        rows[source] = row
    if not rows:
        raise ValueError(f"{table}: it has no row")
    return rows


def _csv(table: Path) -> tuple[Sequence[str], list[dict[str, Any]]]:
    """(columns, rows)."""
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        return reader.fieldnames or (), list(reader)


def _parquet(table: Path) -> tuple[Sequence[str], list[dict[str, Any]]]:
    """(columns, rows)."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ImportError(f"{table}: parquet needs pyarrow; pip install 'vlad-ad[parquet]', or give CSV") from None
    try:
        columns = parquet.read_schema(table).names
        wanted = [name for name in ("source", "score", "map") if name in columns]
        return columns, parquet.read_table(table, columns=wanted).to_pylist()
    except (ArrowException, OSError) as error:
        raise ValueError(f"{table} cannot be read as parquet ({error})") from None


def _read_map(file: Path) -> np.ndarray:
    """float32 [h, w] of a .npy or of a picture of one channel."""
    try:
        if file.suffix == ".npy":
            found = np.load(file, allow_pickle=False).astype(np.float32)
        else:
            with Image.open(file) as image:
                found = np.asarray(image, np.float32)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no map {file}") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{file} cannot be read as a map ({error})") from None
    if found.ndim != 2:
        raise ValueError(f"{file}: the map has shape {found.shape}; expected [h, w]")
    return found
