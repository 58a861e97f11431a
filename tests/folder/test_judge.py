"""`vlad judge`: verdicts again from recorded scores."""

import json

import numpy as np
import pytest
from PIL import Image
from small_sets import brightness
from typer.testing import CliRunner

import vlad
from vlad.cli import app
from vlad.folder import LINES, score_folder
from vlad.folder.judging import judge_folder


@pytest.fixture
def pictures(tmp_path):
    """Four pictures with a square, each brighter than the one before."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        array = np.full((64, 64, 3), 20, np.uint8)
        array[16:40, 16:40] = 60 + 60 * number
        Image.fromarray(array).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def detector(small_encoder):
    return brightness(small_encoder)


def lines(out):
    return [json.loads(line) for line in (out / LINES).read_text().splitlines()]


def middle(out):
    scores = sorted(line["score"] for line in lines(out))
    return (scores[1] + scores[2]) / 2


def test_a_threshold_gives_the_verdicts_of_a_run_with_it(pictures, detector, tmp_path):
    score_folder(detector, [pictures], tmp_path / "a")
    cut = middle(tmp_path / "a")
    assert judge_folder(tmp_path / "a", cut) == {"normal": 2, "anomalous": 2}
    score_folder(detector, [pictures], tmp_path / "b", threshold=cut)
    for judged, scored in zip(lines(tmp_path / "a"), lines(tmp_path / "b"), strict=True):
        assert [judged[key] for key in ("verdict", "is_anomalous", "threshold")] == [
            scored[key] for key in ("verdict", "is_anomalous", "threshold")
        ]


def test_resume_goes_on_with_the_new_threshold_and_refuses_the_old(pictures, detector, tmp_path):
    score_folder(detector, [pictures], tmp_path / "out", threshold=1e9)
    cut = middle(tmp_path / "out")
    judge_folder(tmp_path / "out", cut)
    (pictures / "4.png").write_bytes((pictures / "3.png").read_bytes())
    summary = score_folder(detector, [pictures], tmp_path / "out", threshold=cut, resume=True)
    assert (summary.scored, summary.skipped, summary.anomalous) == (1, 4, 3)
    with pytest.raises(ValueError, match="other settings"):
        score_folder(detector, [pictures], tmp_path / "out", threshold=1e9, resume=True)


@pytest.mark.parametrize("kind", ["npy", "tiff"])
def test_a_detector_finds_the_regions_again_in_saved_maps(kind, pictures, detector, tmp_path):
    score_folder(detector, [pictures], tmp_path / "a", save_maps=kind)
    detector.threshold = cut = middle(tmp_path / "a")
    detector.map_threshold = cut
    judge_folder(tmp_path / "a", detector=detector)
    score_folder(detector, [pictures], tmp_path / "b")
    for judged, scored in zip(lines(tmp_path / "a"), lines(tmp_path / "b"), strict=True):
        assert judged["verdict"] == scored["verdict"]
        assert [region["box"] for region in judged["regions"]] == [region["box"] for region in scored["regions"]]
    assert lines(tmp_path / "a")[3]["regions"]


def test_scores_of_another_detector_are_refused_and_stay(pictures, small_encoder, tmp_path):
    score_folder(vlad.load(name="bolt", encoder=small_encoder), [pictures], tmp_path / "out")
    before = (tmp_path / "out" / LINES).read_bytes()
    other = vlad.load(name="nut", encoder=small_encoder)
    other.threshold = 1.0
    with pytest.raises(ValueError, match="another detector"):
        judge_folder(tmp_path / "out", detector=other)
    assert (tmp_path / "out" / LINES).read_bytes() == before


def test_neither_both_nor_nothing_nor_nan_decides(pictures, detector, tmp_path):
    score_folder(detector, [pictures], tmp_path / "out")
    for given in ({}, {"threshold": 1.0, "detector": detector}, {"threshold": float("nan")}):
        with pytest.raises(ValueError, match="threshold"):
            judge_folder(tmp_path / "out", **given)
    with pytest.raises(FileNotFoundError, match="score pictures"):
        judge_folder(tmp_path / "nowhere", 1.0)


def test_the_command_judges_by_a_saved_detector_and_renews_page_and_sheet(pictures, small_folder, tmp_path):
    encoder = ["--encoder", f"local-dir:{small_folder}"]
    good = tmp_path / "good"
    good.mkdir()
    for number in range(5):
        noise = np.random.default_rng(number).integers(0, 60, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(good / f"{number}.png")
    made = vlad.load("patch_memory", encoder=encoder[1], dtype="float32").fit([*good.iterdir()])
    made.save(tmp_path / "d.safetensors")
    run, out = CliRunner().invoke, tmp_path / "out"
    file = str(tmp_path / "d.safetensors")
    given = ["score", str(pictures), "--detector", file, *encoder, "--out", str(out), "--csv", "--page"]
    assert run(app, given).exit_code == 0
    before = [line["verdict"] for line in lines(out)]
    judged = run(app, ["judge", str(out), "--threshold", "1000"])
    assert judged.exit_code == 0 and "4 normal" in judged.stdout
    assert (out / "results.csv").read_text().count(",normal,") == 4
    page = (out / "index.html").read_text()
    assert '"threshold": 1000.0' in page and "may be called bad" not in page and "a threshold set by hand" in page
    again = run(app, ["judge", str(out), "--detector", file, *encoder])
    assert again.exit_code == 0 and "anomalous" in before
    assert "of 6 good parts about one may be called bad" in (out / "index.html").read_text()
    assert [line["verdict"] for line in lines(out)] == before
