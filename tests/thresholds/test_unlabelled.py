"""`--threshold auto`: a pile of pictures of which nobody knows which are good, cut where its scores part."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import vlad
from vlad import folder
from vlad.cli import app
from vlad.folder import score_folder
from vlad.folder.lines import judged
from vlad.thresholds.unlabelled import DIP_QUANTILE, dip, from_unlabelled


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def line(source, score, error=None):
    plain = {"threshold": None, "p_value": None, "is_anomalous": None, "name": None, "size": [1, 1], "regions": []}
    return {"source": source, "verdict": "uncalibrated", "score": score, **plain, "error": error}


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
    assert made == from_unlabelled([one["score"] for one in after]) and made.method in ("gap", "mixture")
    assert after == [judged(one, made.threshold) for one in after]
    assert [one["is_anomalous"] for one in after] == [False] * 12 + [True] * 4
    assert list(after[0]) == [*line("", 0.0), "file"], "the keys of a line are a contract, their order too"
    rule = json.loads((tmp_path / "threshold.json").read_text())
    assert (rule["method"], rule["threshold"], rule["rate"]) == (made.method, made.threshold, None)
    before = (tmp_path / "results.jsonl").read_bytes()
    again = score_folder(detector, [pile], tmp_path, threshold="auto", maps=False, resume=True)
    assert again.decided == made and (tmp_path / "results.jsonl").read_bytes() == before
    assert score_folder(detector, [pile], threshold="auto").decided == made, "without a folder too"


GOOD = {
    "normal": lambda draw, n: draw.normal(10, 1, n),
    "beta": lambda draw, n: draw.beta(2, 8, n),
    "gamma": lambda draw, n: draw.gamma(4, 1, n),
    "lognormal": lambda draw, n: draw.lognormal(0, 0.3, n),
    "uniform": lambda draw, n: draw.uniform(0, 1, n),
    "t3": lambda draw, n: draw.standard_t(3, n),
    "t5": lambda draw, n: draw.standard_t(5, n),
}


@pytest.mark.parametrize("law", GOOD)
@pytest.mark.parametrize("n", [10, 20, 50, 200])
def test_piles_of_one_law_are_hardly_ever_cut(law, n):
    cut = [from_unlabelled(GOOD[law](np.random.RandomState(seed), n)).threshold is not None for seed in range(200)]
    assert np.mean(cut) <= 0.05


@pytest.mark.parametrize(("good", "bad"), [(10, 1), (10, 5), (20, 1), (20, 10), (50, 5), (100, 1), (100, 50)])
def test_a_true_gap_is_cut_between_the_groups(good, bad):
    right = []
    for seed in range(100):
        draw = np.random.RandomState(seed)
        low, high = draw.normal(0.2, 0.02, good), draw.normal(0.8, 0.05, bad)
        made = from_unlabelled([*low, *high])
        right.append(made.threshold is not None and low.max() < made.threshold < high.min())
    assert np.mean(right) >= 0.98


def test_two_humps_that_touch_are_cut_where_they_are_many_and_never_above_more_than_half():
    draw = np.random.RandomState(5)
    made = from_unlabelled(np.exp([*draw.normal(0, 1, 240), *draw.normal(6, 1, 160)]))
    assert made.method == "mixture" and made.scores == (), "they are no calibration scores"
    assert "160 of the 400" in made.note or abs(int(made.note.split("upper one ")[1].split()[0]) - 160) < 8
    assert from_unlabelled(np.exp([*draw.normal(0, 1, 120), *draw.normal(6, 1, 280)])).threshold is None


def test_without_a_gap_there_is_no_verdict():
    assert "no gap" in from_unlabelled(np.random.RandomState(0).lognormal(0, 0.3, 100)).note
    assert "too few" in from_unlabelled([1, 2, 3, 50]).note
    assert from_unlabelled([1.0] * 30).threshold is None
    with pytest.raises(ValueError, match="not finite"):
        from_unlabelled([0.1] * 20 + [float("nan")])


def test_the_dip_is_the_distance_to_the_closest_law_with_one_hump():
    assert dip(np.arange(20.0)) == pytest.approx(1 / 40), "even steps have one hump already"
    assert dip(np.array([0.0, 0.0, 1.0, 1.0])) == pytest.approx(1 / 4), "two equal heaps: half of what parts them"
    draw = np.random.RandomState(0)
    uniform = [np.sqrt(100) * dip(np.sort(draw.rand(100))) for _ in range(400)]
    assert np.mean(np.array(uniform) > DIP_QUANTILE) <= 0.03


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
    assert "by gap: the scores part in two groups" in done.stderr and "promises no rate" in done.stderr
    table = run(*score, pile, "--threshold", "auto").stdout.splitlines()
    assert [row.split()[2] for row in table[1:17]] == ["normal"] * 12 + ["anomalous"] * 4
    assert "by gap" in table[17]


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
    assert done.exit_code == 0 and "16 recorded before" in done.stdout and "by gap" in done.stdout
    assert [one["is_anomalous"] for one in lines_of(tmp_path)] == [False] * 12 + [True] * 4
    other = run(*score, pile, "--threshold", "0.5", "--no-maps", "--out", tmp_path, "--resume")
    assert other.exit_code == 2 and 'threshold was "auto", now 0.5' in other.stderr


def test_a_summary_counts_the_verdicts_of_this_run(score, pile, tmp_path):
    done = run(*score, pile, "--threshold", "auto", "--no-maps", "--out", tmp_path)
    assert "16 pictures scored" in done.stdout and "(4 anomalous, 12 normal)" in done.stdout


def test_a_threshold_that_is_neither_number_nor_auto_is_refused(score, pile):
    done = run(*score, pile, "--threshold", "high")
    assert done.exit_code == 2 and "expected a score such as 0.4, or auto" in done.stderr


@pytest.mark.slow
def test_real_piles_of_good_pictures_alone_are_cut_in_at_most_five_percent(shared, tiny_encoder):
    """By the words, of every set: twenty draws each of 12, 20 and 30 good pictures, and all of them."""
    from vlad import datasets

    good = [sample for sample in datasets.load(f"folder:{shared / 'data'}") if not sample.label]
    cut = []
    for category in dict.fromkeys(sample.category for sample in good):
        mine = [sample for sample in good if sample.category == category]
        said = vlad.load("patch_text", mine[0].name, encoder=tiny_encoder).predict([sample.image for sample in mine])
        scores = np.array([prediction.score for prediction in said])
        piles = [
            np.random.default_rng(seed).choice(scores, n, replace=False) for n in (12, 20, 30) for seed in range(20)
        ]
        cut += [from_unlabelled(pile.tolist()).threshold is not None for pile in (*piles, scores)]
    assert len(cut) == 427 and np.mean(cut) <= 0.05
