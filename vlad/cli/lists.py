"""`vlad list`: what is available."""

import json
import sys
from contextlib import suppress
from typing import Annotated

import typer

import vlad
from vlad.cli.shared import AsJson, guarded

KINDS = ("methods", "encoders", "datasets", "prompts", "recipes", "suites")


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

    guarded(work)


def _names(kind: str) -> list[str]:
    from vlad import files as resources
    from vlad import prompts

    if kind == "prompts":
        return prompts.shipped()
    if kind == "recipes":
        from vlad.learning import recipes

        return recipes.recipes()
    if kind == "suites":
        with suppress(FileNotFoundError):
            return sorted(path.stem for path in resources.resource("eval/suites").glob("*.toml"))
        return []
    return list(getattr(vlad, kind, list)())
