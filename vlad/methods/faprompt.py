"""FAPrompt: ten learned kinds of damage instead of one, and a second look in which the picture's patches shift them.

Paper: "Fine-grained Abnormality Prompt Learning for Zero-shot Anomaly Detection" (arXiv:2410.10289). Official code:
mala-lab/FAPrompt. Needs: learned weights (`vlad train`, or a file of the authors' code). No words, no normal pictures,
one picture at a time.

1. One normal sentence, five learned vectors and "object."; ten anomalous ones, the same five, two of their own, and
   "damaged object.". Deep prompts and patch embeddings as in AnomalyCLIP. The anomalous prototype is the mean of ten.
2. First look: each patch's probability, a softmax over its cosines with both prototypes at temperature 0.07.
3. Ten of the picture's patches, side by side, give through a small network one vector that is added to the ten
   sentences' own words: the anomalous prototype of the second look, and of the picture's own probability.
4. The map is the mean of both looks, bilinear to the picture's square and smoothed by a gaussian of 10 px. The score is
   the mean of the picture's probability and of the looks' largest patches, the first counted twice.
5. Trained with focal and dice losses of both looks, cross entropy of the picture, a focal loss of the score, and
   penalties where the first look's ten kinds are alike and where a normal picture shifts them; the encoder is frozen.

Known differences: the paper takes the ten most anomalous patches of the first look; the code ranks them, and then takes
the picture's first ten, row by row. Its published numbers come from that, so `prior="first"` is the default and
`"ranked"` is the paper's. The code rounds the deep prompts to float16. Encoders that align their ordinary tokens with
text are taken as they are.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.encoders.encoder import Encoder
from vlad.learning.losses import segmentation, whole_picture
from vlad.learning.prompt_learner import (
    Kept,
    official_prompts,
    read_prompts,
    state_maps,
    value_stream,
    word_width,
)
from vlad.learning.scorer import Batch, LearnedScorer, official_parts
from vlad.maps import checked_sigma, picture_logits, smooth_map, state_logits
from vlad.scorer import Scores, check_choices

PRIORS = ("first", "ranked")
NARROWER = 16  # the small network's middle is so many times narrower than what goes in
SECOND, ALIKE = 0.5, 0.1  # weights of the second look's and the likeness losses
GAMMA = 2  # of the score's focal loss


def averaged(sentences: Tensor) -> Tensor:
    """[..., 2, D] prototypes of sentences [..., 1 + K, D], the normal one first; none is normalised before the mean."""
    return torch.stack([sentences[..., 0, :], sentences[..., 1:, :].mean(-2)], -2)


def likeness(sentences: Tensor) -> Tensor:
    """The sum, over all pairs of [K, D], of how far their cosines are from 0."""
    unit = F.normalize(sentences, dim=-1)
    return (unit @ unit.mT).abs().triu(1).sum()


def score_focal(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean over pictures of (1 - e^-b)^2 b, b the binary cross entropy of scores [B], taken as logits, with labels."""
    b = F.binary_cross_entropy_with_logits(scores, labels.float(), reduction="none")
    return ((1 - (-b).exp()) ** GAMMA * b).mean()


class FinePrompts(nn.Module):
    """One normal sentence and several anomalous ones, whose words learned vectors stand for, and what shifts those.

    Parameters, under the names of FAPrompt's code: `ctx_pos` [1, 1, n_ctx, C], the first words of all; `ctx_neg`
    [1, kinds, n_own, C], further words of each anomalous one; `compound_prompts_text` as in `PromptLearner`;
    `patch_meta_net`, which makes a shift of `top` patch embeddings.

    Raises:
        TypeError: the encoder's text tower is not built as CLIP's.
        ValueError: a number is out of range, or the sentences are too long for the tower.
    """

    ids: Tensor

    def __init__(self, encoder: Encoder, n_ctx: int, n_own: int, kinds: int, depth: int, length: int, top: int):
        super().__init__()
        C = word_width(encoder)
        if min(n_ctx, n_own, kinds, depth, top) < 1 or not 0 <= length <= n_ctx:
            raise ValueError(
                f"n_ctx is {n_ctx}, n_own {n_own}, kinds {kinds}, depth {depth}, top {top}, length {length}; expected "
                "1 or more, and of length 0 to n_ctx"
            )
        words = " ".join(["N"] * n_ctx), " ".join(["N"] * n_ctx + ["A"] * n_own)
        ids = encoder.tokenize([f"{words[0]} object.", f"{words[1]} damaged object."])
        self.register_buffer("ids", ids, persistent=False)
        self.depth, width = min(depth, encoder.text_depth), top * encoder.embed_dim
        self.ctx_pos = nn.Parameter(0.02 * torch.randn(1, 1, n_ctx, C))
        self.ctx_neg = nn.Parameter(0.02 * torch.randn(1, kinds, n_own, C))
        shapes = [(length, C)] * (self.depth - 1)
        self.compound_prompts_text = nn.ParameterList(0.02 * torch.randn(shape) for shape in shapes)
        middle = max(1, width // NARROWER)
        layers = {"linear1": nn.Linear(width, middle), "relu": nn.ReLU(), "linear2": nn.Linear(middle, C)}
        self.patch_meta_net = nn.Sequential()
        for name, layer in layers.items():
            self.patch_meta_net.add_module(name, layer)
        self._kept = Kept[Tensor]()

    def forward(self, encoder: Encoder) -> Tensor:
        """[1 + kinds, D] embeddings, normal first, not normalised; kept as `PromptLearner` keeps its own."""

        def read() -> Tensor:
            normal = read_prompts(encoder, self.ids[:1], self.ctx_pos[0], list(self.compound_prompts_text))
            return torch.cat([normal, self.shifted(encoder, self.ctx_pos.new_zeros(1, self.ctx_pos.shape[-1]))[0]])

        return self._kept(self.parameters(), read)

    def shifted(self, encoder: Encoder, shift: Tensor) -> Tensor:
        """[B, kinds, D] of the anomalous sentences alone, with a shift [B, C] of their own words."""
        own = self.ctx_neg + shift[:, None, None]  # [B, kinds, n_own, C]
        words = torch.cat([self.ctx_pos.expand(*own.shape[:2], -1, -1), own], 2).flatten(0, 1)
        ids = self.ids[1:].expand(len(words), -1)
        return read_prompts(encoder, ids, words, list(self.compound_prompts_text)).unflatten(0, own.shape[:2])


class FaPrompt(LearnedScorer):
    """See the module.

    Args:
        prior: which patches shift the sentences: "first", the picture's first ones as in the official code, or
            "ranked", the most anomalous ones as in the paper.
        n_ctx: learned words that all sentences share; n_own: further ones of each anomalous sentence.
        kinds: anomalous sentences.
        depth, length: of the deep prompts, as in `PromptLearner`.
        top: patches that shift the sentences.
        sigma: of the map's smoothing, in input pixels.

    Raises:
        TypeError: the encoder's text tower does not read as CLIP's.
        ValueError: an unknown prior, a number out of range, or fewer patches than `top`.
    """

    words = "fixed"
    paper_resolution: ClassVar[Mapping[int, int]] = {336: 518}
    official_encoder: ClassVar[str] = "ViT-L-14-336-quickgelu/openai"

    def __init__(
        self,
        encoder: Encoder,
        *,
        resolution: int | None = None,
        prior: str = "first",
        n_ctx: int = 5,
        n_own: int = 2,
        kinds: int = 10,
        depth: int = 9,
        length: int = 4,
        top: int = 10,
        sigma: float = 10.0,
    ):
        super().__init__(encoder, resolution=resolution)
        check_choices(prior=(prior, PRIORS))
        if (patches := (self.resolution // encoder.patch_size) ** 2) < top:
            raise ValueError(f"top is {top}, and resolution {self.resolution} has {patches} patches: take a larger one")
        with torch.random.fork_rng(devices=[]):  # follows the global seed, and leaves the global state alone
            self.prompt_learner = FinePrompts(encoder, n_ctx, n_own, kinds, depth, length, top)
        self.prior, self.top, self.sigma = prior, top, checked_sigma(sigma)
        self.options.update(prior=prior, n_ctx=n_ctx, n_own=n_own, kinds=kinds, depth=self.prompt_learner.depth)
        self.options.update(length=length, top=top, sigma=self.sigma)
        self.to(encoder.device).eval()

    def image_side(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The class embedding [B, D], not normalised, and the unit patch embeddings [B, N, D]."""
        return self._seen(pixels)[1:]

    def _seen(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own, image, (tokens,) = value_stream(self.encoder, pixels, (self.encoder.depth,))
        return own, image, F.normalize(tokens[:, 1:], dim=-1)

    def shift(self, patches: Tensor, states: Tensor) -> Tensor:
        """[B, C]: what unit patch embeddings [B, N, D], ranked by the first look's states [2, D], add to the words."""
        chosen = patches[:, : self.top]
        if self.prior == "ranked":
            logits = state_logits(patches, states)
            places = (logits[..., 1] - logits[..., 0]).topk(self.top, 1).indices  # [B, top]
            chosen = patches.take_along_dim(places[..., None], 1)
        return self.prompt_learner.patch_meta_net(chosen.flatten(1))

    def looks(self, sentences: Tensor, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States of both looks, [2, D] and [B, 2, D], and the shift [B, C] between them, of unit patches [B, N, D].

        `sentences` [1 + kinds, D] are those of the first look.
        """
        first = averaged(sentences)
        shift = self.shift(patches, first)
        anomalous = self.prompt_learner.shifted(self.encoder, shift)
        normal = sentences[:1].expand(len(patches), -1, -1)
        return first, averaged(torch.cat([normal, anomalous], 1)), shift

    def forward(self, pixels: Tensor) -> Scores:
        own, image, patches = self._seen(pixels)
        first, second, _ = self.looks(self.prompt_learner(self.encoder), patches)
        grids = torch.stack([state_logits(patches, states).softmax(-1)[..., 1] for states in (first, second)])
        score = self.scored(picture_logits(image, second), grids)
        size = pixels.shape[-2], pixels.shape[-1]
        return Scores(score, smooth_map(grids.mean(0).unflatten(1, self.encoder.grid(pixels)), size, self.sigma), own)

    def scored(self, logits: Tensor, grids: Tensor) -> Tensor:
        """[B] of the picture's logits [B, 2] and both looks' anomalous probabilities [2, B, N]."""
        first, second = grids.amax(-1)
        return (logits.softmax(-1)[:, 1] + (2 * first + second) / 3) / 2

    def loss(self, batch: Batch) -> Tensor:
        image, patches = batch.features
        sentences = self.prompt_learner(self.encoder)
        first, second, shift = self.looks(sentences, patches)
        size, logits = (batch.masks.shape[-2], batch.masks.shape[-1]), picture_logits(image, second)
        grids = torch.stack([state_logits(patches, states).softmax(-1)[..., 1] for states in (first, second)])
        maps = [state_maps(patches, states, size, self.encoder.patch_size) for states in (first, second)]
        total = segmentation(maps[0], batch.masks) + SECOND * segmentation(maps[1], batch.masks)
        total = total + whole_picture(logits, batch.labels) + score_focal(self.scored(logits, grids), batch.labels)
        return total + ALIKE * likeness(sentences[1:]) + shift.square().mean(1)[batch.labels == 0].sum()

    @classmethod
    def official(cls, content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Keywords and tensors of a file of mala-lab/FAPrompt."""
        (learner,) = official_parts(content, "faprompt", ("prompt_learner",))
        options, tensors = official_prompts(learner)
        own, meta = tensors.get("ctx_neg"), tensors.get("patch_meta_net.linear1.weight")
        if own is not None and own.ndim == 4:
            options.update(kinds=own.shape[1], n_own=own.shape[2])
            if meta is not None and meta.ndim == 2:
                options["top"] = meta.shape[1] // own.shape[3]
        return options, {f"prompt_learner.{key}": value for key, value in tensors.items()}
