"""How a picture looks as a whole, in a few numbers: its light, and where what it shows lies and is turned to.

What moves or turns a camera or changes the light changes them in every picture; a defect changes few of them, in few.
"""

import base64
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vlad.images.sizes import resized

SIDE = 128  # px that a picture is shrunk to
COARSE = 64  # px, for middles and directions, in which noise has no say
BINS = 32  # of its columns, and of its rows
LIGHT = 5  # numbers: mean red, green and blue, mean and standard deviation of the grey levels
GREY = 3  # which of them is the mean grey level
EDGES = 32  # as much as edges have on average
WHOLE = 512  # steps that a side has where a middle is said
PLACES = 2  # down, and across: quarters of the picture
DIRECTIONS = 8  # of edges, in half a turn
SHARES = 128  # all edges of a quarter together
PARTS = (LIGHT, 2 * BINS, 6, PLACES**2 * DIRECTIONS)  # numbers of light, edges, middles and directions
FORMER = PARTS[:2]  # of what files of older versions hold


def look_of(picture: np.ndarray) -> str:
    """base64 of uint8 [sum(PARTS)] of a picture [H, W, 3], each part in units of its own.

    Light, in levels; edges per column and row, as shares of all; middles (down, right) of what stands out from the
    median level, of the edges and of the light; directions of the edges in each quarter.
    """
    colours = resized(picture, (SIDE, SIDE), Image.Resampling.BILINEAR).astype(float)
    grey = colours @ (0.299, 0.587, 0.114)
    down, right = np.gradient(grey)
    edges = np.stack([np.abs(right).mean(0), np.abs(down).mean(1)]).reshape(2, BINS, -1).mean(2)

    coarse = grey.reshape(COARSE, SIDE // COARSE, COARSE, SIDE // COARSE).mean((1, 3))
    down, right = np.gradient(coarse)
    strength = np.hypot(down, right)
    numbers = [
        *colours.mean((0, 1)),
        grey.mean(),
        grey.std(),
        *(edges / (edges.mean() + 1e-9) * EDGES).ravel(),
        *(_middle(np.abs(coarse - np.median(coarse))) + _middle(strength) + _middle(coarse)),
        *_directions(strength, np.arctan2(down, right)),
    ]
    return base64.b64encode(np.clip(np.round(numbers), 0, 255).astype(np.uint8).tobytes()).decode()


def _middle(weights: np.ndarray) -> list[float]:
    """(down, right) of the middle of weights [COARSE, COARSE]; 128 is the picture's own."""
    places, total = (np.arange(COARSE) + 0.5) / COARSE - 0.5, weights.sum() + 1e-9
    return [float(weights.sum(axis) @ places / total * WHOLE + 128) for axis in (1, 0)]


def _directions(strength: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """[PLACES**2 * DIRECTIONS]: how much of a quarter's edges lies in each direction; a quarter of few edges has less.

    Source: N. Dalal and B. Triggs, "Histograms of oriented gradients for human detection" (2005), whose votes are
    shared between the two nearest directions in this way.
    """
    turn = angles / np.pi * DIRECTIONS % DIRECTIONS
    low = turn.astype(int)
    half = np.arange(COARSE) * PLACES // COARSE
    place = (half[:, None] * PLACES + half) * DIRECTIONS
    sums = np.zeros(PLACES**2 * DIRECTIONS)
    for direction, share in ((low, 1 - (turn - low)), (low + 1, turn - low)):
        sums += np.bincount((place + direction % DIRECTIONS).ravel(), (strength * share).ravel(), len(sums))
    totals = sums.reshape(-1, DIRECTIONS).sum(1, keepdims=True)
    return (sums.reshape(-1, DIRECTIONS) / (totals + 0.05 * totals.mean() + 1e-9) * SHARES).ravel()


def is_look(text: object) -> bool:
    """Whether `look_of` may have given it, of this version or of one that knew of light and edges alone."""
    try:
        return isinstance(text, str) and len(base64.b64decode(text, validate=True)) in (sum(PARTS), sum(FORMER))
    except ValueError:
        return False


def parts_of(looks: Sequence[str]) -> list[np.ndarray]:
    """[n, numbers] for each of PARTS of what `look_of` gave; of FORMER alone where one of them has no more."""
    found = [np.frombuffer(base64.b64decode(look), np.uint8) for look in looks]
    parts = FORMER if any(len(one) == sum(FORMER) for one in found) else PARTS
    rows = np.array([one[: sum(parts)] for one in found], dtype=float)
    return np.split(rows, np.cumsum(parts)[:-1], axis=1)
