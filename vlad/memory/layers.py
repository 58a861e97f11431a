"""What text methods do with normal pictures where their papers say nothing of such: words times unlikeness."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from vlad.memory import Memory, layer_tokens

SIZES = (1, 3)  # of the squares that `LayerMemory` averages over: the patch itself, and what makes up for small shifts
UNLIKE = 4  # times that `unlike` counts where the words count once: found on drawn parts by examples/tiny_kinds.py


class LayerMemory(Memory):
    """Patches of normal pictures, for text methods that learn from such: `layer_tokens` of the given layers.

    What words say of a patch and how unlike the normals it is are multiplied, which needs no common scale: distances
    between tokens are small and differ between encoders.
    """

    def __init__(self, encoder: Any, layers: tuple[int, ...]):
        super().__init__(len(SIZES) * len(layers) * encoder.width, exact=encoder.dtype == torch.float32)
        self.encoder, self.layers = encoder, layers

    def remember(self, batches: Iterable[Tensor]) -> None:
        """Adds normal pictures, batches of pixels [B, 3, S, S]."""
        for pixels in batches:
            self.add(layer_tokens(self.encoder, pixels, self.layers, SIZES))

    def unlike(self, pixels: Tensor) -> Tensor:
        """[B, rows, columns] in [0, 1]: half the cosine distance of each patch to the closest one of the normals."""
        tokens = layer_tokens(self.encoder, pixels, self.layers, SIZES)
        return (self.distance(tokens) / 2).clamp_max(1).unflatten(1, self.encoder.grid(pixels))

    def one_walk(self) -> AbstractContextManager[None]:
        """Within it the words and `fused` walk the tower once; does nothing while there are no normals."""
        return self.encoder.sharing() if len(self) else nullcontext()

    def fused(self, pixels: Tensor, grid: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities by the words, [B, rows, columns] and [B], each made its `weighted_mean` with `unlike` and the
        largest value of that; as they are while there are no normals."""
        if not len(self):
            return grid, whole
        unlike = self.unlike(pixels)
        return weighted_mean(grid, unlike), weighted_mean(whole, unlike.amax((1, 2)))


def weighted_mean(words: Tensor, unlike: Tensor) -> Tensor:
    """The geometric mean of both, elementwise, in which `unlike` counts UNLIKE times."""
    return (words * unlike**UNLIKE) ** (1 / (1 + UNLIKE))
