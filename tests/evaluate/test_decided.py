"""Detectors at their own thresholds: rates with intervals, counts, predictions.csv; a saved one as it is."""

import csv
import json
import math

import numpy as np
import pytest
from scipy import stats
from test_evaluate import Brightness, write_category
from typer.testing import CliRunner

import vlad
from vlad.cli import app
from vlad.datasets import folder
from vlad.evaluate import evaluate
from vlad.evaluate.decided import clopper_pearson, decided
from vlad.metrics import resampling
from vlad.report import Report


def test_the_rates_are_those_counted_by_hand():
    scores, labels = [0.9, 0.8, 0.2, 0.7, 0.1, 0.1, 0.3], [1, 1, 1, 0, 0, 0, 0]
    values, _ = decided(scores, labels, 0.7, np.zeros((0, 7), int))
    assert {name: value.value for name, value in values.items()} == pytest.approx(
        {"precision": 2 / 3, "recall": 2 / 3, "false_alarms": 1 / 4, "misses": 1 / 3, "f1": 2 / 3}
    )
    assert all(value.threshold == 0.7 for value in values.values())


def test_a_score_at_the_threshold_is_anomalous_as_in_predictions():
    values, _ = decided([0.5], [1], 0.5, np.zeros((0, 1), int))
    assert values["recall"].value == 1.0


@pytest.mark.parametrize(("hits", "total"), [(0, 12), (12, 12), (1, 20), (7, 30)])
def test_intervals_of_rates_are_exact(hits, total):
    expected = stats.binomtest(hits, total).proportion_ci(method="exact")
    assert clopper_pearson(hits, total) == pytest.approx((expected.low, expected.high))


def test_no_false_alarm_in_twenty_does_not_mean_none_at_all():
    values, draws = decided(
        [0.1] * 20 + [0.9] * 3, [0] * 20 + [1] * 3, 0.5, resampling.stratified([0] * 20 + [1] * 3, 50)
    )
    assert values["false_alarms"].value == 0 and values["false_alarms"].interval == pytest.approx((0, 0.168), abs=1e-3)
    assert resampling.interval(draws["false_alarms"]) == (0, 0)


def test_what_cannot_be_said_is_nan_with_its_reason():
    values, draws = decided([0.1, 0.2], [0, 0], 0.5, resampling.stratified([0, 0], 5))
    for name, reason in (("recall", "no picture is anomalous"), ("precision", "no picture is called anomalous")):
        assert math.isnan(values[name].value) and values[name].reason == reason and name not in draws
    assert values["false_alarms"].value == 0


@pytest.fixture
def tree(tmp_path):
    write_category(tmp_path / "set" / "bolt", seed=1)
    return tmp_path / "set"


@pytest.fixture
def bright(small_encoder):
    detector = vlad.Detector(Brightness(small_encoder))
    detector.threshold = 0.6
    return detector


def test_a_report_says_how_a_detector_decides_and_lists_every_verdict(tree, bright, tmp_path):
    report = evaluate({"bright": bright}, folder(tree), bootstrap=50)
    lines = report.predictions["bright", "set", "bolt"]
    right = [line["verdict"] == line["label"] for line in lines if line["label"]]
    assert report.value("own_recall", category="bolt") == np.mean(right)
    row = report.select(category="bolt", metric="own_recall")[0]
    assert row.threshold == 0.6 and row.interval == pytest.approx(clopper_pearson(sum(right), len(right)))
    assert "bright, at its own threshold" in report.table() and f"{sum(right)} of {len(right)}" in report.table()
    place = report.save(tmp_path / "out")
    assert "At its own threshold" in (place / "report.html").read_text()
    with (place / "predictions.csv").open() as file:
        kept = list(csv.DictReader(file))
    assert [float(line["score"]) for line in kept] == [line["score"] for line in lines]
    assert {line["source"] for line in kept} == {one.image.as_posix() for one in folder(tree) if one.split == "test"}
    assert {line["verdict"] for line in kept} <= {"0", "1"} and kept[0]["detector"] == "bright"
    assert Report.load(place).predictions == report.predictions


def test_without_a_threshold_nothing_is_decided(tree, bright):
    bright.threshold = None
    report = evaluate({"bright": bright}, folder(tree), bootstrap=0)
    assert "own threshold" not in report.table() and not [row for row in report.rows if row.metric.startswith("own_")]
    assert {line["verdict"] for line in report.predictions["bright", "set", "bolt"]} == {None}


@pytest.fixture
def saved(tree, tmp_path, small_folder):
    """A text method that was fitted, with words and a threshold of its own."""
    detector = vlad.load("winclip", "steel bolt", encoder=f"local-dir:{small_folder}", dtype="float32", device="cpu")
    detector.fit(tree / "bolt" / "train" / "good")
    detector.save(tmp_path / "bolt.safetensors")
    return detector


def test_a_saved_detector_is_measured_as_it_is_unless_other_words_are_given(saved, tree, tmp_path):
    words = ["eval", "--method", tmp_path / "bolt.safetensors", "--data", f"folder:{tree}", "--bootstrap", 0, "--json"]
    own = CliRunner().invoke(app, list(map(str, words)))
    assert own.exit_code == 0, own.output
    facts = json.loads(own.stdout)
    assert facts["settings"]["detectors"]["bolt"]["words"] == "steel bolt"
    (recall,) = [row for row in facts["rows"] if row["metric"] == "own_recall"]
    tests = [one for one in folder(tree) if one.split == "test" and one.label]
    verdicts = [found.is_anomalous for found in saved.predict([one.image for one in tests])]
    assert recall["threshold"] == saved.threshold
    assert recall["value"] == pytest.approx(np.mean([verdict is True for verdict in verdicts]))
    other = CliRunner().invoke(app, list(map(str, [*words, "--name", "nut"])))
    facts = json.loads(other.stdout)
    assert "words" not in facts["settings"]["detectors"]["bolt"]
    assert facts["settings"]["data"]["set"]["bolt"]["name"] == "nut"
