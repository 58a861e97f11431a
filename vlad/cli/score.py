"""`vlad score`: pictures in, a table, JSON lines or a folder of results out."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlad.cli.explain import KeyEnv, Remote, Rules, Who, explainer
from vlad.cli.shared import (
    AsJson,
    BatchSize,
    Device,
    Dtype,
    Encoder,
    Method,
    Name,
    Prompts,
    Rate,
    Resolution,
    guarded,
    load_detector,
    one_line,
)

if TYPE_CHECKING:
    from vlad.batch import Line, Progress, Summary
    from vlad.images import Found


def score(
    inputs: Annotated[list[str], typer.Argument(metavar="IMAGE|FOLDER|GLOB", help="Folders are searched whole.")],
    name: Name = None,
    method: Method = None,
    encoder: Encoder = None,
    prompts: Prompts = None,
    detector: Annotated[Path | None, typer.Option(help="A saved detector instead of method and encoder.")] = None,
    normals: Annotated[Path | None, typer.Option(help="Folder of good pictures to learn from first.")] = None,
    max_false_positive_rate: Rate = None,
    threshold: Annotated[float | None, typer.Option(help="Scores of at least this are anomalous.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results.jsonl and overlays.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the results in --out.")] = False,
    maps: Annotated[bool, typer.Option("--maps/--no-maps", help="Write overlays into --out.")] = True,
    explain: Annotated[bool, typer.Option("--explain", help="Add an explanation to every JSON line.")] = False,
    reasoner: Who = "clip",
    allow_remote: Remote = False,
    key_env: KeyEnv = None,
    rules: Rules = None,
    resolution: Resolution = None,
    batch_size: BatchSize = 8,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Score pictures: the higher, the more anomalous.

    Example: vlad score photos/ "more/*.png" --name "metal bolt" --out results
    """

    def work() -> int:
        from vlad import batch

        if max_false_positive_rate is not None and normals is None:
            raise ValueError("--max-false-positive-rate is a promise made with good pictures; give them with --normals")
        if resume and out is None:
            raise ValueError("--resume goes on with recorded results; say where they are with --out")
        if explain and out is None and not as_json:
            raise ValueError("--explain adds to JSON lines; print them with --json, or write them with --out FOLDER")
        if not explain and (reasoner != "clip" or rules is not None):
            raise ValueError("--reasoner and --rules are for explanations; ask for them with --explain")
        if out is not None:
            batch.refuse_existing(out, resume)
        told, about = explainer(reasoner, allow_remote, key_env, rules) if explain else (None, {})
        pictures = batch.list_pictures(inputs, out)  # before the encoder is loaded: mistakes are quick to see
        given = {"encoder": encoder, "prompts": prompts, "device": device, "dtype": dtype, "resolution": resolution}
        model, facts = load_detector(method, name, detector, given)
        if normals is not None:
            model.fit(normals, max_false_positive_rate=max_false_positive_rate)
        elif model.needs_normals and not model.references:
            raise ValueError(f"{model.method} learns from good pictures first; give them with --normals FOLDER")
        with _progress(quiet=out is None and sys.stdout.isatty()) as (advance, stage):
            if model.transductive:
                model.progress = stage
            show = _printed(advance, pictures, as_json, table=out is None)
            how: dict[str, Any] = {"resume": resume, "batch_size": batch_size, "threshold": threshold, "maps": maps}
            how["explain"] = told and partial(told, model)
            summary = batch.score_folder(model, inputs, out, settings=facts | about, progress=show, **how)
        return _closing(summary, out, silent=as_json or out is None)

    guarded(work, "" if out is None else f"; the same command with --resume goes on with {out}")


def _printed(advance: "Progress", pictures: "list[Found]", as_json: bool, table: bool) -> "Progress":
    """Prints each line as it comes, as JSON or as a row of a table, and passes it on to the progress display."""
    width = min(60, max(len(one_line(picture.source)) for picture in pictures))

    def show(line: "Line", done: int, total: int) -> None:
        if as_json:
            print(json.dumps(line), flush=True)
        elif table:
            heading = f"{'source':{width}}   score  verdict       where\n" if done == 1 else ""
            print(heading + _row(line, width), flush=True)
        advance(line, done, total)

    return show


def _row(line: "Line", width: int) -> str:
    source = f"{one_line(line['source']):{width}}"
    if line["error"] is not None:
        return f"{source}       -  failed"
    unsure = "uncalibrated" if line["threshold"] is None else "unsure"
    verdict = {True: "anomalous", False: "normal", None: unsure}[line["is_anomalous"]]
    biggest = max(line["regions"], key=lambda region: region["area"], default=None)
    where = biggest["location"] if biggest and verdict != "normal" else ""
    return f"{source}  {line['score']:.4f}  {verdict:12}  {where}".rstrip()


def _closing(summary: "Summary", out: Path | None, silent: bool) -> int:
    """Says what was done and what failed; returns the exit code."""
    if not silent:
        undecided = summary.scored - summary.anomalous - summary.normal
        verdicts = f"{summary.anomalous} anomalous, {summary.normal} normal, {undecided} without verdict"
        others = f"{len(summary.failed)} failed, {summary.skipped} recorded before"
        print(f"{summary.scored} pictures scored in {summary.seconds:.1f} s ({verdicts}), {others}: {out}")
    for source, reason in summary.failed:
        print(f"failed: {one_line(reason if source in reason else f'{source}: {reason}')}", file=sys.stderr)
    return 0 if not summary.failed else 1 if summary.scored or summary.skipped else 2


@contextmanager
def _progress(quiet: bool) -> "Iterator[tuple[Progress, Callable[[str, int, int], None]]]":
    """A bar on a terminal's standard error, elsewhere a line every half minute; nothing when quiet."""
    bar = _bar() if sys.stderr.isatty() and not quiet else None
    task = bar.add_task("", total=None, rate="") if bar else None
    started = shown = time.monotonic()
    count, current = 0, ""

    def stage(name: str, done: int, total: int) -> None:
        """What comes before the first line where pictures are scored as one set."""
        nonlocal started, shown, current
        now = time.monotonic()
        if name != current:
            current, started = name, now
            if bar:
                bar.reset(task)
        if bar:
            bar.update(task, completed=done, total=total or None, rate=name)
        elif now - shown > 30 and not quiet:
            shown = now
            left = f" of {total}, {(total - done) * (now - started) / done:.0f} s left" if total and done else ""
            print(f"{name}: {done}{left}", file=sys.stderr)

    def advance(line: "Line", done: int, total: int) -> None:
        nonlocal count, shown
        count, now = count + 1, time.monotonic()
        rate = f"{count / (now - started):.1f} pictures/s"
        if bar:
            bar.update(task, completed=done, total=total, rate=rate)
        elif now - shown > 30 and not quiet:
            shown = now
            left = (total - done) * (now - started) / count
            print(f"{done} of {total} pictures, {rate}, {left:.0f} s left", file=sys.stderr)

    with bar or nullcontext():
        yield advance, stage


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    # standard output is left alone: redirected, it would end up in this display and not in the user's pipe
    return Progress(*columns, console=Console(stderr=True), redirect_stdout=False)
