"""Good clips as normals. Frames of one clip are alike, so a frame is never compared with its own clip.

A threshold from leave-one-out over the frames of one clip promises nothing: the same part stands in the next frame.
So the unit is a block of time longer than a part stays in view: each clip is scored by a memory of the other clips, and
the largest smoothed score of each block is one calibration score.
"""

import logging
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlad.thresholds import Calibration, ladder
from vlad.video.reading import Damage
from vlad.video.scoring import Timing
from vlad.video.smoothing import Smoother

if TYPE_CHECKING:
    from vlad.detector import Detector

logger = logging.getLogger(__name__)

BLOCK = 10.0  # seconds
SPARSE = Timing(every=1.0)


@dataclass
class Clip:
    """The frames of one good clip, small enough to be kept: as the scorer's reader would give them."""

    source: str
    times: list[float] = field(default_factory=list)
    pictures: list[np.ndarray] = field(default_factory=list)


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
        rate: the share of good blocks that may hold a false alarm; None takes what their number allows.

    Raises:
        ValueError, TypeError, vlad.ImageError: as `vlad.frames` and `Detector.fit`.
    """
    if block <= 0:
        raise ValueError(f"block is {block}; expected seconds, longer than one part stays in view")
    clips = [_read(str(source), timing) for source in sources]
    scores: list[float] = []
    peaks: list[float] = []
    for number, clip in enumerate(clips if len(clips) > 1 else ()):
        others = [picture for other in clips[:number] + clips[number + 1 :] for picture in other.pictures]
        of_clip = _largest(_fitted(detector.copy(), others), clip, timing, block)
        scores, peaks = scores + of_clip[0], peaks + of_clip[1]
    _fitted(detector, [picture for clip in clips for picture in clip.pictures])
    if len(clips) == 1:
        words = (
            "no threshold: frames of one clip are alike, so their scores promise nothing for another; give two good "
            "clips or more"
        )
        logger.warning(words)
        return detector.decide_by(Calibration(None, "none", 0, note=words), None)
    made = ladder(scores, rate)
    if made.threshold is None:
        logger.warning(f"no threshold: {len(scores)} blocks of {block:g} s are too few; give longer or more good clips")
    note = f"{len(scores)} blocks of {block:g} s of {len(clips)} clips, each compared with the other clips; {made.note}"
    return detector.decide_by(replace(made, note=note), ladder(peaks, rate) if peaks else None)


def _fitted(detector: "Detector", pictures: list[np.ndarray]) -> "Detector":
    """Learns from frames; what it says of a threshold from single frames does not count here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no threshold from")
        return detector.fit(pictures)


def _read(source: str, timing: Timing) -> Clip:
    clip, damage = Clip(source), Damage()
    for frame in timing.frames(source, damage):
        clip.times.append(frame.time)
        clip.pictures.append(frame.picture)
    for note in damage.notes:
        logger.warning(note)
    return clip


def _largest(detector: "Detector", clip: Clip, timing: Timing, block: float) -> tuple[list[float], list[float]]:
    """(largest smoothed scores, largest map values) of the clip's blocks."""
    smooth = Smoother(timing.smooth)
    scores: dict[int, list[float]] = defaultdict(list)
    peaks: dict[int, list[float]] = defaultdict(list)
    for time, prediction in zip(clip.times, detector.stream(clip.pictures), strict=True):
        own = int(time // block)
        scores[own].append(smooth(time, prediction.score))
        if prediction.map is not None:
            peaks[own].append(float(prediction.map.max()))
    return [max(values) for values in scores.values()], [max(values) for values in peaks.values()]
