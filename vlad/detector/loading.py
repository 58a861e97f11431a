"""`vlad.load`: a detector from a method's name, or from the file that `Detector.save` wrote."""

import inspect
import os
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from vlad.detector import Detector, saving
from vlad.detector.fitting import as_list
from vlad.encoders import load as load_encoder
from vlad.encoders.authors_file import located
from vlad.encoders.encoder import Encoder
from vlad.encoders.families import may_be_named
from vlad.encoders.fetching import from_hub
from vlad.framing import OPTIONS as FRAMINGS
from vlad.framing import framing
from vlad.hub import DETECTOR
from vlad.images import Remarks
from vlad.learning.scorer import LearnedScorer, own_encoder, with_adapter
from vlad.methods import METHODS, method_class
from vlad.scorer import Scorer, check_towers, towers_of

HUB = "hf-hub:"


class Arithmetic(NamedTuple):
    """Where and in which arithmetic an encoder that is given by name computes."""

    device: str | None
    dtype: Any
    runtime: str | None


def load(
    method_or_file: str | os.PathLike[str] = "patch_text",
    name: str | None = None,
    *,
    encoder: str | Encoder | None = None,
    prompts: Any = None,
    adapter: str | os.PathLike[str] | None = None,
    device: str | None = None,
    dtype: Any = None,
    bits: int | None = None,
    channels: str | None = None,
    pages: str | None = None,
    runtime: str | None = None,
    calibration: Any = None,
    **options: Any,
) -> Detector:
    """A detector: of a method by its name, or one that `save` wrote.

    Args:
        method_or_file: a name of `vlad.methods()`, a .safetensors file, or "hf-hub:OWNER/NAME" that `push_to_hub`
            filled.
        name: what the pictures show ("metal bolt"); without it a text method loads and waits for `describe`.
        encoder: a name of `vlad.encoders()` (see `Encoder.load` for all forms) or an Encoder to share; None is "tiny"
            for a method and the recorded encoder for a file, where that is no file, folder or hub repository.
        prompts: a prompt pack, its name, its .toml file or a dict; None is the method's own.
        adapter: learned weights, for the methods that have them: a file that `vlad train` wrote, one that the method's
            authors published (.pth and the like, a folder, "hf-hub:REPO"), or the name of one that ships. None is the
            one that ships for this encoder.
        device, dtype: of an encoder given by name; see `Encoder.load`.
        bits, channels, pages: how pictures are read, see `vlad.images.Reader`; kept by `save`. None is what the file
            records, else full range, "RGB" and "first".
        runtime: of an encoder given by name, what computes its blocks: "torch" or "openvino"; None is what a file
            records, else "torch". See `Encoder.load`.
        calibration: pictures, or a folder of them, from which dtype="int8" with runtime="openvino" takes its ranges,
            never any that will be judged; None leaves that to `fit`.
        options: the method's own keywords; each method has `resolution`, the side of the square it resizes pictures to,
            and those of `vlad.framing.framing`: `roi` and `ignore` say what counts of every picture, `tiles` and others
            how closely it is looked at. Of a file only `ignore` may be given anew.

    Raises:
        ValueError: unknown method or encoder, a wrong option value, or a file made with other weights.
        TypeError: an option that the method does not have; the message lists those it has.
        FileNotFoundError: the file, pack or weights named are missing.
        vlad.WeightsError: the encoder's weights are not here and cannot be fetched.
    """
    given, how = str(os.fspath(method_or_file)), Arithmetic(device, dtype, runtime)
    framed, own = _parted(given, options)
    given = str(shared(given)) if given.startswith(HUB) else given
    if given not in METHODS and (given.endswith(".safetensors") or os.sep in given):
        _refuse_adapter(Path(given).name, adapter)
        detector = _of_file(Path(given).expanduser(), encoder, how, own, framed)
    else:
        detector = _of_method(given, encoder, adapter, how, prompts, own, framed)
    asked: dict[str, Any] = {"bits": bits, "channels": channels, "pages": pages}
    detector.reader = replace(detector.reader, **{key: value for key, value in asked.items() if value is not None})
    if calibration is not None:
        _calibrate(detector, calibration)
    if name is not None or (prompts is not None and detector.name is not None):
        detector.describe(name or detector.name or "", prompts)
    return detector


def _parted(given: str, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(options of `framing` that say something, the method's own); `ignore` may be words, and then `laft`'s own."""
    takes_words = given in METHODS and "ignore" in _known_options(method_class(given))
    words = takes_words and _are_words(options.get("ignore"))
    framed = {key for key in FRAMINGS if key in options and not (words and key == "ignore")}
    said = {key: options[key] for key in FRAMINGS if key in framed and options[key] is not None}
    return said, {key: value for key, value in options.items() if key not in framed}


def _calibrate(detector: Detector, calibration: Any) -> None:
    """Takes the ranges of int8 from pictures."""
    remarks = Remarks()
    good = as_list(calibration, detector.reader, remarks)
    detector.encoder.calibrate(detector.reader.read(one, remarks) for one in good)


def shared(name: str) -> Path:
    """The detector's file of "hf-hub:OWNER/NAME", from the hub's cache or fetched.

    Raises:
        ValueError: no such form of a repository's name.
        vlad.WeightsError: it is not here and cannot be fetched.
    """
    return from_hub(name.removeprefix(HUB), DETECTOR, "the file's own path")


def _of_method(
    method: str,
    encoder: str | Encoder | None,
    adapter: str | os.PathLike[str] | None,
    how: Arithmetic,
    prompts: Any,
    options: Mapping[str, Any],
    framed: Mapping[str, Any],
) -> Detector:
    """A new detector of a method, with its adapter where it has one."""
    frame, kind = framing(**framed), method_class(method)
    _check_options(method, kind, options)
    if prompts is not None and kind.words == "none":
        raise TypeError(f"{method} looks at pictures alone and takes no prompts")
    if issubclass(kind, LearnedScorer):
        file = None if adapter is None else located(Path(adapter))
        tower = own_encoder(kind, file) if encoder is None else encoder
        scorer: Scorer = with_adapter(kind, load_encoder(tower, *how), file, options)
    else:
        _refuse_adapter(method, adapter)
        scorer = kind(load_encoder(encoder, *how), **options)
    detector = Detector(scorer)
    if prompts is not None:
        detector.take_pack(prompts)
    scorer.frame(frame)
    scorer.to(scorer.encoder.device)
    return detector


def _refuse_adapter(given: str, adapter: str | os.PathLike[str] | None) -> None:
    if adapter is not None:
        raise TypeError(f"{given} has no learned weights and takes no adapter; got {os.fspath(adapter)!r}")


def _check_options(method: str, kind: type[Scorer], options: Mapping[str, Any]) -> None:
    known = _known_options(kind)
    for option in options:
        if option not in known:
            close = get_close_matches(option, [*known, *FRAMINGS], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"{method} has no option {option!r}; it has {', '.join(known)}{hint}")


def _known_options(kind: type[Scorer]) -> list[str]:
    return [p.name for p in inspect.signature(kind).parameters.values() if p.kind is p.KEYWORD_ONLY]


def _are_words(ignore: Any) -> bool:
    """Whether a concept is to be overlooked (`laft`) and not a place: words that are no file, or lists of words."""
    if isinstance(ignore, str):
        return not Path(ignore).is_file()
    return isinstance(ignore, list | tuple) and bool(ignore) and all(map(_are_words, ignore))


def _of_file(
    path: Path,
    encoder: str | Encoder | None,
    how: Arithmetic,
    options: Mapping[str, Any],
    framed: Mapping[str, Any],
) -> Detector:
    """What `save` wrote; of its framing the places that do not count may be given anew."""
    header, tensors = saving.read(path)
    try:
        kind = method_class(header["method"])
    except ValueError as error:
        raise ValueError(f"{path} is no detector that can be used: {error}") from error
    own = [
        *(option for option in options if option not in towers_of(kind)),
        *(key for key in framed if key != "ignore"),
    ]
    if own:
        raise TypeError(f"{path.name} records its own options; leave out {', '.join(own)}, or build the method anew")
    check_towers(kind, header["options"], options, path.name)
    if encoder is None and not may_be_named(header["encoder"]):
        raise ValueError(
            f"{path.name} asks for the encoder {header['encoder']!r}, a file, folder or repository, which is opened "
            f"only if you name it yourself: if you trust it, load the detector with encoder={header['encoder']!r}"
        )
    if not isinstance(encoder, Encoder):
        recorded = header["encoder"] if encoder is None else encoder
        given = how._replace(dtype=how.dtype or header["dtype"], runtime=how.runtime or header["runtime"])
        encoder = load_encoder(recorded, *given)
        encoder.recall(header["calibrated"])
    if encoder.digest != header["encoder_digest"]:
        raise ValueError(
            f"{path.name} was made with other weights than encoder {encoder.name!r} has: it names "
            f"{header['encoder']!r}, digest {header['encoder_digest'][:12]}, and got {encoder.digest[:12]}"
        )
    try:
        scorer = kind(encoder, **{**header["options"], **options})
        detector = Detector.restored(scorer, header, tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no detector that can be used: {error}") from error
    detector.scorer.to(encoder.device)
    if "ignore" in framed:
        detector.ignore = framed["ignore"]
    return detector
