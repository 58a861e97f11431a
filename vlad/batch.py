"""Scores many pictures into a folder that a killed run can go on with: JSON lines, overlays, settings.

    out/results.jsonl   one line a picture, in the order of the inputs
    out/maps/...        overlays, `<path below the input folder, suffix kept>.png`
    out/settings.json   what the numbers depend on; going on with other settings is refused

An overlay is in place before its line, and a line is flushed before the next picture, so a line implies its overlay
and a killed run loses at most the batch in flight.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.images import ImageError
from vlad.images.listing import Found, list_images
from vlad.prediction import Prediction
from vlad.version import __version__

if TYPE_CHECKING:
    from vlad.detector import Detector

log = logging.getLogger(__name__)

LINES, SETTINGS, MAPS = "results.jsonl", "settings.json", "maps"

Line = dict[str, Any]
Progress = Callable[[Line, int, int], None]
Explain = Callable[[Path, Prediction], dict[str, Any]]


@dataclass(frozen=True)
class Summary:
    """What a run did; counts are of this run, without the pictures that an earlier run had recorded."""

    scored: int
    anomalous: int
    normal: int
    skipped: int  # recorded by an earlier run
    failed: tuple[tuple[str, str], ...]  # (source, reason)
    seconds: float


def score_folder(
    detector: Detector,
    inputs: Iterable[str | Path],
    out: str | Path | None = None,
    *,
    resume: bool = False,
    batch_size: int = 8,
    threshold: float | None = None,
    maps: bool = True,
    explain: Explain | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Scores files, folders and globs, one line a picture, in constant memory.

    Args:
        detector: what `vlad.load` returns; not changed.
        inputs: files, folders (searched recursively), globs.
        out: the folder to write; None writes nothing (`progress` gets every line).
        resume: go on in a folder that holds results; pictures that failed are tried again.
        batch_size: pictures computed at once; never changes a result.
        threshold: decides instead of the detector's own.
        maps: write overlays.
        explain: what a line's "explanation" is made with; say what it depends on in `settings`.
        settings: further facts to record beside the detector's own and to compare when going on.
        progress: called after each line is written with (line, pictures done, pictures in all).

    Raises:
        FileNotFoundError: a folder or glob without a picture, or not one file that exists.
        FileExistsError: `out` holds results and `resume` is False.
        ValueError: `out` was written with other settings.
        RuntimeError: another process is writing `out`.
    """
    if threshold is not None and not math.isfinite(threshold):
        raise ValueError(f"threshold is {threshold}; expected a finite score")
    pictures = list_pictures(inputs, out)
    if out is None:
        lines = _score(detector, pictures, None, batch_size, threshold, explain)
        return _drain(lines, progress, 0, len(pictures))
    folder = Path(out)
    facts = {**settings_of(detector, threshold), "maps": maps, **(settings or {})}
    facts = json.loads(json.dumps(facts, default=str))  # as the file will give it back: tuples become lists
    with _locked(folder):
        refuse_existing(folder, resume)
        done = _recorded(folder, facts)
        _replace(folder / SETTINGS, json.dumps(facts, indent=1).encode())
        todo = [picture for picture in pictures if picture.source not in done]
        skipped = len(pictures) - len(todo)
        if todo and done and detector.transductive:
            raise ValueError(f"{detector.method} scores all pictures as one set and cannot go on; use a new folder")
        lines = _score(detector, todo, folder if maps else None, batch_size, threshold, explain)
        summary = _drain(_written(lines, folder / LINES, batch_size), progress, skipped, len(pictures))
        if done:
            _put_in_order(folder / LINES, pictures)
    return summary


def list_pictures(inputs: Iterable[str | Path], out: str | Path | None = None) -> list[Found]:
    """The pictures of `inputs`, each once, in order, without the overlays that an earlier run wrote below `out`.

    Raises:
        FileNotFoundError: there is not one picture.
    """
    inputs = list(inputs)
    found = list_images(inputs)
    if out is not None:
        own = (Path(out) / MAPS).absolute()
        found = [picture for picture in found if own not in picture.path.absolute().parents]
    if not any(picture.path.exists() for picture in found):
        raise FileNotFoundError(f"no picture in {', '.join(map(str, inputs)) or 'an empty list'}; check the paths")
    return found


def refuse_existing(out: str | Path, resume: bool) -> None:
    """Raises FileExistsError when `out` holds results and they are not to be continued."""
    if not resume and (Path(out) / LINES).exists():
        raise FileExistsError(f"{Path(out) / LINES} exists; go on with it (--resume), or choose another folder")


def settings_of(detector: Detector, threshold: float | None = None) -> dict[str, Any]:
    """What a detector's numbers depend on, as plain values: method, weights, words, options, thresholds, version."""
    pack, encoder = detector.pack, detector.encoder
    return {
        "vlad": __version__,
        "method": detector.method,
        "name": detector.name,
        "prompts": None if pack is None else pack.to_dict(),
        "encoder": encoder.name,
        "digest": encoder.digest,
        "dtype": str(encoder.dtype).removeprefix("torch."),
        "options": dict(detector.options),
        "threshold": detector.threshold if threshold is None else threshold,
        "map_threshold": detector.map_threshold,
        "references": detector.references,
        "calibration": detector.calibration and detector.calibration.to_dict(),
    }


def line_of(source: str, outcome: Prediction | ImageError, name: str | None) -> Line:
    """One picture's line of `results.jsonl`."""
    line: Line = {"source": source, "score": None, "is_anomalous": None, "threshold": None, "name": name, "regions": []}
    if isinstance(outcome, ImageError):
        return {**line, "error": str(outcome)}
    values = outcome.to_dict()
    return {**line, **{key: values[key] for key in line if key not in ("source", "name")}, "error": None}


def _score(
    detector: Detector,
    pictures: list[Found],
    folder: Path | None,
    batch_size: int,
    threshold: float | None,
    explain: Explain | None = None,
) -> Iterator[Line]:
    """The lines of the pictures in order; a line comes out once its overlay is in the folder (None: no overlays)."""
    door = detector.together if detector.transductive else detector.stream
    outcomes = door([picture.path for picture in pictures], batch_size=batch_size, on_error="yield")
    for picture, outcome in zip(pictures, outcomes, strict=True):
        if isinstance(outcome, Prediction) and threshold is not None:
            outcome = replace(outcome, threshold=threshold, unsure=None)
        if isinstance(outcome, Prediction) and folder is not None and outcome.map is not None:
            outcome = _draw(outcome, folder, picture.relative)
        told: dict[str, Any] = {}
        if isinstance(outcome, Prediction) and explain is not None:
            try:
                told = {"explanation": explain(picture.path, outcome)}
            except ImageError as error:  # gone or changed since it was scored
                outcome = error
        yield {**line_of(picture.source, outcome, detector.name), **told}


def _draw(prediction: Prediction, folder: Path, relative: Path) -> Prediction | ImageError:
    """The prediction once its overlay is in place, or why the picture cannot be drawn."""
    try:
        overlay = prediction.overlay()
    except ValueError as error:  # gone or changed since it was scored
        return ImageError(str(error), prediction.source)
    target = folder / MAPS / relative.with_name(relative.name + ".png")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = folder / ".overlay.png"  # one place, so that killed runs leave no litter among the overlays
    overlay.save(partial, compress_level=1)  # four times as fast as the default, files as large
    os.replace(partial, target)
    return prediction


def _written(lines: Iterable[Line], path: Path, batch_size: int) -> Iterator[Line]:
    """Passes lines on once they are appended to the file: flushed each, forced to disk once a batch."""
    with path.open("ab") as file:
        for count, line in enumerate(lines, start=1):
            file.write(_bytes(line))
            file.flush()
            if count % batch_size == 0:
                os.fsync(file.fileno())
            yield line
        os.fsync(file.fileno())


def _drain(lines: Iterable[Line], progress: Progress | None, skipped: int, total: int) -> Summary:
    """Takes the lines as they come, reports each, and counts; only the failed ones are kept."""
    verdicts: Counter[bool | None] = Counter()
    failed, started = [], time.monotonic()
    for done, line in enumerate(lines, start=skipped + 1):
        if progress is not None:
            progress(line, done, total)
        if line["error"] is not None:
            failed.append((line["source"], line["error"]))
        else:
            verdicts[line["is_anomalous"]] += 1
    counts = verdicts.total(), verdicts[True], verdicts[False], skipped
    return Summary(*counts, tuple(failed), time.monotonic() - started)


# ---- going on -----------------------------------------------------------------------------------------------------


def _recorded(folder: Path, facts: dict[str, Any]) -> set[str]:
    """The sources that an earlier run scored; its error lines and a torn last line leave the file."""
    path = folder / LINES
    if not path.exists():
        return set()
    _refuse_other_settings(folder, facts)
    done, kept, dropped = set(), folder / (LINES + ".partial"), 0
    with path.open("rb") as old, kept.open("wb") as new:
        for raw in old:
            line = _parsed(raw)
            if line is None or line["error"] is not None or line["source"] in done:
                dropped += 1
                continue
            done.add(line["source"])
            new.write(raw)
        new.flush()
        os.fsync(new.fileno())
    os.replace(kept, path)
    log.info("%s: %d pictures recorded, %d lines (failed or torn by a kill) are done again", path, len(done), dropped)
    return done


def _refuse_other_settings(folder: Path, facts: dict[str, Any]) -> None:
    try:
        old = dict(json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
    except (FileNotFoundError, TypeError, ValueError):
        problem = f"{folder} holds results but no readable {SETTINGS} to compare with; choose another folder"
        raise ValueError(problem) from None
    differing = [key for key in {**old, **facts} if old.get(key) != facts.get(key)]
    if differing:
        said = "; ".join(f"{key} was {_short(old.get(key))}, now {_short(facts.get(key))}" for key in differing)
        raise ValueError(f"{folder} was written with other settings ({said}); give those, or another folder")


def _put_in_order(path: Path, pictures: list[Found]) -> None:
    """Lines in the order of the inputs; those of pictures that are no longer given stay, in front."""
    place = {picture.source: index for index, picture in enumerate(pictures)}
    with path.open("rb") as file:
        lines = file.readlines()
    ordered = sorted(lines, key=lambda raw: place.get(json.loads(raw)["source"], -1))
    if ordered != lines:
        _replace(path, b"".join(ordered))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps a second process out of the folder (where the system has such locks) until the block ends or dies."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another run is writing {folder}; wait for it, or choose another folder") from None
        except OSError as error:  # a network drive without locks: better unguarded than not at all
            log.warning("%s cannot be locked (%s); do not score into it twice at once", folder, error)
        yield


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _bytes(line: Line) -> bytes:
    # ASCII: file names that are no valid Unicode (lone surrogates) survive, and every terminal can show the line
    return json.dumps(line, allow_nan=False).encode("ascii") + b"\n"


def _parsed(raw: bytes) -> Line | None:
    """A whole line, or None for a torn or foreign one."""
    try:
        line = json.loads(raw) if raw.endswith(b"\n") else None
    except ValueError:
        return None
    return line if isinstance(line, dict) and {"source", "error"} <= line.keys() else None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
