"""Files that a paper's authors publish (.pth, .pt, .ckpt, .pkl, .safetensors): the tables of tensors in them.

They are read as plain tensors, never as pickled code; each method and tower knows what its own files hold.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlad.encoders import checkpoint
from vlad.encoders.placeholders import without_classes

LIGHTNING = ".ckpt"
SUFFIXES = (".pth", ".pt", LIGHTNING, ".pkl")  # beside .safetensors, which our own adapters have too
HUB = "hf-hub:"
HUB_FILE = "model.safetensors"


def located(path: Path) -> Path:
    """The file that "hf-hub:<owner>/<repository>" stands for; others as they are, with the home folder for "~".

    Raises:
        ValueError: no such form of a repository's name.
        vlad.WeightsError: the file is not here and cannot be fetched.
    """
    if not str(path).startswith(HUB):
        return path.expanduser()
    from vlad.encoders.fetching import from_hub

    return from_hub(str(path).removeprefix(HUB), HUB_FILE, "the file's own path")


def read_official(path: Path) -> Mapping[str, Any]:
    """The content of a file of a paper's authors: tensors, maybe in nested dicts, loaded without running code.

    Of a folder it is the content of all such files in it, for authors who publish the parts of one adapter apart.

    Raises:
        FileNotFoundError: there is none.
        ValueError: no checkpoint, or one that holds more than tensors and plain values (of a .ckpt file the rest
            becomes empty placeholders; no class in it is looked up); a folder that holds a part twice.
    """
    if path.is_dir():
        files = [file for suffix in SUFFIXES for file in sorted(path.glob(f"*{suffix}"))]
        return _joined(files) if files else read_official(path / HUB_FILE)
    if not path.is_file():
        raise FileNotFoundError(f"there is no adapter file {path}")
    try:
        content = _loaded(path)
    except (ValueError, pickle.UnpicklingError) as error:
        reason = str(error).removeprefix(f"{path} ")
        raise ValueError(f"{path} is no checkpoint of plain tensors: {reason}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; a checkpoint is a table of tensors")
    return _unwrapped(content)


def _loaded(path: Path) -> Any:
    try:
        return checkpoint.content(path)
    except ValueError:
        if path.suffix != LIGHTNING:
            raise
    return without_classes(path)  # Lightning keeps the objects that a model was built from beside its tensors


def _unwrapped(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without the prefixes that several GPUs and torch.compile put before all names of a table."""
    for start in ("module.", checkpoint.COMPILED):
        if table and all(str(key).startswith(start) for key in table):
            table = {str(key).removeprefix(start): value for key, value in table.items()}
    return {key: _unwrapped(value) if isinstance(value, Mapping) else value for key, value in table.items()}


def _joined(files: list[Path]) -> Mapping[str, Any]:
    parts: dict[str, Any] = {}
    holder: dict[str, Path] = {}
    for file in files:
        for key, value in read_official(file).items():
            if isinstance(value, Mapping) and key in holder:
                raise ValueError(f"{file} holds {key!r}, and so does {holder[key].name}: leave one in the folder")
            holder[key], parts[key] = file, value
    return parts
