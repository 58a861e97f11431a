"""APRIL-GAN: one learned linear layer per tapped block brings raw patch tokens beside the words.

Paper: "APRIL-GAN: A Zero-/Few-Shot Anomaly Classification and Segmentation Method for CVPR 2023 VAND Workshop Challenge
Tracks 1&2" (arXiv:2305.17382). Official code: ByChelsea/VAND-APRIL-GAN. Needs: text and learned weights (the authors'
files, or `vlad train`). Normal pictures if there are any, one picture at a time.

1. Raw tokens of four blocks, the quarters of the depth, go through a linear layer each.
2. Their cosines with the two prototypes, times 100, are brought to the picture's square and go through a softmax; the
   map is the sum of the anomalous probabilities over the taps, in [0, 4].
3. The score is the class token's probability at the encoder's own temperature, 0.01 for published ones.

After `fit`: the map also gets, per tap, the cosine distance (1 - cosine, not halved) of each raw token to the closest
of the normals', so that it is in [0, 12]; the score becomes the mean of itself and of the map's maximum, where
`bounds` say which maximum counts as 0 and which as 1.

Known differences: the official score rescales the maxima by the smallest and largest of the test set, so that it
depends on the other pictures; `score="set"` does that in `predict`, `score="class"` takes the class token alone. The
default `bounds` are the range of the words' part. The same normal is never drawn twice. All is float32 where
the official code is half of it; an encoder of another depth is tapped at its quarters.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlad.encoders.encoder import Encoder, Features
from vlad.learning.scorer import Batch, LearnedScorer, official_parts
from vlad.learning.tap_layers import TapLayers, anomalous_pixels, states_of, tap_loss
from vlad.maps import anomaly_probability, rescaled_together, to_size
from vlad.memory import Memory, checked_layers, quarters
from vlad.prompts import PromptPack, prototypes
from vlad.scorer import Scores, check_choices

SCORES = ("bounds", "class", "set")


class AprilGan(LearnedScorer):
    """See the module. `layers` are the tapped blocks; `score` is one of "bounds", "class", "set"."""

    map_range: ClassVar[tuple[float, float]] = (0.0, 12.0)
    region_level: ClassVar[float] = 2.0  # the taps call a place anomalous on average
    paper_resolution: ClassVar[Mapping[int, int]] = {336: 518}
    learns_from_labels: ClassVar[bool] = False
    official_encoder: ClassVar[str] = "ViT-L-14-336/openai"
    official_activation: ClassVar[str] = "gelu"  # though OpenAI's weights are for quickgelu: see the official code

    def __init__(
        self,
        encoder: Encoder,
        *,
        resolution: int | None = None,
        layers: Sequence[int] | None = None,
        score: str = "bounds",
        bounds: tuple[float, float] = (0.0, 4.0),
    ):
        super().__init__(encoder, resolution=resolution)
        check_choices(score=(score, SCORES))
        if not len(bounds) == 2 or not bounds[0] < bounds[1]:
            raise ValueError(f"bounds are {bounds!r}; expected (low, high) such as (0, 4)")
        self.layers = checked_layers(quarters(encoder.depth) if layers is None else layers, encoder.depth)
        self.how, self.bounds = score, (float(bounds[0]), float(bounds[1]))
        self.options.update(layers=list(self.layers), score=score, bounds=list(self.bounds))
        self.linear = TapLayers(encoder, len(self.layers))
        exact = encoder.dtype == torch.float32
        self.normals = nn.ModuleList(Memory(encoder.width, exact=exact) for _ in self.layers)
        self.eval()

    def prototypes_of(self, pack: PromptPack, name: str) -> Tensor:
        return prototypes(self.encoder, pack, name, unit=True)

    def colours(self) -> tuple[float, float]:
        taps = len(self.layers)
        return (0.0, 3.0 * taps if self.references else 1.0 * taps)

    def forward(self, pixels: Tensor) -> Scores:
        features, size = self.encoder(pixels, layers=self.layers), (pixels.shape[-2], pixels.shape[-1])
        amap = self.words_map(features, size)
        score = self._whole(features.image)
        if self.references:
            amap = amap + to_size(self.association(features).sum(1), size, align_corners=True)
            if self.how != "class":
                low, high = self.bounds
                score = (score + (amap.amax((1, 2)) - low) / (high - low)) / 2
        return Scores(score, amap, features.image)

    def words_map(self, features: Features, size: tuple[int, int]) -> Tensor:
        """[B, *size]: the sum over the taps of the anomalous probabilities."""
        embeddings = self.linear(features.patches)
        maps = [anomalous_pixels(one, self.prototypes, features.grid, size) for one in embeddings]
        return torch.stack(maps).sum(0)

    def association(self, features: Features) -> Tensor:
        """[B, taps, rows, columns] in [0, 2]: cosine distances to the closest token of the normals in the same tap."""
        memories = zip(self.memories().values(), features.patches, strict=True)
        return torch.stack([memory.distance(tokens) for memory, tokens in memories], 1).unflatten(2, features.grid)

    def remember(self, batches: Iterable[Tensor]) -> None:
        for pixels in batches:
            taps = self.encoder(pixels, layers=self.layers).patches
            for memory, tokens in zip(self.memories().values(), taps, strict=True):
                memory.add(tokens)

    @property
    def score_set(self) -> Callable[[Iterable[Tensor]], Iterable[Scores]] | None:
        return self._rescaled if self.how == "set" else None

    def _rescaled(self, batches: Iterable[Tensor]) -> Iterable[Scores]:
        """With normals, the mean of the class token's probability and of the maps' maxima, rescaled over the set."""
        if not self.references:
            return map(self.forward, batches)
        seen = [self.forward(pixels) for pixels in batches]  # the maps of the whole set
        peaks = rescaled_together([one.peaks() for one in seen])
        return [one._replace(score=(self._whole(one.image) + peak) / 2) for peak, one in zip(peaks, seen, strict=True)]

    def _whole(self, image: Tensor | None) -> Tensor:
        """[B] the class token's probability."""
        assert image is not None
        return anomaly_probability(image, self.prototypes, self.encoder.temperature)

    def image_side(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The raw patch tokens [B, N, C] of each tap."""
        return self.encoder(pixels, layers=self.layers).patches

    def loss(self, batch: Batch) -> Tensor:
        states = states_of(self, batch.names)
        return tap_loss(self.linear(batch.features), states, batch.masks, self.encoder.patch_size)

    @classmethod
    def official(cls, content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Keywords and tensors of a file of ByChelsea/VAND-APRIL-GAN."""
        (table,) = official_parts(content, "april_gan", ("trainable_linearlayer",))
        return {}, {f"linear.{key}": value for key, value in table.items()}
