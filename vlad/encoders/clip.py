"""The frozen vision-language tower behind every method: pictures and sentences in, tokens and embeddings out.

One primitive carries all methods: `walk`, the transformer's block loop as a generator. Reading layers, replacing tokens
(deep prompts), a second attention path beside the ordinary one and packed windows are all written on it; nothing is
hooked or patched, and no other file knows how open_clip names its parts.
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast, overload

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU
from PIL import Image
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
from vlad.encoders.dtypes import checked_dtype, fastest_safe_dtype
from vlad.encoders.text import Edit, TextTower
from vlad.encoders.tiny import per_picture
from vlad.encoders.weights import Tower, load_tower
from vlad.maps import CLIP_TEMPERATURE, TEMPERATURE

HIDDEN_BYTES = 64 * 2**20  # of the MLP's hidden layer: limits how many pictures' windows go through at once
RECORD_BYTES = 3 * 2**30  # of a walk that is kept for other methods on the same batch; longer ones are walked again
VALUE_PATH_BLOCKS = 6  # CLIP Surgery runs its value path through the last six blocks

Pass = TypeVar("Pass", bound=Callable[..., Any])


def _shared(method: Pass) -> Pass:
    """Within `Encoder.sharing` a pass over the same pixels with the same arguments is computed once."""

    @wraps(method)
    def once(self: "Encoder", pixels: Tensor, *args: Any, **kwargs: Any) -> Any:
        passes = getattr(self._shared, "passes", None)
        if passes is None:
            return method(self, pixels, *args, **kwargs)
        key = (method.__name__, id(pixels), repr(args), repr(kwargs))
        if key not in passes:  # the pixels are kept with it, so that no other tensor gets their id
            passes[key] = pixels, method(self, pixels, *args, **kwargs)
        return passes[key][1]

    return cast(Pass, once)


@dataclass(frozen=True)
class Features:
    """What one pass over B pictures gives.

    Attributes:
        image: [B, D] unit embeddings of the class token.
        patches: one [B, N, C] per asked layer: patch tokens as the block leaves them, class token removed.
        grid: (rows, columns), rows * columns = N.
    """

    image: Tensor
    patches: tuple[Tensor, ...]
    grid: tuple[int, int]


class Encoder(TextTower):
    """A frozen open_clip tower. Shared between detectors: it holds no state of any of them.

    Attributes:
        name: as given to `load`.
        digest: hex, the same for the same weights whatever file they came from.
        resolution: side of the square that the model was made for, in pixels.
        depth, width, embed_dim: number of vision blocks, C, D.
        activation: of the blocks, "gelu" or "quickgelu"; adapters work with the one they were learned with.
        text_width, text_depth: width of the tokens in the text tower and number of its blocks; None and 0 for towers
            that do not read as CLIP's does, from left to right, and so cannot be walked.
        logit_scale: what it was trained to multiply cosines of pictures and words with, before a softmax.
        temperature: of the softmax over texts that its class token was trained for: 0.01, CLIP's, or 0.07, `tiny`'s.
        device, dtype: where it runs, and the arithmetic of the blocks; all else is float32.
    """

    def __init__(self, tower: Tower, name: str, device: str | torch.device | None = None, dtype: Any = None):
        self.name, self.digest, self.tokenizer = name, tower.digest, tower.tokenizer
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = checked_dtype(dtype) or fastest_safe_dtype(self.device)
        self.model: Any = tower.model.to(self.device).eval().requires_grad_(False)
        self.visual = self.model.visual
        self.blocks = self.visual.transformer.resblocks
        for module in self.blocks:  # layer norms and the residual stream stay float32: cheap, and the accuracy is there
            module.attn.to(self.dtype)
            module.mlp.to(self.dtype)
        self.mean = torch.tensor(tower.mean, device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(tower.std, device=self.device).view(1, 3, 1, 1)
        self.per_picture, self.dense_path = tower.per_picture, tower.dense
        self.temperature = TEMPERATURE if tower.dense == "ordinary" else CLIP_TEMPERATURE
        self.resolution, self.patch_size = self.visual.image_size[0], self.visual.patch_size[0]
        self.depth, self.width = len(self.blocks), self.visual.class_embedding.shape[0]
        self.embed_dim = self.visual.proj.shape[1]
        self.activation = "quickgelu" if isinstance(self.blocks[0].mlp.gelu, QuickGELU) else "gelu"
        self.text_width, self.text_depth = self._text_shape()
        self.logit_scale = float(self.model.logit_scale.exp())
        self._shared = threading.local()  # each thread shares passes with itself alone

    @classmethod
    def load(
        cls, name: str = "tiny", device: str | None = None, dtype: Any = None, activation: str | None = None
    ) -> "Encoder":
        """The encoder of that name.

        Args:
            name: "tiny", "<open_clip model>/<tag>", "<model>:<file>", "local-dir:<folder>", "hf-hub:<repo>" or
                "<model>/random:<seed>" (untrained; warns).
            device: torch device; None takes a GPU where there is one.
            dtype: of the blocks' arithmetic ("float32", "bfloat16", torch.float16); None takes the fastest safe one.
            activation: "gelu" or "quickgelu" instead of the model's own; some published adapters depend on it.

        Raises:
            ValueError: unknown name, dtype or activation.
            FileNotFoundError: a local file or folder is missing.
            vlad.WeightsError: the weights are not here and cannot be fetched.
        """
        checked_dtype(dtype)  # a wrong dtype is refused before seconds of loading
        return cls(load_tower(name, activation), name, device, dtype)

    def __repr__(self) -> str:
        size = f"{self.resolution} px, {self.depth} blocks of width {self.width}"
        return f"Encoder({self.name!r}, {size}, {self.device}, {self.dtype})"

    # Pictures

    def pixels(self, pictures: Sequence[np.ndarray], resolution: int | None = None) -> Tensor:
        """[B, 3, S, S] float32, normalised as the tower wants it, from uint8 [H, W, 3] pictures.

        Both sides are resized to S (PIL bicubic, antialiased), nothing is cut off; S is `resolution` or the native one.

        Raises:
            ValueError: resolution is not a positive multiple of the patch size.
        """
        side = self.resolution if resolution is None else resolution
        if side < self.patch_size or side % self.patch_size:
            raise ValueError(
                f"resolution is {side}; expected a positive multiple of {self.name}'s patch size {self.patch_size}"
            )
        squares = [np.asarray(Image.fromarray(p).resize((side, side), Image.Resampling.BICUBIC)) for p in pictures]
        batch = torch.from_numpy(np.stack(squares)).to(self.device).permute(0, 3, 1, 2).float() / 255  # [B, 3, S, S]
        if self.per_picture:
            batch = per_picture(batch)
        return (batch - self.mean) / self.std

    def grid(self, pixels: Tensor) -> tuple[int, int]:
        """(rows, columns) of the patches of [B, 3, H, W]."""
        return pixels.shape[-2] // self.patch_size, pixels.shape[-1] // self.patch_size

    def embed(self, pixels: Tensor, positions: str = "bicubic-antialias", first: Tensor | None = None) -> Tensor:
        """[B, 1 + N, C] float32 tokens that enter the first block: class token, patches, positions, first layer norm.

        Args:
            pixels: [B, 3, H, W] from `pixels`.
            positions: how the position table is brought to another grid than its own: "bicubic-antialias" (open_clip),
                "bicubic", "bilinear" (AnomalyCLIP); align_corners=False in all.
            first: [n, C], other tokens to stand before the class token, with its position (VisualAD).
        """
        patches = self.visual.conv1(pixels)  # [B, C, rows, columns]
        rows, columns = patches.shape[-2:]
        patches = patches.flatten(2).transpose(1, 2)  # [B, N, C]
        cls = self.visual.class_embedding.expand(len(patches), 1, -1)
        table = resample_positions(self.visual.positional_embedding, self.visual.grid_size, (rows, columns), positions)
        tokens = self.visual.ln_pre(torch.cat([cls, patches], 1) + table)
        if first is None:
            return tokens
        return torch.cat([self.visual.ln_pre(first + table[0]).expand(len(tokens), -1, -1), tokens], 1)

    @overload
    def walk(
        self, tokens: Tensor, edit: Edit | None = None, class_only: bool = False, checkpointing: bool = False
    ) -> Iterator[tuple[int, Tensor, Tensor]]: ...
    @overload
    def walk(
        self, tokens: list[Tensor], edit: Edit | None = None, class_only: bool = False, checkpointing: bool = False
    ) -> Iterator[tuple[int, list[Tensor], list[Tensor]]]: ...
    def walk(
        self, tokens: Any, edit: Edit | None = None, class_only: bool = False, checkpointing: bool = False
    ) -> Iterator[tuple[int, Any, Any]]:
        """The vision tower's block loop: yields (layer, tokens before the block, tokens after), layer from 1.

        Args:
            tokens: [B, T, C] from `embed`; or a list of such groups of different lengths, which then share every matrix
                product (WinCLIP's windows) while attention stays within each sequence.
            edit: called before each block with (layer, tokens); what it returns goes on. One group only.
            class_only: the last block computes the first token of each sequence alone, [B, 1, C]; exact, and cheaper.
            checkpointing: for gradients, what is inside a block is computed again instead of kept; same results.
        """
        packed, step = isinstance(tokens, list), checkpointed if checkpointing else block
        groups = tokens if packed else [tokens]
        for layer, module in enumerate(self.blocks, 1):
            before = [edit(layer, groups[0])] if edit else groups
            groups = step(module, before, class_only=class_only and layer == self.depth)
            yield (layer, before, groups) if packed else (layer, before[0], groups[0])

    def value_attention(self, layer: int, tokens: Tensor, sources: str = "v") -> Tensor:
        """[B, T, C]: what block `layer` (from 1) attends to in `tokens` when values stand for queries and keys too.

        `sources` "qkv" is the sum of three such attentions, with the queries, the keys and the values on both sides.

        Source: CLIP Surgery (arXiv:2304.05653), the v-v attention; all three: Crane (arXiv:2504.11055), E-Attn.
        """
        return self_attended(self.blocks[layer - 1], tokens, sources)

    def attention(self, layer: int, tokens: Tensor) -> Tensor:
        """[B, T, C]: what the attention of block `layer` (from 1) adds to `tokens`, before its MLP sees them."""
        return attended(self.blocks[layer - 1], tokens)

    def values(self, layer: int, tokens: Tensor, bare: bool = False) -> Tensor:
        """[B, T, C]: the values that block `layer` (from 1) makes of `tokens`; `bare` without its norm and its bias."""
        module, C = self.blocks[layer - 1], self.width
        weight, bias = module.attn.in_proj_weight[2 * C :], module.attn.in_proj_bias[2 * C :]
        rows = tokens if bare else module.ln_1(tokens)
        return F.linear(rows.to(weight.dtype), weight, None if bare else bias)

    def joined(self, layer: int, mixed: Tensor) -> Tensor:
        """[B, T, C] float32: what the attention of block `layer` projects mixed values [B, T, C] to."""
        attention = self.blocks[layer - 1].attn
        return attention.out_proj(mixed.to(attention.in_proj_weight.dtype)).float()

    def mlp(self, layer: int, tokens: Tensor) -> Tensor:
        """[B, T, C]: what the MLP of block `layer` (from 1) adds to `tokens`, which its attention has changed."""
        return fed(self.blocks[layer - 1], tokens)

    def value_walk(
        self,
        pixels: Tensor,
        positions: str = "bicubic-antialias",
        first: int = 1,
        class_only: bool = False,
        sources: str = "v",
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor | None]]:
        """The block loop with what value paths are made of: yields (layer, tokens before, tokens after, values).

        `values` [B, T, C] is what block `layer` gives in `value_attention`, at the cost of one projection less; None
        before block `first`. Within `sharing` the walk over a batch is recorded, and later ones over it are replayed;
        elsewhere `class_only` spares the last block's tokens after it but the first, as in `walk`.
        """
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

    def _recorded(self, pixels: Tensor, positions: str) -> list[tuple[Tensor, Tensor, dict[str, Tensor]]] | None:
        """The steps of this batch's walk so far; None where nothing is recorded. Only one batch is kept."""
        tokens = len(pixels) * (1 + math.prod(self.grid(pixels)))
        if getattr(self._shared, "passes", None) is None or 8 * self.depth * tokens * self.width > RECORD_BYTES:
            return None
        if self._shared.record is None or self._shared.record[0] is not pixels:
            self._shared.record = pixels, {}
        native = self.grid(pixels) == tuple(self.visual.grid_size)  # nothing is resampled
        return self._shared.record[1].setdefault("" if native else positions, [])

    def project(self, tokens: Tensor) -> Tensor:
        """[..., D] joint embeddings, not normalised, of [..., C] tokens: last layer norm, then the projection."""
        return self.norm(tokens) @ self.visual.proj

    def norm(self, tokens: Tensor) -> Tensor:
        """[..., C] tokens after the last layer norm alone."""
        return self.visual.ln_post(tokens)

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Until the block ends, passes over the same pixels (the same tensor object) are computed once.

        For many detectors on one batch: `dense`, `windows` and the call itself are the passes that methods start from.
        """
        if getattr(self._shared, "passes", None) is not None:  # within another such block, which has all of it already
            yield
            return
        self._shared.passes, self._shared.record = {}, None
        try:
            yield
        finally:
            self._shared.passes, self._shared.record = None, None

    @_shared
    def dense(
        self, pixels: Tensor, blocks: int = VALUE_PATH_BLOCKS, positions: str = "bicubic-antialias"
    ) -> tuple[Tensor, Tensor]:
        """([B, D], [B, N, D]), not normalised: class embedding, and patch embeddings that align with text.

        `tiny` is trained to align its last block's tokens. Published CLIPs do not align theirs: for them the patches
        come from the value path, a sum of value attentions of the last `blocks` beside the ordinary stream (CLIP
        Surgery, arXiv:2304.05653). `positions` as in `embed`.
        """
        beside = self.dense_path == "value"
        first = max(1, self.depth - blocks + 1) if beside else self.depth + 1
        value_path = None
        for _, before, after, values in self.value_walk(pixels, positions, first, class_only=beside):  # noqa: B007
            if values is not None:
                value_path = (before if value_path is None else value_path) + values
        patches = after if value_path is None else value_path
        return self.project(after[:, 0]), self.project(patches[:, 1:])

    @_shared
    def windows(self, pixels: Tensor, scales: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Class embeddings, not normalised: [B, D] of whole pictures, then [B, windows, D] of square windows per scale.

        A window is the class token and k x k patches with their own positions, run through the tower as a short
        sequence (WinCLIP, arXiv:2303.14814); stride 1, row-major. All sequences share each matrix product.
        """
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

    @_shared
    def __call__(self, pixels: Tensor, layers: tuple[int, ...] = (), positions: str = "bicubic-antialias") -> Features:
        """Image embedding and the patch tokens of the asked layers (from 1), in one pass; `positions` as in `embed`.

        Raises:
            ValueError: a layer is outside 1..depth.
        """
        if wrong := [layer for layer in layers if not 1 <= layer <= self.depth]:
            raise ValueError(f"layers {wrong} asked; {self.name} has layers 1 to {self.depth}")
        taps = {}
        for layer, _, after, _ in self.value_walk(pixels, positions, first=self.depth + 1):
            if layer in layers:
                taps[layer] = after[:, 1:]
        return Features(
            F.normalize(self.project(after[:, 0]), dim=-1), tuple(taps[i] for i in layers), self.grid(pixels)
        )
