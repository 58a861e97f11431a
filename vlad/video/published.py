"""What LAVAD, VERA and Holmes-VAU do with scores over time, to repeat their numbers from answers of your own.

They average over the whole clip, and VERA guesses where in it something happens: for evaluation, not for a camera.
"""

import re
from collections.abc import Sequence

import numpy as np
from scipy.special import softmax

STEP = 16  # frames between two segments of LAVAD and VERA
PICKED = 12  # frames that Holmes-VAU shows its model


def lavad_answer(text: str) -> float:
    """The number in square brackets, or -1 (LAVAD, CVPR 2024)."""
    found = re.search(r"\[(\d+(?:\.\d+)?)\]", text)
    return float(found[1]) if found else -1.0


def lavad_filled(scores: np.ndarray) -> np.ndarray:
    """Missing scores, -1, between their neighbours; the ends are held.

    Raises:
        ValueError: all are missing.
    """
    known = np.flatnonzero(scores != -1)
    if not len(known):
        raise ValueError("no answer holds a score; there is nothing to fill from")
    return np.interp(np.arange(len(scores)), known, scores[known])


def lavad_refined(scores: np.ndarray, neighbours: np.ndarray, cosines: np.ndarray, length: int) -> np.ndarray:
    """[length] scores of frames: each clip's mean over its nearest summaries, weighted by a softmax of their cosines.

    Args:
        scores: [clips] filled.
        neighbours, cosines: [clips, 10] indices of summaries, and how near they are to the clip's own embedding.
    """
    return np.repeat((softmax(cosines, axis=1) * scores[neighbours]).sum(1), STEP)[:length]


def lavad_frames(length: int, count: int = 10) -> list[int]:
    """Which frames of a clip are looked at: all of a short one, else `count` evenly, cut to whole numbers."""
    return list(range(length)) if length <= count else np.linspace(0, length - 1, count).astype(int).tolist()


def interval_labels(length: int, intervals: Sequence[tuple[int, int]], label: int = 1) -> np.ndarray:
    """[length] the label within (first, last) frames, both inclusive, 0 elsewhere."""
    labels = np.zeros(length, dtype=np.int64)
    for first, last in intervals:
        labels[first : last + 1] = label
    return labels


def holmes_frames(scores: np.ndarray) -> np.ndarray:
    """[12] indices of frames, closer where scores are high (Holmes-VAU, CVPR 2025)."""
    count = len(scores)
    if count <= PICKED or scores.sum() < 1:
        return np.rint(np.linspace(0, count - 1, PICKED)).astype(int)
    rising = np.concatenate([[0.0], np.cumsum(scores + 0.1)])
    at = np.interp(np.linspace(1, np.round(rising[-1]), PICKED), rising, np.arange(count + 1))
    return np.clip(at.astype(int), 0, count - 1)


def vera_segments(features: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """[n] each segment's flag, averaged over the 15 % nearest ones by features [n, D] (VERA, CVPR 2025)."""
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = units @ units.T
    near = np.argsort(cosines, axis=1)[:, -int(0.15 * len(flags)) or None :]
    weights = softmax(10 * np.take_along_axis(cosines, near, axis=1), axis=1)
    return (weights * flags[near]).sum(1)


def vera_kernel() -> np.ndarray:
    """[15] weights of the neighbours in time; they lean by one segment, as published."""
    weights = np.exp(-(np.linspace(-8, 7, 15) ** 2) / 200)
    return weights / weights.sum()


def vera_smoothed(segments: np.ndarray) -> np.ndarray:
    """[n] smoothed over time; nothing is beyond the ends."""
    return np.convolve(segments, vera_kernel(), mode="same")


def vera_frames(smoothed: np.ndarray, length: int) -> np.ndarray:
    """[length] scores of frames: rounded to tenths, times a guess that things happen in the middle of a clip."""
    middle = length // 2
    position = np.exp(-((np.arange(length) - middle) ** 2) / (2 * middle**2))
    return np.repeat(np.round(smoothed, 1), STEP)[:length] * position
