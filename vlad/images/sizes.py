"""Pictures at another size, and work on large ones band by band, so that memory stays bounded."""

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

LARGE = 25_000_000  # H * W above which a picture is reduced where it is read, if its reader says that it needs less
TILED = 8_000_000  # H * W above which a picture is reduced before closer looks are cut out of it
SPARE = 3  # times the side asked for that is left: scores then move by .004 to .011 in the mean, and some by .05
MAX_PIXELS = 178_956_970  # H * W; what Pillow itself accepts before it raises: about 540 MB as RGB
WHOLE = 100_000_000  # H * W of what a detector reads at its own size: more takes over 2 GB beside an encoder
PLAIN_BYTES = 7.2  # a pixel of 8 bits while it is decoded: 4 of Pillow's, 3 of ours, the file
BAND = 4_000_000  # H * W worked on at once

Reduction = Callable[[tuple[int, int]], int]  # by which whole number an upright picture of (H, W) may be reduced


def factors(size: tuple[int, ...], side: int | tuple[int, ...] | None) -> tuple[int, int]:
    """Whole numbers (down, right) by which a picture of `size` (H, W) may be reduced for one that needs `side` px.

    `side` may be (h, w). Of those that leave SPARE times the side, and at most twice that, the ones that cut the fewest
    pixels at the edge.
    """
    if side is None or size[0] * size[1] <= LARGE:
        return 1, 1
    sides = side if isinstance(side, tuple) else (side, side)
    down, right = (_factor(length, max(1, length // (SPARE * own))) for length, own in zip(size, sides, strict=False))
    return down, right


def factor(size: tuple[int, ...], plane: tuple[int, int]) -> int:
    """By which whole number both sides of a picture of `size` (H, W) are reduced where its tiles fill a `plane` (h, w).

    It is 1 up to TILED, else the largest that leaves SPARE times the plane.
    """
    if size[0] * size[1] <= TILED:
        return 1
    return max(1, min(length // (SPARE * own) for length, own in zip(size, plane, strict=False)))


def _factor(length: int, most: int) -> int:
    return min(range(most, most // 2, -1), key=lambda factor: -length % factor)


def bands(size: tuple[int, ...], down: int = 1) -> Iterator[slice]:
    """The rows of a picture, about BAND pixels at a time, each time a multiple of `down`."""
    rows = down * max(1, BAND // size[1] // down)
    return (slice(top, min(top + rows, size[0])) for top in range(0, size[0], rows))


class Part:
    """A picture's uint8 levels [H, W, bands] in a mode, of the rows asked for: Pillow would copy a large one whole."""

    dtype = np.dtype(np.uint8)

    def __init__(self, image: Image.Image, mode: str) -> None:
        self.image, self.mode = image, mode
        self.shape = image.height, image.width, len(mode)

    def __getitem__(self, rows: slice) -> np.ndarray:
        top, end, _ = rows.indices(self.shape[0])
        part = self.image if end - top == self.shape[0] else self.image.crop((0, top, self.shape[1], end))
        return np.asarray(part if part.mode == self.mode else part.convert(self.mode))


def by_bands(
    size: tuple[int, ...], work: Callable[[slice], np.ndarray], by: tuple[int, int] = (1, 1), turn: int = 1
) -> np.ndarray:
    """uint8 [H / down, W / right, 3] of what `work` makes of bands of rows, each reduced `by` (down, right).

    It is made upright on the way: `turn` is as in `turned`.
    """
    down, right = by
    small = -(-size[0] // down), -(-size[1] // right)
    whole = np.empty((*(small if turn < 5 else small[::-1]), 3), np.uint8)
    stored = turned(whole, {6: 8, 8: 6}.get(turn, turn))
    for rows in bands(size, down):
        stored[rows.start // down : -(-rows.stop // down)] = _reduced(work(rows), by)
    return whole


def turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels [H, W, ...] upright, by the tag of EXIF and TIFF: where row 0 and column 0 belong."""
    if orientation in range(5, 9):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values[:, ::-1] if orientation in (2, 3, 6, 7) else values


def afford(pixels: int, each: float, limit: int) -> None:
    """ValueError where it takes more memory to decode so many pixels, `each` of so many bytes, than `limit` plain ones.

    A limit below MAX_PIXELS is about pixels, not about memory.
    """
    if pixels * each > PLAIN_BYTES * max(limit, MAX_PIXELS):
        gigabytes = f"{pixels * each / 2**30:.1f} GB"
        raise ValueError(
            f"its {pixels / 1e6:.0f} million pixels take {gigabytes} to decode; save it as PNG of 8 bits or, if you "
            "trust it, raise max_pixels= or the environment variable VLAD_MAX_PIXELS"
        )


def _reduced(picture: np.ndarray, by: tuple[int, int]) -> np.ndarray:
    """Means of boxes of uint8 [H, W, 3]."""
    return picture if by == (1, 1) else np.asarray(Image.fromarray(picture).reduce((by[1], by[0])))


def reduced(picture: np.ndarray, by: int) -> np.ndarray:
    """Means of squares of `by` px of a picture [H, W, 3]; those at its right and lower edge may be less than whole."""
    return picture if by == 1 else by_bands(picture.shape[:2], lambda rows: picture[rows], (by, by))


def resized(
    picture: np.ndarray,
    size: tuple[int, ...],
    how: Image.Resampling = Image.Resampling.LANCZOS,
    shown: tuple[float, float] | None = None,
) -> np.ndarray:
    """A picture [H, W, 3], or a map [H, W] of float32, stretched to the height and width that `size` begins with.

    `shown` is how much of its height and width is stretched so, where its last row and column are less than whole;
    such a picture is reduced once more for a look that needs far less.
    """
    by = factors(picture.shape[:2], size[:2]) if picture.ndim == 3 else (1, 1)
    if by != (1, 1):  # Pillow would copy it whole
        picture = by_bands(picture.shape[:2], lambda rows: picture[rows], by)
    if shown is None:
        return np.array(Image.fromarray(picture).resize((size[1], size[0]), how))
    box = 0, 0, shown[1] / by[1], shown[0] / by[0]
    return np.array(Image.fromarray(picture).resize((size[1], size[0]), how, box, reducing_gap=SPARE))


def fitted(picture: np.ndarray, longest: int, how: Image.Resampling = Image.Resampling.LANCZOS) -> np.ndarray:
    """The picture with no side longer than `longest` px, its shape kept; never enlarged."""
    scale = longest / max(picture.shape[:2])
    return picture if scale >= 1 else resized(picture, scaled(picture.shape, scale), how)


def scaled(size: tuple[int, ...], scale: float) -> tuple[int, int]:
    """Height and width times a factor, at least 1 px each."""
    height, width = (max(1, round(side * scale)) for side in size[:2])
    return height, width
