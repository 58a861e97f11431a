"""`vlad watch`: a camera, judged as it goes: always the newest frame, and alarms as events that open and close.

A thread decodes without pause into one slot that the newest frame overwrites, and the scorer takes what is there when a
frame is due. So the delay is at most one scoring and one frame, whatever the load; a queue would grow without end.
"""

import threading
import time as clocks
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vlad.folder.lines import line_of
from vlad.images import ImageError
from vlad.prediction import Prediction
from vlad.records import Line
from vlad.video.events import Event, Finder, followed
from vlad.video.reading import ADDRESSES, CAMERA, Damage, Frame, frames, safe
from vlad.video.scoring import USUAL, Timing
from vlad.video.smoothing import Smoother
from vlad.video.witness import Around

if TYPE_CHECKING:
    from vlad.detector import Detector
    from vlad.video.witness import Witness

FROZEN = 10.0  # seconds of the very same picture after which a camera is called frozen
PENDING = 8  # events that wait for a language model; older ones stay unanswered
LAST_ANSWERS = 20.0  # seconds that are waited for the last answers, at the end
GLANCE = 0.2  # seconds between two looks whether it shall stop
ENDING = 2.0  # seconds that are waited for the decoding thread, which a camera may hold up
MOMENT = 0.02  # seconds to sleep while a frame is there but not due
DARK = 4.0  # mean grey level below which it is called dark
PAUSES = (1, 2, 4, 8, 16, 30)  # seconds before a lost camera is opened again


class Source(Protocol):
    """What frames come from, one after the other, as fast as they are there."""

    def __iter__(self) -> Iterator[Frame]: ...


@dataclass(frozen=True)
class Said:
    """One thing to say: a frame's line, an event that opened, closed or was asked about, what is wrong with the camera;
    at the end what it all took."""

    kind: str  # "line", "opened", "closed", "answered", "camera", "watched"
    line: Line


@dataclass
class Newest:
    """The slot: the newest frame, when it came, and how many were overwritten unseen."""

    frame: Frame | None = None
    came: float = 0.0
    number: int = 0
    ended: str = ""  # why no more will come
    ready: threading.Condition = field(default_factory=threading.Condition)

    def put(self, frame: Frame) -> None:
        """Overwrites what is there."""
        with self.ready:
            self.frame, self.came, self.number = frame, clocks.monotonic(), self.number + 1
            self.ready.notify()

    def end(self, why: str) -> None:
        """No more frames."""
        with self.ready:
            self.ended = why
            self.ready.notify()

    def take(self, after: int) -> tuple[Frame | None, float, int]:
        """The newest frame beyond number `after`, waiting a moment for it; None where none came."""
        with self.ready:
            self.ready.wait_for(lambda: self.number > after or self.ended, GLANCE)
            return (self.frame if self.number > after else None), self.came, self.number


@dataclass(frozen=True)
class Live:
    """A file, camera or address as a live source; a file is played at its own speed."""

    name: str

    def __iter__(self) -> Iterator[Frame]:
        began = clocks.monotonic()
        plays = not self.name.startswith((CAMERA, *ADDRESSES))
        for frame in frames(self.name, every=0, damage=Damage()):
            if plays and (ahead := frame.time - (clocks.monotonic() - began)) > 0:
                clocks.sleep(ahead)
            yield frame

    @property
    def returns(self) -> bool:
        """Whether it is opened again when it ends: cameras are, files are not."""
        return self.name.startswith((CAMERA, *ADDRESSES))


def watch(
    detector: "Detector",
    source: str | Source,
    *,
    timing: Timing = USUAL,
    threshold: float | None = None,
    alarms: Sequence[str] = (),
    until: float | None = None,
    after: int = 0,
    stop: threading.Event | None = None,
    witness: "Witness | None" = None,
    pause: Callable[[float], None] = clocks.sleep,
) -> Iterator[Said]:
    """What is to be said of a live source, as it happens.

    A line has `clock` (UTC), `latency` (seconds from the frame's coming to its line) and `dropped` (frames that came
    and were never scored) beside what `vlad score` gives.

    Args:
        detector: its threshold opens events.
        source: a name as `vlad.frames` takes it, or an iterable of frames.
        timing: `every`, smoothing and events; a file's start and end do not count here.
        threshold: in place of the detector's own; without either there are no events.
        alarms: phrases of the detector's pack, the best of which an event names.
        until: seconds after which it stops.
        after: the number of the last event of an earlier watch; its own are counted on.
        stop: once it is set, the open event is closed and it stops.
        witness: asks a language model about closed events, in a thread of its own; scoring never waits for it.
        pause: waits before a lost camera is opened again.

    Raises:
        TypeError: the method scores a set of pictures against each other.
        vlad.ImageError: the source cannot be opened at all.
    """
    if detector.transductive:
        raise TypeError(f"{detector.method} scores a set of pictures against each other; watch with another method")
    live = Live(source) if isinstance(source, str) else source
    name = safe(source) if isinstance(source, str) else "camera"
    cut = detector.threshold if threshold is None else threshold
    aside = None if witness is None else Aside(witness)
    state = _State(detector, name, timing, cut, tuple(alarms), until, stop or threading.Event(), aside, events=after)
    tries = 0
    while True:
        before = state.count
        slot = Newest()
        decoding = threading.Thread(target=_fill, args=(live, slot, state), daemon=True)
        decoding.start()
        yield from state.over(slot)
        decoding.join(ENDING)  # a program that ends while it decodes is aborted
        lost = isinstance(live, Live) and live.returns and not state.over_time()
        yield from state.close("gap" if lost else "stopped")
        if not lost:
            if slot.ended not in ("", "ended") and state.count == 0:
                raise ImageError(slot.ended, name)
            yield from state.last_words()
            return
        tries = 0 if state.count > before else tries + 1
        wait = PAUSES[min(tries, len(PAUSES) - 1)]
        yield Said("camera", {"camera": "lost", "source": name, "why": slot.ended, "again_in": wait})
        pause(wait)


def _fill(live: Source, slot: Newest, state: "_State") -> None:
    """The decoding thread."""
    try:
        for frame in live:
            if state.over_time():
                return
            slot.put(frame)
        slot.end("ended")
    except Exception as error:  # whatever it was, the watcher must not wait for ever
        slot.end(str(error))


class Aside:
    """Questions about events in a thread of their own: one in flight, the newest event first, the oldest given up."""

    def __init__(self, witness: "Witness") -> None:
        self.witness = witness
        self.waiting: list[tuple[Any, ...]] = []
        self.answered: list[Event] = []
        self.asking = False
        self.ready = threading.Condition()
        threading.Thread(target=self._work, daemon=True).start()

    def put(self, *question: Any) -> None:
        """An event with what `Witness.of` is shown of it."""
        with self.ready:
            self.waiting = [*self.waiting, question][-PENDING:]
            self.ready.notify_all()

    def take(self, patience: float = 0.0) -> list[Event]:
        """The events that were answered since, waiting so long for those that are still to come."""
        with self.ready:
            self.ready.wait_for(lambda: not (self.waiting or self.asking), patience)
            found, self.answered = self.answered, []
            return found

    def _work(self) -> None:
        while True:
            with self.ready:
                self.ready.wait_for(lambda: bool(self.waiting))
                question, self.asking = self.waiting.pop(), True
            event = self.witness.of(*question)
            with self.ready:
                self.answered.append(event)
                self.asking = False
                self.ready.notify_all()


@dataclass
class _State:
    """What a watch knows: its smoother, its open event, and how the camera looks."""

    detector: "Detector"
    name: str
    timing: Timing
    threshold: float | None
    alarms: tuple[str, ...]
    until: float | None
    stop: threading.Event
    aside: Aside | None = None
    count: int = 0
    dropped: int = 0
    latency: float = 0.0  # seconds, of all lines together
    slowest: float = 0.0
    events: int = 0
    opened: bool = False

    def __post_init__(self) -> None:
        self.rule = self.timing.rule(self.detector, self.threshold)
        self.smooth, self.began = Smoother(self.timing.smooth), clocks.monotonic()
        self.find: Finder | None = None
        self.around = Around.of(self.rule, self.timing.every) if self.rule and self.aside else None
        self.peak: tuple[Frame, Prediction] | None = None
        self.same: tuple[bytes, float] | None = None
        self.told = ""

    def over_time(self) -> bool:
        """Whether it has watched as long as it was asked to, or shall stop."""
        return self.stop.is_set() or (self.until is not None and clocks.monotonic() - self.began >= self.until)

    def over(self, slot: Newest) -> Iterator[Said]:
        """Until the source ends, or the time is over."""
        self.smooth.reset()
        self.find = Finder(self.rule, self.events + 1, self.name) if self.rule else None
        number, due = 0, 0.0
        while not self.over_time():
            frame, came, newest = slot.take(number)
            if frame is None and slot.ended:
                break
            if frame is None or clocks.monotonic() < due:
                clocks.sleep(max(0.0, min(due - clocks.monotonic(), MOMENT)))
                continue
            due = clocks.monotonic() + self.timing.every
            self.dropped += newest - number - 1
            number = newest
            yield from self._judged(frame, came)

    def _judged(self, frame: Frame, came: float) -> Iterator[Said]:
        yield from self._camera(frame)
        (prediction,) = self.detector.stream([frame.picture], batch_size=1, prefetch=False)
        prediction = replace(prediction, size=frame.size, source=frame.source, threshold=self.threshold, unsure=None)
        even = self.smooth(frame.time, prediction.score)
        self.count += 1
        said = self._events(frame, prediction, even)
        line = line_of(f"{self.name}#t={frame.time:.3f}", prediction, self.detector.name)
        line |= {"time": frame.time, "frame": frame.index, "smoothed": even}
        line["event"] = self.find.open.id if self.find and self.find.open else None
        latency = clocks.monotonic() - came
        self.latency, self.slowest = self.latency + latency, max(self.slowest, latency)
        line |= {"clock": _now(), "latency": round(latency, 4), "dropped": self.dropped}
        yield Said("line", line)
        yield from said
        yield from self._answers()

    def _events(self, frame: Frame, prediction: Prediction, even: float) -> list[Said]:
        if self.find is None:
            return []
        known = [one for one in self.alarms if one in prediction.phrases]
        phrase = max(known, key=lambda one: prediction.phrases[one]) if known else None
        before = self.find.open
        ended = self.find(frame.time, even, followed(prediction.regions(), self.find.box), phrase)
        said = self._closed(ended)
        if self.around:
            now = self.find.open
            loudest = now is not None and (before is None or bool(ended) or now.peak > before.peak)
            self.peak = (frame, prediction) if loudest else self.peak
            self.around(frame, even, loudest)
        if self.find.open is None:
            self.opened = False
        elif not self.opened and self.find.confirmed():
            self.opened = True
            said.append(Said("opened", _told(self.find.open, "open")))
        return said

    def _closed(self, ended: list[Event]) -> list[Said]:
        self.events += len(ended)
        self.opened = self.opened and not ended
        for event in ended:
            if self.aside and self.around and self.peak:
                self.aside.put(event, self.around.four(), self.peak[0].picture, self.peak[1])
        return [Said("closed", _told(event, "closed")) for event in ended]

    def _answers(self, patience: float = 0.0) -> list[Said]:
        answered = self.aside.take(patience) if self.aside else []
        return [Said("answered", _told(event, "answered")) for event in answered]

    def last_words(self) -> Iterator[Said]:
        """What is still to be answered, and what the watch took."""
        yield from self._answers(LAST_ANSWERS)
        if self.count:
            took = {"seconds": round(clocks.monotonic() - self.began, 2), "frames": self.count, "dropped": self.dropped}
            took |= {"latency": round(self.latency / self.count, 4), "slowest": round(self.slowest, 4)}
            yield Said("watched", {"watched": self.name, **took})

    def close(self, reason: Any) -> list[Said]:
        """Ends the open event."""
        return self._closed(self.find.close(reason)) if self.find else []

    def _camera(self, frame: Frame) -> Iterator[Said]:
        """A frozen or dark camera is an alarm of its own, said once."""
        content = frame.picture.tobytes()
        if self.same is None or self.same[0] != content:
            self.same = content, frame.time
        frozen = frame.time - self.same[1] >= FROZEN
        state = "frozen" if frozen else "dark" if float(np.mean(frame.picture)) < DARK else ""
        if state != self.told:
            self.told = state
            yield Said("camera", {"camera": state or "well", "source": self.name, "clock": _now()})


def _told(event: Event, state: str) -> Line:
    return {"event": event.id, "state": state, "clock": _now(), **event.to_dict()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
