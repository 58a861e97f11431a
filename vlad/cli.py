"""The `vlad` command. Each flag is a keyword of the Python function that does the work; nothing else happens here.

Results go to standard output, all else to standard error. Exit codes: 0 done, 1 some inputs failed, 2 wrong usage or
nothing could be done, 130 interrupted. Heavy imports stay inside functions, so that `vlad --help` is quick.
"""

import hashlib
import json
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import vlad

if TYPE_CHECKING:
    from vlad.batch import Line, Progress, Summary
    from vlad.detector import Detector
    from vlad.images import Found

PLAIN: dict[str, Any] = {"rich_markup_mode": None, "context_settings": {"help_option_names": ["-h", "--help"]}}
app = typer.Typer(name="vlad", add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, **PLAIN)
prompts_app = typer.Typer(no_args_is_help=True, **PLAIN)
app.add_typer(prompts_app, name="prompts", help="The words that a method looks for.")

KINDS = ("methods", "encoders", "datasets", "prompts", "suites")

Name = Annotated[str | None, typer.Option("--name", help='What the pictures show, in words: "metal bolt".')]
Encoder = Annotated[str | None, typer.Option(help="Vision-language encoder; `vlad list encoders`. [default: tiny]")]
Device = Annotated[str | None, typer.Option(help='"cpu", "cuda", ... [default: the best one here]')]
Dtype = Annotated[str | None, typer.Option(help='"float32" or "bfloat16". [default: the fastest safe one]')]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def main() -> None:
    """The entry point of the `vlad` script."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115  # None: closed by the caller
        stream.reconfigure(errors="backslashreplace")  # a file name must never break a narrow terminal
        setattr(sys, name, stream)
    app()


def _version(on: bool) -> None:
    if on:
        print(f"vlad {vlad.__version__}")
        raise typer.Exit


@app.callback()
def _vlad(version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_version)] = False) -> None:
    """Find visual anomalies with words and few or no normal pictures.

    Example: vlad score photos/ --name "metal bolt" --out results

    With VLAD_DEBUG=1 in the environment an error shows its whole traceback.
    """


@app.command()
def score(
    inputs: Annotated[list[str], typer.Argument(metavar="IMAGE|FOLDER|GLOB", help="Folders are searched whole.")],
    name: Name = None,
    method: Annotated[str | None, typer.Option(help="`vlad list methods`. [default: patch_text]")] = None,
    encoder: Encoder = None,
    prompts: Annotated[str | None, typer.Option(help="Prompt pack, a name or a TOML file. [default: winclip]")] = None,
    detector: Annotated[Path | None, typer.Option(help="A saved detector instead of method and encoder.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Scores of at least this are anomalous.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results.jsonl and overlays.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the results in --out.")] = False,
    maps: Annotated[bool, typer.Option("--maps/--no-maps", help="Write overlays into --out.")] = True,
    resolution: Annotated[int | None, typer.Option(min=1, help="Pictures are resized to this square.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures computed at once; results stay the same.")] = 8,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Score pictures: the higher, the more anomalous.

    Example: vlad score photos/ "more/*.png" --name "metal bolt" --out results
    """

    def work() -> int:
        from vlad import batch

        if resume and out is None:
            raise ValueError("--resume goes on with recorded results; say where they are with --out")
        if out is not None:
            batch.refuse_existing(out, resume)
        pictures = batch.list_pictures(inputs, out)  # before the encoder is loaded: mistakes are quick to see
        given = {"encoder": encoder, "prompts": prompts, "device": device, "dtype": dtype, "resolution": resolution}
        model, facts = _load(method, name, detector, given)
        with _progress(quiet=out is None and sys.stdout.isatty()) as advance:
            show = _printed(advance, pictures, as_json, table=out is None)
            how: dict[str, Any] = {"resume": resume, "batch_size": batch_size, "threshold": threshold, "maps": maps}
            summary = batch.score_folder(model, inputs, out, settings=facts, progress=show, **how)
        return _closing(summary, out, silent=as_json or out is None)

    _guarded(work, "" if out is None else f"; the same command with --resume goes on with {out}")


@app.command("list")
def list_(kind: Annotated[str, typer.Argument(metavar="|".join(KINDS))], as_json: AsJson = False) -> None:
    """List what is available.

    Example: vlad list methods
    """

    def work() -> int:
        if kind not in KINDS:
            raise ValueError(f"cannot list {kind!r}; known: {', '.join(KINDS)}")
        names = _names(kind)
        print(json.dumps(names) if as_json else "".join(f"{name}\n" for name in names), end="\n" if as_json else "")
        print("" if names else f"no {kind} in this version\n", end="", file=sys.stderr)
        return 0

    _guarded(work)


@prompts_app.command("show")
def show(
    pack: Annotated[str, typer.Argument(help="Prompt pack, a name or a TOML file.")] = "winclip",
    name: Name = None,
    picture: Annotated[Path | None, typer.Option(help="Also score every phrase on this picture.")] = None,
    encoder: Encoder = None,
    as_json: AsJson = False,
) -> None:
    """Print the prompts in use and, with --picture, the cosine of each phrase with it.

    Example: vlad prompts show winclip --name "metal bolt" --picture part.png
    """

    def work() -> int:
        words = vlad.PromptPack.load(pack)
        phrases = words.phrases(name) if name is not None else (list(words.normal), list(words.anomalous))
        states = dict(zip(("normal", "anomalous"), phrases, strict=True))
        cosines: dict[str, float] = {}
        if picture is not None:
            if name is None:
                raise ValueError('--picture needs to know what it shows; say it with --name "metal bolt"')
            model, _ = _load(None, name, None, {"encoder": encoder, "prompts": words})
            cosines = model.predict(picture).phrases
        if as_json:
            print(json.dumps({"pack": pack, "templates": list(words.templates), **states, "cosines": cosines}))
        else:
            _print_prompts(words.title, words.templates, states, cosines)
        return 0

    _guarded(work)


# ---- shared by the verbs --------------------------------------------------------------------------------------------


def _guarded(work: Callable[[], int], resume_hint: str = "") -> None:
    """Leaves with the exit code of `work`; what a user can cause is one sentence, never a traceback."""
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        code = work()
        print(end="", flush=True)  # so that a full disk or a closed pipe is met here and not at exit
    except KeyboardInterrupt:
        print(f"interrupted{resume_hint}", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader (head, less) has left; nothing more may be written there, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:
        code = 2
        if os.environ.get("VLAD_DEBUG") or not isinstance(error, (ValueError, TypeError, RuntimeError, OSError)):
            traceback.print_exc()
        else:
            print(f"error: {_one_line(error)}", file=sys.stderr)
    raise typer.Exit(code)


def _load(method: str | None, name: str | None, file: Path | None, given: dict[str, Any]) -> tuple["Detector", dict]:
    """The detector, and what beside its own settings it depends on."""
    from vlad.methods import method_class

    given = {key: value for key, value in given.items() if value is not None}
    if "prompts" in given:  # before the encoder: a mistake is quick to see
        given["prompts"] = vlad.PromptPack.load(given["prompts"])
    if file is None:
        method = method or "patch_text"
        if name is None and method_class(method).needs_text:
            raise ValueError(f'{method} must know what the pictures show; say it in words, such as --name "metal bolt"')
        return vlad.load(method, name, **given), {}
    if method is not None:
        raise ValueError(f"--detector {file} records its own method; leave out --method")
    detector = vlad.load(file.absolute(), name, **given)
    return detector, {"detector": hashlib.sha256(file.read_bytes()).hexdigest()}


def _names(kind: str) -> list[str]:
    from vlad import prompts, resources

    if kind == "prompts":
        return prompts.shipped()
    if kind == "suites":
        with suppress(FileNotFoundError):
            return sorted(path.stem for path in resources.resource("eval/suites").glob("*.toml"))
        return []
    return list(getattr(vlad, kind, list)())


def _print_prompts(title: str, templates: Any, states: dict[str, list[str]], cosines: dict[str, float]) -> None:
    print(title)
    print(f"\ntemplates ({len(templates)})", *templates, sep="\n  ")
    for state, phrases in states.items():
        print(f"\n{state} ({len(phrases)})")
        for phrase in phrases:
            print(f"  {cosines[phrase]:+.4f}  {phrase}" if phrase in cosines else f"  {phrase}")


def _printed(advance: "Progress", pictures: "list[Found]", as_json: bool, table: bool) -> "Progress":
    """Prints each line as it comes, as JSON or as a row of a table, and passes it on to the progress display."""
    width = min(60, max(len(_one_line(picture.source)) for picture in pictures))

    def show(line: "Line", done: int, total: int) -> None:
        if as_json:
            print(json.dumps(line), flush=True)
        elif table:
            heading = f"{'source':{width}}   score  verdict       where\n" if done == 1 else ""
            print(heading + _row(line, width), flush=True)
        advance(line, done, total)

    return show


def _row(line: "Line", width: int) -> str:
    source = f"{_one_line(line['source']):{width}}"
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
        print(f"failed: {_one_line(reason if source in reason else f'{source}: {reason}')}", file=sys.stderr)
    return 0 if not summary.failed else 1 if summary.scored or summary.skipped else 2


@contextmanager
def _progress(quiet: bool) -> "Iterator[Progress]":
    """A bar on a terminal's standard error, elsewhere a line every half minute; nothing when quiet."""
    bar = _bar() if sys.stderr.isatty() and not quiet else None
    task = bar.add_task("", total=None, rate="") if bar else None
    started = shown = time.monotonic()
    count = 0

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
        yield advance


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    # standard output is left alone: redirected, it would end up in this display and not in the user's pipe
    return Progress(*columns, console=Console(stderr=True), redirect_stdout=False)


def _one_line(text: Any) -> str:
    """The text with line breaks and other control characters written as escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(text))


if __name__ == "__main__":
    main()
