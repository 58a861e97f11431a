"""Events: stretches of time in which a smoothed score is high, with hysteresis, gaps bridged and short ones dropped."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vlad.prediction import Region

Box = tuple[int, int, int, int]
LONGEST = 1000  # places of a track: of a longer one every second place is kept, then every fourth, ...
OVERLAP = 0.1  # box IoU from which two regions of neighbouring frames are one thing


@dataclass(frozen=True)
class Event:
    """A stretch of time that stood out.

    Attributes:
        id: from 1 on, in order of their beginnings.
        start, end: seconds of its first frame, and of its last one that was not below `off`.
        peak_time, peak: when the smoothed score was highest, and how high.
        region: the strongest of the peak's frame, where there are maps.
        track: (seconds, box) of what was marked in its frames; of hours fewer, evenly.
        reason: why it ended: "ended" (the score fell), "gap" (a hole in time), "stopped" (the source).
        phrase: the alarm whose words fitted best at the peak; None without alarms.
        source: of its frames.
        confirmed: how sure a language model is that it can be seen, in [0, 1]; None: not asked, or no usable answer.
        broken: ids of the rules that it says are broken.
    """

    id: int
    start: float
    end: float
    peak_time: float
    peak: float
    region: Region | None = None
    track: tuple[tuple[float, Box], ...] = ()
    reason: Literal["ended", "gap", "stopped"] = "ended"
    phrase: str | None = None
    source: str = ""
    confirmed: float | None = None
    broken: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For a line of events.jsonl."""
        values = asdict(self)
        return {"event": values.pop("id"), **values}


@dataclass(frozen=True)
class Rule:
    """When an event opens and closes.

    Attributes:
        on: it opens at a smoothed score of this or more.
        off: it goes on while the score is this or more.
        least: seconds from first to last frame; shorter ones are dropped.
        gap: seconds below `off` that are bridged.
        hole: seconds between two frames after which nothing is bridged.
    """

    on: float
    off: float
    least: float = 0.5
    gap: float = 1.0
    hole: float = 2.5

    def __post_init__(self) -> None:
        if not self.off <= self.on:
            raise ValueError(f"an event opens at {self.on:g} and would close at {self.off:g}; close it at no more")

    @staticmethod
    def of(
        on: float, every: float, *, median: float | None = None, least: float | None = None, gap: float | None = None
    ) -> "Rule":
        """The usual one of a threshold: `off` half way down to the calibration's median, half of `on` without one."""
        bridged = max(1.0, 2 * every) if gap is None else gap
        off = on / 2 if median is None else median + (on - median) / 2
        return Rule(on, min(off, on), every if least is None else least, bridged, max(bridged, 5 * every))


class Finder:
    """Finds events as frames come: a few numbers of memory, and a thinned track of the open one."""

    def __init__(self, rule: Rule, first: int = 1, source: str = "") -> None:
        self.rule, self.next, self.source = rule, first, source
        self.open: Event | None = None
        self.last: float | None = None
        self.track: list[tuple[float, Box]] = []  # of the open event
        self.every = 1  # how many of its frames there are to one place of the track
        self.frames = 0

    def __call__(
        self, time: float, value: float, region: Region | None = None, phrase: str | None = None
    ) -> list[Event]:
        """The events that end with this frame; none, or one. `Finder.open` is the one that goes on."""
        ended = []
        if self.open and self.last is not None and time - self.last > self.rule.hole:
            ended = self.close("gap")
        self.last = time
        if self.open and value < self.rule.off:
            return ended + (self.close("ended") if time - self.open.end >= self.rule.gap else [])
        if self.open:
            self.open = self._on(self.open, time, value, region, phrase)
        elif value >= self.rule.on:
            self.track, self.every, self.frames = [], 1, 0
            self._follow(time, region)
            self.open = Event(self.next, time, time, time, value, region, phrase=phrase, source=self.source)
        return ended

    def close(self, reason: Literal["ended", "gap", "stopped"] = "stopped") -> list[Event]:
        """Ends the open event; one that was too short is dropped."""
        event, self.open = self.open, None
        if event is None or event.end - event.start < self.rule.least - 1e-9:
            return []
        self.next += 1
        return [replace(event, reason=reason, track=tuple(self.track))]

    @property
    def box(self) -> Box | None:
        """Where the open event was last seen."""
        return self.track[-1][1] if self.open and self.track else None

    def confirmed(self) -> bool:
        """Whether the open event is long enough to be kept whatever comes."""
        return self.open is not None and self.open.end - self.open.start >= self.rule.least - 1e-9

    def _on(self, event: Event, time: float, value: float, region: Region | None, phrase: str | None) -> Event:
        self._follow(time, region)
        if value > event.peak:
            return replace(event, end=time, peak_time=time, peak=value, region=region, phrase=phrase)
        return replace(event, end=time)

    def _follow(self, time: float, region: Region | None) -> None:
        self.frames += 1
        if region and (self.frames - 1) % self.every == 0:
            self.track.append((time, region.box))
            if len(self.track) > LONGEST:
                self.track, self.every = self.track[::2], 2 * self.every


def events(points: Iterable[tuple[float, float]], rule: Rule) -> Iterator[Event]:
    """The events of (seconds, smoothed score) in order of time."""
    find = Finder(rule)
    for time, value in points:
        yield from find(time, value)
    yield from find.close()


def followed(regions: list[Region], last: Box | None) -> Region | None:
    """Which region of a frame is the event's: the one that overlaps its last box most, else the strongest."""
    if not regions or last is None:
        return regions[0] if regions else None
    best = max(regions, key=lambda region: overlap(region.box, last))
    return best if overlap(best.box, last) >= OVERLAP else regions[0]


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return 0.0
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return wide * high / (area - wide * high)


def whole_events(path: Path) -> list[dict[str, Any]]:
    """The whole lines of an events.jsonl; one that a kill tore is left out."""
    found = []
    for raw in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            line = json.loads(raw) if raw.endswith(b"\n") else None
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("event"), int):
            found.append(line)
    return found
