"""Photos of many megapixels with one small defect, and exactly where it lies: for what closer looks are good for."""

import math

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw
from scipy import ndimage

from vlad.synthetic.textures import Array, surface

TILE = 512  # px of the drawn surface that a photo is laid out with, mirrored from one to the next
NOISE = 3  # levels of 255: standard deviation of the camera's
LIGHT = 0.2  # share by which it may fall off from one side of a photo to the other
BLOTCHES = 6  # a megapixel: soft ones, as large as defects, that every part has
FAINT = (6, 16)  # levels by which they are darker or lighter than their place
APART = (30, 50)  # the same of a defect
REACH = (10, 90)  # px, their extent
KINDS = ("spot", "scratch")


def large_photo(
    rng: Generator, size: tuple[int, int], defect: int | None = None, part: Generator | None = None
) -> tuple[Array, Array]:
    """A photo uint8 [H, W, 3] of a part, and the mask of its defect, bool [H, W].

    Parts of one surface differ in where it was cut, in uneven light, in blotches as large as defects, and in noise.

    Args:
        rng: draws the surface.
        size: (H, W).
        defect: px, the longer extent of a spot or scratch; None draws none. Outside the mask nothing differs.
        part: draws all that differs between parts, the defect last; None takes `rng`.

    Raises:
        ValueError: the defect is below 4 px, or longer than half of the photo's shorter side.
    """
    height, width = size
    if defect is not None and not 4 <= defect <= min(size) // 2:
        raise ValueError(f"a defect of {defect} px in a photo of {width} x {height}; expected 4 to {min(size) // 2}")
    drawn = (surface(rng, TILE)[0] * 255).astype(np.float32)
    own = rng if part is None else part
    top, left = own.integers(0, TILE, 2)
    photo = np.pad(drawn, ((0, height + TILE), (0, width + TILE), (0, 0)), mode="symmetric")
    photo = photo[top : top + height, left : left + width] * _light(own, size)[..., None]
    for _ in range(round(BLOTCHES * height * width / 1e6)):
        _blotch(own, photo)
    photo += own.normal(0, NOISE, (height, width, 1)).astype(np.float32)
    mask = np.zeros(size, bool)
    if defect is not None:
        shape = _shape(own, defect)
        y, x = (int(own.integers(0, side - long + 1)) for side, long in zip(size, shape.shape, strict=True))
        mask[y : y + shape.shape[0], x : x + shape.shape[1]] = shape
        photo[mask] += own.uniform(*APART) * (1 if photo[mask].mean() < 128 else -1)
    return np.clip(photo, 0, 255).astype(np.uint8), mask


def _light(rng: Generator, size: tuple[int, int]) -> Array:
    """[H, W]: 1 in the middle, falling off to one side."""
    angle, much = rng.uniform(0, 2 * math.pi), rng.uniform(0, LIGHT)
    down, across = (np.linspace(-0.5, 0.5, side, dtype=np.float32) for side in size)
    return 1 + np.float32(much) * (np.float32(math.sin(angle)) * down[:, None] + np.float32(math.cos(angle)) * across)


def _blotch(rng: Generator, photo: Array) -> None:
    """Adds a soft round blotch to float32 [H, W, 3], wholly inside where it fits."""
    extent = int(rng.integers(*REACH))
    y, x = (int(rng.integers(0, max(1, side - extent))) for side in photo.shape[:2])
    place = photo[y : y + extent, x : x + extent]
    down, across = (np.linspace(-1, 1, side, dtype=np.float32) for side in place.shape[:2])
    soft = np.clip(1 - np.hypot(down[:, None], across), 0, None)[..., None]
    place += soft * np.float32(rng.uniform(*FAINT) * rng.choice([-1, 1]))


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
