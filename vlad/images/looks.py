"""How a picture looks as a whole, in a few numbers: its light, and where along its rows and columns edges lie.

What moves or turns a camera or changes the light changes them in every picture; a defect changes few of them, in few.
"""

import base64
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vlad.images.sizes import resized

SIDE = 128  # px that a picture is shrunk to
BINS = 32  # of its columns, and of its rows
LIGHT = 5  # numbers: mean red, green and blue, mean and standard deviation of the grey levels
GREY = 3  # which of them is the mean grey level
EDGES = 32  # as much as edges have on average


def look_of(picture: np.ndarray) -> str:
    """base64 of uint8 [LIGHT + 2 * BINS] of a picture [H, W, 3]; light in levels, edges per column and row."""
    colours = resized(picture, (SIDE, SIDE), Image.Resampling.BILINEAR).astype(float)
    grey = colours @ (0.299, 0.587, 0.114)
    down, right = np.gradient(grey)
    edges = np.stack([np.abs(right).mean(0), np.abs(down).mean(1)]).reshape(2, BINS, -1).mean(2)
    light = [*colours.mean((0, 1)), grey.mean(), grey.std()]
    numbers = np.concatenate([light, (edges / (edges.mean() + 1e-9) * EDGES).ravel()])
    return base64.b64encode(np.clip(np.round(numbers), 0, 255).astype(np.uint8).tobytes()).decode()


def is_look(text: object) -> bool:
    """Whether `look_of` may have given it."""
    try:
        return isinstance(text, str) and len(base64.b64decode(text, validate=True)) == LIGHT + 2 * BINS
    except ValueError:
        return False


def light_and_edges(looks: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """[n, LIGHT] and [n, 2 * BINS] of what `look_of` gave."""
    found = np.array([np.frombuffer(base64.b64decode(look), np.uint8) for look in looks], dtype=float)
    return found[:, :LIGHT], found[:, LIGHT:]
