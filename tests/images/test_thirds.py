"""The nine parts of a picture, and pictures fitted to a side."""

import doctest

import numpy as np
import pytest

from vlad.images import places
from vlad.images.places import PLACES, cell_box, place_of
from vlad.images.sizes import fitted


def test_the_examples_in_the_docstrings_hold():
    done = doctest.testmod(places)
    assert done.attempted >= 2 and not done.failed


@pytest.mark.parametrize("size", [(180, 240), (7, 5), (1, 1), (1, 300)])
def test_the_ninths_lie_inside_a_picture_and_have_pixels_in_the_smallest(size):
    found = [cell_box(place, size) for place in PLACES]
    assert all(0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0] for x0, y0, x1, y1 in found)


def test_the_ninths_tile_a_picture_and_hold_the_points_that_bear_their_name():
    covered = np.zeros((100, 200), int)
    for place in PLACES:
        x0, y0, x1, y1 = cell_box(place, covered.shape)
        covered[y0:y1, x0:x1] += 1
        assert place_of(((x0 + x1) / 2, (y0 + y1) / 2), covered.shape) == place
    assert (covered == 1).all()


def test_a_fitted_picture_keeps_its_shape_and_is_never_enlarged():
    picture = np.zeros((300, 900, 3), np.uint8)
    assert fitted(picture, 450).shape == (150, 450, 3)
    assert fitted(picture, 900) is picture
    assert fitted(np.zeros((1, 4000, 3), np.uint8), 100).shape == (1, 100, 3)
