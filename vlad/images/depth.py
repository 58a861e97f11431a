"""Levels of any depth and kind to uint8 RGB, and what a run should be told about them once."""

import logging
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vlad.images.sizes import LARGE, bands, by_bands, factors, turned

logger = logging.getLogger(__name__)

FULL = 65535  # white of 16 bits
FLOAT_SLACK = 1e-3  # resizing and float16 step this far over [0, 1]; clipped
FLAT = "the picture is of one colour, without any structure"
SHRUNK = 10  # times smaller, from which on scratches are lost
FLAT_LEVELS = 4  # of 255, between the brightest and the darkest pixel
NOISE_LEVELS = 32  # the same where all of it may be the noise of a sensor
STANDS_OUT = 8  # standard deviations that such noise, half of it cut off below black, is from its mean
ENOUGH = 16  # dark pictures in a row after which a run that may never end is told


class PictureWarning(UserWarning):
    """Pictures were read, but perhaps not as they were meant."""


@dataclass(frozen=True)
class Levels:
    """A picture's levels as its file or array holds them.

    Attributes:
        values: [H, W, 1|2|3|4] of bool, integers or floats; of 2 and 4 channels the last is alpha. Of a large picture
            an object with shape and dtype that gives such values for a slice of rows.
        white: the level that the file states to be white; None where it states none beyond its type.
        premultiplied: the colours have been multiplied with alpha already.
        inverted: 0 is white.
        hint: what else the file says of its depth, for the warning.
        turn: by which tag of EXIF the values are still to be turned upright.
        size: (H, W) of the upright picture, where its decoder made it smaller already; None: that of the values.
    """

    values: Any
    white: float | None = None
    premultiplied: bool = False
    inverted: bool = False
    hint: str = ""
    turn: int = 1
    size: tuple[int, int] | None = None

    def upright_size(self) -> tuple[int, int]:
        """(H, W) of the whole picture."""
        height, width = self.values.shape[:2]
        return self.size or ((height, width) if self.turn < 5 else (width, height))


class Remarks:
    """What is worth saying of a run's pictures once, however many they are; said when the `with` block ends."""

    def __init__(self) -> None:
        self._deep = 0  # pictures of 16 bits of unstated depth
        self._highest = 0  # of their levels
        self._where = self._hint = ""
        self._told = False
        self._shrunk = self._costly = False
        self._paged: list[tuple[str, int]] = []
        self._clear: list[str] = []
        self._flat: list[str] = []

    def __enter__(self) -> "Remarks":
        return self

    def __exit__(self, *_: object) -> None:
        self.say()

    def deep(self, label: str, highest: int, hint: str = "") -> None:
        """Notes a 16-bit picture whose file does not say which level is white."""
        self._deep += 1
        self._where, self._hint = self._where or label, self._hint or hint
        self._highest = max(self._highest, highest)
        if self._deep == ENOUGH:
            self._say_deep()

    def paged(self, label: str, count: int) -> None:
        """Notes a file of which only the first of `count` pages was read."""
        self._paged.append((label, count))

    def shrunk(self, label: str, size: tuple[int, int], times: float, patch: int) -> None:
        """Warns at once, the first time that a picture of `size` (H, W) is seen so much smaller that defects vanish.

        `patch` is the side of an encoder's patch: what is smaller than one is hardly ever found.
        """
        if times > SHRUNK and not self._shrunk:
            self._shrunk = True
            _warn(
                f"{label} has {size[1]} x {size[0]} pixels and is seen {times:.0f} times smaller: a defect of less "
                f"than {times * patch:.0f} pixels is hardly found; smallest_defect=PX (--smallest-defect) looks "
                "closer, in tiles, and roi= (--roi) cuts out what matters"
            )

    def costly(self, label: str, size: tuple[int, int], work: tuple[int, int], passes: int) -> None:
        """Says before the first picture is scored what one of `size` costs whose tiles are cut of a `work` copy."""
        if not self._costly:
            self._costly = True
            logger.warning(
                f"{label} has {size[1]} x {size[0]} pixels and is seen at {work[1]} x {work[0]} "
                f"({work[0] * work[1] / 1e6:.1f} megapixels): {passes} passes of the encoder a picture of this size"
            )

    def flat(self, label: str) -> None:
        """Notes a picture without structure: a dead camera, a closed lens cap."""
        self._flat.append(label)

    def repeated(self, times: int) -> None:
        """Warns where one array stands several times in a list: a buffer that was filled anew holds its last frame."""
        if times > 1:
            _warn(
                f"the same array or picture stands {times} times in the list; copy each frame of a buffer: frame.copy()"
            )

    def clear(self, label: str) -> None:
        """Notes a picture that is transparent everywhere."""
        self._clear.append(label)

    def say(self) -> None:
        """Warns of what was noted and forgets it."""
        self._say_deep()
        if words := self.of_pages():
            _warn(words)
        if self._clear:
            more = f" and {len(self._clear) - 1} more" if len(self._clear) > 1 else ""
            _warn(f"{self._clear[0]}{more}: alpha is 0 everywhere, so it was left out and the colours were taken")
        if self._flat and not self._told:  # else they are dark for want of bits
            more = f" and {len(self._flat) - 1} more" if len(self._flat) > 1 else ""
            _warn(f"{self._flat[0]}{more}: {FLAT}, so its score says nothing; look at the camera and the light")
        self._paged, self._clear, self._flat = [], [], []

    def of_pages(self) -> str:
        """What is to be said of files with several pages; "" where there were none."""
        if not self._paged:
            return ""
        (label, count), others = self._paged[0], len(self._paged) - 1
        more = f", and so of {others} more file{'s' * (others > 1)}" if others else ""
        return f'{label} has {count} pages and only the first was read{more}; pages="all" (--pages all) reads each'

    def _say_deep(self) -> None:
        if self._deep and not self._told and 0 < self._highest <= FULL // 8:
            self._told = True
            bits = next(bits for bits in (8, 10, 12, 14) if self._highest < 2**bits)
            first = f"first {self._where}" if self._deep > 1 else self._where
            said = f"; {self._hint}" if self._hint else ""
            _warn(
                f"16-bit pictures reach level {self._highest} of {FULL} at most and are read as nearly black "
                f"({first}{said}); if the camera gives {bits} bits, say bits={bits} (--bits {bits})"
            )


def _warn(message: str) -> None:
    """As if the first caller outside this package had caused it, so that Python shows the user's own line."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("vlad."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, PictureWarning, stacklevel=level - 1)


def to_rgb(levels: Levels, bits: int | None, remarks: Remarks, label: str, side: int | None = None) -> np.ndarray:
    """uint8 RGB [H, W, 3], contiguous, over white where it is transparent.

    Args:
        levels: what was read.
        bits: depth of pictures of more than 8 bits that do not state theirs: white is 2**bits - 1; None: their type's.
        remarks: told of doubtful depths.
        label: the picture's name there.
        side: what its reader needs, as in `Reader.read_for`; None: all of it.

    Raises:
        ValueError: which level is black or white cannot be told.
    """
    values, size = levels.values, (levels.values.shape[0], levels.values.shape[1])
    has_alpha = values.shape[2] in (2, 4)
    colours = values.shape[2] - has_alpha
    white = levels.white or 255.0
    if values.dtype != np.uint8:
        white = _white(values[:][..., :colours], levels, bits, remarks, label)
    if has_alpha and not any(values[rows][..., -1].any() for rows in bands(size)):
        remarks.clear(label)  # a fourth byte that nobody filled: no picture is meant to be invisible
        has_alpha = False

    def band(rows: slice) -> np.ndarray:
        return _eight(levels, values[rows][..., : colours + has_alpha], white, has_alpha)

    if size[0] * size[1] <= LARGE:
        picture = np.ascontiguousarray(turned(band(slice(None)), levels.turn))
        return picture if picture.flags.writeable else picture.copy()
    return by_bands(size, band, factors(size, side), levels.turn)


def _eight(levels: Levels, values: np.ndarray, white: float, has_alpha: bool) -> np.ndarray:
    """uint8 RGB of a band of its values."""
    eight = _scaled(values, white)
    if levels.inverted:
        colours = eight.shape[2] - has_alpha
        eight = np.concatenate([255 - eight[..., :colours], eight[..., colours:]], axis=2)
    if has_alpha:
        return _on_white(eight, levels.premultiplied)
    return _rgb(eight)


def _rgb(eight: np.ndarray) -> np.ndarray:
    """Contiguous [H, W, 3] of [H, W, 1|3]."""
    return np.ascontiguousarray(eight if eight.shape[2] == 3 else np.broadcast_to(eight, (*eight.shape[:2], 3)))


def is_flat(picture: np.ndarray) -> bool:
    """Whether a uint8 picture [H, W, 3] has one colour everywhere, but for a sensor's noise: as of a covered lens."""
    for part in (picture[::16, ::16], picture):  # nearly always the first is enough
        if (levels := int(np.ptp(part, axis=(0, 1)).max())) > NOISE_LEVELS:
            return False
    return levels <= FLAT_LEVELS or _is_noise(picture)


def _is_noise(picture: np.ndarray) -> bool:
    """Whether it averages out as noise does that is nearly white, and no pixel stands out of it."""
    if min(picture.shape[:2]) < 64:
        return False
    x = picture.astype(np.float32)
    x -= x.mean((0, 1))
    spread = float(x.std((0, 1)).max())
    fine, coarse = (_means(x, side) for side in (2, 16))
    whole = float(np.ptp(coarse, axis=(0, 1)).max()) <= FLAT_LEVELS / 2 and float(fine.std((0, 1)).max()) < 0.8 * spread
    return whole and float(np.abs(x).max()) <= max(FLAT_LEVELS, STANDS_OUT * spread)


def _means(x: np.ndarray, side: int) -> np.ndarray:
    """[H / side, W / side, 3] of squares of a picture [H, W, 3]; what is left over at its edges is left out."""
    rows, columns = (size // side for size in x.shape[:2])
    return x[: rows * side, : columns * side].reshape(rows, side, columns, side, 3).mean((1, 3))


def _on_white(eight: np.ndarray, premultiplied: bool) -> np.ndarray:
    """uint8 [H, W, 2|4], whose last channel is alpha, composited on white."""
    if premultiplied:
        over_white = eight[..., :-1].astype(np.uint16) + (255 - eight[..., -1:])
        return _rgb(np.minimum(over_white, 255).astype(np.uint8))
    over = Image.fromarray(np.ascontiguousarray(eight))
    white = Image.new("RGB", over.size, "white")
    white.paste(over, mask=over)
    return np.array(white)


def _scaled(values: np.ndarray, white: float) -> np.ndarray:
    """uint8 of levels from 0 to white."""
    if values.dtype == np.uint8 and white == 255:
        return values
    if values.dtype == np.bool_:
        return values * np.uint8(255)
    exact = np.float64 if values.dtype.itemsize > 2 and values.dtype.kind != "f" else np.float32
    step = exact(white / 255)
    if values.dtype.kind == "f":
        return np.round(np.clip(values, 0, white) * np.float32(255 / white)).astype(np.uint8)
    return np.round(np.minimum(values / step, 255)).astype(np.uint8)


def _white(colours: np.ndarray, levels: Levels, bits: int | None, remarks: Remarks, label: str) -> float:
    kind = colours.dtype.newbyteorder("=")
    if kind == np.bool_:
        return 1
    if kind.kind == "f":
        return _white_of_floats(colours, levels.white)
    low, high = int(colours.min()), int(colours.max())
    if low < 0:
        raise ValueError(f"signed levels reach from {low} to {high}: which is black is not said; {UNSIGNED}")
    if levels.white is not None and high <= levels.white:
        return levels.white
    if kind.itemsize == 1:
        return int(np.iinfo(kind).max)
    if bits is not None:
        if high >= 2**bits:
            raise ValueError(f"it holds level {high} and {bits} bits end at {2**bits - 1}; give bits={_depth(high)}")
        return 2**bits - 1
    return _white_of_type(kind, high, levels, remarks, label)


UNSIGNED = "shift them so that black is 0, and save uint16"


def _white_of_type(kind: np.dtype[Any], high: int, levels: Levels, remarks: Remarks, label: str) -> float:
    top = int(np.iinfo(kind).max)
    if kind == np.int16 or high <= FULL:
        white = min(top, FULL)
        remarks.deep(label, high * FULL // white, levels.hint)
        return white
    if high > top // 8:
        return top
    raise ValueError(
        f"{8 * kind.itemsize}-bit grey levels reach {high}; expected 16 bits, 0 to {FULL}, or the full range {top}"
    )


def _white_of_floats(colours: np.ndarray, stated: float | None) -> float:
    low, high = float(colours.min()), float(colours.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("it holds NaN or infinite values; expected numbers in [0, 1] (numpy.nan_to_num replaces them)")
    if stated is not None and low >= 0 and high <= stated:
        return stated
    if low < -FLOAT_SLACK or high > 1 + FLOAT_SLACK:
        raise ValueError(f"float values reach from {low:.4g} to {high:.4g}; expected [0, 1] ({_float_hint(low, high)})")
    return 1


def _float_hint(low: float, high: float) -> str:
    if low < 0:
        return "undo the normalisation first"
    if high <= 255:
        return "divide by 255"
    likely = [str(2**bits - 1) for bits in (10, 12, 14, 16) if high < 2**bits][:2]
    return f"divide by the white level: {' or '.join(likely)}?" if likely else "divide by the white level"


def _depth(high: int) -> int:
    return next((bits for bits in range(8, 17) if high < 2**bits), 16)
