"""Lines of a clip: those of an earlier run, and those that wait until it is known whether they are of an event."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlad import records
from vlad.prediction import Region
from vlad.records import Line
from vlad.video.events import Event, Finder


class Recorded:
    """The lines of an earlier run by their sources; of each but its place in the file is kept."""

    def __init__(self, path: Path | None = None) -> None:
        self.path, self.places = path or Path(os.devnull), dict[str, int]()
        place = 0
        for line in records.read(self.path):
            self.places[line["source"]] = place
            place += len(records.to_bytes(line))

    def __contains__(self, source: str) -> bool:
        return source in self.places

    def __getitem__(self, source: str) -> Line:
        with self.path.open("rb") as file:
            file.seek(self.places[source])
            return dict(json.loads(file.readline()))


def settled(waiting: list[Line], line: Line, find: Finder, ended: list[Event]) -> Iterator[Line]:
    """Lines whose event is known by now, in order; the others wait, no longer than `least` or `gap`."""
    if ended or find.open is None:
        yield from named(waiting, ended[0] if ended else None)
    waiting.append(line)
    if find.open is None:
        yield from named(waiting, None)
    elif find.confirmed() and find.open.end == line["time"]:
        yield from named(waiting, find.open)


def named(waiting: list[Line], event: Event | None) -> Iterator[Line]:
    """The waiting lines, those within the event's time with its number; none waits any longer."""
    for line in waiting:
        inside = event is not None and event.start <= line["time"] <= event.end
        yield {**line, "event": event.id if event and inside else None}
    waiting.clear()


def region_of(told: Mapping[str, Any]) -> Region:
    """A region as a line says it."""
    return Region(**{key: tuple(value) if isinstance(value, list) else value for key, value in told.items()})  # type: ignore[arg-type]
