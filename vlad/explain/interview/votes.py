"""Arithmetic of choices: from the answer to a closed question to a share, and from shares to a verdict."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vlad.explain.case import Verdict
from vlad.explain.reasoners.protocol import Answer

SURE_ANOMALOUS, SURE_NORMAL = 0.65, 0.35  # p from which and up to which there is a verdict


@dataclass(frozen=True)
class Vote:
    """An answered choice; `probs` is None where the reasoner gives no probabilities."""

    chosen: str
    probs: dict[str, float] | None = None

    @classmethod
    def of(cls, answer: Answer, options: Sequence[str]) -> "Vote | None":
        """The vote behind an answer; None for one that could not be used."""
        if answer.parsed is None:
            return None
        probs = answer.option_probs
        return cls(answer.parsed, None if probs is None else dict(zip(options, map(float, probs), strict=True)))

    def share(self, wanted: Iterable[str], against: Iterable[str]) -> float | None:
        """Probability of the wanted options against the others, in [0, 1]; all further options are left out.

        Without probabilities 1 or 0, and None where the chosen option is neither.
        """
        wanted, against = set(wanted), set(against)
        if self.probs is None:
            return 1.0 if self.chosen in wanted else 0.0 if self.chosen in against else None
        here = sum(p for option, p in self.probs.items() if option in wanted)
        there = sum(p for option, p in self.probs.items() if option in against)
        return here / (here + there) if here + there > 0 else None

    def likeliest(self, options: Sequence[str]) -> str:
        """Of these options the one with the most votes; the first where none has any."""
        if self.probs is None:
            return self.chosen if self.chosen in options else options[0]
        return max(options, key=lambda option: self.probs.get(option, 0.0) if self.probs else 0.0)

    def ranked(self, options: Sequence[str]) -> tuple[tuple[str, float | None], ...]:
        """These options, likeliest first, with their probabilities given that it is one of them."""
        if self.probs is None:
            return ((self.chosen, None),) if self.chosen in options else ()
        total = sum(self.probs.get(option, 0.0) for option in options) or 1.0
        shares = [(option, self.probs.get(option, 0.0) / total) for option in options]
        return tuple(sorted(shares, key=lambda pair: -pair[1]))


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are there; None without any."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def verdict(p: float | None) -> Verdict:
    """Unsure between the two thresholds, and without a probability."""
    if p is None or SURE_NORMAL < p < SURE_ANOMALOUS:
        return "unsure"
    return "anomalous" if p >= SURE_ANOMALOUS else "normal"
