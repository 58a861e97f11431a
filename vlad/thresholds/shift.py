"""Whether a whole run of pictures is unlike the good ones: the camera moved, the light changed, another part came.

One picture says nothing of that, and some defects in a run are no reason: up to a third of it may be defective. Three
things are compared: the light of the pictures, where what they show lies and is turned to (`vlad.images.looks`), and
their scores. No notice proves nothing: a moved camera changes little where good pictures lie anywhere themselves or
show a surface without a beginning.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from vlad.images.looks import GREY, PARTS, parts_of
from vlad.thresholds import Calibration

FEWEST = 30  # pictures of a run
LEVEL = 0.005  # of all tests together, that good pictures and a run of good pictures have a notice
ODD = 1 / 3  # of a run, at most, is not compared: those least like the good pictures
DRAWS = 2000  # permutations
MOST = 300  # pictures of a run, and of the good ones, that are compared; of more every so many-th
LEAST = (4, 2, 4, 2)  # units of each part of a look, below which nobody asks
TESTS = len(PARTS) + 1  # which share the level; one is about the scores


def notice(scores: Sequence[float], seen: Sequence[str], made: Calibration | None) -> str | None:
    """One sentence where the run is unlike the good pictures as a whole, else None.

    Args:
        scores: of the run.
        seen: `look_of` each of its pictures; empty where that is not known.
        made: what the detector's threshold rests on.
    """
    if made is None or len(made.scores) < 5 or len(scores) < FEWEST:
        return None
    found = _looks(made.looks, seen) if made.looks and len(seen) >= FEWEST else []
    if reasons := "; ".join([*found, *_scores(scores, made)]):
        return (
            f"these {len(scores)} pictures are unlike the good ones as a whole: {reasons}. Has the camera moved, the "
            "light changed, or is it another part? Then fit again"
        )
    return None


def _looks(normals: Sequence[str], run: Sequence[str]) -> list[str]:
    """A clause for light, and one for all else, where they differ."""
    sides = [parts_of(side[:: -(-len(side) // MOST)]) for side in (normals, run)]
    words, moved = [], "what they show lies elsewhere or is turned"
    for part, (good, other, least) in enumerate(zip(*sides, LEAST, strict=False)):  # looks of older files have fewer
        before, now = good.mean(0), other[_alike(good, other)].mean(0)
        if np.abs(now - before).max() >= least and energy_test(good, other) < LEVEL / TESTS:
            light = f"their light is another (mean level {now[GREY]:.0f}, that of the good ones {before[GREY]:.0f})"
            words.append(moved if part else light)
    return list(dict.fromkeys(words))  # what moved is said once


def energy_test(good: np.ndarray, run: np.ndarray, seed: int = 0) -> float:
    """p-value of what good pictures [n, C] and those of a run [m, C] are alike, but for a third of the run.

    The energy distance of both, once the third of the run that is farthest from the good ones is left out, against that
    of random exchanges between them, to which the same is done: whatever the law, it is below a level no more often
    than that where all are good. Defects in the run make it larger.

    Source: G. J. Szekely and M. L. Rizzo, "Testing for equal distributions in high dimension" (2004).
    """
    given = np.tile(np.arange(len(good) + len(run)) < len(good), (DRAWS, 1))
    drawn = np.random.default_rng(seed).permuted(given, axis=1)
    energies = _energies(_distances(good, run), np.concatenate([given[:1], drawn]).astype(float))
    return float(np.mean(energies >= energies[0] - 1e-9))  # its own is among them


def _distances(good: np.ndarray, run: np.ndarray) -> np.ndarray:
    """[N, N] Euclidean, of coordinates over how widely two thirds of the rows are spread, one unit at least."""
    rows = np.concatenate([good, run])
    low, high = np.percentile(rows, [16, 84], axis=0)
    x = rows / np.maximum((high - low) / 2, 1)
    squares = np.square(x).sum(1)
    return np.sqrt(np.maximum(squares[:, None] + squares - 2 * x @ x.T, 0))


def _alike(good: np.ndarray, run: np.ndarray) -> np.ndarray:
    """Which rows of a run [m, C] are compared with the good ones [n, C]."""
    n = len(good)
    return _nearest(_distances(good, run)[None, :n, n:].sum(1))[0]


def _nearest(sums: np.ndarray) -> np.ndarray:
    """[P, k] places in rows [P, m] of sums of distances from good ones, without the third that is farthest."""
    return np.argsort(sums, axis=1, kind="stable")[:, : math.ceil(sums.shape[1] * (1 - ODD))]


def _energies(distances: np.ndarray, good: np.ndarray) -> np.ndarray:
    """[P] for each row of good [P, N], which is 1 for n rows of the distances [N, N] and 0 for the others."""
    n, sums = int(good[0].sum()), good @ distances  # [P, N]
    others = np.argsort(good, axis=1, kind="stable")[:, : good.shape[1] - n]
    nearest = np.take_along_axis(others, _nearest(np.take_along_axis(sums, others, 1)), 1)  # [P, m]
    kept = np.zeros_like(good)
    np.put_along_axis(kept, nearest, 1, axis=1)
    m = nearest.shape[1]
    within = (good * sums).sum(1) / (n * (n - 1)) + (kept * (kept @ distances)).sum(1) / (m * (m - 1))
    return 2 * (kept * sums).sum(1) / (n * m) - within


def _scores(scores: Sequence[float], made: Calibration) -> list[str]:
    """A clause where the scores are higher as a whole, else none.

    The control median test (Mathisen 1943, Gastwirth 1968): how many of the run score below the median of the good
    pictures' own leave-one-out scores. If two thirds of the run are good pictures like those, the number among them
    follows a beta-binomial law.
    """
    rank = (len(made.scores) + 1) // 2
    below = int(np.sum(np.asarray(scores) < made.scores[rank - 1]))
    if _at_most(below, math.ceil(len(scores) * (1 - ODD)), rank, len(made.scores) + 1 - rank) >= LEVEL / TESTS:
        return []
    return [f"only {below} score as low as the better half of those"]


def _at_most(k: int, n: int, a: int, b: int) -> float:
    """P(X <= k) of the beta-binomial law of n draws."""
    i = np.arange(min(k, n) + 1)
    logs = special.gammaln(n + 1) - special.gammaln(i + 1) - special.gammaln(n - i + 1)
    logs = logs + special.betaln(i + a, n - i + b) - special.betaln(a, b)
    return min(1.0, math.fsum(np.exp(logs)))
