"""What an adapter learns from: annotated pictures of data sets, drawn pictures, or good photos with painted defects."""

import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlad.datasets import load
from vlad.datasets.layouts import is_normal
from vlad.datasets.samples import SPLITS, Sample, read_mask
from vlad.images import read
from vlad.images.listing import left_out_line, list_images
from vlad.synthetic import sample as draw
from vlad.synthetic.photos import another_shot, paint

logger = logging.getLogger(__name__)

SYNTHETIC = "synthetic"
DRAWN_SIDE = 224  # pixels of a synthetic picture


@dataclass(frozen=True)
class Annotated:
    """One picture as training sees it.

    Attributes:
        picture: uint8 [H, W, 3].
        mask: bool [H, W], True where it is anomalous; empty where that is not known.
        name: what it shows, in words.
    """

    picture: np.ndarray
    mask: np.ndarray
    name: str


@dataclass(frozen=True)
class Item:
    """One annotated picture, read when it is needed.

    Attributes:
        key: differs where the picture or its mask differ.
        label: 1 anomalous.
        category: normals of the same category are its references.
        read: gives it.
        view: number of the view of it that is learned from; 0 is itself.
        marked: False where nobody has marked what is anomalous; its mask says nothing then.
    """

    key: str
    label: int
    category: str
    read: Callable[[], Annotated]
    view: int = 0
    marked: bool = True


@dataclass(frozen=True)
class TrainingSet:
    """Attributes: items to learn from; normals to compare them with; sources, the names of the data sets."""

    items: tuple[Item, ...]
    normals: tuple[Item, ...]
    sources: tuple[str, ...]


def gather(data: Any, pictures: int, seed: int, split: str | None = None, labels: bool = True) -> TrainingSet:
    """The training set of specs, or of Samples.

    Args:
        data: NAME:ROOT, a folder, "synthetic" or "synthetic:FOLDER", several of them, or Samples; of good pictures in
            FOLDER each `pictures` / n times with other defects.
        pictures: number of synthetic pictures, half of them normal.
        split: of data sets; None is the test split, as in the papers, or where that has only pictures of one label the
            first that has both.
        labels: whether anomalous pictures without a mask are learned from. Where none has one, no picture counts as
            marked: normal pixels alone would teach that nothing is anomalous.

    Raises:
        ValueError: normal or anomalous pictures are missing among it, or an unknown data set.
    """
    specs: Sequence[Any] = [data] if isinstance(data, str | os.PathLike) else list(data)
    parts = []
    for spec in specs:
        if isinstance(spec, Sample):
            continue
        text = os.fspath(spec)
        if text == SYNTHETIC:
            parts.append(_drawn(pictures, seed))
        elif text.startswith(f"{SYNTHETIC}:"):
            parts.append(_painted(Path(text.partition(":")[2]).expanduser(), pictures, seed))
        else:
            parts.append(_annotated(load(text), split, labels))
    if samples := [spec for spec in specs if isinstance(spec, Sample)]:
        parts.append(_annotated(samples, split, labels))
    items = tuple(item for part in parts for item in part.items)
    if not any(item.label for item in items) or all(item.label for item in items):
        masks = "" if labels else " with masks"
        raise ValueError(f"training needs normal and anomalous pictures{masks} in one split; got {_counts(items)}")
    if not any(item.label and item.marked for item in items):
        logger.warning("no anomalous picture has a mask: scores of pictures are learned, and nothing about places")
        items = tuple(replace(item, marked=False) for item in items)
    sources = tuple(dict.fromkeys(source for part in parts for source in part.sources))
    return TrainingSet(items, tuple(item for part in parts for item in part.normals), sources)


def gather_normals(data: Any, shots: int, views: int, seed: int) -> TrainingSet:
    """The normal pictures of data sets' train splits, or of folders without splits, each in every view.

    Args:
        data: as in `gather`, without the synthetic ones.
        shots: pictures of each category, drawn by the seed; 0 is all.
        views: of each picture.

    Raises:
        ValueError: there is none, or an unknown data set.
    """
    specs: Sequence[Any] = [data] if isinstance(data, str | os.PathLike) else list(data)
    parts = [_normal_part(spec) for spec in specs if not isinstance(spec, Sample)]
    parts.append(_annotated([spec for spec in specs if isinstance(spec, Sample)], "test", False))
    groups: dict[str, list[Item]] = {}
    for item in (item for part in parts for item in part.normals):
        groups.setdefault(item.category, []).append(item)
    rng = np.random.default_rng(seed)
    taken = [group[n] for group in groups.values() for n in sorted(rng.permutation(len(group))[: shots or None])]
    if not taken:
        raise ValueError(f"training needs normal pictures, in a train split or alone in a folder; {specs} have none")
    items = [replace(item, key=f"{item.key} view {view}", view=view) for item in taken for view in range(views)]
    return TrainingSet(tuple(items), (), tuple(dict.fromkeys(source for part in parts for source in part.sources)))


def _normal_part(spec: Any) -> TrainingSet:
    text = os.fspath(spec)
    folder = Path(text).expanduser()
    if text.partition(":")[0] == SYNTHETIC:
        raise ValueError(f"{text!r} is for methods that learn from defects; give good pictures or a data set")
    if not folder.is_dir() or any(folder.rglob("train")) or any(folder.rglob("test")):
        return _annotated(load(text), "test", False)
    good = [
        Item(f"good {_stamp(one.path)}", 0, str(folder), functools.partial(_good, one.path))
        for one in list_images([folder])
    ]
    return TrainingSet((), tuple(good), (folder.name,))


def _annotated(samples: Iterable[Sample], split: str | None, labels: bool) -> TrainingSet:
    samples = list(samples)
    split = split or _split(samples)
    taken = [one for one in samples if one.split == split]
    unmarked = [one for one in taken if one.label and one.mask is None]
    if unmarked and not labels:
        logger.warning("%d anomalous pictures are left out: nobody has marked where", len(unmarked))
        taken = [one for one in taken if one.mask is not None or not one.label]
    elif unmarked:
        logger.warning("%d anomalous pictures have no mask: they teach scores alone", len(unmarked))
    normals = [one for one in samples if not one.label]
    beside = [one for one in normals if one.split == "train" != split] or [one for one in normals if one.split == split]
    sources = tuple(dict.fromkeys(one.dataset for one in [*taken, *beside]))
    return TrainingSet(tuple(map(_item, taken)), tuple(map(_item, beside)), sources)


def _split(samples: Sequence[Sample]) -> str:
    """The first split that has normal and anomalous pictures; "test" where none has."""
    found = {(one.split, one.label) for one in samples}
    split = next((name for name in reversed(SPLITS) if {(name, 0), (name, 1)} <= found), "test")
    if split != "test":
        number = sum(one.split == split for one in samples)
        logger.warning("no normal or no anomalous picture lies in the split test: learned from %d of %s", number, split)
    return split


def _counts(items: Sequence[Item]) -> str:
    anomalous = sum(item.label for item in items)
    return f"{len(items) - anomalous} normal and {anomalous} anomalous ones"


def _item(sample: Sample) -> Item:
    files = [sample.image, *([] if sample.mask is None else [sample.mask])]
    key = "|".join(f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)
    category = f"{sample.dataset}/{sample.category}"
    marked = sample.mask is not None or not sample.label
    return Item(f"{key}|{sample.name}", sample.label, category, functools.partial(_read, sample), marked=marked)


def _read(sample: Sample) -> Annotated:
    picture = read(sample.image)
    mask = read_mask(sample, (picture.shape[0], picture.shape[1]))
    return Annotated(picture, np.zeros(picture.shape[:2], bool) if mask is None else mask, sample.name)


def _drawn(pictures: int, seed: int) -> TrainingSet:
    """Drawn pictures; the normal beside each is the same thing photographed again, without its defects."""
    items, normals = [], []
    for number in range(pictures):
        key, category = f"drawn {seed} {number}", f"{SYNTHETIC}/{number}"
        items.append(Item(key, number % 2, category, functools.partial(_draw, seed, number)))
        normals.append(Item(f"{key} again", 0, category, functools.partial(_draw, seed, number, again=True)))
    return TrainingSet(tuple(items), tuple(normals), (SYNTHETIC,))


def _draw(seed: int, number: int, again: bool = False) -> Annotated:
    drawn = draw(np.random.default_rng((seed, number)), DRAWN_SIDE, defective=bool(number % 2))
    if not again:
        return Annotated(drawn.picture, drawn.mask, drawn.object)
    shot = another_shot(np.random.default_rng((seed, number, 1)), drawn.clean)
    return Annotated(shot, np.zeros_like(drawn.mask), drawn.object)


def _painted(folder: Path, pictures: int, seed: int) -> TrainingSet:
    """The good photos of a folder, and as many with painted defects as it takes to make `pictures`, at least one each.

    A photo is called by its folder, as in `train/good` below a part's name by the folder around that.
    """
    left_out: Counter[str] = Counter()
    photos = [found.path for found in list_images([folder], left_out)]
    if said := left_out_line(left_out):
        logger.warning("%s: %s", folder, said)
    good = tuple(Item(f"good {_stamp(one)}", 0, SYNTHETIC, functools.partial(_good, one)) for one in photos)
    spoiled = []
    for number in range(max(len(photos), pictures - len(photos))):
        photo = photos[number % len(photos)]
        key = f"painted {seed} {number} {_stamp(photo)}"
        spoiled.append(Item(key, 1, SYNTHETIC, functools.partial(_paint, photo, seed, number)))
    return TrainingSet((*good, *spoiled), good, (SYNTHETIC,))


def _stamp(photo: Path) -> str:
    return f"{photo.resolve()} {photo.stat().st_size} {photo.stat().st_mtime_ns}"


def _paint(photo: Path, seed: int, number: int) -> Annotated:
    picture = read(photo)
    for attempt in range(20):
        painted, mask, kinds = paint(np.random.default_rng((seed, number, attempt)), picture, DRAWN_SIDE)
        if kinds:
            return Annotated(painted, mask, _words(photo))
    raise ValueError(f"{photo}: no defect can be made visible on it; leave it out")


def _good(photo: Path) -> Annotated:
    picture = read(photo)
    return Annotated(picture, np.zeros(picture.shape[:2], bool), _words(photo))


def _words(photo: Path) -> str:
    around = [
        part for part in photo.resolve().parts[:-1] if not is_normal(part) and part.lower() not in ("train", "test")
    ]
    return around[-1].replace("_", " ")


def mosaic(parts: Sequence[Annotated], side: int) -> Annotated:
    """Four pictures, with their masks, as the quarters of one square of `side` pixels."""
    half = side // 2
    pictures, masks = [], []
    for one in parts:
        pictures.append(np.asarray(Image.fromarray(one.picture).resize((half, half), Image.Resampling.BICUBIC)))
        masks.append(np.asarray(Image.fromarray(one.mask).resize((half, half), Image.Resampling.NEAREST)))
    picture, mask = (np.vstack([np.hstack(kind[:2]), np.hstack(kind[2:])]) for kind in (pictures, masks))
    return Annotated(picture, mask, parts[0].name)
