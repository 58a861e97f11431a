"""The file of an adapter: what a method has learned, without the encoder it was learned on.

Ours is one .safetensors with the learned tensors and, as JSON in its header, what they need. The authors' own files
(.pth, .pt, .ckpt, .pkl, .safetensors) are read as plain tensors, never as pickled code; what is in them each method
knows itself.
"""

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlad.files import write_whole
from vlad.forms import filled
from vlad.learning.placeholders import without_classes
from vlad.version import __version__

LIGHTNING = ".ckpt"
OFFICIAL = (".pth", ".pt", LIGHTNING, ".pkl")
HUB = "hf-hub:"
HUB_FILE = "model.safetensors"


@dataclass(frozen=True)
class Facts:
    """The header of a file of our own; `Adapter` says what it means."""

    vlad: str
    method: str
    encoder: str
    encoder_digest: str
    options: dict[str, Any]
    trained_on: tuple[str, ...]
    recipe: dict[str, Any]


@dataclass(frozen=True)
class Adapter:
    """What an adapter's file of our own holds.

    Attributes:
        facts: method, encoder and encoder_digest, options (keywords of the method), trained_on (names of data sets),
            recipe (how it was learned).
        tensors: the method's learned tensors by their names in it.
    """

    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def write(path: Path, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes beside and renames: the old file or the new one, never half of one.

    Raises:
        ValueError: the name does not end in .safetensors.
    """
    from safetensors.torch import save

    if path.suffix != ".safetensors":
        raise ValueError(f"an adapter is saved as .safetensors; got {path.name!r}")
    header = json.dumps({"vlad": __version__, **facts}, allow_nan=False)
    write_whole(path, save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, {"vlad_adapter": header}))


def read(path: Path) -> Adapter:
    """A file that `write` wrote.

    Raises:
        FileNotFoundError: there is none.
        ValueError: no .safetensors file, or no adapter.
    """
    _refuse_missing(path)
    facts, tensors = _tensors(path)
    if not isinstance(facts, dict):
        raise ValueError(f"{path} is no adapter: `vlad train` did not write it")
    try:
        filled(Facts, facts)
    except ValueError as error:
        raise ValueError(f"{path} is no adapter that can be used: its header, {error}") from None
    return Adapter(facts, tensors)


def _tensors(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """(the header that `write` writes, else None; tensors by name) of a .safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("vlad_adapter", "null"))
            return facts, {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a readable .safetensors file ({error})") from error


def located(path: Path) -> Path:
    """The file that "hf-hub:<owner>/<repository>" stands for; others as they are, with the home folder for "~".

    Raises:
        ValueError: no such form of a repository's name.
        vlad.WeightsError: the file is not here and cannot be fetched.
    """
    if not str(path).startswith(HUB):
        return path.expanduser()
    from vlad.encoders.weights import from_hub

    return from_hub(str(path).removeprefix(HUB), HUB_FILE, "the file's own path")


def is_official(path: Path) -> bool:
    """Whether it is a file, or a folder of files, that `vlad train` did not write: see `read_official`."""
    from safetensors import SafetensorError, safe_open

    if path.suffix in OFFICIAL or path.is_dir():
        return True
    try:
        with safe_open(path, framework="pt") as file:
            return path.suffix == ".safetensors" and "vlad_adapter" not in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False  # `read` says what is wrong with it


def read_official(path: Path) -> Mapping[str, Any]:
    """The content of a file of a paper's authors: tensors, maybe in nested dicts, loaded without running code.

    Of a folder it is the content of all such files in it, for authors who publish the parts of one adapter apart.

    Raises:
        FileNotFoundError: there is none.
        ValueError: not a checkpoint, or one that holds more than tensors and plain values (of a .ckpt file whatever
            else there is becomes an empty placeholder, and no class in it is looked up); a folder in which several
            files hold the same part.
    """
    if path.is_dir():
        files = [file for suffix in OFFICIAL for file in sorted(path.glob(f"*{suffix}"))]
        return _joined(files) if files else read_official(path / HUB_FILE)
    _refuse_missing(path)
    if path.suffix == ".safetensors":
        return _tensors(path)[1]
    try:
        content = _loaded(path)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is no checkpoint of plain tensors ({reason}); fetch it again") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; a checkpoint is a table of tensors")
    return content


def _loaded(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        if path.suffix != LIGHTNING:
            raise
    return without_classes(path)  # Lightning keeps the objects that a model was built from beside its tensors


def _joined(files: list[Path]) -> Mapping[str, Any]:
    parts: dict[str, Any] = {}
    holder: dict[str, Path] = {}
    for file in files:
        for key, value in read_official(file).items():
            if isinstance(value, Mapping) and key in holder:
                raise ValueError(f"{file} holds {key!r}, and so does {holder[key].name}: leave one in the folder")
            holder[key], parts[key] = file, value
    return parts


def _refuse_missing(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"there is no adapter file {path}")
