"""Corruptions: fixed by key, masks that follow, severities that grow."""

import numpy as np
import pytest
from scipy import ndimage

from vlad.datasets.corrupt import CORRUPTIONS, corrupt


@pytest.fixture
def photo():
    """Smooth shades with a white square at [20:32, 30:50], and the square's mask."""
    y, x = np.mgrid[:60, :80]
    picture = np.stack([80 + y, 60 + x, 100 + 0 * x], -1).astype(np.uint8)
    mask = np.zeros((60, 80), bool)
    mask[20:32, 30:50] = True
    picture[mask] = 255
    return picture, mask


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_picture_is_changed_in_the_same_way_every_time(photo, kind):
    picture, mask = photo
    before = picture.copy()
    first, again = (corrupt(picture, kind, 5, "set/bolt/spot/001.png", mask) for _ in range(2))
    assert first[0].dtype == np.uint8 and first[0].shape == picture.shape
    assert not np.array_equal(first[0], picture)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    np.testing.assert_array_equal(picture, before)


@pytest.mark.parametrize("kind", ["noise", "rotation", "shift"])
def test_another_key_is_changed_in_another_way(photo, kind):
    found = {corrupt(photo[0], kind, 3, f"{number}.png")[0].tobytes() for number in range(12)}
    assert len(found) > 1


@pytest.mark.parametrize("kind", ["noise", "blur", "jpeg", "contrast", "rotation", "shift"])
def test_higher_severities_change_more(photo, kind):
    distances = []
    for severity in (1, 3, 5):
        changed = corrupt(photo[0], kind, severity, "a.png")[0]
        distances.append(float(np.abs(changed.astype(int) - photo[0]).mean()))
    assert distances == sorted(distances) and distances[0] < distances[2]


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("severity", [1, 3, 5])
def test_the_mask_stays_on_the_defect(photo, kind, severity):
    picture, mask = photo
    changed, moved = corrupt(picture, kind, severity, "spot/003.png", mask)
    assert moved.dtype == bool and moved.shape == mask.shape
    inside = ndimage.binary_erosion(moved, iterations=3)
    outside = ~ndimage.binary_dilation(moved, iterations=3)
    blue = changed[..., 2].astype(float)  # constant but for the defect
    assert blue[inside].mean() > blue[outside].mean() + 50
    if kind not in ("rotation", "shift"):
        assert moved is mask


def test_a_shift_moves_by_the_stated_share_of_each_side(photo):
    mask = photo[1]
    moved = corrupt(photo[0], "shift", 5, "x", mask)[1]
    down, right = (int(np.argmax(moved.any(axis))) - int(np.argmax(mask.any(axis))) for axis in (1, 0))
    assert abs(down) == round(0.08 * 60) and abs(right) == round(0.08 * 80)


def test_a_shift_of_less_than_a_pixel_does_nothing():
    picture = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
    np.testing.assert_array_equal(corrupt(picture, "shift", 1, "x")[0], picture)


def test_unknown_words_are_refused_with_the_known_ones(photo):
    with pytest.raises(ValueError, match="unknown corruption 'fog'; known: noise, blur"):
        corrupt(photo[0], "fog", 1, "x")
    with pytest.raises(ValueError, match="severity is 6; expected a whole number from 1 to 5"):
        corrupt(photo[0], "blur", 6, "x")
