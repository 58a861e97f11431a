"""`--threshold auto`: a pile of pictures of which nobody knows which are good, cut where its scores part."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import vlad
from vlad import folder
from vlad.cli import app
from vlad.folder import judged, score_folder
from vlad.thresholds import from_unlabelled


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def line(source, score, error=None):
    plain = {"is_anomalous": None, "threshold": None, "name": None, "regions": []}
    return {"source": source, "score": score, **plain, "error": error}


def lines_of(folder):
    return [json.loads(text) for text in (folder / "results.jsonl").read_text().splitlines()]


@pytest.fixture
def parted():
    """40 lines, ten of them far above the others, and a failed one."""
    draw = np.random.RandomState(0)
    scores = np.exp([*draw.normal(0, 0.2, 30), *draw.normal(2, 0.2, 10)]).tolist()
    return [*(line(f"{number}.png", score) for number, score in enumerate(scores)), line("x.png", None, "not readable")]


def test_a_line_takes_the_verdict_of_a_threshold_and_a_failed_one_stays(parted):
    after = [judged(one, 2.0) for one in parted]
    assert [one["is_anomalous"] for one in after] == [False] * 30 + [True] * 10 + [None]
    assert after[-1] == parted[-1]
    assert judged(parted[0], None)["is_anomalous"] is None


def test_a_folder_gets_all_verdicts_and_the_rule_that_gave_them(small_encoder, pile, tmp_path):
    detector = vlad.load("musc", encoder=small_encoder)
    made = score_folder(detector, [pile], tmp_path, threshold="auto", maps=False).decided
    after = lines_of(tmp_path)
    assert made == from_unlabelled([one["score"] for one in after]) and made.method == "mixture"
    assert after == [judged(one, made.threshold) for one in after]
    assert [one["is_anomalous"] for one in after] == [False] * 12 + [True] * 4
    assert list(after[0]) == list(line("", 0.0)), "the keys of a line are a contract, their order too"
    rule = json.loads((tmp_path / "threshold.json").read_text())
    assert (rule["method"], rule["threshold"], rule["rate"]) == ("mixture", made.threshold, None)
    before = (tmp_path / "results.jsonl").read_bytes()
    again = score_folder(detector, [pile], tmp_path, threshold="auto", maps=False, resume=True)
    assert again.decided == made and (tmp_path / "results.jsonl").read_bytes() == before
    assert score_folder(detector, [pile], threshold="auto").decided == made, "without a folder too"


# As a user sees it


@pytest.fixture(scope="module")
def pile(tmp_path_factory):
    """12 pictures alike and 4 of pure noise, which come last."""
    root, draw = tmp_path_factory.mktemp("pile"), np.random.default_rng(0)
    common = draw.integers(0, 256, (7, 7, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    for number in range(16):
        noise = draw.integers(0, 256 if number >= 12 else 24, common.shape, dtype=np.uint8)
        Image.fromarray(common ^ noise).save(root / f"{number:02}.png")
    return root


@pytest.fixture(scope="module")
def score(small_folder):
    return ["score", "--method", "musc", "--encoder", f"local-dir:{small_folder}", "--dtype", "float32"]


def test_the_odd_ones_of_a_pile_are_called_and_the_rule_is_said(score, pile):
    done = run(*score, pile, "--threshold", "auto", "--json")
    assert done.exit_code == 0, done.output
    lines = [json.loads(text) for text in done.stdout.splitlines()]
    assert [one["is_anomalous"] for one in lines] == [False] * 12 + [True] * 4
    assert len({one["threshold"] for one in lines}) == 1
    assert "by mixture: the scores part in two groups" in done.stderr and "promises no rate" in done.stderr
    table = run(*score, pile, "--threshold", "auto").stdout.splitlines()
    assert [row.split()[2] for row in table[1:17]] == ["normal"] * 12 + ["anomalous"] * 4
    assert "by mixture" in table[17]


def test_too_few_pictures_stay_without_a_verdict(score, pile):
    done = run(*score, *sorted(pile.iterdir())[8:], "--threshold", "auto")
    assert done.exit_code == 0 and done.stdout.count("uncalibrated") == 8
    assert "no threshold: 8 unlabelled scores are too few" in done.stdout


def test_a_run_that_ended_before_it_could_decide_decides_when_it_goes_on(score, pile, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    arguments = [*score, pile, "--threshold", "auto", "--no-maps", "--out", tmp_path]
    with monkeypatch.context() as patch:
        patch.setattr(folder, "from_unlabelled", killed)
        assert run(*arguments).exit_code == 130
    assert {one["threshold"] for one in lines_of(tmp_path)} == {None}
    done = run(*arguments, "--resume")
    assert done.exit_code == 0 and "16 recorded before" in done.stdout and "by mixture" in done.stdout
    assert [one["is_anomalous"] for one in lines_of(tmp_path)] == [False] * 12 + [True] * 4
    other = run(*score, pile, "--threshold", "0.5", "--no-maps", "--out", tmp_path, "--resume")
    assert other.exit_code == 2 and 'threshold was "auto", now 0.5' in other.stderr


def test_a_summary_counts_the_verdicts_of_this_run(score, pile, tmp_path):
    done = run(*score, pile, "--threshold", "auto", "--no-maps", "--out", tmp_path)
    assert "16 pictures scored" in done.stdout and "(4 anomalous, 12 normal, 0 without verdict)" in done.stdout


def test_a_threshold_that_is_neither_number_nor_auto_is_refused(score, pile):
    done = run(*score, pile, "--threshold", "high")
    assert done.exit_code == 2 and "expected a score such as 0.4, or auto" in done.stderr
