"""The places that a map marks, and what can be measured there: size, shape, and colour against what lies around.

Regions are cut at a fixed value of the map, never at a share of this picture's own values: that would mark something on
every good picture. All is measured on a copy with no side above `SIDE`, so that huge pictures cost no more than others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vlad.explain.case import MarkedRegion
from vlad.explain.explanation import Limit
from vlad.images.places import Box, place_of
from vlad.images.sizes import fitted, resized
from vlad.prediction import Prediction

SIDE = 1024  # px, longest side of the copy
LEAST_SHARE = 0.001  # of the picture; smaller regions are left out while there are larger ones
MOST = 100  # regions looked at, highest peaks first
GAP = 0.02  # of the diagonal; boxes closer than this are one region
SHOWN = 3
ALIGNED = 0.5  # correlation of the grey values, at 64 x 64, from which a reference shows the same scene
SIZES = ((0.001, "tiny"), (0.01, "small"), (0.05, "medium"), (0.2, "large"))  # below this share; else extensive
SHAPED = 4  # values of the map that a region covers; the shape of a smaller one is the map's, not the defect's
LINE_LIKE, RAGGED = 4.0, 0.7  # elongation above, solidity below
VISIBLE = 3.0  # CIELAB units; a smaller difference is not mentioned
SPANNING = 2 / 3  # of a side


@dataclass(frozen=True)
class Colour:
    """Median CIELAB difference between a region and something else."""

    lightness: float
    red: float  # a*: positive is redder, negative greener
    yellow: float  # b*: positive is yellower, negative bluer


@dataclass(frozen=True)
class Measures:
    """What is measured of a region; None where it is too small, or there is nothing to compare with."""

    share: float
    elongation: float | None  # major over minor axis
    solidity: float | None  # area over that of the convex hull
    around: Colour | None  # against a ring around it
    extremes: tuple[float, float] | None  # L* of its darkest and of its brightest tenth, less that of the ring
    unevenness: float | None  # spread of its lightness over that of the ring
    reference: Colour | None  # against the same place of an aligned reference


def mark(
    picture: np.ndarray, prediction: Prediction, references: Sequence[np.ndarray] = ()
) -> tuple[tuple[MarkedRegion, ...], tuple[Limit, ...]]:
    """The strongest regions of a prediction's map, highest peak first, and what limits them.

    Args:
        picture: uint8 [H, W, 3], the one that was scored.
        prediction: its `map_threshold` cuts the map, else its method's own `region_level`.
        references: uint8 [H, W, 3] of good objects, the most similar one first.
    """
    if prediction.map is None:
        return (), (Limit("no_map", "the method scores whole pictures and names no place"),)
    small = fitted(picture, SIDE, Image.Resampling.BOX)
    amap = resized(prediction.map, small.shape, Image.Resampling.BILINEAR)
    level = prediction.region_level if prediction.map_threshold is None else prediction.map_threshold
    found = _masks(amap, level)
    reference = _fitted_reference(small, references)
    shown = found[:SHOWN]
    taken = np.any(shown, axis=0) if shown else np.zeros(amap.shape, bool)
    regions = tuple(
        _region(number, mask, amap, _measures(small, mask, taken, reference, prediction.map.size), picture.shape[:2])
        for number, mask in enumerate(shown, start=1)
    )
    return regions, _limits(prediction, level, regions, len(found), picture.shape[:2])


def _masks(amap: np.ndarray, level: float) -> list[np.ndarray]:
    """Masks [h, w] of the connected parts at or above a level, near ones as one, highest peak first."""
    from scipy import ndimage

    labels, count = ndimage.label(amap >= level, structure=np.ones((3, 3)))
    if not count:
        return []
    index = np.arange(1, count + 1)
    peaks, areas = ndimage.maximum(amap, labels, index), np.bincount(labels.ravel(), minlength=count + 1)[1:]
    order = sorted(range(count), key=lambda i: (-peaks[i], -areas[i]))
    large = [i for i in order if areas[i] >= LEAST_SHARE * amap.size] or order[:1]
    slices = ndimage.find_objects(labels)
    boxes = [(s[1].start, s[0].start, s[1].stop, s[0].stop) for s in (slices[i] for i in large[:MOST])]
    groups = merged(boxes, GAP * math.hypot(*amap.shape))
    return [np.isin(labels, [large[i] + 1 for i in group]) for group in groups]


def merged(boxes: Sequence[Box], gap: float) -> list[list[int]]:
    """Indices of boxes in groups: those closer than `gap` share one, and so do groups whose common boxes are close.

    Groups stand in the order of their first box.
    """
    groups = [([index], box) for index, box in enumerate(boxes)]
    i = 0
    while i < len(groups):
        near = next((j for j in range(i + 1, len(groups)) if _distance(groups[i][1], groups[j][1]) < gap), None)
        if near is None:
            i += 1
            continue
        members, other = groups.pop(near)
        box = groups[i][1]
        common = (min(box[0], other[0]), min(box[1], other[1]), max(box[2], other[2]), max(box[3], other[3]))
        groups[i] = (groups[i][0] + members, common)
        i = 0  # a larger box may now be close to an earlier one
    return [sorted(members) for members, _ in groups]


def _distance(one: Box, other: Box) -> float:
    across = max(0, other[0] - one[2], one[0] - other[2])
    down = max(0, other[1] - one[3], one[1] - other[3])
    return math.hypot(across, down)


def _region(number: int, mask: np.ndarray, amap: np.ndarray, measures: Measures, size: tuple[int, int]) -> MarkedRegion:
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    across, down = size[1] / width, size[0] / height
    box = (
        math.floor(columns.min() * across + 1e-9),
        math.floor(rows.min() * down + 1e-9),
        min(math.ceil((columns.max() + 1) * across - 1e-9), size[1]),
        min(math.ceil((rows.max() + 1) * down - 1e-9), size[0]),
    )
    place = place_of((columns.mean() + 0.5, rows.mean() + 0.5), mask.shape)
    return MarkedRegion(
        id=number,
        box=box,
        mask=mask,
        area_share=measures.share,
        peak=float(amap[mask].max()),
        location=place + _spanning(box, size),
        size_words=size_words(measures.share),
        facts=in_words(measures),
    )


def _spanning(box: Box, size: tuple[int, int]) -> str:
    sides = {"width": (box[2] - box[0]) / size[1], "height": (box[3] - box[1]) / size[0]}
    spanned = [f"the {side}" for side, share in sides.items() if share > SPANNING]
    return f", spanning {' and '.join(spanned)}" if spanned else ""


def size_words(share: float) -> str:
    """A word for a share of the picture.

    >>> size_words(0.03)
    'medium'
    """
    return next((word for limit, word in SIZES if share < limit), "extensive")


def _measures(
    picture: np.ndarray, mask: np.ndarray, taken: np.ndarray, reference: np.ndarray | None, cells: int
) -> Measures:
    """Of a region `mask` [h, w]; `taken` are all regions, no part of a ring; `cells` is the size of the map."""
    from scipy import ndimage
    from skimage.color import rgb2lab

    rows, columns = np.nonzero(mask)
    short = min(rows.max() - rows.min(), columns.max() - columns.min()) + 1
    ring = max(3, round(short / 4))
    y0, x0 = max(0, rows.min() - ring), max(0, columns.min() - ring)
    part = slice(y0, rows.max() + ring + 1), slice(x0, columns.max() + ring + 1)
    inside = mask[part]
    lab = rgb2lab(picture[part])
    around = (ndimage.distance_transform_edt(~inside) <= ring) & ~taken[part]
    share = float(mask.mean())
    elongation, solidity = _shape(inside) if share * cells >= SHAPED else (None, None)
    spread = [float(lab[where][:, 0].std()) for where in (inside, around) if where.any()]
    return Measures(
        share=share,
        elongation=elongation,
        solidity=solidity,
        around=_difference(lab[inside], lab[around]),
        extremes=_extremes(lab[inside][:, 0], lab[around][:, 0]),
        unevenness=spread[0] / max(spread[1], 1.0) if len(spread) == 2 else None,
        reference=None if reference is None else _difference(lab[inside], rgb2lab(reference[part])[inside]),
    )


def _difference(here: np.ndarray, there: np.ndarray) -> Colour | None:
    if not len(there):
        return None
    return Colour(*(float(value) for value in np.median(here, axis=0) - np.median(there, axis=0)))


def _extremes(here: np.ndarray, there: np.ndarray) -> tuple[float, float] | None:
    if not len(there):
        return None
    dark, bright = np.quantile(here, (0.1, 0.9)) - np.quantile(there, (0.1, 0.9))
    return float(dark), float(bright)


def _shape(mask: np.ndarray) -> tuple[float | None, float | None]:
    from skimage.measure import regionprops

    if mask.sum() < 16:
        return None, None
    (found,) = regionprops(mask.astype(np.uint8))
    short = found.axis_minor_length
    return float(found.axis_major_length / short) if short > 0 else math.inf, float(found.solidity)


def in_words(measures: Measures) -> str:
    """What was measured, in words, the same every time."""
    said = [f"covers {_percent(measures.share)} % of the picture"]
    if measures.elongation is not None and measures.elongation > LINE_LIKE:
        said.append("line-like")
    if measures.solidity is not None and measures.solidity < RAGGED:
        said.append("ragged")
    if measures.around is not None:
        said.append(_compared(measures.around, "its surroundings"))
    if measures.around is not None and abs(measures.around.lightness) < VISIBLE:  # a thin mark is lost in the median
        said += _marks(measures.extremes)
    if measures.unevenness is not None and not 2 / 3 <= measures.unevenness <= 1.5:
        said.append(f"{'more' if measures.unevenness > 1 else 'less'} uneven than its surroundings")
    if measures.reference is not None:
        said.append(_compared(measures.reference, "the same place of the reference"))
    return "; ".join(said)


def _marks(extremes: tuple[float, float] | None) -> list[str]:
    dark, bright = extremes or (0.0, 0.0)
    said = [f"its darkest tenth darker by {-dark:.0f} L*"] if dark <= -VISIBLE else []
    return said + ([f"its brightest tenth brighter by {bright:.0f} L*"] if bright >= VISIBLE else [])


def _compared(colour: Colour, other: str) -> str:
    values = (colour.lightness, "brighter", "darker", "L*"), (colour.red, "redder", "greener", "a*")
    said = [
        f"{more if value > 0 else less} by {abs(value):.0f} {unit}"
        for value, more, less, unit in (*values, (colour.yellow, "yellower", "bluer", "b*"))
        if abs(value) >= VISIBLE
    ]
    return f"{', '.join(said)} than {other}" if said else f"on average coloured like {other}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}" if share >= 0.1 else f"{100 * share:.1f}" if share >= 0.0005 else "less than 0.1"


def likeness(picture: np.ndarray, reference: np.ndarray) -> float:
    """Correlation of the grey values of two pictures, both at 64 x 64, in [-1, 1]; 0 where one is flat."""
    grey = [Image.fromarray(one).convert("L").resize((64, 64), Image.Resampling.BOX) for one in (picture, reference)]
    values = [np.asarray(small, np.float64) for small in grey]
    one, other = (value - value.mean() for value in values)
    spread = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / spread if spread > 1e-6 else 0.0


def _fitted_reference(small: np.ndarray, references: Sequence[np.ndarray]) -> np.ndarray | None:
    """The first reference at the size of the copy, where it shows the same scene."""
    if not references or likeness(small, references[0]) < ALIGNED:
        return None
    return resized(references[0], small.shape, Image.Resampling.BOX)


def reference_limit(picture: np.ndarray, references: Sequence[np.ndarray]) -> tuple[Limit, ...]:
    """What references cannot do here."""
    if not references:
        return (Limit("no_reference", "no good picture was given to compare with"),)
    if likeness(picture, references[0]) < ALIGNED:
        words = "the good pictures do not show the same view; nothing was measured against them"
        return (Limit("reference_misaligned", words),)
    return ()


def _limits(
    prediction: Prediction, level: float, regions: Sequence[MarkedRegion], found: int, size: tuple[int, int]
) -> tuple[Limit, ...]:
    limits = []
    if prediction.map_threshold is None:
        words = f"the map has no threshold from good pictures; it was cut at its method's own {level:.3g}"
        limits.append(Limit("map_uncalibrated", words))
    if found > len(regions):
        limits.append(Limit("regions_truncated", f"{found} regions found, the {len(regions)} strongest shown"))
    height, width = size
    cut = [str(r.id) for r in regions if r.box[0] == 0 or r.box[1] == 0 or r.box[2] == width or r.box[3] == height]
    if cut:
        words = f"region {', '.join(cut)} reaches the border of the picture and may go on outside"
        limits.append(Limit("region_at_border", words))
    return tuple(limits)
