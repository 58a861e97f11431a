"""`vlad score`: pictures in, a table, JSON lines or a folder of results out."""

import json
import sys
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlad.cli import scale, video
from vlad.cli.explain import ReasonerFlags, check_explaining, explainer
from vlad.cli.progress import ProgressBar
from vlad.cli.scored import Csv, Page, shown
from vlad.cli.shared import (
    AsJson,
    BatchSize,
    DetectorFlags,
    Normals,
    Pages,
    Rate,
    SavedDetector,
    guarded,
    one_line,
    spelled_out,
)

if TYPE_CHECKING:
    from vlad.detector import Detector
    from vlad.folder import Progress, Summary
    from vlad.images.listing import Found
    from vlad.records import Line

SECOND_STEP = (
    "tiny is a demonstration encoder; a CLIP trained on photographs finds more from words: "
    "vlad fetch ViT-B-16-plus-240/laion400m_e32, then --encoder with that name (--quiet: not this line)"
)
Threshold = Annotated[
    str | None,
    typer.Option(
        metavar="T|auto",
        help="Scores of at least this are anomalous; auto: where the scores of 10 pictures or more part in two groups.",
    ),
]


@dataclass(frozen=True)
class OutFlags:
    """What is written, and where."""

    out: Annotated[Path | None, typer.Option(help="Folder for results.jsonl and overlays.")] = None
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the results in --out.")] = False
    maps: Annotated[bool, typer.Option("--maps/--no-maps", help="Write overlays into --out.")] = True
    save_maps: Annotated[
        str | None, typer.Option(metavar="npy|tiff", help="Write the maps as numbers into --out too.")
    ] = None
    overlay_side: Annotated[int, typer.Option(min=64, metavar="PX", help="Of overlays, at most.")] = 1600
    masks: Annotated[bool, typer.Option("--masks", help="Write masks of what reaches the map's threshold.")] = False
    csv: Csv = False
    page: Page = False

    def check(self, sharded: bool) -> None:
        """ValueError where something is to be written and no folder is named, or it holds results already."""
        from vlad import folder

        if self.resume and self.out is None:
            raise ValueError("--resume goes on with recorded results; say where they are with --out")
        if self.out is None and (self.csv or self.page or self.save_maps or self.masks):
            raise ValueError("--csv, --page, --save-maps and --masks write files; say where to with --out FOLDER")
        if self.out is not None and not sharded:
            folder.refuse_existing(self.out, self.resume)


@spelled_out
def score(
    inputs: Annotated[list[str], typer.Argument(metavar="IMAGE|FOLDER|GLOB", help="Folders are searched whole.")],
    flags: DetectorFlags,
    into: OutFlags,
    speaker: ReasonerFlags,
    times: video.ClipFlags,
    shards: scale.ShardFlags,
    detector: SavedDetector = None,
    normals: Normals = None,
    max_false_positive_rate: Rate = None,
    threshold: Threshold = None,
    explain: Annotated[bool, typer.Option("--explain", help="Add an explanation to every JSON line.")] = False,
    alarm: video.Alarm = None,
    annotate: video.Annotate = False,
    pages: Pages = None,
    batch_size: BatchSize = 8,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No advice about encoders.")] = False,
) -> None:
    """Score pictures or clips: the higher, the more anomalous.

    Example: vlad score photos/ "more/*.png" --name "metal bolt" --out results

    A clip, with events: vlad score belt.mp4 --every 0.5s --detector belt.safetensors --out results

    A pile of which nobody knows what is good: vlad score pile/ --method musc --threshold auto
    """

    def work() -> int:
        from vlad import folder

        if max_false_positive_rate is not None and normals is None:
            raise ValueError("--max-false-positive-rate is a promise made with good pictures; give them with --normals")
        cut, out = _parsed(threshold), into.out
        _check_explaining(explain, speaker, out is not None or as_json, cut)
        into.check(shards.asked)
        clips, when = video.are_clips(inputs, times.source_fps), times.timing()  # before the encoder: quick to see
        asked = video.witness(speaker, flags.name, times.rules_every) if explain and clips else None
        told, about = explainer(speaker) if explain else (None, {})
        shards.check(out, clips or explain or into.csv or into.page, inputs)
        pictures = [] if clips or shards.asked else folder.list_pictures(inputs, out, pages=pages or "first")
        model, facts = flags.load(detector, pages=pages)
        _learn(model, normals, max_false_positive_rate)
        how: dict[str, Any] = {"threshold": cut, "resume": into.resume, "batch_size": batch_size, "maps": into.maps}
        if clips:
            how |= {"settings": facts | about, "video": annotate, "witness": asked}
            return video.score_clips(model, inputs, out, when, as_json, alarms=alarm, **how)
        how |= {key: getattr(into, key) for key in ("save_maps", "masks", "overlay_side")}
        if shards.asked:
            how |= {"settings": facts, "device": flags.device}
            return _closing(scale.score_shards(model, inputs, out, shards, **how), out, silent=as_json)
        how["explain"] = told and partial(told, model)
        summary = _scored(model, inputs, out, pictures, as_json, settings=facts | about, **how)
        if out is not None:
            shown(out, into.csv, into.page, silent=as_json)
            if model.encoder.name == "tiny" and not (model.references or into.resume or as_json or quiet):
                print(SECOND_STEP, file=sys.stderr)
        return _closing(summary, out, silent=as_json or out is None)

    guarded(work, "" if into.out is None else f"; the same command with --resume goes on with {into.out}")


def _scored(
    model: "Detector", inputs: list[str], out: Path | None, pictures: "list[Found]", as_json: bool, **how: Any
) -> "Summary":
    """Scores the pictures and prints their lines as they come, or with --threshold auto once all are scored."""
    from vlad.folder import score_folder
    from vlad.folder.lines import line_of
    from vlad.images import ImageError
    from vlad.images.listing import left_out_line

    held: list[Line] | None = [] if how["threshold"] == "auto" else None
    with ProgressBar("pictures", quiet=out is None and sys.stdout.isatty()) as advance:
        if model.transductive:
            model.report_progress(lambda name, done, total: advance(name, done, total or len(pictures)))
        show = _printed(lambda _, done, total: advance("", done, total), pictures, as_json, out is None, held)
        summary = score_folder(model, inputs, out, progress=show, **how)
    if held is not None:
        summary = _decided(summary, held, _printed(lambda *_: None, pictures, as_json, out is None), as_json)
    if as_json and (said := left_out_line(summary.left_out)):
        line = line_of("", ImageError(said), model.name)
        print(json.dumps({**line, "source": None, "left_out": summary.left_out}))
    return summary


def _check_explaining(asked: bool, speaker: ReasonerFlags, shown: bool, cut: float | str | None) -> None:
    """ValueError where --explain and the other flags do not go together."""
    check_explaining(asked, speaker)
    if asked and not shown:
        raise ValueError("--explain adds to JSON lines; print them with --json, or write them with --out FOLDER")
    if asked and cut == "auto":
        raise ValueError("--threshold auto decides when all are scored and --explain as it goes; leave one of them out")


def _learn(model: "Detector", normals: Any, rate: float | None) -> None:
    """Fits on good pictures where there are any; ValueError where there are none and the method needs them."""
    if normals is not None:
        model.fit(normals, max_false_positive_rate=rate)
    elif model.scorer.needs_normals and not model.references:
        raise ValueError(f"{model.method} learns from good pictures first; give them with --normals FOLDER")


def _parsed(threshold: str | None) -> float | str | None:
    if threshold is None or threshold == "auto":
        return threshold
    try:
        return float(threshold)
    except ValueError:
        raise ValueError(f"--threshold is {threshold!r}; expected a score such as 0.4, or auto") from None


def _printed(
    advance: "Progress", pictures: "list[Found]", as_json: bool, table: bool, held: "list[Line] | None" = None
) -> "Progress":
    """Prints each line as it comes, as JSON or as a row of a table, and passes it on to the progress display.

    With `held` lines go there and are not printed: they have no verdict yet.
    """
    width = min(60, max(len(one_line(picture.source)) for picture in pictures))

    def show(line: "Line", done: int, total: int) -> None:
        if held is not None:
            held.append(line)
        elif as_json:
            print(json.dumps(line), flush=True)
        elif table:
            heading = f"{'source':{width}}   score  verdict       where\n" if done == 1 else ""
            print(heading + _row(line, width), flush=True)
        advance(line, done, total)

    return show


def _decided(summary: "Summary", held: "list[Line]", show: "Progress", as_json: bool) -> "Summary":
    """Shows the lines once the scores have been cut where they part, says how, and counts the verdicts."""
    from vlad.folder.lines import judged

    made = summary.decided
    assert made is not None
    lines = [judged(line, made.threshold) for line in held]
    for done, line in enumerate(lines, 1):
        show(line, done, len(lines))
    cut = "no threshold" if made.threshold is None else f"threshold {made.threshold:.4f} by {made.method}"
    print(f"{cut}: {made.note}", file=sys.stderr if as_json else sys.stdout)
    counts = Counter(line["verdict"] for line in lines if line["error"] is None)
    return replace(summary, verdicts=dict(counts))


def _row(line: "Line", width: int) -> str:
    source = f"{one_line(line['source']):{width}}"
    if line["error"] is not None:
        return f"{source}       -  failed"
    verdict = line["verdict"]
    biggest = max(line["regions"], key=lambda region: region["area"], default=None)
    where = biggest["location"] if biggest and verdict != "normal" else ""
    return f"{source}  {line['score']:.4f}  {verdict:12}  {where}".rstrip()


def _closing(summary: "Summary", out: Path | None, silent: bool) -> int:
    """Says what was done and what failed; returns the exit code."""
    if not silent:
        always = dict.fromkeys(("anomalous", "normal"), 0)
        verdicts = ", ".join(f"{count} {word}" for word, count in {**always, **summary.verdicts}.items())
        others = f"{len(summary.failed)} failed, {summary.skipped} recorded before"
        print(f"{summary.scored} pictures scored in {summary.seconds:.1f} s ({verdicts}), {others}: {out}")
    from vlad.images.listing import left_out_line

    for said in (left_out_line(summary.left_out), summary.unlike):
        if said:
            print(said, file=sys.stderr)
    for source, reason in summary.failed:
        print(f"failed: {one_line(reason if source in reason else f'{source}: {reason}')}", file=sys.stderr)
    return 0 if not summary.failed else 1 if summary.scored or summary.skipped else 2
