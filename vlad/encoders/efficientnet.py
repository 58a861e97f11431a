"""EfficientNet-B4, the frozen convolutional tower of MetaUAS, with the face of an `Encoder` that knows pictures alone.

Name: "efficientnet:<file>", either a file of MetaUAS's authors, which holds the tower and has the side of its pictures
in its name, 256 or 512; or the tower alone, by the names of efficientnet-pytorch or of timm, for pictures of 380 px.
The network is timm's `tf_efficientnet_b4`: its padding follows the picture's size as TensorFlow's does, and for sides
that 32 divides this is what MetaUAS's version pads.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.encoders.authors_file import read_official
from vlad.encoders.checkpoint import digest_of
from vlad.encoders.dino import MEAN, STD
from vlad.encoders.encoder import Encoder, Features

PREFIX = "efficientnet:"
STRIDE = 32
SIDE = 380  # of the pictures that B4 was trained with
WIDTHS = (48, 32, 56, 160, 448)  # of MetaUAS's five levels, strides 2, 4, 8, 16, 32
LEVEL_WIDTHS = (48, 24, 32, 56, 112, 160, 272, 448, 1792)  # after the stem, the seven stages and the head
LEVELS = (1, 3, 4, 6, 8)  # MetaUAS's five among these nine
REPEATS = (2, 4, 4, 6, 6, 8, 2)  # blocks of each stage
OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
CLASSES = ("_fc.", "classifier.")  # of ImageNet, in a file of the tower alone
INNER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
FIRST = {**INNER, "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
del FIRST["_expand_conv"], FIRST["_bn0"]  # stage 0 has no expansion


def timm_name(name: str) -> str:
    """timm's name of a tensor of efficientnet-pytorch's B4; a name that is none of it stays as it is."""
    part, _, rest = name.partition(".")
    if part in OUTER:
        return f"{OUTER[part]}.{rest}"
    number, _, rest = rest.partition(".")
    part, _, kind = rest.partition(".")
    if not number.isdigit() or int(number) >= sum(REPEATS):
        return name
    stage, block = 0, int(number)
    while block >= REPEATS[stage]:
        stage, block = stage + 1, block - REPEATS[stage]
    known = INNER if stage else FIRST
    return f"blocks.{stage}.{block}.{known[part]}.{kind}" if part in known else name


class EfficientNet(Encoder):
    """A frozen EfficientNet-B4. Its nine levels have grids of their own; the last stage is its one layer of patches."""

    reads_text = False
    walks = False

    def __init__(self, model: Any, name: str, resolution: int, device: Any = None, dtype: Any = None):
        """`model` is timm's tf_efficientnet_b4 without classes; float32 unless another dtype is asked for."""
        super().__init__(name, MEAN, STD, device, torch.float32 if dtype is None else dtype)
        self.digest = digest_of(model, {"efficientnet": "b4"})
        self.model: Any = model.to(self.device).eval().requires_grad_(False)
        self.patch_size, self.resolution, self.depth = STRIDE, resolution, 1
        self.width = self.embed_dim = WIDTHS[-1]
        self.norm, self.projection = nn.Identity(), torch.eye(self.width, device=self.device)

    @property
    def level_widths(self) -> tuple[int, ...]:
        return LEVEL_WIDTHS

    def check_side(self, side: int) -> None:
        if side < STRIDE or (side % STRIDE and side != self.resolution):
            raise ValueError(f"resolution is {side}; expected a positive multiple of {STRIDE}")

    def in_colours(self, pictures: Sequence[np.ndarray], size: tuple[int, int]) -> Tensor:
        """As ever for a tower alone; of MetaUAS's, as it resizes: bilinear, corners aligned, not antialiased."""
        if self.resolution == SIDE:
            return super().in_colours(pictures, size)
        colours = [torch.from_numpy(picture.copy()).to(self.device).permute(2, 0, 1)[None] for picture in pictures]
        return torch.cat([F.interpolate(c.float() / 255, size, mode="bilinear", align_corners=True) for c in colours])

    @property
    def resizes_itself(self) -> bool:
        return self.resolution != SIDE

    def as_seen(self, picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """As ever for a tower alone; MetaUAS's takes the picture itself, whose resized pixels are no whole numbers."""
        return super().as_seen(picture, size) if self.resolution == SIDE else picture

    def grid(self, pixels: Tensor) -> tuple[int, int]:
        return -(-pixels.shape[-2] // STRIDE), -(-pixels.shape[-1] // STRIDE)

    def level_maps(self, pixels: Tensor, layers: tuple[int, ...]) -> tuple[Tensor, ...]:
        """[B, C_l, h_l, w_l] after the stem, the stages and the head (1 to 9), float32; widths as in LEVEL_WIDTHS."""
        # the norms have the activation in them
        steps = [lambda x: self.model.bn1(self.model.conv_stem(x)), *self.model.blocks]
        steps.append(lambda x: self.model.bn2(self.model.conv_head(x)))
        found, features = {}, pixels
        with self.mixed():
            for layer, step in enumerate(steps[: max(layers)], 1):
                features = step(features)
                if layer in layers:
                    found[layer] = features.float()
        return tuple(found[layer] for layer in layers)

    def levels(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """MetaUAS's five feature maps [B, C_l, S / 2^l, S / 2^l], l from 1; widths as in WIDTHS."""
        return self.level_maps(pixels, LEVELS)

    def __call__(self, pixels: Tensor, layers: tuple[int, ...] = (), positions: str = "") -> Features:
        """The mean of the last level as image embedding, and its places as the patches of layer 1.

        Raises:
            ValueError: another layer is asked.
        """
        if wrong := [layer for layer in layers if layer != 1]:
            raise ValueError(f"layers {wrong} asked; {self.name} has layer 1 alone")
        patches = self.levels(pixels)[-1].flatten(2).mT  # [B, N, C]
        return Features(F.normalize(patches.mean(1), dim=-1), (patches,) * len(layers), self.grid(pixels))


def load(name: str, device: str | None = None, dtype: Any = None, activation: str | None = None) -> EfficientNet:
    """The tower in that file; see the module.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no EfficientNet-B4, or an activation is asked for.
    """
    if activation is not None:
        raise ValueError(f"{name} has one activation; leave activation out")
    file = Path(name.removeprefix(PREFIX)).expanduser()
    content = read_official(file)
    tensors = {key.removeprefix("encoder."): value for key, value in content.items() if key.startswith("encoder.")}
    found = re.search(r"256|512", file.stem)
    side = int(found[0]) if found else 256
    if not tensors and content.keys() & {"_conv_stem.weight", "conv_stem.weight"}:
        side, tensors = SIDE, {key: value for key, value in content.items() if not key.startswith(CLASSES)}
    if not tensors:
        raise ValueError(f"encoder {name!r}: the file holds no tower; a file of metauas's authors does")
    return EfficientNet(_filled(tensors, name), name, side, device, dtype)


def _filled(tensors: Mapping[str, Tensor], name: str) -> Any:
    """timm's model with these tensors, which have efficientnet-pytorch's names; all of them, and no others."""
    import timm

    with torch.device("meta"):
        model = timm.create_model("tf_efficientnet_b4", num_classes=0)
    renamed, own = {timm_name(key): value for key, value in tensors.items()}, model.state_dict()
    problems = [f"{key} is missing" for key in own if key not in renamed]
    problems += [f"{key} is unknown" for key in renamed if key not in own]
    for key in own.keys() & renamed.keys():
        value = renamed[key]
        if value.shape != own[key].shape:
            problems.append(f"{key} is {list(value.shape)}, expected {list(own[key].shape)}")
        elif not torch.isfinite(value).all() or (key.endswith("running_var") and not (value > 0).all()):
            problems.append(f"{key} is not finite, or a variance of it not above 0")
    if problems:
        raise ValueError(f"encoder {name!r} is no EfficientNet-B4: {'; '.join(sorted(problems)[:8])}")
    model = model.to_empty(device="cpu")
    model.load_state_dict(renamed)
    return model
