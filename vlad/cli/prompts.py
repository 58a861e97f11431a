"""`vlad prompts`: the words that a method looks for."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

import vlad
from vlad.cli.shared import PLAIN, AsJson, Encoder, Name, guarded, load_detector

prompts_app = typer.Typer(no_args_is_help=True, **PLAIN)


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


def _print_prompts(title: str, templates: Any, states: dict[str, list[str]], cosines: dict[str, float]) -> None:
    print(title)
    print(f"\ntemplates ({len(templates)})", *templates, sep="\n  ")
    for state, phrases in states.items():
        print(f"\n{state} ({len(phrases)})")
        for phrase in phrases:
            print(f"  {cosines[phrase]:+.4f}  {phrase}" if phrase in cosines else f"  {phrase}")
