"""Pictures as a worse camera would take them: noise, blur, JPEG, brightness, contrast, rotation, shift.

Every change has severities 1 to 5 and is fixed by the picture's key: the same picture is changed in the same way on
every machine and for every detector. Masks follow rotation and shift. Borders are mirrored, since a black corner would
be an anomaly of its own.
"""

import hashlib
import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

SEVERITIES = (1, 3, 5)  # the ones that reports use, of 1 to 5

_NOISE = (2, 4, 8, 12, 18)  # standard deviation, of 255 levels
_BLUR = (0.5, 1, 1.5, 2, 3)  # sigma, px of the original picture
_JPEG = (90, 75, 50, 30, 15)  # quality
_BRIGHTNESS = (0.9, 1.1, 0.8, 1.2, 0.6)  # times
_CONTRAST = (0.9, 0.8, 0.7, 0.6, 0.5)  # times, about the picture's mean
_ROTATION = (1, 2, 5, 10, 20)  # degrees, to a side
_SHIFT = (0.01, 0.02, 0.04, 0.06, 0.08)  # of width and of height, to a side each

Mask = np.ndarray | None
Random = np.random.Generator


def corrupt(
    picture: np.ndarray, kind: str, severity: int, key: str, mask: Mask = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The picture changed, uint8 [H, W, 3], and the mask that belongs to it.

    Args:
        picture: uint8 RGB [H, W, 3]; not changed.
        kind: one of CORRUPTIONS.
        severity: 1 (hardly seen) to 5.
        key: what the picture is called; with kind and severity it seeds what is random.
        mask: bool [H, W], or None.

    Raises:
        ValueError: unknown kind, or a severity outside 1 to 5.
    """
    check(kind, severity)
    seed = hashlib.sha256(f"{kind}/{severity}/{key}".encode(errors="surrogateescape")).digest()
    return CORRUPTIONS[kind](picture, mask, severity - 1, np.random.default_rng(list(seed[:16])))


def check(kind: str, severity: int) -> None:
    """Raises ValueError where `corrupt` would."""
    if kind not in CORRUPTIONS:
        raise ValueError(f"unknown corruption {kind!r}; known: {', '.join(CORRUPTIONS)}")
    if severity not in range(1, 6):
        raise ValueError(f"severity is {severity!r}; expected a whole number from 1 to 5")


def _noise(picture: np.ndarray, mask: Mask, level: int, random: Random) -> tuple[np.ndarray, Mask]:
    return _levels(picture + random.normal(0, _NOISE[level], picture.shape)), mask


def _blur(picture: np.ndarray, mask: Mask, level: int, random: Random) -> tuple[np.ndarray, Mask]:
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(_BLUR[level]))), mask


def _jpeg(picture: np.ndarray, mask: Mask, level: int, random: Random) -> tuple[np.ndarray, Mask]:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=_JPEG[level])
    return np.asarray(Image.open(file).convert("RGB")), mask


def _brightness(picture: np.ndarray, mask: Mask, level: int, random: Random) -> tuple[np.ndarray, Mask]:
    return _levels(picture * _BRIGHTNESS[level]), mask


def _contrast(picture: np.ndarray, mask: Mask, level: int, random: Random) -> tuple[np.ndarray, Mask]:
    mean = picture.mean()
    return _levels(mean + (picture - mean) * _CONTRAST[level]), mask


def _rotation(picture: np.ndarray, mask: Mask, level: int, random: Random) -> tuple[np.ndarray, Mask]:
    from skimage.transform import rotate

    angle = _ROTATION[level] * random.choice([-1, 1])
    turned = _levels(rotate(picture.astype(np.float32), angle, mode="reflect", order=1, preserve_range=True))
    if mask is None:
        return turned, None
    return turned, rotate(mask.astype(np.float32), angle, mode="reflect", order=0, preserve_range=True) > 0.5


def _shift(picture: np.ndarray, mask: Mask, level: int, random: Random) -> tuple[np.ndarray, Mask]:
    steps = [round(_SHIFT[level] * side) * int(random.choice([-1, 1])) for side in picture.shape[:2]]
    moved = _moved(picture, steps)
    return moved, None if mask is None else _moved(mask, steps)


def _moved(array: np.ndarray, steps: list[int]) -> np.ndarray:
    """[H, W, ...] moved by (down, right) pixels."""
    padding = [(abs(step), abs(step)) for step in steps] + [(0, 0)] * (array.ndim - 2)
    padded = np.pad(array, padding, mode="reflect")
    (down, right), (height, width) = steps, array.shape[:2]
    top, left = abs(down) - down, abs(right) - right
    return np.ascontiguousarray(padded[top : top + height, left : left + width])


def _levels(values: np.ndarray) -> np.ndarray:
    return np.round(np.clip(values, 0, 255)).astype(np.uint8)


CORRUPTIONS: dict[str, Callable[[np.ndarray, Mask, int, Random], tuple[np.ndarray, Mask]]] = {
    "noise": _noise,
    "blur": _blur,
    "jpeg": _jpeg,
    "brightness": _brightness,
    "contrast": _contrast,
    "rotation": _rotation,
    "shift": _shift,
}
