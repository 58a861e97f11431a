"""AnomalyCLIP: two learned sentences that name no object, "normal" and "damaged", against the patches of any picture.

Paper: "AnomalyCLIP: Object-agnostic Prompt Learning for Zero-shot Anomaly Detection" (arXiv:2310.18961). Official code:
zqhang/AnomalyCLIP. Needs: learned weights (the authors' files, or `vlad train`). No words, no normal pictures, one
picture at a time.

1. The sentences are twelve learned vectors, then "object." or "damaged object."; before text blocks 2 to 9 the first
   four of their tokens are replaced by learned ones.
2. Patch embeddings come from a value stream beside the frozen vision tower (`value_stream`).
3. A softmax over the cosine similarities with both sentences, at temperature 0.07, gives the picture's probability of
   being damaged from the class token, the score, and each patch's: bilinear to the picture's square and smoothed by a
   gaussian of 4 px, the map.
4. Trained with cross entropy on the picture and four times focal and dice losses on the pixels; the encoder is frozen.

Known differences: the official code rounds the deep prompts to float16, which moves text features by 4e-5. With several
`layers` the map is the mean over them, where the code has the sum. It tapped four layers for long, but an in-place sum
made all of them the last one: the published weights are for that one alone, the default here. Encoders that align their
ordinary tokens with text are taken as they are.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlad.encoders.encoder import Encoder
from vlad.learning.losses import segmentation, whole_picture
from vlad.learning.prompt_learner import PromptLearner, official_prompts, state_maps, value_stream
from vlad.learning.scorer import Batch, LearnedScorer, official_parts
from vlad.maps import anomaly_probability, checked_sigma, smooth_map, state_logits
from vlad.memory import checked_layers
from vlad.scorer import Scores

ENDINGS = (" object.", " damaged object.")
PIXELS = 4  # weight of the pixels' losses; in the code it makes up for the three layers that fell away


class AnomalyClip(LearnedScorer):
    """See the module. `n_ctx`, `depth`, `length` are `PromptLearner`'s; `sigma` smooths the map, in input pixels."""

    words = "fixed"
    paper_resolution: ClassVar[Mapping[int, int]] = {336: 518}
    official_encoder: ClassVar[str] = "ViT-L-14-336-quickgelu/openai"

    def __init__(
        self,
        encoder: Encoder,
        *,
        resolution: int | None = None,
        n_ctx: int = 12,
        depth: int = 9,
        length: int = 4,
        layers: Sequence[int] | None = None,
        sigma: float = 4.0,
    ):
        super().__init__(encoder, resolution=resolution)
        self.layers = checked_layers((encoder.depth,) if layers is None else layers, encoder.depth)
        with torch.random.fork_rng(devices=[]):  # follows the global seed, and leaves the global state alone
            self.prompt_learner = PromptLearner(encoder, ENDINGS, n_ctx, depth, length)
        self.sigma = checked_sigma(sigma)
        self.options.update(n_ctx=n_ctx, depth=self.prompt_learner.depth, length=length)
        self.options.update(layers=list(self.layers), sigma=self.sigma)
        self.to(encoder.device).eval()

    def image_side(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The class embedding [B, D] and the patch embeddings [B, N, D] of each layer, not normalised."""
        return self._seen(pixels)[1:]

    def _seen(self, pixels: Tensor) -> tuple[Tensor, ...]:
        own, image, taps = value_stream(self.encoder, pixels, self.layers)
        return own, image, *(tokens[:, 1:] for tokens in taps)

    def forward(self, pixels: Tensor) -> Scores:
        own, image, *patches = self._seen(pixels)
        states = self.prompt_learner(self.encoder)  # [2, D]
        grid = anomaly_probability(torch.stack(patches), states).mean(0).unflatten(1, self.encoder.grid(pixels))
        size = pixels.shape[-2], pixels.shape[-1]
        return Scores(anomaly_probability(image, states), smooth_map(grid, size, self.sigma), own)

    def loss(self, batch: Batch) -> Tensor:
        image, *layers = batch.features
        states = self.prompt_learner(self.encoder)
        size = batch.masks.shape[-2], batch.masks.shape[-1]
        total = whole_picture(state_logits(image, states), batch.labels)
        for patches in layers:
            maps = state_maps(patches, states, size, self.encoder.patch_size)
            total = total + PIXELS * segmentation(maps, batch.masks)
        return total

    @classmethod
    def official(cls, content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Keywords and tensors of a file of zqhang/AnomalyCLIP."""
        (learner,) = official_parts(content, "anomalyclip", ("prompt_learner",))
        options, tensors = official_prompts(learner)
        return options, {f"prompt_learner.{key}": value for key, value in tensors.items()}
