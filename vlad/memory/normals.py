"""The normal pictures themselves, as far as a method sees them: with them, others can join later as if all had come at
once. Only so are the thresholds the same, too, for which every normal is scored against all others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_BYTES = 64 * 2**20  # of pictures kept; 445 at 224 px
PREFIX = "pictures."  # of their tensors in a file
BLOCK_BYTES = 16 * 2**20


class KeptPictures:
    """uint8 pictures by number, in few large blocks.

    Thousands of small arrays, kept between large short-lived tensors, would leave the heap full of holes: it would grow
    by ten times what they take. So not even an array that leads to a picture is kept, only its place.
    """

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []
        self._places: dict[int, tuple[int, int, tuple[int, ...]]] = {}  # block, start, shape
        self.bytes = self._used = 0  # of all pictures; of the last block

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def __setitem__(self, number: int, picture: np.ndarray) -> None:
        if not self._blocks or self._used + picture.size > len(self._blocks[-1]):
            self._blocks.append(np.empty(max(BLOCK_BYTES, picture.size), np.uint8))
            self._used = 0
        self._blocks[-1][self._used : self._used + picture.size] = picture.ravel()
        self._places[number] = len(self._blocks) - 1, self._used, picture.shape
        self._used += picture.size
        self.bytes += picture.size

    def __getitem__(self, number: int) -> np.ndarray:
        block, start, shape = self._places[number]
        return self._blocks[block][start : start + math.prod(shape)].reshape(shape)


@dataclass(frozen=True)
class NormalPictures:
    """What a detector has of its normals beside its memory.

    Attributes:
        pictures: uint8 [H, W, 3] each, in the order of the references; empty where they are missing.
        missing: why, as a clause.
        rate, review: as `Detector.fit` was told.
    """

    pictures: tuple[np.ndarray, ...] = ()
    missing: str = ""
    rate: float | None = None
    review: bool = False

    @classmethod
    def kept(
        cls, pictures: Sequence[np.ndarray] | None, rate: float | None, review: bool, missing: str = ""
    ) -> "NormalPictures":
        """Of these pictures; None: they were too many. Another reason may be said to be `missing` them."""
        if not missing and (pictures is None or sum(picture.nbytes for picture in pictures) > MOST_BYTES):
            missing = f"its good pictures are more than {MOST_BYTES >> 20} MiB and were not kept"
        return cls(() if missing or pictures is None else tuple(pictures), missing, rate, review)

    def without(self, why: str) -> "NormalPictures":
        """The same with no pictures."""
        return replace(self, pictures=(), missing=self.missing or why)

    def facts(self) -> dict[str, Any]:
        """For a file's header; the pictures are `tensors`."""
        return {"missing": self.missing, "rate": self.rate, "review": self.review}

    def tensors(self) -> dict[str, Tensor]:
        """For a file."""
        return {f"{PREFIX}{number}": torch.from_numpy(picture) for number, picture in enumerate(self.pictures)}

    @classmethod
    def restored(
        cls, facts: Mapping[str, Any], tensors: Mapping[str, Tensor], references: int
    ) -> "NormalPictures | None":
        """Of what `facts` and `tensors` gave; None before any `fit`.

        Raises:
            ValueError: there are others than one picture for each reference, or something else than pictures.
        """
        if not references:
            return None
        if not facts:
            return cls(missing="its file is of an older VLAD, which kept no good pictures")
        missing, rate, review = facts["missing"], facts["rate"], facts["review"]
        if not isinstance(missing, str) or not isinstance(review, bool) or not (rate is None or 0 < rate < 1):
            raise ValueError("what it says of its fit is of the wrong kind")
        names = [] if missing else [f"{PREFIX}{number}" for number in range(references)]
        if sorted(tensors) != sorted(names):
            raise ValueError(f"it holds {len(tensors)} pictures of its {references} normals")
        for key, picture in tensors.items():
            if picture.dtype != torch.uint8 or picture.shape[2:] != (3,) or not picture.numel():
                raise ValueError(f"its {key!r} is no picture")
        return cls(tuple(tensors[name].numpy() for name in names), missing, rate, review)
