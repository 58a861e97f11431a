"""`vlad list` and `vlad prompts show`: what is available, and the words in use."""

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

import vlad
from vlad.cli.shared import PLAIN, AsJson, Encoder, Name, guarded, load_detector

KINDS = ("methods", "encoders", "datasets", "prompts", "recipes", "suites")

prompts_app = typer.Typer(no_args_is_help=True, **PLAIN)


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
            model, _ = load_detector(None, name, None, {"encoder": encoder, "prompts": words})
            cosines = model.predict(picture).phrases
        if as_json:
            print(json.dumps({"pack": pack, "templates": list(words.templates), **states, "cosines": cosines}))
        else:
            _print_prompts(words.title, words.templates, states, cosines)
        return 0

    guarded(work)


def _names(kind: str) -> list[str]:
    from vlad import prompts, resources

    if kind == "prompts":
        return prompts.shipped()
    if kind == "recipes":
        from vlad import recipes

        return recipes.recipes()
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
