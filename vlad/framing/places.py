"""Which part of a picture counts: a box that is cut out of it (`roi`), and places in it that are ignored.

What is ignored is painted over with what lies beside it before anything looks, so that no number depends on it: no
token, no statistic of the picture, no row of a memory. In maps it has the lowest value of the scale.

Coordinates are pixels of the picture, x before y, right and bottom exclusive; or shares of width and height, where none
of a shape's numbers is above 1.
"""

import base64
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from vlad.images import read
from vlad.images.places import Box
from vlad.images.sizes import BAND, MAX_PIXELS, PLAIN_BYTES, bands, reduced, resized

SAME_SHAPE = 0.01  # of a side: a mask of another shape than the picture belongs to other pictures
FILLED = 1_000_000  # H * W, from which on what lies beside an ignored place is looked up in blocks
ROI_CELLS = 224  # of the longer side of a roi, at least, in the map of the whole picture
CANVAS = 4_000_000  # h * w of such a map, at most
BEYOND = 10**9  # px; no picture reaches so far

Shape = tuple[float, ...]  # a box (x0, y0, x1, y1), or the corners of a polygon (x0, y0, x1, y1, x2, y2, ...)


class Framed(NamedTuple):
    """A picture as a scorer may see it: cut to the roi, the ignored places painted over."""

    picture: np.ndarray  # uint8 [h, w, 3]
    ignored: np.ndarray | None  # bool of the size of the box; None: nothing is
    box: Box  # of the roi in the picture as it was given
    size: tuple[int, int]  # (H, W) of that
    by: int = 1  # how many times smaller `picture` is than the box

    @classmethod
    def whole(cls, picture: np.ndarray, ignored: np.ndarray | None = None) -> "Framed":
        """All of a picture [H, W, 3] that is no part of another."""
        size = picture.shape[0], picture.shape[1]
        return cls(picture, ignored, (0, 0, size[1], size[0]), size)

    @property
    def cut(self) -> tuple[int, int]:
        """(H, W) of the box."""
        x0, y0, x1, y1 = self.box
        return y1 - y0, x1 - x0

    def reduced(self, by: int) -> "Framed":
        """The same of a whole picture that is made so many times smaller."""
        return self if by == 1 else self._replace(picture=reduced(self.picture, by), by=by)

    def resized(self, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
        """uint8 [h, w, 3] of `size`: all that lies in the box, and nothing moved, whatever it was reduced by."""
        height, width = self.cut
        shown = None if self.by == 1 else (height / self.by, width / self.by)
        return resized(self.picture, size, how, shown)


@dataclass(frozen=True)
class Places:
    """What counts of every picture. Make it with `places`."""

    roi: Shape | None = None
    shapes: tuple[Shape, ...] = ()  # ignored
    mask: bytes = b""  # PNG of one bit, white is ignored

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: `places` takes them back."""
        roi = None if self.roi is None else list(self.roi)
        ignore = base64.b64encode(self.mask).decode() if self.mask else [list(shape) for shape in self.shapes]
        return {"roi": roi, "ignore": ignore or None}

    def marked(self) -> np.ndarray:
        """bool [h, w]: the mask as it was given."""
        return np.array(Image.open(io.BytesIO(self.mask)))

    def check(self, size: tuple[int, int]) -> None:
        """ValueError where a picture of this size (H, W) cannot be framed so."""
        for shape in (*self.shapes, *([] if self.roi is None else [self.roi])):
            if not _is_share(shape) and (max(shape[::2]) > size[1] or max(shape[1::2]) > size[0]):
                raise ValueError(f"it has {size[1]} x {size[0]} pixels, and {_said(shape)} reaches out of it")
        if self.mask:
            height, width = self.marked().shape
            if abs(width / size[1] * size[0] - height) > max(1, SAME_SHAPE * height):
                raise ValueError(
                    f"it has {size[1]} x {size[0]} pixels, and the mask of what to ignore has {width} x {height}: "
                    "another size is scaled, another shape belongs to other pictures"
                )
        x0, y0, x1, y1 = self.box(size)
        ignored = self.ignored(size)
        if ignored is None:
            return
        counted = ignored.size + (y1 - y0) * (x1 - x0)
        if ignored[y0:y1, x0:x1].all():
            raise ValueError("all of it is ignored, and nothing is left to look at")
        takes = 3 * counted + ignored.size + 8 * int(ignored[y0:y1, x0:x1].sum())  # two pictures, mask, what goes where
        if takes > PLAIN_BYTES * MAX_PIXELS:
            raise ValueError(
                f"it has {size[1]} x {size[0]} pixels, and painting over what is ignored takes {takes / 2**30:.1f} GB; "
                "make it smaller, or cut out what matters with roi"
            )

    def box(self, size: tuple[int, int]) -> Box:
        """The roi of a picture of this size, or all of it."""
        if self.roi is None:
            return 0, 0, size[1], size[0]
        x0, y0, x1, y1 = _in_pixels(self.roi, size)
        return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)

    def ignored(self, size: tuple[int, int]) -> np.ndarray | None:
        """bool [H, W] of what is ignored in a picture of this size; None: nothing is."""
        return _ignored(replace(self, roi=None), size) if self.shapes or self.mask else None

    def hidden(self, size: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray | None:
        """bool [h, w] of `shape`: what does not count of a picture of this size, the outside of the roi included."""
        ignored, (x0, y0, x1, y1) = self.ignored(size), self.box(size)
        if ignored is None and self.roi is None:
            return None
        found = np.ones(size, bool)
        found[y0:y1, x0:x1] = False if ignored is None else ignored[y0:y1, x0:x1]
        rows, columns = (np.arange(n) * of // n for n, of in zip(shape, size, strict=False))
        return found if shape[:2] == size else found[np.ix_(rows, columns)]

    def framed(self, picture: np.ndarray) -> Framed:
        """The picture, uint8 [H, W, 3], as a scorer may see it."""
        size = picture.shape[0], picture.shape[1]
        x0, y0, x1, y1 = box = self.box(size)
        cut, ignored = picture[y0:y1, x0:x1], self.ignored(size)
        if ignored is None or not ignored[y0:y1, x0:x1].any():
            return Framed(cut, None, box, size)
        over, beside = _beside(self, size)
        filled = cut.copy()
        pixels = filled.reshape(-1, 3)
        for part in (slice(start, start + BAND) for start in range(0, len(over), BAND)):
            pixels[over[part]] = pixels[beside[part]]
        return Framed(filled, ignored[y0:y1, x0:x1], box, size)


def places(roi: Any = None, ignore: Any = None) -> Places:
    """What `roi=` and `ignore=` say.

    Args:
        roi: a box (x0, y0, x1, y1).
        ignore: the file of a mask, or a mask [H, W], where white or True is ignored, for pictures of its shape; or a
            list of boxes and polygons ([(x, y), (x, y), (x, y), ...]).

    Raises:
        ValueError: something else; a mask that marks nothing, or everything.
        vlad.ImageError: the mask's file cannot be read.
    """
    roi = None if roi is None else _shape(roi, "roi", box=True)
    if ignore is None:
        return Places(roi)
    if isinstance(ignore, list | tuple):
        return Places(roi, shapes=tuple(_shape(one, "ignore") for one in ignore))
    return Places(roi, mask=_png(ignore))


def cells(ignored: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """bool [h, w] of `shape`: the cells of a map of which at least half is ignored."""
    share = Image.fromarray(ignored.astype(np.uint8) * 255).resize((shape[1], shape[0]), Image.Resampling.BOX)
    return np.asarray(share) >= 128


def spread(amap: np.ndarray, framed: Framed, low: float) -> np.ndarray:
    """The map [h, w] of a roi as one of the whole picture, `low` round about.

    It gets as many cells as it takes to lie where it belongs, to within a few thousandths of the roi's side.
    """
    (x0, y0, x1, y1), (height, width) = framed.box, framed.size
    times = max(ROI_CELLS, *amap.shape) / max(y1 - y0, x1 - x0)
    times = min(times, 1, math.sqrt(CANVAS / (height * width)))
    top, left, bottom, right = (round(edge * times) for edge in (y0, x0, y1, x1))
    bottom, right = max(bottom, top + 1), max(right, left + 1)
    whole = np.full((max(round(height * times), bottom), max(round(width * times), right)), low, np.float32)
    whole[top:bottom, left:right] = resized(amap, (bottom - top, right - left), Image.Resampling.BILINEAR)
    return whole


# ---- what was given ----------------------------------------------------------------------------------------------


def _shape(given: Any, what: str, box: bool = False) -> Shape:
    """The numbers of a box or a polygon."""
    expected = "a box (x0, y0, x1, y1)" + ("" if box else " or a polygon [(x, y), (x, y), (x, y), ...]")
    wrong = ValueError(
        f"{what} has {given!r:.80}; expected {expected} in pixels, or in shares of width and height from 0 to 1"
    )
    try:
        shape = tuple(float(value) for value in np.asarray(given, dtype=float).ravel())
    except (TypeError, ValueError):
        raise wrong from None
    long = len(shape) == 4 or (not box and len(shape) >= 6 and len(shape) % 2 == 0)
    if not long or not all(0 <= value < BEYOND for value in shape):
        raise wrong
    if len(shape) == 4 and not (shape[0] < shape[2] and shape[1] < shape[3]):
        raise ValueError(f"{what} has the box {given!r:.80}, which is empty; expected x0 < x1 and y0 < y1")
    return shape


def _png(mask: Any) -> bytes:
    """A mask as it is kept."""
    grey = read(mask).max(axis=2)
    marked = grey > grey.max() / 2
    name = f"{os.fspath(mask)}" if isinstance(mask, str | os.PathLike) else "ignore"
    if not marked.any() or marked.all():
        what = "everything" if marked.all() else "nothing"
        raise ValueError(f"{name} is a mask that marks {what}; white (or True) says what to ignore")
    Image.fromarray(marked).save(kept := io.BytesIO(), format="PNG")
    return kept.getvalue()


def _is_share(shape: Sequence[float]) -> bool:
    return max(shape) <= 1


def _said(shape: Shape) -> str:
    words = ", ".join(f"{value:g}" for value in shape[:8])
    return f"the {'box' if len(shape) == 4 else 'polygon'} ({words}{', ...' if len(shape) > 8 else ''})"


def _in_pixels(shape: Shape, size: tuple[int, int]) -> list[int]:
    times = (size[1], size[0]) if _is_share(shape) else (1, 1)
    return [round(value * times[i % 2]) for i, value in enumerate(shape)]


# ---- of pictures of one size, which are many: kept ---------------------------------------------------------------


@lru_cache(maxsize=2)
def _ignored(these: Places, size: tuple[int, int]) -> np.ndarray:
    drawn = Image.new("1", (size[1], size[0]))
    if these.mask:
        drawn.paste(Image.fromarray(these.marked()).resize(drawn.size, Image.Resampling.NEAREST))
    pen = ImageDraw.Draw(drawn)
    for shape in these.shapes:
        x0, y0, *more = numbers = _in_pixels(shape, size)
        if len(numbers) > 4:
            pen.polygon(numbers, fill=1)
        elif more[0] > x0 and more[1] > y0:
            pen.rectangle((x0, y0, more[0] - 1, more[1] - 1), fill=1)
    found = np.array(drawn)
    found.flags.writeable = False
    return found


@lru_cache(maxsize=2)
def _beside(these: Places, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Flat positions within the roi: of its ignored pixels, and of the counted ones that are put in their places.

    The picture is mirrored at the edge of what is ignored; where the mirrored place is ignored or outside, the closest
    counted pixel is taken (of large pictures: the closest block without an ignored pixel).
    """
    from scipy import ndimage

    x0, y0, x1, y1 = these.box(size)
    ignored = these.ignored(size)
    assert ignored is not None
    ignored = ignored[y0:y1, x0:x1]
    height, width = ignored.shape
    side = max(1, math.isqrt(height * width // FILLED) + 1) if height * width > FILLED else 1
    while True:  # a mask of fine grain may leave no block whole
        padded = np.pad(ignored, ((0, -height % side), (0, -width % side)))
        blocks = padded.reshape(padded.shape[0] // side, side, -1, side).any(axis=(1, 3))
        if side == 1 or not blocks.all():
            break
        side //= 2
    closest = ndimage.distance_transform_edt(blocks, return_distances=False, return_indices=True)
    parts = [_opposite(ignored, closest, side, some) for some in bands(ignored.shape)]
    over, beside = (np.concatenate(both) for both in zip(*parts, strict=True))
    return over, beside


def _opposite(ignored: np.ndarray, closest: np.ndarray, side: int, some: slice) -> tuple[np.ndarray, np.ndarray]:
    """Of the ignored pixels of some rows, both as in `_beside`, int32; `closest` names blocks of this side."""
    height, width = ignored.shape
    rows, columns = np.nonzero(ignored[some])
    rows += some.start
    near = closest[:, rows // side, columns // side] * side + [rows % side, columns % side]
    near = np.minimum(near, [[height - 1], [width - 1]])
    far = 2 * near - [rows, columns]
    inside = ((far >= 0) & (far < [[height], [width]])).all(axis=0)
    far = np.where(inside, far, near)
    far = np.where(ignored[far[0], far[1]], near, far)
    return (rows * width + columns).astype(np.int32), (far[0] * width + far[1]).astype(np.int32)
