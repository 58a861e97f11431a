"""The `vlad` command. Each flag is a keyword of the Python function that does the work; nothing else happens here.

Results go to standard output, all else to standard error. Exit codes: 0 done, 1 some inputs failed, 2 wrong usage or
nothing could be done, 130 interrupted. Heavy imports stay inside functions, so that `vlad --help` is quick.
"""

import os
import sys
from typing import Annotated

import typer

from vlad.cli import (
    datasets,
    doctor,
    eval_explain,
    eval_video,
    evaluate,
    explain,
    export,
    fetch,
    fit,
    lists,
    prompts,
    scale,
    score,
    scored,
    serve,
    train,
    video,
)
from vlad.cli.shared import PLAIN
from vlad.version import __version__

app = typer.Typer(name="vlad", add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, **PLAIN)
app.command("score")(score.score)
app.command("fit")(fit.fit)
app.command("gather")(scale.gather)
app.command("watch")(video.watch)
app.command("judge")(scored.judge)
app.command("check")(scored.check)
app.command("train")(train.train)
evaluate.eval_app.command("video")(eval_video.eval_video)
app.add_typer(evaluate.eval_app, name="eval", help="Measure detectors on labelled pictures.")
app.command("eval-explain")(eval_explain.eval_explain)
app.command("explain")(explain.explain)
app.command("export")(export.export)
app.command("serve")(serve.serve)
app.command("list")(lists.list_)
app.add_typer(datasets.datasets_app, name="datasets", help="Labelled pictures.")
app.command("fetch")(fetch.fetch)
app.command("doctor")(doctor.doctor)
app.add_typer(prompts.prompts_app, name="prompts", help="The words that a method looks for.")


def main() -> None:
    """The entry point of the `vlad` script."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115  # None: closed by the caller
        stream.reconfigure(errors="backslashreplace")  # a file name must never break a narrow terminal
        setattr(sys, name, stream)
    app()


def _version(on: bool) -> None:
    if on:
        print(f"vlad {__version__}")
        raise typer.Exit


@app.callback()
def _vlad(version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_version)] = False) -> None:
    """Find visual anomalies with words and few or no normal pictures.

    Example: vlad score photos/ --name "metal bolt" --out results

    With VLAD_DEBUG=1 in the environment an error shows its whole traceback.
    """
