"""A CLIP's tensors out of files, brought to open_clip's names and put into its model; what does not fit is named."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed
from torch import Tensor, nn

from vlad.encoders.checkpoint import stripped, tensors
from vlad.encoders.clip_names import OPENAI_FACTS, TRANSFORMERS, from_transformers, looks_like

MARK = "visual.class_embedding"
CONSTANT = ("attn_mask", "position_ids")  # what old versions saved beside weights: tables that never change


@dataclass(frozen=True)
class ClipTensors:
    """The tensors of a CLIP by open_clip's names; `openai`: the file is one of OpenAI's, and so for QuickGELU."""

    named: dict[str, Tensor]
    openai: bool


def read(files: Sequence[Path]) -> ClipTensors:
    """The CLIP in a file or in shards.

    Raises:
        ValueError: they hold none; a sentence says what they hold.
    """
    found = tensors(files)
    mark = TRANSFORMERS if any(name.endswith(TRANSFORMERS) for name in found) else MARK
    named = stripped(found, mark, files[0])
    if mark == TRANSFORMERS:
        named = from_transformers(named)
    if reason := _no_clip(named):
        raise ValueError(f"the weights in {files[0]} do not fit the model's configuration: {reason}")
    kept = {k: v for k, v in named.items() if k not in OPENAI_FACTS and not k.endswith(CONSTANT)}
    return ClipTensors(kept, all(fact in named for fact in OPENAI_FACTS))


def _no_clip(named: Mapping[str, Tensor]) -> str:
    """What the tensors are where they are no CLIP with a vision transformer; else empty."""
    whole = any("token_embedding" in name or name.startswith("text") for name in named)
    if "class_embedding" in named or (MARK in named and not whole):
        return "it holds a vision tower alone; save the whole model, whose text tower is needed too"
    if any(name.startswith("visual.attnpool") for name in named):
        return "it holds a CLIP whose vision tower is a ResNet, which VLAD cannot walk"
    if MARK not in named:
        return f"it holds no CLIP with a vision transformer but {', '.join(map(repr, list(named)[:4])) or 'nothing'}"
    return ""


def fill(model: nn.Module, read: ClipTensors, file: Path) -> None:
    """Puts the tensors into the model, in float32; positions of another side are resampled, with a warning.

    Raises:
        ValueError: lists what is missing, unknown or of another shape, and names the model that the file looks like.
    """
    named, anyhow = dict(read.named), looks_like(read.named)
    own = model.state_dict()
    if "positional_embedding" in named and "positional_embedding" not in own:
        named = convert_to_custom_text_state_dict(named)
    _same_scalars(named, own)
    table = "visual.positional_embedding"
    if named[table].shape != own[table].shape and named[table].shape[-1:] == own[table].shape[-1:]:
        _resample(model, named, file, anyhow)
    if problems := _problems(named, own):
        more = f" and {len(problems) - 6} more" if len(problems) > 6 else ""
        hint = f"; its shapes are those of {' or '.join(anyhow[:2])}" if anyhow else ""
        raise ValueError(
            f"the weights in {file} do not fit the model's configuration: {'; '.join(problems[:6])}{more}{hint}"
        )
    model.load_state_dict(named)


def _same_scalars(named: dict[str, Tensor], own: Mapping[str, Tensor]) -> None:
    for key in ("logit_scale", "logit_bias"):
        if key in named and key in own and named[key].numel() == 1:
            named[key] = named[key].reshape(own[key].shape)
    if "logit_bias" in own:
        named.setdefault("logit_bias", torch.zeros_like(own["logit_bias"]))


def _resample(model: Any, named: dict[str, Tensor], file: Path, anyhow: Sequence[str]) -> None:
    places = named["visual.positional_embedding"].shape[0] - 1
    if int(places**0.5) ** 2 != places:
        return  # no square table; `_problems` names its shape
    side = int(places**0.5) * model.visual.patch_size[0]
    better = f"; {anyhow[0]}:FILE uses them as they are" if anyhow else ""
    warnings.warn(
        f"the weights in {file} are for pictures of {side} px and their positions are resampled to "
        f"{model.visual.image_size[0]} px{better}",
        stacklevel=6,
    )
    resize_pos_embed(named, model)


def _problems(named: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    found = [f"{key} is missing" for key in own if key not in named]
    found += [f"{key} is unknown" for key in named if key not in own]
    for key in own.keys() & named.keys():
        value = named[key]
        if value.shape != own[key].shape:
            found.append(f"{key} is {list(value.shape)}, expected {list(own[key].shape)}")
        elif own[key].is_floating_point() and not value.is_floating_point():
            found.append(f"{key} holds {str(value.dtype).removeprefix('torch.')} and no fractions")
        elif not torch.isfinite(value).all():
            found.append(f"{key} is not finite")
    return sorted(found, key=lambda line: ("is missing" in line, line))
