"""One walk over the test pictures of a category for many detectors: each picture is read once, each pass done once."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from vlad.datasets.corrupt import corrupt
from vlad.datasets.samples import Sample, read_mask
from vlad.detector.predicting import score_together
from vlad.evaluate.guests import Guest, Result
from vlad.framing.looking import PASS
from vlad.images import Reader
from vlad.images.sizes import LARGE

if TYPE_CHECKING:
    from vlad.detector import Detector

READING = "reading"  # what is left of it: the next batch is read while the present one is computed


class Clock:
    """Seconds by part; used as `with clock("reading"): ...`."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - started


class Condition(NamedTuple):
    """How the pictures are changed before anybody sees them."""

    kind: str = "clean"
    severity: int = 0

    def __str__(self) -> str:
        return self.kind if not self.severity else f"{self.kind} {self.severity}"


@dataclass(frozen=True)
class MetricSize:
    """At which size maps and masks meet.

    Attributes:
        side: "native", the picture's own size with the mask untouched, or the side of a square in pixels.
        mask_resize: for a square: "bilinear" (antialiased, more than half = anomalous) or "nearest".
    """

    side: str | int = "native"
    mask_resize: str = "bilinear"

    def size(self, whole: tuple[int, int]) -> tuple[int, int]:
        """(H, W) at which a picture of this size is measured."""
        return whole if isinstance(self.side, str) else (self.side, self.side)

    def mask(self, mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """bool [H, W] of a bool mask of any size."""
        if mask.shape == size:
            return mask
        how = Image.Resampling.NEAREST if self.mask_resize == "nearest" else Image.Resampling.BILINEAR
        return np.asarray(Image.fromarray(mask.astype(np.float32)).resize((size[1], size[0]), how)) > 0.5


@dataclass(frozen=True)
class TestPicture:
    """One test picture as it was measured."""

    sample: Sample
    picture: np.ndarray  # uint8 [H, W, 3], after corruption
    size: tuple[int, int]  # of map and mask in the metrics
    truth: np.ndarray | None  # bool `size`; None: nothing is marked in it


@dataclass
class Entrant:
    """A detector that is ready for one category; few-shot runs have one for each seed."""

    label: str
    detector: Detector | Guest
    seed: int | None = None
    references: list[str] = field(default_factory=list)
    known: list[Any] | None = None  # predictions of a detector that scores all pictures against each other
    maps: list[str] = field(default_factory=list)  # files of its maps, in the pictures' order, where any are written


def walk(
    entrants: Sequence[Entrant],
    samples: Sequence[Sample],
    *,
    metric_size: MetricSize,
    condition: Condition,
    batch_size: int,
    clock: Clock,
) -> Iterator[tuple[TestPicture, list[Result]]]:
    """Each picture with what every entrant says of it: (score, map float32 [h, w] at the method's own size, or None).

    Raises:
        ValueError: a score or map is NaN or infinite, or a normal picture has a mask that is not empty.
        vlad.ImageError, FileNotFoundError: a picture or mask cannot be read.
    """
    way, side = _way_of_reading(entrants), _needed(entrants, condition)
    if not any(isinstance(entrant.detector, Guest) for entrant in entrants):
        batch_size = min(batch_size, PASS)  # of a longer batch what the encoder does for several would not be kept
    for entrant in entrants:
        if not isinstance(entrant.detector, Guest) and entrant.detector.transductive:
            with clock(entrant.label):
                pictures: list[Any] = [sample.image for sample in samples]
                if condition.severity:
                    pictures = [_test_picture(one, metric_size, condition, way, side).picture for one in samples]
                entrant.known = entrant.detector.predict(pictures, batch_size=batch_size)
    with ThreadPoolExecutor(1) as reader:
        batches = [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]
        ahead = [reader.submit(_test_picture, sample, metric_size, condition, way, side) for sample in batches[0]]
        for number, batch in enumerate(batches):
            with clock(READING):
                seen = [future.result() for future in ahead]
            following = batches[number + 1] if number + 1 < len(batches) else []
            ahead = [reader.submit(_test_picture, sample, metric_size, condition, way, side) for sample in following]
            changed = condition.severity > 0
            results = [iter(found) for found in _scored(entrants, seen, number * batch_size, changed, clock)]
            yield from ((one, [_finite(next(found), one.sample) for found in results]) for one in seen)
            assert len(seen) == len(batch)


def _way_of_reading(entrants: Sequence[Entrant]) -> Reader:
    own = [entrant.detector for entrant in entrants if not isinstance(entrant.detector, Guest)]
    ways = {detector.reader for detector in own}
    if len(ways) > 1:
        said = " and ".join(sorted(str(way) for way in ways))
        raise ValueError(f"the detectors read pictures in different ways ({said}); evaluate them one by one")
    return next(iter(ways), Reader())


def _needed(entrants: Sequence[Entrant], condition: Condition) -> int | None:
    """How many px of a picture's sides the detectors look at; None: all that there are."""
    own = [one.detector for one in entrants if not isinstance(one.detector, Guest)]
    sides = [one.scorer.framing.side(one.scorer.resolution) for one in own]
    whole = condition.severity or len(own) < len(entrants) or None in sides
    return None if whole else max(side for side in sides if side is not None)


def _test_picture(
    sample: Sample, metric_size: MetricSize, condition: Condition, reader: Reader, side: int | None
) -> TestPicture:
    picture, whole = reader.read_for(side, sample.image)
    if math.prod(whole) > LARGE and (picture.shape[:2] == whole or metric_size.side == "native"):
        raise ValueError(
            f"{sample.image} has {whole[1]} x {whole[0]} pixels; above {LARGE // 1_000_000} million a picture is "
            "evaluated only where no detector needs all of it (no tiles, no corruption), with metric_size=1024"
        )
    mask = read_mask(sample, whole)
    if mask is not None and not sample.label and mask.any():
        raise ValueError(f"{sample.image} is labelled normal but its mask {sample.mask} is not empty; mend one of them")
    if mask is not None and not mask.any():
        mask = None
    if condition.severity:
        picture, mask = corrupt(picture, *condition, key_of(sample), mask)
    size = metric_size.size(whole)
    return TestPicture(sample, picture, size, None if mask is None else metric_size.mask(mask, size))


def key_of(sample: Sample) -> str:
    """What a sample is called wherever its data set lies."""
    return f"{sample.dataset}/{sample.category}/{sample.defect}/{sample.image.name}"


def _scored(
    entrants: Sequence[Entrant], seen: Sequence[TestPicture], start: int, changed: bool, clock: Clock
) -> list[list[Result]]:
    """For each entrant its results on the batch. A pass that several need is timed with the first of them."""
    pictures = [one.picture for one in seen]
    own = [e.detector for e in entrants if e.known is None and not isinstance(e.detector, Guest)]
    rows = score_together([detector.scorer for detector in own], pictures)
    found: list[list[Result]] = []
    for entrant in entrants:
        with clock(entrant.label):
            if isinstance(entrant.detector, Guest):
                found.append(entrant.detector.results(pictures, [one.sample for one in seen], changed))
                continue
            known = entrant.known and entrant.known[start : start + len(seen)]
            found.append([(one.score, one.map) for one in (next(rows) if known is None else known)])
    rows.close()  # what the scorers shared of their encoders is let go
    return found


def _finite(found: Result, sample: Sample) -> Result:
    score, amap = found
    bad = 0 if amap is None else int(np.count_nonzero(~np.isfinite(amap)))
    if bad or not np.isfinite(score):
        what = f"{bad} of {amap.size} values of its map are" if bad and amap is not None else "its score is"
        raise ValueError(f"{sample.image}: {what} NaN or infinite; no metric can rank that, mend the method")
    return found


def resized(amap: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float32 (H, W) `size` of a map: bilinear, half-pixel centres, antialiased along a side that gets smaller."""
    if amap.shape == size:
        return amap
    return np.asarray(Image.fromarray(amap).resize((size[1], size[0]), Image.Resampling.BILINEAR))
