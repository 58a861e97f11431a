"""`vlad eval`: a suite, or detectors given by flags, on data sets given by --data; a report as table, JSON or page."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlad.cli.shared import guarded

if TYPE_CHECKING:
    from vlad.evaluate.suites import Suite
    from vlad.report import Report

Data = Annotated[list[str] | None, typer.Option(metavar="NAME:ROOT", help="A data set; `vlad list datasets`.")]
Method = Annotated[list[str] | None, typer.Option(help="`vlad list methods`, or a saved detector; may be repeated.")]
Encoders = Annotated[list[str] | None, typer.Option(help="May be repeated. [default: tiny]")]
Prompts = Annotated[list[str] | None, typer.Option(help="Prompt pack; may be repeated. [default: the method's]")]


def eval_(
    suite: Annotated[str | None, typer.Argument(metavar="[SUITE.toml]", help="`vlad list suites`, or a file.")] = None,
    data: Data = None,
    method: Method = None,
    encoder: Encoders = None,
    prompts: Prompts = None,
    adapter: Annotated[Path | None, typer.Option(help="Learned weights of the methods that have them.")] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="Normal pictures to fit on. [default: 0]")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Draws of these pictures. [default: 5]")] = None,
    metric_size: Annotated[str | None, typer.Option(help='"native", or a square\'s side in pixels.')] = None,
    corrupt: Annotated[bool, typer.Option("--corrupt", help="Also on changed pictures, severities 1, 3, 5.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the report; a killed run goes on there.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Evaluate on training data too; the report says so.")] = False,
    resolution: Annotated[int | None, typer.Option(min=1, help="Pictures are resized to this square.")] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Draws for the intervals; 0 for none.")] = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures computed at once; results stay the same.")] = 8,
    device: Annotated[str | None, typer.Option(help='"cpu", "cuda", ... [default: the best one here]')] = None,
    dtype: Annotated[str | None, typer.Option(help='"float32" or "bfloat16". [default: the fastest safe one]')] = None,
) -> None:
    """Measure detectors on labelled pictures.

    Example: vlad eval real-smoke --data folder:../shared/data --out report
    """

    def work() -> int:
        loaded = {"device": device, "dtype": dtype}
        flags = {"encoder": encoder, "prompts": prompts, "adapter": adapter, "resolution": resolution}
        plan = _suite(suite, method, data, flags)
        how: dict[str, Any] = {"shots": shots, "seeds": seeds, "metric_size": _size(metric_size)}
        how = {**plan.how, **{key: value for key, value in how.items() if value is not None}}
        if corrupt and not how.get("corrupt"):
            from vlad.datasets.corrupt import CORRUPTIONS

            how["corrupt"] = list(CORRUPTIONS)
        how |= {"force": force, "bootstrap": bootstrap, "batch_size": batch_size, "progress": _progress()}
        report = run(plan, data or [], how, loaded, out)
        print(json.dumps(_jsonable(report), allow_nan=False) if as_json else report.table())
        if out is not None:
            report.save(out)
            print(f"written: {out / 'report.html'}, report.json, report.csv", file=sys.stderr)
        return 0

    guarded(work, "" if out is None else f"; the same command goes on with {out}")


def run(suite: "Suite", data: list[str], how: dict[str, Any], loaded: dict[str, Any], out: Path | None) -> "Report":
    """The report of a suite on the data sets that are there.

    Args:
        data: NAME:ROOT of each; those of the suite that are missing are left out and named.
        how: keywords of `vlad.evaluate`.
        loaded: keywords of every detector's encoder ("device", "dtype").

    Raises:
        ValueError: a data set that the suite does not have, or none at all.
    """
    from vlad.evaluate import evaluate
    from vlad.report.summary import joined

    specs = _specs(suite, data)
    runs: dict[str, tuple[list[dict[str, Any]], list[str]]] = {}
    for name, spec in specs:
        detectors = suite.detectors_for(name)
        runs.setdefault(json.dumps(detectors, sort_keys=True, default=str), (detectors, []))[1].append(spec)
    encoders: dict[Any, Any] = {}
    found = []
    for number, (detectors, wanted) in enumerate(runs.values(), 1):
        samples = [sample for spec in wanted for sample in _read(spec)]
        named = _built(detectors, loaded, encoders)
        place = out if out is None or len(runs) == 1 else out / f"run {number}"
        found.append(evaluate(named, samples, out=place, **how))
    return joined(found, suite.title)


def _suite(name: str | None, methods: list[str] | None, data: list[str] | None, flags: dict[str, Any]) -> "Suite":
    """The suite asked for, or one made of the flags: every method with every encoder and prompt pack."""
    from vlad.evaluate.suites import Suite, load

    if name is not None:
        given = [f"--{key}" for key, value in {"method": methods, **flags}.items() if value]
        if given:
            raise ValueError(f"a suite names its own detectors; leave out {', '.join(given)}")
        return load(name)
    if not data:
        raise ValueError("nothing to evaluate on; give a suite, or --data NAME:ROOT such as --data folder:pictures")
    choices = [flags["encoder"] or [None], flags["prompts"] or [None]]
    several = [len(choice) > 1 for choice in choices]
    detectors = []
    for method in methods or ["patch_text"]:
        for encoder in choices[0]:
            for pack in choices[1]:
                words = [Path(method).stem] + [
                    str(word) for word, many in zip((encoder, pack), several, strict=True) if many
                ]
                one = {"label": ", ".join(words), "method": method, "encoder": encoder, "prompts": pack}
                one |= {"adapter": flags["adapter"], "resolution": flags["resolution"]}
                detectors.append({key: value for key, value in one.items() if value is not None})
    return Suite("flags", "", tuple(data), tuple(detectors))


def _specs(suite: "Suite", data: list[str]) -> list[tuple[str, str]]:
    """(data set, NAME:ROOT) of those that the suite wants and that are given or installed."""
    from vlad.datasets import INSTALLABLE
    from vlad.forms import closest

    given = {_name(spec): spec for spec in data}
    if len(given) < len(data):  # several roots of one reader
        return [(_name(spec), spec) for spec in data]
    wanted = {_name(entry): entry for entry in suite.datasets}
    for name in given:
        if name not in wanted:
            raise ValueError(f"--data {given[name]}: the suite has no data set {name!r}; {closest(name, wanted)}")
    found = {name: given.get(name, entry) for name, entry in wanted.items()}
    missing = [name for name, spec in found.items() if spec == name and name not in INSTALLABLE]
    if len(missing) == len(found):
        raise ValueError(f"no data set is given; say where they lie with --data {missing[0]}:ROOT")
    if missing:
        print(f"left out, not given with --data: {', '.join(missing)}", file=sys.stderr)
    return [(name, spec) for name, spec in found.items() if name not in missing]


def _name(spec: str) -> str:
    from vlad.datasets import datasets

    name = spec.partition(":")[0]
    return name if name in datasets() else "folder"


def _read(spec: str) -> list[Any]:
    from vlad.datasets import load

    return load(spec)


def _built(detectors: list[dict[str, Any]], loaded: dict[str, Any], encoders: dict[Any, Any]) -> dict[str, Any]:
    """Label -> Detector; detectors of one encoder name share the encoder."""
    from vlad.encoders import load as load_encoder
    from vlad.loading import load
    from vlad.methods import METHODS

    built: dict[str, Any] = {}
    for one in detectors:
        settings = {
            key: value for key, value in one.items() if key not in ("label", "method", "options", "encoder", "dtype")
        }
        dtype = one.get("dtype", loaded["dtype"])
        if one["method"] in METHODS or "encoder" in one:
            key = one.get("encoder", "tiny"), dtype
            encoder = encoders.get(key) or load_encoder(key[0], loaded["device"], dtype)
            detector = load(one["method"], encoder=encoder, **settings, **one.get("options", {}))
        else:  # a saved detector records its encoder; a method that is not known gives the error that lists them
            detector = load(one["method"], device=loaded["device"], dtype=dtype, **settings)
            encoder, key = detector.encoder, (detector.encoder.name, dtype)
            if key in encoders and encoders[key].digest == encoder.digest:
                object.__setattr__(detector, "encoder", encoders[key])
        encoders.setdefault(key, encoder)
        label = one.get("label", one["method"])
        built[label if label not in built else f"{label} {len(built) + 1}"] = detector
    return built


def _size(given: str | None) -> str | int | None:
    if given is None or given == "native":
        return given
    if not given.isdecimal():
        raise ValueError(f'--metric-size is {given}; expected "native" or the side of a square in pixels, such as 518')
    return int(given)


def _progress() -> Callable[[str, int, int], None]:
    """A line when a category is done, and every half minute in between."""
    shown = time.monotonic()

    def advance(category: str, done: int, total: int) -> None:
        nonlocal shown
        if done == total or time.monotonic() - shown > 30:
            shown = time.monotonic()
            print(f"{category}: {done} of {total} pictures", file=sys.stderr)

    return advance


def _jsonable(report: "Report") -> dict[str, Any]:
    from vlad.report import plain

    return plain(report.to_dict())
