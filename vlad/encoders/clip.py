"""CLIPs as open_clip builds them, `tiny` among them: pictures and sentences in, tokens and embeddings out.

One primitive carries all methods: `walk`, the transformer's block loop as a generator. Reader layers, replacing tokens
(deep prompts), a second attention path beside the ordinary one and packed windows are all written on it; nothing is
hooked or patched.
"""

import logging
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from open_clip.transformer import QuickGELU
from torch import Tensor

from vlad.encoders.abilities import Edit
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
from vlad.encoders.dtypes import INT8
from vlad.encoders.encoder import Encoder
from vlad.encoders.families import TORCH
from vlad.encoders.int8 import linear, quantise
from vlad.encoders.sharing import once
from vlad.encoders.text import ReadingEncoder
from vlad.encoders.tiny import per_picture
from vlad.encoders.weights import LoadedModel, load_model
from vlad.maps import CLIP_TEMPERATURE, TEMPERATURE

if TYPE_CHECKING:
    from vlad.encoders.openvino import Engine

logger = logging.getLogger(__name__)

CALIBRATE = 48  # pictures, at most, that int8 takes its ranges from where they are fixed
WINDOWED = 8  # of them whose windows are looked at, too
HIDDEN_BYTES = 64 * 2**20  # of the MLP's hidden layer: limits how many pictures' windows go through at once
RECORD_BYTES = 3 * 2**30  # of a walk that is kept for other methods on the same batch; longer ones are walked again

Step = tuple[Tensor, Tensor, dict[str, Tensor]]  # tokens before a block, after it, and its values by `sources`


class ClipEncoder(ReadingEncoder):
    """A frozen open_clip model; all that `Encoder` promises."""

    in_int8 = True

    def __init__(
        self,
        loaded: LoadedModel,
        name: str,
        device: Any = None,
        dtype: Any = None,
        activation: str | None = None,
        runtime: str = TORCH,
    ):
        super().__init__(name, loaded.mean, loaded.std, device, dtype, runtime)
        self.digest, self.tokenizer, self.asked_activation = loaded.digest, loaded.tokenizer, activation
        self.model: Any = loaded.model.to(self.device).eval().requires_grad_(False)
        self.visual = self.model.visual
        self.blocks = self.visual.transformer.resblocks
        for module in self.blocks:  # layer norms and the residual stream stay float32: cheap, and the accuracy is there
            for part in (module.attn, module.mlp) if runtime == TORCH else ():
                quantise(part) if self.precision == INT8 else part.to(self.dtype)
        self.norm, self.projection = self.visual.ln_post, self.visual.proj
        self.per_picture, self.dense_path = loaded.per_picture, loaded.dense
        self.temperature = TEMPERATURE if loaded.dense == "ordinary" else CLIP_TEMPERATURE
        self.resolution, self.patch_size = self.visual.image_size[0], self.visual.patch_size[0]
        self.depth, (self.width, self.embed_dim) = len(self.blocks), self.projection.shape
        self.activation = "quickgelu" if isinstance(self.blocks[0].mlp.gelu, QuickGELU) else "gelu"
        self.text_width, self.text_depth = self.text_shape()
        self.logit_scale = float(self.model.logit_scale.exp())
        self.engine = None if runtime == TORCH else self._engine()
        self._warned = False

    def _engine(self) -> "Engine":
        from vlad.encoders.openvino import Engine

        if self.device.type != "cpu":
            raise ValueError(f"runtime='openvino' is for the CPU, and device is {str(self.device)!r}; leave it out")
        return Engine(self.blocks, self.width, f"{self.digest} {self.activation}", self.precision)

    def recall(self, calibrated: str | None) -> None:
        if self.engine is not None:
            self.engine.recall(calibrated)
            self.calibrated = self.engine.calibrated

    @torch.no_grad()
    def calibrate(self, pictures: Iterable[np.ndarray]) -> None:
        if self.engine is None or self.precision != INT8:
            return
        tokens = [self.embed(self.pixels([one])) for one in islice(pictures, CALIBRATE)]  # [1, 1 + N, C] each
        windows = []
        for size in (2, 3):
            index = window_index((self.resolution // self.patch_size,) * 2, size)
            windows += [one[0, index] for one in tokens[:WINDOWED]]  # [windows, 1 + k * k, C]
        self.engine.calibrate([*tokens, *windows])
        self.calibrated = self.engine.calibrated

    def levelled(self, pixels: Tensor, like: Tensor | None = None) -> Tensor:
        return per_picture(pixels, like) if self.per_picture else pixels

    def embed(self, pixels: Tensor, positions: str = "bicubic-antialias", first: Tensor | None = None) -> Tensor:
        patches = self._patches(pixels)
        rows, columns = patches.shape[-2:]
        patches = patches.flatten(2).transpose(1, 2)  # [B, N, C]
        cls = self.visual.class_embedding.expand(patches.shape[0], 1, -1)
        table = resample_positions(self.visual.positional_embedding, self.visual.grid_size, (rows, columns), positions)
        tokens = self.visual.ln_pre(torch.cat([cls, patches], 1) + table)
        if first is None:
            return tokens
        return torch.cat([self.visual.ln_pre(first + table[0]).expand(tokens.shape[0], -1, -1), tokens], 1)

    @once
    def _patches(self, pixels: Tensor) -> Tensor:
        """[B, C, rows, columns]: kept for all methods on a batch, whatever they do with them; most of `tiny`'s time."""
        return self.visual.conv1(pixels)

    def walk(
        self, tokens: Any, edit: Edit | None = None, class_only: bool = False, checkpointing: bool = False
    ) -> Iterator[tuple[int, Any, Any]]:
        packed, step = isinstance(tokens, list), checkpointed if checkpointing else block
        groups = tokens if packed else [tokens]
        if self._runs_in_engine(edit):
            assert self.engine is not None
            runs = [self.engine.run(group, self.depth + 1, class_only)[0] for group in groups]
            for layer, after in enumerate(map(list, zip(*runs, strict=True)), 1):
                yield (layer, groups, after) if packed else (layer, groups[0], after[0])
                groups = after
            return
        for layer, module in enumerate(self.blocks, 1):
            before = [edit(layer, groups[0])] if edit else groups
            groups = step(module, before, class_only=class_only and layer == self.depth)
            yield (layer, before, groups) if packed else (layer, before[0], groups[0])

    def _runs_in_engine(self, edit: Edit | None = None) -> bool:
        """Whether another runtime computes this walk; torch does where tokens are edited or gradients are asked for."""
        if self.engine is None or torch.is_grad_enabled():
            return False
        if edit is not None and not self._warned:
            self._warned = True
            logger.warning("%s: what changes tokens between blocks runs on torch, in float32", self.name)
        return edit is None

    def value_attention(self, layer: int, tokens: Tensor, sources: str = "v") -> Tensor:
        return self_attended(self.blocks[layer - 1], tokens, sources)

    def attention(self, layer: int, tokens: Tensor) -> Tensor:
        return attended(self.blocks[layer - 1], tokens)

    def values(self, layer: int, tokens: Tensor, bare: bool = False) -> Tensor:
        module, C = self.blocks[layer - 1], self.width
        weight, bias = module.attn.in_proj_weight[2 * C :], module.attn.in_proj_bias[2 * C :]
        rows = tokens if bare else module.ln_1(tokens)
        return linear(rows.to(weight.dtype), weight, None if bare else bias)

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
        if self._runs_in_engine():
            steps = self._run(pixels, positions, first if sources == "v" else self.depth + 1, class_only, steps)
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

    def _run(
        self, pixels: Tensor, positions: str, first: int, class_only: bool, recorded: list[Step] | None
    ) -> list[Step]:
        """The whole walk from another runtime, unless it is recorded with the values that are asked for."""
        assert self.engine is not None
        if recorded and all("v" in beside for _, _, beside in recorded[first - 1 :]):
            return recorded
        before = recorded[0][0] if recorded else self.embed(pixels, positions)
        after, values = self.engine.run(before, first, class_only and recorded is None)
        beside: list[dict[str, Tensor]] = [{"v": values[n]} if n in values else {} for n in range(1, self.depth + 1)]
        made = list(zip([before, *after], after, beside, strict=False))
        if recorded is not None:
            recorded[:] = made
        return made

    def _recorded(self, pixels: Tensor, positions: str) -> list[Step] | None:
        """The steps of this batch's walk so far; None where nothing is recorded. Only one batch is kept."""
        if self.passes.results is None:
            return None
        if not torch.compiler.is_exporting():  # there the number of pictures is not known, and none is computed
            tokens = len(pixels) * (1 + math.prod(self.grid(pixels)))
            if 8 * self.depth * tokens * self.width > RECORD_BYTES:
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
        if torch.compiler.is_exporting() or self.engine is not None:
            return tuple(self._embed_windows(tokens, index))
        at_once = max(1, HIDDEN_BYTES // (length * self.width * 4 * tokens.element_size()))
        parts = [self._embed_windows(part, index) for part in tokens.split(at_once)]
        return tuple(torch.cat(group) for group in zip(*parts, strict=True))

    def _embed_windows(self, tokens: Tensor, index: list[Tensor]) -> list[Tensor]:
        groups = [tokens, *(tokens[:, i].flatten(0, 1) for i in index)]  # [b * windows, 1 + k * k, C]: a plain gather
        if self._runs_in_engine():
            assert self.engine is not None
            last = [self.engine.class_tokens(group) for group in groups]
        else:
            *_, (_, _, last) = self.walk(groups, class_only=True)
        image, *windows = (self.project(group[:, 0]) for group in last)
        return [image, *(w.unflatten(0, (-1, len(i))) for w, i in zip(windows, index, strict=True))]


def load(
    name: str,
    device: str | None = None,
    dtype: Any = None,
    activation: str | None = None,
    runtime: str = TORCH,
) -> Encoder:
    """The CLIP of that name; arguments and errors as in `Encoder.load`."""
    return ClipEncoder(load_model(name, activation), name, device, dtype, activation, runtime)
