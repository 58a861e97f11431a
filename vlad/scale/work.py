"""One shard scored and put, and what becomes of a picture that kills the process that looks at it.

A shard is begun at most twice as a whole. If the process died both times, it is done picture by picture, and the one
in work is noted: a picture at which the process dies twice more gets a line with an error, and the others go on. Notes
lie in `out/tries`, so that this holds whoever starts the process again.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.files import write_whole
from vlad.folder.lines import LineMaker, Wanted, line_of
from vlad.images import ImageError
from vlad.images.listing import Found
from vlad.records import Line
from vlad.scale.plan import Plan

if TYPE_CHECKING:
    from vlad.detector import Detector

TRIES = "tries"
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
