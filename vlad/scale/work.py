"""One shard scored and put, and what becomes of a picture that kills the process that looks at it.

A shard is begun at most twice as a whole. If the process died both times, it is done picture by picture, and the one
in work is noted: a picture at which the process dies twice more gets a line with an error, and the others go on. Notes
lie in `out/tries`, so that this holds whoever starts the process again.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from vlad.detector.loading import load
from vlad.folder.lines import LineMaker, Wanted, line_of
from vlad.images import ImageError
from vlad.images.listing import Found
from vlad.records import Line
from vlad.scale.inputs import brought
from vlad.scale.on_ray import NODE, each
from vlad.scale.places import Place
from vlad.scale.plan import Plan

if TYPE_CHECKING:
    from vlad.detector import Detector

TRIES, DETECTOR = "tries", "detector.safetensors"
STILLBORN = 3  # deaths of workers in a row, before they begin a shard, that may count
WHOLE, ALONE = 2, 2  # deaths that a shard costs before it is done picture by picture; that a picture then costs
PARTIAL = ".partial-"  # how files begin that are being written, in `out`
DEADLY = "the process that scores it died {deaths} times at this picture"

Lines = Callable[[LineMaker, "Sequence[Found]", "Note"], "Iterable[Line]"]


@dataclass(frozen=True)
class Work:
    """How the shards of a plan are scored."""

    plan: Plan
    wanted: Wanted
    batch_size: int
    threshold: float | str | None

    def score(
        self, detector: Detector, number: int, pictures: Sequence[Found], lines: Lines | None = None
    ) -> list[Line]:
        """The lines of a shard, once its part is in its place.

        Args:
            pictures: those of the shard.
            lines: how they are made of the pictures; None: in batches, in tries.
        """
        note = self.note(number)
        note.begin()
        with brought(pictures) as here, self.plan.out.writing() as folder:
            partial = f"{PARTIAL}{socket.gethostname()}-{os.getpid()}"
            own = replace(self.wanted, folder=folder, partial=partial)
            make = LineMaker(detector, own, self.batch_size, self.threshold, None)
            found = (lines or _in_batches)(make, here.pictures, note)
            told = [here.told(place, line) for place, line in enumerate(found)]
        self.plan.put(number, told)
        note.forget()
        return told

    def note(self, number: int) -> Note:
        """Of the shard."""
        return Note(self.plan.out, f"{TRIES}/{number:06}.json")


class Note:
    """What is known of earlier tries of a shard."""

    def __init__(self, out: Place, name: str) -> None:
        self.out, self.name = out, name
        try:
            facts: dict[str, Any] = json.loads(out.read(name) or b"{}")
        except ValueError:
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

    def forget(self) -> None:
        """The shard is done, or its process died of something else."""
        self.out.remove(self.name)

    def _write(self) -> None:
        self.out.put(self.name, json.dumps({"begun": self.begun, "deaths": self.deaths}).encode())


def _in_batches(make: LineMaker, pictures: Sequence[Found], note: Note) -> Iterator[Line]:
    return in_tries(make.lines, make.detector.name, pictures, note)


def in_tries(
    lines: Callable[[list[Found]], Iterator[Line]], name: str | None, pictures: Sequence[Found], note: Note
) -> Iterator[Line]:
    """The lines of all pictures at once or, where the process has died at them, of one after the other."""
    if note.begun <= WHOLE:
        yield from lines(list(pictures))
        return
    for place, picture in enumerate(pictures):  # nothing is read ahead: the one that is noted is the only one at hand
        if (deaths := note.deaths.get(str(place), 0)) >= ALONE:
            error = ImageError(f"{picture.path}: {DEADLY.format(deaths=deaths)}", str(picture.path))
            yield line_of(picture.source, error, name)
            continue
        note.look_at(place)
        yield from lines([picture])
        note.survived(place)


@dataclass(frozen=True)
class Saved:
    """A detector as workers find it: its file in the run, not sent through Ray."""

    out: Place
    encoder: str
    device: str | None
    plan: str  # tells a run from one that had another detector in the same place

    @lru_cache(maxsize=1)  # noqa: B019  # one detector for all shards that a worker does
    def loaded(self) -> Detector:
        """Loaded once by each worker."""
        with self.out.at_hand(DETECTOR) as file:
            return load(file, encoder=self.encoder, device=self.device)


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
    saved, died = save_detector(model, work, device), Deaths(work)
    jobs = {number: (saved, work, number, pictures) for number, pictures in todo.items()}
    for number, _ in each(score_shard, jobs, address, workers=workers, died=died):
        died.in_a_row = 0
        yield number


def save_detector(model: Detector, work: Work, device: str | None) -> Saved:
    """The detector as workers find it."""
    with work.plan.out.writing() as folder:
        model.save(folder / DETECTOR, pictures=False)
    return Saved(work.plan.out, model.encoder.name, device, work.plan.digest)


@dataclass
class Deaths:
    """Told of every death; those at a picture are counted in the notes, those before any shard was begun here.

    Raises:
        RuntimeError: too many of these in a row.
    """

    work: Work
    in_a_row: int = 0

    def __call__(self, number: int, what: str, _: int) -> None:
        note = self.work.note(number)
        self.in_a_row = 0 if what == NODE or note.begun else self.in_a_row + 1
        if what == NODE:
            note.forget()  # not the fault of any picture
        if self.in_a_row > STILLBORN:
            raise RuntimeError(f"{self.in_a_row} workers died as they loaded the detector; is there enough memory?")


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
        node, out = socket.gethostname(), work.plan.out
        raise RuntimeError(f"the node {node} does not see {out}; Ray needs folders that all nodes share")
    work.score(saved.loaded(), number, pictures)
