"""Masks that are not clean: cut right, or named; clean ones of every kind stay as they are."""

import io
import logging

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vlad.datasets.samples import Sample, read_mask


@pytest.fixture
def truth():
    """Three defects of 128 px, one thin."""
    image = Image.new("L", (128, 128))
    draw = ImageDraw.Draw(image)
    draw.ellipse((10, 12, 42, 50), fill=255)
    draw.rectangle((80, 70, 100, 110), fill=255)
    draw.line((20, 100, 60, 118), fill=255, width=3)
    return image


@pytest.fixture
def read(tmp_path):
    def read(mask: Image.Image):
        mask.save(tmp_path / "m.png")
        Image.new("RGB", mask.size).save(tmp_path / "p.png")
        return read_mask(Sample(tmp_path / "p.png", tmp_path / "m.png", 1, "nut", "crack", "test"))

    return read


def through_jpeg(mask):
    file = io.BytesIO()
    mask.save(file, "JPEG", quality=60)
    return Image.open(file)


UNCLEAN = {
    "saved as JPEG and then as PNG": through_jpeg,
    "to half and back": lambda m: m.resize((64, 64), Image.Resampling.BILINEAR).resize(
        (128, 128), Image.Resampling.BILINEAR
    ),
    "to half and back with overshoot": lambda m: m.resize((64, 64), Image.Resampling.LANCZOS).resize((128, 128)),
    "ground level 3": lambda m: m.point(lambda level: max(level, 3)),
    "a palette whose entry 0 is grey": lambda m: _palette(m, [30, 30, 30, 200, 0, 0]),
}


def _palette(mask, colours):
    made = Image.fromarray((np.asarray(mask) > 0).astype(np.uint8), "L")
    indexed = Image.new("P", mask.size)
    indexed.putpalette(colours)
    indexed.paste(made)
    return indexed


@pytest.mark.parametrize("kind", UNCLEAN)
def test_an_unclean_mask_marks_what_the_clean_one_does_and_is_named(kind, truth, read, caplog):
    clean = np.asarray(truth) > 0
    found = read(UNCLEAN[kind](truth))
    assert found.sum() == pytest.approx(clean.sum(), rel=0.05)
    assert (found != clean).mean() < 0.02
    assert "m.png: " in caplog.text


def test_a_white_ground_is_named_and_not_turned_round(truth, read, caplog):
    assert read(truth.point(lambda level: 255 - level)).mean() > 0.5
    assert "m.png: 8" in caplog.text and "is the mask inverted?" in caplog.text


CLEAN = {
    "0 and 1": lambda m: m.point(lambda level: int(level > 0)),
    "0 and 255": lambda m: m,
    "one bit": lambda m: m.convert("1"),
    "a palette of 0 and 1 without colours": lambda m: _palette(m, [0] * 6),
    "a palette of black and red": lambda m: _palette(m, [0, 0, 0, 200, 0, 0]),
    "a level for each defect": lambda m: Image.fromarray(_levels(np.asarray(m), (100, 255))),
    "an index for each defect": lambda m: Image.fromarray(_levels(np.asarray(m), (1, 2))),
}


def _levels(mask, two):
    made = np.where(mask > 0, two[1], 0).astype(np.uint8)
    made[:60] = np.where(mask[:60] > 0, two[0], 0)
    return made


@pytest.mark.parametrize("kind", CLEAN)
def test_a_clean_mask_of_any_kind_is_taken_as_it_is(kind, truth, read, caplog):
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(read(CLEAN[kind](truth)), np.asarray(truth) > 0)
    assert not caplog.text
