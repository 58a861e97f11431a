"""The one way from pictures to scores: read them, bring them to the encoder's size, score, judge.

`Detector.predict`, `fit`, `vlad.evaluate` and the scoring of folders all go through here, so that a picture is decoded
once, and so that what is done to pictures before a method sees them has one place.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlad.framing.looking import PASS, Views, check_size, finished, reduction, remark, scores_of, views_of
from vlad.framing.places import Framed, Places
from vlad.images import ImageError, Reader, Remarks, path_of
from vlad.images.depth import FLAT, is_flat
from vlad.images.sizes import LARGE
from vlad.memory.normals import NormalPictures
from vlad.prediction import Prediction
from vlad.scorer import Scorer, Scores
from vlad.thresholds import Calibration, p_value

Item = TypeVar("Item")
BATCH_PIXELS = LARGE  # H * W of the pictures of one batch, and at most as many more: 150 MB
DECODERS = 4  # files decoded at once, where they are small: all of them AT_ONCE_PIXELS at most
AT_ONCE_PIXELS = 16_000_000  # H * W, together


class Reading(NamedTuple):
    """A picture as it was given, and what became of it: pixels, or the reason why there are none."""

    given: Any
    picture: np.ndarray | None  # uint8 [H, W, 3]; a very large one is smaller than `size`
    size: tuple[int, int] = (0, 0)  # (H, W) that it has
    error: ImageError | None = None
    notes: tuple[str, ...] = ()

    @property
    def whole(self) -> np.ndarray | None:
        """The picture, if it is at hand at its own size."""
        return self.picture if self.picture is not None and self.picture.shape[:2] == self.size else None


class Row(NamedTuple):
    """What a scorer says of one picture."""

    score: float
    map: np.ndarray | None  # float32 [h, w]
    phrases: dict[str, float]  # phrase -> cosine with the picture


@dataclass(frozen=True)
class Judge:
    """A scorer with the thresholds that belong to it: all that a detector is at one moment.

    It is never changed, only exchanged as a whole: a prediction that runs meanwhile sees the old one or the new one.
    """

    scorer: Scorer
    calibration: Calibration | None = None  # what the threshold rests on; None until fitted
    map_calibration: Calibration | None = None  # the same of the largest value of the map
    threshold: float | None = None
    map_threshold: float | None = None
    normals: NormalPictures | None = None  # what others can be added to; None until fitted

    @classmethod
    def calibrated(
        cls, scorer: Scorer, score: Calibration | None, amap: Calibration | None, normals: NormalPictures
    ) -> "Judge":
        """With the thresholds of these calibrations; a score within a set says nothing of another set."""
        if scorer.score_set is not None:
            score = None
        cuts = [None if one is None else one.threshold for one in (score, amap)]
        return cls(scorer, score, amap, cuts[0], cuts[1], normals)

    def prediction(self, reading: Reading, row: Row, reader: Reader) -> Prediction:
        """What is said of a picture."""
        path = path_of(reading.given)
        made = self.calibration
        own = made is not None and made.threshold == self.threshold  # not one that was set by hand
        return Prediction(
            score=row.score,
            map=row.map,
            size=reading.size,
            threshold=self.threshold,
            map_threshold=self.map_threshold,
            name=self.scorer.name,
            source=path,
            phrases=row.phrases,
            p_value=None if made is None else p_value(row.score, made.scores),
            unsure=made.unsure if made is not None and own else None,
            scale=self.colours(),
            region_level=self.region_level(),
            picture=reading.picture if path is None else None,
            places=self.scorer.framing.places,
            reader=reader,
            notes=reading.notes,
        )

    def colours(self) -> tuple[float, float]:
        """The method's own colour range; once fitted, what the normals' maps reached is half way to hot at most."""
        peaks = self.map_calibration.scores if self.map_calibration else ()
        low, high = self.scorer.colours()
        return (low, min(high, low + 2 * (peaks[-1] - low))) if peaks and peaks[-1] > low else (low, high)

    def region_level(self) -> float:
        """The method's own level; once fitted, just above all that the normals' maps reached."""
        peaks = self.map_calibration.scores if self.map_calibration else ()
        return math.nextafter(peaks[-1], math.inf) if peaks else self.scorer.region_level


def predictions(
    judge: Judge,
    images: Iterable[Any],
    *,
    reader: Reader,
    batch_size: int = 8,
    on_error: str = "yield",
    prefetch: bool = True,
) -> Iterator[tuple[Reading, Prediction | ImageError]]:
    """Each picture as it was read, with its prediction, in order; a set that is scored as one is read to its end first.

    Of such a set the pixels of files are not kept: their readings have none. A picture that cannot be read has its
    error in the place of a prediction, or with `on_error="raise"` ends it all.
    """
    with Remarks() as remarks:
        if judge.scorer.score_set is not None:
            yield from _of_a_set(judge, images, reader, remarks, batch_size, on_error)
            return
        for batch in read_ahead(images, batch_size, prefetch, reader, remarks, judge.scorer):
            _remark_sizes(judge.scorer, batch, remarks)
            yield from judged(judge, batch, reader, on_error)


def judged(
    judge: Judge, batch: Sequence[Reading], reader: Reader, on_error: str = "yield"
) -> Iterator[tuple[Reading, Prediction | ImageError]]:
    """Each reading of one batch with its prediction, or with why there is none; not of a set that is scored as one."""
    good = [one.picture for one in batch if one.picture is not None]
    sizes = [one.size for one in batch if one.picture is not None]
    rows = iter(next(score_together([judge.scorer], good, sizes)) if good else [])
    for one in batch:
        if one.picture is not None:
            yield one, judge.prediction(one, next(rows), reader)
        else:
            yield one, _error(one, on_error)


def _remark_sizes(scorer: Scorer, batch: Iterable[Reading], remarks: Remarks) -> None:
    for one in batch:
        if one.picture is not None:
            remark(scorer, path_of(one.given) or "a picture", one.size, remarks)


def _of_a_set(
    judge: Judge, images: Iterable[Any], reader: Reader, remarks: Remarks, batch_size: int, on_error: str
) -> Iterator[tuple[Reading, Prediction | ImageError]]:
    score_set = judge.scorer.score_set
    assert score_set is not None
    seen: list[tuple[Reading, ImageError | None]] = []

    framed: list[Framed] = []

    def batches() -> Iterator[Tensor]:
        for batch in read_ahead(images, batch_size, False, reader, remarks, judge.scorer):
            _remark_sizes(judge.scorer, batch, remarks)
            for one in batch:
                kept = one if path_of(one.given) is None else one._replace(picture=None)
                seen.append((kept, _error(one, on_error) if one.picture is None else None))
            good = [one.picture for one in batch if one.picture is not None]
            for views in (views_of(judge.scorer, part) for part in passes(good)):
                framed.extend(views.framed)
                yield views.wholes[0][0]

    def whole(scores: Scores) -> list[Scores]:
        parts, framed[:] = framed[: len(scores.score)], framed[len(scores.score) :]
        return finished(judge.scorer, scores, parts)

    rows = _without_gradients(row for scores in score_set(batches()) for row in _rows(judge.scorer, whole(scores)))
    rows = chain(list(islice(rows, 1)), rows)  # with the first of them all pictures are read
    for one, error in seen:
        yield one, error or judge.prediction(one, next(rows), reader)


def _error(reading: Reading, on_error: str) -> ImageError:
    assert reading.error is not None
    if on_error == "raise":
        raise reading.error
    return reading.error


def score_together(
    scorers: Sequence[Scorer], pictures: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]] | None = None
) -> Generator[list[Row], None, None]:
    """What each scorer says of the same uint8 pictures [H, W, 3]; what several need of an encoder is computed once.

    `sizes` as in `views_of`, for one scorer alone: another may need more of a picture that was read smaller.
    """
    sizes = sizes or [(picture.shape[0], picture.shape[1]) for picture in pictures]
    views: dict[tuple[Any, ...], list[Views]] = {}
    with ExitStack() as stack:
        if len(scorers) > 1:
            for encoder in {id(scorer.encoder): scorer.encoder for scorer in scorers}.values():
                stack.enter_context(encoder.sharing())
        for scorer in scorers:
            with torch.no_grad():  # not across a yield, that would switch gradients off for the caller
                key = (id(scorer),) if scorer.frames_itself else (id(scorer.encoder), scorer.resolution, scorer.framing)
                if key not in views:
                    parts = zip(passes(pictures), passes(sizes), strict=True)
                    views[key] = [views_of(scorer, *part) for part in parts]
                rows = [row for part in views[key] for row in _rows(scorer, scores_of(scorer, part))]
            yield rows


def passes(pictures: Sequence[Item]) -> list[Sequence[Item]]:
    """Pictures, or what goes with them, in parts of PASS, so that the size of a batch changes no score."""
    return [pictures[start : start + PASS] for start in range(0, len(pictures), PASS)]


def read_ahead(
    images: Iterable[Any], batch_size: int, prefetch: bool, reader: Reader, remarks: Remarks, scorer: Scorer
) -> Iterator[list[Reading]]:
    """Pictures in batches, each read when it is pulled from `images`; the next batch is read meanwhile.

    A batch of large pictures is smaller, so that two of them stay within memory; of the largest no more is kept than
    the scorer looks at.

    A camera's buffer that is filled anew for every frame is copied in time. Without `prefetch` nothing is pulled before
    the results of the batch before have been taken.
    """
    read, pictures = partial(reading_of, reader=reader, remarks=remarks, scorer=scorer), reader.pictures(images)
    with ThreadPoolExecutor(DECODERS) as pool:
        if not prefetch:
            while batch := batch_of(pictures, batch_size, read, pool):
                yield batch
            return
        with ThreadPoolExecutor(1) as thread:
            ahead = thread.submit(batch_of, pictures, batch_size, read, pool)
            while batch := ahead.result():
                ahead = thread.submit(batch_of, pictures, batch_size, read, pool)
                yield batch


def batch_of(
    images: Iterator[Any], count: int, read: Callable[[Any], Reading], pool: ThreadPoolExecutor
) -> list[Reading]:
    """The next pictures in order, no more than `count` pulled: files decoded a few at once as long as the one before
    was small, all else read before the next is pulled."""
    batch: list[Reading] = []
    started: deque[Future[Reading]] = deque()
    pixels, at_once = 0, 1
    while len(batch) < count and pixels < BATCH_PIXELS:
        for image in islice(images, min(at_once, count - len(batch)) - len(started)):
            started.append(pool.submit(read, image))
            if path_of(image) is None:
                started[-1].exception()  # waits for it
        if not started:
            break
        batch.append(started.popleft().result())
        pixels += 0 if (picture := batch[-1].picture) is None else picture.size // 3
        at_once = DECODERS if math.prod(batch[-1].size) * DECODERS <= AT_ONCE_PIXELS else max(1, len(started))
    return batch + [one.result() for one in started]


def reading_of(image: Any, reader: Reader, remarks: Remarks, scorer: Scorer, page: int | None = None) -> Reading:
    """One picture read, or why it cannot be; `page` as in `vlad.images.read`.

    A file comes as much smaller as `reduction` says, where all of it counts; what is no file is kept for overlays.
    """
    reduces = path_of(image) is not None and scorer.framing.places == Places()
    by = partial(reduction, scorer) if reduces else None
    try:
        picture, size = reader.read_for(scorer.framing.side(scorer.resolution), image, remarks, page, by)
        fit_to_frame(picture, image, scorer, size)
    except ImageError as error:
        return Reading(image, None, error=error)
    flat = is_flat(picture)
    if flat:
        remarks.flat(path_of(image) or "a picture")
    return Reading(image, picture, size, notes=(FLAT,) if flat else ())


def fit_to_frame(picture: np.ndarray, given: Any, scorer: Scorer, size: tuple[int, int] | None = None) -> np.ndarray:
    """The picture [H, W, 3], of this size or its own, as it is; ImageError, which names what was given, where it cannot
    be framed so."""
    try:
        check_size(scorer, size or (picture.shape[0], picture.shape[1]))
    except ValueError as error:
        path = path_of(given)
        raise ImageError(f"{path or 'a picture'}: {error}", path) from error
    return picture


def _rows(scorer: Scorer, found: Iterable[Scores]) -> list[Row]:
    """Of each picture's scores, taken off the device."""
    rows = []
    for scores in found:
        cosines = {}
        if scores.image is not None and scorer.phrase_embeddings is not None:
            image = F.normalize(scores.image.float(), dim=-1) @ scorer.phrase_embeddings.T  # [1, phrases]
            cosines = dict(zip(scorer.phrases, image[0].tolist(), strict=True))
        amap = None if scores.map is None else scores.map[0].float().cpu().numpy().copy()
        rows.append(Row(scores.score.item(), amap, cosines))
    return rows


def _without_gradients(items: Iterator[Item]) -> Iterator[Item]:
    """The items, computed without gradients, which stay switched on for the caller between them."""
    while True:
        with torch.no_grad():
            found = list(islice(items, 1))
        if not found:
            return
        yield from found
