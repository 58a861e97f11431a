"""EfficientNet-B4, the frozen convolutional tower of MetaUAS, with the face of an `Encoder` that knows pictures alone.

Name: "efficientnet:<file>", a file of MetaUAS's authors, which holds the tower under the names of efficientnet-pytorch;
the side of its pictures, 256 or 512, stands in the file's name. The network is timm's `tf_efficientnet_b4`: its padding
follows the picture's size as TensorFlow's does, and for sides that 32 divides this is what the authors' version pads.
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
from vlad.encoders.dino import MEAN, STD
from vlad.encoders.encoder import Encoder, Features
from vlad.encoders.weights import digest_of

PREFIX = "efficientnet:"
STRIDE = 32
WIDTHS = (48, 32, 56, 160, 448)  # of the five levels, strides 2, 4, 8, 16, 32
REPEATS = (2, 4, 4, 6, 6, 8, 2)  # blocks of each stage
LEVEL_ENDS = (1, 2, 4, 6)  # the stages, from 0, after which levels 2 to 5 are taken
OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
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
    """A frozen EfficientNet-B4. Its five `levels` have grids of their own; the last is its only layer of patches."""

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

    def pixels(self, pictures: Sequence[np.ndarray], resolution: int | None = None) -> Tensor:
        """[B, 3, S, S] as `Encoder.pixels`, but as MetaUAS resizes: bilinear, corners aligned, not antialiased."""
        side = self.resolution if resolution is None else resolution
        if side < STRIDE or side % STRIDE:
            raise ValueError(f"resolution is {side}; expected a positive multiple of {STRIDE}")
        colours = [torch.from_numpy(picture.copy()).to(self.device).permute(2, 0, 1)[None] for picture in pictures]
        squares = [
            F.interpolate(colour.float() / 255, (side, side), mode="bilinear", align_corners=True) for colour in colours
        ]
        return (torch.cat(squares) - self.mean) / self.std

    def as_seen(self, picture: np.ndarray, resolution: int) -> np.ndarray:
        """The picture itself, whose resized pixels are no whole numbers."""
        return picture

    def levels(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The five feature maps [B, C_l, S / 2^l, S / 2^l], l from 1; float32, widths as in WIDTHS."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            found = [self.model.bn1(self.model.conv_stem(pixels))]  # its norm has the activation in it
            features = found[0]
            for number, stage in enumerate(self.model.blocks):
                features = stage(features)
                if number in LEVEL_ENDS:
                    found.append(features)
        return tuple(level.float() for level in found)

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
    """The tower in a file of MetaUAS's authors; see the module.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no EfficientNet-B4, or an activation is asked for.
    """
    if activation is not None:
        raise ValueError(f"{name} has one activation; leave activation out")
    file = Path(name.removeprefix(PREFIX)).expanduser()
    content = read_official(file)
    tensors = {key.removeprefix("encoder."): value for key, value in content.items() if key.startswith("encoder.")}
    if not tensors:
        raise ValueError(f"encoder {name!r}: the file holds no tower; a file of metauas's authors does")
    found = re.search(r"256|512", file.stem)
    return EfficientNet(_filled(tensors, name), name, int(found[0]) if found else 256, device, dtype)


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
