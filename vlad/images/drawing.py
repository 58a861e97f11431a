"""A map over its photo, in colour."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlad.images.sizes import LARGE, bands

_STOPS = ((40, 60, 160), (110, 30, 180), (225, 20, 110), (255, 95, 30), (255, 220, 40))  # cold to hot, evenly spaced
OUTLINE = (0, 235, 160)
_LEVELS = np.linspace(0, 1, 256)
_COLOURS = np.stack([np.interp(_LEVELS, np.linspace(0, 1, len(_STOPS)), band) for band in zip(*_STOPS, strict=True)], 1)
_COVER = np.clip((_LEVELS - 0.2) / 0.55, 0, 1)  # cold values leave the photo as it is
_COVER = _COVER**2 * (3 - 2 * _COVER)


def draw_overlay(
    picture: np.ndarray,
    amap: np.ndarray,
    *,
    low: float,
    high: float,
    alpha: float = 0.7,
    boxes: Sequence[tuple[int, int, int, int]] = (),
    stretched: bool = False,
    hidden: np.ndarray | None = None,
) -> Image.Image:
    """The photo with the map over it in colour, RGB of the photo's size.

    Args:
        picture: uint8 RGB [H, W, 3].
        amap: float32 [H, W], same size; of a picture of more than LARGE pixels perhaps smaller, and stretched.
        low, high: map values that are drawn cold (nothing over the photo) and hot (`alpha` of yellow).
        alpha: in [0, 1], how much of the photo the hottest colour hides.
        boxes: (x0, y0, x1, y1), right and bottom exclusive, outlined thinly.
        stretched: low and high are this picture's own extremes; written on the picture, because it is then
            comparable with no other.
        hidden: bool [H, W], what did not count: hatched.
    """
    height, width = picture.shape[:2]
    if height * width > LARGE:
        drawn = Image.new("RGB", (width, height))
        for rows in bands((height, width)):
            part = _rows(amap, rows, (height, width))
            drawn.paste(_coloured(picture[rows], part, low, high, alpha), (0, rows.start))
    elif amap.shape == (height, width):
        drawn = _coloured(picture, amap, low, high, alpha)
    else:
        raise ValueError(f"map has shape {amap.shape}, picture {picture.shape}; expected the same height and width")
    if hidden is not None:
        drawn = Image.composite(_hatched(drawn), drawn, Image.fromarray(hidden))
    pen = ImageDraw.Draw(drawn)
    width = max(1, round(min(drawn.size) / 400))
    for x0, y0, x1, y1 in boxes:  # dark round white shows on every photo; both lie outside what they mark
        for away, colour in ((2 * width, "black"), (width, "white")):
            pen.rectangle((x0 - away, y0 - away, x1 - 1 + away, y1 - 1 + away), outline=colour, width=width)
    if stretched:
        write_on(pen, "stretched per picture", drawn.size)
    return drawn


def _rows(amap: np.ndarray, rows: slice, size: tuple[int, int]) -> np.ndarray:
    """Some rows of the map stretched to `size` (H, W)."""
    down = amap.shape[0] / size[0]
    box = (0, rows.start * down, amap.shape[1], rows.stop * down)
    return np.asarray(Image.fromarray(amap).resize((size[1], rows.stop - rows.start), Image.Resampling.BILINEAR, box))


def _coloured(picture: np.ndarray, amap: np.ndarray, low: float, high: float, alpha: float) -> Image.Image:
    heat = np.clip((amap - low) / (high - low), 0, 1) if high > low else np.zeros(amap.shape)
    levels = Image.fromarray(np.round(heat * 255).astype(np.uint8))
    colours = levels.copy()
    colours.putpalette(np.round(_COLOURS).astype(np.uint8).tobytes())
    mask = levels.point([round(255 * alpha * cover) for cover in _COVER])
    return Image.composite(colours.convert("RGB"), Image.fromarray(picture), mask)


def _hatched(picture: Image.Image) -> Image.Image:
    """The picture, paler and with slanting lines over it."""
    apart = max(6, min(picture.size) // 40)
    rows, columns = np.ogrid[: picture.height, : picture.width]
    lines = Image.fromarray((rows + columns) % apart < max(1, apart // 6))
    pale = Image.blend(picture, Image.new("RGB", picture.size, (128, 128, 128)), 0.45)
    return Image.composite(Image.new("RGB", picture.size, (225, 225, 225)), pale, lines)


def outlined(photo: np.ndarray, truth: np.ndarray | None) -> np.ndarray:
    """The photo with a line round every region that is marked; a region of any size is seen.

    Args:
        photo: uint8 RGB [h, w, 3], perhaps smaller than `truth`.
        truth: bool [H, W], or None.
    """
    if truth is None or not truth.any():
        return photo
    from scipy import ndimage

    height, width = photo.shape[:2]
    reach = max(1, truth.shape[0] // height + 1, truth.shape[1] // width + 1)
    grown = ndimage.maximum_filter(truth.astype(np.uint8), size=reach)  # else a thin crack falls between the pixels
    small = np.asarray(Image.fromarray(grown).resize((width, height), Image.Resampling.NEAREST)) > 0
    line = ndimage.binary_dilation(small, np.ones((3, 3))) & ~small
    drawn = photo.copy()
    drawn[line] = OUTLINE
    return drawn


def write_on(pen: ImageDraw.ImageDraw, words: str, size: tuple[int, int]) -> None:
    """Small white words on a dark strip at the lower left, over several lines where the picture is narrow."""
    font = ImageFont.load_default(size=min(max(9, min(size) // 28), 40))
    for breaks in range(words.count(" ") + 1):
        lines = words.replace(" ", "\n", breaks)
        left, top, right, bottom = pen.multiline_textbbox((0, 0), lines, font, spacing=1)
        if right - left <= size[0] - 6:
            break
    x, y = 3, size[1] - 3 - (bottom - top)
    pen.rectangle((0, y - 3, x + right - left + 3, size[1]), fill=(30, 30, 30))
    pen.multiline_text((x - left, y - top), lines, "white", font, spacing=1)
