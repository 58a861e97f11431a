"""A threshold for a pile of pictures of which nobody knows which are good, where its scores show one.

Scores of good pictures alone must not be cut: both rules here are tests that hold their level, and where neither is
sure the pile stays without a verdict.

- A gap: the upper group, at most half of the pile, lies GAP times the spread within both groups above the lower one, on
  the scores and on their logarithms, and the gap is RATIO times as wide as any other below it. The largest gap between
  ordered observations against its law without outliers goes back to Dixon (1953) and to the maximal spacings of Weiss
  (1960); the two numbers were found by drawing piles of normal, gamma, beta, lognormal, uniform and t laws of 10 to 200
  scores (tests/thresholds/test_unlabelled.py draws them again): at most 5 % are cut, of the t law with 2 degrees, which
  has no variance, up to 9 %.
- Two humps: the dip test of Hartigan and Hartigan (1985) refuses one hump at 1 %, whatever its form, and
  two normal laws on the log scores (EM) then say where the upper group begins.
"""

import math
from collections.abc import Sequence

import numpy as np

from vlad.thresholds import Calibration

FEWEST = 10  # scores below which nothing is said
GAP, RATIO = 7.0, 4.0
DIP_QUANTILE = 0.62  # 99 % of uniform scores have a smaller sqrt(n) * dip for large n; for smaller n more do


def from_unlabelled(scores: Sequence[float]) -> Calibration:
    """A threshold from scores of pictures of which nobody knows which are normal; none where no gap shows.

    The upper group is never more than half of the pile.
    """
    x = np.sort(np.asarray(scores, dtype=float))
    if not np.isfinite(x).all():
        raise ValueError("a score is not finite; every score must be a number")
    if (n := len(x)) < FEWEST:
        return Calibration(None, "none", n, note=f"{n} unlabelled scores are too few to see a gap; give 10 or more")
    for method, upper in (("gap", _above_a_gap(x)), ("mixture", _upper_hump(x))):
        if upper:
            cut = float(x[n - upper - 1] + x[n - upper]) / 2
            note = f"the scores part in two groups, the upper one {upper} of the {n} pictures; promises no rate"
            return Calibration(cut, method, n, note=note)
    guess = float(np.median(x) + 3 * 1.4826 * np.median(np.abs(x - np.median(x))))
    note = f"the scores show no gap: take them as a ranking (median + 3 MAD is {guess:.4g}), or give normal pictures"
    return Calibration(None, "none", n, note=note)


def _above_a_gap(x: np.ndarray) -> int:
    """How many of the sorted scores lie above a gap that no single group would show; 0 where there is none."""
    upper = np.arange(1, len(x) // 2 + 1)
    widths = np.min([_gaps(view, upper) for view in ([x, np.log(x)] if x[0] > 0 else [x])], axis=0)
    k = int(upper[widths.argmax()])
    gaps = np.diff(x)
    others = gaps[: len(x) - 1 - k].max()
    return k if widths.max() > GAP and gaps[len(x) - 1 - k] > RATIO * others else 0


def _gaps(x: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """For each number of upper scores: the gap below them over the spread within the two groups."""
    n = len(x)
    sums, squares = np.cumsum(x), np.cumsum(x * x)
    low = n - upper
    below = squares[low - 1] - sums[low - 1] ** 2 / low
    above = squares[-1] - squares[low - 1] - (sums[-1] - sums[low - 1]) ** 2 / upper
    spread = np.sqrt(np.maximum((below + above) / (n - 2), 1e-300))
    return np.where(x[low] > x[low - 1], (x[low] - x[low - 1]) / spread, 0.0)


def _upper_hump(x: np.ndarray) -> int:
    """How many of the sorted scores belong to the upper of two humps; 0 where one hump explains them."""
    n = len(x)
    logs = np.log(x) if x[0] > 0 else x
    if math.sqrt(n) * dip(logs) <= DIP_QUANTILE:
        return 0
    gain, share = _two_laws(logs)
    upper = round(n * share)
    return upper if gain > 3 * math.log(n) and 0 < upper <= n / 2 else 0


def dip(x: np.ndarray) -> float:
    """The largest distance between the distribution of sorted values and the closest one with a single hump.

    Source: Hartigan and Hartigan, The dip test of unimodality (1985); the modal interval is narrowed as in AS 217.
    """
    n = len(x)
    if x[0] == x[-1]:
        return 0.5 / n
    steps = np.arange(n)
    low, high, found = 0, n - 1, 1.0  # distances in steps of 1 / n
    while True:
        part = slice(low, high + 1)
        convex = low + _hull(x[part], steps[part], 1)
        concave = low + _hull(x[part], steps[part], -1)
        at_convex = np.interp(x[convex], x[concave], steps[concave] + 1.0) - steps[convex]
        at_concave = steps[concave] + 1.0 - np.interp(x[concave], x[convex], steps[convex].astype(float))
        widest = max(at_convex.max(), at_concave.max())
        if at_convex.max() >= at_concave.max():
            begin = convex[at_convex.argmax()]
            end = concave[np.searchsorted(concave, begin)]
        else:
            end = concave[at_concave.argmax()]
            begin = convex[np.searchsorted(convex, end, side="right") - 1]
        left, right = steps[low : begin + 1], steps[end : high + 1]
        under = left + 1.0 - np.interp(x[left], x[convex], steps[convex].astype(float))
        over = np.interp(x[right], x[concave], steps[concave] + 1.0) - right
        if widest <= found or (begin, end) == (low, high):
            return max(found, widest if (begin, end) == (low, high) else 0.0) / (2 * n)
        found = max(found, under.max(), over.max())
        low, high = begin, end


def _hull(x: np.ndarray, y: np.ndarray, sign: int) -> np.ndarray:
    """Positions of the corners of the lower (1) or upper (-1) hull of points sorted by x."""
    corners: list[int] = []
    for i in range(len(x)):
        while len(corners) > 1:
            a, b = corners[-2], corners[-1]
            turn = (x[b] - x[a]) * (y[i] - y[a]) - (y[b] - y[a]) * (x[i] - x[a])
            if sign * turn > 0:
                break
            corners.pop()
        corners.append(i)
    return np.array(corners)


def _log_density(x: np.ndarray, mean: float, spread: float) -> np.ndarray:
    return -0.5 * ((x - mean) / spread) ** 2 - math.log(spread * math.sqrt(2 * math.pi))


def _two_laws(x: np.ndarray) -> tuple[float, float]:
    """(2 (l2 - l1), share of the upper law) of two normal laws against one, by EM from a split at every decile."""
    floor = max(float(x.std()) * 0.05, 1e-12)  # a law must not shrink onto one score
    single = float(_log_density(x, x.mean(), max(float(x.std()), floor)).sum())
    best, share = -math.inf, 0.0
    for cut in np.quantile(x, np.linspace(0.1, 0.9, 9)):
        upper = (x > cut).astype(float)
        if not 0 < upper.sum() < len(x):
            continue
        likelihood, weight = _em(x, upper, floor)
        if likelihood > best:
            best, share = likelihood, weight
    return 2 * (best - single), share


def _em(x: np.ndarray, upper: np.ndarray, floor: float, steps: int = 100) -> tuple[float, float]:
    """(log likelihood, share of the law with the higher mean) from first memberships [n] in the upper law."""
    total, likelihood, means, weights = np.zeros(len(x)), -math.inf, [0.0, 0.0], [0.5, 0.5]
    for _ in range(steps):
        parts = []
        for i, member in enumerate((1 - upper, upper)):
            weights[i] = float(member.mean())
            means[i] = float((member * x).sum() / max(member.sum(), 1e-12))
            spread = math.sqrt(float((member * (x - means[i]) ** 2).sum() / max(member.sum(), 1e-12)))
            parts.append(math.log(max(weights[i], 1e-12)) + _log_density(x, means[i], max(spread, floor)))
        total = np.logaddexp(*parts)
        upper = np.exp(parts[1] - total)
        if abs(float(total.sum()) - likelihood) < 1e-6:
            break
        likelihood = float(total.sum())
    return float(total.sum()), weights[int(means[1] > means[0])]
