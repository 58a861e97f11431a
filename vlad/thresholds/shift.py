"""Whether a whole run of pictures is unlike the good ones: the camera moved, the light changed, another part came.

One picture says nothing of that, and some defects in a run are no reason: up to a third of it may be defective. Three
things are compared: the light of the pictures, where edges lie in them (`vlad.images.looks`), and their scores. No
notice proves nothing: where good pictures lie and shine in many ways themselves, a moved camera changes little.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from vlad.images.looks import GREY, LIGHT, light_and_edges
from vlad.thresholds import Calibration

FEWEST = 30  # pictures of a run
LEVEL = 0.005  # of all tests together, that good pictures and a run of good pictures have a notice
ODD = 1 / 3  # of a run, at most, is not compared: those least like the good pictures
DRAWS = 2000  # permutations
MOST = 300  # pictures of a run, and of the good ones, that are compared; of more every so many-th
LEAST = (4, 2)  # levels of light, and 32nds of how much edge there is, below which nobody asks


def notice(scores: Sequence[float], seen: Sequence[str], made: Calibration | None) -> str | None:
    """One sentence where the run is unlike the good pictures as a whole, else None.

    Args:
        scores: of the run.
        seen: `look_of` each of its pictures; empty where that is not known.
        made: what the detector's threshold rests on.
    """
    if made is None or len(made.scores) < 5 or len(scores) < FEWEST:
        return None
    found = [_light_and_edges(made.looks, seen)] if made.looks and len(seen) >= FEWEST else []
    if reasons := "; ".join(filter(None, [*found, _scores(scores, made)])):
        return (
            f"these {len(scores)} pictures are unlike the good ones as a whole: {reasons}. Has the camera moved, the "
            "light changed, or is it another part? Then fit again"
        )
    return None


def _light_and_edges(normals: Sequence[str], run: Sequence[str]) -> str:
    """A clause where light or edges differ, else empty."""
    sides = [light_and_edges(side[:: -(-len(side) // MOST)]) for side in (normals, run)]
    words = []
    for good, other, least in zip(*sides, LEAST, strict=True):
        kept = other[_like(_distances(np.concatenate([good, other])), len(good))]
        before, now = good.mean(0), kept.mean(0)
        if np.abs(now - before).max() >= least and energy_test(good, other) < LEVEL / 3:
            light = f"their light is another (mean level {now[GREY]:.0f}, that of the good ones {before[GREY]:.0f})"
            words.append(light if len(now) == LIGHT else "what they show lies elsewhere or is turned")
    return "; ".join(words)


def energy_test(good: np.ndarray, run: np.ndarray, seed: int = 0) -> float:
    """p-value of what good pictures [n, C] and those of a run [m, C] are alike, but for a third of the run.

    The energy distance of both, once the third of the run that is farthest from the good ones is left out, against that
    of random exchanges between them, to which the same is done: whatever the law, it is below a level no more often
    than that where all are good. Defects in the run make it larger.

    Source: G. J. Szekely and M. L. Rizzo, "Testing for equal distributions in high dimension" (2004).
    """
    distances, n = _distances(np.concatenate([good, run])), len(good)
    given, order = _energy(distances, n), np.arange(len(distances))
    random, beyond = np.random.default_rng(seed), 0
    for draw in range(DRAWS):
        random.shuffle(order)
        beyond += _energy(distances[np.ix_(order, order)], n) >= given - 1e-12
        if beyond > LEVEL * DRAWS:  # it can no longer be small
            return (1 + beyond) / (2 + draw)
    return (1 + beyond) / (1 + DRAWS)


def _distances(rows: np.ndarray) -> np.ndarray:
    """[N, N] Euclidean, of coordinates over how widely two thirds of the rows are spread, one level at least."""
    low, high = np.percentile(rows, [16, 84], axis=0)
    x = rows / np.maximum((high - low) / 2, 1)
    squares = np.square(x).sum(1)
    return np.sqrt(np.maximum(squares[:, None] + squares - 2 * x @ x.T, 0))


def _like(distances: np.ndarray, n: int) -> np.ndarray:
    """Which of the rows from n on stay once those least like the first n are left out."""
    return np.argsort(distances[:n, n:].mean(0), kind="stable")[: math.ceil((len(distances) - n) * (1 - ODD))]


def _energy(distances: np.ndarray, n: int) -> float:
    """Of the first n rows and those of the others that are like them."""
    kept = n + _like(distances, n)
    m = len(kept)
    within = distances[:n, :n].sum() / (n * (n - 1)) + distances[np.ix_(kept, kept)].sum() / (m * (m - 1))
    return float(2 * distances[:n, kept].mean() - within)


def _scores(scores: Sequence[float], made: Calibration) -> str:
    """A clause where the scores are higher as a whole, else empty.

    The control median test (Mathisen 1943, Gastwirth 1968): how many of the run score below the median of the good
    pictures' own leave-one-out scores. If two thirds of the run are good pictures like those, the number among them
    follows a beta-binomial law.
    """
    rank = (len(made.scores) + 1) // 2
    below = int(np.sum(np.asarray(scores) < made.scores[rank - 1]))
    if _at_most(below, math.ceil(len(scores) * (1 - ODD)), rank, len(made.scores) + 1 - rank) >= LEVEL / 3:
        return ""
    return f"only {below} score as low as the better half of those"


def _at_most(k: int, n: int, a: int, b: int) -> float:
    """P(X <= k) of the beta-binomial law of n draws."""
    i = np.arange(min(k, n) + 1)
    logs = special.gammaln(n + 1) - special.gammaln(i + 1) - special.gammaln(n - i + 1)
    logs = logs + special.betaln(i + a, n - i + b) - special.betaln(a, b)
    return min(1.0, math.fsum(np.exp(logs)))
