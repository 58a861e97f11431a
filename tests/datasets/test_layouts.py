"""Own pictures in the layouts that people have: masks wherever they lie are masks, names that say normal are normal."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlad.datasets import folder, load


def write(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / path)
    return root


def told(samples):
    """Each picture's place, label and mask."""
    return {(one.defect, one.image.stem): (one.label, one.mask and one.mask.name) for one in samples}


def test_a_folder_of_masks_beside_the_pictures_is_no_class(tmp_path):
    write(tmp_path / "r", "normal/0.png", "abnormal/1.png", "abnormal/2.png", "mask/1.png", "mask/2.png")
    assert told(folder(tmp_path / "r")) == {
        ("good", "0"): (0, None),
        ("abnormal", "1"): (1, "1.png"),
        ("abnormal", "2"): (1, "2.png"),
    }


def test_a_mask_beside_its_picture_is_never_a_picture(tmp_path):
    write(tmp_path / "nut", "train/good/a.png", "test/good/0.png", "test/good/0_mask.png")
    write(tmp_path / "nut", "test/crack/000.png", "test/crack/000_mask.png", "test/crack/my_mask.png")
    assert told(folder(tmp_path / "nut")) == {
        ("good", "a"): (0, None),
        ("good", "0"): (0, "0_mask.png"),
        ("crack", "000"): (1, "000_mask.png"),
        ("crack", "my_mask"): (1, None),  # no picture is called "my"
    }


@pytest.mark.parametrize("name", ["mask", "masks", "groundtruth", "Ground Truth", "GT", "ground_truth"])
@pytest.mark.parametrize("inside", ["", "test/"])
def test_masks_by_defect_are_found_under_every_usual_name(tmp_path, name, inside):
    write(tmp_path / "nut", "test/good/0.png", "test/crack/1.png", f"{inside}{name}/crack/1_mask.png")
    assert told(folder(tmp_path / "nut"))["crack", "1"] == (1, "1_mask.png")


def test_a_folder_of_masks_in_a_defects_folder_belongs_to_it(tmp_path):
    write(tmp_path / "nut", "test/good/0.png", "test/crack/1.png", "test/crack/mask/1.png")
    assert told(folder(tmp_path / "nut")) == {("good", "0"): (0, None), ("crack", "1"): (1, "1.png")}


def test_two_folders_of_masks_are_refused_by_name(tmp_path):
    write(tmp_path / "nut", "test/good/0.png", "test/crack/1.png", "mask/crack/1.png", "ground_truth/crack/1.png")
    with pytest.raises(ValueError, match="ground_truth and mask are both called like folders of masks"):
        folder(tmp_path / "nut")


def test_loose_masks_that_fit_no_picture_are_named(tmp_path, caplog):
    write(tmp_path / "r", "good/0.png", "bad/1.png", "mask/other.png")
    assert told(folder(tmp_path / "r"))["bad", "1"] == (1, None)
    assert "mask: no mask in it is named like a picture of" in caplog.text


@pytest.mark.parametrize("name", ["good", "no_defect", "non_defective", "defect-free", "Good ", "0", "NORMAL", "OK"])
def test_names_that_say_normal_are_normal(tmp_path, name):
    write(tmp_path / "nut", f"test/{name}/0.png", "test/cracked/1.png")
    assert told(folder(tmp_path / "nut")) == {("good", "0"): (0, None), ("cracked", "1"): (1, None)}


@pytest.mark.parametrize("name", ["not good", "abnormal", "broken", "1", "ng", "goods"])
def test_names_that_do_not_are_defects(tmp_path, name):
    write(tmp_path / "nut", f"test/{name}/0.png", "test/ok/1.png")
    assert {one.defect for one in folder(tmp_path / "nut") if one.label} == {name}


def test_train_and_test_are_known_in_any_case(tmp_path):
    write(tmp_path / "road", "Train/Good/a.png", "Test/Good/0.png", "Test/Crack/1.png", "Ground_Truth/Crack/1.png")
    found = load(f"folder:{tmp_path}")
    assert [one.split for one in found] == ["train", "test", "test"] and {one.category for one in found} == {"road"}
    assert told(found)["Crack", "1"] == (1, "1.png")


def test_folders_in_a_class_are_counted_with_their_masks(tmp_path):
    write(tmp_path / "nut", "test/good/left/0.png", "test/good/right/0.png", "test/crack/left/1.png")
    write(tmp_path / "nut", "ground_truth/crack/left/1_mask.png", "ground_truth/crack/right/1_mask.png")
    found = folder(tmp_path / "nut")
    assert [one.label for one in found] == [1, 0, 0]
    assert found[0].mask == tmp_path / "nut/ground_truth/crack/left/1_mask.png"
