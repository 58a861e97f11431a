"""What a detector says about one picture: Prediction, and Region, a connected part of its map."""

import math
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from vlad.framing.places import Places
from vlad.images import Reader
from vlad.images.drawing import draw_overlay
from vlad.images.places import place_of
from vlad.images.sizes import LARGE, resized, scaled

Verdict = Literal["anomalous", "normal", "unsure", "uncalibrated"]

REGION_PIXELS = 16_000_000  # H * W from which on regions are found in a smaller map
HIGHEST = 0.9  # of the way from a map's median to its peak: what the highest place holds, where no other region is
DRAWN_BOXES = 10  # the strongest regions; more boxes hide what they mark


@dataclass(frozen=True)
class Region:
    """A connected part of a map above a threshold, in pixels of the original picture."""

    box: tuple[int, int, int, int]  # (x0, y0, x1, y1), right and bottom exclusive
    area: int  # px
    peak: float  # largest map value inside
    mean: float  # mean map value inside
    center: tuple[float, float]  # (x, y), mean position of its pixels; the middle of the first pixel is 0.5
    location: str  # the third of the picture, both ways, that holds the center: one of `vlad.images.places.PLACES`
    below_threshold: bool = False  # the highest place of a picture not called normal, marked for want of another


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """One picture's score and map, higher is more anomalous; ValueError where one is not finite or shapes are wrong."""

    score: float
    map: np.ndarray | None  # float32 [h, w], covers the whole picture; None for image-level methods
    size: tuple[int, int]  # (H, W) of the original picture
    threshold: float | None = None  # for the score
    map_threshold: float | None = None  # for the map
    name: str | None = None
    source: str | None = None  # path
    phrases: Mapping[str, float] = field(default_factory=dict)  # phrase -> cosine with the picture
    p_value: float | None = None  # None without calibration scores
    unsure: tuple[float, float] | None = None  # scores from low up to below high are too close to call
    scale: tuple[float, float] = (0.0, 1.0)  # map values drawn cold and hot, fixed by the method
    region_level: float = 0.5  # the method's own threshold of regions()
    picture: np.ndarray | None = None  # uint8 [h, w, 3], smaller than `size` if very large; kept where there is no path
    notes: tuple[str, ...] = ()  # what its reader should know of the picture, in sentences
    reader: Reader = field(default_factory=Reader)  # how its picture was read, and is read again
    places: Places = field(default_factory=Places)  # what of it counts; elsewhere the map has its lowest value
    _found: tuple[Region, ...] | None = field(default=None, init=False)  # see `_own_regions`

    def __post_init__(self) -> None:
        plain: dict[str, Any] = {"score": float(self.score)}
        for key in ("threshold", "map_threshold", "p_value"):
            plain[key] = None if getattr(self, key) is None else float(getattr(self, key))
        plain["unsure"] = None if self.unsure is None else (float(self.unsure[0]), float(self.unsure[1]))
        plain["size"] = tuple(int(side) for side in self.size)
        plain["source"] = None if self.source is None else os.fspath(self.source)
        plain["phrases"] = {str(phrase): float(cosine) for phrase, cosine in self.phrases.items()}
        plain["map"] = None if self.map is None else np.asarray(self.map, dtype=np.float32)
        for key, value in plain.items():
            object.__setattr__(self, key, value)
        if not math.isfinite(self.score):
            raise ValueError(f"score is {self.score}; expected a finite number")
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size is {self.size}; expected (H, W) of the original picture, both at least 1")
        if self.map is not None and (self.map.ndim != 2 or not self.map.size or not np.isfinite(self.map).all()):
            raise ValueError(f"map has shape {self.map.shape}; expected [h, w] of finite numbers, or None")

    def __repr__(self) -> str:
        shape = None if self.map is None else "x".join(map(str, self.map.shape))
        return (
            f"Prediction({self.verdict}, score={self.score:.4g}, map={shape}, size={self.size}, source={self.source!r})"
        )

    @property
    def verdict(self) -> Verdict:
        """Anomalous from the threshold on, else normal; unsure in a band that was asked for; uncalibrated without any.

        Only a band that holds the threshold counts: after `replace(prediction, threshold=...)` it may be another's.
        """
        if self.threshold is None:
            return "uncalibrated"
        low, high = self.unsure or (math.inf, -math.inf)
        if low <= self.threshold <= high and low <= self.score < high:
            return "unsure"
        return "anomalous" if self.score >= self.threshold else "normal"

    @property
    def is_anomalous(self) -> bool | None:
        """What the verdict says: True, False, or None where it is "unsure" or "uncalibrated"."""
        return {"anomalous": True, "normal": False}.get(self.verdict)

    def of_pixels(self) -> "Prediction":
        """The same, to be shown its picture as pixels that were read already and are RGB whatever a camera gives."""
        return replace(self, reader=replace(self.reader, channels="RGB"))

    def full_map(self) -> np.ndarray:
        """The map at the picture's size, float32 [H, W].

        Bilinear between half-pixel centers (align_corners=False); antialiased along a side that gets smaller.
        Raises ValueError without a map.
        """
        if self.map is None:
            raise ValueError("this prediction has no map: its method scores whole pictures; take one that gives maps")
        return self._map_of(self.size)

    def _map_of(self, shape: tuple[int, int]) -> np.ndarray:
        """The map at another size, float32 [h, w] of `shape`, sharp at the edge of what does not count."""
        assert self.map is not None
        found = np.array(Image.fromarray(self.map).resize(shape[::-1], Image.Resampling.BILINEAR))
        hidden = self.places.hidden(self.size, shape)
        if hidden is not None:
            found[hidden] = self.map.min()
        return found

    def regions(self, threshold: float | None = None, min_area: int = 0) -> list[Region]:
        """Connected parts (8 neighbours) of the full map at or above a value, highest peak first; [] without a map.

        A picture called anomalous or unsure has at least one: where no place reaches the value, the highest place is
        marked, and its region says `below_threshold`.

        Args:
            threshold: map value; None takes `map_threshold`, else `region_level`. A given one is taken as it is.
            min_area: px; smaller regions are left out.
        """
        if self.map is None:
            return []
        if threshold is None:
            return [region for region in self._own_regions() if region.area >= min_area]
        small = self._region_map()
        found = (_stretched(region, small.shape, self.size) for region in _regions(small, threshold, 0))
        return [region for region in found if region.area >= min_area]

    def _own_regions(self, full: np.ndarray | None = None) -> tuple[Region, ...]:
        """Those at the default value, found once, in `full` where the caller has it.

        They are kept and the full map is not: a drawing and a line of results need one map of a large photo between
        them, and a list of predictions stays as small as its own maps.
        """
        found = self._found
        if found is None:
            level = self.region_level if self.map_threshold is None else self.map_threshold
            small = self._region_map(full)
            found = tuple(_regions(small, level, 0))
            if not found and self.verdict in ("anomalous", "unsure"):
                found = (_highest(small),)
            found = tuple(_stretched(region, small.shape, self.size) for region in found)
            object.__setattr__(self, "_found", found)
        return found

    def _region_map(self, full: np.ndarray | None = None) -> np.ndarray:
        """The full map, or of a very large picture a smaller one: its own map has no more detail than that."""
        height, width = self.size
        times = math.sqrt(height * width / REGION_PIXELS)
        if times <= 1:
            return self.full_map() if full is None else full
        return self._map_of((max(1, round(height / times)), max(1, round(width / times))))

    def mask(self, threshold: float | None = None) -> np.ndarray:
        """bool [H, W]: where the full map is at or above a value, by default the one of `regions`.

        Raises:
            ValueError: there is no map.
        """
        level = self.region_level if self.map_threshold is None else self.map_threshold
        return self.full_map() >= (level if threshold is None else threshold)

    def overlay(self, picture: Any = None, stretch: bool = False, side: int | None = None) -> Image.Image:
        """The picture with its map in colour and its strongest regions outlined, RGB of the original size.

        Args:
            picture: anything `predict` takes; None takes the one kept, else reads `source` again.
            stretch: colours from this map's own minimum to its maximum, and says so on the picture; otherwise the
                method's fixed scale, so that a good part stays cold.
            side: px; a longer picture is drawn smaller.

        Raises:
            ValueError: no map, no picture to be had, or one of another size.
        """
        shape = self.size if side is None else scaled(self.size, min(1.0, side / max(self.size)))
        hidden = self.places.hidden(self.size, shape)
        in_bands = hidden is None and shape[0] * shape[1] > LARGE  # drawn so, without a whole map
        if self.map is None or (shape == self.size and not in_bands):
            amap = self.full_map()
        else:
            amap = self.map if in_bands else self._map_of(shape)
        photo, size = self._photo(picture, None if shape == self.size else max(shape))
        if size != self.size:
            raise ValueError(f"picture has size {size}, the scored one had {self.size}; give that one")
        low, high = (float(amap.min()), float(amap.max())) if stretch else self.scale
        regions = self._own_regions(amap if shape == self.size else None)[:DRAWN_BOXES]
        boxes = [_stretched(region, self.size, shape).box for region in regions]
        photo = photo if photo.shape[:2] == shape else resized(photo, shape)
        return draw_overlay(photo, amap, low=low, high=high, boxes=boxes, stretched=stretch, hidden=hidden)

    def _photo(self, picture: Any, side: int | None) -> tuple[np.ndarray, tuple[int, int]]:
        """The picture, perhaps smaller but of `side` px at least, and the size that it has."""
        given = self.source if picture is None else picture
        if picture is None and self.picture is not None:
            return self.picture, self.size
        if given is None:
            raise ValueError("this prediction has neither its picture nor a path to it; pass it: overlay(picture)")
        return self.reader.read_for(side, given)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the overlay as PNG, beside and renamed; parent folders are made."""
        path = Path(path).expanduser()
        if path.suffix.lower() != ".png":
            raise ValueError(f"path is {path}; overlays are PNG, expected a name that ends in .png")
        drawn = self.overlay()
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{uuid.uuid4().hex}.png")
        try:
            drawn.save(beside, format="PNG")
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)

    def to_dict(self) -> dict[str, Any]:
        """Everything but map and picture as plain values for JSON; `regions` at their default threshold."""
        keys = ("source", "name", "verdict", "score", "is_anomalous", "threshold", "map_threshold", "p_value")
        plain = {key: getattr(self, key) for key in keys}
        regions = [asdict(region) for region in self.regions()]
        plain |= {"notes": list(self.notes)} if self.notes else {}
        return {**plain, "size": list(self.size), "phrases": dict(self.phrases), "regions": regions}


def _highest(full: np.ndarray) -> Region:
    """The place round the largest value of a full map that lies below every threshold."""
    peak, middle = float(full.max()), float(np.median(full))
    found = _regions(full, middle + HIGHEST * (peak - middle), 0)[0]
    return replace(found, below_threshold=True)


def _stretched(region: Region, shape: tuple[int, ...], size: tuple[int, int]) -> Region:
    """A region found in a map of `shape`, in pixels of the picture of `size`."""
    if shape == size:
        return region
    down, right = size[0] / shape[0], size[1] / shape[1]
    x0, y0, x1, y1 = region.box
    box = math.floor(x0 * right), math.floor(y0 * down), math.ceil(x1 * right), math.ceil(y1 * down)
    center = region.center[0] * right, region.center[1] * down
    box = box[0], box[1], min(box[2], size[1]), min(box[3], size[0])
    return replace(region, box=box, area=round(region.area * down * right), center=center)


def _regions(full: np.ndarray, level: float, min_area: int) -> list[Region]:
    from scipy import ndimage  # here: `import vlad.prediction` stays light

    labels, _ = ndimage.label(full >= level, structure=np.ones((3, 3)))
    regions = []
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        ys, xs = np.nonzero(labels[rows, columns] == label)
        if len(ys) < min_area:
            continue
        values = full[rows, columns][ys, xs]
        x, y = float(columns.start + xs.mean() + 0.5), float(rows.start + ys.mean() + 0.5)
        place = place_of((x, y), full.shape)
        box = (columns.start, rows.start, columns.stop, rows.stop)
        mean = float(values.mean(dtype=np.float64))
        regions.append(Region(box, len(ys), float(values.max()), mean, (x, y), place))
    return sorted(regions, key=lambda region: (-region.peak, -region.area, region.box))
