"""What the readers of data sets share: folders and their pictures, masks by name, the MVTec layout, errors."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlad.datasets.mask_files import apart, is_mask_folder, mask_folder, pair_below
from vlad.datasets.samples import Sample
from vlad.images.listing import SUFFIXES

logger = logging.getLogger(__name__)

Root = str | os.PathLike[str]
Reader = Callable[..., list[Sample]]

# In any case, with or without the marks between words: "no_defect", "Defect-free", "good ".
_NORMAL = {"good", "ok", "okay", "normal", "nominal", "nodefect", "nodefects", "nondefective", "defectfree", "0"}
_NORMAL |= {"nonanomalous", "anomalyfree", "flawless", "healthy", "intact"}
SPLIT_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}
MVTEC_LAYOUT = "<category>/train/good, <category>/test/{good,<defect>} and <category>/ground_truth/<defect>"


def is_normal(folder: str) -> bool:
    """Whether a folder's name says that its pictures are normal."""
    return re.sub("[^a-z0-9]", "", folder.lower()) in _NORMAL


def existing(root: Root) -> Path:
    """The data set's folder as a path.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    path = Path(root).expanduser()
    if path.is_dir():
        return path
    kind = "is a file; give the folder that holds the data set" if path.exists() else "no such folder; check the path"
    raise FileNotFoundError(f"{path}: {kind}")


def wrong_root(dataset: str, root: Path, expected: str) -> ValueError:
    """The error for a folder that does not hold the data set: what was expected, and what is there."""
    inside = sorted(entry.name + "/" * entry.is_dir() for entry in os.scandir(root) if entry.name[0] != ".")
    found = ", ".join(inside[:8]) + (f" and {len(inside) - 8} more" if len(inside) > 8 else "")
    return ValueError(f"{root} is not laid out as {dataset}: expected {expected}; found {found or 'an empty folder'}")


def folders(place: Path) -> list[Path]:
    """The folders in `place`, sorted by name, hidden ones left out; none where there is no such place."""
    return _inside(place, os.DirEntry.is_dir)


def pictures(place: Path) -> list[Path]:
    """The pictures in `place` (not below), sorted by name, hidden ones left out; none where there is no such place."""
    return [path for path in _inside(place, os.DirEntry.is_file) if path.suffix.lower() in SUFFIXES]


def _inside(place: Path, kind: Callable[[os.DirEntry[str]], bool]) -> list[Path]:
    if not place.is_dir():
        return []
    with os.scandir(place) as entries:
        return [
            place / name for name in sorted(entry.name for entry in entries if entry.name[0] != "." and kind(entry))
        ]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: not JSON, or not an object, with the file's name.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object {{...}}, got {type(content).__name__}")
    return content


def for_training(images: list[Path], root: Path, share: float) -> set[Path]:
    """The `share` of the pictures that VLAD trains on where a set has no split of its own.

    The ones whose path below `root` has the lowest SHA-256: the same on every machine, and not the first ones taken.
    """
    names = {image: image.relative_to(root).as_posix() for image in images}
    ordered = sorted(images, key=lambda image: (hashlib.sha256(names[image].encode()).digest(), names[image]))
    return set(ordered[: round(share * len(images))])


def categories(root: Path, depth: int = 1) -> list[Path]:
    """The folders with `train` or `test` in them, at most `depth` levels below `root`; `root` alone if it is one."""
    if any(place.name.lower() in ("train", "test") for place in folders(root)):
        return [root]
    return [found for place in folders(root) for found in categories(place, depth - 1)] if depth else []


def pictures_below(place: Path) -> list[Path]:
    """The pictures in `place` and in all folders below it, those of masks left out."""
    inner = [picture for folder in folders(place) if not is_mask_folder(folder) for picture in pictures_below(folder)]
    return pictures(place) + inner


def mvtec_like(dataset: str, root: Root, category: str | None = None, expected: str = MVTEC_LAYOUT) -> list[Sample]:
    """The samples of a set laid out as MVTec AD; `root` holds its categories, or is one of them.

    Args:
        category: what to call the only category; None calls each by its folder.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no category with pictures in it, with what was expected and what was found.
    """
    root = existing(root)
    found = [(place, category or place.resolve().name) for place in categories(root)]
    samples = [sample for place, name in found for sample in mvtec_category(place, dataset, name)]
    if not samples:
        raise wrong_root(dataset, root, expected)
    return samples


def mvtec_category(place: Path, dataset: str, category: str) -> list[Sample]:
    """The samples of one category: train, validation, test; in each the folders by name.

    Raises:
        ValueError: pictures directly in `test`, which nobody has labelled.
    """
    samples, inside = [], folders(place)
    tests = [kind for part in inside if part.name.lower() == "test" for kind in folders(part)]
    marked = mask_folder(inside) or mask_folder(tests)
    for split in dict.fromkeys(SPLIT_FOLDERS.values()):
        for part in inside:
            if SPLIT_FOLDERS.get(part.name.lower()) == split:
                # A folder of masks may hold the same names as a folder of train.
                samples += _split(part, dataset, category, split, marked if split == "test" else None)
    if not samples:
        logger.warning("%s: left out, there is no picture in train or test", place)
    return samples


def _split(part: Path, dataset: str, category: str, split: str, masks: Path | None) -> list[Sample]:
    loose, _ = apart(pictures(part))
    if loose and split == "test":
        raise ValueError(f"{loose[0]} has no label; put pictures into {part}/good or .../<defect>")
    samples = [Sample(image, None, 0, category, "good", split, dataset=dataset) for image in loose]
    kinds = [kind for kind in folders(part) if not is_mask_folder(kind)]
    return samples + [one for kind in kinds for one in labelled(kind, dataset, category, split, masks)]


def labelled(kind: Path, dataset: str, category: str, split: str, masks: Path | None = None) -> list[Sample]:
    """The samples of one folder and those below it, normal or a defect by its name.

    Masks lie in the folder of that name in `masks`, in `masks` itself, in a folder of masks in it, or beside pictures.
    """
    images, beside = apart(pictures_below(kind))
    label = int(not is_normal(kind.name))
    found: list[Path | None] = [None] * len(images)
    masks = mask_folder(folders(kind)) or masks
    if label and images and masks is not None:
        found = pair_below(images, kind, masks)
    return [
        Sample(
            image, mask or beside.get(image), label, category, kind.name if label else "good", split, dataset=dataset
        )
        for image, mask in zip(images, found, strict=True)
    ]


def checked(samples: list[Sample], where: Path) -> list[Sample]:
    """The samples of a list that people or scripts wrote.

    Raises:
        FileNotFoundError: it names pictures or masks that do not exist.
        ValueError: it is empty, or names a picture twice.
    """
    if not samples:
        raise ValueError(f"{where}: it lists no picture")
    files = [file for sample in samples for file in (sample.image, sample.mask) if file is not None]
    if lost := [file for file in files if not file.exists()]:
        raise FileNotFoundError(f"{where}: {len(lost)} of {len(files)} files are not there, the first is {lost[0]}")
    seen: dict[str, Sample] = {}
    for sample in samples:
        first = seen.setdefault(os.path.normcase(os.path.abspath(sample.image)), sample)
        if first is not sample:
            places = f"as {first.category}/{first.split} and as {sample.category}/{sample.split}"
            raise ValueError(f"{where}: {sample.image} is listed twice, {places}; keep one")
    return samples
