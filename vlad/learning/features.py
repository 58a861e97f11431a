"""What a frozen encoder makes of the training pictures: computed once, kept on disk, read as it is needed.

Image features that do not change while prompts are learned are the whole cost of an epoch; on disk (float16, mapped
into memory) fifteen epochs cost little more than one. The folder lies in `features/` of the cache folder (`VLAD_CACHE`
moves it) and may be deleted at any time; a run that was killed goes on where it stopped.
"""

import hashlib
import json
import logging
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlad.files import cache_dir, reserve, write_whole
from vlad.learning.data import Annotated, Item
from vlad.learning.scorer import LearnedScorer

logger = logging.getLogger(__name__)

FORMAT = 2  # raise it when the content of a folder changes its meaning
NAME_BYTES = 256  # of a category's words, more than any encoder reads
BATCH = 4  # pictures encoded at once; changes no result

Progress = Callable[[str, int, int], None]


def mask_at(mask: np.ndarray, side: int, share: float = 0.5) -> np.ndarray:
    """bool [side, side] of a bool mask: bilinear as PIL has it, antialiased, more than `share` is anomalous."""
    levels = Image.fromarray(mask.astype(np.uint8) * 255).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(levels) > 255 * share


class FeatureCache:
    """The image side of items, in their order; `fill` computes what is missing.

    Attributes:
        folder: where it lies.
    """

    def __init__(self, scorer: LearnedScorer, items: Sequence[Item]):
        self.scorer, self.items, self.side = scorer, items, scorer.resolution
        options = {key: value for key, value in scorer.options.items() if key != "stage"}
        facts = [FORMAT, scorer.encoder.digest, scorer.encoder.arithmetic, scorer.method, options]
        key = json.dumps([*facts, [item.key for item in items]], sort_keys=True)
        self.folder = cache_dir() / "features" / hashlib.sha256(key.encode()).hexdigest()[:32]
        self.arrays: list[Any] = []

    def fill(self, progress: Progress | None = None) -> None:
        """Computes what is not there yet, or not as it was written: a file was cut, a disk has lost some."""
        self.folder.mkdir(parents=True, exist_ok=True)
        done = self._opened("done", (len(self.items),), np.dtype(np.uint32))  # a picture's checksum; 0: not there
        missing = self._missing(done)
        if missing:
            logger.info("%d pictures are encoded once, into %s", len(missing), self.folder)
        for numbers, read in _ahead(missing, self.items):
            with torch.no_grad():
                pixels = self.scorer.viewed([one.picture for one in read], [self.items[n].view for n in numbers])
                parts = self.scorer.image_side(pixels)
            self._open(parts)
            for row, (number, one) in enumerate(zip(numbers, read, strict=True)):
                for array, part in zip(self.arrays, parts, strict=True):
                    array[number] = part[row].float().cpu().numpy()
                self.masks[number] = np.packbits(mask_at(one.mask, self.side, self.scorer.mask_share))
                self.words[number] = one.name.encode()
            for array in (*self.arrays, self.masks, self.words):
                array.flush()
            done[list(numbers)] = [self._checksum(number) for number in numbers]
            done.flush()
            if progress:
                progress("encoding", int(np.count_nonzero(done)), len(self.items))

    def _missing(self, done: Any) -> list[int]:
        """The items that are not there as they were written."""
        if done.any():
            try:
                self._open(None)
            except (OSError, TypeError, ValueError):  # no shapes, or none that can be
                self.arrays = []
                (self.folder / "shapes.json").unlink(missing_ok=True)
                done[:] = 0
        for number in np.flatnonzero(done):
            if done[number] != self._checksum(int(number)):
                done[number] = 0
        return [int(n) for n in np.flatnonzero(done == 0)]

    def _checksum(self, number: int) -> int:
        """Of all that is kept of an item; never 0."""
        value = 0
        for array in (*self.arrays, self.masks, self.words):
            value = zlib.crc32(np.ascontiguousarray(array[number]).tobytes(), value)
        return value or 1

    def rows(self, numbers: Sequence[int]) -> tuple[Tensor, ...]:
        """float32 [B, ...] of what `image_side` gave for these items."""
        return tuple(torch.from_numpy(array[list(numbers)].astype(np.float32)) for array in self.arrays)

    def masks_of(self, numbers: Sequence[int]) -> Tensor:
        """float32 [B, S, S]."""
        bits = np.unpackbits(self.masks[list(numbers)], axis=1, count=self.side**2)
        return torch.from_numpy(bits.reshape(-1, self.side, self.side).astype(np.float32))

    def names_of(self, numbers: Sequence[int]) -> list[str]:
        """What these items show, in words."""
        return [bytes(self.words[number]).decode() for number in numbers]

    def _open(self, parts: Sequence[Tensor] | None) -> None:
        """The arrays, whose shapes are known from the first batch, or from the run before."""
        if self.arrays:
            return
        shapes = self.folder / "shapes.json"
        if parts is not None and not shapes.exists():
            write_whole(shapes, json.dumps([list(part.shape[1:]) for part in parts]).encode())
        for number, shape in enumerate(json.loads(shapes.read_text())):
            self.arrays.append(self._opened(str(number), (len(self.items), *shape), np.dtype(np.float16)))
        self.masks = self._opened("masks", (len(self.items), -(-(self.side**2) // 8)), np.dtype(np.uint8))
        self.words = self._opened("words", (len(self.items),), np.dtype(f"S{NAME_BYTES}"))

    def _opened(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        path = self.folder / f"{name}.bin"
        with path.open("r+b" if path.exists() else "w+b") as file:
            reserve(file, math.prod(shape) * dtype.itemsize, "what the encoder makes of the pictures")
            return np.memmap(file, dtype, mode="r+", shape=shape)


def _ahead(numbers: Sequence[int], items: Sequence[Item]) -> Iterator[tuple[tuple[int, ...], list[Annotated]]]:
    """Batches of items, the next one read while the present one is used."""
    with ThreadPoolExecutor(1) as reader:
        batches = [tuple(numbers[start : start + BATCH]) for start in range(0, len(numbers), BATCH)]
        ahead = reader.submit(_read, batches[0], items) if batches else None
        for place, batch in enumerate(batches):
            assert ahead is not None
            read = ahead.result()
            if place + 1 < len(batches):
                ahead = reader.submit(_read, batches[place + 1], items)
            yield batch, read


def _read(numbers: Sequence[int], items: Sequence[Item]) -> list[Annotated]:
    return [items[number].read() for number in numbers]
