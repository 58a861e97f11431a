"""From scores to a decision: thresholds that promise a false-alarm rate, and honest silence where none can be promised.

A false alarm is a normal picture called anomalous; a picture is called anomalous when its score is at or above the
threshold. Calibration scores are those of normal pictures that the detector did not learn from; for a few shots each
normal is scored against the others alone (leave-one-out), which errs on the side of fewer alarms. Nothing is ever
derived from the picture being scored.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import special

from vlad.images.looks import is_look

LEVEL = 0.05  # false-alarm rate promised by default once there are normals enough
FEWEST = 5  # normals below which no threshold is set by default


LARGEST = 1e30  # of a threshold set by hand or read from a file


def checked_threshold(what: str, value: Any) -> float | None:
    """A threshold that can be compared with, or None for no verdict; TypeError or ValueError at any other."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{what} is {value!r:.80}; expected a number, or None for no verdict")
    if not -LARGEST <= value <= LARGEST:  # NaN is neither
        raise ValueError(f"{what} is not finite or beyond {LARGEST:g}; expected a number such as 0.5, or None")
    return float(value)


@dataclass(frozen=True)
class Calibration:
    """A threshold and what it rests on.

    Attributes:
        threshold: scores from here on are anomalous; None: no verdict.
        method: which rule gave it: one of "conformal", "largest", "largest and t bound", "gap", "mixture", "f1",
            "halves" (of one normal: a scale for drawing, never a threshold), "none".
        n: scores it rests on.
        rate: the false-alarm rate that it promises, or None.
        scores: the calibration scores, ascending; of normals (or of the halves of one) only, else empty.
        unsure: (low, high), scores from low up to below high are left to a person; None: every score is called.
        note: what a user should know of it, one sentence.
        looks: `vlad.images.looks.look_of` of normals, with which a run of pictures is compared.
    """

    threshold: float | None
    method: str
    n: int
    rate: float | None = None
    scores: tuple[float, ...] = ()
    unsure: tuple[float, float] | None = None
    note: str = ""
    looks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Calibration":
        """What `to_dict` gave; ValueError where a value is of the wrong kind, not finite, or at odds with others."""
        try:
            scores = tuple(float(score) for score in values["scores"])
            unsure = values["unsure"] and (float(values["unsure"][0]), float(values["unsure"][1]))
            seen = tuple(values.get("looks", ()))
            if not all(map(is_look, seen)):
                raise ValueError("what it says of how the pictures look is of the wrong kind")
            made = cls(**{**values, "scores": scores, "unsure": unsure or None, "looks": seen})
            for value in (*scores, *(made.unsure or ()), made.threshold, made.rate, made.n):
                checked_threshold("a value", value)
            if problem := made.problem():
                raise ValueError(problem)
        except (KeyError, TypeError, IndexError, OverflowError, ValueError) as error:
            raise ValueError(f"the calibration cannot be read ({error})") from error
        return made

    def problem(self) -> str:
        """What no rule of ours would have made; empty when nothing."""
        if list(self.scores) != sorted(self.scores):
            return "its scores are not in order"
        if not isinstance(self.method, str) or not isinstance(self.note, str) or not isinstance(self.n, int):
            return "a value is of the wrong kind"
        if self.rate is not None and not 0 < self.rate < 1:
            return "its rate is not between 0 and 1"
        reach = (above(self.scores[-1]), self.threshold) if self.scores else None
        if self.unsure is not None and (self.unsure != reach or self.unsure[0] > self.unsure[1]):
            return "the scores left to a person are not those between its largest score and its threshold"
        return ""


def p_value(score: float, normals: Sequence[float]) -> float | None:
    """Conformal p-value (1 + normals at or above the score) / (n + 1); None without calibration scores.

    For a normal picture P(p <= a) <= a whatever the law of the scores, if it and the normals are exchangeable.
    """
    above = sum(normal >= score for normal in normals)
    return (1 + above) / (len(normals) + 1) if len(normals) else None


def normals_needed(rate: float) -> int:
    """How many calibration scores can promise this false-alarm rate: the fewest n with 1 / (n + 1) <= rate.

    Never below 2: one normal cannot be scored against the others.
    """
    return max(2, math.ceil(1 / rate - 1e-9) - 1)


def ladder(scores: Sequence[float], rate: float | None = None, review: bool = False) -> Calibration:
    """The threshold from the leave-one-out scores of a few normals; what is done depends on how many there are.

    - With `rate`: the conformal threshold of that rate.
    - 19 and more: the conformal threshold of 5 %.
    - 5 to 18: just above the largest normal score; promises 1 / (n + 1). With `review` the scores from there up to the
      t bound on log scores, where that is higher, are "unsure": for a person to look at.
    - fewer: none, and a note that says how many it would take.

    Raises:
        ValueError: a rate outside (0, 1), or below 1 / (n + 1), the lowest that n scores can promise.
    """
    ordered, n = _ordered(scores), len(scores)
    if rate is not None:
        return conformal(scores, rate)
    if n < FEWEST:
        scale = f"; compared with the others they score up to {ordered[-1]:.4g}" if n else ""
        return Calibration(None, "none", n, scores=ordered, note=_too_few(n) + scale)
    if n >= normals_needed(LEVEL):
        return conformal(scores, LEVEL)
    beyond, bound = above(ordered[-1]), t_bound(ordered)
    note = (
        f"of {n + 1} good parts about one may be called bad; "
        f"give {normals_needed(LEVEL)} good pictures for 1 in {round(1 / LEVEL)}"
    )
    if review and bound > beyond:
        note += f"; scores from {beyond:.4g} up to {bound:.4g} are left to a person"
        return Calibration(bound, "largest and t bound", n, 1 / (n + 1), ordered, (beyond, bound), note)
    return Calibration(beyond, "largest", n, 1 / (n + 1), ordered, note=note)


def from_halves(scores: Sequence[float], peaks: Sequence[float]) -> tuple[Calibration, Calibration | None]:
    """What one normal picture can say, whose halves were scored against each other: a scale, and no threshold.

    Args:
        scores: of the halves.
        peaks: largest values of their maps; empty for methods without maps.

    Returns:
        For the score a note alone. For the map the peaks too, above which regions are drawn. With `tiny` and
        `patch_memory` on seven sets (tests/test_normals.py), 0 to 47 % of good pictures then have a region; turning the
        picture by quarters instead of halving it would let 25 to 89 % have one.
    """
    scale = f"; compared with its other half, each half of it scores up to {max(scores):.4g}: a scale and no promise"
    made = Calibration(None, "none", 1, note=_too_few(1) + scale)
    if not peaks:
        return made, None
    return made, Calibration(None, "halves", 1, scores=_ordered(peaks), note=made.note)


def _too_few(n: int) -> str:
    return (
        f"{n} normal picture{' is' if n == 1 else 's are'} too few for a threshold: give {FEWEST} or more normal "
        f"pictures, or {normals_needed(LEVEL)} for a false-alarm rate of {LEVEL:.0%}"
    )


def conformal(scores: Sequence[float], rate: float = LEVEL) -> Calibration:
    """The threshold at and above which the conformal p-value is at most `rate`; the promise holds for any law.

    It lies just above the ceil((n + 1)(1 - rate))-th smallest score: a score equal to it is no alarm.

    Assumes that normal pictures to come and the calibration pictures are exchangeable. The rate is kept on average
    over calibration sets; `rate_interval` says how far a single set may be off.

    Raises:
        ValueError: a rate outside (0, 1), or below 1 / (n + 1).
    """
    ordered, n = _ordered(scores), len(scores)
    if not 0 < rate < 1:
        raise ValueError(f"the false-alarm rate is {rate}; expected a number between 0 and 1, such as 0.05")
    if n < normals_needed(rate):
        raise ValueError(
            f"{n} calibration scores cannot promise a false-alarm rate of {rate:g}, only {1 / (n + 1):.3g} and above; "
            f"give {normals_needed(rate)} normal pictures or more, or allow a higher rate"
        )
    low, high = rate_interval(n, rate)
    note = (
        f"of {round(1 / rate)} good parts about one may be called bad (a false-alarm rate of {rate:g} from {n} good "
        f"pictures; with this one set of them the true rate lies in {low:.3f} to {high:.3f} with 90 % probability)"
    )
    return Calibration(above(ordered[_rank(n, rate) - 1]), "conformal", n, rate, ordered, note=note)


def rate_interval(n: int, rate: float, probability: float = 0.9) -> tuple[float, float]:
    """Where the true false-alarm rate of one set of n calibration scores lies: quantiles of Beta(n + 1 - r, r)."""
    rank = _rank(n, rate)
    low, high = special.betaincinv(n + 1 - rank, rank, [(1 - probability) / 2, (1 + probability) / 2])
    return float(low), float(high)


def t_bound(scores: Sequence[float], rate: float = LEVEL) -> float:
    """mean + t * sd * sqrt(1 + 1/n): what the next score exceeds with probability `rate`, if scores are normal.

    Taken on the logarithms where all scores are above 0, which suits distances better. With other laws the rate is up
    to 1.6 times the nominal one (methods tried: lognormal, Gumbel). ValueError below 2 scores.
    """
    ordered, n = np.array(_ordered(scores)), len(scores)
    if n < 2:
        raise ValueError(f"a t bound needs 2 scores or more; got {n}")
    logs = ordered[0] > 0
    x = np.log(ordered) if logs else ordered
    bound = float(x.mean() + special.stdtrit(n - 1, 1 - rate) * x.std(ddof=1) * math.sqrt(1 + 1 / n))
    return min(math.exp(min(bound, 700.0)), 1e300) if logs else bound


def odd_one(scores: Sequence[float], level: float = 0.01) -> int | None:
    """Which score lies so far above the others that one law hardly made them all; None where none does.

    The one-sided test of Grubbs (1969) on the logarithms where all scores are above 0; it takes 5 scores to say so.
    """
    n = len(scores)
    if n < FEWEST:
        return None
    x = np.log(scores) if min(scores) > 0 else np.asarray(scores, dtype=float)
    spread = x.std(ddof=1)
    t = special.stdtrit(n - 2, 1 - level / n)
    most = (n - 1) / math.sqrt(n) * math.sqrt(t * t / (n - 2 + t * t))
    return int(x.argmax()) if spread > 0 and (x.max() - x.mean()) / spread > most else None


def from_labelled(scores: Sequence[float], labels: Sequence[int]) -> Calibration:
    """The threshold of the best F1 on scores with labels (0 normal, 1 anomalous); an oracle's on these very scores.

    Raises:
        ValueError: one of the two states is missing.
    """
    from vlad.metrics import f1_max

    if len(scores) != len(labels) or {int(label) for label in labels} != {0, 1}:
        raise ValueError(
            f"{len(scores)} scores and {len(labels)} labels; expected as many, with both 0 and 1 among them"
        )
    best, threshold = f1_max(np.asarray(scores, dtype=float), np.asarray(labels))
    normals = [score for score, label in zip(scores, labels, strict=True) if not label]
    these = f"{len(normals)} normal and {len(scores) - len(normals)} anomalous pictures"
    note = f"the best F1, {best:.3f}, on these very {these}; promises no rate"
    return Calibration(float(threshold), "f1", len(scores), scores=_ordered(normals), note=note)


def _ordered(scores: Sequence[float]) -> tuple[float, ...]:
    values = sorted(float(score) for score in scores)
    if not all(math.isfinite(value) for value in values):
        raise ValueError("a calibration score is not finite; every score must be a number")
    return tuple(values)


def _rank(n: int, rate: float) -> int:
    return math.ceil((n + 1) * (1 - rate) - 1e-9)  # 20 * 0.95 must be 19, whatever floats say


def above(score: float) -> float:
    return math.nextafter(score, math.inf)
