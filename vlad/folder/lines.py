"""One picture's line of `results.jsonl`, and the pictures that lie beside it: overlay, map, mask."""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vlad import records
from vlad.images import ImageError
from vlad.images.listing import Found
from vlad.images.sizes import LARGE
from vlad.prediction import Prediction
from vlad.records import Line
from vlad.thresholds import LARGEST

if TYPE_CHECKING:
    from vlad.detector import Detector
    from vlad.detector.predicting import Reading

KEYS = ("verdict", "score", "threshold", "p_value", "is_anomalous", "name", "size", "regions")  # of a line, in order
MAPS, RAW, MASKS = "maps", "raw", "masks"  # folders of overlays, of maps as numbers, of masks
FORMATS = ("npy", "tiff")
SIDE = 1600  # px of the longer side of an overlay, at most
LONGEST_NAME = 240  # bytes
NO_PLACE = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY)
REGION = {"box", "area"}  # of what a region says, without which it cannot be shown
VERDICTS = ("anomalous", "normal", "unsure", "uncalibrated")


Explain = Callable[[Any, Prediction], dict[str, Any]]  # of the picture, as pixels where they are at hand


@dataclass(frozen=True)
class Wanted:
    """What is written beside the lines.

    Attributes:
        folder: where to; None: nothing is written.
        overlays: PNG, or JPEG of pictures with a longer side than `side` px, which are drawn smaller.
        raw: the maps as numbers, "npy" or "tiff"; None: not.
        masks: PNG of 0 and 255.
        partial: the name of what is being written; processes that write into one folder need each their own.

    Raises:
        ValueError: `raw` is another format, or there is no folder for it.
    """

    folder: Path | None
    overlays: bool = True
    raw: str | None = None
    masks: bool = False
    side: int = SIDE
    partial: str = ".partial"

    def __post_init__(self) -> None:
        if self.raw is not None and self.raw not in FORMATS:
            raise ValueError(f"maps are saved as {' or '.join(FORMATS)}; got {self.raw!r}")
        if self.folder is None and (self.raw or self.masks):
            raise ValueError("maps and masks are written into a folder; name it with out")

    def facts(self) -> dict[str, Any]:
        """For the settings of a run."""
        return {
            "maps": self.overlays,
            **({"save_maps": self.raw} if self.raw else {}),
            **({"masks": True} if self.masks else {}),
            **({"overlay_side": self.side} if self.side != SIDE else {}),
        }

    def written(self, prediction: Prediction, picture: Any, relative: Path) -> dict[str, str]:
        """Writes it; the keys of the line that say where: "overlay", "map", "mask", below the folder.

        Raises:
            vlad.ImageError: the picture can no longer be read as it was, or its name is too long for a file beside it.
        """
        if self.folder is None or prediction.map is None:
            return {}
        found: dict[str, bytes] = {}
        name = relative.with_name(_fitting(relative.name)).as_posix()
        try:
            if self.overlays:
                drawn, large = prediction.overlay(picture, side=self.side), max(prediction.size) > self.side
                found[f"{MAPS}/{name}.{'jpg' if large else 'png'}"] = _jpeg(drawn) if large else _png(drawn, level=1)
            if self.raw == "npy":
                found[f"{RAW}/{name}.npy"] = _npy(prediction.map)
            if self.raw == "tiff":
                found[f"{RAW}/{name}.tif"] = _tiff(prediction.map)
            if self.masks:
                mask = Image.fromarray(prediction.mask().astype(np.uint8) * 255)
                found[f"{MASKS}/{name}.png"] = _png(mask)
            for place, content in found.items():
                self._put(self.folder / place, content)
        except ValueError as error:
            raise ImageError(str(error), prediction.source) from error
        except OSError as error:
            if error.errno not in NO_PLACE:
                raise
            words = f"{relative}: its name leaves no place for a file beside its line ({error.strerror})"
            raise ImageError(words, prediction.source) from error
        keys = {MAPS: "overlay", RAW: "map", MASKS: "mask"}
        return {keys[place.partition("/")[0]]: place for place in found}

    def _put(self, target: Path, content: bytes) -> None:
        """Writes in one place and renames: killed runs leave no litter among the overlays; links are not followed."""
        assert self.folder is not None
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = self.folder / self.partial
        partial.unlink(missing_ok=True)
        with partial.open("xb") as file:
            file.write(content)
        os.replace(partial, target)


@dataclass(frozen=True)
class LineMaker:
    """Makes the lines of pictures."""

    detector: Detector
    wanted: Wanted
    batch_size: int
    threshold: float | str | None
    explain: Explain | None

    def lines(self, pictures: list[Found]) -> Iterator[Line]:
        """One a picture, in order; it comes out once what lies beside it is in the folder.

        That is drawn and written in a thread while the encoder goes on, but for a batch, or LARGE pixels, at most.
        """
        found = self.detector.predictions([picture.path for picture in pictures], batch_size=self.batch_size)
        each = zip(pictures, found, strict=True)
        if self.explain or self.wanted.folder is None:  # a question may last: Ctrl-C would wait for its thread
            yield from (self._line(picture, *scored) for picture, scored in each)
            return
        waiting: deque[tuple[int, Future[Line]]] = deque()
        with ThreadPoolExecutor(1) as writer:
            for picture, scored in each:
                waiting.append((math.prod(scored[0].size), writer.submit(self._line, picture, *scored)))
                while waiting and (len(waiting) > self.batch_size or sum(size for size, _ in waiting) > LARGE):
                    yield waiting.popleft()[1].result()
            while waiting:
                yield waiting.popleft()[1].result()

    def _line(self, picture: Found, reading: Reading, outcome: Prediction | ImageError) -> Line:
        more: dict[str, Any] = {}
        if isinstance(outcome, Prediction):
            outcome = outcome.of_pixels()
            try:
                outcome = self._judged(outcome)
                at_hand = picture.path if reading.whole is None else reading.whole
                more = dict(self.wanted.written(outcome, at_hand, picture.relative))
                if self.explain:
                    more["explanation"] = self.explain(at_hand, outcome)
            except ImageError as error:  # gone or changed since it was scored
                outcome, more = error, {}
            if reading.picture is not None and self.detector.calibration is not None:
                more["look"] = self.detector.scorer.look(reading.picture)
        line = line_of(picture.source, outcome, self.detector.name)
        return {**line, **more, **({"file": stamp(picture.path)} if line["error"] is None else {})}

    def _judged(self, prediction: Prediction) -> Prediction:
        if self.threshold is None:
            return prediction
        cut = None if isinstance(self.threshold, str) else self.threshold
        return replace(prediction, threshold=cut, unsure=None)


def recorded(path: Path) -> Iterator[Line]:
    """The lines of a `results.jsonl`; those of version 0.1, which had no verdict, get theirs.

    A line that says neither a score nor an error was meddled with and is left out, as a torn one is.
    """
    for line in records.read(path):
        line = line if "verdict" in line else {**_first(line), **line}
        if is_scored(line) or _is_failed(line):
            yield line


def _first(line: Line) -> Line:
    """What a line of version 0.1 lacks."""
    said: bool | None = line.get("is_anomalous")
    word = {True: "anomalous", False: "normal", None: None}[said]
    if line["error"] is None:
        word = word or ("uncalibrated" if line.get("threshold") is None else "unsure")
    return {"verdict": word, "p_value": None, "size": None}


def stamp(path: Any) -> list[int] | None:
    """[bytes, nanoseconds of its last change] of a file, by which a run that goes on knows it again."""
    try:
        facts = os.stat(path)
    except (OSError, TypeError, ValueError):
        return None
    return [facts.st_size, facts.st_mtime_ns]


def is_scored(line: Line) -> bool:
    """Whether a line holds what a scored picture's line must; lines of files that were meddled with may not."""
    score = line.get("score")
    right = isinstance(line.get("source"), str) and line.get("error") is None and _has_regions(line)
    return right and isinstance(score, int | float) and abs(score) <= LARGEST and line.get("verdict") in VERDICTS


def _is_failed(line: Line) -> bool:
    shown = "score" in line and "verdict" in line
    return shown and isinstance(line.get("source"), str) and isinstance(line.get("error"), str)


def _has_regions(line: Line) -> bool:
    regions = line.get("regions")
    return isinstance(regions, list) and all(isinstance(one, dict) and one.keys() >= REGION for one in regions)


def line_of(source: str, outcome: Prediction | ImageError, name: str | None) -> Line:
    """One picture's line of `results.jsonl`."""
    line: Line = {"source": source, **dict.fromkeys(KEYS), "name": name, "regions": []}
    if isinstance(outcome, ImageError):
        return {**line, "error": str(outcome)}
    values = outcome.to_dict()
    notes = {"notes": values["notes"]} if "notes" in values else {}
    return {**line, **{key: values[key] for key in line if key not in ("source", "name")}, "error": None, **notes}


def judged(line: Line, threshold: float | None) -> Line:
    """The line with this threshold and the verdict that follows; None: no verdict. Failed ones stay as they are."""
    if line["error"] is not None:
        return line
    if threshold is None:
        return {**line, "threshold": None, "verdict": "uncalibrated", "is_anomalous": None}
    bad = line["score"] >= threshold
    return {**line, "threshold": threshold, "verdict": "anomalous" if bad else "normal", "is_anomalous": bad}


def _png(picture: Image.Image, level: int = 6) -> bytes:
    kept = io.BytesIO()
    picture.save(kept, format="PNG", compress_level=level)  # 1 is four times as fast as 6, overlays as large
    return kept.getvalue()


def _jpeg(picture: Image.Image) -> bytes:
    kept = io.BytesIO()
    picture.save(kept, format="JPEG", quality=90)
    return kept.getvalue()


def _npy(amap: np.ndarray) -> bytes:
    kept = io.BytesIO()
    np.save(kept, amap, allow_pickle=False)
    return kept.getvalue()


def _tiff(amap: np.ndarray) -> bytes:
    import tifffile

    kept = io.BytesIO()
    tifffile.imwrite(kept, amap)
    return kept.getvalue()


def _fitting(name: str) -> str:
    """The name, cut where a suffix behind it would make it longer than file systems bear."""
    raw = os.fsencode(name)
    if len(raw) <= LONGEST_NAME:
        return name
    return f"{raw[: LONGEST_NAME - 20].decode(errors='ignore')}-{hashlib.sha256(raw).hexdigest()[:8]}"
