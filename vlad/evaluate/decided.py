"""How a detector decides at its own threshold: what it finds, misses and raises false alarms on.

Rates over pictures have exact intervals (Clopper and Pearson, doi:10.1093/biomet/26.4.404), since a bootstrap of a rate
of 0 would call itself certain. Precision and F1, which are no rates of one kind of picture, have those of a bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from vlad.evaluate.measure import Value

METRICS = ("precision", "recall", "false_alarms", "misses", "f1")


def decided(
    scores: Sequence[float], labels: Sequence[int], threshold: float, taken: np.ndarray
) -> tuple[dict[str, Value], dict[str, np.ndarray]]:
    """(values, draws) by the names in METRICS of pictures that are called anomalous from `threshold` on.

    Args:
        labels: 0 normal, 1 anomalous.
        taken: [draws, n] of `resampling.stratified`; may have no draws.
    """
    alarm, anomalous = np.asarray(scores) >= threshold, np.asarray(labels) == 1
    whole = _rates(np.ones((1, len(alarm)), np.int64), alarm, anomalous)
    drawn = _rates(taken, alarm, anomalous)
    missing = {"recall": "no picture is anomalous", "misses": "no picture is anomalous"}
    missing |= {"false_alarms": "no picture is normal", "precision": "no picture is called anomalous"}
    values = {}
    for name in METRICS:
        value = float(whole[name][0])
        reason = missing.get(name, "nothing is anomalous, nor called so") if math.isnan(value) else ""
        values[name] = Value(value, reason, threshold, interval=_exact(name, alarm, anomalous))
    return values, {name: drawn[name] for name in METRICS if not math.isnan(values[name].value)}


def _rates(taken: np.ndarray, alarm: np.ndarray, anomalous: np.ndarray) -> dict[str, np.ndarray]:
    """[draws] of each metric; NaN where nothing can be said."""
    found, missed = taken @ (alarm & anomalous), taken @ (~alarm & anomalous)
    alarms, passed = taken @ (alarm & ~anomalous), taken @ (~alarm & ~anomalous)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "precision": found / (found + alarms),
            "recall": found / (found + missed),
            "false_alarms": alarms / (alarms + passed),
            "misses": missed / (found + missed),
            "f1": 2 * found / (2 * found + missed + alarms),
        }


def _exact(name: str, alarm: np.ndarray, anomalous: np.ndarray) -> tuple[float, float] | None:
    """The interval of a rate over one kind of picture; None for the others."""
    counted = {
        "recall": (alarm & anomalous, anomalous),
        "misses": (~alarm & anomalous, anomalous),
        "false_alarms": (alarm & ~anomalous, ~anomalous),
    }
    if name not in counted or not counted[name][1].any():
        return None
    hits, total = (int(one.sum()) for one in counted[name])
    return clopper_pearson(hits, total)


def clopper_pearson(hits: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a rate of `hits` of `total` >= 1."""
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(special.betaincinv(hits, total - hits + 1, tail))
    high = 1.0 if hits == total else float(special.betaincinv(hits + 1, total - hits, 1 - tail))
    return low, high
