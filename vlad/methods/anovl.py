"""AnoVL: a value path through all blocks against sentences of normal and abnormal states, at temperature 1.

Paper: "Bootstrap Fine-Grained Vision-Language Alignment for Unified Zero-Shot Anomaly Localization" (arXiv:2308.15939).
Official code: hq-deng/AnoVL. Needs: text. Normal pictures if there are any, no training, one picture at a time.

1. A second stream beside the frozen tower starts from the embedded picture and sums up the value attentions of all
   blocks (`Encoder.dense`).
2. The softmax of its patches' cosines with the two prototypes, without a temperature, is averaged over 3 x 3 patches
   (border repeated) and brought to the picture's square, bilinear with align_corners=True: the map. Its values lie
   close around 0.5.
3. The score is the same softmax for the class token, averaged over 22 views of the picture: itself, turned by up to
   45 degrees and by right angles, shifted, mirrored, grey. Each view is an encoder pass; `views=1` takes the picture
   alone, and with it the cost of a single pass.
4. `adapt=True`: before the map, a small layer is taught on this picture alone, for five steps, that its patches'
   verdicts be sure, and that noise on them be seen as abnormal. It and its noise are drawn anew from `seed` for each
   picture, so that no score depends on the pictures before.

After `fit` (ours, weighted as in `patch_text`): the geometric mean of the patches' probability, at temperature 0.07,
and of how unlike the patches of the normals they are.

Prompts: "anovl" is for objects, "anovl-texture" has the paper's words for textures (carpet, leather, grid, tile, wood).
An encoder whose ordinary tokens align with text (`tiny`) uses those in the place of the value path: on two sets of real
pictures (crackforest, aws_lookout) `tiny` then localises a little better (pixel AUROC .899 for .883, .911 for .905).
The adaptation made its maps of the first set worse (.869).

Known differences: pictures are resized bicubically as for all methods, not bilinearly; the official code draws one
optimiser's state on from picture to picture; its variant of the adaptation for VisA, with tiles, is left out.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.encoders.encoder import Encoder
from vlad.encoders.views import moved
from vlad.maps import CERTAIN, TEMPERATURE, anomaly_probability, state_logits, to_size
from vlad.memory import middle_layers
from vlad.memory.layers import LayerMemory
from vlad.prompts import PromptPack, state_rows
from vlad.scorer import Scorer, Scores

VIEWS = (1, 22)
STEPS, LEARNING_RATE, NOISE = 5, 1e-3, 0.055  # of the adaptation
GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue


def views(pixels: Tensor) -> list[Tensor]:
    """The 21 views of pictures [B, 3, S, S] beside themselves, of the same shape."""
    angles = [math.radians(sign * 11.25 * step) for step in (4, 3, 2, 1) for sign in (1, -1)]
    shifts = [(x * far, y * far) for far in (0.2, 0.1) for x in (1, -1) for y in (1, -1)]
    grey = (pixels * pixels.new_tensor(GREY).view(1, 3, 1, 1)).sum(1, keepdim=True).expand_as(pixels)
    turned = [pixels.rot90(quarter, (2, 3)) for quarter in (1, 2, 3)]
    return [
        *(moved(pixels, angle=angle) for angle in angles),
        *(moved(pixels, shift=shift) for shift in shifts),
        pixels.flip(3),
        grey,
        *turned,
    ]


def neighbour_mean(grid: Tensor) -> Tensor:
    """[B, rows, columns] averaged over 3 x 3 neighbours, the border repeated."""
    return F.avg_pool2d(F.pad(grid[:, None], [1] * 4, mode="replicate"), 3, stride=1)[:, 0]


class PatchAdapter(nn.Module):
    """0.5 z + 0.5 tanh(A unit(z)) E: tokens z drawn towards the sentences E [T, D], by a linear layer A to be learned.

    A is drawn from the generator as PyTorch draws a new linear layer.
    """

    def __init__(self, sentences: Tensor, generator: torch.Generator):
        super().__init__()
        count, width = sentences.shape
        self.sentences = sentences
        drawn = torch.rand(count, width + 1, generator=generator).mul(2).sub(1) / width**0.5
        self.layer = nn.Linear(width, count, device=sentences.device)
        with torch.no_grad():
            self.layer.weight.copy_(drawn[:, :-1])
            self.layer.bias.copy_(drawn[:, -1])

    def forward(self, tokens: Tensor) -> Tensor:
        return 0.5 * tokens + 0.5 * torch.tanh(self.layer(F.normalize(tokens, dim=-1))) @ self.sentences


def adapted(tokens: Tensor, sentences: Tensor, states: Tensor, generator: torch.Generator) -> Tensor:
    """[N, D] patch embeddings of one picture after the adaptation to it.

    Args:
        tokens: [N, D], not normalised.
        sentences: [T, D] of length 1, of both states.
        states: [2, D].
        generator: on the CPU; draws the layer, then each step's noise.

    Source: AnoVL (arXiv:2308.15939), test-time adaptation, as in its script for MVTec AD.
    """
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        adapter = PatchAdapter(sentences, generator)
        optimiser = torch.optim.AdamW(adapter.layer.parameters(), lr=LEARNING_RATE)
        for _ in range(STEPS):
            noise = torch.randn(tokens.shape, generator=generator).to(tokens) * NOISE
            clean, noisy = state_logits(adapter(torch.stack([tokens, tokens + noise])), states, 1.0).log_softmax(-1)
            entropy = -(clean.exp() * clean).sum(-1).mean()
            loss = entropy - 0.5 * (noisy[:, 1] + clean[:, 0]).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        return adapter(tokens)


class AnoVl(Scorer):
    """See the module. `views` is 1 or 22, `adapt` switches the test-time adaptation on, `seed` is its randomness."""

    sentences: Tensor  # [T, D] unit, where it adapts; else None

    def __init__(
        self,
        encoder: Encoder,
        *,
        resolution: int | None = None,
        views: int = 22,
        adapt: bool = False,
        seed: int = 0,
    ):
        super().__init__(encoder, resolution=resolution)
        if views not in VIEWS:
            raise ValueError(f"views is {views!r}; expected 1, the picture alone, or 22, the paper's")
        self.views, self.adapt, self.seed = views, bool(adapt), int(seed)
        self.options.update(views=views, adapt=self.adapt, seed=self.seed)
        self.memory = LayerMemory(encoder, middle_layers(encoder.depth))
        self.register_buffer("sentences", None)

    def prototypes_of(self, pack: PromptPack, name: str) -> Tensor:
        if self.adapt:
            self.sentences = F.normalize(torch.cat(state_rows(self.encoder, pack, name)), dim=-1)
        return super().prototypes_of(pack, name)

    def colours(self) -> tuple[float, float]:
        hot = 1 / (1 + math.exp(-CERTAIN * self.encoder.temperature))  # at temperature 1 all lies close above a half
        return (0.0, 1.0) if len(self.memory) else (0.5, hot)

    def forward(self, pixels: Tensor) -> Scores:
        temperature = TEMPERATURE if len(self.memory) else 1.0
        with self.memory.one_walk():
            image, patches = self.encoder.dense(pixels, self.encoder.depth)  # [B, D], [B, N, D]
            if self.adapt:
                patches = torch.stack([self._adapted(one) for one in patches])
            grid = anomaly_probability(patches, self.prototypes, temperature).unflatten(1, self.encoder.grid(pixels))
            grid, whole = self.memory.fused(pixels, grid, self._whole(pixels, image, temperature))
        amap = to_size(neighbour_mean(grid), (pixels.shape[-2], pixels.shape[-1]), align_corners=True)
        return Scores(whole, amap, image)

    def _adapted(self, tokens: Tensor) -> Tensor:
        return adapted(tokens, self.sentences, self.prototypes, torch.Generator().manual_seed(self.seed))

    def _whole(self, pixels: Tensor, image: Tensor, temperature: float) -> Tensor:
        """[B]: the class token's probability, over all views."""
        seen = [image] if self.views == 1 else [image, *map(self._class_embedding, views(pixels))]
        return torch.stack([anomaly_probability(one, self.prototypes, temperature) for one in seen]).mean(0)

    def _class_embedding(self, pixels: Tensor) -> Tensor:
        *_, (_, _, last) = self.encoder.walk(self.encoder.embed(pixels), class_only=True)
        return self.encoder.project(last[:, 0])

    def remember(self, batches: Iterable[Tensor]) -> None:
        self.memory.remember(batches)
