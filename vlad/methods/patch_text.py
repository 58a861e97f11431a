"""patch_text: patch tokens against the words, in one encoder pass. VLAD's default, and the example of a method.

Paper: none, the simplest thing that works; patch-text alignment goes back to WinCLIP (arXiv:2303.14814) and MaskCLIP.
Needs: text. Normal pictures if there are any, no training, one picture at a time.

1. Each patch token of the encoder's dense path is projected into the joint space of pictures and words.
2. A softmax over its similarities with the normal and the anomalous prototype gives a probability per patch: the map.
3. The picture's score is sqrt(max * mean) of that map: the maximum alone fires on one odd patch, the mean alone
   overlooks a small defect. `score="global"` takes the class token's probability instead.

After `fit` (ours): tokens of two middle layers, averaged over 3 x 3 places, are compared with those of the normals;
half the cosine distance to the closest is how unlike them a patch is; the map becomes the geometric mean of that and
the probability. A product needs no common scale: distances between tokens are small and differ between encoders.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from vlad.detector import Detector
from vlad.encoder import Encoder
from vlad.maps import anomaly_probability
from vlad.memory import Memory, checked_layers, layer_tokens

SCORES = ("sqrt", "max", "mean", "global")
NEIGHBOURS = 3  # tokens are averaged over 3 x 3 places, which makes up for small shifts between pictures


def image_score(grid: Tensor, how: str) -> Tensor:
    """[B] from a grid of probabilities [B, rows, columns]: its maximum, its mean, or the geometric mean of the two."""
    highest, mean = grid.amax((1, 2)), grid.mean((1, 2))
    return {"max": highest, "mean": mean, "sqrt": (highest * mean).sqrt()}[how]


class PatchText(Detector):
    """See the module. `score` is one of "sqrt", "max", "mean", "global"; `layers` are compared with normals."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        resolution: int | None = None,
        score: str = "sqrt",
        layers: Sequence[int] | None = None,
    ):
        super().__init__(encoder, resolution=resolution)
        if score not in SCORES:
            raise ValueError(f"score is {score!r}; expected one of {', '.join(SCORES)}")
        self.how = self.options["score"] = score
        self.layers = checked_layers(layers, encoder.depth)
        self.options["layers"] = list(self.layers)
        self.memory = Memory(len(self.layers) * encoder.width, exact=encoder.dtype == torch.float32)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with self.encoder.sharing() if self.references else nullcontext():  # words and memory come from one walk
            image, patches = self.encoder.dense(pixels)  # [B, D], [B, N, D]
            unlike = self.association(pixels) if self.references else None
        grid = anomaly_probability(patches, self.prototypes).unflatten(1, self.encoder.grid(pixels))
        whole = anomaly_probability(image, self.prototypes)  # [B]
        if unlike is not None:
            grid, whole = (grid * unlike).sqrt(), (whole * unlike.amax((1, 2))).sqrt()
        return whole if self.how == "global" else image_score(grid, self.how), grid, image

    def association(self, pixels: Tensor) -> Tensor:
        """[B, rows, columns] in [0, 1]: half the cosine distance of each patch to the closest one of the normals."""
        tokens = layer_tokens(self.encoder, pixels, self.layers, NEIGHBOURS)
        return (self.memory.distance(tokens) / 2).clamp_max(1).unflatten(1, self.encoder.grid(pixels))

    def _remember(self, batches: Iterable[Tensor]) -> None:
        for pixels in batches:
            self.memory.add(layer_tokens(self.encoder, pixels, self.layers, NEIGHBOURS))
