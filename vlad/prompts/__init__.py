"""The words a text method looks for: prompt packs, the names of categories, and their cached embeddings.

A pack is data: phrases of two states (normal, anomalous) times templates, each with `{}` as a place to fill.
Packs and name tables are TOML files in `prompts/`, checked when they are read. Sentences are embedded once per encoder
and kept on disk. Torch is imported where tensors are made, so that listing and checking packs stays fast.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.files import cache_dir, resource, write_whole
from vlad.forms import closest, file_of, read, read_toml, to_toml
from vlad.forms import shipped as shipped_files
from vlad.prompts.wording import PACK_KEYS, NamesFile, PackFile, checked_pack, name_problem

if TYPE_CHECKING:
    from torch import Tensor

    from vlad.encoders.encoder import Encoder

log = logging.getLogger(__name__)

_CACHE_FORMAT = 1  # raise it when the meaning of a cached row changes


@dataclass(frozen=True)
class PromptPack(PackFile):
    """The words a method looks for; checked when built, so every pack that exists is valid.

    A template may stand twice: its sentences then weigh double in the means.

    Attributes:
        title: for people.
        templates, normal, anomalous: texts with `{}`, in the templates for a phrase, in the phrases for the name.
        defects: label -> phrases, short words that explanations may use.
        severity: label of a defect -> cosmetic, minor, major or critical.
        scenes: state -> captions of whole scenes, for methods that compare with those; empty, or of both states.
        source: where the words come from, for people; never used for scoring.
        name: name of a shipped pack or stem of its file, else "custom"; not part of equality.

    Raises:
        ValueError: a text lacks `{}`, has a stray brace or is empty or repeated; an unknown key, label or severity.
    """

    name: str = field(default="custom", compare=False)

    def __post_init__(self) -> None:
        for key, value in vars(checked_pack({key: getattr(self, key) for key in PACK_KEYS})).items():
            object.__setattr__(self, key, value)

    @classmethod
    def load(cls, source: PromptPack | Mapping[str, Any] | str | os.PathLike[str]) -> PromptPack:
        """A pack from a shipped pack's name, a .toml file, or a dict with its keys; a pack is returned as it is.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: no shipped pack has this name, or the content is wrong (names the file and the key).
        """
        if isinstance(source, PromptPack):
            return source
        if isinstance(source, Mapping):
            return cls._built(source, "prompts given as a dict", "custom")
        if isinstance(source, str | os.PathLike):
            path = file_of(source, "pack", "prompts")
            return cls._built(read_toml(path), str(path), path.stem)
        kind = type(source).__name__
        raise TypeError(f"prompts are of type {kind}; give a pack's name, a .toml file, a dict or a PromptPack")

    @classmethod
    def _built(cls, raw: Mapping[str, Any], where: str, name: str) -> PromptPack:
        try:
            return cls(**vars(checked_pack({"title": name, "templates": ["{}"], **raw})), name=name)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The pack as plain lists and dicts, JSON-ready; `load` makes an equal pack of it."""
        lists = {key: list(getattr(self, key)) for key in ("templates", "normal", "anomalous")}
        defects = {label: list(phrases) for label, phrases in self.defects.items()}
        source = {key: list(value) if isinstance(value, tuple) else value for key, value in self.source.items()}
        scenes = {"scenes": {state: list(captions) for state, captions in self.scenes.items()}} if self.scenes else {}
        return {
            "title": self.title,
            **lists,
            "defects": defects,
            "severity": dict(self.severity),
            **scenes,
            "source": source,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the pack as a .toml file that `load` reads back equal; folders are made, the file appears whole."""
        path = Path(path)
        if path.suffix != ".toml":
            raise ValueError(f"{path}: a prompt pack is a .toml file; give a path that ends in .toml")
        write_whole(path, to_toml(self.to_dict()).encode())

    def phrases(self, name: str) -> tuple[list[str], list[str]]:
        """The phrases of the normal and of the anomalous state with `name` filled in, without templates."""
        name = check_name(name)
        fill = [[phrase.replace("{}", name) for phrase in state] for state in (self.normal, self.anomalous)]
        return fill[0], fill[1]

    def sentences(self, name: str) -> tuple[list[str], list[str]]:
        """Phrases x templates of the normal and of the anomalous state; the templates of one phrase stand together."""
        normal, anomalous = self.phrases(name)
        return self._in_templates(normal), self._in_templates(anomalous)

    def _in_templates(self, phrases: Iterable[str]) -> list[str]:
        return [template.replace("{}", phrase) for phrase in phrases for template in self.templates]


def check_name(name: str) -> str:
    """`name` itself, where it can be put into prompts.

    Raises:
        TypeError: not a text.
        ValueError: blank, or with a brace or a line break.
    """
    if problem := name_problem(name):
        raise (ValueError if isinstance(name, str) else TypeError)(f"name: {problem}")
    return name


def shipped() -> list[str]:
    """The names of the packs that come with VLAD, sorted."""
    return shipped_files("prompts")


def named_datasets() -> list[str]:
    """The data sets that have a table of category names, sorted."""
    return shipped_files("prompts/names")


def names(dataset: str) -> dict[str, str]:
    """Category folder -> words for prompts, as in `prompts/names/<dataset>.toml`.

    Raises:
        ValueError: no table for this data set, or the table is wrong (names the file and the key).
    """
    if dataset not in (known := named_datasets()):
        raise ValueError(f"no category names for data set '{dataset}'; {closest(dataset, known)}")
    return read(NamesFile, resource(f"prompts/names/{dataset}.toml")).names


def category_name(dataset: str | None, category: str) -> str:
    """The words for a category: the data set's table, else the folder's name with spaces for underscores."""
    table = names(dataset) if dataset in named_datasets() else {}
    return table.get(category) or category.replace("_", " ")


# Embeddings


def embed(encoder: Encoder, sentences: Sequence[str]) -> Tensor:
    """Raw sentence embeddings [T, D], float32 on the encoder's device, computed once per encoder and kept on disk.

    The files lie in `text/` of the cache folder (`VLAD_CACHE` moves it) and may be deleted at any time. Writers in
    several processes do not disturb each other; a damaged file is computed again; a folder that cannot be written
    costs time only, with one warning.
    """
    import torch

    unique = list(dict.fromkeys(sentences))
    path = _cache_file(encoder, unique)
    rows = _read_rows(path, (len(unique), int(encoder.embed_dim))) if path else None
    if rows is None:
        with torch.no_grad():
            rows = encoder.text(unique).float().cpu().contiguous()
        if path:
            _write_rows(path, rows)
    row_of = {sentence: row for row, sentence in enumerate(unique)}
    return rows[[row_of[sentence] for sentence in sentences]].to(encoder.device)


def prototypes(encoder: Encoder, pack: PromptPack, name: str, unit: bool = False) -> Tensor:
    """[2, D] float32: per state (0 normal, 1 anomalous) the mean of the sentence embeddings, not normalised.

    The embeddings are raw as in anomalib's and zqhang's WinCLIP (arXiv:2303.14814); with `unit` each has length 1.
    """
    import torch

    return torch.stack([(_unit(rows) if unit else rows).mean(0) for rows in state_rows(encoder, pack, name)])


def state_rows(encoder: Encoder, pack: PromptPack, name: str) -> tuple[Tensor, Tensor]:
    """Raw embeddings [T, D] of all normal and of all anomalous sentences."""
    rows, normal = _phrase_rows(encoder, pack, name), len(pack.normal)
    return rows[:normal].flatten(0, 1), rows[normal:].flatten(0, 1)


def phrase_prototypes(encoder: Encoder, pack: PromptPack, name: str) -> tuple[list[str], Tensor]:
    """The filled phrases, normal before anomalous, and [phrases, D] their unit mean embeddings over the templates."""
    normal, anomalous = pack.phrases(name)
    return normal + anomalous, _unit(_phrase_rows(encoder, pack, name).mean(1))


def _phrase_rows(encoder: Encoder, pack: PromptPack, name: str) -> Tensor:
    """[phrases, templates, D]: every sentence of the pack, so that all uses share one cache file."""
    normal, anomalous = pack.sentences(name)
    rows = embed(encoder, normal + anomalous)
    return rows.reshape(len(pack.normal) + len(pack.anomalous), len(pack.templates), -1)


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)


# The cache on disk


def _cache_file(encoder: Encoder, sentences: list[str]) -> Path | None:
    key = json.dumps([_CACHE_FORMAT, encoder.digest, sentences])
    try:
        return cache_dir() / "text" / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home folder
        _warn_once(f"cache folder cannot be used ({error}); text embeddings are computed at every start")
        return None


def _read_rows(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """The rows kept in `path`; None where there are none, or not whole ones."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        kept = load(path.read_bytes())  # bytes, not a memory map: another process may replace the file meanwhile
        rows, digest = kept["rows"], bytes(kept["sha256"].tolist())
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        log.info("cached text embeddings %s are damaged (%s); computing them again", path, error)
        return None
    wrong = tuple(rows.shape) != shape or rows.dtype != torch.float32
    if wrong or hashlib.sha256(rows.numpy().tobytes()).digest() != digest:
        log.info("cached text embeddings %s are damaged (wrong content); computing them again", path)
        return None
    return rows


def _write_rows(path: Path, rows: Tensor) -> None:
    import torch
    from safetensors.torch import save

    digest = torch.tensor(list(hashlib.sha256(rows.numpy().tobytes()).digest()), dtype=torch.uint8)
    try:
        write_whole(path, save({"rows": rows, "sha256": digest}))
    except OSError as error:
        _warn_once(f"text embeddings cannot be kept in {path.parent} ({error}); they are computed at every start")


@functools.cache
def _warn_once(message: str) -> None:
    log.warning(message)
