"""The file of an adapter: what a method has learned, without the encoder it was learned on.

Ours is one .safetensors with the learned tensors and, as JSON in its header, what they need. The authors' own files
are read by `vlad.encoders.authors_file`.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlad.encoders.authors_file import SUFFIXES
from vlad.files import write_whole
from vlad.forms import filled
from vlad.version import __version__

logger = logging.getLogger(__name__)


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
    kept = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    write_whole(path, save(kept, {"vlad_adapter": header, "sha256": _checksum(header, kept)}))


def read(path: Path) -> Adapter:
    """A file that `write` wrote.

    Raises:
        FileNotFoundError: there is none.
        ValueError: no .safetensors file, no adapter, or one that was changed since it was written.
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
            metadata = file.metadata() or {}
            header = metadata.get("vlad_adapter", "null")
            facts, found = json.loads(header), {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a readable .safetensors file ({error})") from error
    if facts is not None and "sha256" not in metadata:
        logger.info("%s has no checksum: an older VLAD wrote it", path.name)
    elif facts is not None and metadata["sha256"] != _checksum(header, found):
        raise ValueError(f"{path} is not what `vlad train` wrote: its checksum is another; copy it anew")
    return facts, found


def _checksum(header: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def is_official(path: Path) -> bool:
    """Whether it is a file, or a folder of files, that `vlad train` did not write: see `vlad.encoders.authors_file`."""
    from safetensors import SafetensorError, safe_open

    if path.suffix in SUFFIXES or path.is_dir():
        return True
    try:
        with safe_open(path, framework="pt") as file:
            return path.suffix == ".safetensors" and "vlad_adapter" not in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False  # `read` says what is wrong with it


def _refuse_missing(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"there is no adapter file {path}")
