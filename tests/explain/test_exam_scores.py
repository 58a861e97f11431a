"""The numbers that judge explanations, each against an example worked by hand."""

import doctest

import numpy as np
import pytest

from vlad.explain.exam import mmad, scores
from vlad.explain.exam.mmad import Marked
from vlad.prediction import Prediction


def test_the_examples_in_the_docstrings_hold():
    done = doctest.testmod(scores)
    assert done.attempted >= 4 and not done.failed


def test_decisions_count_an_unreadable_answer_as_wrong_on_either_side():
    right = scores.decisions([True, False], [True, False])
    assert (right.accuracy, right.precision, right.recall, right.f1) == (1, 1, 1, 1)
    lost = scores.decisions([None, None], [True, False])
    assert (lost.accuracy, lost.precision, lost.recall, lost.f1) == (0, None, 0, 0)


def test_decisions_equal_scikit_learns():
    from sklearn.metrics import precision_recall_fscore_support

    rng = np.random.default_rng(0)
    said, truth = rng.random(50) < 0.4, rng.random(50) < 0.6
    found = scores.decisions(said.tolist(), truth.tolist())
    expected = precision_recall_fscore_support(truth, said, average="binary")[:3]
    assert (found.precision, found.recall, found.f1) == pytest.approx(expected)
    assert found.accuracy == (said == truth).mean()


def test_decisions_of_nothing_are_refused():
    with pytest.raises(ValueError, match="0 decisions came for 0 pictures"):
        scores.decisions([], [])


def test_calibration_error_is_zero_for_honest_and_one_for_wholly_wrong_probabilities():
    assert scores.calibration_error([0.75] * 4, [True, True, True, False]) == pytest.approx(0)
    assert scores.calibration_error([1.0, 0.0], [False, True]) == 1
    assert scores.calibration_error([], []) is None


def test_calibration_weighs_bins_by_their_pictures():
    # bin [0.2, 0.3): 3 pictures, mean p 0.25, none true; bin [0.9, 1.0]: 1 picture at 1.0, true
    assert scores.calibration_error([0.25] * 3 + [1.0], [False] * 3 + [True]) == pytest.approx(0.75 * 0.25)


def test_a_probability_of_one_belongs_to_the_last_bin():
    assert scores.calibration_error([1.0, 0.95], [False, True]) == pytest.approx(0.475)  # (1 - 0.05) / 2


def test_the_summary_of_probabilities_has_no_auroc_for_one_kind_of_picture():
    assert scores.calibration([0.2, 0.9], [False, True])["auroc"] == 1
    alone = scores.calibration([0.9, 0.5], [True, True])
    assert alone["auroc"] is None and alone["coverage"] == 0.5 and alone["accuracy_decided"] == 1
    assert scores.calibration([], []) == {"pictures": 0}


def test_coverage_without_a_decision_has_no_accuracy():
    assert scores.coverage([0.5, 0.4], [True, False]) == (0, None)
    assert scores.coverage([0.35, 0.65], [False, True]) == (1, 1)


@pytest.mark.parametrize(
    ("one", "other", "value"),
    [((0, 0, 2, 2), (2, 0, 4, 2), 0), ((0, 0, 2, 2), (0, 0, 2, 2), 1), ((0, 0, 4, 4), (1, 1, 3, 3), 0.25)],
)
def test_boxes_are_half_open(one, other, value):
    assert scores.box_iou(one, other) == scores.box_iou(other, one) == value


def test_a_mask_has_the_box_and_center_of_the_region_it_would_be():
    mask = np.zeros((60, 90), bool)
    mask[40:50, 3:9] = True
    (region,) = Prediction(1.0, mask.astype(np.float32), mask.shape).regions(0.5)
    assert scores.mask_box(mask) == region.box
    assert scores.mask_center(mask) == region.center
    assert scores.inside((3.0, 40.0), region.box) and not scores.inside((9.0, 40.0), region.box)


# ---- MMAD -----------------------------------------------------------------------------------------------------------


def answer(image, kind, said, truth="A"):
    return Marked(image, kind, said, truth)


GOOD, BAD = "X/bolt/image/good/0.png", "X/bolt/image/bent/0.png"
ANSWERS = [
    *[answer(GOOD, mmad.DETECTION, said, "B") for said in "BBBA"],  # 3/4
    *[answer(BAD, mmad.DETECTION, said) for said in ("A", None)],  # 1/2
    answer(BAD, "Object Structure", "C"),
    answer(BAD, "Object Details", "A"),
    answer(BAD, "Defect Analysis", "A"),
    answer("Y/cap/image/bent/0.png", "Defect Analysis", "B"),
]


def test_detection_is_the_mean_over_normal_and_anomalous_pictures_and_unreadable_is_wrong():
    found = mmad.score(ANSWERS)
    assert found.accuracy["X"] == {"Anomaly Detection": 0.625, "Object Analysis": 0.5, "Defect Analysis": 1.0}
    assert found.accuracy["Y"] == {"Anomaly Detection": None, "Object Analysis": None, "Defect Analysis": 0.0}
    assert found.overkill == {"X": 0.25, "Y": None} and found.miss == {"X": 0.5, "Y": None}
    assert found.types == {"Anomaly Detection": 0.625, "Object Analysis": 0.5, "Defect Analysis": 0.5}
    assert found.datasets == {"X": pytest.approx((0.625 + 0.5 + 1) / 3), "Y": 0.0}
    assert found.average == pytest.approx((0.625 + 0.5 + 1) / 6)
    assert found.invalid_rate == pytest.approx(0.1)


def test_a_folder_that_only_begins_with_good_is_no_normal_one():
    odd = answer("GoodsAD/drink/goods/0.png", mmad.DETECTION, "A")
    assert not odd.normal
    assert mmad.score([odd]).miss == {"GoodsAD": 0.0}
