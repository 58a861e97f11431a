"""`vlad eval-explain`: explanations measured as `vlad eval` measures scores (the reasoner's exam)."""

import json
from pathlib import Path
from typing import Annotated

import typer

from vlad.cli.explain import KeyEnv, Remote, ServerKeys, Who, endpoint_options
from vlad.cli.progress import ProgressBar
from vlad.cli.shared import AsJson, Encoder, Prompts, guarded


def eval_explain(
    data: Annotated[str, typer.Option(metavar="NAME:ROOT", help="mmad, visa_dr, or one of `vlad list datasets`.")],
    reasoner: Who = "clip",
    encoder: Encoder = None,
    prompts: Prompts = None,
    shots: Annotated[int, typer.Option(min=0, help="Normal pictures to fit detectors on first; data sets only.")] = 0,
    references: Annotated[int, typer.Option(min=0, help="Good pictures beside each question; mmad only.")] = 1,
    allow_remote: Remote = False,
    key_env: KeyEnv = None,
    server: ServerKeys = None,
    out: Annotated[Path | None, typer.Option(help="Folder for answers and report; a killed run goes on there.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure explanations: multiple choice (mmad), yes or no (visa_dr), or types and places of a data set.

    Example: vlad eval-explain --data folder:../shared/data --out exam
    """

    def work() -> int:
        from vlad.explain.exam import evaluate_explanations
        from vlad.explain.reasoners import make_reasoner

        model = make_reasoner(reasoner, **endpoint_options(reasoner, allow_remote, key_env, server))
        with ProgressBar("answers") as show:
            found = evaluate_explanations(
                data,
                reasoner="clip" if model is None else model,
                encoder=encoder,
                prompts=prompts,
                shots=shots,
                references=references,
                out=out,
                progress=lambda done, total: show("", done, total),
            )
        print(json.dumps(found.to_dict(), allow_nan=False) if as_json else found.text())
        return 0 if not found.errors else 1 if found.errors < 1 else 2

    guarded(work, "" if out is None else f"; the same command goes on with {out}")
