"""Whether a whole run of pictures is unlike the good ones: the camera moved, the light changed, another part came.

One picture says nothing of that, and some defects in a run are no reason: a quarter of it may be defective.

It sees scores alone. A change that leaves them as they are, as somewhat darker light often does, or raises a few of
them only, is not noticed, and with few good pictures a moderate one is not either: no notice proves nothing.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from vlad.thresholds import Calibration

FEWEST = 30  # pictures of a run
LEVEL = 0.01


def notice(scores: Sequence[float], made: Calibration | None) -> str | None:
    """One sentence where the run is unlike the good pictures as a whole, else None.

    The control median test (Mathisen 1943, Gastwirth 1968): how many of the run score below the median of the good
    pictures' own leave-one-out scores. If three quarters of the run are good pictures like those, the number among them
    follows a beta-binomial law; the notice comes where so few have a probability below LEVEL.
    """
    if made is None or len(made.scores) < 5 or len(scores) < FEWEST:
        return None
    rank = (len(made.scores) + 1) // 2
    below = int(np.sum(np.asarray(scores) < made.scores[rank - 1]))
    if _at_most(below, 3 * len(scores) // 4, rank, len(made.scores) + 1 - rank) >= LEVEL:
        return None
    return (
        f"these {len(scores)} pictures are unlike the good ones as a whole: only {below} score as low as the better "
        "half of those. Has the camera moved, the light changed, or is it another part? Then fit again"
    )


def _at_most(k: int, n: int, a: int, b: int) -> float:
    """P(X <= k) of the beta-binomial law of n draws."""
    i = np.arange(min(k, n) + 1)
    logs = special.gammaln(n + 1) - special.gammaln(i + 1) - special.gammaln(n - i + 1)
    logs = logs + special.betaln(i + a, n - i + b) - special.betaln(a, b)
    return min(1.0, math.fsum(np.exp(logs)))
