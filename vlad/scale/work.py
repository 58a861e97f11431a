"""One shard scored and put, and what becomes of a picture that kills the process that looks at it.

A shard is begun at most twice as a whole. If the process died both times, it is done picture by picture, and the one
in work is noted: a picture at which the process dies twice more gets a line with an error, and the others go on. Notes
lie in `out/tries`, so that this holds whoever starts the process again.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.detector.loading import load
from vlad.files import write_whole
from vlad.folder.lines import LineMaker, Wanted, line_of
from vlad.images import ImageError
from vlad.images.listing import Found
from vlad.records import Line
from vlad.scale.on_ray import NODE, each
from vlad.scale.plan import Plan

if TYPE_CHECKING:
    from vlad.detector import Detector

TRIES, DETECTOR = "tries", "detector.safetensors"
STILLBORN = 3  # workers in a row that may die before they begin a shard
WHOLE, ALONE = 2, 2  # deaths that a shard costs before it is done picture by picture; that a picture then costs
PARTIAL = ".partial-"  # how files begin that are being written, in `out`
DEADLY = "the process that scores it died {deaths} times at this picture"


@dataclass(frozen=True)
class Work:
    """How the shards of a plan are scored."""

    plan: Plan
    wanted: Wanted
    batch_size: int
    threshold: float | str | None

    def score(self, detector: Detector, number: int, pictures: Sequence[Found]) -> list[Line]:
        """The lines of a shard, once its part is in its place. `pictures` are those of the shard."""
        own = replace(self.wanted, partial=f"{PARTIAL}{socket.gethostname()}-{os.getpid()}")
        make = LineMaker(detector, own, self.batch_size, self.threshold, None)
        note = self.note(number)
        note.begin()
        lines = list(make.lines(list(pictures))) if note.begun <= WHOLE else list(_one_by_one(make, pictures, note))
        self.plan.put(number, lines)
        note.path.unlink(missing_ok=True)
        return lines

    def note(self, number: int) -> Note:
        """Of the shard."""
        return Note(self.plan.out / TRIES / f"{number:06}.json")


class Note:
    """What is known of earlier tries of a shard."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            facts = {}
        self.begun: int = facts.get("begun", 0)
        self.deaths: dict[str, int] = facts.get("deaths", {})  # place in the shard -> times it was looked at in vain

    def begin(self) -> None:
        """One more try."""
        self.begun += 1
        self._write()

    def look_at(self, place: int) -> None:
        """This picture is in work: if the process dies now, it is the one."""
        self.deaths[str(place)] = self.deaths.get(str(place), 0) + 1
        self._write()

    def survived(self, place: int) -> None:
        """It was not this one; the disk learns of it with the next picture."""
        self.deaths.pop(str(place), None)

    def _write(self) -> None:
        write_whole(self.path, json.dumps({"begun": self.begun, "deaths": self.deaths}).encode())


def _one_by_one(make: LineMaker, pictures: Sequence[Found], note: Note) -> Iterator[Line]:
    """Nothing is read ahead: the picture that is noted is the only one at hand."""
    for place, picture in enumerate(pictures):
        if (deaths := note.deaths.get(str(place), 0)) >= ALONE:
            error = ImageError(f"{picture.path}: {DEADLY.format(deaths=deaths)}", str(picture.path))
            yield line_of(picture.source, error, make.detector.name)
            continue
        note.look_at(place)
        yield from make.lines([picture])
        note.survived(place)


@dataclass(frozen=True)
class Saved:
    """A detector as workers find it: its file in the run, not sent through Ray."""

    file: str
    encoder: str
    device: str | None
    plan: str  # tells a run from one that had another detector in the same place

    @lru_cache(maxsize=1)  # noqa: B019  # one detector for all shards that a worker does
    def loaded(self) -> Detector:
        """Loaded once by each worker."""
        return load(self.file, encoder=self.encoder, device=self.device)


def scattered(
    model: Detector,
    work: Work,
    todo: Mapping[int, Sequence[Found]],
    address: str,
    workers: int | None,
    device: str | None,
) -> Iterator[int]:
    """Numbers of the shards, each as a worker of a Ray cluster has done it.

    Raises:
        ImportError, ConnectionError: Ray is not installed, or not reached.
        RuntimeError: a node lacks VLAD, has another version or does not see the run; workers die as they start.
        OSError: a node cannot write; the message names it.
    """
    file = work.plan.out / DETECTOR
    model.save(file, pictures=False)
    saved, stillborn = Saved(str(file), model.encoder.name, device, work.plan.digest), 0

    def died(number: int, what: str, _: int) -> None:
        nonlocal stillborn
        note = work.note(number).path
        stillborn = 0 if what == NODE or note.exists() else stillborn + 1
        if what == NODE:
            note.unlink(missing_ok=True)  # not the fault of any picture
        if stillborn > STILLBORN:
            raise RuntimeError(f"{stillborn} workers died as they loaded the detector; is there enough memory?")

    jobs = {number: (saved, work, number, pictures) for number, pictures in todo.items()}
    for number, _ in each(score_shard, jobs, address, workers=workers, died=died):
        stillborn = 0
        yield number


def score_shard(saved: Saved, work: Work, number: int, pictures: Sequence[Found]) -> None:
    """What a worker does.

    Raises:
        RuntimeError: its node does not see the run.
    """
    try:
        seen = Plan.read(work.plan.out).digest == work.plan.digest
    except ValueError:
        seen = False
    if not seen:
        node, out = socket.gethostname(), work.plan.out.absolute()
        raise RuntimeError(f"the node {node} does not see {out}; Ray needs folders that all nodes share")
    work.score(saved.loaded(), number, pictures)
