"""`vlad check`: what a detector does at its threshold, on pictures that are known."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from small_sets import brightness
from typer.testing import CliRunner

from vlad.cli import app
from vlad.folder.checking import Share, check


def grey(folder, *levels):
    """A folder of pictures, each a bright square of such a level on black: `brightness` scores them in that order."""
    folder.mkdir(parents=True)
    for number, level in enumerate(levels):
        picture = np.zeros((64, 64, 3), np.uint8)
        picture[16:48, 16:48] = level
        Image.fromarray(picture).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def detector(small_encoder):
    return brightness(small_encoder)


def between(detector, folder, level):
    """A threshold: the score of a picture of that level."""
    return detector.predict(grey(folder, level) / "0.png").score


def test_what_is_found_missed_and_a_false_alarm_is_counted_and_named(detector, tmp_path):
    good, bad = grey(tmp_path / "good", 10, 20, 30, 120), grey(tmp_path / "bad", 50, 150, 200, 40, 250)
    detector.threshold = between(detector, tmp_path / "cut", 100)
    made = check(detector, [good], [bad])
    assert (made.found.count, made.missed.count, made.false_alarms.count) == (3, 2, 1)
    assert (made.found.of, made.false_alarms.of) == (5, 4) and str(made.precision).startswith("3 of 4")
    named = [(source.rpartition("/")[2], kind) for source, kind, _ in made.wrong]
    assert named == [("3.png", "missed"), ("0.png", "missed"), ("3.png", "false alarm")]


def test_the_named_thresholds_do_what_they_say(detector, tmp_path):
    good, bad = grey(tmp_path / "good", 10, 120), grey(tmp_path / "bad", 40, 250)
    detector.threshold = between(detector, tmp_path / "cut", 100)
    made = check(detector, [good], [bad])
    detector.threshold = made.nothing_missed
    assert check(detector, [good], [bad]).missed.count == 0
    detector.threshold = made.no_false_alarm
    again = check(detector, [good], [bad])
    assert again.false_alarms.count == 0 and again.found.count == 1


@pytest.mark.parametrize(("count", "of"), [(0, 7), (3, 7), (7, 7), (58, 60)])
def test_intervals_are_those_of_scipy(count, of):
    ours, theirs = Share.made(count, of), stats.binomtest(count, of).proportion_ci(0.95, method="exact")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_no_threshold_and_unreadable_pictures_are_said(detector, tmp_path):
    good, bad = grey(tmp_path / "good", 10), grey(tmp_path / "bad", 200)
    with pytest.raises(ValueError, match="no threshold to check"):
        check(detector, [good], [bad])
    detector.threshold = between(detector, tmp_path / "cut", 100)
    (bad / "torn.png").write_text("no picture")
    made = check(detector, [good], [bad])
    assert made.found.of == 1 and [source.rpartition("/")[2] for source, _ in made.failed] == ["torn.png"]
    assert json.loads(json.dumps(made.to_dict(), allow_nan=False))["found"]["count"] == 1


def test_the_command_prints_counts_and_the_wrong_ones(small_folder, tmp_path):
    good, bad = grey(tmp_path / "good", 10, 20, 30, 40, 50), grey(tmp_path / "bad", 150, 250)
    run, encoder = CliRunner().invoke, ["--encoder", f"local-dir:{small_folder}"]
    file = str(tmp_path / "d.safetensors")
    fitted = run(app, ["fit", str(good), "--method", "patch_memory", *encoder, "--dtype", "float32", "--out", file])
    assert fitted.exit_code == 0, fitted.output
    whole = ["check", file, "--good", str(good), "--bad", str(bad), *encoder]
    said = run(app, [*whole, "--threshold", "0"])
    assert said.exit_code == 0 and "found" in said.stdout and "2 of 2" in said.stdout
    assert said.stdout.count("false alarm ") == 5
    assert json.loads(run(app, [*whole, "--json"]).stdout)["threshold"] > 0
