"""How well a detector finds what happens in labelled videos: frames ranked, and events at its own threshold.

A frame has the score of the last scored one at or before it, as a camera would have had. Videos are not rescaled,
nothing is smoothed over their borders, and no setting is chosen on their labels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vlad.metrics import auroc, average_precision
from vlad.metrics.resampling import interval
from vlad.video.labelled import Labelled
from vlad.video.scoring import Timing, score_video

if TYPE_CHECKING:
    from vlad.detector import Detector

Span = tuple[float, float]
OVERLAPS = (0.3, 0.5)  # of alarm and event in time
DRAWS = 400  # of videos, for intervals
FEWEST = 5  # videos below which an interval over them says nothing


@dataclass(frozen=True, eq=False)
class Watched:
    """A labelled video and what a detector made of it.

    Attributes:
        scores, labels: [frames].
        times: [frames] seconds.
        alarms: (start, end) of events, in seconds.
    """

    name: str
    scores: np.ndarray
    labels: np.ndarray
    times: np.ndarray
    alarms: tuple[Span, ...] = ()

    @property
    def events(self) -> list[Span]:
        """(start, end) of the stretches that are labelled, in seconds; the end is that of the last frame's time."""
        edges = np.flatnonzero(np.diff(np.concatenate([[0], self.labels.astype(int), [0]])))
        step = float(np.median(np.diff(self.times))) if len(self.times) > 1 else 0.0
        return [(float(self.times[a]), float(self.times[b - 1]) + step) for a, b in edges.reshape(-1, 2)]

    @property
    def alarmed(self) -> np.ndarray:
        """bool [frames]: within an alarm."""
        return np.any([(a <= self.times) & (self.times <= b) for a, b in self.alarms] or [self.times < 0], axis=0)


@dataclass(frozen=True)
class Figures:
    """Numbers of one video or of several; NaN where there is nothing to measure.

    Attributes:
        micro: AUROC of all frames in one list. macro: mean of the videos' own, over `both` that hold both labels.
        ap: average precision of all frames.
        found: of `events` those that an alarm touches; `overlapping`: share with an overlap of 0.3 and 0.5 or more.
        right: of `alarms` those that touch an event; per_hour: false ones an hour of normal time.
        in_alarm: share of the normal frames within an alarm.
        delay: median seconds from an event's start to its alarm's, of those found.
    """

    frames: int
    micro: float
    macro: float
    both: int
    ap: float
    events: int
    found: int
    overlapping: tuple[float, ...]
    alarms: int
    right: int
    per_hour: float
    in_alarm: float
    delay: float


def held(indices: Sequence[int], values: Sequence[float], count: int) -> np.ndarray:
    """[count] the value of the last scored frame at or before each; before the first, the first."""
    places = np.searchsorted(np.asarray(indices), np.arange(count), side="right") - 1
    return np.asarray(values, dtype=np.float64)[np.maximum(places, 0)]


def watched(detector: "Detector", video: Labelled, timing: Timing, threshold: float | None = None) -> Watched:
    """Scores a labelled video; errors as `vlad.video.scoring.score_video`, and what cannot be read as a ValueError."""
    lines = []
    own = Timing(timing.every, 0.0, None, timing.smooth, timing.least, timing.gap, video.fps)
    done = score_video(
        detector,
        video.source,
        timing=own,
        threshold=threshold,
        maps=False,
        progress=lambda line, *_: lines.append(line),
    )
    if done.failed:
        raise ValueError(done.failed[0][1])
    count = len(video.labels)
    indices = [line["frame"] for line in lines]
    scores = held(indices, [line["smoothed"] for line in lines], count)
    times = (
        np.interp(np.arange(count), indices, [line["time"] for line in lines]) if len(lines) > 1 else np.zeros(count)
    )
    if len(lines) > 1:  # beyond the last scored frame time goes on as before
        step = (lines[-1]["time"] - lines[0]["time"]) / (indices[-1] - indices[0])
        late = np.arange(count) > indices[-1]
        times[late] = lines[-1]["time"] + step * (np.arange(count)[late] - indices[-1])
    return Watched(video.name, scores, video.labels, times, tuple((one.start, one.end) for one in done.events))


def figures(videos: Sequence[Watched]) -> Figures:
    """The numbers of these videos together."""
    scores = np.concatenate([one.scores for one in videos])
    labels = np.concatenate([one.labels for one in videos]).astype(int)
    ranked = 0 < labels.sum() < len(labels)
    own = [auroc(one.scores, one.labels.astype(int)) for one in videos if 0 < one.labels.sum() < len(one.labels)]
    pairs = [(event, one.alarms) for one in videos for event in one.events]
    best = [max((overlap(event, alarm) for alarm in alarms), default=0.0) for event, alarms in pairs]
    first = [
        next(alarm[0] for alarm in alarms if touches(event, alarm)) - event[0]
        for event, alarms in pairs
        if any(touches(event, alarm) for alarm in alarms)
    ]
    alarms = [(alarm, one.events) for one in videos for alarm in one.alarms]
    right = sum(any(touches(event, alarm) for event in events) for alarm, events in alarms)
    normal = np.concatenate([one.labels == 0 for one in videos])
    alarmed = np.concatenate([one.alarmed for one in videos])
    hours = sum(float((one.labels == 0).mean()) * _length(one) for one in videos) / 3600
    return Figures(
        frames=len(labels),
        micro=auroc(scores, labels) if ranked else math.nan,
        macro=float(np.mean(own)) if own else math.nan,
        both=len(own),
        ap=average_precision(scores, labels) if ranked else math.nan,
        events=len(pairs),
        found=len(first),
        overlapping=tuple(float(np.mean([b >= least for b in best])) if best else math.nan for least in OVERLAPS),
        alarms=len(alarms),
        right=right,
        per_hour=(len(alarms) - right) / hours if hours else math.nan,
        in_alarm=float(alarmed[normal].mean()) if normal.any() else math.nan,
        delay=float(np.median(first)) if first else math.nan,
    )


def intervals(videos: Sequence[Watched], draws: int = DRAWS, seed: int = 0) -> dict[str, tuple[float, float] | None]:
    """95 % intervals of `micro`, `macro`, `ap` and `found`, the share of events found; None without a number.

    Videos are drawn, not frames: those of one video belong together.
    """
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {key: [] for key in ("micro", "macro", "ap", "found")}
    for taken in rng.integers(len(videos), size=(draws, len(videos))):
        one = figures([videos[number] for number in taken])
        for key in ("micro", "macro", "ap"):
            drawn[key].append(getattr(one, key))
        drawn["found"].append(one.found / one.events if one.events else math.nan)
    return {key: interval(np.array(values)) for key, values in drawn.items()}


def said_intervals(found: dict[str, tuple[float, float] | None], videos: int) -> str:
    """The sentence below a table."""
    words = {"micro": "AUROC micro", "macro": "macro", "ap": "AP", "found": "share of events found"}
    parts = [
        f"{words[key]} {low:.3f} to {high:.3f}" for key, bounds in found.items() if bounds for low, high in [bounds]
    ]
    return f"95 % intervals of all, over draws of the {videos} videos: {', '.join(parts) or 'none'}.\n"


def _length(video: Watched) -> float:
    return float(video.times[-1] - video.times[0]) if len(video.times) > 1 else 0.0


def touches(a: Span, b: Span) -> bool:
    """Whether two stretches of time share a moment."""
    return a[0] <= b[1] and b[0] <= a[1]


def overlap(a: Span, b: Span) -> float:
    """Intersection over union of two stretches of time."""
    shared = min(a[1], b[1]) - max(a[0], b[0])
    return max(0.0, shared) / (max(a[1], b[1]) - min(a[0], b[0])) if shared > 0 else 0.0


def table(rows: dict[str, Figures]) -> str:
    """A Markdown table; n/a where there is nothing to measure."""

    def said(value: float, form: str = ".3f") -> str:
        return "n/a" if math.isnan(value) else format(value, form)

    lines = [
        "| video | frames | AUROC micro | macro (videos) | AP | events found | overlap .3 / .5 | alarms right "
        "| false an hour | good frames in alarm | delay, s |",
        "| --- " * 11 + "|",
    ]
    for name, one in rows.items():
        overlaps = " / ".join(said(value, ".2f") for value in one.overlapping)
        lines.append(
            f"| {name} | {one.frames} | {said(one.micro)} | {said(one.macro)} ({one.both}) | {said(one.ap)} "
            f"| {one.found} of {one.events} | {overlaps} | {one.right} of {one.alarms} | {said(one.per_hour, '.1f')} "
            f"| {said(one.in_alarm * 100, '.1f')} % | {said(one.delay, '.1f')} |"
        )
    return "\n".join(lines) + "\n"
