"""`vlad eval`: a suite, or detectors given by flags, on data sets given by --data; a report as table, JSON or page."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlad.cli.progress import ProgressBar
from vlad.cli.shared import Ignore, Roi, framed, guarded, many_lines

if TYPE_CHECKING:
    from vlad.evaluate.suites import Suite
    from vlad.report import Report

Data = Annotated[list[str] | None, typer.Option(metavar="NAME:ROOT", help="A data set; `vlad list datasets`.")]
Method = Annotated[
    list[str] | None, typer.Option(help="`vlad list methods`, a saved detector, or a CSV of scores; may be repeated.")
]
Encoders = Annotated[list[str] | None, typer.Option(help="May be repeated. [default: tiny]")]
Prompts = Annotated[list[str] | None, typer.Option(help="Prompt pack; may be repeated. [default: the method's]")]
TABLES = ("text", "markdown", "latex")


def eval_(
    suite: Annotated[str | None, typer.Argument(metavar="[SUITE.toml]", help="`vlad list suites`, or a file.")] = None,
    data: Data = None,
    method: Method = None,
    encoder: Encoders = None,
    prompts: Prompts = None,
    adapter: Annotated[Path | None, typer.Option(help="Learned weights of the methods that have them.")] = None,
    name: Annotated[
        str | None, typer.Option(help="What all pictures show, in words. [default: the data set's; a saved one's own]")
    ] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="Normal pictures to fit on. [default: 0]")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Draws of these pictures. [default: 5]")] = None,
    metric_size: Annotated[str | None, typer.Option(help='"native", or a square\'s side in pixels.')] = None,
    corrupt: Annotated[bool, typer.Option("--corrupt", help="Also on changed pictures, severities 1, 3, 5.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the report; a killed run goes on there.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
    table: Annotated[str, typer.Option(metavar="text|markdown|latex", help="How the table is printed.")] = "text",
    force: Annotated[bool, typer.Option("--force", help="Evaluate on training data too; the report says so.")] = False,
    resolution: Annotated[int | None, typer.Option(min=1, help="Pictures are resized to this square.")] = None,
    roi: Roi = None,
    ignore: Ignore = None,
    bootstrap: Annotated[
        int | None, typer.Option(min=0, help="Draws for the intervals; 0 for none. [default: 1000]")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures computed at once; results stay the same.")] = 8,
    device: Annotated[str | None, typer.Option(help='"cpu", "cuda", ... [default: the best one here]')] = None,
    dtype: Annotated[str | None, typer.Option(help='"float32" or "bfloat16". [default: the fastest safe one]')] = None,
) -> None:
    """Measure detectors on labelled pictures.

    Example: vlad eval real-smoke --data folder:../shared/data --out report
    """

    def work() -> int:
        from vlad.evaluate.run_suite import places, run_suite

        if table not in TABLES:
            raise ValueError(f"--table is {table!r}; known: {', '.join(TABLES)}")
        flags = {"encoder": encoder, "prompts": prompts, "adapter": adapter, "resolution": resolution}
        plan = _suite(suite, method, data, **flags, **framed(roi, ignore))
        if missing := places(plan, data or [])[1]:
            print(f"left out, not given with --data: {', '.join(missing)}", file=sys.stderr)
        how: dict[str, Any] = {"shots": shots, "seeds": seeds, "bootstrap": bootstrap}
        how |= {"metric_size": _size(metric_size), "names": name}
        if corrupt and not plan.how.get("corrupt"):
            from vlad.datasets.corrupt import CORRUPTIONS

            how["corrupt"] = list(CORRUPTIONS)
        how = {key: value for key, value in how.items() if value is not None}
        how |= {"force": force, "batch_size": batch_size, "device": device, "dtype": dtype}
        with ProgressBar("pictures", stages=True) as show:
            report = run_suite(plan, data or [], out=out, progress=show, **how)
        print(
            json.dumps(_jsonable(report), allow_nan=False)
            if as_json
            else many_lines(_table(report, table).rstrip("\n"))
        )
        if out is not None:
            report.save(out)
            print(f"written: {out / 'report.html'}, report.json, report.csv", file=sys.stderr)
        return 0

    guarded(work, "" if out is None else f"; the same command goes on with {out}")


def _suite(name: str | None, methods: list[str] | None, data: list[str] | None, **flags: Any) -> "Suite":
    """The suite asked for, or one made of the flags."""
    from vlad.evaluate.suites import crossed, load

    if name is not None:
        given = [f"--{key}" for key, value in {"method": methods, **flags}.items() if value]
        if given:
            raise ValueError(f"a suite names its own detectors; leave out {', '.join(given)}")
        return load(name)
    if not data:
        raise ValueError("nothing to evaluate on; give a suite, or --data NAME:ROOT such as --data folder:pictures")
    encoders, prompts = flags.pop("encoder") or (), flags.pop("prompts") or ()
    return crossed(methods or (), encoders, prompts, data, **flags)


def _size(given: str | None) -> str | int | None:
    if given is None or given == "native":
        return given
    if not given.isdecimal():
        raise ValueError(f'--metric-size is {given}; expected "native" or the side of a square in pixels, such as 518')
    return int(given)


def _table(report: "Report", kind: str) -> str:
    return {"text": report.table, "markdown": report.to_markdown, "latex": report.to_latex}[kind]()


def _jsonable(report: "Report") -> dict[str, Any]:
    from vlad.report.values import plain

    return plain(report.to_dict())
