"""Detector and reasoner side by side: who decides, and when a person should look."""

import numpy as np
import pytest

from vlad.explain.verdicts import judge
from vlad.prediction import Prediction

ANOMALOUS, NORMAL, UNSURE, UNCALIBRATED = "anomalous", "normal", "unsure", "uncalibrated"


def predicted(verdict, **changes):
    score = {ANOMALOUS: 0.9, NORMAL: 0.1, UNSURE: 0.5, UNCALIBRATED: 0.5}[verdict]
    threshold = None if verdict == UNCALIBRATED else 0.5
    made = Prediction(score, None, (4, 4), threshold=threshold, unsure=(0.4, 0.6), **changes)
    assert made.verdict == verdict
    return made


@pytest.mark.parametrize(
    ("detector", "reasoner", "agreement", "review"),
    [
        (ANOMALOUS, ANOMALOUS, "agree", False),
        (NORMAL, NORMAL, "agree", False),
        (ANOMALOUS, NORMAL, "detector_only", True),
        (NORMAL, ANOMALOUS, "reasoner_only", True),
        (ANOMALOUS, UNSURE, "reasoner_unsure", False),
        (NORMAL, UNSURE, "reasoner_unsure", False),
        (UNSURE, ANOMALOUS, "detector_unsure", True),
        (UNSURE, NORMAL, "detector_unsure", True),
        (ANOMALOUS, None, "no_reasoner", False),
        (UNSURE, None, "no_reasoner", True),
        (UNCALIBRATED, ANOMALOUS, "detector_unsure", True),
        (UNCALIBRATED, None, "no_reasoner", True),
    ],
)
def test_the_detector_decides_and_a_person_looks_where_the_two_disagree(detector, reasoner, agreement, review):
    judged = judge(predicted(detector), reasoner)
    assert (judged.verdict, judged.agreement, bool(judged.reasons)) == (detector, agreement, review)


def test_an_unsure_reasoner_asks_for_review_only_close_to_the_threshold():
    far, close = (Prediction(score, None, (4, 4), threshold=0.5) for score in (0.9, 0.505))
    calibration = np.linspace(0, 0.5, 51)  # the closest tenth lies within 0.05
    assert not judge(far, UNSURE, calibration=calibration).reasons
    assert judge(close, UNSURE, calibration=calibration).reasons
