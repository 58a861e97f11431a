"""Scores over time, smoothed in seconds, so that how often frames are taken does not change what it means."""

import math
from collections.abc import Sequence

import numpy as np


class Smoother:
    """An exponential average of a time constant: y_k = y_{k-1} + (1 - exp(-(t_k - t_{k-1}) / tau)) (x_k - y_{k-1}).

    Causal, and two numbers of memory. `tau` in seconds; 0 leaves scores as they are.
    """

    def __init__(self, tau: float = 1.0) -> None:
        if not math.isfinite(tau) or tau < 0:
            raise ValueError(f"smoothing is {tau} s; expected seconds, or 0 for none")
        self.tau = tau
        self.reset()

    def reset(self) -> None:
        """Begins anew: at a hole in time, or another source."""
        self.time: float | None = None
        self.value = 0.0

    def __call__(self, time: float, value: float) -> float:
        """The smoothed value at that time, which is not before the last one."""
        if self.time is None or self.tau == 0:
            self.value = value
        else:
            self.value += (1 - math.exp(-(time - self.time) / self.tau)) * (value - self.value)
        self.time = time
        return self.value


def smoothed(times: Sequence[float], values: Sequence[float], tau: float) -> list[float]:
    """All of a source at once; see `Smoother`."""
    smooth = Smoother(tau)
    return [smooth(time, value) for time, value in zip(times, values, strict=True)]


def gaussian(times: Sequence[float], values: Sequence[float], sigma: float) -> list[float]:
    """Weights exp(-(t_j - t_k)^2 / (2 sigma^2)) within 4 sigma, divided by their sum; it looks ahead: offline only."""
    at, given = np.asarray(times, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if sigma <= 0:
        return given.tolist()
    result = np.empty_like(given)
    for k, time in enumerate(at):
        near = slice(*np.searchsorted(at, [time - 4 * sigma, time + 4 * sigma * (1 + 1e-12)], side="left"))
        weights = np.exp(-((at[near] - time) ** 2) / (2 * sigma**2))
        result[k] = weights @ given[near] / weights.sum()
    return result.tolist()
