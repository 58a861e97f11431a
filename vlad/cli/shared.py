"""What the verbs share: common options, one sentence for every mistake, and the detector that the flags describe."""

import hashlib
import inspect
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import vlad

if TYPE_CHECKING:
    from vlad.detector import Detector

USERS_OWN = (ValueError, TypeError, RuntimeError, OSError, ImportError)  # what a user can cause and mend
PLAIN: dict[str, Any] = {"rich_markup_mode": None, "context_settings": {"help_option_names": ["-h", "--help"]}}

Name = Annotated[str | None, typer.Option("--name", help='What the pictures show, in words: "metal bolt".')]
Method = Annotated[str | None, typer.Option(help="`vlad list methods`. [default: patch_text]")]
Encoder = Annotated[str | None, typer.Option(help="Vision-language encoder; `vlad list encoders`. [default: tiny]")]
Prompts = Annotated[str | None, typer.Option(help="Prompt pack, a name or a TOML file. [default: winclip]")]
Adapter = Annotated[Path | None, typer.Option(help="File of learned weights, or a shipped name. [default: tiny's]")]
Split = Annotated[
    str | None,
    typer.Option(metavar="train|validation|test", help="Learned from. [default: test, or one of both kinds]"),
]
Resolution = Annotated[int | None, typer.Option(min=1, help="Pictures are resized to this square.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures computed at once; results stay the same.")]
Device = Annotated[str | None, typer.Option(help='"cpu", "cuda", ... [default: the best one here]')]
Dtype = Annotated[str | None, typer.Option(help='"float32", "bfloat16" or "int8". [default: the fastest safe one]')]
Runtime = Annotated[
    str | None, typer.Option(metavar="torch|openvino", help="What computes the encoder's blocks. [default: torch]")
]
Calibration = Annotated[
    Path | None,
    typer.Option(help="Folder of pictures from which int8 in OpenVINO takes its ranges. [default: the good ones]"),
]
Bits = Annotated[
    int | None, typer.Option(min=8, max=16, help="Depth of the camera, where 16-bit pictures hold less: 10, 12, ...")
]
Channels = Annotated[str | None, typer.Option(help='"RGB" or "BGR", of the arrays that the detector will be given.')]
Pages = Annotated[str | None, typer.Option(help='"first", or "all": each page or frame of a file is a picture.')]
SavedDetector = Annotated[
    Path | None, typer.Option("--detector", help="A saved detector instead of method and encoder.")
]
Normals = Annotated[Path | None, typer.Option(help="Folder of good pictures to learn from first.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Rate = Annotated[
    float | None,
    typer.Option(help="Share of good pictures that may be called anomalous. [default: what their number allows]"),
]


def guarded(work: Callable[[], int], resume_hint: str = "") -> None:
    """Leaves with the exit code of `work`; what a user can cause is one sentence, never a traceback."""
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        code = work()
        print(end="", flush=True)  # so that a full disk or a closed pipe is met here and not at exit
    except KeyboardInterrupt:
        print(f"interrupted{resume_hint}", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader (head, less) has left; nothing more may be written there, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:
        code = 2
        if os.environ.get("VLAD_DEBUG") or not isinstance(error, USERS_OWN):
            traceback.print_exc()
        else:
            print(f"error: {one_line(error)}", file=sys.stderr)
    raise typer.Exit(code)


@dataclass(frozen=True)
class FramingFlags:
    """What counts of every picture, and how closely it is looked at; each is a keyword of `vlad.load`."""

    roi: Annotated[
        str | None,
        typer.Option(metavar="X0,Y0,X1,Y1", help="Cut this box out of every picture; pixels, or shares to 1."),
    ] = None
    ignore: Annotated[
        Path | None, typer.Option(metavar="MASK", help="Picture of the same shape; what is white in it does not count.")
    ] = None
    keep_aspect: Annotated[
        bool | None, typer.Option("--keep-aspect", help="Keep the pictures' shape instead of squeezing them.")
    ] = None
    looks: Annotated[
        str | None, typer.Option(metavar="1,2", help="Look at the whole a second time, at twice the side.")
    ] = None
    tiles: Annotated[
        str | None, typer.Option(metavar="N[,N]", help="Look closer in tiles, so many along the shorter side.")
    ] = None
    tile_scale: Annotated[
        float | None, typer.Option(help="Of large photos: tiles of a copy of this scale, up to 2.")
    ] = None
    smallest_defect: Annotated[
        float | None, typer.Option(metavar="PX", help="Of large photos: tiles so fine that it can be seen.")
    ] = None

    def options(self) -> dict[str, Any]:
        """Those that were given, as `vlad.load` takes them."""
        given = {one.name: getattr(self, one.name) for one in fields(FramingFlags)}
        found = {key: value for key, value in given.items() if value is not None}
        if "roi" in found:
            found["roi"] = found["roi"].split(",")
        for key in {"looks", "tiles"} & found.keys():
            if not all(part.strip().isdecimal() for part in found[key].split(",")):
                raise ValueError(f"--{key} is {found[key]!r}; expected whole numbers such as 2, or 2,3")
            found[key] = [int(part) for part in found[key].split(",")]
        return found


@dataclass(frozen=True)
class DetectorFlags(FramingFlags):
    """The flags that say which detector it is; each is a keyword of `vlad.load`, those left out are left to it."""

    name: Name = None
    method: Method = None
    encoder: Encoder = None
    prompts: Prompts = None
    adapter: Adapter = None
    resolution: Resolution = None
    bits: Bits = None
    device: Device = None
    dtype: Dtype = None
    runtime: Runtime = None
    calibration: Calibration = None

    def load(self, file: Path | None = None, **more: Any) -> tuple["Detector", dict[str, Any]]:
        """The detector, of a file or by its method, and what beside its own settings it depends on."""
        keys = ("encoder", "prompts", "adapter", "resolution", "bits", "device", "dtype", "runtime", "calibration")
        given = {key: getattr(self, key) for key in keys}
        return load_detector(self.method, self.name, file, given | self.options() | more)


def spelled_out(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb as typer reads it: a parameter that is a group of flags (a dataclass) becomes these flags."""
    plain = inspect.signature(verb)
    groups: dict[str, Any] = {
        name: one.annotation for name, one in plain.parameters.items() if is_dataclass(one.annotation)
    }
    flags: list[inspect.Parameter] = []
    for name, one in plain.parameters.items():
        own = inspect.signature(groups[name]).parameters.values() if name in groups else [one]
        flags += [flag.replace(kind=inspect.Parameter.KEYWORD_ONLY) for flag in own]

    @wraps(verb)
    def called(**given: Any) -> None:
        made = {}
        for name, kind in groups.items():
            made[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        verb(**given, **made)

    called.__signature__ = inspect.Signature(flags)  # type: ignore[attr-defined]
    called.__annotations__ = {flag.name: flag.annotation for flag in flags}
    return called


def load_detector(
    method: str | None, name: str | None, file: Path | None, given: dict[str, Any]
) -> tuple["Detector", dict[str, Any]]:
    """As `DetectorFlags.load`."""
    from vlad.detector.loading import HUB, shared
    from vlad.methods import method_class

    given = {key: value for key, value in given.items() if value is not None}
    if "prompts" in given:  # before the encoder: a mistake is quick to see
        given["prompts"] = vlad.PromptPack.load(given["prompts"])
    if file is None:
        method = method or "patch_text"
        words = method_class(method).words
        if words == "none" and (name is not None or "prompts" in given):  # so that --method alone can be exchanged
            typer.echo(f"note: {method} looks at pictures alone; --name and --prompts say nothing to it", err=True)
            name = None
            given.pop("prompts", None)
        if name is None and words == "required":
            raise ValueError(f'{method} must know what the pictures show; say it in words, such as --name "metal bolt"')
        detector = vlad.load(method, name, **given)
        _remark_words(detector, name)
        own = given.get("adapter")
        return detector, {"adapter": hashlib.sha256(own.read_bytes()).hexdigest()} if own and own.is_file() else {}
    if str(file).startswith(HUB):
        file = shared(str(file))
    if method is not None:
        raise ValueError(f"{file} records its own method; leave out --method")
    detector = vlad.load(file.absolute(), name, **given)
    _remark_words(detector, name)
    return detector, {"detector": hashlib.sha256(file.read_bytes()).hexdigest()}


def _remark_words(detector: "Detector", name: str | None) -> None:
    """Says which words of a name the encoder hardly knows, once, where it was given."""
    from vlad.encoders.text import strange_words

    if name is not None and (strange := strange_words(detector.encoder, name)):
        words = " and ".join(f'"{one_line(word)}"' for word in strange)
        typer.echo(f"note: {words} may say nothing to {detector.encoder.name}, which reads plain English", err=True)


def many_lines(text: str) -> str:
    """The same of each of its lines."""
    return "\n".join(map(one_line, text.split("\n")))


def one_line(text: Any) -> str:
    """The text with line breaks and other control characters written as escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(text))
