"""Detector and reasoner under one policy: a verdict, whether they agree, and when a person should look."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from vlad.explain.explanation import Agreement, Verdict
from vlad.explain.votes import verdict as verdict_of
from vlad.prediction import Prediction

Policy = Literal["detector", "either", "both", "blend"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
CLOSE = 0.1  # share of the calibration scores that lie so close to the threshold


@dataclass(frozen=True)
class Judgement:
    """What is said of the whole picture."""

    verdict: Verdict
    agreement: Agreement
    reasons: tuple[str, ...]  # why a person should look; empty where none need


def of_detector(prediction: Prediction) -> Verdict:
    """The detector's own verdict; unsure without a threshold and where the score is too close to call."""
    said: dict[bool | None, Verdict] = {True: "anomalous", False: "normal", None: "unsure"}
    return said[prediction.is_anomalous]


def check_policy(policy: str, prediction: Prediction) -> Policy:
    """The policy itself; ValueError for an unknown one, and for "blend" where there is no p-value to blend."""
    known = next((one for one in POLICIES if one == policy), None)
    if known is None:
        raise ValueError(f"policy is {policy!r}; expected one of {', '.join(POLICIES)}")
    if known == "blend" and prediction.p_value is None:
        raise ValueError("policy 'blend' needs a calibrated detector: fit it on good pictures first")
    return known


def judge(
    prediction: Prediction,
    policy: Policy,
    reasoner: Verdict | None,
    p_anomalous: float | None = None,
    calibration: Sequence[float] = (),
) -> Judgement:
    """Verdict, agreement and reasons for a review.

    Args:
        prediction: of the detector, whose score is never changed.
        policy: "detector" follows it; "either" and "both" count the reasoner as much; "blend" takes the mean of
            1 - p_value and `p_anomalous`.
        reasoner: None where none judged.
        p_anomalous: of the reasoner.
        calibration: scores of good pictures; they say how close to the threshold is close.
    """
    detector = of_detector(prediction)
    agreement = _agreement(detector, reasoner)
    reasons = []
    if prediction.threshold is None:
        reasons.append("the detector has no threshold from good pictures")
    elif detector == "unsure":
        reasons.append("the score is too close to the threshold to call")
    elif agreement == "reasoner_unsure" and _close(prediction, calibration):
        reasons.append("the reasoner is unsure, and the score is close to the threshold")
    if agreement == "detector_only":
        reasons.append("the reasoner sees no defect where the detector does")
    if agreement == "reasoner_only":
        reasons.append("the reasoner sees a defect that the detector does not report")
    return Judgement(_verdict(prediction, detector, policy, reasoner, p_anomalous), agreement, tuple(reasons))


def _agreement(detector: Verdict, reasoner: Verdict | None) -> Agreement:
    if reasoner is None:
        return "no_reasoner"
    if reasoner == "unsure":
        return "reasoner_unsure"
    if detector == "unsure":
        return "detector_unsure"
    if detector == reasoner:
        return "agree"
    return "detector_only" if detector == "anomalous" else "reasoner_only"


def _verdict(
    prediction: Prediction, detector: Verdict, policy: Policy, reasoner: Verdict | None, p: float | None
) -> Verdict:
    said = {detector, reasoner}
    if policy == "detector" or reasoner is None:
        return detector
    if policy == "blend":
        return detector if p is None or prediction.p_value is None else verdict_of((1 - prediction.p_value + p) / 2)
    strong: Verdict = "anomalous" if policy == "either" else "normal"
    return strong if strong in said else "unsure" if "unsure" in said else detector


def _close(prediction: Prediction, calibration: Sequence[float]) -> bool:
    """Whether the score is as close to the threshold as the closest tenth of the calibration scores."""
    if prediction.threshold is None or not len(calibration):
        return False
    distances = np.abs(np.asarray(calibration) - prediction.threshold)
    return bool(abs(prediction.score - prediction.threshold) <= np.quantile(distances, CLOSE))
