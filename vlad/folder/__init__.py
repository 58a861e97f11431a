"""Scores many pictures into a folder that a killed run can go on with: JSON lines, overlays, settings.

    out/results.jsonl    one line a picture, in the order of the inputs
    out/maps/...         overlays, `<path below the input folder, suffix kept>.png`; raw maps and masks where asked for
    out/settings.json    what the numbers depend on; going on with other settings is refused
    out/threshold.json   with threshold="auto": what the threshold of all lines rests on

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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad import records
from vlad.files import write_whole
from vlad.folder.lines import MAPS, SIDE, Explain, LineMaker, Wanted, is_scored, judged, recorded, stamp
from vlad.images.listing import Found, list_images
from vlad.images.looks import is_look
from vlad.records import Line
from vlad.thresholds import Calibration
from vlad.thresholds.shift import notice
from vlad.thresholds.unlabelled import from_unlabelled
from vlad.version import __version__

if TYPE_CHECKING:
    from vlad.detector import Detector

log = logging.getLogger(__name__)

LINES, SETTINGS, RULE = "results.jsonl", "settings.json", "threshold.json"

Progress = Callable[[Line, int, int], None]


@dataclass(frozen=True)
class Summary:
    """What a run did; `scored` and `failed` are of this run, without what an earlier one had recorded."""

    scored: int
    verdicts: Mapping[str, int]  # verdict -> pictures; with a folder of all that is recorded there
    skipped: int  # recorded by an earlier run
    failed: tuple[tuple[str, str], ...]  # (source, reason)
    seconds: float
    left_out: Mapping[str, int] = field(default_factory=dict)  # suffix -> files of the folders that are no pictures
    unlike: str | None = None  # a sentence where the pictures are unlike the good ones as a whole
    decided: Calibration | None = None  # with threshold="auto": what the scores together showed

    @property
    def anomalous(self) -> int:
        """Pictures called anomalous."""
        return self.verdicts.get("anomalous", 0)

    @property
    def normal(self) -> int:
        """Pictures called normal."""
        return self.verdicts.get("normal", 0)


def score_folder(
    detector: Detector,
    inputs: Iterable[str | Path],
    out: str | Path | None = None,
    *,
    resume: bool = False,
    batch_size: int = 8,
    threshold: float | str | None = None,
    maps: bool = True,
    save_maps: str | None = None,
    masks: bool = False,
    overlay_side: int = SIDE,
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
        threshold: decides instead of the detector's own; "auto" cuts where the scores of all pictures part in two
            groups, once all are scored, or leaves them without a verdict.
        maps: write overlays.
        overlay_side: px; pictures with a longer side are drawn so small, as JPEG.
        save_maps: write the maps themselves too, float32 at the method's own resolution: "npy" or "tiff".
        masks: write where the map reaches the threshold, as PNG of 0 and 255 in the picture's size.
        explain: what a line's "explanation" is made with; say what it depends on in `settings`.
        settings: further facts to record beside the detector's own and to compare when going on.
        progress: called after each line is written with (line, pictures done, pictures in all); with "auto" the lines
            have no verdict yet.

    Raises:
        FileNotFoundError: a folder or glob without a picture, or not one file that exists.
        FileExistsError: `out` holds results and `resume` is False.
        ValueError: `out` was written with other settings; a threshold that is none.
        RuntimeError: another process is writing `out`.
    """
    auto = threshold == "auto"
    if not auto and threshold is not None and not (isinstance(threshold, int | float) and math.isfinite(threshold)):
        raise ValueError(f"threshold is {threshold!r}; expected a finite score, or 'auto'")
    left_out: Counter[str] = Counter()
    pictures = list_pictures(inputs, out, pages=detector.reader.pages, left_out=left_out)
    wanted = Wanted(None if out is None else Path(out), maps, save_maps, masks, overlay_side)
    make = LineMaker(detector, wanted, batch_size, threshold, explain)
    if out is not None:
        facts = {**settings_of(detector, threshold), **wanted.facts(), **(settings or {})}
        with records.locked(Path(out)):
            return replace(_into(Path(out), make, pictures, resume, facts, progress), left_out=left_out)
    scores: list[float] = []
    looks: list[str] = []
    summary = drain(_noting(make.lines(pictures), scores, looks), progress, 0, len(pictures))
    summary = replace(summary, left_out=left_out, unlike=notice(scores, looks, detector.calibration))
    return replace(summary, decided=from_unlabelled(scores)) if auto else summary


def _into(
    folder: Path,
    make: LineMaker,
    pictures: list[Found],
    resume: bool,
    facts: Mapping[str, Any],
    progress: Progress | None,
) -> Summary:
    """What a run did that writes into a locked folder, new or begun."""
    detector = make.detector
    refuse_existing(folder, resume)
    records.keep_settings(folder / SETTINGS, facts, begun=(folder / LINES).exists())
    done = _recorded(folder, pictures, overlays=make.wanted.overlays)
    todo = [picture for picture in pictures if identity(picture.source) not in done]
    if todo and done and detector.transductive:
        raise ValueError(f"{detector.method} scores all pictures as one set and cannot go on; use a new folder")
    lines = records.append(make.lines(todo), folder / LINES, make.batch_size)
    summary = drain(lines, progress, len(pictures) - len(todo), len(pictures))
    if done:
        _put_in_order(folder / LINES, pictures)
    decided = decide(folder) if make.threshold == "auto" else None
    unlike = unlike_normals(recorded(folder / LINES), detector.calibration)
    return replace(summary, decided=decided, unlike=unlike, verdicts=_counted(folder / LINES))


def list_pictures(
    inputs: Iterable[str | Path],
    out: str | Path | None = None,
    *,
    pages: str = "first",
    left_out: Counter[str] | None = None,
) -> list[Found]:
    """The pictures of `inputs`, each once, in order, without the overlays that an earlier run wrote below `out`.

    Raises:
        FileNotFoundError: there is not one picture.
    """
    inputs = list(inputs)
    found = list_images(inputs, left_out, pages)
    if out is not None:
        own = (Path(out) / MAPS).absolute()
        found = [picture for picture in found if own not in picture.path.absolute().parents]
    if not any(picture.exists() for picture in found):
        raise FileNotFoundError(f"no picture in {', '.join(map(str, inputs)) or 'an empty list'}; check the paths")
    return found


def refuse_existing(out: str | Path, resume: bool) -> None:
    """Raises FileExistsError when `out` holds results and they are not to be continued."""
    if not resume and (Path(out) / LINES).exists():
        raise FileExistsError(f"{Path(out) / LINES} exists; go on with it (--resume), or choose another folder")


def settings_of(detector: Detector, threshold: float | str | None = None) -> dict[str, Any]:
    """What a detector's numbers depend on, as plain values: method, weights, words, options, thresholds, version."""
    pack, encoder = detector.pack, detector.encoder
    return {
        "vlad": __version__,
        "method": detector.method,
        "name": detector.name,
        "prompts": None if pack is None else pack.to_dict(),
        "encoder": encoder.name,
        "digest": encoder.digest,
        "dtype": encoder.precision,
        "runtime": encoder.runtime,
        "calibrated": encoder.calibrated,
        "options": dict(detector.options),
        "reading": detector.reader.to_dict(),
        **({"framing": framing} if (framing := detector.framing.to_dict()) else {}),
        "threshold": detector.threshold if threshold is None else threshold,
        "map_threshold": detector.map_threshold,
        "references": detector.references,
        "calibration": detector.calibration and detector.calibration.to_dict(),
    }


def unlike_normals(lines: Iterable[Line], made: Calibration | None) -> str | None:
    """A sentence where the pictures of these lines are unlike the good ones as a whole."""
    scored = [line for line in lines if is_scored(line)]
    return notice(
        [line["score"] for line in scored], [line["look"] for line in scored if is_look(line.get("look"))], made
    )


def drain(lines: Iterable[Line], progress: Progress | None, skipped: int, total: int) -> Summary:
    """Takes the lines as they come, reports each, and counts; only the failed ones are kept."""
    verdicts: Counter[str] = Counter()
    failed, started = [], time.monotonic()
    for done, line in enumerate(lines, start=skipped + 1):
        if progress is not None:
            progress(line, done, total)
        if line["error"] is not None:
            failed.append((line["source"], line["error"]))
        else:
            verdicts[line["verdict"]] += 1
    return Summary(verdicts.total(), dict(verdicts), skipped, tuple(failed), time.monotonic() - started)


# ---- a pile of which nobody knows what is good ---------------------------------------------------------------------


def _noting(lines: Iterable[Line], scores: list[float], looks: list[str]) -> Iterator[Line]:
    """The lines without how their pictures look, which is put into a list, as their scores are."""
    for line in lines:
        if (look := line.pop("look", None)) is not None:
            looks.append(look)
        if line["error"] is None:
            scores.append(line["score"])
        yield line


def decide(folder: Path) -> Calibration:
    """Cuts where the scores of all lines part, and writes the verdicts into them: into all of them or none.

    The threshold is never made from one picture, and where there is no gap there is no verdict; see
    `vlad.thresholds.from_unlabelled`.
    """
    path = folder / LINES
    made = from_unlabelled([line["score"] for line in recorded(path) if line["error"] is None])
    write_whole(folder / RULE, json.dumps(made.to_dict(), indent=1).encode(), sync=True)
    records.keep(path, (judged(line, made.threshold) for line in recorded(path)))
    return made


# ---- going on -----------------------------------------------------------------------------------------------------


def identity(source: str) -> str:
    """The same for one file, whether it was given by a relative or by an absolute path."""
    return os.path.abspath(source)


def _recorded(folder: Path, pictures: list[Found], overlays: bool) -> set[str]:
    """Identities of what an earlier run scored and what is still so: only those lines stay in the file.

    Done again is what failed, what a kill tore, a picture that has changed since, and one whose overlay is gone.
    """
    path = folder / LINES
    if not path.exists():
        return set()
    now = {identity(picture.source): stamp(picture.path) for picture in pictures}
    done: set[str] = set()

    def scored() -> Iterator[Line]:
        for line in recorded(path):
            if not is_scored(line) or (own := identity(line["source"])) in done:
                continue
            changed = own in now and line.get("file") not in (None, now[own])
            lost = overlays and line.get("overlay") and not (folder / line["overlay"]).exists()
            if not changed and not lost:
                done.add(own)
                yield line

    records.keep(path, scored())
    log.info("%s: %d pictures recorded; what failed, changed or was torn by a kill is done again", path, len(done))
    return done


def _counted(path: Path) -> dict[str, int]:
    """Verdict -> pictures, of all lines."""
    return dict(Counter(line["verdict"] for line in recorded(path) if is_scored(line)))


def _put_in_order(path: Path, pictures: list[Found]) -> None:
    """Lines in the order of the inputs; those of pictures that are no longer given stay, in front."""
    place = {identity(picture.source): index for index, picture in enumerate(pictures)}
    lines = list(recorded(path))
    ordered = sorted(lines, key=lambda line: place.get(identity(line["source"]), -1))
    if ordered != lines:
        records.keep(path, ordered)
