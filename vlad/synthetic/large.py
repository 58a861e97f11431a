"""Photos of many megapixels with one small defect, and exactly where it lies: for what closer looks are good for."""

import math

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw
from scipy import ndimage

from vlad.synthetic.textures import Array, surface

TILE = 512  # px of the drawn surface that a photo is laid out with, mirrored from one to the next
APART = 45  # levels of 255 by which a defect is darker or lighter than its place
KINDS = ("spot", "scratch")


def large_photo(rng: Generator, size: tuple[int, int], defect: int | None = None) -> tuple[Array, Array]:
    """A photo uint8 [H, W, 3] of a drawn surface with sensor noise, and its mask bool [H, W].

    Args:
        rng: the only source of randomness: another one of the same seed draws the same surface with another `defect`.
        size: (H, W).
        defect: px, the longer extent of a spot or scratch; None draws none. Outside the mask nothing differs.

    Raises:
        ValueError: the defect is below 4 px, or longer than half of the photo's shorter side.
    """
    height, width = size
    if defect is not None and not 4 <= defect <= min(size) // 2:
        raise ValueError(f"a defect of {defect} px in a photo of {width} x {height}; expected 4 to {min(size) // 2}")
    drawn = (surface(rng, TILE)[0] * 255).astype(np.float32)
    photo = np.pad(drawn, ((0, max(0, height - TILE)), (0, max(0, width - TILE)), (0, 0)), mode="symmetric")
    photo = photo[:height, :width] + rng.normal(0, 3, (height, width, 1)).astype(np.float32)
    if defect is None:
        return np.clip(photo, 0, 255).astype(np.uint8), np.zeros(size, bool)
    shape = _shape(rng, defect)
    y, x = (int(rng.integers(0, side - own + 1)) for side, own in zip(size, shape.shape, strict=True))
    mask = np.zeros(size, bool)
    mask[y : y + shape.shape[0], x : x + shape.shape[1]] = shape
    photo[mask] += APART if photo[mask].mean() < 128 else -APART
    return np.clip(photo, 0, 255).astype(np.uint8), mask


def _shape(rng: Generator, extent: int) -> Array:
    """bool [h, w], the longer of which is `extent`: a round spot, or a thin line at some angle."""
    if KINDS[int(rng.integers(len(KINDS)))] == "spot":
        place = np.indices((extent, extent)) - (extent - 1) / 2
        return np.hypot(*place) <= extent / 2
    angle, thick = float(rng.uniform(0, math.pi)), max(2, extent // 12)
    pen = Image.new("1", (3 * extent, 3 * extent))
    across, down = extent * math.cos(angle), extent * math.sin(angle)
    middle = 1.5 * extent
    ends = (middle - across, middle - down, middle + across, middle + down)
    ImageDraw.Draw(pen).line(ends, fill=1, width=thick)
    line = np.array(pen)
    line = line[extent : 2 * extent, extent : 2 * extent]  # its part in a square of the extent
    (found,) = ndimage.find_objects(line.astype(np.uint8))
    return line[found]
