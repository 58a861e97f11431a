"""SOWA: four small adapters that let patches look at each other within windows, through the tower's own frozen values.

Paper: "SOWA: Adapting Hierarchical Frozen Window Self-Attention to Visual-Language Models for Better Anomaly Detection"
(arXiv:2407.03634). Official code: huzongxiang/sowa. Needs: learned weights (the authors' Lightning files, or `vlad
train`). No words, one picture at a time; normal pictures if there are any.

1. Two sentences, twelve learned vectors and "object." or "damaged object."; a learned linear layer after them.
2. Raw patch tokens of four blocks, the quarters of the depth, at the tower's own resolution, each with an adapter: the
   block's values (its value rows without bias or norm), in windows of a quarter of the picture, attend to each other by
   their cosines, with a learned sharpness a head and a learned bias by offset (Swin v2); the block's own output
   projection, a norm and a residual; then a linear layer, a norm and a residual.
3. Projected without the last norm, their plain cosines with both sentences, not divided by a temperature, are brought
   to the picture's square (corners aligned) and go through a softmax. The map is the sum over the taps, in [0, 4] and
   near 2, smoothed by a gaussian of 4 px. The score is the picture's probability at temperature 0.07.
4. Trained on cross entropy of the picture (of its probabilities, as if they were logits) and focal and dice losses of
   each tap; the encoder is frozen.

After `fit`: the map also gets, per tap, the cosine distance of each projected token, without adapter, to the closest of
the normals', not smoothed; the score becomes the mean of itself and of the map's maximum, where `bounds` say which
maximum counts as 0 and which as 1.

Known differences: the official score after `fit` rescales the maxima by the smallest and largest of the class's test
pictures; `score="set"` does that in `predict`, `score="class"` takes the picture's probability alone. The paper speaks
of frozen window self-attention: of the frozen attention only the values are used, in 8 heads where CLIP has 16. Other
resolutions than the tower's own, which the code refuses, work here with other windows.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.encoders.encoder import Encoder
from vlad.framing import Framing
from vlad.learning.losses import segmentation, whole_picture
from vlad.learning.prompt_learner import NOT_LEARNED, PromptLearner
from vlad.learning.scorer import Batch, LearnedScorer, lengths_in, refuse_other_methods
from vlad.learning.tap_layers import anomalous_pixels, raw_taps
from vlad.maps import anomaly_probability, checked_sigma, gaussian, picture_logits, rescaled_together, to_size
from vlad.memory import Memory, checked_layers, quarters
from vlad.scorer import Scores, check_choices

ENDINGS = (" object.", " damaged object.")
SCORES = ("bounds", "class", "set")
WINDOW = 12  # patches a side; a grid of twice that is the paper's
HIDDEN = 64  # width of the bias's network
SHARPEST = math.log(100)  # of the cosines within a window
OFFSETS, BIASES = 8, 16  # the largest offset that the bias's network sees, before its logarithm; the largest bias
FROZEN = re.compile(  # the tower itself, of which the files have five copies
    r"clip_model\.|text_encoder\.|prompt_learner\.clip_model\.|visual_encoder\.(clip_model\.|proj$)"
    r"|visual_encoder\.adapters\.\d+\.blocks\.0\.attn\.(qkv|proj\.weight|proj\.bias|relative_\w+)$"
    rf"|prompt_learner\.({'|'.join(NOT_LEARNED[:3])})"
)
NAMES = (("visual_encoder.adapters.", "adapters."), (".blocks.0.", "."), (".mlp.layers.0.", ".mlp."))


def windowed(tokens: Tensor, side: int, window: int) -> Tensor:
    """[B, windows, window^2, C] of tokens [B, side^2, C] of a square grid; windows and what is in them row by row."""
    parts = tokens.unflatten(1, (side // window, window, side // window, window)).transpose(2, 3)
    return parts.flatten(3, 4).flatten(1, 2)


def whole(windows: Tensor, side: int, window: int) -> Tensor:
    """[B, side^2, C]: `windowed`, undone."""
    parts = windows.unflatten(2, (window, window)).unflatten(1, (side // window, side // window))
    return parts.transpose(2, 3).flatten(1, 4)


def offsets(window: int) -> Tensor:
    """[(2 window - 1)^2, 2] what the bias's network sees of each offset (dy, dx), row by row, in [-1.06, 1.06]."""
    steps = torch.arange(1.0 - window, window) * OFFSETS / max(1, window - 1)
    scaled = steps.sign() * (steps.abs() + 1).log2() / math.log2(OFFSETS)
    return torch.cartesian_prod(scaled, scaled)


def offset_numbers(window: int) -> Tensor:
    """[window^2, window^2] which of `offsets` leads from each place (columns) to each other (rows)."""
    places = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    steps = places[:, None] - places[None] + window - 1  # [query, key, 2], from 0
    return steps[..., 0] * (2 * window - 1) + steps[..., 1]


class WindowAttention(nn.Module):
    """What the values of patches take from each other within a window."""

    def __init__(self, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, heads, bias=False))

    def biases(self, window: int) -> Tensor:
        """[(2 window - 1)^2, heads] in (0, 16), of all offsets."""
        return BIASES * self.cpb_mlp(offsets(window).to(self.logit_scale.device)).sigmoid()

    def forward(self, values: Tensor, window: int) -> Tensor:
        """[B, windows, window^2, C] from the same."""
        v = values.unflatten(-1, (self.heads, -1)).transpose(2, 3)  # [B, windows, heads, places, C / heads]
        unit = F.normalize(v, dim=-1)
        bias = self.biases(window)[offset_numbers(window)].permute(2, 0, 1)  # [heads, places, places]
        logits = unit @ unit.mT * self.logit_scale.clamp(max=SHARPEST).exp() + bias
        weights = F.dropout(logits.softmax(-1), self.dropout, self.training)
        return (weights @ v).transpose(2, 3).flatten(3)


class WindowAdapter(nn.Module):
    """Window attention and a linear layer, each with a norm and a residual, around one frozen block's values."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = WindowAttention(heads, dropout)
        self.mlp = nn.Linear(width, width, bias=False)

    def forward(self, encoder: Encoder, layer: int, tokens: Tensor, window: int) -> Tensor:
        """[B, N, C] from raw patch tokens [B, N, C] after block `layer`."""
        tokens = tokens.float()
        y = tokens + self.norm1(self.attended(encoder, layer, tokens, window))
        return y + self.norm2(self.mlp(y))

    def attended(self, encoder: Encoder, layer: int, tokens: Tensor, window: int) -> Tensor:
        """[B, N, C]: the window attention, through the block's values and its output projection."""
        values, side = encoder.values(layer, tokens, bare=True).float(), math.isqrt(tokens.shape[1])
        mixed = self.attn(windowed(values, side, window), window)
        return encoder.joined(layer, whole(mixed, side, window))


class Fusion(nn.Module):
    """The linear layer after the sentences."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, sentences: Tensor) -> Tensor:
        return self.linear(sentences)


class Sowa(LearnedScorer):
    """See the module.

    Args:
        layers: the tapped blocks; None is the end of each quarter.
        window: side of a window in patches, the whole grid where that is smaller; None is 12 in a grid of 24, and
            otherwise the whole of a grid up to 12, half of a larger even one, and the whole of a larger odd one.
        heads: of the window attention.
        n_ctx: learned words of each sentence.
        score: after `fit`, one of "bounds", "class", "set"; see the module.
        bounds: the map's maxima that count as 0 and as 1; the default's lower one is an undecided map.
        sigma: of the map's smoothing, in input pixels.
        dropout: of the window attention's weights, in training.

    Raises:
        ValueError: the window does not divide the grid, the heads not the width, or an option is out of range.
    """

    words: ClassVar[Literal["required", "fixed", "none"]] = "fixed"
    map_range: ClassVar[tuple[float, float]] = (0.0, 12.0)
    region_level: ClassVar[float] = 2.0  # the taps call a place anomalous on average
    official_encoder: ClassVar[str] = "ViT-L-14-336-quickgelu/openai"
    mask_share: ClassVar[float] = 0.0

    def __init__(
        self,
        encoder: Encoder,
        *,
        resolution: int | None = None,
        layers: Sequence[int] | None = None,
        window: int | None = None,
        heads: int = 8,
        n_ctx: int = 12,
        score: str = "bounds",
        bounds: tuple[float, float] = (2.0, 4.0),
        sigma: float = 4.0,
        dropout: float = 0.1,
    ):
        super().__init__(encoder, resolution=resolution)
        check_choices(score=(score, SCORES))
        if not len(bounds) == 2 or not bounds[0] < bounds[1]:
            raise ValueError(f"bounds are {bounds!r}; expected (low, high) such as (2, 4)")
        if heads < 1 or encoder.width % heads:
            raise ValueError(f"heads is {heads}; expected a number that divides {encoder.width}, the encoder's width")
        self.layers = checked_layers(quarters(encoder.depth) if layers is None else layers, encoder.depth)
        self.window = self._window(window)
        self.how, self.bounds, self.sigma = score, (float(bounds[0]), float(bounds[1])), checked_sigma(sigma)
        self.options.update(layers=list(self.layers), window=window, heads=heads, n_ctx=n_ctx)
        self.options.update(score=score, bounds=list(self.bounds), sigma=self.sigma)
        with torch.random.fork_rng(devices=[]):  # follows the global seed, and leaves the global state alone
            self.prompt_learner = PromptLearner(encoder, ENDINGS, n_ctx)
            self.cross_fusion = Fusion(encoder.embed_dim)
            self.adapters = nn.ModuleList(WindowAdapter(encoder.width, heads, dropout) for _ in self.layers)
        exact = encoder.dtype == torch.float32
        self.normals = nn.ModuleList(Memory(encoder.embed_dim, exact=exact) for _ in self.layers)
        self.to(encoder.device).eval()

    def _window(self, window: int | None) -> int:
        side = self.resolution // self.encoder.patch_size
        if window is None:
            return side if side <= WINDOW or side % 2 else side // 2
        if window < 1 or side % min(window, side):
            raise ValueError(
                f"window is {window}, and resolution {self.resolution} gives {side} patches a side: expected a number "
                "that divides them, or None"
            )
        return min(window, side)

    def frame(self, framing: Framing) -> None:
        if framing.keep_aspect:
            raise TypeError("sowa lays square windows over a square of patches; keep_aspect gives another shape")
        super().frame(framing)

    def colours(self) -> tuple[float, float]:
        taps = len(self.layers)
        return (0.0, 3.0 * taps if self.references else 1.0 * taps)

    def image_side(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The picture's embedding [B, D], not normalised, and the raw patch tokens [B, N, C] of each tap."""
        return raw_taps(self.encoder, pixels, self.layers)

    def states(self) -> Tensor:
        """[2, D] of the normal and the damaged object, not normalised."""
        return self.cross_fusion(self.prompt_learner(self.encoder))

    def adapted(self, taps: Sequence[Tensor]) -> list[Tensor]:
        """[B, N, D] of each tap's raw tokens [B, N, C], adapted and projected."""
        parts = zip(self.adapters, self.layers, taps, strict=True)
        return [one(self.encoder, n, tokens, self.window) @ self.encoder.projection for one, n, tokens in parts]

    def maps(self, taps: Sequence[Tensor], states: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """Per tap [B, *size] anomalous probabilities."""
        grid = size[0] // self.encoder.patch_size, size[1] // self.encoder.patch_size
        return [anomalous_pixels(one, states, grid, size, 1.0) for one in self.adapted(taps)]

    def forward(self, pixels: Tensor) -> Scores:
        seen = self.seen(pixels)
        if not self.references or self.how == "class":
            return seen
        low, high = self.bounds
        return seen._replace(score=(seen.score + (seen.peaks() - low) / (high - low)) / 2)

    def seen(self, pixels: Tensor) -> Scores:
        """Finished, but with the picture's probability alone for its score."""
        own, *taps = self.image_side(pixels)
        size, states = (pixels.shape[-2], pixels.shape[-1]), self.states()
        amap = gaussian(torch.stack(self.maps(taps, states, size)).sum(0), self.sigma)
        if self.references:
            grid = self.encoder.grid(pixels)
            amap = amap + to_size(self.association(taps).unflatten(1, grid), size, align_corners=True)
        return Scores(anomaly_probability(own, states), amap, own)

    def association(self, taps: Sequence[Tensor]) -> Tensor:
        """[B, N]: the sum over the taps of the cosine distances to the closest token of the normals in the same tap."""
        memories = zip(self.memories().values(), taps, strict=True)
        distances = [memory.distance(tokens.float() @ self.encoder.projection) for memory, tokens in memories]
        return torch.stack(distances).sum(0)

    def remember(self, batches: Iterable[Tensor]) -> None:
        for pixels in batches:
            _, *taps = self.image_side(pixels)
            for memory, tokens in zip(self.memories().values(), taps, strict=True):
                memory.add(tokens.float() @ self.encoder.projection)

    @property
    def score_set(self) -> Callable[[Iterable[Tensor]], Iterable[Scores]] | None:
        return self._rescaled if self.how == "set" else None

    def _rescaled(self, batches: Iterable[Tensor]) -> Iterable[Scores]:
        """With normals, the mean of the pictures' probabilities and of the maps' maxima, rescaled over the set."""
        if not self.references:
            return map(self.forward, batches)
        seen = [self.seen(pixels) for pixels in batches]  # the maps of the whole set
        peaks = rescaled_together([one.peaks() for one in seen])
        return [one._replace(score=(one.score + peak) / 2) for peak, one in zip(peaks, seen, strict=True)]

    def loss(self, batch: Batch) -> Tensor:
        own, *taps = batch.features
        states, size = self.states(), (batch.masks.shape[-2], batch.masks.shape[-1])
        total = whole_picture(picture_logits(own, states).softmax(-1), batch.labels)
        for anomalous in self.maps(taps, states, size):
            total = total + segmentation(torch.stack([1 - anomalous, anomalous], 1), batch.masks)
        return total

    @classmethod
    def official(cls, content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Keywords and tensors of a Lightning file of huzongxiang/sowa; its copies of the tower are not looked at."""
        refuse_other_methods(content, "sowa")
        table = {str(key).removeprefix("net."): value for key, value in content["state_dict"].items()}
        tensors: dict[str, Tensor] = {}
        options: dict[str, Any] = {}
        for key, value in table.items():
            if not isinstance(value, Tensor):
                raise ValueError(f"its part 'state_dict' holds {key!r}, which is no tensor")
            if key.endswith(".relative_coords_table") and value.ndim == 4:
                options["window"] = (value.shape[1] + 1) // 2
            if FROZEN.match(key):
                continue
            for theirs, ours in NAMES:
                key = key.replace(theirs, ours)
            tensors[key] = value
        sizes = {"n_ctx": ("prompt_learner.ctx_pos", 2), "heads": ("adapters.0.attn.logit_scale", 0)}
        return options | lengths_in(tensors, **sizes), tensors
