"""CLIPs as open_clip builds them, `tiny` among them: pictures and sentences in, tokens and embeddings out.

One primitive carries all methods: `walk`, the transformer's block loop as a generator. Reader layers, replacing tokens
(deep prompts), a second attention path beside the ordinary one and packed windows are all written on it; nothing is
hooked or patched.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU
from torch import Tensor

from vlad.encoders.blocks import (
    attended,
    block,
    checkpointed,
    fed,
    resample_positions,
    self_attended,
    value_block,
    window_index,
)
from vlad.encoders.encoder import Edit, Encoder
from vlad.encoders.sharing import once
from vlad.encoders.text import ReadingEncoder
from vlad.encoders.tiny import per_picture
from vlad.encoders.weights import LoadedModel, load_model
from vlad.maps import CLIP_TEMPERATURE, TEMPERATURE

HIDDEN_BYTES = 64 * 2**20  # of the MLP's hidden layer: limits how many pictures' windows go through at once
RECORD_BYTES = 3 * 2**30  # of a walk that is kept for other methods on the same batch; longer ones are walked again

Step = tuple[Tensor, Tensor, dict[str, Tensor]]  # tokens before a block, after it, and its values by `sources`


class ClipEncoder(ReadingEncoder):
    """A frozen open_clip model; all that `Encoder` promises."""

    def __init__(
        self, loaded: LoadedModel, name: str, device: Any = None, dtype: Any = None, activation: str | None = None
    ):
        super().__init__(name, loaded.mean, loaded.std, device, dtype)
        self.digest, self.tokenizer, self.asked_activation = loaded.digest, loaded.tokenizer, activation
        self.model: Any = loaded.model.to(self.device).eval().requires_grad_(False)
        self.visual = self.model.visual
        self.blocks = self.visual.transformer.resblocks
        for module in self.blocks:  # layer norms and the residual stream stay float32: cheap, and the accuracy is there
            module.attn.to(self.dtype)
            module.mlp.to(self.dtype)
        self.norm, self.projection = self.visual.ln_post, self.visual.proj
        self.per_picture, self.dense_path = loaded.per_picture, loaded.dense
        self.temperature = TEMPERATURE if loaded.dense == "ordinary" else CLIP_TEMPERATURE
        self.resolution, self.patch_size = self.visual.image_size[0], self.visual.patch_size[0]
        self.depth, (self.width, self.embed_dim) = len(self.blocks), self.projection.shape
        self.activation = "quickgelu" if isinstance(self.blocks[0].mlp.gelu, QuickGELU) else "gelu"
        self.text_width, self.text_depth = self.text_shape()
        self.logit_scale = float(self.model.logit_scale.exp())

    def levelled(self, pixels: Tensor, like: Tensor | None = None) -> Tensor:
        return per_picture(pixels, like) if self.per_picture else pixels

    def embed(self, pixels: Tensor, positions: str = "bicubic-antialias", first: Tensor | None = None) -> Tensor:
        patches = self.visual.conv1(pixels)  # [B, C, rows, columns]
        rows, columns = patches.shape[-2:]
        patches = patches.flatten(2).transpose(1, 2)  # [B, N, C]
        cls = self.visual.class_embedding.expand(len(patches), 1, -1)
        table = resample_positions(self.visual.positional_embedding, self.visual.grid_size, (rows, columns), positions)
        tokens = self.visual.ln_pre(torch.cat([cls, patches], 1) + table)
        if first is None:
            return tokens
        return torch.cat([self.visual.ln_pre(first + table[0]).expand(len(tokens), -1, -1), tokens], 1)

    def walk(
        self, tokens: Any, edit: Edit | None = None, class_only: bool = False, checkpointing: bool = False
    ) -> Iterator[tuple[int, Any, Any]]:
        packed, step = isinstance(tokens, list), checkpointed if checkpointing else block
        groups = tokens if packed else [tokens]
        for layer, module in enumerate(self.blocks, 1):
            before = [edit(layer, groups[0])] if edit else groups
            groups = step(module, before, class_only=class_only and layer == self.depth)
            yield (layer, before, groups) if packed else (layer, before[0], groups[0])

    def value_attention(self, layer: int, tokens: Tensor, sources: str = "v") -> Tensor:
        return self_attended(self.blocks[layer - 1], tokens, sources)

    def attention(self, layer: int, tokens: Tensor) -> Tensor:
        return attended(self.blocks[layer - 1], tokens)

    def values(self, layer: int, tokens: Tensor, bare: bool = False) -> Tensor:
        module, C = self.blocks[layer - 1], self.width
        weight, bias = module.attn.in_proj_weight[2 * C :], module.attn.in_proj_bias[2 * C :]
        rows = tokens if bare else module.ln_1(tokens)
        return F.linear(rows.to(weight.dtype), weight, None if bare else bias)

    def joined(self, layer: int, mixed: Tensor) -> Tensor:
        attention = self.blocks[layer - 1].attn
        return attention.out_proj(mixed.to(attention.in_proj_weight.dtype)).float()

    def mlp(self, layer: int, tokens: Tensor) -> Tensor:
        return fed(self.blocks[layer - 1], tokens)

    def value_walk(
        self,
        pixels: Tensor,
        positions: str = "bicubic-antialias",
        first: int = 1,
        class_only: bool = False,
        sources: str = "v",
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor | None]]:
        steps, after = self._recorded(pixels, positions), None
        for layer, module in enumerate(self.blocks, 1):
            if steps is not None and len(steps) >= layer:
                before, after, beside = steps[layer - 1]
                if layer >= first and sources not in beside:
                    beside[sources] = self.value_attention(layer, before, sources)
            else:
                before = self.embed(pixels, positions) if after is None else after
                alone = class_only and layer == self.depth and steps is None
                beside = {}
                if layer >= first:
                    after, beside[sources] = value_block(module, before, alone, sources)
                else:
                    (after,) = block(module, [before], alone)
                if steps is not None:
                    steps.append((before, after, beside))
            yield layer, before, after, beside[sources] if layer >= first else None

    def _recorded(self, pixels: Tensor, positions: str) -> list[Step] | None:
        """The steps of this batch's walk so far; None where nothing is recorded. Only one batch is kept."""
        tokens = len(pixels) * (1 + math.prod(self.grid(pixels)))
        if self.passes.results is None or 8 * self.depth * tokens * self.width > RECORD_BYTES:
            return None
        if self.passes.walked is None or self.passes.walked[0] is not pixels:
            self.passes.walked = pixels, {}
        native = self.grid(pixels) == tuple(self.visual.grid_size)  # nothing is resampled
        return self.passes.walked[1].setdefault("" if native else positions, [])

    @once
    def windows(self, pixels: Tensor, scales: tuple[int, ...]) -> tuple[Tensor, ...]:
        tokens = self.embed(pixels)
        index = [window_index(self.grid(pixels), k).to(tokens.device) for k in scales]
        length = tokens.shape[1] + sum(i.numel() for i in index)
        at_once = max(1, HIDDEN_BYTES // (length * self.width * 4 * tokens.element_size()))
        parts = [self._embed_windows(part, index) for part in tokens.split(at_once)]
        return tuple(torch.cat(group) for group in zip(*parts, strict=True))

    def _embed_windows(self, tokens: Tensor, index: list[Tensor]) -> list[Tensor]:
        groups = [tokens, *(tokens[:, i].flatten(0, 1) for i in index)]  # [b * windows, 1 + k * k, C]: a plain gather
        *_, (_, _, last) = self.walk(groups, class_only=True)
        image, *windows = (self.project(group[:, 0]) for group in last)
        return [image, *(w.unflatten(0, (len(tokens), -1)) for w in windows)]


def load(name: str, device: str | None = None, dtype: Any = None, activation: str | None = None) -> Encoder:
    """The CLIP of that name; arguments and errors as in `Encoder.load`."""
    return ClipEncoder(load_model(name, activation), name, device, dtype, activation)
