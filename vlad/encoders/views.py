"""Views of pictures: the same ones turned or shifted on their canvas, for methods that average over them."""

import math

import torch.nn.functional as F
from torch import Tensor


def moved(pixels: Tensor, angle: float = 0.0, shift: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """[B, 3, H, W] pictures turned by `angle` radians and shifted by (x, y) in halves of their sides.

    The canvas stays, the border is mirrored; bilinear, align_corners=False.
    """
    cosine, sine = math.cos(angle), math.sin(angle)
    matrix = pixels.new_tensor([[cosine, -sine, shift[0]], [sine, cosine, shift[1]]])
    places = F.affine_grid(matrix.expand(len(pixels), 2, 3), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, places, padding_mode="reflection", align_corners=False)


def rotated(pixels: Tensor, count: int) -> list[Tensor]:
    """The pictures [B, 3, H, W] themselves, then turned by 1/count, 2/count, ... of a full turn on their canvas."""
    return [pixels, *(moved(pixels, angle=2 * math.pi * step / count) for step in range(1, count))]
