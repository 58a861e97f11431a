"""The pictures that a language model is shown: numbered contours round the regions, crops, a reference beside them.

A mark lies outside the region it marks and never fills it: the clean picture is shown as well, because a mark hides.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlad.explain.case import Case, MarkedRegion
from vlad.explain.reasoners.protocol import Caps
from vlad.images.places import Box
from vlad.images.sizes import fitted, resized, scaled

VIEW_SIDE = 1024  # px, longest side of a whole picture
CROP_SIDE = 448  # px, shortest side of a crop
PADDING = 0.5  # of the box, on each side
LEAST_CROP = 32  # px of the picture: a smaller box is shown with more around it
LONGEST_CROP = 2  # times its short side; a line is shown with more around it
COLOURS = {"magenta": (255, 0, 255), "cyan": (0, 255, 255), "yellow": (255, 255, 0)}
GREY = 128


def crop_box(box: Box, size: tuple[int, int]) -> Box:
    """The part of a picture of `size` (H, W) that is shown for a region: its box and what lies around it."""
    height, width = size
    wanted = [(1 + 2 * PADDING) * max(box[axis + 2] - box[axis], 1) for axis in (0, 1)]
    wanted = [max(side, LEAST_CROP, max(wanted) / LONGEST_CROP) for side in wanted]
    spans = []
    for axis, limit in ((0, width), (1, height)):
        side = min(round(wanted[axis]), limit)
        start = round((box[axis] + box[axis + 2] - side) / 2)
        start = min(max(start, 0), limit - side)
        spans.append((start, start + side))
    (x0, x1), (y0, y1) = spans
    return x0, y0, x1, y1


def crop(picture: np.ndarray, box: Box) -> np.ndarray:
    """The part of a picture inside `box`, its short side enlarged to `CROP_SIDE`, its long one at most `VIEW_SIDE`."""
    x0, y0, x1, y1 = box
    part = np.ascontiguousarray(picture[y0:y1, x0:x1])
    height, width = part.shape[:2]
    scale = min(max(1.0, CROP_SIDE / min(height, width)), VIEW_SIDE / max(height, width))
    return resized(part, scaled(part.shape, scale))


def beside(first: np.ndarray, then: np.ndarray) -> np.ndarray:
    """Two pictures as one, a white strip between them: side by side, or one above the other where they are wide."""
    height, width = then.shape[:2]
    before = resized(first, then.shape)
    gap = max(4, min(height, width) // 32)
    if width > 1.5 * height:
        return np.concatenate([before, np.full((gap, width, 3), 255, np.uint8), then], axis=0)
    return np.concatenate([before, np.full((height, gap, 3), 255, np.uint8), then], axis=1)


def region_sheet(case: Case, region: MarkedRegion) -> np.ndarray:
    """The crop round a region; where there is a reference, after the same place of it."""
    box = crop_box(region.box, case.picture.shape[:2])
    query = crop(case.picture, box)
    return beside(crop(same_size(case.references[0], case.picture), box), query) if case.references else query


def same_size(reference: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """A reference stretched to the picture's height and width."""
    return reference if reference.shape == picture.shape else resized(reference, picture.shape)


def numbered(picture: np.ndarray, regions: Sequence[MarkedRegion], longest: int = VIEW_SIDE) -> np.ndarray:
    """The picture with a thin contour round every region and its number beside it, led to by a line."""
    plain = fitted(picture, longest)
    view, masks = plain.copy(), [_fitted_mask(region.mask, plain.shape[:2]) for region in regions]
    width = max(1, round(2 * max(view.shape[:2]) / 512))
    taken = np.any(masks, axis=0)
    badges = []
    for region, mask in zip(regions, masks, strict=True):
        colour = COLOURS[contour_colour(plain, mask)]
        view[_contour(mask, width)] = colour
        place, covered = _badge_place(mask, taken)
        taken = taken | covered
        badges.append((region.id, place, colour, _nearest(mask, place)))
    drawn = Image.fromarray(view)
    pen = ImageDraw.Draw(drawn)
    for _, place, colour, end in badges:
        pen.line((*place, *end), fill=colour, width=max(1, width // 2))
    inside = Image.fromarray(np.any(masks, axis=0).astype(np.uint8) * 255)
    drawn.paste(Image.fromarray(plain), mask=inside)  # what is marked stays as it is
    for number, place, colour, _ in badges:
        _draw_badge(pen, number, place, _radius(view.shape[:2]), colour)
    return np.array(drawn)


def _fitted_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return resized(mask.astype(np.uint8) * 255, size, Image.Resampling.BOX) > 0  # a region of one pixel stays


def _contour(mask: np.ndarray, width: int) -> np.ndarray:
    from scipy import ndimage

    return ndimage.binary_dilation(mask, np.ones((3, 3)), iterations=width) & ~mask


def contour_colour(picture: np.ndarray, mask: np.ndarray) -> str:
    """Name of the colour of `COLOURS` that differs most, in CIELAB, from what surrounds a region."""
    from scipy import ndimage
    from skimage.color import rgb2lab

    around = ndimage.binary_dilation(mask, np.ones((3, 3)), iterations=6) & ~mask
    pixels = picture[around] if around.any() else picture.reshape(-1, 3)
    lab = rgb2lab(np.median(pixels, axis=0).reshape(1, 1, 3) / 255)
    far = {name: float(np.linalg.norm(rgb2lab(np.array([[rgb]]) / 255) - lab)) for name, rgb in COLOURS.items()}
    return max(far, key=lambda name: far[name])


def _radius(size: tuple[int, ...]) -> int:
    return max(7, min(size) // 40)


def _badge_place(mask: np.ndarray, taken: np.ndarray) -> tuple[tuple[float, float], np.ndarray]:
    """Centre (x, y) of a number beside a region where it hides least of what is taken, and what it covers [H, W]."""
    height, width = mask.shape
    radius = _radius(mask.shape)
    rows, columns = np.nonzero(mask)
    x0, x1, y0, y1 = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
    places = [
        (float(np.clip(x, radius, width - radius)), float(np.clip(y, radius, height - radius)))
        for x in (x0 - 2 * radius, (x0 + x1) / 2, x1 + 2 * radius)
        for y in (y0 - 2 * radius, (y0 + y1) / 2, y1 + 2 * radius)
    ]
    ys, xs = np.mgrid[:height, :width] + 0.5
    covers = [(xs - x) ** 2 + (ys - y) ** 2 <= radius**2 for x, y in places]
    best = min(range(len(places)), key=lambda index: int((covers[index] & taken).sum()))
    return places[best], covers[best]


def _nearest(mask: np.ndarray, place: tuple[float, float]) -> tuple[int, int]:
    rows, columns = np.nonzero(mask)
    nearest = np.argmin((columns + 0.5 - place[0]) ** 2 + (rows + 0.5 - place[1]) ** 2)
    return int(columns[nearest]), int(rows[nearest])


def _draw_badge(
    pen: ImageDraw.ImageDraw, number: int, place: tuple[float, float], radius: int, colour: tuple[int, int, int]
) -> None:
    x, y = place
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill="black", outline=colour, width=2)
    pen.text((x, y), str(number), "white", ImageFont.load_default(size=1.3 * radius), anchor="mm")


def query_view(case: Case, caps: Caps) -> np.ndarray | None:
    """The whole picture as far as it may be seen: None where only crops may leave, grey outside them where so set."""
    return _allowed(case.picture, case, caps.send, caps.longest_side)


def reference_view(case: Case, caps: Caps) -> np.ndarray | None:
    """The best reference, stretched to the picture's size and under the same limits; None without one."""
    if not case.references:
        return None
    return _allowed(same_size(case.references[0], case.picture), case, caps.send, caps.longest_side)


def marks_view(case: Case, caps: Caps) -> np.ndarray | None:
    """The picture with numbered marks, under the same limits; None without regions."""
    view = _allowed(case.picture, case, caps.send, None)
    return numbered(view, case.regions, caps.longest_side) if view is not None and case.regions else None


def _allowed(
    picture: np.ndarray, case: Case, send: Literal["all", "grey", "crops"], longest: int | None
) -> np.ndarray | None:
    if send == "crops":
        return None
    if send == "grey":
        seen = np.full_like(picture, GREY)
        for region in case.regions:
            x0, y0, x1, y1 = crop_box(region.box, picture.shape[:2])
            seen[y0:y1, x0:x1] = picture[y0:y1, x0:x1]
        picture = seen
    return picture if longest is None else fitted(picture, longest)
