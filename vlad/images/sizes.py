"""Pictures at another size."""

import numpy as np
from PIL import Image


def resized(picture: np.ndarray, size: tuple[int, ...], how: Image.Resampling = Image.Resampling.LANCZOS) -> np.ndarray:
    """A picture [H, W, 3], or a map [H, W] of float32, stretched to the height and width that `size` begins with."""
    return np.array(Image.fromarray(picture).resize((size[1], size[0]), how))


def fitted(picture: np.ndarray, longest: int, how: Image.Resampling = Image.Resampling.LANCZOS) -> np.ndarray:
    """The picture with no side longer than `longest` px, its shape kept; never enlarged."""
    scale = longest / max(picture.shape[:2])
    return picture if scale >= 1 else resized(picture, scaled(picture.shape, scale), how)


def scaled(size: tuple[int, ...], scale: float) -> tuple[int, int]:
    """Height and width times a factor, at least 1 px each."""
    height, width = (max(1, round(side * scale)) for side in size[:2])
    return height, width
