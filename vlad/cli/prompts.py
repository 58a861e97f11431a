"""`vlad prompts`: the words that a method looks for."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import vlad
from vlad.cli import video
from vlad.cli.explain import KeyEnv, ServerKeys, endpoint_options
from vlad.cli.shared import PLAIN, AsJson, Encoder, Name, guarded, load_detector, one_line

if TYPE_CHECKING:
    from vlad.explain.reasoners.protocol import Reasoner
    from vlad.prompts.check import PackCheck
    from vlad.prompts.comparison import Words

Pictures = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Searched whole.")]
Model = Annotated[str, typer.Option("--reasoner", metavar="hf:FOLDER|openai:MODEL@URL", help="Whom to ask.")]
Remote = Annotated[bool, typer.Option("--allow-remote", help="The model may be on another machine.")]

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
        cosines: Mapping[str, float] = {}
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


@prompts_app.command("make")
def make(
    reasoner: Model,
    out: Annotated[Path, typer.Option(help="The prompt pack to write, a .toml file.")],
    name: Name = None,
    scenes: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Also N good scenes and N others, for flashback."),
    ] = None,
    allow_remote: Remote = False,
    key_env: KeyEnv = None,
    server: ServerKeys = None,
    as_json: AsJson = False,
) -> None:
    """Have a language model write a prompt pack for one kind of object; only words are sent.

    Example: vlad prompts make --name "metal nut" --reasoner openai:qwen@http://localhost:8000/v1 --out nut.toml
    """

    def work() -> int:
        from vlad.prompts.writing import make_pack, with_scenes

        if out.suffix != ".toml":
            raise ValueError(f"--out is {out}; a prompt pack is a file that ends in .toml")
        if name is None:
            raise ValueError('the model must know what to think of; say it with --name "metal nut"')
        model = _model(reasoner, allow_remote, key_env, server)
        written = make_pack(name, model)
        if scenes is not None:
            written = with_scenes(written, name, model, scenes)
        written.pack.save(out)
        for state, why in written.dropped.items():
            print(f"left out: {state}: {why}", file=sys.stderr)
        for error in written.errors:
            print(f"no answer: {error}", file=sys.stderr)
        if as_json:
            facts = {"dropped": dict(written.dropped), "errors": list(written.errors), "calls": written.calls}
            print(json.dumps({"pack": str(out), **written.pack.to_dict(), **facts}))
        else:
            counts = f"{len(written.pack.normal)} normal and {len(written.pack.anomalous)} anomalous phrases"
            print(f'{counts}: {out}; try them: vlad prompts check {out} --name "{name}" --normals FOLDER')
        return 0

    guarded(work)


@prompts_app.command("rules")
def rules(
    reasoner: Model,
    normals: Annotated[
        list[Path],
        typer.Option(metavar="FOLDER|CLIP", help="Good pictures, the first 10 of which are looked at; or clips."),
    ],
    out: Annotated[Path, typer.Option(help="The rule file to write.")],
    name: Name = None,
    allow_remote: Remote = False,
    key_env: KeyEnv = None,
    server: ServerKeys = None,
) -> None:
    """Have a vision-language model propose rules from good pictures or clips, for `--rules` elsewhere; edit them.

    Example: vlad prompts rules --name "metal nut" --normals good/ --reasoner hf:FOLDER --out nut.txt

    From clips, 10 frames: vlad prompts rules --name "belt" --normals monday.mp4 --normals tuesday.mp4 ...
    """

    def work() -> int:
        from vlad.explain.interview.induction import PICTURES, propose_rules
        from vlad.files import write_whole
        from vlad.images.listing import list_images

        if name is None:
            raise ValueError('the model must know what it sees; say it with --name "metal nut"')
        clips = [str(one) for one in normals]
        if video.are_clips(clips, None):
            from vlad.video.reading import spread

            pictures: list[Any] = spread(clips, PICTURES)
        else:
            pictures = [one.path for one in list_images(normals)]
        found = propose_rules(pictures, name, model := _model(reasoner, allow_remote, key_env, server))
        write_whole(out, found.text(name, model.name).encode())
        for error in found.errors:
            print(f"no answer: {error}", file=sys.stderr)
        print(f"{len(found.normal)} normal and {len(found.abnormal)} abnormal rules: {out}")
        return 0

    guarded(work)


@prompts_app.command("check")
def check(
    pack: Annotated[str, typer.Argument(help="Prompt pack, a name or a TOML file.")],
    name: Name = None,
    normals: Pictures = None,
    anomalous: Pictures = None,
    encoder: Encoder = None,
    as_json: AsJson = False,
) -> None:
    """Find phrases that say nothing: doubles, words that cannot separate and, with --normals, false alarms.

    With --normals (and --anomalous) it also scores the pictures with generic words and with the pack's, and prints the
    difference. It changes nothing.

    Example: vlad prompts check nut.toml --name "metal nut" --normals good/ --anomalous bad/
    """

    def work() -> int:
        from vlad.images.listing import list_images

        words = vlad.PromptPack.load(pack)
        if name is None:
            raise ValueError('phrases are checked with a name filled in; say it with --name "metal nut"')
        if anomalous is not None and normals is None:
            raise ValueError("anomalous pictures are compared with good ones; give those with --normals")
        good, bad = ([one.path for one in list_images([folder])] if folder else [] for folder in (normals, anomalous))
        from vlad.encoders import load as load_encoder
        from vlad.prompts.check import check_pack
        from vlad.prompts.comparison import LEAST_NORMALS, compare_words

        model = load_encoder(encoder)
        checked = check_pack(words, name, model, good)
        compared = compare_words(words, name, model, good, bad) if len(good) >= LEAST_NORMALS else []
        if as_json:
            print(json.dumps({**checked.to_dict(), "comparison": [one.to_dict() for one in compared]}))
        else:
            _print_check(checked)
            _print_comparison(compared)
        return 0

    guarded(work)


def _model(reasoner: str, allow_remote: bool, key_env: str | None, server: list[str] | None) -> "Reasoner":
    from vlad.explain.reasoners import make_reasoner

    model = make_reasoner(reasoner, **endpoint_options(reasoner, allow_remote, key_env, server))
    if model is None:
        raise ValueError(f"--reasoner is {reasoner}; this takes a language model, hf:FOLDER or openai:MODEL@URL")
    return model


def _print_check(checked: "PackCheck") -> None:
    limit = "none, there is one normal phrase" if checked.limit is None else f"{checked.limit:.4f}"
    print(f"{checked.name}, encoder {checked.encoder}, {checked.pictures} good pictures; limit of separation {limit}")
    print("\nstate      to normal  alarms  phrase")
    for one in checked.phrases:
        closest = "-" if one.closest_normal is None else f"{one.closest_normal:.4f}"
        alarms = "-" if one.false_alarms is None else f"{one.false_alarms:.0%}"
        said = f"  <- {'; '.join(one.problems)}" if one.problems else ""
        print(f"{one.state:9}  {closest:>9}  {alarms:>6}  {one_line(one.phrase + said)}")
    print(f"\n{checked.problems} of {len(checked.phrases)} phrases have a problem")


def _print_comparison(compared: "list[Words]") -> None:
    """Scores of each choice of words; differences from the first, the generic one."""
    if not compared:
        return
    first = compared[0].to_dict()
    width = max(len(one.words) for one in compared)
    print(f"\n{'words':{width}}  good pictures    difference  AUROC  difference")
    for row in (one.to_dict() for one in compared):
        line = f"{row['words']:{width}}  {row['normal_mean']:.4f} ± {row['normal_std']:.4f}"
        line += f"  {row['normal_mean'] - first['normal_mean']:+10.4f}"
        if row["auroc"] is not None:
            line += f"  {100 * row['auroc']:5.1f}  {100 * (row['auroc'] - first['auroc']):+10.1f}"
        print(line)


def _print_prompts(title: str, templates: Any, states: dict[str, list[str]], cosines: Mapping[str, float]) -> None:
    print(one_line(title))
    print(f"\ntemplates ({len(templates)})", *map(one_line, templates), sep="\n  ")
    for state, phrases in states.items():
        print(f"\n{state} ({len(phrases)})")
        for phrase in phrases:
            print(f"  {cosines[phrase]:+.4f}  " if phrase in cosines else "  ", one_line(phrase), sep="")
