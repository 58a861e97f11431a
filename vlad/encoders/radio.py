"""RADIO v2.5, NVIDIA's vision foundation model, with the face of an `Encoder` that knows pictures alone.

Name: "radio:<file>" (.safetensors, .pkl, .pth), "radio:<folder>" with model.safetensors, "radio:hf-hub:<owner>/<repo>".
The file is a RADIO of NVlabs or Hugging Face, or one of AnomalyVFM's authors, which holds the tower with what they
learned beside it; that is left out here, and the tower is RADIO's own again.

Eight leading tokens without positions, the patches with theirs, pre-norm blocks with the exact GELU, no last norm. The
first three leading tokens side by side are the summary of the picture.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call

from vlad.encoders.authors_file import located, read_official
from vlad.encoders.checkpoint import digest_of
from vlad.encoders.encoder import Encoder, Features
from vlad.encoders.sharing import once

PREFIX = "radio:"
RESOLUTION = 768
HEAD_WIDTH = 64
SUMMARY = 3  # leading tokens that describe the whole picture
POSITIONS = ("bilinear-corners", "bicubic")
TABLE = "patch_generator.pos_embed"


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Tower(nn.Module):
    """RADIO's tensors by its own names: `patch_generator` and `blocks`."""

    def __init__(self, width: int, depth: int, heads: int, patch: int, places: int, leading: int):
        super().__init__()
        generator: Any = nn.Module()
        generator.embedder = nn.Linear(3 * patch * patch, width, bias=False)
        generator.cls_token = nn.Module()
        generator.cls_token.token = nn.Parameter(torch.zeros(leading, width))
        generator.pos_embed = nn.Parameter(torch.zeros(1, places, width))
        self.patch_generator, self.heads = generator, heads
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))


class Radio(Encoder):
    """A frozen RADIO. `positions` of its passes are NVlabs' own rule, "bilinear-corners", or "bicubic"."""

    reads_text = False
    walks = False
    resampling = Image.Resampling.BILINEAR

    def __init__(self, model: Tower, name: str, device: Any = None, dtype: Any = None):
        super().__init__(name, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, device, dtype)
        generator = model.patch_generator
        self.digest = digest_of(model, {"radio": model.heads})
        self.model: Any = model.to(self.device).eval().requires_grad_(False)
        self.patch_size, self.resolution = math.isqrt(generator.embedder.in_features // 3), RESOLUTION
        self.depth, self.width = len(model.blocks), generator.embedder.out_features
        self.embed_dim, self.skipped = SUMMARY * self.width, len(generator.cls_token.token)
        self.activation = "gelu"

    def embed(self, pixels: Tensor, positions: str = "bilinear-corners", first: Tensor | None = None) -> Tensor:
        """[B, 8 + N, C] tokens that enter the first block.

        Raises:
            ValueError: `positions` is neither of POSITIONS.
        """
        if positions not in POSITIONS or first is not None:
            raise ValueError(f"positions is {positions!r}; expected one of {', '.join(POSITIONS)}")
        generator, grid = self.model.patch_generator, self.grid(pixels)
        patches = F.unfold(pixels, self.patch_size, stride=self.patch_size).mT  # [B, N, 3 * patch * patch]
        side = math.isqrt(generator.pos_embed.shape[1])
        table = generator.pos_embed.mT.unflatten(2, (side, side))  # [1, C, side, side]
        if grid != (side, side):
            corners = positions == "bilinear-corners"
            mode = "bilinear" if corners else "bicubic"
            table = F.interpolate(table, grid, mode=mode, align_corners=corners)
        tokens = generator.embedder(patches) + table.flatten(2).mT
        return torch.cat([generator.cls_token.token.expand(len(tokens), -1, -1), tokens], 1)

    def states(
        self, pixels: Tensor, positions: str = "bilinear-corners", weights: Mapping[int, Mapping[str, Tensor]] = {}
    ) -> list[Tensor]:
        """[B, 8 + N, C] float32 after each block; `weights` of a layer (from 1) stand in the place of its own."""
        found: list[Tensor] = []
        with self.mixed():
            tokens = self.embed(pixels, positions)
            for layer, block in enumerate(self.model.blocks, 1):
                tokens = functional_call(block, dict(weights[layer]), tokens) if layer in weights else block(tokens)
                found.append(tokens.float())
        return found

    def attention_weights(self) -> list[tuple[Tensor, Tensor]]:
        """Of each block the weights [3C, C] of queries, keys and values, and those [C, C] of the output."""
        return [(block.attn.qkv.weight, block.attn.proj.weight) for block in self.model.blocks]

    @once
    def __call__(self, pixels: Tensor, layers: tuple[int, ...] = (), positions: str = "bilinear-corners") -> Features:
        """The summary as image embedding, and the patch tokens of the asked layers (from 1); there is no last norm."""
        self.check_layers(layers)
        states = self.states(pixels, positions)
        image = F.normalize(states[-1][:, :SUMMARY].flatten(1), dim=-1)
        return Features(image, tuple(states[i - 1][:, self.skipped :] for i in layers), self.grid(pixels))


def load(
    name: str, device: str | None = None, dtype: Any = None, activation: str | None = None, heads: int | None = None
) -> Radio:
    """The tower in the file; see the module. `heads` None is one for 64 of the width, as the published ones have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no RADIO, or an activation is given.
        vlad.WeightsError: it is not here and cannot be fetched.
    """
    if activation is not None:
        raise ValueError(f"{name} has one activation; leave activation out")
    content = read_official(located(Path(name.removeprefix(PREFIX))))
    return Radio(tower(content, name, heads), name, device, dtype)


def tower(content: Mapping[str, Any], name: str, heads: int | None = None) -> Tower:
    """The tower among the tensors of a file, without what AnomalyVFM learned; `heads` None is one for 64 of the width.

    Raises:
        ValueError: they are no RADIO's, or some are missing, unknown, of another shape or not finite.
    """
    tables = [part for part in content.values() if isinstance(part, Mapping)]
    tensors = next((part for part in (content, *tables) if any(str(key).endswith(TABLE) for key in part)), None)
    if tensors is None:
        raise ValueError(f"encoder {name!r}: the file holds no RADIO")
    start = next(key for key in tensors if key.endswith(TABLE)).removesuffix(TABLE)
    own = {key.removeprefix(start).replace(".layer.", "."): value for key, value in tensors.items()}
    own = {key: value for key, value in own.items() if key.startswith(("patch_generator.", "blocks."))}
    own = {key: value for key, value in own.items() if not key.rpartition(".")[2].startswith(("lora_", "mag"))}
    return _filled(own, name, heads)


def _filled(own: Mapping[str, Tensor], name: str, heads: int | None) -> Tower:
    try:
        width, inputs = own["patch_generator.embedder.weight"].shape
        places, leading = own[TABLE].shape[1], own["patch_generator.cls_token.token"].shape[0]
        depth = 1 + max(int(key.split(".")[1]) for key in own if key.startswith("blocks."))
        with torch.device("meta"):
            model = Tower(width, depth, heads or max(1, width // HEAD_WIDTH), math.isqrt(inputs // 3), places, leading)
        model = model.to_empty(device="cpu")
        model.load_state_dict(dict(own))
    except (KeyError, ValueError, RuntimeError, IndexError) as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[:4])
        raise ValueError(f"encoder {name!r} is no RADIO that can be used: {reason}") from error
    if odd := [key for key, value in own.items() if not torch.isfinite(value).all()]:
        raise ValueError(f"encoder {name!r} is no RADIO that can be used: {odd[0]} is not finite")
    return model
