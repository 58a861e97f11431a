"""The numbers that judge explanations, each against an example worked by hand; and the file of answers."""

import doctest
import json

import numpy as np
import pytest

from vlad.explain.evaluation import mmad, records, scores
from vlad.explain.evaluation.mmad import Marked
from vlad.prediction import Prediction


def test_the_examples_in_the_docstrings_hold():
    done = doctest.testmod(scores)
    assert done.attempted >= 6 and not done.failed


@pytest.mark.parametrize(
    ("candidate", "reference", "value"),
    [
        ("the police kill the gunman", "police killed the gunman", 2 * 3 / 9),  # "police the gunman"
        ("A crack.", "a CRACK", 1.0),
        ("b a", "a b", 0.5),
        ("", "a crack", 0.0),
        ("?!", "a crack", 0.0),
        ("no word shared", "a crack", 0.0),
    ],
)
def test_rouge_l_is_the_f_of_the_longest_common_subsequence(candidate, reference, value):
    assert scores.rouge_l(candidate, reference) == pytest.approx(value)
    assert scores.rouge_l(reference, candidate) == pytest.approx(value)


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


def test_a_mask_has_the_box_center_and_cell_of_the_region_it_would_be():
    mask = np.zeros((60, 90), bool)
    mask[40:50, 3:9] = True
    (region,) = Prediction(1.0, mask.astype(np.float32), mask.shape).regions(0.5)
    assert scores.mask_box(mask) == region.box
    assert scores.mask_center(mask) == region.center
    assert scores.cell(scores.mask_center(mask), mask.shape) == region.location == "lower left"
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


def published(answers):
    """The published program's way, in its own terms: it removes from the list that it walks through."""
    rows, right, total = list(answers), {}, {}
    for one in rows:
        if one.said is None:
            rows.remove(one)
            continue
        kind = "Object Analysis" if one.type in ("Object Structure", "Object Details") else one.type
        if kind == "Anomaly Detection":
            kind = ("good" in one.image, kind)
        key = (one.image.split("/")[0], kind)
        total[key] = total.get(key, 0) + 1
        right[key] = right.get(key, 0) + (one.said == one.answer)
    share = {key: right[key] / total[key] for key in total}
    types = {"Object Analysis", "Defect Analysis"}
    table = {}
    for dataset in {one.image.split("/")[0] for one in answers}:
        table[dataset] = {kind: share.get((dataset, kind), 0) for kind in types}
        sides = [share.get((dataset, (normal, "Anomaly Detection")), 0) for normal in (True, False)]
        table[dataset]["Anomaly Detection"] = sum(sides) / 2
    return table


@pytest.mark.parametrize("seed", range(5))
def test_official_scores_are_those_of_the_published_program(seed):
    rng = np.random.default_rng(seed)
    kinds = ["Anomaly Detection", "Object Structure", "Object Details", "Defect Analysis"]
    answers = [
        answer(f"{rng.choice(['X', 'Y'])}/bolt/{rng.choice(['good', 'bent'])}/{i}.png", str(rng.choice(kinds)), said)
        for i in range(60)
        for said in [rng.choice(["A", "B", None])]
    ]
    found = mmad.score(answers, official=True)
    assert found.accuracy == published(answers)
    assert found.average == pytest.approx(np.mean([np.mean(list(row.values())) for row in published(answers).values()]))


def test_a_folder_that_only_begins_with_good_is_no_normal_one_unless_scored_as_published():
    odd = answer("GoodsAD/drink/goods/0.png", mmad.DETECTION, "A")
    assert not odd.normal
    assert mmad.score([odd]).miss == {"GoodsAD": 0.0}
    assert mmad.score([odd], official=True).overkill == {"GoodsAD": 0.0}


# ---- the file of answers --------------------------------------------------------------------------------------------


def asked(seen):
    def ask(item):
        seen.append(item)
        return {"value": item * 2, "error": None if item != 3 else "broken"}

    return ask


def test_a_killed_run_goes_on_and_asks_what_failed_again(tmp_path):
    items, first, second = [(str(n), n) for n in range(6)], [], []
    lines = records.answered(items[:4], asked(first), {"model": "m"}, tmp_path)
    with (tmp_path / "answers.jsonl").open("ab") as file:
        file.write(b'{"key": "4", "va')  # torn by the kill
    again = records.answered(items, asked(second), {"model": "m"}, tmp_path)
    assert first == [0, 1, 2, 3] and second == [3, 4, 5]
    assert again[:3] == lines[:3] and [line["value"] for line in again] == [0, 2, 4, 6, 8, 10]
    written = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert written == again


def test_lines_are_on_disk_before_the_next_question_is_asked(tmp_path):
    def ask(item):
        written = (tmp_path / "answers.jsonl").read_text().splitlines()
        assert len(written) == item
        return {"error": None}

    records.answered([(str(n), n) for n in range(4)], ask, {}, tmp_path)


def test_answers_of_other_settings_are_not_mixed(tmp_path):
    records.answered([("0", 0)], asked([]), {"model": "m"}, tmp_path)
    with pytest.raises(ValueError, match="other settings \\(model was 'm', now 'n'\\)"):
        records.answered([("0", 0)], asked([]), {"model": "n"}, tmp_path)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"no readable settings\.json"):
        records.answered([("0", 0)], asked([]), {"model": "m"}, tmp_path)


def test_a_question_that_comes_twice_is_refused():
    with pytest.raises(ValueError, match="same key"):
        records.answered([("0", 0), ("0", 1)], asked([]), {})
