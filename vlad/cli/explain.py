"""`vlad explain`: one picture in, its defects in words out."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlad.cli.shared import AsJson, DetectorFlags, Normals, SavedDetector, guarded, spelled_out
from vlad.cli.shared import one_line as line

if TYPE_CHECKING:
    from vlad.detector import Detector
    from vlad.explain.explanation import Explanation
    from vlad.explain.reasoners import Unusable
    from vlad.explain.reasoners.protocol import Reasoner
    from vlad.prediction import Prediction

Who = Annotated[str, typer.Option("--reasoner", metavar="clip|hf:FOLDER|openai:MODEL@URL", help="Who explains.")]
Rules = Annotated[Path | None, typer.Option(help="Rules in plain words, one a line: `normal: ...`, `abnormal: ...`.")]
Remote = Annotated[bool, typer.Option("--allow-remote", help="Pictures may go to another machine.")]
KeyEnv = Annotated[str | None, typer.Option(help="Environment variable that holds the server's key.")]
ServerKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--server",
        metavar="KEY=VALUE",
        help="Of requests: timeout_s=300, max_images=1, longest_side=512, send=crops, extra_body='{\"seed\": null}'; "
        "repeatable.",
    ),
]
SERVER_KEYS = ("timeout_s", "max_images", "longest_side", "send", "extra_body")


@dataclass(frozen=True)
class ReasonerFlags:
    """Who explains, and by which rules."""

    reasoner: Who = "clip"
    allow_remote: Remote = False
    key_env: KeyEnv = None
    server: ServerKeys = None
    rules: Rules = None

    def model(self) -> "Reasoner | Unusable | None":
        """The language model; None: the encoder's own words."""
        from vlad.explain.reasoners import usable

        return usable(self.reasoner, **endpoint_options(self.reasoner, self.allow_remote, self.key_env, self.server))


@spelled_out
def explain(
    image: Annotated[str, typer.Argument(metavar="IMAGE|CLIP")],
    flags: DetectorFlags,
    speaker: ReasonerFlags,
    detector: SavedDetector = None,
    normals: Normals = None,
    reference: Annotated[list[Path] | None, typer.Option(help="A good picture to compare with; repeatable.")] = None,
    at: Annotated[str | None, typer.Option(metavar="TIME", help="Of a clip: 12.5s. [default: its loudest]")] = None,
    question: Annotated[str | None, typer.Option(help="Your own, for a language model to answer.")] = None,
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with crops.")] = None,
) -> None:
    """Say in words where the defects of a picture are, what they may be, and what could not be seen.

    Example: vlad explain part.png --name "metal bolt" --detector bolt.safetensors --html part.html

    A frame of a clip: vlad explain belt.mp4 --at 12.5s --detector belt.safetensors
    """

    def work() -> int:
        import vlad.explain as tiers
        from vlad.explain.rules import read_rules
        from vlad.files import write_whole
        from vlad.video.reading import is_video

        if as_json and markdown:
            raise ValueError("--json and --markdown both print on standard output; give one of them")
        filmed = is_video(image)
        if at is not None and not filmed:
            raise ValueError(f"--at is a time in a clip, and {image} is none")
        stated, who = read_rules(speaker.rules), speaker.model()  # before the encoder: a mistake is quick to see
        model, _ = flags.load(detector)
        if normals is not None:
            model.fit(normals)
        picture, prediction = _moment(model, image, at) if filmed else _scored(model, Path(image))
        more: dict[str, Any] = {"references": reference or (), "rules": stated, "question": question}
        found = tiers.explain(picture, prediction, detector=model, reasoner=who or "clip", name=flags.name, **more)
        for error in found.errors:
            print(f"{speaker.reasoner}: {line(error)}", file=sys.stderr)
        if html is not None:
            write_whole(html, found.to_html().encode())
        if as_json:
            print(json.dumps(found.to_dict(), allow_nan=False))
        elif markdown:
            print(found.to_markdown(), end="")
        elif html is None:
            print(_text(found))
        return 0

    guarded(work)


def _moment(model: "Detector", clip: str, at: str | None) -> "tuple[Any, Prediction]":
    """The frame at this time, or the loudest of one each half second, and what the detector says of it."""
    from vlad.video.reading import frames, seconds
    from vlad.video.scoring import score_video

    if at is None:
        loudest: dict[float, float] = {}
        score_video(model, clip, maps=False, progress=lambda line, *_: loudest.update({line["time"]: line["score"]}))
        start = max(loudest, key=lambda time: loudest[time], default=0.0)
    else:
        start = seconds(at)
    frame = next(frames(clip, every=0, start=start))
    print(f"{clip} at {frame.time:.3f} s", file=sys.stderr)
    return frame.picture, replace(model.predict(frame.picture).of_pixels(), source=frame.source)


def _scored(model: "Detector", image: Path) -> "tuple[Any, Prediction]":
    """The picture, decoded once if it is not a very large one, and what the detector says of it."""
    from vlad.images import ImageError

    reading, prediction = next(model.predictions([image]))
    if isinstance(prediction, ImageError):
        raise prediction
    return (image, prediction) if reading.whole is None else (reading.whole, prediction.of_pixels())


def explainer(speaker: ReasonerFlags) -> "tuple[Callable[[Detector, Any, Prediction], dict[str, Any]], dict[str, Any]]":
    """For `vlad score`: what makes the explanation of a line, and what it depends on beside the detector."""
    import vlad.explain as tiers
    from vlad.explain.reasoners import Unusable
    from vlad.explain.rules import read_rules

    stated, who = read_rules(speaker.rules), speaker.model()
    if isinstance(who, Unusable):
        print(f"{line(who.reason)}; explanations have the words of the tier clip", file=sys.stderr)

    def told(model: "Detector", picture: Any, prediction: "Prediction") -> dict[str, Any]:
        return tiers.explain(picture, prediction, detector=model, reasoner=who or "clip", rules=stated).to_dict()

    return told, {"explain": {"reasoner": speaker.reasoner, "rules": [f"{one.id}: {one.text}" for one in stated]}}


def check_explaining(asked: bool, speaker: ReasonerFlags) -> None:
    """ValueError where a reasoner is described and not asked."""
    if not asked and (speaker.reasoner != "clip" or speaker.rules is not None):
        raise ValueError("--reasoner and --rules are for explanations; ask for them with --explain")


def endpoint_options(
    reasoner: str, allow_remote: bool, key_env: str | None, server: list[str] | None
) -> dict[str, Any]:
    """The keywords of a server that the flags state; a ValueError where another tier has no use for them."""
    given: dict[str, Any] = {"privacy": "remote"} if allow_remote else {}
    given |= {"key_env": key_env} if key_env else {}
    given |= dict(map(_keyword, server or ()))
    if given and not reasoner.startswith("openai:"):
        raise ValueError(
            f"--allow-remote, --key-env and --server are for a server (openai:MODEL@URL); --reasoner is {reasoner}"
        )
    return given


def _keyword(stated: str) -> tuple[str, Any]:
    """A keyword of a server as a flag states it, its value read as JSON where it is some."""
    from vlad.forms import closest

    key, equals, value = stated.partition("=")
    if key not in SERVER_KEYS or not equals:
        raise ValueError(f"--server is {stated!r}; expected KEY=VALUE, {closest(key, SERVER_KEYS)}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _text(found: "Explanation") -> str:
    """The explanation for a terminal."""
    from vlad.explain import page

    said = found.to_dict()
    lines = [page.title(said), *page.summary(said), *(f"needs review: {why}" for why in found.review_reasons), ""]
    for defect in said["defects"]:
        lines += [f"{defect['id'][1:]}. {defect['description']}", *(f"   {one}" for one in page.details(defect))]
    lines += [] if said["defects"] else [page.nothing(said)]
    for heading, words in page.sections(said):
        if heading != "Evidence":
            lines += ["", f"{heading}:", *(f"- {one}" for one in words)]
    return "\n".join(map(line, lines))
