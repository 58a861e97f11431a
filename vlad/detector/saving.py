"""A detector's file: one .safetensors with the learnt tensors, and everything else as JSON in its header. Never pickle.

What is read may come from anywhere: sizes, kinds and checksums are looked at before anything is built from it.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlad.files import write_whole
from vlad.memory.normals import PREFIX
from vlad.thresholds import checked_threshold

logger = logging.getLogger(__name__)

FORMAT = 2  # raise it when older versions would misread the file
PLAIN = 1  # of detectors that see pictures as they are and keep none: older versions read them rightly
KEYS: dict[str, tuple[type, ...]] = {
    "vlad": (str,),
    "method": (str,),
    "encoder": (str,),
    "encoder_digest": (str,),
    "dtype": (str,),
    "runtime": (str,),
    "calibrated": (str, type(None)),
    "options": (dict,),
    "reading": (dict,),
    "framing": (dict,),
    "name": (str, type(None)),
    "prompts": (dict, type(None)),
    "prompts_name": (str, type(None)),
    "phrases": (list,),
    "threshold": (int, float, type(None)),
    "map_threshold": (int, float, type(None)),
    "references": (list,),
    "calibration": (dict, type(None)),
    "map_calibration": (dict, type(None)),
    "normals": (dict,),
}


def write(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes beside and renames once the disk has it: a reader, or a killed writer, leaves the old file or the new one.

    Raises:
        ValueError: the name does not end in .safetensors.
    """
    from safetensors.torch import save

    if path.suffix != ".safetensors":
        raise ValueError(f"a detector is saved as .safetensors; got {path.name!r}")
    kept = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    new = header["framing"] or any(key.startswith(PREFIX) for key in kept)
    facts = {"format": FORMAT if new else PLAIN, **header, "sha256": _checksum(kept)}
    facts["header_sha256"] = _header_checksum(facts)
    content = save(kept, metadata={"vlad": json.dumps(facts, allow_nan=False)})
    write_whole(path, content, sync=True)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(header, tensors) of a file that `write` wrote.

    Raises:
        FileNotFoundError: there is none.
        ValueError: no .safetensors file, no detector, truncated, changed, or of a newer VLAD.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"there is no detector file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("vlad", "null"), parse_constant=_refuse)
            # copies are aligned as fresh tensors are: kernels may round differently on others
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118  # no dict, though it looks like one
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a readable .safetensors file ({error})") from error
    written = header
    if isinstance(header, dict):
        missing: dict[str, Any] = {"runtime": "torch", "calibrated": None}
        missing |= {"trained_on": [], "reading": {}, "framing": {}, "normals": {}}
        header = {**missing, **header}  # older files do not say
    if header is None:
        raise ValueError(f"{path} is a .safetensors file, but no detector: it was not written by Detector.save")
    if problem := _problem(header, tensors, written):
        raise ValueError(f"{path} is no detector that can be used: {problem}")
    return header, tensors


def _refuse(number: str) -> None:
    raise ValueError(f"{number} is no number")


def _problem(header: Any, tensors: Mapping[str, Tensor], written: Any) -> str:
    """What is wrong with the content, of which `written` is the header without defaults; empty when nothing is."""
    if not isinstance(header, dict):
        return "its header is not a table"
    if isinstance(made := header.get("format", 0), int) and made > FORMAT:
        return f"it was written by VLAD {header.get('vlad')} in a newer format; update VLAD"
    for key, kinds in KEYS.items():
        if key not in header or not isinstance(header[key], kinds) or isinstance(header[key], bool):
            return f"{key!r} is missing in its header or of the wrong kind"
    for key in ("threshold", "map_threshold"):
        try:
            checked_threshold(repr(key), header[key])
        except ValueError as error:
            return str(error)
    for key in ("phrases", "references", "trained_on"):
        if not isinstance(header[key], list) or not all(isinstance(value, str) for value in header[key]):
            return f"{key!r} holds something else than texts"
    if header.get("sha256") != _checksum(tensors):
        return "its tensors are not those that were written"
    if "header_sha256" not in header:
        logger.info("a detector's file of an older VLAD: its header has no checksum; save it anew to give it one")
    elif header["header_sha256"] != _header_checksum(written):
        return "its header is not the one that was written"
    return ""


def _header_checksum(header: Mapping[str, Any]) -> str:
    """Of all that the header holds beside it, the checksum of the tensors among it."""
    facts = json.loads(json.dumps({key: value for key, value in header.items() if key != "header_sha256"}))
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
