"""What was understood of a data set, so that it can be looked at before anything is measured on it: counts by split and
label, masks, sizes, oddities, and a sheet of pictures with what is marked in them outlined.

Every picture and mask is decoded once.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vlad.datasets import load
from vlad.datasets.samples import SPLITS, Sample, read_mask
from vlad.images import ImageError, read
from vlad.images.drawing import outlined, write_on
from vlad.images.listing import SUFFIXES

SHEET = 12  # pictures
COLUMNS, CELL = 4, 240  # of the sheet; px

Place = tuple[str, str, str]  # data set, category, split


@dataclass
class Part:
    """One split of one category."""

    words: str  # that prompts get
    labels: Counter[int] = field(default_factory=Counter)
    defects: Counter[str] = field(default_factory=Counter)
    masks: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (H, W)
    share: list[float] = field(default_factory=list)  # of each picture with something marked, how much is

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        sizes = {f"{width} x {height}": count for (height, width), count in self.sizes.items()}
        counts = {"normal": self.labels[0], "anomalous": self.labels[1], "masks": self.masks}
        return {"words": self.words, **counts, "defects": dict(self.defects), "sizes": sizes}


@dataclass(frozen=True)
class Checked:
    """What `check` found.

    Attributes:
        parts: by data set, category and split, in the reader's order.
        oddities: sentences, each about one thing that is probably not meant so.
        samples: all that were read.
    """

    parts: dict[Place, Part]
    oddities: list[str]
    samples: list[Sample]

    def rows(self) -> list[list[str]]:
        """A table's lines: split, labels, masks, what is marked, sizes."""
        lines = [["", "words", "split", "normal", "anomalous", "with mask", "marked", "width x height"]]
        for (dataset, category, split), part in self.parts.items():
            marked = f"{100 * np.median(part.share):.2g} %" if part.share else ""
            counts = [str(part.labels[0]), str(part.labels[1]), str(part.masks)]
            lines.append([f"{dataset}/{category}", f'"{part.words}"', split, *counts, marked, _sizes(part.sizes)])
        return lines

    def tests(self) -> dict[str, dict[str, dict[str, int]]]:
        """Data set -> category -> its numbers of "normal" and "anomalous" test pictures."""
        found: dict[str, dict[str, dict[str, int]]] = {}
        for (dataset, category, split), part in self.parts.items():
            if split == "test":
                found.setdefault(dataset, {})[category] = {"normal": part.labels[0], "anomalous": part.labels[1]}
        return found


def check(spec: str | os.PathLike[str], progress: Callable[[str, int, int], None] | None = None) -> Checked:
    """Reads every picture and mask of NAME:ROOT or a folder.

    Raises:
        ValueError, FileNotFoundError: as `vlad.datasets.load`.
    """
    with _warnings() as oddities:
        samples = load(spec)
        parts: dict[Place, Part] = {}
        seen: defaultdict[bytes, list[Sample]] = defaultdict(list)
        for number, sample in enumerate(samples):
            place = (sample.dataset, sample.category, sample.split)
            part = parts.setdefault(place, Part(sample.name))
            part.labels[sample.label] += 1
            part.masks += sample.label == 1 and sample.mask is not None
            if sample.label:
                part.defects[sample.defect] += 1
            try:
                seen[_looked_at(sample, part, oddities)].append(sample)
            except (ImageError, FileNotFoundError) as error:
                oddities.append(str(error))
            if progress:
                progress("pictures", number + 1, len(samples))
    oddities += _alike(seen) + _missing(parts) + _not_read(spec, samples)
    ordered = sorted(parts, key=lambda place: (*place[:2], SPLITS.index(place[2])))
    return Checked({place: parts[place] for place in ordered}, list(dict.fromkeys(oddities)), samples)


def _looked_at(sample: Sample, part: Part, oddities: list[str]) -> bytes:
    """Adds size and mask to the part; returns a digest of the picture's pixels."""
    picture = read(sample.image)
    part.sizes[picture.shape[0], picture.shape[1]] += 1
    mask = read_mask(sample, (picture.shape[0], picture.shape[1]))
    if mask is not None and sample.label and not mask.any():
        oddities.append(f"{sample.mask}: nothing is marked, and its picture is anomalous")
    if mask is not None and mask.any():
        if not sample.label:
            oddities.append(f"{sample.image} is labelled normal but its mask {sample.mask} is not empty")
        part.share.append(float(mask.mean()))
    return hashlib.sha256(repr(picture.shape).encode() + picture.tobytes()).digest()


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What VLAD warns of meanwhile, collected and not shown."""
    said: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    ours, handler = logging.getLogger("vlad"), Collect(logging.WARNING)
    before = ours.propagate
    ours.addHandler(handler)
    ours.propagate = False
    try:
        yield said
    finally:
        ours.removeHandler(handler)
        ours.propagate = before


def _alike(seen: dict[bytes, list[Sample]]) -> list[str]:
    """Pictures with the same pixels, those of several splits or labels first."""
    found = []
    for same in (same for same in seen.values() if len(same) > 1):
        splits, labels = {one.split for one in same}, {one.label for one in same}
        why = "in several splits: " if len(splits) > 1 else "with both labels: " if len(labels) > 1 else ""
        names = " and ".join(str(one.image) for one in same[:3])
        found.append(
            (not why, f"{why}{names} {'have' if len(same) < 4 else f'and {len(same) - 3} more have'} the same pixels")
        )
    return [sentence for _, sentence in sorted(found)]


def _missing(parts: dict[Place, Part]) -> list[str]:
    """Labels that a category lacks."""
    found = []
    for dataset, category in dict.fromkeys(place[:2] for place in parts):
        own = {split: parts[dataset, category, split].labels for split in SPLITS if (dataset, category, split) in parts}
        name = f"{dataset}/{category}"
        if "test" not in own:
            found.append(f"{name}: no test picture, so nothing is measured on it")
            continue
        for label, word in enumerate(("normal", "anomalous")):
            if not own["test"][label]:
                found.append(f"{name}: no {word} test picture, so no score of whole pictures can be measured")
        if not own.get("train", Counter())[0] and own["test"][0]:
            found.append(f"{name}: no normal picture for training; with shots, half of the test ones are set aside")
    return found


def _not_read(spec: str | os.PathLike[str], samples: Sequence[Sample]) -> list[str]:
    """How many pictures below the root are neither a sample nor a mask."""
    root = Path(os.fspath(spec).partition(":")[2] or spec).expanduser()
    if not root.is_dir():
        return []
    taken = {os.path.abspath(file) for one in samples for file in (one.image, one.mask) if file is not None}
    left = [
        path
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and not {os.path.abspath(path), os.path.abspath(path.parent)} & taken
    ]
    where = ", ".join(sorted({path.parent.relative_to(root).as_posix() for path in left})[:6])
    return [f"{len(left)} pictures are not part of it, in {where}"] if left else []


def _sizes(sizes: Counter[tuple[int, int]]) -> str:
    """ "512 x 384", or the smallest and largest sides."""
    if not sizes:
        return "none could be read"
    heights, widths = zip(*sizes, strict=True)
    return " x ".join(str(min(side)) if len({*side}) == 1 else f"{min(side)}-{max(side)}" for side in (widths, heights))


def sheet(samples: Sequence[Sample]) -> Image.Image:
    """Up to SHEET pictures, RGB: of each category and kind in turn, anomalous ones first, with their marks outlined."""
    kinds: dict[tuple[str, ...], list[Sample]] = {}
    for one in sorted(samples, key=lambda one: (not one.label, one.split != "test")):
        kinds.setdefault((one.dataset, one.category, one.defect if one.label else one.split), []).append(one)
    turns = [group[number] for number in range(SHEET) for group in kinds.values() if number < len(group)]
    shown = [cell for one in turns[: 2 * SHEET] if (cell := _cell(one)) is not None][:SHEET]
    rows = -(-len(shown) // COLUMNS)
    drawn = Image.new("RGB", (COLUMNS * CELL, max(rows, 1) * CELL), (30, 30, 30))
    for number, cell in enumerate(shown):
        drawn.paste(cell, (number % COLUMNS * CELL, number // COLUMNS * CELL))
    return drawn


def _cell(sample: Sample) -> Image.Image | None:
    """One picture with its labels, a square; None where it cannot be read."""
    try:
        picture = read(sample.image)
        mask = read_mask(sample, (picture.shape[0], picture.shape[1]))
    except (ImageError, FileNotFoundError):
        return None  # `check` names it
    small = Image.fromarray(picture)
    small.thumbnail((CELL - 4, CELL - 22), Image.Resampling.LANCZOS)
    cell = Image.new("RGB", (CELL, CELL), (30, 30, 30))
    cell.paste(Image.fromarray(outlined(np.asarray(small), mask)), ((CELL - small.width) // 2, 2))
    marked = "" if not sample.label else ", no mask" if mask is None else ", nothing marked" if not mask.any() else ""
    words = f"{sample.category}, {sample.split}: {sample.defect}{marked}"
    write_on(ImageDraw.Draw(cell), words, cell.size)
    return cell
