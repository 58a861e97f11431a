"""Scores a clip frame by frame into a folder: lines with times, smoothed scores and events, peaks to look at.

    out/results.jsonl    one line a frame: those of a picture, and `time`, `frame`, `smoothed`, `event`
    out/events.jsonl     one line an event
    out/events/0003.png  overlay of an event's peak
    out/timeline.html    the whole run at a glance
    out/annotated.mp4    on request: the scored frames with what was found drawn in; annotated-2.mp4 of a second clip
    out/settings.json    what the numbers depend on; going on with other settings is refused

A run that goes on decodes a clip again, scores the frames that have no line yet, and finds all events anew: what was
smoothed over a kill is as if there had been none.
"""

import io
import json
import time as clocks
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlad import records
from vlad.files import write_whole
from vlad.folder import LINES, SETTINGS, refuse_existing, settings_of
from vlad.folder.lines import is_scored, line_of, recorded
from vlad.images import ImageError
from vlad.prediction import Prediction, Region
from vlad.records import Line
from vlad.video import timeline
from vlad.video.events import Box, Event, Finder, Rule, followed, whole_events
from vlad.video.lines import Recorded, named, region_of, settled
from vlad.video.reading import Damage, Frame, frames, safe
from vlad.video.smoothing import Smoother
from vlad.video.writing import ClipWriter, annotated

if TYPE_CHECKING:
    from vlad.detector import Detector
    from vlad.video.witness import Around, Deduction, Witness

EVENTS, PEAKS, TIMELINE, ANNOTATED = "events.jsonl", "events", "timeline.html", "annotated.mp4"

Progress = Callable[[Line, int, int], None]


@dataclass(frozen=True)
class Timing:
    """How a source is looked at, in seconds.

    Attributes:
        every: one frame for each stretch of it; 0: all.
        start, end: of the source.
        smooth: time constant of the average; 0: none.
        least: shorter events are dropped; None: `every`.
        gap: time below that is bridged; None: 1 s, or two frames.
        source_fps: pictures a second, of a folder of pictures.
    """

    every: float = 0.5
    start: float = 0.0
    end: float | None = None
    smooth: float = 1.0
    least: float | None = None
    gap: float | None = None
    source_fps: float | None = None

    def frames(self, source: str, damage: Damage) -> Iterator[Frame]:
        """The frames of a source; errors as `vlad.frames`."""
        own = {"every": self.every, "start": self.start, "end": self.end, "source_fps": self.source_fps}
        return frames(source, damage=damage, **own)  # type: ignore[arg-type]

    def rule(self, detector: "Detector", threshold: float | None) -> Rule | None:
        """When an event opens; None without a threshold. With the detector's own, its good scores say what is calm."""
        if threshold is None:
            return None
        good = detector.calibration.scores if detector.calibration and threshold == detector.threshold else ()
        calm = good[len(good) // 2] if good else None
        return Rule.of(threshold, self.every, median=calm, least=self.least, gap=self.gap)


USUAL = Timing()


@dataclass(frozen=True)
class VideoSummary:
    """What a run found."""

    frames: int  # scored now
    skipped: int  # recorded by an earlier run
    events: tuple[Event, ...]
    notes: tuple[str, ...] = ()  # damaged packets, what was not promised
    failed: tuple[tuple[str, str], ...] = ()  # (source, reason); what came before stays
    seconds: float = 0.0


@dataclass
class Peak:
    """The frame at which the open event stood out most, to be drawn when the event is kept."""

    frame: Frame
    prediction: Prediction | None  # None: recorded by an earlier run


def score_video(
    detector: "Detector",
    sources: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    timing: Timing = USUAL,
    threshold: float | None = None,
    alarms: Sequence[str] = (),
    resume: bool = False,
    batch_size: int = 8,
    maps: bool = True,
    video: bool = False,
    witness: "Witness | None" = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> VideoSummary:
    """Scores clips, sequences of pictures, or what is recorded of them, and finds their events.

    Args:
        detector: what `vlad.load` returns; its threshold opens events.
        sources: see `vlad.frames`.
        out: the folder to write; None writes nothing (`progress` gets every line).
        timing: which frames, and what is an event.
        threshold: opens events in place of the detector's own. Without either there are no events.
        alarms: phrases of the detector's own pack; an event says which of them fitted best.
        resume: go on in a folder that holds results.
        batch_size: frames computed at once; never changes a result.
        maps: draw the peaks of events.
        video: write annotated.mp4 too; not when going on, as every frame is drawn.
        witness: asks a language model about each event when it ends, and of rules now and then.
        settings: further facts to record and to compare when going on.
        progress: called with (line, lines done, 0) as lines come.

    Raises:
        FileExistsError, ValueError, RuntimeError: as `vlad.folder.score_folder`; and as `vlad.frames`.
        TypeError: the method scores a set of pictures against each other.
    """
    given = [str(sources)] if isinstance(sources, str | Path) else [str(one) for one in sources]
    if video and (resume or out is None):
        raise ValueError("an annotated clip has every frame: write it into a folder, in a run that does not go on")
    if detector.transductive:
        raise TypeError(
            f"{detector.method} scores a set of pictures against each other, and a stream is none; take another method"
        )
    cut = detector.threshold if threshold is None else threshold
    rule = timing.rule(detector, cut)
    run = Run(detector, timing, rule, cut, tuple(alarms), batch_size, maps, video, progress, witness)
    if out is None:
        return run.over(given, None, Recorded())
    folder = Path(out)
    facts = {**settings_of(detector, cut), "video": {**asdict(timing), "alarms": list(alarms)}, **(settings or {})}
    with records.locked(folder):
        refuse_existing(folder, resume)
        records.keep_settings(folder / SETTINGS, facts, begun=(folder / LINES).exists())
        records.keep(folder / LINES, filter(is_scored, recorded(folder / LINES)))
        run.told = {_facts(line): line for line in whole_events(folder / EVENTS) if line.get("confirmed") is not None}
        (folder / EVENTS).unlink(missing_ok=True)  # they are found anew
        summary = run.over(given, folder, Recorded(folder / LINES))
        timeline.write(folder / TIMELINE, folder / LINES, summary.events, run.rule, folder / PEAKS)
        return summary


@dataclass
class Run:
    """One run over its sources; what it has found so far."""

    detector: "Detector"
    timing: Timing
    rule: Rule | None
    threshold: float | None
    alarms: tuple[str, ...]
    batch_size: int
    maps: bool
    video: bool
    progress: Progress | None
    witness: "Witness | None" = None
    told: dict[Any, Line] = field(default_factory=dict)  # events that an earlier run asked about
    events: list[Event] = field(default_factory=list)
    scored: int = 0
    count: int = 0
    clip: ClipWriter | None = None

    def over(self, sources: Iterable[str], folder: Path | None, done: Recorded) -> VideoSummary:
        """All sources, one after the other; one that cannot be read, or breaks off, leaves what came before."""
        began, notes, failed = clocks.monotonic(), [], []
        for number, source in enumerate(sources, start=1):
            damage = Damage()
            try:
                with self._annotating(folder, number):
                    self._one(source, folder, done, damage)
            except ImageError as error:
                failed.append((source, str(error)))
                if folder:
                    list(records.append([line_of(source, error, self.detector.name)], folder / LINES))
            notes += damage.notes
        skipped = self.count - self.scored
        return VideoSummary(
            self.scored, skipped, tuple(self.events), tuple(notes), tuple(failed), clocks.monotonic() - began
        )

    @contextmanager
    def _annotating(self, folder: Path | None, number: int) -> Iterator[None]:
        """The annotated clip of one source, where it is asked for."""
        if not self.video or folder is None:
            yield
            return
        with ClipWriter(folder / (ANNOTATED if number == 1 else ANNOTATED.replace(".", f"-{number}."))) as self.clip:
            yield

    def _one(self, source: str, folder: Path | None, done: Recorded, damage: Damage) -> None:
        lines = self.lines(source, done, damage, folder)
        new = (line for line in lines if self._counted(line, line["source"] not in done))
        for line in records.append(new, folder / LINES, self.batch_size) if folder else new:
            if self.progress:
                self.progress(line, self.count, 0)

    def _counted(self, line: Line, fresh: bool) -> bool:
        self.count += 1
        self.scored += fresh
        return fresh

    def lines(self, source: str, done: Recorded, damage: Damage, folder: Path | None) -> Iterator[Line]:
        """The lines of a source in order of time; those of an undecided event wait until it is one."""
        smooth = Smoother(self.timing.smooth)
        find = Finder(self.rule, len(self.events) + 1, safe(source)) if self.rule else None
        waiting: list[Line] = []
        peak: Peak | None = None
        around, deduce = self._witnessed()
        for frame, prediction in self._predictions(source, done, damage):
            line = self._line(frame, prediction, done)
            line["smoothed"] = smooth(frame.time, line["score"])
            if deduce and (said := deduce(frame, line.get("rules") if prediction is None else None)):
                line["rules"] = said
            if find is None:
                self._annotate(frame, prediction, line, False)
                yield {**line, "event": None}
                continue
            region = self._region(prediction, line, find.box)
            before = find.open
            ended = find(frame.time, line["smoothed"], region, self._phrase(prediction))
            self._keep(ended, peak, folder, around)
            self._annotate(frame, prediction, line, find.open is not None)
            loudest = find.open is not None and (before is None or bool(ended) or find.open.peak > before.peak)
            peak = Peak(frame, prediction) if loudest else peak
            if around:
                around(frame, line["smoothed"], loudest)
            yield from settled(waiting, line, find, ended)
        ended = find.close("stopped") if find else []
        self._keep(ended, peak, folder, around)
        yield from named(waiting, ended[0] if ended else None)

    def _predictions(self, source: str, done: Recorded, damage: Damage) -> Iterator[tuple[Frame, Prediction | None]]:
        """Each frame with its prediction, or None where it is recorded already."""
        found = self.timing.frames(source, damage)
        for known, run in groupby(found, key=lambda frame: frame.source in done):
            if known:
                yield from ((frame, None) for frame in run)
                continue
            held: deque[Frame] = deque()
            pictures = (_kept(held, frame) for frame in run)
            for prediction in self.detector.stream(pictures, batch_size=self.batch_size):
                frame = held.popleft()
                yield frame, replace(prediction, size=frame.size, source=frame.source)

    def _annotate(self, frame: Frame, prediction: Prediction | None, line: Line, alarmed: bool) -> None:
        if self.clip and prediction:
            self.clip.add(frame.time, annotated(frame, prediction, line["smoothed"], self.rule, alarmed))

    def _line(self, frame: Frame, prediction: Prediction | None, done: Recorded) -> Line:
        if prediction is None:
            return dict(done[frame.source])
        judged = replace(prediction, threshold=self.threshold, unsure=None)
        return {**line_of(frame.source, judged, self.detector.name), "time": frame.time, "frame": frame.index}

    def _region(self, prediction: Prediction | None, line: Line, last: Box | None) -> Region | None:
        found = prediction.regions() if prediction else [region_of(one) for one in line["regions"]]
        return followed(found, last)

    def _phrase(self, prediction: Prediction | None) -> str | None:
        known = [one for one in self.alarms if prediction and one in prediction.phrases]
        return max(known, key=lambda one: prediction.phrases[one]) if known and prediction else None

    def _witnessed(self) -> "tuple[Around | None, Deduction | None]":
        """What a language model is shown of a source, and how rules are asked of it; None where none is there."""
        from vlad.video.witness import Around, Deduction

        if self.witness is None:
            return None, None
        deduce = Deduction(self.witness) if self.witness.every is not None else None
        return Around.of(self.rule, self.timing.every) if self.rule else None, deduce

    def _keep(self, ended: list[Event], peak: Peak | None, folder: Path | None, around: "Around | None") -> None:
        """What has ended is asked about, remembered, written and drawn."""
        for event in ended:
            assert peak is not None
            prediction = peak.prediction
            if prediction is None and (around or (folder and self.maps)):
                prediction = self.detector.predict(peak.frame.picture)
            if known := self.told.get(_facts(event.to_dict())):
                event = replace(event, confirmed=known["confirmed"], broken=tuple(known["broken"]))
            elif self.witness and around and prediction:
                own = replace(prediction, size=peak.frame.size)
                event = self.witness.of(event, around.four(), peak.frame.picture, own)
            self.events.append(event)
            if folder is None:
                continue
            if self.maps and prediction and prediction.map is not None:
                drawn = replace(prediction, size=peak.frame.picture.shape[:2]).overlay(peak.frame.picture)
                drawn.save(kept := io.BytesIO(), "PNG")
                write_whole(folder / PEAKS / f"{event.id:04}.png", kept.getvalue())
            with (folder / EVENTS).open("ab") as file:
                file.write(json.dumps(event.to_dict()).encode() + b"\n")


def _facts(event: Mapping[str, Any]) -> Any:
    """By which an event of an earlier run is known again, if a language model was asked about it."""
    return tuple(event.get(key) for key in ("source", "start", "end", "peak"))


def _kept(held: deque[Frame], frame: Frame) -> np.ndarray:
    """The picture of a frame that waits for its prediction."""
    held.append(frame)
    return frame.picture
