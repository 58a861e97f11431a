"""Clips and cameras: what `vlad score` and `vlad fit` do with them, and `vlad watch`."""

import json
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlad.cli.explain import ReasonerFlags, check_explaining
from vlad.cli.progress import ProgressBar
from vlad.cli.shared import AsJson, DetectorFlags, guarded, one_line, spelled_out

if TYPE_CHECKING:
    from vlad.detector import Detector
    from vlad.video.scoring import Timing, VideoSummary
    from vlad.video.witness import Witness

Every = Annotated[str | None, typer.Option(metavar="TIME", help="Of clips: a frame each 0.5s (the default), 2m, ...")]
From = Annotated[str | None, typer.Option("--from", metavar="TIME", help="Of clips: where to begin, 00:10.")]
To = Annotated[str | None, typer.Option(metavar="TIME", help="Of clips: where to end, 1:02:03.5.")]
Smooth = Annotated[str | None, typer.Option(metavar="TIME", help="Of clips: time constant of smoothing. [default: 1s]")]
MinEvent = Annotated[str | None, typer.Option(metavar="TIME", help="Of clips: shorter events are dropped.")]
Gap = Annotated[str | None, typer.Option(metavar="TIME", help="Of clips: calm that an event bridges. [default: 1s]")]
SourceFps = Annotated[float | None, typer.Option(metavar="N", help="Pictures a second: the folder is a clip.")]
Alarm = Annotated[list[str] | None, typer.Option(help='What to look for: "a box that has fallen"; repeatable.')]
Annotate = Annotated[bool, typer.Option("--video", help="Of clips: write annotated.mp4 into --out too.")]
RulesEvery = Annotated[
    str | None, typer.Option(metavar="TIME", help="Of clips, with --explain: ask so often whether --rules hold.")
]
Block = Annotated[
    str | None, typer.Option(metavar="TIME", help="Of clips: longer than a part stays in view. [default: 10s]")
]


@dataclass(frozen=True)
class EventFlags:
    """What the flags say of time, of a camera's too; those left out are the usual ones."""

    every: Every = None
    smooth: Smooth = None
    min_event: MinEvent = None
    gap: Gap = None

    def timing(self) -> "Timing":
        """The same in seconds."""
        return timing(every=self.every, smooth=self.smooth, least=self.min_event, gap=self.gap)


@dataclass(frozen=True)
class ClipFlags(EventFlags):
    """The same of clips, which have a beginning and an end."""

    begin: From = None
    to: To = None
    source_fps: SourceFps = None
    rules_every: RulesEvery = None

    def timing(self) -> "Timing":
        ends = timing(start=self.begin, end=self.to)
        return replace(super().timing(), start=ends.start, end=ends.end, source_fps=self.source_fps)


def timing(**texts: str | None) -> "Timing":
    """The fields of `Timing` as people write them."""
    from vlad.video.reading import seconds
    from vlad.video.scoring import Timing

    return Timing(**{key: seconds(text) for key, text in texts.items() if text is not None})


def are_clips(inputs: list[str], source_fps: float | None) -> bool:
    """Whether the inputs are clips; ValueError where some are and some are not."""
    from vlad.video.reading import is_video

    clips = [source_fps is not None or is_video(one) for one in inputs]
    if any(clips) and not all(clips):
        raise ValueError("clips have times and pictures have none; score them in runs of their own")
    return any(clips)


def with_alarms(detector: "Detector", alarms: list[str] | None) -> tuple[str, ...]:
    """Puts words of alarms in the place of the pack's anomalous ones; the phrases by which predictions call them.

    Raises:
        ValueError: the method has no words, or the detector no name.
    """
    if not alarms:
        return ()
    if detector.scorer.words == "none" or detector.name is None:
        raise ValueError('--alarm says what to look for: it needs a method with words, and --name "conveyor belt"')
    phrases = [text if "{}" in text else f"{{}} with {text}" for text in alarms]
    detector.describe(detector.name, {"normal": ["{}", "{} as usual"], "anomalous": phrases})
    return tuple(phrase.replace("{}", detector.name) for phrase in phrases)


def score_clips(
    detector: "Detector",
    inputs: list[str],
    out: Path | None,
    when: "Timing",
    as_json: bool,
    alarms: list[str] | None,
    **how: Any,
) -> int:
    """Scores clips and says what was found; the exit code."""
    from vlad.video.scoring import score_video

    if isinstance(how["threshold"], str):
        raise ValueError("--threshold auto is for a pile of pictures; give a clip a number, or fit on good clips")
    how["alarms"] = with_alarms(detector, alarms)

    with ProgressBar("frames", quiet=as_json or out is None) as advance:

        def show(line: Any, done: int, total: int) -> None:
            if as_json:
                print(json.dumps(line), flush=True)
            advance("", done, total)

        summary = score_video(detector, inputs, out, timing=when, progress=show, **how)
    for error in how["witness"].errors if how["witness"] else ():
        print(f"{how['witness'].reasoner.name}: {one_line(error)}", file=sys.stderr)
    cut = detector.threshold if how["threshold"] is None else how["threshold"]
    return _closing(summary, out, cut is not None, as_json)


def _closing(summary: "VideoSummary", out: Path | None, ruled: bool, as_json: bool) -> int:
    from vlad.video.reading import clock

    said = sys.stderr if as_json else sys.stdout
    for event in summary.events:
        where = f", {event.region.location}" if event.region else ""
        words = f", {one_line(event.phrase)}" if event.phrase else ""
        span = f"{clock(event.start)} to {clock(event.end)}"
        words += answered(event.confirmed, event.broken)
        print(f"event {event.id}: {one_line(event.source)} {span}, peak {event.peak:.4g}{where}{words}", file=said)
    place = f": {out}" if out else ""
    count = len(summary.events)
    events = f"{count} event{'' if count == 1 else 's'}" if ruled else "no threshold, so no events"
    print(f"{summary.frames} frames scored in {summary.seconds:.1f} s, {events}{place}", file=said)
    for note in summary.notes:
        print(one_line(note), file=sys.stderr)
    for source, reason in summary.failed:
        print(f"failed: {one_line(reason if source in reason else f'{source}: {reason}')}", file=sys.stderr)
    return 0 if not summary.failed else 1 if summary.frames or summary.skipped else 2


@dataclass(frozen=True)
class GoodClipFlags:
    """How good clips are learnt from, each 10 s of which count as one normal."""

    every: Every = None
    smooth: Smooth = None
    block: Block = None

    def fit(self, detector: "Detector", inputs: list[str], rate: float | None) -> None:
        """Learns from the clips."""
        from vlad.video.fitting import BLOCK, fit_clips
        from vlad.video.reading import seconds

        block = BLOCK if self.block is None else seconds(self.block)
        when = timing(every=self.every or "1s", smooth=self.smooth)
        fit_clips(detector, inputs, timing=when, block=block, rate=rate)


def witness(speaker: ReasonerFlags, name: str | None, every: str | None = None) -> "Witness":
    """Who is asked about events, and by which rules.

    Raises:
        ValueError: no language model is named, or rules are to be asked of and there are none.
        ReasonerError: the model does not load.
    """
    from vlad.explain.reasoners import Unusable
    from vlad.explain.reasoners.protocol import ReasonerError
    from vlad.explain.rules import read_rules
    from vlad.video.reading import seconds
    from vlad.video.witness import Witness

    who, rules = speaker.model(), read_rules(speaker.rules)
    if who is None:
        raise ValueError("events are explained by a language model: --reasoner hf:FOLDER or openai:MODEL@URL")
    if isinstance(who, Unusable):
        raise ReasonerError(who.reason)
    if every is not None and not rules:
        raise ValueError("--rules-every asks whether rules hold; give them with --rules FILE")
    return Witness(who, name, rules, None if every is None else seconds(every))


@spelled_out
def watch(
    source: Annotated[str, typer.Argument(metavar="camera:0|rtsp://...|FILE")],
    flags: DetectorFlags,
    speaker: ReasonerFlags,
    times: EventFlags,
    detector: Annotated[Path | None, typer.Option(help="A saved detector, as `vlad fit good.mp4` writes it.")] = None,
    alarm: Alarm = None,
    threshold: Annotated[float | None, typer.Option(help="Smoothed scores of at least this open an event.")] = None,
    until: Annotated[str | None, typer.Option("--for", metavar="TIME", help="Stop after this long.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder: events.jsonl grows there.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Ask --reasoner about each event.")] = False,
    as_json: AsJson = False,
) -> None:
    """Watch a camera: always the newest frame, events as they open and close; Ctrl-C ends it cleanly.

    Example: vlad watch rtsp://camera/1 --detector belt.safetensors --json | your-program
    """

    def work() -> int:
        from vlad import records
        from vlad.video.events import whole_events
        from vlad.video.reading import seconds
        from vlad.video.scoring import EVENTS
        from vlad.video.watching import watch as watching

        check_explaining(explain, speaker)
        asked = witness(speaker, flags.name) if explain else None
        model, _ = flags.load(detector)
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):  # a service is stopped as cleanly as by hand
            signal.signal(number, lambda *_: stop.set())
        how: dict[str, Any] = {"timing": times.timing(), "threshold": threshold}
        how |= {"alarms": with_alarms(model, alarm), "until": None if until is None else seconds(until), "stop": stop}
        how["witness"] = asked
        with records.locked(out) if out is not None else nullcontext():
            if out is not None:
                before = whole_events(out / EVENTS)
                records.keep(out / EVENTS, before)
                how["after"] = max((line["event"] for line in before), default=0)
            for one in watching(model, source, **how):
                _say(one.kind, one.line, as_json)
                if out is not None and one.kind in ("closed", "answered"):
                    list(records.append([one.line], out / EVENTS))
        for error in asked.errors if asked else ():
            print(f"{speaker.reasoner}: {one_line(error)}", file=sys.stderr)
        return 130 if stop.is_set() else 0

    guarded(work)


def _say(kind: str, line: Any, as_json: bool) -> None:
    """A line of JSON for a program, or a few words for a person, who is not shown every frame."""
    if as_json:
        print(json.dumps(line), flush=True)
    elif kind == "camera":
        print(f"camera {line['camera']}: {one_line(line.get('why', line['source']))}", file=sys.stderr)
    elif kind == "watched":
        took = f"a line {line['latency']:.3f} s after its frame in the mean, {line['slowest']:.3f} s at most"
        print(
            f"{line['frames']} frames scored, {line['dropped']} dropped in {line['seconds']:.1f} s: {took}",
            file=sys.stderr,
        )
    elif kind == "answered":
        print(f"{line['clock']} event {line['event']}{answered(line['confirmed'], line['broken'])}", flush=True)
    elif kind in ("opened", "closed"):
        print(f"{line['clock']} event {line['event']} {kind}: peak {line['peak']:.4g}", flush=True)


def answered(confirmed: float | None, broken: Sequence[str]) -> str:
    """What a language model said of an event, to stand behind its name."""
    words = "" if confirmed is None else f", confirmed {confirmed:.2f}"
    return words + (f", breaks {', '.join(broken)}" if broken else "")
