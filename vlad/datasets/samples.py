"""A sample: one labelled picture of a data set, as paths and words; and its mask, read when it is needed."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from vlad.datasets.mask_levels import marked
from vlad.images import FORMATS, ImageError
from vlad.images.listing import SUFFIXES
from vlad.prompts import category_name

if TYPE_CHECKING:
    from vlad.metrics import Defect

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
_ON_ITS_SIDE = range(5, 9)  # EXIF orientations that swap height and width
_LOCO_CONFIG = "defects_config.json"


@dataclass(frozen=True)
class Sample:
    """One labelled picture; nothing is loaded.

    Attributes:
        image: the picture.
        mask: file whose nonzero pixels are anomalous, or a folder with one such file for each defect; None for a normal
            picture, and for an anomalous one whose place nobody has marked.
        label: 0 normal, 1 anomalous; the data set's word, whatever the mask holds.
        category: what metrics are computed for, such as "capsule".
        defect: its type, "good" for a normal picture.
        split: "train", "validation" or "test". A few sets have anomalous pictures in "train" too: look at `label`.
        name: the category's words for prompts; left out, the data set's table of names, else the category.
        dataset: name of the data set, as in `vlad.datasets()` where it is one of those.
        specimen: what the pictures of one object share in sets with several views; None where each picture is its own.
    """

    image: Path
    mask: Path | None
    label: int
    category: str
    defect: str
    split: str
    name: str = ""
    dataset: str = ""
    specimen: str | None = None

    def __post_init__(self) -> None:
        if self.label not in (0, 1):
            raise ValueError(f"{self.image}: label is {self.label!r}; expected 0 (normal) or 1 (anomalous)")
        if self.split not in SPLITS:
            raise ValueError(f"{self.image}: split is {self.split!r}; expected one of {', '.join(SPLITS)}")
        object.__setattr__(self, "image", Path(self.image))
        object.__setattr__(self, "mask", None if self.mask is None else Path(self.mask))
        if not self.name:
            object.__setattr__(self, "name", _words(self.dataset, self.category))


@functools.cache
def _words(dataset: str, category: str) -> str:
    return category_name(dataset, category.rsplit("/", 1)[-1])


def read_mask(sample: Sample, size: tuple[int, int] | None = None) -> np.ndarray | None:
    """Where the picture is anomalous, bool [H, W]; None where that is not known (anomalous, but without a mask).

    A normal picture without a mask is normal everywhere. Nonzero is anomalous, transparent pixels are not; a mask that
    is not clean is cut at half of its range, with a warning. The files of a folder are united.

    Args:
        size: (H, W) of the picture, turned upright as `vlad.images.read` does; None reads it from the picture's header.
            A mask of another size is resized to it (nearest) with a warning.

    Raises:
        FileNotFoundError: the mask (or, without `size`, the picture) is named but not there.
        ImageError: a file cannot be read, or the mask has height and width swapped.
    """
    if sample.mask is None and sample.label:
        return None
    size = size or picture_size(sample.image)
    if sample.mask is None:
        return np.zeros(size, dtype=bool)
    return np.logical_or.reduce(
        [_fitted(marked(mask_levels(file), file), size, file) for file in _mask_files(sample.mask)]
    )


def read_defects(sample: Sample, size: tuple[int, int] | None = None) -> list[Defect] | None:
    """The picture's defects one by one, as `vlad.metrics.spro` takes them; None where `read_mask` gives None.

    A defect is one value in one mask file; `defects_config.json` of the category says when it counts as found whole.
    Sizes and errors as in `read_mask`; a value that the config does not list raises ValueError.

    Source: MVTec LOCO (doi:10.1007/s11263-022-01578-9), section 4.
    """
    from vlad.metrics import Defect

    if sample.mask is None:
        return None if sample.label else []
    size = size or picture_size(sample.image)
    config = next((p / _LOCO_CONFIG for p in sample.mask.parents[:3] if (p / _LOCO_CONFIG).is_file()), None)
    if config is None:
        raise FileNotFoundError(
            f"{sample.mask}: no {_LOCO_CONFIG} in its category; only MVTec LOCO tells defects apart"
        )
    saturation, defects = _saturation(config), []
    for file in _mask_files(sample.mask):
        levels = _fitted(mask_levels(file), size, file)
        for value in np.unique(levels[levels != 0]).tolist():
            if value not in saturation:
                raise ValueError(f"{file}: value {value} is not in {config}; known: {sorted(saturation)}")
            defects.append(Defect(levels == value, *saturation[value]))
    return defects


@functools.lru_cache(maxsize=32)
def _saturation(config: Path) -> dict[int, tuple[float, bool]]:
    """Pixel value -> (threshold, whether it is a share of the defect's area)."""
    try:
        return {
            entry["pixel_value"]: (entry["saturation_threshold"], entry["relative_saturation"])
            for entry in json.loads(config.read_text(encoding="utf-8"))
        }
    except (ValueError, KeyError, TypeError) as error:
        keys = "pixel_value, saturation_threshold and relative_saturation"
        raise ValueError(f"{config}: expected a JSON list of entries with {keys} ({error!r})") from None


def picture_size(path: Path) -> tuple[int, int]:
    """(H, W) of the picture turned upright, from its header alone.

    Raises:
        FileNotFoundError: no such file.
        ImageError: not a picture.
    """
    with _opened(path, "picture") as image:
        swapped = image.getexif().get(0x0112) in _ON_ITS_SIDE
        return (image.width, image.height) if swapped else (image.height, image.width)


def mask_levels(file: Path) -> np.ndarray:
    """[H, W] values of a mask file as stored: grey levels, or the largest of red, green and blue.

    Raises as `picture_size`.
    """
    with _opened(file, "mask") as image:
        lossy = image.format == "JPEG"
        image = ImageOps.exif_transpose(image)
        if image.mode in ("1", "L", "F") or image.mode.startswith("I"):
            levels = np.asarray(image)
        elif image.mode == "P" and not np.asarray(image.convert("RGB")).any():
            levels = np.asarray(image)  # indices of a palette without colours
        elif image.has_transparency_data:
            colours = np.asarray(image.convert("RGBA"))
            levels = np.where(colours[..., 3] > 0, colours[..., :3].max(-1), 0)
        else:
            levels = np.asarray(image.convert("RGB")).max(-1)
        return np.where(levels > 127, 255, 0) if lossy else levels


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[Image.Image]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such {kind} file; check the path, or leave this sample out")
    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except Exception as error:
        raise ImageError(f"{path}: {kind} cannot be read: {str(error) or type(error).__name__}", str(path)) from error


def _mask_files(mask: Path) -> list[Path]:
    if not mask.is_dir():
        return [mask]
    files = sorted(file for file in mask.iterdir() if file.suffix.lower() in SUFFIXES and file.name[0] != ".")
    if not files:
        raise FileNotFoundError(f"{mask}: this folder of masks is empty; expected one picture for each defect")
    return files


def _fitted(levels: np.ndarray, size: tuple[int, int], file: Path) -> np.ndarray:
    """`levels` at (H, W) `size`."""
    (h, w), (height, width) = levels.shape, size
    if (h, w) == (height, width):
        return levels
    if (h, w) == (width, height):
        raise ImageError(f"{file}: mask is {h} x {w} and its picture {height} x {width}; turn the mask", str(file))
    logger.warning("%s: mask is %d x %d and its picture %d x %d; resized (nearest)", file, h, w, height, width)
    places = Image.fromarray(np.arange(h * w, dtype=np.int32).reshape(h, w))  # so that values of any kind survive
    return levels.ravel()[np.asarray(places.resize((width, height), Image.Resampling.NEAREST))]
