"""VCP-CLIP: the picture's own embedding stands in the sentences where the object's name would.

Paper: "VCP-CLIP: A visual context prompting model for zero-shot anomaly segmentation" (arXiv:2407.12276). Official
code: xiaozhen228/VCP-CLIP. Needs: learned weights (the authors' files, or `vlad train`). No words, no normal pictures,
one picture at a time. Made for maps, not for scores.

1. A convolution along the numbers of the picture's embedding makes two word vectors, which end the sentences "a photo
   of a good ..." and "a photo of a damaged ...".
2. A learned token, without a position, follows the start token, and is put in anew before text blocks 2 and later.
   After the last block it is taken out, and a learned layer norm comes before the tower's own.
3. Raw patch tokens of four blocks, the quarters of the depth, are compared with both sentences twice: after a linear
   layer each; and as they are, with sentences that have attended to them.
4. The logits, at learned temperatures, go to the picture's square and through a softmax each. The means over the taps,
   0.2 of the first kind and 0.8 of the second, smoothed by a gaussian of 8 px, are the map.
5. The score, in [0, 2], is the sum of both kinds' means over their largest 0.75 % of pixels, before the smoothing.
6. Trained on focal and dice losses of the eight maps; the encoder is frozen.

Known differences: the official code rescales maps and scores by the smallest and the largest of all pictures of a
class, so that they depend on the other pictures; `score="set"` does that in `predict`. The default takes 2000 pixels of
518 x 518 as a share, so that other resolutions mean the same. Training has no augmentation but mosaics, and everything
is float32 where the official code has half of it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.encoders.encoder import Encoder
from vlad.learning.prompt_learner import check_joint_text
from vlad.learning.scorer import Batch, LearnedScorer, refuse_other_methods
from vlad.learning.tap_layers import TapLayers, anomalous_pixels, pixel_loss, raw_taps
from vlad.maps import TEMPERATURE, checked_sigma, gaussian, rescaled_together, top_mean
from vlad.memory import quarters
from vlad.scorer import Scores, check_choices

SENTENCES = ("a photo of a good X X", "a photo of a damaged X X")  # the picture stands at both X
VECTORS = 2  # that stand for the picture
HEADS = 8  # of the sentences' attention to patches
NEW = 0.8  # share in the map of the sentences that have attended
DROPPED = 0.1  # of the learned tokens, while training
TEMPERATURES_LEARN = 1e-2  # whatever the others' rate
SCORES = ("picture", "set")


class PictureWords(nn.Module):
    """Word vectors of pictures, [B, 2, D] for embeddings [B, D] of any length, and the linear maps' temperature."""

    def __init__(self, width: int):
        super().__init__()
        self.prompt_query = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, VECTORS, width)))
        self.prompt_linear1 = nn.ModuleDict({"fc": nn.Conv1d(1, VECTORS, 3, padding=1)})
        self.prompt_temp = nn.Parameter(torch.tensor(math.log(1 / TEMPERATURE)))

    def forward(self, image: Tensor) -> Tensor:
        return self.prompt_query + self.prompt_linear1["fc"](image[:, None])


class Attending(nn.Module):
    """Sentences that attend to the patches of a tap, and so come to the patches' own width."""

    def __init__(self, width: int, joint: int):
        super().__init__()
        self.prompt_temp_l1 = nn.Parameter(torch.tensor(math.log(1 / TEMPERATURE)))
        self.q_proj_pre = nn.Conv1d(joint, width, 1)
        self.k_proj_pre_1, self.v_proj_pre_1, self.proj_post_t = (nn.Conv1d(width, width, 1) for _ in range(3))

    def forward(self, states: Tensor, patches: Tensor) -> Tensor:
        """[B, 2, C], not normalised, of sentences [B, 2, D] and unit patch tokens [B, N, C]; logits are not scaled."""
        query, key, value = self.q_proj_pre(states.mT), self.k_proj_pre_1(patches.mT), self.v_proj_pre_1(patches.mT)
        q, k, v = (x.unflatten(1, (HEADS, -1)).mT for x in (query, key, value))  # [B, heads, 2 or N, C / heads]
        mixed = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return self.proj_post_t(mixed.mT.flatten(1, 2)).mT


class VcpClip(LearnedScorer):
    """See the module. Parameters have the names of the official code.

    Args:
        sigma: of the map's smoothing, in input pixels.
        top: the share of the pixels that makes the score.
        score: "picture" or "set".

    Raises:
        ValueError: the encoder's text tokens are not as wide as the joint space, or an option is out of range.
    """

    words = "fixed"
    paper_resolution: ClassVar[Mapping[int, int]] = {336: 518}
    learns_from_labels: ClassVar[bool] = False
    official_encoder: ClassVar[str] = "ViT-L-14-336/openai"
    official_activation: ClassVar[str] = "gelu"

    ids: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        resolution: int | None = None,
        sigma: float = 8.0,
        top: float = 2000 / 518**2,
        score: str = "picture",
    ):
        super().__init__(encoder, resolution=resolution)
        check_joint_text(encoder, "vcpclip", self.official_encoder)
        check_choices(score=(score, SCORES))
        if not 0 < top <= 1:
            raise ValueError(f"top is {top!r}; expected a share of the pixels above 0 and up to 1")
        self.layers = quarters(encoder.depth)
        self.sigma, self.top, self.how = checked_sigma(sigma), float(top), score
        self.options.update(sigma=self.sigma, top=self.top, score=score)
        self.register_buffer("ids", encoder.tokenize(SENTENCES), persistent=False)
        self.trainable_linearlayer = TapLayers(encoder, len(self.layers))
        D, depth = encoder.embed_dim, encoder.text_depth
        with torch.random.fork_rng(devices=[]):  # follows the global seed, and leaves the global state alone
            self.New_Lan_Embed = PictureWords(D)
            self.Zero_try = Attending(encoder.width, D)
            self.prompt_embeddings = nn.Parameter(torch.empty(1, 1, D).uniform_(-1, 1))
            self.deep_prompt_embeddings = nn.Parameter(torch.empty(depth - 1, 1, D).uniform_(-1, 1))
            self.prompt_proj = nn.Linear(D, D)
            nn.init.kaiming_normal_(self.prompt_proj.weight, mode="fan_out")
        self.prompt_norm = nn.LayerNorm(D, eps=1e-6)
        # nothing uses this one; the authors' files have it
        self.prompt_text_projection = nn.Parameter(torch.zeros(D, D), requires_grad=False)
        self.to(encoder.device).eval()

    @property
    def score_set(self) -> Callable[[Iterable[Tensor]], Iterable[Scores]] | None:
        return self._rescaled if self.how == "set" else None

    def _rescaled(self, batches: Iterable[Tensor]) -> Iterable[Scores]:
        """Maps and scores, each rescaled over the set."""
        scores, maps, images, _ = zip(*map(self.forward, batches), strict=True)
        return map(Scores, rescaled_together(scores), rescaled_together(maps), images)

    def image_side(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The picture's embedding [B, D], not normalised, and the raw patch tokens [B, N, C] of each tap."""
        return raw_taps(self.encoder, pixels, self.layers)

    def forward(self, pixels: Tensor) -> Scores:
        image, *taps = self.image_side(pixels)
        size = pixels.shape[-2], pixels.shape[-1]
        new, raw = (torch.stack(maps).mean(0) for maps in self.maps(image, taps, size))
        score = top_mean(raw, self.top) + top_mean(new, self.top)
        return Scores(score, gaussian((1 - NEW) * raw + NEW * new, self.sigma), image)

    def loss(self, batch: Batch) -> Tensor:
        image, *taps = batch.features
        new, raw = self.maps(image, taps, (batch.masks.shape[-2], batch.masks.shape[-1]))
        return pixel_loss([*new, *raw], batch.masks)

    def maps(self, image: Tensor, taps: Sequence[Tensor], size: tuple[int, int]) -> tuple[list[Tensor], list[Tensor]]:
        """Per tap [B, *size] anomalous probabilities, by sentences that have attended to it and by its linear layer."""
        grid, states = (size[0] // self.encoder.patch_size, size[1] // self.encoder.patch_size), self.states(image)
        patches = [F.normalize(tokens.float(), dim=-1) for tokens in taps]
        seen = [self.Zero_try(states, one) for one in patches]
        warm, hot = (-self.Zero_try.prompt_temp_l1).exp(), (-self.New_Lan_Embed.prompt_temp).exp()
        new = [anomalous_pixels(one, own, grid, size, warm) for one, own in zip(patches, seen, strict=True)]
        return new, [anomalous_pixels(one, states, grid, size, hot) for one in self.trainable_linearlayer(taps)]

    def states(self, image: Tensor) -> Tensor:
        """[B, 2, D] unit: the sentences for good and for damaged pictures of embedding [B, D]."""
        words = self.New_Lan_Embed(image.float()).repeat_interleave(len(SENTENCES), 0)  # [2 B, 2, D]
        ids = self.ids.repeat(len(image), 1)
        tokens = self.encoder.embed_text(ids, words, at=int(ids[0].argmax()) - VECTORS)
        read = self.encoder.walk_text(tokens, self._deep)
        read = self.prompt_norm(torch.cat([read[:, :1], read[:, 2:]], 1))
        return F.normalize(self.encoder.pool_text(read, ids), dim=-1).unflatten(0, (-1, len(SENTENCES)))

    def _deep(self, layer: int, tokens: Tensor) -> Tensor:
        learned = self.prompt_embeddings[0] if layer == 1 else self.deep_prompt_embeddings[layer - 2]
        deep = F.dropout(self.prompt_proj(learned).expand(len(tokens), 1, -1), DROPPED, self.training)
        return torch.cat([tokens[:, :1], deep, tokens[:, min(layer, 2) :]], 1)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """What an optimiser is built from: the two temperatures learn at 1e-2, whatever the others' rate."""
        warm = [self.New_Lan_Embed.prompt_temp, self.Zero_try.prompt_temp_l1]
        others = [p for p in self.parameters() if p.requires_grad and all(p is not one for one in warm)]
        return [{"params": others, "lr": learning_rate}, {"params": warm, "lr": TEMPERATURES_LEARN}]

    @classmethod
    def official(cls, content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Keywords and tensors of a file of xiaozhen228/VCP-CLIP."""
        refuse_other_methods(content, "vcpclip")
        tensors: dict[str, Any] = {}
        for key, value in content.items():
            table = value if isinstance(value, Mapping) else {"": value}
            tensors.update({f"{key}.{name}".rstrip("."): one for name, one in table.items()})
        for key, value in tensors.items():
            if not isinstance(value, Tensor):
                raise ValueError(f"it holds {key!r}, which is no tensor")
        return {}, tensors
