"""patch_text: patch tokens against the words, in one encoder pass. VLAD's default, and the example of a method.

Paper: none, the simplest thing that works; patch-text alignment goes back to WinCLIP (arXiv:2303.14814) and MaskCLIP.
Needs: text. Normal pictures if there are any, no training, one picture at a time.

1. Each patch token of the encoder's dense path is projected into the joint space of pictures and words.
2. A softmax over its similarities with the normal and the anomalous prototype gives a probability per patch: the map.
3. The picture's score is sqrt(max * mean) of that map: the maximum alone fires on one odd patch, the mean alone
   overlooks a small defect. `score="global"` takes the class token's probability instead.

`negative` weighs the normal words: a probability is the sigmoid of s_anomalous - negative * s_normal, so that 1 is the
softmax, 0 asks for the anomalous words alone, and more than 1 for places that the normal words do not fit either (the
difference of a positive and a negative prompt's map in CLAP, arXiv:2411.07546).

After `fit` (ours): tokens of two middle layers, alone and averaged over 3 x 3 places, are compared with those of the
normals; half the cosine distance to the closest is how unlike them a patch is; the map becomes the geometric mean of
that, counted four times, and the probability. The score is then the map's maximum: normal places are no longer faintly
warm, and a mean of them would only add noise.
"""

from collections.abc import Iterable, Sequence
from functools import partial

from torch import Tensor

from vlad.encoders.encoder import Encoder
from vlad.maps import anomaly_probability
from vlad.memory import checked_layers
from vlad.memory.layers import LayerMemory
from vlad.scorer import Scorer, Scores

SCORES = ("sqrt", "max", "mean", "global")


def image_score(values: Tensor, how: str) -> Tensor:
    """[B] from probabilities [B, ...]: the maximum, the mean, or the geometric mean of the two."""
    highest, mean = values.flatten(1).amax(1), values.flatten(1).mean(1)
    return {"max": highest, "mean": mean, "sqrt": (highest * mean).sqrt()}[how]


class PatchText(Scorer):
    """See the module. `score` is one of "sqrt", "max", "mean", "global" (None: "sqrt", with normals "max"); `layers`
    are compared with normals; `negative` weighs the normal words.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        resolution: int | None = None,
        score: str | None = None,
        layers: Sequence[int] | None = None,
        negative: float = 1.0,
    ):
        super().__init__(encoder, resolution=resolution)
        if score not in (None, *SCORES):
            raise ValueError(f"score is {score!r}; expected one of {', '.join(SCORES)}")
        self.how = self.options["score"] = score
        self.layers = checked_layers(layers, encoder.depth)
        if not negative >= 0:
            raise ValueError(f"negative is {negative!r}; expected a weight of 0 or more")
        self.negative = float(negative)
        self.options.update(layers=list(self.layers), negative=self.negative)
        self.memory = LayerMemory(encoder, self.layers)

    def forward(self, pixels: Tensor) -> Scores:
        with self.memory.one_walk():
            image, patches = self.encoder.dense(pixels)  # [B, D], [B, N, D]
            grid = self._probability(patches).unflatten(1, self.encoder.grid(pixels))
            grid, whole = self.memory.fused(pixels, grid, self._probability(image))
        how = self.how or ("max" if len(self.memory) else "sqrt")
        rule = None if how == "global" else partial(image_score, how=how)
        return Scores(rule(grid) if rule else whole, grid, image, rule)

    def _probability(self, embeddings: Tensor) -> Tensor:
        return anomaly_probability(embeddings, self.prototypes, negative=self.negative)

    def remember(self, batches: Iterable[Tensor]) -> None:
        self.memory.remember(batches)
