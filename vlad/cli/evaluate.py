"""`vlad eval`: a suite, or detectors given by flags, on data sets given by --data; a report as table, JSON or page."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from vlad.cli.progress import ProgressBar
from vlad.cli.scale import Ray, Workers
from vlad.cli.shared import (
    PLAIN,
    AsJson,
    BatchSize,
    Device,
    Dtype,
    FramingFlags,
    Resolution,
    Split,
    guarded,
    many_lines,
    spelled_out,
)

if TYPE_CHECKING:
    from vlad.evaluate.suites import Suite
    from vlad.report import Report

Data = Annotated[list[str] | None, typer.Option(metavar="NAME:ROOT", help="A data set; `vlad list datasets`.")]
Method = Annotated[
    list[str] | None, typer.Option(help="`vlad list methods`, a saved detector, or a table of scores; may be repeated.")
]
Encoders = Annotated[list[str] | None, typer.Option(help="May be repeated. [default: tiny]")]
Prompts = Annotated[list[str] | None, typer.Option(help="Prompt pack; may be repeated. [default: the method's]")]
Table = Annotated[str, typer.Option(metavar="text|markdown|latex", help="How the table is printed.")]
MetricSize = Annotated[str | None, typer.Option(help='"native", or a square\'s side in pixels.')]
Bootstrap = Annotated[int | None, typer.Option(min=0, help="Draws for the intervals; 0 for none. [default: 1000]")]
TABLES = ("text", "markdown", "latex")


class Evals(TyperGroup):
    """`vlad eval` and its further verbs; what names none of them is a plain evaluation."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """As click's, with "run" before all that is no verb."""
        return super().parse_args(ctx, args if args and args[0] in self.commands else ["run", *args])


eval_app = typer.Typer(cls=Evals, **PLAIN)


@eval_app.command("run")
@spelled_out
def run(
    framed: FramingFlags,
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
    metric_size: MetricSize = None,
    save_maps: Annotated[bool, typer.Option("--save-maps", help="Write the maps to OUT/maps too, as .npy.")] = False,
    paper_metrics: Annotated[
        bool, typer.Option("--paper-metrics", help="Also AUPRO as papers' programs have it.")
    ] = False,
    corrupt: Annotated[bool, typer.Option("--corrupt", help="Also on changed pictures, severities 1, 3, 5.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the report; a killed run goes on there.")] = None,
    as_json: AsJson = False,
    table: Table = "text",
    force: Annotated[bool, typer.Option("--force", help="Evaluate on training data too; the report says so.")] = False,
    subset: Annotated[
        bool, typer.Option("--subset", help="Also where published values belong to a whole data set.")
    ] = False,
    resolution: Resolution = None,
    bootstrap: Bootstrap = None,
    batch_size: BatchSize = 8,
    device: Device = None,
    dtype: Dtype = None,
    ray: Ray = None,
    workers: Workers = None,
) -> None:
    """Measure detectors on labelled pictures. `vlad eval cross` learns them first, `vlad eval join` joins reports.

    Example: vlad eval real-smoke --data folder:../shared/data --out report
    """

    def work() -> int:
        from vlad.evaluate.run_suite import places, run_suite

        _check(table)
        flags = {"encoder": encoder, "prompts": prompts, "adapter": adapter, "resolution": resolution}
        plan = _suite(suite, method, data, **flags, **framed.options())
        if missing := places(plan, data or [])[1]:
            print(f"left out, not given with --data: {', '.join(missing)}", file=sys.stderr)
        how: dict[str, Any] = {"shots": shots, "seeds": seeds, "bootstrap": bootstrap, "names": name}
        how |= {"metric_size": _size(metric_size)}
        how |= {"corrupt": None if plan.how.get("corrupt") or not corrupt else _corruptions()}
        how |= {"save_maps": _maps(out) if save_maps else None, "paper_metrics": paper_metrics or None}
        how = {key: value for key, value in how.items() if value is not None}
        how |= {"subset": subset, "force": force, "batch_size": batch_size, "device": device, "dtype": dtype}
        how |= {"ray": ray, "workers": workers}
        with ProgressBar("pictures", stages=True) as show:
            report = run_suite(plan, data or [], out=out, progress=show, **how)
        shown(report, out, as_json, _table(report, table))
        return 0

    guarded(work, "" if out is None else f"; the same command goes on with {out}")


@eval_app.command("cross")
def cross(
    recipe: Annotated[list[str], typer.Option(help="`vlad list recipes`, or a file; may be repeated.")],
    out: Annotated[Path, typer.Option(help="Folder for what is learned and the report; a killed run goes on there.")],
    learn: Annotated[list[str] | None, typer.Option(metavar="NAME:ROOT", help="Learned from, all together.")] = None,
    test: Annotated[list[str] | None, typer.Option(metavar="NAME:ROOT", help="Tested on; may be repeated.")] = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="Learn from each set alone, test on all others.")] = False,
    method: Annotated[list[str] | None, typer.Option(help="Measured beside, untrained; may be repeated.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Instead of the recipes'; `vlad list encoders`.")] = None,
    split: Split = None,
    metric_size: MetricSize = None,
    bootstrap: Bootstrap = None,
    as_json: AsJson = False,
    table: Table = "text",
    batch_size: BatchSize = 8,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Learn on one data set and measure on others; what was learned is kept in OUT/learned.

    Example: vlad eval cross --recipe anomalyclip --encoder tiny --learn folder:mtd --test folder:cookies --out report
    """

    def work() -> int:
        from vlad.evaluate.cross import cross as run_cross

        _check(table)
        how: dict[str, Any] = {"bootstrap": bootstrap, "metric_size": _size(metric_size)}
        how = {key: value for key, value in how.items() if value is not None} | {"batch_size": batch_size}
        how |= {"encoder": encoder, "split": split, "device": device, "dtype": dtype}
        with ProgressBar("pictures", stages=True) as show:
            report = run_cross(
                recipe, learn or [], test or [], out, pairs=pairs, methods=method or [], progress=show, **how
            )
        shown(report, out, as_json, report.by_dataset(kind=table))
        return 0

    guarded(work, f"; the same command goes on with {out}")


@eval_app.command("join")
def join(
    reports: Annotated[list[Path], typer.Argument(metavar="REPORT...", help="Folders that `vlad eval --out` wrote.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the joined report.")] = None,
    as_json: AsJson = False,
    table: Table = "text",
) -> None:
    """Make one report of several: other detectors on the same pictures, or the same ones on others.

    Example: vlad eval join report-a report-b --out joined
    """

    def work() -> int:
        from vlad.report import Report

        _check(table)
        report = Report.join(reports)
        shown(report, out, as_json, _table(report, table))
        return 0

    guarded(work)


def shown(report: "Report", out: Path | None, as_json: bool, table: str) -> None:
    """Prints the table, or all as JSON, and writes the report where it is asked for."""
    print(json.dumps(_jsonable(report), allow_nan=False) if as_json else many_lines(table.rstrip("\n")))
    if out is not None:
        report.save(out)
        print(f"written: {out / 'report.html'}, report.json, report.csv", file=sys.stderr)


def _check(table: str) -> None:
    if table not in TABLES:
        raise ValueError(f"--table is {table!r}; known: {', '.join(TABLES)}")


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


def _corruptions() -> list[str]:
    from vlad.datasets.corrupt import CORRUPTIONS

    return list(CORRUPTIONS)


def _maps(out: Path | None) -> Path:
    if out is None:
        raise ValueError("--save-maps writes into the folder of the report; give it with --out")
    return out / "maps"


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
