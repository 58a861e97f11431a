"""Detector and reasoner side by side: whether they agree, and when a person should look; the detector decides."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlad.explain.case import Verdict
from vlad.explain.explanation import Agreement
from vlad.prediction import Prediction
from vlad.prediction import Verdict as Said

CLOSE = 0.1  # share of the calibration scores that lie so close to the threshold


@dataclass(frozen=True)
class Judgement:
    """What is said of the whole picture."""

    verdict: Said
    agreement: Agreement
    reasons: tuple[str, ...]  # why a person should look; empty where none need


def judge(prediction: Prediction, reasoner: Verdict | None, calibration: Sequence[float] = ()) -> Judgement:
    """Verdict, agreement and reasons for a review.

    Args:
        prediction: of the detector, whose score and verdict are never changed.
        reasoner: its verdict; None where none judged.
        calibration: scores of good pictures; they say how close to the threshold is close.
    """
    detector = prediction.verdict
    agreement = _agreement(detector, reasoner)
    reasons = []
    if detector == "uncalibrated":
        reasons.append("the detector has no threshold from good pictures")
    elif detector == "unsure":
        reasons.append("the score is too close to the threshold to call")
    elif agreement == "reasoner_unsure" and _close(prediction, calibration):
        reasons.append("the reasoner is unsure, and the score is close to the threshold")
    if agreement == "detector_only":
        reasons.append("the reasoner sees no defect where the detector does")
    if agreement == "reasoner_only":
        reasons.append("the reasoner sees a defect that the detector does not report")
    return Judgement(detector, agreement, tuple(reasons))


def _agreement(detector: Said, reasoner: Verdict | None) -> Agreement:
    if reasoner is None:
        return "no_reasoner"
    if reasoner == "unsure":
        return "reasoner_unsure"
    if detector in ("unsure", "uncalibrated"):
        return "detector_unsure"
    if detector == reasoner:
        return "agree"
    return "detector_only" if detector == "anomalous" else "reasoner_only"


def _close(prediction: Prediction, calibration: Sequence[float]) -> bool:
    """Whether the score is as close to the threshold as the closest tenth of the calibration scores."""
    if prediction.threshold is None or not len(calibration):
        return False
    distances = np.abs(np.asarray(calibration) - prediction.threshold)
    return bool(abs(prediction.score - prediction.threshold) <= np.quantile(distances, CLOSE))
