"""What `Detector.fit` does: normal pictures into a new memory, each once, and a calibration from their own scores."""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlad.detector.predicting import Judge, fit_to_frame
from vlad.framing.looking import Views, framed_views, memories, remark, remember, scores_of, views_of, wholes
from vlad.framing.places import Framed
from vlad.images import ImageError, Reader, Remarks, is_bytes, path_of, repeats
from vlad.images.depth import is_flat
from vlad.images.listing import left_out_line, list_images
from vlad.memory.normals import MOST_BYTES, KeptPictures, NormalPictures
from vlad.scorer import Scorer
from vlad.thresholds import Calibration, from_halves, from_labelled, ladder, odd_one

logger = logging.getLogger(__name__)

BATCH = 8  # pictures per pass; changes no result
SHARED = 64  # normals whose tokens are kept between the two passes of `learn`; more are encoded twice
COMPARED = 200  # normals that are scored against the others; of more a draw
KEPT_BYTES = 256 * 2**20  # of pixels kept for the second pass; beyond, pictures are read again


@torch.no_grad()
def learn(
    scorer: Scorer,
    images: Any,
    rate: float | None,
    anomalous: Any = None,
    review: bool = False,
    *,
    reader: Reader,
    before: NormalPictures | None = None,
) -> Judge:
    """The scorer, its memories filled with `images` alone or with those that were there `before` and with these, and
    its thresholds.

    Many normals take a time that grows with their number alone: of more than `COMPARED` a draw is scored against the
    others, and memories keep less of each (`Memory.expect`).

    Whatever goes wrong, the scorer is then of no use: give it a copy.
    """
    if anomalous is not None and rate is not None:
        raise ValueError("a false-alarm rate and anomalous pictures each give a threshold; give one of the two")
    earlier = dict(zip(scorer.references, before.pictures, strict=True)) if before else {}
    normals = Normals(images, scorer, reader, earlier=earlier)
    if scorer.encoder.uncalibrated:
        scorer.encoder.calibrate(normals.read(image) for image in normals.images)
    with ExitStack() as stack:
        if len(normals.images) * scorer.framing.looks[-1] ** 2 <= SHARED:
            stack.enter_context(scorer.encoder.sharing())
        _fill(scorer, normals, len(normals.images), normals.drawn)
        for memory in memories(scorer):
            if normals.drawn and memory.share < 1:  # a coreset anew without each of them would take too long
                memory.condense()
        scores, peaks = _leave_one_out(scorer, normals.compared()) if len(normals.ids) > 1 else ([], [])
    names = [normals.ids[number] for number in normals.drawn] or normals.ids
    made = _with_odd_one(ladder(scores, rate, review), names, scores), ladder(peaks, rate) if peaks else None
    if len(normals.ids) == 1 and min((picture := normals.read(normals.images[0])).shape[:2]) > 1:
        made = from_halves(*_between_halves(scorer, picture))
        _fill(scorer, normals)
    for memory in memories(scorer):
        memory.ids = list(normals.ids)
        memory.condense()
    score = replace(made[0], note=made[0].note + _said_of_many(scorer, normals))
    missing = ""
    if anomalous is not None:
        score = _against(scorer, anomalous, scores, reader)
        missing = "its threshold comes from anomalous pictures too, which are not kept"
    if normals.repeated:
        logger.warning("left out, as the same picture is there already: %s", ", ".join(normals.repeated))
    logger.info("learnt from %d normals: %s", len(normals.ids), score.note)
    score = replace(score, looks=tuple(normals.looks))
    return Judge.calibrated(scorer, score, made[1], NormalPictures.kept(normals.all_seen(), rate, review, missing))


def _said_of_many(scorer: Scorer, normals: "Normals") -> str:
    """A clause on what was not kept of many normals, and which of them were not compared; empty where there is none."""
    rows = [memory.rows_each for memory in scorer.memories().values() if memory.rows_each is not None]
    words = [f"the memory keeps up to {max(rows)} places of each"] if rows else []
    words += [f"{len(normals.drawn)} of them, drawn by chance, make the threshold"] if normals.drawn else []
    return f"; of these {len(normals.ids)} good pictures {' and '.join(words)}" if words else ""


def _with_odd_one(made: Calibration, ids: Sequence[str], scores: Sequence[float]) -> Calibration:
    """The calibration, with a word on a normal that is so unlike the others that it alone makes the threshold."""
    odd = odd_one(scores)
    if odd is None or made.threshold is None:
        return made
    without = max(score for number, score in enumerate(scores) if number != odd)
    words = (
        f"{ids[odd]} is unlike the other good pictures (compared with them it scores {scores[odd]:.4g}, the next "
        f"{without:.4g}): without it the threshold would be about {without:.4g}; leave it out if it is not good"
    )
    logger.warning(words)
    return replace(made, note=f"{made.note}; {words}")


def _fill(scorer: Scorer, batches: Iterable[Views], pictures: int = 1, alone: Sequence[int] = ()) -> None:
    for memory in memories(scorer):
        memory.clear()
    for one in wholes(scorer):
        for memory in one.memories().values():
            memory.expect(pictures, alone)
    remember(scorer, batches, pictures)


def _leave_one_out(scorer: Scorer, batches: Iterable[tuple[Tensor, Views]]) -> tuple[list[float], list[float]]:
    """Scores of pictures in memory, and largest values of their maps, none of them compared with itself.

    `batches` have the numbers of their pictures, [B].
    """
    scores: list[float] = []
    peaks: list[float] = []
    for numbers, views in batches:
        found = scores_of(scorer, views, numbers)
        scores += [one.score.item() for one in found]
        scorer.report("comparing with each other", len(scores), 0)
        peaks += [one.peaks().item() for one in found if one.map is not None]
    return scores, peaks


def _between_halves(scorer: Scorer, picture: np.ndarray) -> tuple[list[float], list[float]]:
    """Scores and largest map values of the four halves of one picture [H, W, 3], each against the other half.

    The memories are then of halves. A half fills the whole square, so its patches show less of the thing.
    """
    scores: list[float] = []
    peaks: list[float] = []
    framed = scorer.framing.places.framed(picture)
    for axis in (0, 1):
        both = framed_views(scorer, _halves(framed, axis))
        _fill(scorer, [both], 2)
        of_axis = _leave_one_out(scorer, [(torch.arange(2), both)])
        scores, peaks = scores + of_axis[0], peaks + of_axis[1]
    return scores, peaks


def _against(scorer: Scorer, anomalous: Any, normal_scores: list[float], reader: Reader) -> Calibration:
    """The threshold of the best F1 between the normals' scores and those of the anomalous pictures."""
    if not normal_scores:
        raise ValueError(
            "a threshold from anomalous pictures needs 2 normal ones or more, each scored against the others"
        )
    odd = Normals(anomalous, scorer, reader, "anomalous")
    scores = [one.score.item() for views in odd for one in scores_of(scorer, views)]
    return from_labelled([*normal_scores, *scores], [0] * len(normal_scores) + [1] * len(scores))


class Normals:
    """Iterating gives the views of batches; a picture that was given twice appears once.

    Attributes:
        ids: one text per distinct picture, known once an iteration is through: the file's name, its path as given where
            two files share a name, or the position of a picture without a file.
        drawn: numbers of the pictures that are compared with the others, ascending; empty where all are.
        repeated: the ids left out because their picture is there already.
        looks: `Scorer.look` of those that are compared with the others.
    """

    def __init__(
        self,
        images: Any,
        scorer: Scorer,
        reader: Reader,
        kind: str = "normal",
        *,
        earlier: Mapping[str, np.ndarray] | None = None,
    ):
        """`earlier`: pictures by id, as the scorer sees them, before the others.

        Raises:
            ValueError, FileNotFoundError: there is not one picture beside them.
        """
        self.reader = reader
        self.remarks = Remarks()
        self.side = scorer.framing.side(scorer.resolution)
        given = as_list(images, reader, self.remarks, self.side)
        if not given:
            raise ValueError(f"fit got no {kind} picture; give at least one {kind} picture")
        earlier = earlier or {}
        self.images = [*earlier.values(), *given]
        self.names = [*earlier, *_names(given, list(earlier))]
        self.drawn = _draw(len(self.images))
        if self.drawn and any(memory.per_picture for memory in scorer.memories().values()):  # cannot keep less of each
            self.images, self.names = [[all[i] for i in self.drawn] for all in (self.images, self.names)]
            self.drawn = []
        self.scorer = scorer
        self.ids: list[str] = []
        self._places: list[int] = []  # of the distinct pictures among the images
        self._seen = KeptPictures()  # of the distinct pictures, as the scorer sees them, as many as fit
        self.repeated: list[str] = []
        self.looks: list[str] = []
        self._kept: list[Views] | None = None

    def __iter__(self) -> Iterator[Views]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Views] = []
        for views in self._batches():
            yield views
            if not self.drawn and sum(batch.bytes for batch in kept) < KEPT_BYTES:
                kept.append(views)
        if sum(len(batch) for batch in kept) == len(self.ids):
            self._kept = kept

    def _batches(self) -> Iterator[Views]:
        seen: dict[str, str] = {}
        self.repeated, self.looks, self._places, self._seen, unreadable = [], [], [], KeptPictures(), []
        batch, drawn = [], set(self.drawn)
        for place, (image, name) in enumerate(zip(self.images, self.names, strict=True)):
            try:
                picture = self.read(image)
            except ImageError as error:
                unreadable.append(error)
                continue
            small = self.scorer.as_seen(picture)
            digest = hashlib.sha256(f"{small.shape}".encode() + small.tobytes()).hexdigest()
            if digest in seen:
                self.repeated.append(name)
                continue
            seen[digest] = name
            if is_flat(picture):
                self.remarks.flat(path_of(image) or "a normal picture")
            size = (picture.shape[0], picture.shape[1])
            remark(self.scorer, path_of(image) or "a normal picture", size, self.remarks)
            if self._seen.bytes < (KEPT_BYTES if len(seen) - 1 in drawn else MOST_BYTES):
                self._seen[len(seen) - 1] = small
            if not drawn or len(seen) - 1 in drawn:
                self.looks.append(self.scorer.look(small))
            self._places.append(place)
            batch.append(small)
            if len(batch) == BATCH:
                yield self._views(batch)
                self.scorer.report("reading", len(seen), len(self.images))
                batch = []
        if unreadable:
            raise _unreadable(unreadable, len(self.images))
        self.ids = list(seen.values())
        self.drawn = [number for number in self.drawn if number < len(self.ids)]
        self.remarks.say()
        if batch:
            yield self._views(batch)

    def compared(self) -> Iterator[tuple[Tensor, Views]]:
        """(numbers [B], views) of the pictures that are compared with the others, once an iteration is through."""
        if not self.drawn:
            start = 0
            for views in self:
                yield torch.arange(start, start := start + len(views)), views
        for first in range(0, len(self.drawn), BATCH):
            numbers = self.drawn[first : first + BATCH]
            yield torch.tensor(numbers), self._views([self._seen_again(number) for number in numbers])

    def all_seen(self) -> list[np.ndarray] | None:
        """All the distinct pictures as the scorer sees them; None where they are too many."""
        return [self._seen[number] for number in range(len(self.ids))] if len(self._seen) == len(self.ids) else None

    def _seen_again(self, number: int) -> np.ndarray:
        if number in self._seen:
            return self._seen[number]
        return self.scorer.as_seen(self.read(self.images[self._places[number]]))

    def read(self, image: Any) -> np.ndarray:
        """uint8 [H, W, 3] of one of `images`; what is no path was read when it was pulled."""
        picture = image if isinstance(image, np.ndarray) else self.reader.read_for(self.side, image, self.remarks)[0]
        return fit_to_frame(picture, image, self.scorer)

    def _views(self, pictures: list[Any]) -> Views:
        with torch.no_grad():
            return views_of(self.scorer, pictures)


def _draw(n: int) -> list[int]:
    """Numbers below n, ascending, drawn by a fixed seed; empty where all of them are compared."""
    return sorted(np.random.RandomState(0).choice(n, COMPARED, replace=False).tolist()) if n > COMPARED else []


def _halves(framed: Framed, axis: int) -> list[Framed]:
    """The two halves of a picture along an axis, as pictures of their own."""
    parts = np.array_split(framed.picture, 2, axis)
    ignored = [None, None] if framed.ignored is None else np.array_split(framed.ignored, 2, axis)
    return [Framed.whole(*one) for one in zip(parts, ignored, strict=True)]


def _unreadable(errors: Sequence[ImageError], of: int) -> ImageError:
    """One error for all pictures that cannot be read, so that they are mended at once."""
    if len(errors) == 1:
        return errors[0]
    words = "; ".join(map(str, errors))
    return ImageError(f"{len(errors)} of {of} pictures cannot be read: {words}", errors[0].source)


def as_list(images: Any, reader: Reader, remarks: Remarks, side: int | None = None) -> list[Any]:
    """Paths, and pixels uint8 [H, W, 3] of what is no path, of pictures as `Detector.predict` takes them.

    A folder stands for the pictures below it. What is no path is read, for one who needs `side` px, when it is pulled:
    before a camera fills its buffer anew.
    """
    if (path := path_of(images)) is not None and os.path.isdir(os.path.expanduser(path)):
        left_out: Counter[str] = Counter()
        images = [found.path for found in list_images([path], left_out)]
        if said := left_out_line(left_out):
            logger.warning("%s: %s", path, said)
    elif path is not None or is_bytes(images) or not isinstance(images, Iterable) or getattr(images, "ndim", 4) <= 3:
        images = [images]
    if isinstance(images, list | tuple):
        remarks.repeated(repeats(images))
    pictures = reader.pictures(images)
    return [one if path_of(one) is not None else reader.read_for(side, one, remarks)[0] for one in pictures]


def _names(images: list[Any], taken: Sequence[str] = ()) -> list[str]:
    """An id per picture, all different, and others than those taken."""
    paths = [path_of(image) for image in images]
    files = Counter([*taken, *(Path(path).name for path in paths if path is not None)])
    names = list(taken)
    for position, path in enumerate(paths, len(taken)):
        name = str(position) if path is None else Path(path).name if files[Path(path).name] == 1 else path
        names.append(name if name not in names else f"{name} ({position})")
    return names[len(taken) :]
