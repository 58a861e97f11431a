"""AdaptCLIP: small adapters for the picture, for the words, and for the comparison with a few normal pictures.

Paper: "AdaptCLIP: Adapting CLIP for Universal Visual Anomaly Detection" (arXiv:2505.09926). Its official code
(gaobb/AdaptCLIP) is under the GPL; this is written from a description of its arithmetic alone. Needs: learned weights
(the authors' files, or `vlad train`). No words; normal pictures if there are any; one picture at a time.

1. The frozen tower gives tokens after each quarter of its blocks, by a value stream (`vlad.learning.prompt_learner`).
2. Picture adapter: the class token and the last layer's tokens pass a residual bottleneck each, and are compared with
   fixed sentences about a normal and a damaged "object". Word adapter: the unchanged tokens are compared with two
   learned sentences. The map is the mean of both maps, smoothed by a gaussian of 4 px; the score the mean of both class
   tokens' probabilities and the map's maximum.
After `fit`, per layer:

3. Each patch plus how far, channel by channel, it is from the closest patch of the normals goes through a
   convolutional head to a map, and by its mean and largest values through another head to a score.
4. The map is the harmonic mean of two: the mean of the three maps, and the cosine distances to the closest patches
   (their harmonic mean over the layers); smoothed. The score is that of the three scores' mean and the map's maximum.

Trained with cross entropy, focal and dice losses, all with weight 1, of both adapters and of each layer's comparison
with one normal picture; no gradient passes from one part to another.

Known differences: the authors' code can leave the patch itself out of 3; their files do not record it, the published
ones want it in, and no switch is offered. Encoders that align their ordinary tokens with text are taken as they are.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.encoders.encoder import Encoder
from vlad.learning.losses import segmentation, whole_picture
from vlad.learning.prompt_learner import PromptLearner, official_prompts, state_maps, value_stream
from vlad.learning.scorer import Batch, LearnedScorer, official_parts
from vlad.maps import checked_sigma, harmonic_mean, smooth_map, state_logits, to_size
from vlad.memory import Memory, quarters
from vlad.prompts import PromptPack, prototypes
from vlad.scorer import Scores

ENDINGS = (".", ".")
LARGEST = 10  # values of each channel whose mean stands beside the mean of all
LAYERS = 4  # as many copies of the comparison's heads are in the authors' files

Judged = tuple[Tensor, Tensor]  # logits [B, 2] of the picture, probabilities [B, 2, S, S] of its pixels


def patches(tokens: Tensor) -> Tensor:
    """[B, N, D] of length 1, without the class token, of [B, 1 + N, D]."""
    return F.normalize(tokens[:, 1:].float(), dim=-1)


def anomalous(judged: Judged) -> tuple[Tensor, Tensor]:
    """Probabilities of being anomalous: [B] and [B, S, S]."""
    return judged[0].softmax(-1)[:, 1], judged[1][:, 1]


def closest(queries: Tensor, references: Tensor) -> Tensor:
    """[B, N, D]: for each query [B, N, D] the reference patch [B, M, D] of its own picture it is most similar to.

    Both are of length 1.
    """
    number = (queries @ references.transpose(1, 2)).argmax(-1)  # [B, N]
    return references.gather(1, number[..., None].expand_as(queries))


class Residual(nn.Module):
    """x + a bottleneck of x, for tokens [..., D]; statistics are over all of them."""

    def __init__(self, width: int, reduction: int):
        super().__init__()
        narrow = max(1, width // reduction)
        self.fc = nn.Sequential(
            nn.Linear(width, narrow, bias=False),
            nn.BatchNorm1d(narrow),
            nn.ReLU(),
            nn.Linear(narrow, width, bias=False),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        rows = tokens.flatten(0, -2)
        return (rows + self.fc(rows)).view_as(tokens)


class Comparison(nn.Module):
    """Judges patches beside the closest ones of normal pictures; one pair of heads for all layers."""

    def __init__(self, width: int, hidden: int, layers: int):
        super().__init__()
        half = hidden // 2
        self.sharebn = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(layers))
        self.local_adapter = nn.Sequential(
            nn.Conv2d(width, hidden, 3, padding=1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.ConvTranspose2d(hidden, hidden, 2, stride=2),
            nn.Conv2d(hidden, half, 3, padding=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.ConvTranspose2d(half, half, 2, stride=2),
            nn.Conv2d(half, 2, 1),
        )
        self.global_adapter = nn.Sequential(
            nn.Linear(width, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, half, bias=False),
            nn.BatchNorm1d(half),
            nn.ReLU(),
            nn.Linear(half, 2, bias=False),
        )

    def forward(
        self, number: int, queries: Tensor, found: Tensor, grid: tuple[int, int], size: tuple[int, int]
    ) -> Judged:
        """Of unit patches [B, N, D] of the layer with this number, and the normal ones found for them, [B, N, D]."""
        beside = (queries + (queries - found).abs()).transpose(1, 2).unflatten(2, grid)  # [B, D, rows, columns]
        joint = self.sharebn[number](beside)
        probabilities = self.local_adapter(joint).softmax(1)  # [B, 2, 4 rows, 4 columns]
        maps = torch.stack([to_size(one, size) for one in probabilities.unbind(1)], 1)
        values = joint.flatten(2)
        largest = values.topk(min(LARGEST, values.shape[2]), dim=2).values.mean(2)
        return self.global_adapter((values.mean(2) + largest) / 2), maps


class AdaptClip(LearnedScorer):
    """See the module. `n_ctx` learned words; the picture adapter is `reduction` times narrower than an embedding, the
    heads of the comparison are `hidden` wide; `sigma` smooths the map, in input pixels."""

    words = "fixed"
    compares: ClassVar[bool] = True
    paper_resolution: ClassVar[Mapping[int, int]] = {336: 518}
    official_encoder: ClassVar[str] = "ViT-L-14-336-quickgelu/openai"

    def __init__(
        self,
        encoder: Encoder,
        *,
        resolution: int | None = None,
        n_ctx: int = 12,
        reduction: int = 4,
        hidden: int = 128,
        sigma: float = 4.0,
    ):
        super().__init__(encoder, resolution=resolution)
        D = encoder.embed_dim
        if not 1 <= reduction <= D or hidden < 2:
            raise ValueError(f"reduction is {reduction}, hidden {hidden}; expected 1 to {D}, and 2 or more")
        self.layers, self.sigma = quarters(encoder.depth), checked_sigma(sigma)
        self.options.update(n_ctx=n_ctx, reduction=reduction, hidden=hidden, sigma=self.sigma)
        with torch.random.fork_rng(devices=[]):  # follows the global seed, and leaves the global state alone
            self.textual_learner = PromptLearner(encoder, ENDINGS, n_ctx)
            parts = {part: Residual(D, reduction) for part in ("local_adapter", "global_adapter")}
            self.visual_learner = nn.ModuleDict(parts)
            self.pq_learner = Comparison(D, hidden, len(self.layers))
        exact = encoder.dtype == torch.float32
        self.normals = nn.ModuleList(Memory(D, exact=exact) for _ in self.layers)
        self.prototypes = prototypes(encoder, PromptPack.load("winclip-anomalib"), "object")  # [2, D]
        self.to(encoder.device).eval()

    def image_side(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The class embedding [B, D] and per layer all tokens' embeddings [B, 1 + N, D], not normalised."""
        _, image, taps = value_stream(self.encoder, pixels, self.layers)
        return image, *taps

    def forward(self, pixels: Tensor) -> Scores:
        own, image, taps = value_stream(self.encoder, pixels, self.layers)
        size = pixels.shape[-2], pixels.shape[-1]
        parts, distance = [anomalous(one) for one in self.adapted(image, taps[-1], size)], None
        if self.references:
            compared, distance = self.compared(taps, size)
            parts.append(compared)
        score, amap = (torch.stack(values).mean(0) for values in zip(*parts, strict=True))  # [B], [B, S, S]
        if distance is None:
            amap = smooth_map(amap, size, self.sigma)
            return Scores((2 * score + amap.amax((1, 2))) / 3, amap, own)
        amap = smooth_map(harmonic_mean([amap, distance]), size, self.sigma)
        return Scores(harmonic_mean([score, amap.amax((1, 2))]), amap, own)

    def adapted(self, image: Tensor, tokens: Tensor, size: tuple[int, int]) -> tuple[Judged, Judged]:
        """What the picture adapter and the word adapter say of [B, D] and [B, 1 + N, D] embeddings."""
        states, patch = self.textual_learner(self.encoder), self.encoder.patch_size
        whole, parts = self.visual_learner["global_adapter"](image), self.visual_learner["local_adapter"](tokens)
        visual = state_logits(whole, self.prototypes), state_maps(parts[:, 1:], self.prototypes, size, patch)
        return visual, (state_logits(image, states), state_maps(tokens[:, 1:], states, size, patch))

    def compared(self, taps: Sequence[Tensor], size: tuple[int, int]) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Score [B] and map [B, *size] beside the normals, and the distance to them [B, *size], over all layers."""
        found, distances = [], []
        for number, (tokens, memory) in enumerate(zip(taps, self.memories().values(), strict=True)):
            queries = patches(tokens)
            distance, rows = memory.closest(queries)  # [B, N], [B, N, D]
            found.append(anomalous(self.pq_learner(number, queries, rows, self._grid(size), size)))
            distances.append(to_size(distance.unflatten(1, self._grid(size)), size))
        scores, maps = (torch.stack(values).mean(0) for values in zip(*found, strict=True))
        return (scores, maps), harmonic_mean(distances)

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // self.encoder.patch_size, size[1] // self.encoder.patch_size

    def remember(self, batches: Iterable[Tensor]) -> None:
        for pixels in batches:
            for memory, tokens in zip(self.memories().values(), self.image_side(pixels)[1:], strict=True):
                memory.add(patches(tokens))

    def judged(self, batch: Batch) -> list[Judged]:
        """What the picture adapter, the word adapter and the comparison in each layer say of a training batch."""
        assert batch.references is not None, "a method that compares gets a normal picture beside each picture"
        image, *taps = (features.float() for features in batch.features)
        size = batch.masks.shape[-2], batch.masks.shape[-1]
        found = list(self.adapted(image, taps[-1], size))
        for number, (tokens, normal) in enumerate(zip(taps, batch.references[1:], strict=True)):
            queries = patches(tokens)
            found.append(self.pq_learner(number, queries, closest(queries, patches(normal)), self._grid(size), size))
        return found

    def loss(self, batch: Batch) -> Tensor:
        """The scalar that training lowers; in `train` mode, whose batch norms need two pictures or more."""
        losses = [
            whole_picture(logits, batch.labels) + segmentation(maps, batch.masks) for logits, maps in self.judged(batch)
        ]
        return torch.stack(losses).sum()

    @classmethod
    def official(cls, content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Keywords and tensors of a file of gaobb/AdaptCLIP."""
        textual, visual, pq = official_parts(content, "adaptclip", ("textual_learner", "visual_learner", "pq_learner"))
        options, words = official_prompts(textual)
        tensors = {f"textual_learner.{key}": value for key, value in words.items()}
        tensors |= {f"visual_learner.{key.replace('adater', 'adapter')}": value for key, value in visual.items()}
        tensors |= {f"pq_learner.{key}": value for key, value in merged_heads(pq).items()}
        found = {"n_ctx": options["n_ctx"]} if "n_ctx" in options else {}
        narrow, head = (
            tensors.get(key)
            for key in ("visual_learner.local_adapter.fc.0.weight", "pq_learner.local_adapter.0.weight")
        )
        if narrow is not None and narrow.ndim == 2:
            found["reduction"] = max(1, narrow.shape[1] // max(1, len(narrow)))
        if head is not None and head.ndim == 4:
            found["hidden"] = len(head)
        return found, tensors


def merged_heads(learner: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `Comparison`: the authors' files hold its heads once for each layer, all the same.

    Raises:
        ValueError: a copy lacks a tensor or has another one.
    """
    merged = {}
    for key, value in learner.items():
        head, number, name = [*key.split(".", 2), "", ""][:3]
        if head not in ("local_adapter", "global_adapter"):
            merged[key] = value
            continue
        for copy in range(LAYERS):
            other = learner.get(f"{head}.{copy}.{name}")
            if other is None or other.dtype != value.dtype or not torch.equal(other, value):
                raise ValueError(
                    f"pq_learner.{head}.{copy}.{name} is {'missing' if other is None else f'not that of copy {number}'}"
                )
        merged[f"{head}.{name}"] = value
    return merged
