"""`--resume`: what is known again, and what is done again."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_sets import brightness
from typer.testing import CliRunner

from vlad.cli import app
from vlad.folder import LINES, score_folder


def photo(path, level=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.full((48, 64, 3), 20, np.uint8)
    array[8:24, 8:24] = level
    Image.fromarray(array).save(path)


@pytest.fixture
def pictures(tmp_path):
    for number in range(3):
        photo(tmp_path / "in" / f"{number}.png", 80 + 40 * number)
    return tmp_path / "in"


@pytest.fixture
def detector(small_encoder):
    return brightness(small_encoder)


def lines(out):
    return [json.loads(line) for line in (out / LINES).read_text().splitlines()]


def test_a_picture_replaced_under_its_name_is_scored_again(pictures, detector, tmp_path):
    score_folder(detector, [pictures], tmp_path / "out")
    photo(pictures / "1.png", 255)
    summary = score_folder(detector, [pictures], tmp_path / "out", resume=True)
    assert (summary.scored, summary.skipped) == (1, 2)
    assert lines(tmp_path / "out")[1]["score"] == pytest.approx(detector.predict(pictures / "1.png").score, abs=1e-6)


def test_a_relative_and_an_absolute_path_are_one_file(pictures, detector, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    score_folder(detector, ["in"], tmp_path / "out")
    summary = score_folder(detector, [pictures.absolute()], tmp_path / "out", resume=True)
    assert (summary.scored, summary.skipped) == (0, 3) and len(lines(tmp_path / "out")) == 3
    assert sum(summary.verdicts.values()) == 3


def test_a_lost_overlay_is_made_again(pictures, detector, tmp_path):
    score_folder(detector, [pictures], tmp_path / "out")
    lost = tmp_path / "out" / lines(tmp_path / "out")[2]["overlay"]
    lost.unlink()
    assert score_folder(detector, [pictures], tmp_path / "out", resume=True).scored == 1
    assert lost.exists()


MEDDLED = {
    "no score": lambda line: json.dumps({key: value for key, value in line.items() if key != "score"}),
    "not a number": lambda line: json.dumps({**line, "score": float("nan")}),
    "a list for a source": lambda line: json.dumps({**line, "source": ["a"]}),
    "another word for a verdict": lambda line: json.dumps({**line, "verdict": "fine"}),
    "deep nesting": lambda line: "[" * 100_000,
    "no object": lambda line: "7",
}


@pytest.mark.parametrize("change", MEDDLED.values(), ids=MEDDLED)
def test_a_line_that_was_meddled_with_is_done_again(change, pictures, detector, tmp_path):
    out = tmp_path / "out"
    score_folder(detector, [pictures], out)
    before = lines(out)
    (out / LINES).write_text("\n".join([json.dumps(before[0]), change(before[1]), json.dumps(before[2])]) + "\n")
    assert score_folder(detector, [pictures], out, resume=True).scored == 1
    assert [line["source"] for line in lines(out)] == [line["source"] for line in before]
    assert [line["score"] for line in lines(out)] == pytest.approx([line["score"] for line in before], abs=1e-6)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_picture_without_structure_is_named(level, detector, tmp_path):
    Image.new("RGB", (64, 48), (level,) * 3).save(tmp_path / "flat.png")
    score_folder(detector, [tmp_path / "flat.png"], tmp_path / "out")
    assert lines(tmp_path / "out")[0]["notes"]


def test_fit_names_all_unreadable_pictures_at_once(pictures, small_folder, tmp_path):
    for name in ("torn.png", "empty.png"):
        (pictures / name).write_text("")
    given = ["fit", str(pictures), "--encoder", f"local-dir:{small_folder}", "--method", "patch_memory"]
    said = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "d.safetensors")])
    assert said.exit_code == 2 and "2 of 5" in said.output
    assert "torn.png" in said.output and "empty.png" in said.output and not Path(tmp_path / "d.safetensors").exists()
