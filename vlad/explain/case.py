"""What is to be explained: a picture with its marked regions, and all that is known of it without asking anybody."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vlad.images.places import Box
from vlad.prediction import Verdict as Said

RuleKind = Literal["normal", "abnormal", "ignore", "critical"]
Verdict = Literal["normal", "anomalous", "unsure"]  # of a reasoner


@dataclass(frozen=True)
class Rule:
    """One rule in plain words, as `vlad.explain.rules` reads it."""

    id: str  # n1, a1, i1, c1: by kind and order
    kind: RuleKind
    text: str
    region: str | None = None  # one of `vlad.images.places.PLACES`: it holds there alone
    count: tuple[str, int] | None = None  # ("screw", 4): so many of them must be there


@dataclass(frozen=True, eq=False)
class MarkedRegion:
    """A place that the map marks, with what was measured of it."""

    id: int  # from 1, highest peak first
    box: Box  # in pixels of the original picture
    mask: np.ndarray  # bool [h, w], covers the whole picture; its own size, or a smaller one of the same shape
    area_share: float  # of the picture, in [0, 1]
    peak: float  # largest map value inside
    location: str  # one of `PLACES`, and ", spanning the width" where the box covers over 2/3 of a side
    size_words: str  # tiny, small, medium, large or extensive
    facts: str  # measured, in words, without a full stop at the end: "covers 2.1 % of the picture; line-like"


@dataclass(frozen=True, eq=False)
class Case:
    """Everything that a tier may look at. No path and no file name: folders named after defects would give it away."""

    picture: np.ndarray  # uint8 [H, W, 3]
    name: str | None  # what it shows, in words
    regions: tuple[MarkedRegion, ...]
    references: tuple[np.ndarray, ...]  # uint8 [H, W, 3] of good objects, the most similar one first
    rules: tuple[Rule, ...]
    vocabulary: Mapping[str, Sequence[str]]  # defect type -> phrases with {} for the name
    question: str | None
    detector_verdict: Said
