"""Defects painted on photos of good parts, for those who have no defective ones to learn from."""

import numpy as np
from numpy.random import Generator
from PIL import Image
from scipy import ndimage

from vlad.synthetic.defects import spoil
from vlad.synthetic.scenes import Scene
from vlad.synthetic.textures import Array

RIM = 0.04  # of the side: what lies there is taken for background where it is of one colour
PLAIN = 0.06  # largest spread of a rim of one colour, in a picture from 0 to 1
APART = 0.1  # how far a part's pixels are from that colour


def foreground(photo: Array) -> Array:
    """bool [S, S]: the part on a plain background; everything where the rim is not of one colour.

    Args:
        photo: float [S, S, 3] in [0, 1].
    """
    side = max(1, round(len(photo) * RIM))
    inside = np.zeros(photo.shape[:2], bool)
    inside[side:-side, side:-side] = True
    rim = photo[~inside]
    if rim.std(0).max() > PLAIN:
        return np.ones(photo.shape[:2], bool)
    apart = np.abs(photo - np.median(rim, 0)).max(-1) > APART
    part = ndimage.binary_fill_holes(ndimage.binary_opening(apart, iterations=2))
    return part if part.mean() > 0.05 else np.ones(photo.shape[:2], bool)


def paint(rng: Generator, picture: Array, size: int = 224) -> tuple[Array, Array, tuple[str, ...]]:
    """A defective copy of a good picture: uint8 [size, size, 3], its mask bool [size, size], the kinds of defect.

    Args:
        picture: uint8 [H, W, 3]; squeezed to the square.

    No kind, and an empty mask, where no defect could be made visible.
    """
    square = Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC)
    photo = np.asarray(square, np.float32) / 255
    part = foreground(photo)
    behind = photo[~part] if not part.all() else photo.reshape(-1, 3)
    ground = np.broadcast_to(np.median(behind, 0), photo.shape).astype(np.float32)
    canvas, mask, kinds = spoil(rng, Scene(photo, part, ground, "", ""))
    if (photo == photo[..., :1]).all():  # a camera without colours sees none in a defect either
        canvas = np.repeat(canvas.mean(-1, keepdims=True), 3, -1)
    return (np.clip(canvas, 0, 1) * 255).round().astype(np.uint8), mask, kinds


def another_shot(rng: Generator, picture: Array) -> Array:
    """The same thing photographed again: moved by up to a thirtieth of the side, other light, other noise."""
    reach = max(1, len(picture) // 30)
    step = (*rng.integers(-reach, reach + 1, 2), 0)
    moved = ndimage.shift(picture.astype(np.float32) / 255, step, order=0, mode="nearest")
    lit = moved ** np.float32(np.exp(rng.normal(0, 0.1))) * np.float32(rng.uniform(0.9, 1.1))
    noise = rng.normal(0, 0.01, moved.shape[:2])[..., None]
    return (np.clip(lit + noise, 0, 1) * 255).astype(np.uint8)
