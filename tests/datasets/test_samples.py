"""Samples and their masks: every row of the table of edge cases, on files that the tests write."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlad.datasets.samples import Sample, mask_levels, picture_size, read_defects, read_mask
from vlad.images import ImageError

DEFECT = np.zeros((4, 6), np.uint8)
DEFECT[1:3, 2:5] = 255


def save(path: Path, pixels: np.ndarray | Image.Image, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(path, **options)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return save(tmp_path / "picture.png", np.zeros((4, 6, 3), np.uint8))


def anomalous(image: Path, mask: Path | None) -> Sample:
    return Sample(image, mask, 1, "bolt", "scratch", "test")


def test_a_sample_holds_paths_and_is_frozen():
    sample = Sample("a.png", "m.png", 1, "metal_nut", "bent", "test", dataset="mvtec_ad")
    assert (sample.image, sample.mask) == (Path("a.png"), Path("m.png"))
    with pytest.raises(AttributeError):
        sample.label = 0


@pytest.mark.parametrize(
    ("dataset", "category", "words"),
    [
        ("visa", "pcb1", "printed circuit board"),
        ("visa", "visa/pcb1", "printed circuit board"),
        ("", "steel_bolt", "steel bolt"),
        ("my_set", "pcb1", "pcb1"),
    ],
)
def test_the_name_comes_from_the_table_of_the_data_set(dataset, category, words):
    assert Sample("a.png", None, 0, category, "good", "train", dataset=dataset).name == words


def test_a_given_name_wins_over_the_table():
    assert Sample("a.png", None, 0, "pcb1", "good", "train", name="board", dataset="visa").name == "board"


@pytest.mark.parametrize(("label", "split", "word"), [(2, "test", "label is 2"), (0, "testing", "split is 'testing'")])
def test_a_wrong_label_or_split_is_refused(label, split, word):
    with pytest.raises(ValueError, match=word):
        Sample("a.png", None, label, "bolt", "good", split)


def test_a_normal_picture_without_mask_is_normal_everywhere(picture):
    mask = read_mask(Sample(picture, None, 0, "bolt", "good", "test"))
    assert mask.dtype == bool and mask.shape == (4, 6) and not mask.any()


def test_an_anomalous_picture_without_mask_has_no_truth(picture):
    assert read_mask(anomalous(picture, None)) is None
    assert read_defects(anomalous(picture, None)) is None


def two_values(mode: str) -> Image.Image:
    return Image.fromarray(DEFECT).convert(mode)


def transparent() -> Image.Image:
    """White all over, opaque only at the defect."""
    pixels = np.full((4, 6, 4), 255, np.uint8)
    pixels[..., 3] = DEFECT
    return Image.fromarray(pixels)


def palette() -> Image.Image:
    """The defect is index 0, which is red; the rest is index 1, which is black."""
    image = Image.fromarray((DEFECT == 0).astype(np.uint8), mode="P")
    image.putpalette([255, 0, 0, 0, 0, 0])
    return image


MASKS = {
    "0 and 255": Image.fromarray(DEFECT),
    "0 and 1": Image.fromarray(DEFECT // 255),
    "several values": Image.fromarray(DEFECT // 255 * np.arange(1, 7, dtype=np.uint8)),
    "one bit": two_values("1"),
    "colour": two_values("RGB"),
    "opaque alpha": two_values("RGBA"),
    "grey and alpha": two_values("LA"),
    "transparent": transparent(),
    "palette": palette(),
    "16 bit": Image.fromarray(DEFECT.astype(np.uint16)),
}


@pytest.mark.parametrize("kind", MASKS)
def test_nonzero_is_anomalous_in_every_kind_of_mask(kind, picture, tmp_path):
    mask = save(tmp_path / "mask.png", MASKS[kind])
    found = read_mask(anomalous(picture, mask))
    assert found.dtype == bool
    np.testing.assert_array_equal(found, DEFECT > 0)


def test_a_jpeg_mask_does_not_grow_by_its_compression(tmp_path):
    truth = np.zeros((64, 64), np.uint8)
    truth[13:40, 21:50] = 255
    mask = save(tmp_path / "mask.jpg", truth, quality=75)
    assert (np.asarray(Image.open(mask)) > 0).sum() > (truth > 0).sum()
    found = read_mask(anomalous(save(tmp_path / "p.png", truth), mask))
    assert (found != (truth > 0)).mean() < 0.002


def test_the_files_of_a_mask_folder_are_united(picture, tmp_path):
    left, right = np.zeros((2, 4, 6), np.uint8)
    left[:, 0], right[:, 5] = 7, 9
    save(tmp_path / "masks" / "000.png", left)
    save(tmp_path / "masks" / "001.png", right)
    (tmp_path / "masks" / "notes.txt").write_text("not a mask")
    np.testing.assert_array_equal(read_mask(anomalous(picture, tmp_path / "masks")), (left + right) > 0)


def test_an_empty_mask_stays_empty_and_an_empty_folder_of_masks_is_refused(picture, tmp_path):
    mask = save(tmp_path / "mask.png", np.zeros((4, 6), np.uint8))
    assert not read_mask(anomalous(picture, mask)).any()
    (tmp_path / "masks").mkdir()
    with pytest.raises(FileNotFoundError, match="masks: this folder of masks is empty"):
        read_mask(anomalous(picture, tmp_path / "masks"))


def test_a_mask_of_another_size_is_resized_with_a_warning_that_names_it(picture, tmp_path, caplog):
    mask = save(tmp_path / "small.png", DEFECT[::2, ::2])
    with caplog.at_level(logging.WARNING):
        found = read_mask(anomalous(picture, mask))
    np.testing.assert_array_equal(found, np.kron(DEFECT[::2, ::2], np.ones((2, 2))) > 0)
    assert "small.png: mask is 2 x 3 and its picture 4 x 6" in caplog.text


@pytest.mark.parametrize("size", [(8, 12), (3, 5), (7, 6), (6, 9), (1, 1)])
def test_resizing_takes_the_nearest_pixel_as_pillow_does(size, picture, tmp_path):
    mask = save(tmp_path / "mask.png", np.random.RandomState(0).randint(0, 2, (4, 6)).astype(np.uint8))
    expected = np.asarray(Image.open(mask).resize(size[::-1], Image.Resampling.NEAREST)) > 0
    np.testing.assert_array_equal(read_mask(anomalous(picture, mask), size), expected)


def test_a_mask_with_swapped_height_and_width_is_refused(picture, tmp_path):
    mask = save(tmp_path / "mask.png", DEFECT.T.copy())
    with pytest.raises(ImageError, match=r"mask is 6 x 4 and its picture 4 x 6") as caught:
        read_mask(anomalous(picture, mask))
    assert caught.value.source == str(mask)


def test_a_missing_mask_file_is_an_error_that_names_it(picture, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.png: no such mask file"):
        read_mask(anomalous(picture, tmp_path / "gone.png"))


def test_a_file_that_is_no_picture_is_an_error_that_names_it(picture, tmp_path):
    (tmp_path / "mask.png").write_text("text")
    with pytest.raises(ImageError, match=r"mask\.png: mask cannot be read"):
        read_mask(anomalous(picture, tmp_path / "mask.png"))


def test_the_size_is_that_of_the_picture_turned_upright(tmp_path):
    image = Image.fromarray(np.zeros((4, 6, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    path = save(tmp_path / "turned.jpg", image, exif=exif)
    assert picture_size(path) == (6, 4)
    assert read_mask(Sample(path, None, 0, "bolt", "good", "test")).shape == (6, 4)


def test_the_given_size_spares_opening_the_picture(tmp_path):
    gone = tmp_path / "gone.png"
    assert read_mask(Sample(gone, None, 0, "bolt", "good", "test"), (2, 3)).shape == (2, 3)
    with pytest.raises(FileNotFoundError, match="no such picture file"):
        read_mask(Sample(gone, None, 0, "bolt", "good", "test"))


def test_levels_are_the_stored_values(tmp_path):
    assert mask_levels(save(tmp_path / "mask.png", DEFECT // 255 * 3)).max() == 3


LOCO = [
    {"defect_name": "missing", "pixel_value": 255, "saturation_threshold": 5, "relative_saturation": False},
    {"defect_name": "bent", "pixel_value": 250, "saturation_threshold": 0.5, "relative_saturation": True},
]


@pytest.fixture
def loco(picture, tmp_path) -> Sample:
    (tmp_path / "defects_config.json").write_text(json.dumps(LOCO))
    masks = tmp_path / "ground_truth" / "logical_anomalies" / "000"
    save(masks / "000.png", DEFECT)
    both = DEFECT.copy()
    both[0, 0] = 250
    save(masks / "001.png", both)
    return anomalous(picture, masks)


def test_defects_are_the_values_of_each_mask_file_with_their_saturation(loco):
    defects = read_defects(loco)
    assert [(int(d.mask.sum()), d.threshold, d.relative) for d in defects] == [
        (6, 5, False),
        (1, 0.5, True),
        (6, 5, False),
    ]


def test_a_normal_picture_has_no_defects(loco):
    assert read_defects(Sample(loco.image, None, 0, "bolt", "good", "test")) == []


def test_a_value_that_the_config_does_not_list_is_refused(loco):
    save(loco.mask / "002.png", DEFECT // 255)
    with pytest.raises(ValueError, match=r"002\.png: value 1 is not in"):
        read_defects(loco)


def test_defects_need_the_config_of_the_category(picture, tmp_path):
    with pytest.raises(FileNotFoundError, match="only MVTec LOCO tells defects apart"):
        read_defects(anomalous(picture, save(tmp_path / "a" / "b" / "c" / "mask.png", DEFECT)))
