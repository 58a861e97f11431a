"""patch_text: patch tokens against the words, in one encoder pass. VLAD's default, and the example of a method.

Paper: none, the simplest thing that works; patch-text alignment goes back to WinCLIP (arXiv:2303.14814) and MaskCLIP.
Needs: text. No normals, no training, one picture at a time.

1. Each patch token of the encoder's dense path is projected into the joint space of pictures and words.
2. A softmax over its similarities with the normal and the anomalous prototype gives a probability per patch: the map.
3. The picture's score is sqrt(max * mean) of that map: the maximum alone fires on one odd patch, the mean alone
   overlooks a small defect. `score="global"` takes the class token's probability instead.
"""

from torch import Tensor

from vlad.detector import Detector
from vlad.encoder import Encoder
from vlad.maps import anomaly_probability

SCORES = ("sqrt", "max", "mean", "global")


def image_score(grid: Tensor, how: str) -> Tensor:
    """[B] from a grid of probabilities [B, rows, columns]: its maximum, its mean, or the geometric mean of the two."""
    highest, mean = grid.amax((1, 2)), grid.mean((1, 2))
    return {"max": highest, "mean": mean, "sqrt": (highest * mean).sqrt()}[how]


class PatchText(Detector):
    """See the module. `score` is one of "sqrt", "max", "mean", "global"."""

    def __init__(self, encoder: Encoder, *, resolution: int | None = None, score: str = "sqrt"):
        super().__init__(encoder, resolution=resolution)
        if score not in SCORES:
            raise ValueError(f"score is {score!r}; expected one of {', '.join(SCORES)}")
        self.how = self.options["score"] = score

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        image, patches = self.encoder.dense(pixels)  # [B, D], [B, N, D]
        grid = anomaly_probability(patches, self.prototypes).unflatten(1, self.encoder.grid(pixels))
        score = anomaly_probability(image, self.prototypes) if self.how == "global" else image_score(grid, self.how)
        return score, grid, image
