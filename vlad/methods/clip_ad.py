"""CLIP-AD: a value path restarted in each quarter of the tower, and the words of both states played against each other.

Paper: "CLIP-AD: A Language-Guided Staged Dual-Path Model for Zero-shot Anomaly Detection" (arXiv:2311.00453). Official
code: ByChelsea/CLIP-AD. Needs: text; for SDP+ (`plus=True`) also learned weights (the authors' files, or `vlad train`).
Normal pictures if there are any, one picture at a time.

1. Beside the frozen tower a value stream sums up the value attentions of the blocks, anew in each quarter (SDP); at the
   end of each its patches, with the ordinary class token, are projected.
2. Per quarter the cosines with a representative vector of each state, weighed by how well the state fits the class
   token, are subtracted (`vlad.maps.feature_surgery`); their sum over the quarters, in [-4, 4], is brought to the
   picture's square, bilinear, and smoothed by a gaussian of 8 px: the map. It is above 0 where a place is more like the
   anomalous words.
3. SDP+ adds, before the smoothing, APRIL-GAN's sum of probabilities of linear layers on the ordinary tokens.
4. The score is the class token's probability at the encoder's own temperature, 0.01 for published ones.

The representative vector is the mean of the unit sentence embeddings, or that of their largest cluster, "dbscan", the
paper's; where a cluster cannot be found it is the mean.

After `fit` (ours, weighted as in `patch_text`): the geometric mean of the words' probability (`surgery_probability` of
the mean quarter, with SDP+ averaged with the linear layers') and of how unlike the patches of the normals a patch is.

Known differences: the official score is the sum of the class token's probability and of the map's maximum, each
rescaled by the smallest and largest of the test set, so that it depends on the other pictures; `score="set"` does that
in `predict`. The official code changes a tapped ordinary stream in place afterwards: it reads the output of a quarter's
last block plus what the next block's attention adds. Published SDP+ layers were learned with that:
`tap="after_next_attention"`. Its vectors of "dbscan" are rounded to float16.

An encoder whose ordinary tokens align with text (`tiny`) uses its last block's in the place of the four streams: on two
sets of real pictures (crackforest, aws_lookout) `tiny` then localises as well (pixel AUROC .918 and .909; with the
streams .917 and .913) at the cost of a plain pass.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vlad.encoders.encoder import Encoder
from vlad.learning.scorer import Batch, LearnedScorer, official_parts
from vlad.learning.tap_layers import TapLayers, anomalous_pixels, states_of, tap_loss
from vlad.maps import (
    CERTAIN,
    CLIP_TEMPERATURE,
    anomaly_probability,
    checked_sigma,
    feature_surgery,
    rescaled_together,
    smooth_map,
    surgery_probability,
    to_size,
)
from vlad.memory import middle_layers, quarters
from vlad.memory.layers import LayerMemory
from vlad.prompts import PromptPack, state_rows
from vlad.scorer import Scores

CHOICES: Mapping[str, tuple[str, ...]] = {
    "representative": ("dbscan", "mean"),
    "tap": ("block", "after_next_attention"),
    "score": ("class", "set"),
}


def dbscan(points: Tensor, eps: float, min_samples: int) -> Tensor:
    """[n] int64 cluster of each of the points [n, D], numbered by the clusters' first core points; -1 is noise.

    A core point has `min_samples` points, itself among them, within the distance `eps`; clusters are the connected core
    points, and other points join the lowest cluster that has a core point within `eps`.
    """
    near = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist") <= eps
    core = near.sum(1) >= min_samples
    labels = torch.full((len(points),), -1, device=points.device)
    for first in core.nonzero()[:, 0].tolist():
        if labels[first] < 0:
            members = F.one_hot(torch.tensor(first), len(points)).bool().to(points.device)
            while not torch.equal(grown := (near[members].any(0) & core) | members, members):
                members = grown
            labels[members] = int(labels.max()) + 1
    reached = torch.where(near & core, labels, len(points)).amin(1)  # [n] lowest cluster of the core points around
    return torch.where(core | (reached == len(points)), labels, reached)


def representative(rows: Tensor, how: str, eps: float, min_samples: int) -> Tensor:
    """[D] for the sentence embeddings [T, D] of one state, of length 1."""
    unit = F.normalize(rows.float(), dim=-1)
    if how == "dbscan":
        labels = dbscan(unit, eps, min_samples)
        if (labels >= 0).any():
            unit = unit[labels == labels[labels >= 0].bincount().argmax()]
    return F.normalize(unit.mean(0), dim=-1)


class ClipAd(LearnedScorer):
    """See the module.

    Args:
        plus: SDP+, with linear layers, which an adapter brings.
        representative: "dbscan" or "mean".
        eps, min_samples: of "dbscan"; the paper has 1.5 and 25 for VisA, where all sentences are one cluster.
        tap: what is read at the end of a quarter, "block" or "after_next_attention".
        sigma: of the gaussian, in input pixels; the paper has 2 for SDP+ on VisA.
        score: "class" or "set".
    """

    needs_adapter: ClassVar[bool] = False
    learns_from_labels: ClassVar[bool] = False
    map_range: ClassVar[tuple[float, float]] = (-4.0, 8.0)
    region_level: ClassVar[float] = 0.0  # where both states are alike
    official_encoder: ClassVar[str] = "ViT-B-16-plus-240/laion400m_e31"
    official_activation: ClassVar[str] = "gelu"

    def __init__(
        self,
        encoder: Encoder,
        *,
        resolution: int | None = None,
        plus: bool = False,
        representative: str = "dbscan",
        eps: float = 0.5,
        min_samples: int = 15,
        tap: str = "block",
        sigma: float = 8.0,
        score: str = "class",
    ):
        super().__init__(encoder, resolution=resolution)
        for option, value in (("representative", representative), ("tap", tap), ("score", score)):
            if value not in CHOICES[option]:
                raise ValueError(f"{option} is {value!r}; expected one of {', '.join(CHOICES[option])}")
        self.settings: dict[str, Any] = dict(plus=bool(plus), representative=representative, eps=float(eps))
        self.settings |= dict(min_samples=int(min_samples), tap=tap, sigma=checked_sigma(sigma), score=score)
        self.options.update(self.settings)
        self.layers = quarters(encoder.depth)
        self.linear = TapLayers(encoder, len(self.layers)) if plus else None
        self.memory = LayerMemory(encoder, middle_layers(encoder.depth))
        self.eval()

    def prototypes_of(self, pack: PromptPack, name: str) -> Tensor:
        how = [self.settings[key] for key in ("representative", "eps", "min_samples")]
        return torch.stack([representative(rows, *how) for rows in state_rows(self.encoder, pack, name)])

    def colours(self) -> tuple[float, float]:
        if len(self.memory):
            return (0.0, 1.0)
        streams = 1 if self.encoder.dense_path == "ordinary" else len(self.layers)
        hot = streams * CERTAIN * self.encoder.temperature
        return (0.0, hot + len(self.layers) / 2 if self.linear else hot)  # below 0 is cold

    def tokens(self, pixels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Per quarter [B, 1 + N, C]: the value stream with the ordinary class token, and the ordinary tokens.

        Where only the class token of the last ordinary tokens is used, they are that one alone.
        """
        aligned = self.encoder.dense_path == "ordinary"
        first = self.encoder.depth + 1 if aligned else 1
        streams, ordinary, stream = [], [], None
        for layer, _, after, values in self.encoder.value_walk(
            pixels, first=first, class_only=not (aligned or self.linear)
        ):
            stream = values if stream is None or values is None else stream + values
            if layer not in self.layers:
                continue
            if layer < self.encoder.depth and self.settings["tap"] == "after_next_attention":
                after = after + self.encoder.attention(layer + 1, after)
            ordinary.append(after)
            streams.append(after if stream is None else torch.cat([after[:, :1], stream[:, 1:]], 1))
            stream = None
        return streams[-1:] if aligned else streams, ordinary

    def forward(self, pixels: Tensor) -> Scores:
        grid, size = self.encoder.grid(pixels), (pixels.shape[-2], pixels.shape[-1])
        with self.memory.one_walk():
            streams, ordinary = self.tokens(pixels)
            image, sdp = self.surgery(streams, grid)
            embeddings = self.linear([tokens[:, 1:] for tokens in ordinary]) if self.linear else []
            whole = anomaly_probability(image, self.prototypes, self.encoder.temperature)
            if len(self.memory):
                parts = [surgery_probability(sdp / len(streams))]
                if embeddings:
                    taps = anomaly_probability(torch.stack(embeddings), self.prototypes, CLIP_TEMPERATURE)
                    parts.append(taps.mean(0).unflatten(1, grid))
                fused, whole = self.memory.fused(pixels, torch.stack(parts).mean(0), whole)
                return Scores(whole, smooth_map(fused, size, self.settings["sigma"]), image)
        maps = [to_size(sdp, size), *(anomalous_pixels(one, self.prototypes, grid, size) for one in embeddings)]
        return Scores(whole, smooth_map(torch.stack(maps).sum(0), size, self.settings["sigma"]), image)

    def surgery(self, streams: list[Tensor], grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The class embedding [B, D] and the sum over the streams of their feature surgery, [B, rows, columns]."""
        projected = [self.encoder.project(tokens) for tokens in streams]
        found = [feature_surgery(tokens, self.prototypes, sharpness=1.0)[:, 1:, 1] for tokens in projected]
        return projected[-1][:, 0], torch.stack(found).sum(0).unflatten(1, grid)

    def remember(self, batches: Iterable[Tensor]) -> None:
        self.memory.remember(batches)

    @property
    def score_set(self) -> Callable[[Iterable[Tensor]], Iterable[Scores]] | None:
        return self._rescaled if self.settings["score"] == "set" else None

    def _rescaled(self, batches: Iterable[Tensor]) -> Iterable[Scores]:
        """The sum of the scores and of the maps' maxima, each rescaled over the set."""
        seen = [self.forward(pixels) for pixels in batches]  # the maps of the whole set
        scores = rescaled_together([one.score for one in seen])
        peaks = rescaled_together([one.peaks() for one in seen])
        return [one._replace(score=a + b) for a, b, one in zip(scores, peaks, seen, strict=True)]

    def image_side(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The ordinary patch tokens [B, N, C] of each quarter."""
        return tuple(tokens[:, 1:] for tokens in self.tokens(pixels)[1])

    def loss(self, batch: Batch) -> Tensor:
        """Of SDP+'s linear layers."""
        assert self.linear is not None, "only SDP+ has layers to learn: plus=True"
        states = states_of(self, batch.names)
        return tap_loss(self.linear(batch.features), states, batch.masks, self.encoder.patch_size)

    @classmethod
    def official(cls, content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Keywords and tensors of a file of ByChelsea/CLIP-AD."""
        (table,) = official_parts(content, "clip_ad", ("linear_layers",))
        found = {"plus": True, "tap": "after_next_attention"}
        return found, {f"linear.{key}": value for key, value in table.items()}
