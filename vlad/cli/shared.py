"""What the verbs share: common options, one sentence for every mistake, and the detector that the flags describe."""

import hashlib
import inspect
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
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
Dtype = Annotated[str | None, typer.Option(help='"float32" or "bfloat16". [default: the fastest safe one]')]
Bits = Annotated[
    int | None, typer.Option(min=8, max=16, help="Depth of the camera, where 16-bit pictures hold less: 10, 12, ...")
]
Channels = Annotated[str | None, typer.Option(help='"RGB" or "BGR", of the arrays that the detector will be given.')]
Pages = Annotated[str | None, typer.Option(help='"first", or "all": each page or frame of a file is a picture.')]
# Keyword of `vlad.load` -> its flag; `framed` gives them to a verb.
FRAMING: dict[str, Any] = {
    "roi": Annotated[
        str | None,
        typer.Option(metavar="X0,Y0,X1,Y1", help="Cut this box out of every picture; pixels, or shares to 1."),
    ],
    "ignore": Annotated[
        Path | None, typer.Option(metavar="MASK", help="Picture of the same shape; what is white in it does not count.")
    ],
    "keep_aspect": Annotated[
        bool | None, typer.Option("--keep-aspect", help="Keep the pictures' shape instead of squeezing them.")
    ],
    "looks": Annotated[
        str | None, typer.Option(metavar="1,2", help="Look at the whole a second time, at twice the side.")
    ],
    "tiles": Annotated[
        str | None, typer.Option(metavar="N[,N]", help="Look closer in tiles, so many along the shorter side.")
    ],
    "tile_scale": Annotated[
        float | None, typer.Option(help="Of large photos: tiles of a copy of this scale, up to 2.")
    ],
    "smallest_defect": Annotated[
        float | None, typer.Option(metavar="PX", help="Of large photos: tiles so fine that it can be seen.")
    ],
}
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


def loaded(
    encoder: str | None,
    prompts: str | None,
    adapter: Path | None,
    resolution: int | None,
    device: str | None,
    dtype: str | None,
) -> dict[str, Any]:
    """The keywords of `vlad.load` that the common flags state; those left out are left out."""
    given = {"encoder": encoder, "prompts": prompts, "adapter": adapter, "resolution": resolution}
    return {key: value for key, value in {**given, "device": device, "dtype": dtype}.items() if value is not None}


def framed(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with the flags of FRAMING, which it gets as its argument `framing`."""
    own = inspect.signature(verb, eval_str=True)
    kept = [one for one in own.parameters.values() if one.name != "framing"]
    how: dict[str, Any] = {"kind": inspect.Parameter.KEYWORD_ONLY, "default": None}
    flags = [inspect.Parameter(name, annotation=flag, **how) for name, flag in FRAMING.items()]

    @wraps(verb)
    def called(*args: Any, **given: Any) -> None:
        verb(*args, framing={name: given.pop(name) for name in FRAMING}, **given)

    called.__signature__ = own.replace(parameters=[*kept, *flags])  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in [*kept, *flags]}
    return called


def framing_options(framing: dict[str, Any]) -> dict[str, Any]:
    """The keywords of `vlad.load` that these flags state."""
    found = {key: value for key, value in framing.items() if value is not None}
    if "roi" in found:
        found["roi"] = found["roi"].split(",")
    for key in {"looks", "tiles"} & found.keys():
        if not all(part.strip().isdecimal() for part in found[key].split(",")):
            raise ValueError(f"--{key} is {found[key]!r}; expected whole numbers such as 2, or 2,3")
        found[key] = [int(part) for part in found[key].split(",")]
    return found


def load_detector(
    method: str | None, name: str | None, file: Path | None, given: dict[str, Any]
) -> tuple["Detector", dict]:
    """The detector, and what beside its own settings it depends on."""
    from vlad.loading import HUB, shared
    from vlad.methods import method_class

    given = {key: value for key, value in given.items() if value is not None}
    if "prompts" in given:  # before the encoder: a mistake is quick to see
        given["prompts"] = vlad.PromptPack.load(given["prompts"])
    if file is None:
        method = method or "patch_text"
        if name is None and method_class(method).words == "required":
            raise ValueError(f'{method} must know what the pictures show; say it in words, such as --name "metal bolt"')
        detector = vlad.load(method, name, **given)
        own = given.get("adapter")
        return detector, {"adapter": hashlib.sha256(own.read_bytes()).hexdigest()} if own and own.is_file() else {}
    if str(file).startswith(HUB):
        file = shared(str(file))
    if method is not None:
        raise ValueError(f"{file} records its own method; leave out --method")
    detector = vlad.load(file.absolute(), name, **given)
    return detector, {"detector": hashlib.sha256(file.read_bytes()).hexdigest()}


def many_lines(text: str) -> str:
    """The same of each of its lines."""
    return "\n".join(map(one_line, text.split("\n")))


def one_line(text: Any) -> str:
    """The text with line breaks and other control characters written as escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(text))
