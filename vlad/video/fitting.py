"""Good clips as normals. Frames of one clip are alike, so a frame is never compared with its own clip.

A threshold from leave-one-out over the frames of one clip promises nothing: the same part stands in the next frame.
So the unit is a block of time longer than a part stays in view: each clip is scored by a memory of the other clips, and
the largest smoothed score of each block is one calibration score.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from vlad.detector.predicting import Judge, fit_to_frame
from vlad.framing.looking import PASS, Views, keep, memories, remember, scores_of, views_of
from vlad.memory.normals import NormalPictures
from vlad.scorer import Scorer, Scores
from vlad.thresholds import FEWEST, Calibration, ladder
from vlad.video.reading import Damage
from vlad.video.scoring import Timing
from vlad.video.smoothing import Smoother

if TYPE_CHECKING:
    from vlad.detector import Detector

logger = logging.getLogger(__name__)

BLOCK = 10.0  # seconds
SPARSE = Timing(every=1.0)
SHARED_BYTES = 2**30  # of what the encoder said of frames, kept between learning and comparing; more is asked twice
COMPARED = 200  # frames that a method which keeps pictures whole remembers of all clips together


@dataclass
class Clip:
    """The frames of one good clip, as small as the scorer sees them."""

    names: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    pictures: list[np.ndarray] = field(default_factory=list)
    views: dict[int, Views] = field(default_factory=dict)  # number of a part -> what is kept of it

    @property
    def parts(self) -> int:
        """Batches of frames, each spread over the whole clip: the k-th has every `parts`-th frame from k on."""
        return -(-len(self.times) // PASS)

    @contextmanager
    def seen(self, scorer: Scorer, part: int) -> Iterator[Views]:
        """The views of a part. Kept ones are encoded once; those that find no room are made and encoded anew."""
        if part in self.views:
            yield self.views[part]
            return
        views = views_of(scorer, self.pictures[part :: self.parts])
        if scorer.encoder.passes.bytes < SHARED_BYTES:
            self.views[part] = views
            yield views
        else:
            with scorer.encoder.unshared():
                yield views


def fit_clips(
    detector: "Detector",
    sources: Sequence[str | Path],
    *,
    timing: Timing = SPARSE,
    block: float = BLOCK,
    rate: float | None = None,
) -> "Detector":
    """Learns from good clips; its thresholds are of smoothed scores, one for each block of time. Returns the detector.

    Args:
        detector: changed, as by `Detector.fit`.
        sources: two clips or more, of different good parts or times; of a single one there is no threshold.
        timing: which frames are taken, and how scores are smoothed; score with the same.
        block: seconds, longer than one part stays in view.
        rate: the share of good blocks that may hold a false alarm; None takes the lowest that n of them can promise,
            1 / (n + 1).

    Raises:
        ValueError, TypeError, vlad.ImageError: as `vlad.frames` and `Detector.fit`.
    """
    if block <= 0:
        raise ValueError(f"block is {block}; expected seconds, longer than one part stays in view")
    if len({str(source) for source in sources}) < len(sources):
        raise ValueError("a clip is given twice, and compared with itself it would promise what it cannot keep")
    scorer = detector.learner()
    clips = [_read(str(source), timing, scorer) for source in sources]
    if scorer.encoder.uncalibrated:
        scorer.encoder.calibrate(picture for clip in clips for picture in clip.pictures)
    with torch.no_grad(), scorer.encoder.sharing():
        owned = _remember(scorer, clips)
        pairs = zip(clips, owned, strict=True) if len(clips) > 1 else ()
        blocks = [_largest(_without(scorer, own), clip, timing, block) for clip, own in pairs]
    for memory in memories(scorer):
        memory.condense()
    kept = NormalPictures(missing="its thresholds come from clips, not from pictures")
    scores, peaks = ([value for of_clip in blocks for value in of_clip[kind]] for kind in (0, 1))
    made = _calibration(scores, len(clips), block, rate)
    return detector.take(Judge.calibrated(scorer, made, _ruled(peaks, rate) if peaks else None, kept))


def _ruled(values: Sequence[float], rate: float | None) -> Calibration:
    """The threshold of the lowest rate that so many blocks can promise: 5 % of all 10 s would be 18 alarms an hour."""
    return ladder(values, 1 / (len(values) + 1) if rate is None and len(values) >= FEWEST else rate)


def _calibration(scores: list[float], clips: int, block: float, rate: float | None) -> Calibration:
    """The threshold of blocks' largest scores, or why there is none, which is logged too."""
    if clips == 1:
        words = (
            "no threshold: frames of one clip are alike, so their scores promise nothing for another; give two good "
            "clips or more"
        )
        logger.warning(words)
        return Calibration(None, "none", 0, note=words)
    made = _ruled(scores, rate)
    if made.threshold is None:
        logger.warning(f"no threshold: {len(scores)} blocks of {block:g} s are too few; give longer or more good clips")
    note = f"{len(scores)} blocks of {block:g} s of {clips} clips, each compared with the other clips; {made.note}"
    return replace(made, note=note)


def _read(source: str, timing: Timing, scorer: Scorer) -> Clip:
    clip, damage = Clip(), Damage()
    for frame in timing.frames(source, damage):
        clip.names.append(frame.source)
        clip.times.append(frame.time)
        clip.pictures.append(scorer.as_seen(fit_to_frame(frame.picture, frame.source, scorer)))
    for note in damage.notes:
        logger.warning(note)
    return clip


def _remember(scorer: Scorer, clips: Sequence[Clip]) -> list[range]:
    """Fills the memories with all frames, as one picture each, and says which of them are each clip's.

    Of a method that keeps pictures whole some frames of each clip are enough: it cannot keep less of each.
    """
    whole = any(memory.per_picture for memory in memories(scorer))
    parts = [min(clip.parts, max(1, COMPARED // PASS // len(clips))) if whole else clip.parts for clip in clips]
    names = [clip.names[part :: clip.parts] for clip, count in zip(clips, parts, strict=True) for part in range(count)]
    ids = [name for part in names for name in part]
    for memory in memories(scorer):
        memory.clear()
        memory.expect(len(ids))
    owned, done = [], 0
    for clip, count in zip(clips, parts, strict=True):
        start = done
        for part in range(count):
            with clip.seen(scorer, part) as views:
                remember(scorer, [views], len(ids))
            done += len(views)
            scorer.report("reading", done, len(ids))
        owned.append(range(start, done))
    for memory in memories(scorer):
        memory.ids = list(ids)
    return owned


def _without(scorer: Scorer, owned: range) -> Scorer:
    """The scorer as if these frames had never been there."""
    other = scorer.copied()
    for memory in memories(other):
        keep(memory, [number for number in range(len(memory.ids)) if number not in owned])
        memory.condense()
    return other


def _largest(scorer: Scorer, clip: Clip, timing: Timing, block: float) -> tuple[list[float], list[float]]:
    """(largest smoothed scores, largest map values) of the clip's blocks."""
    found: list[Scores] = [None] * len(clip.times)  # type: ignore[list-item]
    for part in range(clip.parts):
        with clip.seen(scorer, part) as views:
            found[part :: clip.parts] = scores_of(scorer, views)
        scorer.report("comparing with the other clips", part + 1, clip.parts)
    smooth = Smoother(timing.smooth)
    scores: dict[int, list[float]] = defaultdict(list)
    peaks: dict[int, list[float]] = defaultdict(list)
    for time, said in zip(clip.times, found, strict=True):
        own = int(time // block)
        scores[own].append(smooth(time, said.score.item()))
        if said.map is not None:
            peaks[own].append(said.peaks().item())
    return [max(values) for values in scores.values()], [max(values) for values in peaks.values()]
