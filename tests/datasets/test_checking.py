"""What `vlad datasets check` says of a data set: counts, and everything that is probably not meant so."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from small_sets import write_category
from typer.testing import CliRunner

from vlad.cli import app
from vlad.datasets import load
from vlad.datasets.checking import CELL, check, sheet
from vlad.images.drawing import OUTLINE, outlined


@pytest.fixture
def nut(tmp_path):
    return write_category(tmp_path / "set" / "nut", normals=4, anomalous=3)


def odd(nut):
    return check(f"folder:{nut.parent}").oddities


def test_counts_masks_and_sizes_are_those_of_the_files_and_nothing_is_odd(nut):
    found = check(nut.parent)
    train, test = found.parts["set", "nut", "train"], found.parts["set", "nut", "test"]
    assert (train.labels, train.masks, train.words) == ({0: 6}, 0, "nut")
    assert (test.labels, test.masks, test.defects, test.sizes) == ({0: 4, 1: 3}, 3, {"spot": 3}, {(48, 64): 7})
    assert test.share == pytest.approx([12 * 14 / (48 * 64)] * 3) and found.oddities == []
    assert found.tests() == {"set": {"nut": {"normal": 4, "anomalous": 3}}}


def test_the_same_pixels_in_two_splits_and_under_two_labels_are_named(nut):
    shutil.copy(nut / "train/good/000.png", nut / "test/good/000.png")
    shutil.copy(nut / "test/good/001.png", nut / "test/spot/001.png")
    first, second = odd(nut)
    assert first.startswith("in several splits: ") and "train/good/000.png" in first
    assert second.startswith("with both labels: ") and "test/spot/001.png" in second


def test_masks_that_say_nothing_too_much_or_cannot_be_read_are_named(nut):
    masks = nut / "ground_truth" / "spot"
    Image.new("L", (64, 48)).save(masks / "000_mask.png")
    Image.new("L", (64, 48), 255).save(masks / "001_mask.png")
    (masks / "002_mask.png").write_bytes(b"no picture")
    said = " / ".join(odd(nut))
    assert "000_mask.png: nothing is marked" in said and "001_mask.png: 100% of the picture is marked" in said
    assert "002_mask.png: mask cannot be read" in said


def test_pictures_that_no_sample_has_and_labels_that_are_missing_are_named(nut):
    Image.new("L", (8, 8)).save(nut / "loose.png")
    shutil.rmtree(nut / "test" / "good")
    shutil.rmtree(nut / "train")
    said = odd(nut)
    assert "1 pictures are not part of it, in nut" in said
    assert "set/nut: no normal test picture, so no score of whole pictures can be measured" in said


def test_a_picture_that_cannot_be_read_is_an_oddity_and_the_rest_is_counted(nut):
    (nut / "test/good/000.png").write_bytes(b"no picture")
    found = check(nut.parent)
    assert any("test/good/000.png" in said for said in found.oddities)
    assert sum(found.parts["set", "nut", "test"].sizes.values()) == 6
    assert sheet(found.samples).size == (4 * CELL, 3 * CELL)


def test_the_sheet_shows_every_kind_first_and_outlines_what_is_marked(nut):
    write_category(nut.parent / "bolt", seed=1, normals=1, anomalous=1, masks=False)
    drawn = np.asarray(sheet(load(nut.parent)))
    cells = [drawn[:CELL, number * CELL : (number + 1) * CELL] for number in range(4)]
    lined = [bool((cell == OUTLINE).all(-1).any()) for cell in cells]
    assert lined == [False, True, False, False], "bolt has no mask, nut has, and two good ones follow"


def test_an_outline_lies_round_what_is_marked_and_leaves_it_as_it_is():
    photo, truth = np.zeros((20, 20, 3), np.uint8), np.zeros((20, 20), bool)
    truth[5:9, 5:9] = True
    drawn = outlined(photo, truth)
    line = (drawn == OUTLINE).all(-1)
    assert not drawn[6:8, 6:8].any() and line[3:11, 3:11].sum() == line.sum() > 0


def test_the_command_prints_a_table_and_writes_the_sheet(nut, tmp_path):
    def run(*arguments):
        return CliRunner().invoke(app, ["datasets", "check", *map(str, arguments)])

    done = run(f"folder:{nut.parent}", "--sheet", tmp_path / "new" / "sheet.png")
    assert done.exit_code == 0 and "nothing odd was seen" in done.stdout
    line = next(line for line in done.stdout.splitlines() if " test " in line)
    assert line.split() == ["set/nut", '"nut"', "test", "4", "3", "3", "5.5", "%", "64", "x", "48"]
    assert Image.open(tmp_path / "new" / "sheet.png").width == 4 * CELL
    told = json.loads(run(nut.parent, "--json").stdout)
    assert told["oddities"] == [] and told["parts"][1]["defects"] == {"spot": 3}
    assert run(nut.parent, "--sheet", "sheet.jpg").exit_code == 2
    assert run("folder:/nowhere").exit_code == 2
