"""Crane and Crane+: AnomalyCLIP's two learned sentences, and a score pooled from the patches that look damaged.

Paper: "Crane: Context-Guided Prompt Learning and Attention Refinement for Zero-Shot Anomaly Detection"
(arXiv:2504.11055). Official code: AlirezaSalehy/Crane. Needs: learned weights (the authors' files, or `vlad train`);
Crane+ also a DINOv2. No words, no normal pictures, one picture at a time.

1. The sentences are AnomalyCLIP's: twelve learned vectors, then "object." or "damaged object."; before text blocks 2 to
   9 the first four of their tokens are replaced by learned ones.
2. Patch embeddings come from a stream beside the frozen vision tower that adds up, from block 6 of 24 on, what the
   blocks attend to with queries, with keys and with values on both sides: three softmaxes, summed (E-Attn).
3. Crane+ (`dino`): a second set of patch embeddings, the last block's values averaged over the patches that a DINOv2
   finds more alike than 1.2 times the average (D-Attn).
4. A softmax over the cosines with both sentences at temperature 0.07, bilinear to the picture's square and smoothed by
   a gaussian of 4 px: the map.
5. The patches' embeddings, weighted by their probabilities, are pooled and mixed half and half with the picture's own:
   that embedding's probability is the score.
6. Trained with the picture's embedding as one more word of both sentences (`context`), on focal and dice losses of the
   pixels and a cross entropy of the score; the encoder is frozen.

Known differences: the official code rounds the deep prompts to float16. Its threshold of D-Attn is a mean over all
pictures of a batch, so that a score depends on its company: here a picture's own, and the batch's with
`batch_mean=True`. What it means to tap is not always what it taps: in-place sums make its four layers the last one
(here one, whose pixel losses count four times), and D-Attn reads the last block after its attention. The released test
script leaves the picture out of the sentences, as the default here does. DINO sees the picture at the size that gives
it the encoder's own grid. Encoders that align their ordinary tokens with text are taken as they are in step 2, and
where text is not as wide as the joint space training does without the picture's word.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vlad.encoders.encoder import Encoder
from vlad.learning.losses import dice, focal, whole_picture
from vlad.learning.prompt_learner import PromptLearner, official_prompts, stream_walk
from vlad.learning.scorer import Batch, LearnedScorer, official_parts
from vlad.maps import CLIP_TEMPERATURE, checked_sigma, gaussian, picture_logits, state_logits, to_size
from vlad.scorer import Scores

ENDINGS = (" object.", " damaged object.")
SHARPNESS, ALIKE = 3.0, 1.2  # of D-Attn's softmax, and how far above the average cosine patches count as alike
OWN = 0.5  # share of the picture's own embedding in the one that is scored
PIXELS, PICTURE = 2.0, 0.2  # weights of the losses
TAPS = 4  # of Crane in the official code, all the same


def alike(patches: Tensor, over_batch: bool = False) -> Tensor:
    """[B, N, N], rows of sum 1: how much of each patch another takes, from DINO's patches [B, N, C] of any length.

    Patches that are less alike than 1.2 times the average, the picture's or the whole batch's, give nothing; where none
    is more alike, in a picture that is the same all over, all give.
    """
    unit = F.normalize(patches.float(), dim=-1)
    cosines = unit @ unit.mT
    average = cosines.mean() if over_batch else cosines.mean((1, 2), keepdim=True)
    above = SHARPNESS * (cosines - ALIKE * average)
    nothing = (above < 0) & (above >= 0).any(-1, keepdim=True)
    return above.masked_fill(nothing, -torch.inf).softmax(-1)


def pooled(patches: Tensor, logits: Tensor) -> Tensor:
    """[B, D] unit: the mean over the maps of patches [M, B, N, D], weighted by how damaged logits [M, B, N, 2] say."""
    weights = logits.mean(0).softmax(-1)[..., 1:]  # [B, N, 1]
    return F.normalize((weights * F.normalize(patches, dim=-1).mean(0)).sum(1), dim=-1)


class Crane(LearnedScorer):
    """See the module. `n_ctx`, `depth`, `length` are `PromptLearner`'s.

    Args:
        dino: a DINOv2 for Crane+, by name ("dino:base-registers" is the paper's) or as an Encoder; None is Crane.
        context: make the picture's embedding a word of the sentences when it is scored, as in training.
        soft_mean: average the maps' probabilities, as the authors do for Crane and for Crane+ on medical pictures, or
            (False) their logits, as for Crane+ on industrial ones; None is True without `dino`.
        batch_mean: take D-Attn's threshold from the whole batch, as published scores do; they depend on it then.
        sigma: of the map's smoothing, in input pixels.

    Raises:
        ValueError: a number is out of range, or `context` with text tokens not as wide as the joint space.
        TypeError: the encoder's text tower does not read as CLIP's.
    """

    words = "fixed"
    paper_resolution: ClassVar[Mapping[int, int]] = {336: 518}
    official_encoder: ClassVar[str] = "ViT-L-14-336-quickgelu/openai"

    dino: Encoder | None

    def __init__(
        self,
        encoder: Encoder,
        *,
        resolution: int | None = None,
        dino: str | Encoder | None = None,
        n_ctx: int = 12,
        depth: int = 9,
        length: int = 4,
        context: bool = False,
        soft_mean: bool | None = None,
        batch_mean: bool = False,
        sigma: float = 4.0,
    ):
        super().__init__(encoder, resolution=resolution)
        self.wide = encoder.text_width == encoder.embed_dim
        if context and not self.wide:
            raise ValueError(
                f"context makes a picture's embedding a word, and words of {encoder.name!r} are {encoder.text_width} "
                f"wide, embeddings {encoder.embed_dim}: leave it out, or take {self.official_encoder!r} or 'tiny'"
            )
        if isinstance(dino, str):
            dino = Encoder.load(dino, str(encoder.device), encoder.precision)
        # past nn.Module's books, as the encoder is
        object.__setattr__(self, "dino", dino)
        with torch.random.fork_rng(devices=[]):  # follows the global seed, and leaves the global state alone
            self.prompt_learner = PromptLearner(encoder, ENDINGS, n_ctx, depth, length)
        self.context, self.batch_mean, self.sigma = bool(context), bool(batch_mean), checked_sigma(sigma)
        self.frozen_image_side = not self.batch_mean  # company changes with every batch
        self.soft_mean = dino is None if soft_mean is None else bool(soft_mean)
        self.options.update(dino=dino and dino.name, n_ctx=n_ctx, depth=self.prompt_learner.depth, length=length)
        self.options.update(context=self.context, soft_mean=self.soft_mean, batch_mean=self.batch_mean)
        self.options["sigma"] = self.sigma
        self.to(encoder.device).eval()

    def image_side(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The picture's embedding [B, D] and the patch embeddings [B, N, D] of each map, not normalised."""
        for _, before, after, stream in stream_walk(self.encoder, pixels, "qkv"):  # noqa: B007
            pass
        taps = [(after if stream is None else stream)[:, 1:]]
        if self.dino is not None:
            taps.insert(0, self.refined(pixels, before))
        return self.encoder.project(after[:, 0]), *map(self.encoder.project, taps)

    def refined(self, pixels: Tensor, before: Tensor) -> Tensor:
        """[B, N, C]: the last block's values, of tokens [B, 1 + N, C] before it, averaged where DINO says."""
        last = self.encoder.depth
        middle = before + self.encoder.attention(last, before)  # after its attention and before its MLP
        weights = alike(self.dino_patches(pixels), self.batch_mean)
        return self.encoder.joined(last, weights @ self.encoder.values(last, middle[:, 1:]).float())

    def dino_patches(self, pixels: Tensor) -> Tensor:
        """[B, N, C'] of DINO's last layer, on the grid that the encoder has of pixels [B, 3, S, S]."""
        assert self.dino is not None
        levels = (pixels * self.encoder.std + self.encoder.mean).clamp(0, 1)
        size = [side * self.dino.patch_size for side in self.encoder.grid(pixels)]
        if size != list(levels.shape[-2:]):
            levels = F.interpolate(levels, size, mode="bicubic", antialias=True).clamp(0, 1)
        return self.dino((levels - self.dino.mean) / self.dino.std, layers=(self.dino.depth,)).patches[0]

    def states(self, own: Tensor, context: bool) -> Tensor:
        """[2, D], or with `context` [B, 2, D]: both sentences, with the pictures' embeddings [B, D] as a word."""
        if context:
            return self.prompt_learner.with_word(self.encoder, F.normalize(own, dim=-1))
        return self.prompt_learner(self.encoder)

    def scored(self, own: Tensor, patches: Tensor, logits: Tensor) -> Tensor:
        """[B, D]: the embedding that is scored, of the pictures' own [B, D], and patches and logits as `pooled` has."""
        return (1 - OWN) * pooled(patches, logits) + OWN * F.normalize(own, dim=-1)

    def forward(self, pixels: Tensor) -> Scores:
        own, *layers = self.image_side(pixels)
        patches, states = torch.stack(layers), self.states(own, self.context)
        logits = state_logits(patches, states)  # [M, B, N, 2]
        score = picture_logits(self.scored(own, patches, logits), states).softmax(-1)[:, 1]
        size, grid = (pixels.shape[-2], pixels.shape[-1]), self.encoder.grid(pixels)
        if self.soft_mean:
            maps = to_size(logits.softmax(-1)[..., 1].mean(0).unflatten(1, grid), size)
        else:
            difference = (logits[..., 1] - logits[..., 0]).mean(0)  # resizing and averaging are linear
            maps = to_size(difference.unflatten(1, grid), size).sigmoid()
        return Scores(score, gaussian(maps, self.sigma), own)

    def loss(self, batch: Batch) -> Tensor:
        own, *layers = batch.features
        patches, states = torch.stack(layers), self.states(own, self.wide)
        logits = state_logits(patches, states)
        scored = self.scored(own, patches, logits)
        total = PICTURE * whole_picture(picture_logits(scored, states, CLIP_TEMPERATURE), batch.labels)
        weight = PIXELS * (TAPS if self.dino is None else 1)
        for probabilities in self.training_maps(logits, batch.masks):
            total = total + weight * (focal(probabilities, batch.masks) + dice(probabilities[:, 1], batch.masks))
        return total

    def training_maps(self, logits: Tensor, masks: Tensor) -> Tensor:
        """[M, B, 2, H, W] probabilities of logits [M, B, N, 2] at the size of masks [B, H, W]: the nearest patch's."""
        size = masks.shape[-2], masks.shape[-1]
        grid = size[0] // self.encoder.patch_size, size[1] // self.encoder.patch_size
        probabilities = logits.softmax(-1).mT.unflatten(-1, grid)  # [M, B, 2, rows, columns]
        return F.interpolate(probabilities.flatten(0, 1), size).unflatten(0, logits.shape[:2])

    @classmethod
    def official(cls, content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Keywords and tensors of a file of AlirezaSalehy/Crane; all published ones have deep prompts for 9 blocks."""
        (learner,) = official_parts(content, "crane", ("prompt_learner",))
        options, tensors = official_prompts(learner)
        options["depth"] = max(options["depth"], 9)
        return options, {f"prompt_learner.{key}": value for key, value in tensors.items()}
