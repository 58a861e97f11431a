"""`vlad list`: what is available."""

import json
from typing import Annotated

import typer

import vlad
from vlad.cli.shared import AsJson, guarded

CALLS = ("methods", "encoders", "datasets")
FOLDERS = {"prompts": "prompts", "recipes": "adapters", "suites": "eval/suites"}
KINDS = (*CALLS, *FOLDERS)


def list_(kind: Annotated[str, typer.Argument(metavar="|".join(KINDS))], as_json: AsJson = False) -> None:
    """List what is available.

    Example: vlad list methods
    """

    def work() -> int:
        from vlad.forms import shipped

        if kind not in KINDS:
            raise ValueError(f"cannot list {kind!r}; known: {', '.join(KINDS)}")
        names = getattr(vlad, kind)() if kind in CALLS else shipped(FOLDERS[kind])
        print(json.dumps(names) if as_json else "".join(f"{name}\n" for name in names), end="\n" if as_json else "")
        return 0

    guarded(work)
