"""Tensors out of the files that people have: of any wrapping, suffix and precision, in shards, OpenAI's archives.

No code of a file runs: safetensors holds none, torch's reader is told to build tensors alone, and a TorchScript archive
is read as the table of tensors that it is, with inert stand-ins for the classes of its program.
"""

import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# Under what name training scripts keep a model's tensors, the trained ones before their running means.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "network", "net", "weights", "params")
MEANS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
ASIDE = ("optim", "scheduler", "lr_", "scaler")  # how the names of other tables of a training begin
MOST_SHARDS = 9999
COMPILED = "_orig_mod."  # what torch.compile puts into names
POINTER = b"version https://git-lfs"
PAGE = re.compile(rb"\s*(<!doctype|<html|<\?xml|<head)", re.IGNORECASE)


def content(file: Path) -> Any:
    """What a checkpoint file holds, as saved; tensors on the CPU. The suffix does not count.

    Raises:
        ValueError: one sentence: what it is instead, or what it holds beside tensors.
    """
    with file.open("rb") as opened:
        head = opened.read(512)
    if reason := _no_weights(head):
        raise ValueError(f"{file} is {reason}")
    try:
        if head[8:9] == b"{":
            from safetensors.torch import load_file

            return load_file(file)
        if head.startswith(b"PK") and (root := _archive_root(file)) is not None:
            return _archive(file, root)
        with file.open("rb") as opened, warnings.catch_warnings():  # of a path torch would believe the suffix
            warnings.simplefilter("ignore")  # how a file is pickled is of no use to its user
            return torch.load(opened, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # each format has errors of its own, and some advise what is unsafe
        if isinstance(error, pickle.UnpicklingError) and (named := re.search(r"GLOBAL ([\w.]+)", str(error))):
            raise ValueError(
                f"{file} holds more than tensors ({named[1]}), which is not read: save its state_dict alone"
            ) from None
        kind = type(error).__name__
        raise ValueError(f"{file} is damaged or holds no weights ({kind}); fetch it again") from None


def _no_weights(head: bytes) -> str:
    """What a file that begins so is, where it can be no checkpoint; else empty."""
    if not head:
        return "damaged or holds no weights (it is empty); fetch it again"
    if head.startswith(POINTER):
        return "a Git LFS pointer and not the weights; run `git lfs pull` where it came from"
    if PAGE.match(head):
        return "a web page and not the weights; fetch the file itself"
    if head.startswith((b"\x1f\x8b", b"7z\xbc\xaf", b"BZh", b"\xfd7zXZ")):
        return "a compressed file; unpack it first"
    return ""


def tensors(files: Sequence[Path]) -> dict[str, Tensor]:
    """A model's tensors by name, out of one file or its shards; wrappers and a common prefix are taken off.

    Raises:
        ValueError: no tensors, or several models; and what `content` raises.
    """
    found: dict[str, Tensor] = {}
    for file in files:
        for name, value in _unwrapped(content(file), file).items():
            found[name.replace(COMPILED, "")] = value
    return found


def _unwrapped(held: Any, file: Path) -> dict[str, Tensor]:
    while True:
        if not isinstance(held, Mapping):
            raise ValueError(f"{file} holds a {type(held).__name__}; a checkpoint is a table of tensors")
        own = {str(name): value for name, value in held.items() if isinstance(value, Tensor)}
        tables = {
            str(name): value
            for name, value in held.items()
            if _holds_tensors(value) and not str(name).startswith(ASIDE)
        }
        if len(own) > len(tables):
            return own
        known = [name for name in (*WRAPPERS, *MEANS) if name in tables]
        if not known and len(tables) != 1:
            names = ", ".join(map(repr, list(held)[:6]))
            raise ValueError(f"{file} holds {names} and no model that can be told from them; save its state_dict alone")
        held = tables[known[0] if known else next(iter(tables))]


def _holds_tensors(value: Any, deep: int = 3) -> bool:
    if not isinstance(value, Mapping) or not deep:
        return False
    return any(isinstance(one, Tensor) or _holds_tensors(one, deep - 1) for one in value.values())


def stripped(named: Mapping[str, Tensor], mark: str, file: Path) -> dict[str, Tensor]:
    """The tensors of the model that has one called `mark`, without what stands before all of its names.

    Raises:
        ValueError: several models have it.
    """
    starts = sorted({name.removesuffix(mark) for name in named if name.endswith(mark)})
    plain = [start for start in starts if start in ("", "model.", "module.")]
    if len(starts) > 1 and len(plain) != 1:
        raise ValueError(f"{file} holds several models, under {', '.join(map(repr, starts))}; save one of them alone")
    start = plain[0] if plain else next(iter(starts), "")
    return {name.removeprefix(start): value for name, value in named.items() if name.startswith(start)}


def weight_files(folder: Path) -> list[Path]:
    """The files that together hold a folder's model: one, or all shards.

    Raises:
        FileNotFoundError: there is none, or a shard is missing.
        ValueError: several that have nothing to do with each other.
    """
    if indexes := sorted(folder.glob("*.index.json")):
        names = sorted(set(json.loads(indexes[0].read_text("utf-8")).get("weight_map", {}).values()))
        if not names or any(Path(str(name)).name != name for name in names):
            raise ValueError(f"{indexes[0]} is no index of files beside it")
        return _all_there(folder, names)
    files = [file for kind in ("safetensors", "bin", "pt", "pth") for file in sorted(folder.glob(f"*.{kind}"))]
    if files and (shard := re.fullmatch(r"(.+)-(\d+)-of-(\d+)(\.\w+)", files[0].name)):
        numbers = range(1, min(int(shard[3]), MOST_SHARDS) + 1)
        return _all_there(folder, [f"{shard[1]}-{n:0{len(shard[2])}}-of-{shard[3]}{shard[4]}" for n in numbers])
    if len(files) < 2:
        return files
    for start in ("open_clip", "model.", "pytorch_model."):
        if known := [file for file in files if file.name.startswith(start)]:
            return known[:1]
    raise ValueError(f"{folder} holds several weight files, {', '.join(file.name for file in files[:4])}; keep one")


def _all_there(folder: Path, names: Sequence[str]) -> list[Path]:
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing[:4])}, a part of its weights; fetch all parts")
    return [folder / name for name in names]


# TorchScript


class _Module:
    """Stands for an object of an archive's program: keeps what it holds, and does nothing."""

    held: Mapping[str, Any] = {}

    def __setstate__(self, held: Any) -> None:
        self.held = held if isinstance(held, Mapping) else {}


class _ArchiveReader(pickle.Unpickler):
    """Builds tensors and `_Module`s; every other name in the file is refused."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(archive.open(f"{root}data.pkl"))
        self.archive, self.root, self.storages = archive, root, dict[str, Tensor]()

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if module == "torch" and name.endswith("Storage"):
            return name
        if module == "torch.jit._pickle":  # lists and dicts with a note of what they hold
            return lambda value, *_: value
        known = {("torch._utils", "_rebuild_tensor_v2"): _rebuilt, ("collections", "OrderedDict"): OrderedDict}
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        _, kind, key = pid[:3]
        if key not in self.storages:
            kinds = {"FloatStorage": "float32", "HalfStorage": "float16", "DoubleStorage": "float64"}
            kinds |= {"LongStorage": "int64", "IntStorage": "int32", "BFloat16Storage": "bfloat16"}
            kinds |= {"BoolStorage": "bool", "ByteStorage": "uint8"}
            raw = bytearray(self.archive.read(f"{self.root}data/{key}"))
            dtype = getattr(torch, kinds[kind])
            self.storages[key] = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _rebuilt(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    return storage.as_strided(tuple(size), tuple(stride), offset)  # which refuses what lies outside of the storage


def _archive_root(file: Path) -> str | None:
    """The folder that a TorchScript archive's parts lie in; None for other zip files."""
    names = zipfile.ZipFile(file).namelist()
    roots = [name.removesuffix("constants.pkl") for name in names if name.endswith("constants.pkl")]
    return roots[0] if roots else None


def _archive(file: Path, root: str) -> dict[str, Tensor]:
    with zipfile.ZipFile(file) as archive:
        data = [part for part in archive.infolist() if part.filename.startswith(f"{root}data")]
        if any(
            part.compress_type != zipfile.ZIP_STORED for part in data
        ):  # never by torch; it might unpack to anything
            raise ValueError("its tensors are compressed")
        return _flat(_ArchiveReader(archive, root).load())


def _flat(module: Any, prefix: str = "") -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in module.held.items():
        if isinstance(value, Tensor):
            found[f"{prefix}{name}"] = value
        elif isinstance(value, _Module):
            found |= _flat(value, f"{prefix}{name}.")
    return found


def digest_of(model: nn.Module, config: Mapping[str, Any]) -> str:
    """sha256 over the configuration and every tensor's name, shape and bytes: 0.6 s for a model of 200 M numbers.

    The configuration belongs to it: the same tensors under another activation or colour mean are another encoder.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
