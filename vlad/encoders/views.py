"""Views of pictures: the same ones turned or shifted on their canvas, for methods that average over them."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from vlad.encoders.encoder import Encoder


def moved(pixels: Tensor, angle: float = 0.0, shift: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """[B, 3, H, W] pictures turned by `angle` radians and shifted by (x, y) in halves of their sides.

    The canvas stays, the border is mirrored; bilinear, align_corners=False.
    """
    cosine, sine = math.cos(angle), math.sin(angle)
    matrix = pixels.new_tensor([[cosine, -sine, shift[0]], [sine, cosine, shift[1]]])
    places = F.affine_grid(matrix.expand(len(pixels), 2, 3), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, places, padding_mode="reflection", align_corners=False)


def rotated(pixels: Tensor, count: int) -> Iterator[Tensor]:
    """The pictures [B, 3, H, W] themselves, then turned by 1/count, 2/count, ... of a full turn on their canvas."""
    yield pixels
    for step in range(1, count):
        yield moved(pixels, angle=2 * math.pi * step / count)


def rotated_tokens(encoder: Encoder, pixels: Tensor, count: int, see: Callable[[Tensor], Tensor]) -> Tensor:
    """[B, count * P, C]: what `see` gives of the pictures, [B, P, C], and of each of their turns, unshared."""
    itself, *turns = rotated(pixels, count)
    tokens = [see(itself)]
    with encoder.unshared():
        tokens += [see(turn) for turn in turns]
    return torch.cat(tokens, 1)
