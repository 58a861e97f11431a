"""AnomalyRuler's arithmetic (arXiv 2407.10299, ECCV 2024): from a description of each frame to a score over time.

For those who repeat its numbers from descriptions of their own. A keyword is found as a part of a word ("cart" in
"cartoons"), and the threshold is a mean over the whole video, both as published: it is no detector for a camera.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

KEYWORDS = (
    *("trolley", "cart", "luggage", "bicycle", "scooter", "vehicles", "vans", "accident", "running", "jumping"),
    *("riding", "skateboarding", "scooting", "lying", "falling", "bending", "fighting", "pushing", "loitering"),
    "climbing",
)
ALPHA, SPAN = 0.33, 10  # weight of the newest flag; frames of the final average
CONFIDENCE = {  # the first that is part of an answer counts, so "improbable" counts as "probable"
    **{"almost certain": 0.95, "certain": 1.0, "probable": 0.7, "probably not": 0.25, "highly unlikely": 0.05},
    **{"highly likely": 0.9, "very good chance": 0.8, "we believe": 0.75, "better than even": 0.6, "about even": 0.5},
    **{"we doubt": 0.2, "little chance": 0.1, "chances are slight": 0.1, "improbable": 0.1, "almost no chance": 0.02},
    **{"impossible": 0.0, "probably": 0.7, "unlikely": 0.2, "likely": 0.7},
}
UNSAID = 0.8


class Base(NamedTuple):
    """AnomalyRuler-base: [frames] each but the threshold."""

    ema: np.ndarray
    threshold: float
    smoothed: np.ndarray  # 0 or 1
    score: np.ndarray


def flags(descriptions: Sequence[str], keywords: Sequence[str] = KEYWORDS) -> np.ndarray:
    """[frames] 1 where a keyword is part of the frame's description."""
    return np.array([int(any(word in text for word in keywords)) for text in descriptions])


class Average:
    """The exponential average whose first values weigh no more than others: divided by the sum of its weights."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self.above = self.below = 0.0

    def __call__(self, value: float) -> float:
        """With the next value."""
        self.above = value + (1 - self.alpha) * self.above
        self.below = 1 + (1 - self.alpha) * self.below
        return self.above / self.below


def ema(values: Sequence[float] | np.ndarray, alpha: float) -> np.ndarray:
    """[frames] that average as the values come."""
    return np.array(list(map(Average(alpha), values)))


def majority(values: np.ndarray, threshold: float, window: int = 1, edge: int | None = None) -> np.ndarray:
    """[frames] 1 where more of the window's values are above the threshold than not; even windows are one longer.

    Within `edge` frames of an end (None: half a window) the published code takes older values alone, moved by half a
    window.
    """
    half = window // 2
    edge = half if edge is None else edge
    above = np.pad(np.asarray(values) > threshold, half, mode="edge")
    result = []
    for k in range(len(values)):
        inside = edge <= k < len(values) - edge
        seen = above[k : k + 2 * half + 1] if inside else above[max(0, k - half) : k + 1]
        result.append(int(2 * seen.sum() > len(seen)))
    return np.array(result)


def base(found: np.ndarray) -> Base:
    """Smooths flags, cuts them at their own mean, and smooths what is left with that mean as the weight."""
    smooth = ema(found, ALPHA)
    threshold = float(smooth.mean())
    kept = majority(smooth, threshold)
    return Base(smooth, threshold, kept, ema(kept, threshold or 1e-7))


def repaired(
    descriptions: Sequence[str], found: np.ndarray, smoothed: np.ndarray, keywords: Sequence[str] = KEYWORDS
) -> list[str]:
    """The descriptions as the smoothed flags would have them."""
    texts = []
    for k, text in enumerate(descriptions):
        if smoothed[k]:
            texts.append(_told(text, " ".join(descriptions[max(0, k - 1) : k + 2]), keywords))
        else:
            texts.append(_without(text, keywords) if found[k] else text)
    return texts


def _without(text: str, keywords: Sequence[str]) -> str:
    pieces = re.split(r"[,.]", text)
    return ". ".join(piece for piece in pieces if not any(word in piece for word in keywords))


def _told(text: str, around: str, keywords: Sequence[str]) -> str:
    """The first person does what the neighbours' most frequent keyword says."""
    counted = Counter(word for word in re.findall(r"\w+", around) if word in keywords)
    if not counted:
        return text
    word = counted.most_common(1)[0][0]
    does = word if word.endswith("ing") else f"riding a {word}"
    return re.sub(r"(the first person is)[^,]*", rf"\1 {does}", text)


def final(found: Sequence[float] | np.ndarray, span: int = SPAN) -> np.ndarray:
    """[frames] the score of the whole method: its 0 and 1, averaged over about `span` frames."""
    return ema(found, 2 / (span + 1))


def confidence(answer: str) -> float:
    """How sure an answer says it is, in [0, 1]."""
    return next((value for phrase, value in CONFIDENCE.items() if phrase in answer.lower()), UNSAID)
