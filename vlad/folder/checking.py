"""How good a detector is at its own threshold, on pictures that are known to be good and bad."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scipy import special

from vlad.folder import list_pictures
from vlad.images import ImageError
from vlad.prediction import Prediction

if TYPE_CHECKING:
    from vlad.detector import Detector

CERTAINTY = 0.95  # of the intervals


@dataclass(frozen=True)
class Share:
    """A part of pictures, with the interval in which the true share lies (Clopper and Pearson, 1934)."""

    count: int
    of: int
    value: float  # NaN of none
    low: float
    high: float

    @classmethod
    def made(cls, count: int, of: int) -> "Share":
        """`count` of `of` pictures."""
        if not of:
            return cls(0, 0, math.nan, 0.0, 1.0)
        tail = (1 - CERTAINTY) / 2
        low = float(special.betaincinv(count, of - count + 1, tail)) if count else 0.0
        high = float(special.betaincinv(count + 1, of - count, 1 - tail)) if count < of else 1.0
        return cls(count, of, count / of, low, high)

    def __str__(self) -> str:
        return f"{self.count} of {self.of}" + (f" ({self.low:.0%} to {self.high:.0%})" if self.of else "")


@dataclass(frozen=True)
class Check:
    """What a detector does at its threshold. "unsure" pictures are neither found nor false alarms.

    Attributes:
        found, missed, unsure_bad: of the bad pictures.
        false_alarms, unsure_good: of the good ones.
        precision: found of all that is called anomalous.
        nothing_missed: the highest threshold at which no bad picture is missed.
        no_false_alarm: the lowest threshold at which no good picture is called bad.
        wrong: (source, "missed" or "false alarm", score), the worst first.
        failed: (source, reason) of pictures that cannot be read.
    """

    threshold: float
    found: Share
    missed: Share
    unsure_bad: Share
    false_alarms: Share
    unsure_good: Share
    precision: Share
    nothing_missed: float
    no_false_alarm: float
    wrong: tuple[tuple[str, str, float], ...]
    failed: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = asdict(self)
        for key, value in plain.items():
            if isinstance(value, dict) and math.isnan(value["value"]):
                plain[key] = {**value, "value": None}
        return plain


def check(detector: "Detector", good: Sequence[str | Path], bad: Sequence[str | Path], batch_size: int = 8) -> Check:
    """Scores pictures known to be good and bad and compares what is said with what is so.

    Raises:
        ValueError: the detector has no threshold, or scores a set of pictures against each other.
        FileNotFoundError: no picture there.
    """
    if detector.transductive:
        raise ValueError(
            f"{detector.method} has no threshold of its own: it scores a set of pictures against each other"
        )
    if detector.threshold is None:
        raise ValueError("the detector has no threshold to check; fit it on 5 good pictures or more, or give one")
    failed: list[tuple[str, str]] = []
    normal = _scored(detector, good, batch_size, failed)
    odd = _scored(detector, bad, batch_size, failed)
    if not normal or not odd:
        raise ValueError("not one picture of both kinds could be read; check the folders")
    said = {kind: [p.verdict for _, p in of] for kind, of in (("good", normal), ("bad", odd))}
    found, alarms = said["bad"].count("anomalous"), said["good"].count("anomalous")
    missed = [(source, "missed", p.score) for source, p in odd if p.verdict == "normal"]
    wrong = [(source, "false alarm", p.score) for source, p in normal if p.verdict == "anomalous"]
    return Check(
        threshold=detector.threshold,
        found=Share.made(found, len(odd)),
        missed=Share.made(len(missed), len(odd)),
        unsure_bad=Share.made(said["bad"].count("unsure"), len(odd)),
        false_alarms=Share.made(alarms, len(normal)),
        unsure_good=Share.made(said["good"].count("unsure"), len(normal)),
        precision=Share.made(found, found + alarms),
        nothing_missed=min(p.score for _, p in odd),
        no_false_alarm=math.nextafter(max(p.score for _, p in normal), math.inf),
        wrong=(*sorted(missed, key=lambda one: one[2]), *sorted(wrong, key=lambda one: -one[2])),
        failed=tuple(failed),
    )


def _scored(
    detector: "Detector", inputs: Sequence[str | Path], batch_size: int, failed: list[tuple[str, str]]
) -> list[tuple[str, Prediction]]:
    pictures = list_pictures(inputs)
    results = detector.stream([one.path for one in pictures], batch_size=batch_size, on_error="yield")
    found = []
    for picture, said in zip(pictures, results, strict=True):
        if isinstance(said, ImageError):
            failed.append((picture.source, str(said)))
        else:
            found.append((picture.source, said))
    return found
