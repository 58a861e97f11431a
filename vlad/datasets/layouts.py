"""What the readers of data sets share: folders and their pictures, masks by name, the MVTec layout, errors."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from vlad.datasets.samples import Sample
from vlad.images.listing import MASK_FOLDER, SUFFIXES

logger = logging.getLogger(__name__)

Root = str | os.PathLike[str]
Reader = Callable[..., list[Sample]]

NORMAL_FOLDERS = ("good", "ok", "normal", "nominal")  # in any case
SPLIT_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}
MVTEC_LAYOUT = "<category>/train/good, <category>/test/{good,<defect>} and <category>/ground_truth/<defect>"


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


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Name without suffix (of a folder the whole name) -> path; two of the same are refused, one would be lost."""
    index: dict[str, Path] = {}
    for path in paths:
        stem = path.stem if path.suffix.lower() in SUFFIXES else path.name
        if stem in index:
            raise ValueError(f"{path} and {index[stem].name} differ only in their suffix; keep one of them")
        index[stem] = path
    return index


def pair_masks(images: list[Path], masks: list[Path], endings: Sequence[str] = ("_mask", "")) -> list[Path | None]:
    """For each picture the mask (file or folder) named like it, with one of `endings` before the suffix.

    Never by position: one missing file would shift all masks behind it. A warning counts the pictures without a mask.

    Raises:
        ValueError: there are masks, but none is named like a picture; or two files of one name.
    """
    named, marked = by_stem(images), by_stem(masks)
    found = [next((marked[stem + end] for end in endings if stem + end in marked), None) for stem in named]
    lost = [image for image, mask in zip(images, found, strict=True) if mask is None]
    if masks and lost and len(lost) == len(images):
        wanted, there = f"{images[0].stem}{endings[0]}.png", masks[0].name
        raise ValueError(
            f"{masks[0].parent}: no mask is named like a picture; expected names as {wanted}, found {there}"
        )
    if lost:
        logger.warning("%d of %d anomalous pictures have no mask, the first is %s", len(lost), len(images), lost[0])
    return found


def for_training(images: list[Path], root: Path, share: float) -> set[Path]:
    """The `share` of the pictures that VLAD trains on where a set has no split of its own.

    The ones whose path below `root` has the lowest SHA-256: the same on every machine, and not the first ones taken.
    """
    names = {image: image.relative_to(root).as_posix() for image in images}
    ordered = sorted(images, key=lambda image: (hashlib.sha256(names[image].encode()).digest(), names[image]))
    return set(ordered[: round(share * len(images))])


def categories(root: Path, depth: int = 1) -> list[Path]:
    """The folders with `train` or `test` in them, at most `depth` levels below `root`; `root` alone if it is one."""
    if any((root / split).is_dir() for split in ("train", "test")):
        return [root]
    return [found for place in folders(root) for found in categories(place, depth - 1)] if depth else []


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
    samples = []
    for folder, split in SPLIT_FOLDERS.items():
        loose = pictures(place / folder)
        if loose and split == "test":
            raise ValueError(f"{loose[0]} has no label; put pictures into {place / 'test'}/good or .../<defect>")
        samples += [Sample(image, None, 0, category, "good", split, dataset=dataset) for image in loose]
        masks = place / MASK_FOLDER if split == "test" else None  # it may hold the same names as a folder of train
        for kind in folders(place / folder):
            samples += labelled(kind, dataset, category, split, masks)
    if not samples:
        logger.warning("%s: left out, there is no picture in train or test", place)
    return samples


def labelled(kind: Path, dataset: str, category: str, split: str, masks: Path | None = None) -> list[Sample]:
    """The samples of one folder, normal or a defect by its name; masks are in the folder of that name in `masks`."""
    images = pictures(kind)
    if kind.name.lower() in NORMAL_FOLDERS:
        return [Sample(image, None, 0, category, "good", split, dataset=dataset) for image in images]
    found: list[Path | None] = [None] * len(images)
    if masks is not None and masks.is_dir():
        found = pair_masks(images, [*pictures(masks / kind.name), *folders(masks / kind.name)])
    return [
        Sample(image, mask, 1, category, kind.name, split, dataset=dataset)
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
