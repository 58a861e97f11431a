"""The places that a map marks, and what is measured there."""

import numpy as np
import pytest

from vlad.explain.regions import mark, merged, size_words
from vlad.prediction import Prediction


def marked(amap, picture=None, size=None, **changes):
    size = size or amap.shape
    picture = np.full((*size, 3), 128, np.uint8) if picture is None else picture
    given = {"threshold": 0.5, "map_threshold": 0.5, **changes}
    return mark(picture, Prediction(0.9, np.asarray(amap, np.float32), size, **given))


def boxes(*places, size=(200, 300), value=0.9):
    amap = np.zeros(size, np.float32)
    for number, (x0, y0, x1, y1) in enumerate(places):
        amap[y0:y1, x0:x1] = value - 0.01 * number
    return amap


def test_the_three_highest_regions_are_numbered_and_the_rest_is_counted():
    places = [(0, 0, 20, 20), (100, 0, 120, 20), (200, 0, 220, 20), (0, 100, 20, 120)]
    regions, limits = marked(boxes(*places))
    assert [region.box for region in regions] == places[:3] and [region.id for region in regions] == [1, 2, 3]
    (limit,) = [limit for limit in limits if limit.code == "regions_truncated"]
    assert limit.text.startswith("4 regions found")


def test_close_boxes_are_one_region_and_far_ones_are_two():
    near, far = [(10, 10, 30, 30), (34, 10, 54, 30)], [(10, 10, 30, 30), (44, 10, 64, 30)]  # 2 % of the diagonal: 7 px
    assert [r.box for r in marked(boxes(*near))[0]] == [(10, 10, 54, 30)]
    assert len(marked(boxes(*far))[0]) == 2


def test_a_merged_box_may_come_close_to_one_that_was_far_from_its_parts():
    # 2 and 0 meet over 1: their common box then holds 3, which is far from each
    assert merged([(0, 0, 2, 2), (3, 3, 5, 5), (6, 6, 8, 8), (7, 0, 8, 1)], gap=2) == [[0, 1, 2, 3]]
    assert merged([(0, 0, 2, 2), (7, 0, 8, 1)], gap=2) == [[0], [1]]


def test_specks_are_left_out_while_there_is_a_larger_region():
    speck, large = (200, 100, 204, 104), (10, 10, 40, 40)
    assert [r.box for r in marked(boxes(speck, large))[0]] == [large]
    assert [r.box for r in marked(boxes(speck))[0]] == [speck]


def test_the_map_is_cut_at_its_threshold_and_never_at_a_share_of_its_own_values():
    amap = boxes((10, 10, 40, 40), value=0.4)
    assert not marked(amap)[0] and len(marked(amap, map_threshold=0.3)[0]) == 1
    regions, limits = marked(amap, map_threshold=None, region_level=0.35)
    assert len(regions) == 1 and "map_uncalibrated" in [limit.code for limit in limits]


def test_boxes_are_in_pixels_of_the_original_picture():
    (region,), _ = marked(boxes((100, 0, 200, 100), size=(200, 300)), size=(2000, 3000))
    x0, y0, x1, y1 = region.box
    assert abs(x0 - 1000) <= 6 and y0 == 0 and abs(x1 - 2000) <= 6 and abs(y1 - 1000) <= 6
    assert region.location == "top" and region.area_share == pytest.approx(1 / 6, rel=0.02)


@pytest.mark.parametrize(
    ("box", "words"),
    [((0, 0, 250, 20), "top, spanning the width"), ((0, 0, 290, 190), "centre, spanning the width and the height")],
)
def test_a_region_along_a_side_is_said_to_span_it(box, words):
    (region,), _ = marked(boxes(box))
    assert region.location == words


def test_a_region_at_the_border_may_go_on_outside():
    assert "region_at_border" in [one.code for one in marked(boxes((0, 50, 20, 70)))[1]]
    assert "region_at_border" not in [one.code for one in marked(boxes((1, 50, 20, 70)))[1]]


def test_sizes_have_words_of_their_own():
    assert [size_words(share) for share in (0.0009, 0.001, 0.01, 0.05, 0.2)] == [
        "tiny", "small", "medium", "large", "extensive",
    ]  # fmt: skip


# Measures


def painted(box, colour, ground=(128, 128, 128), size=(200, 300)):
    picture = np.empty((*size, 3), np.uint8)
    picture[:] = ground
    picture[box[1] : box[3], box[0] : box[2]] = colour
    return picture


@pytest.mark.parametrize(
    ("colour", "words"),
    [
        ((60, 60, 60), "darker by 28 L* than its surroundings"),
        ((255, 255, 255), "brighter by 46 L* than its surroundings"),
        ((128, 128, 128), "on average coloured like its surroundings"),
    ],
)
def test_the_colour_of_a_region_is_measured_against_its_surroundings(colour, words):
    box = (50, 50, 100, 100)
    (region,), _ = marked(boxes(box), painted(box, colour))
    assert words in region.facts


def test_hues_have_their_own_words():
    box = (50, 50, 100, 100)
    red, blue = (marked(boxes(box), painted(box, colour))[0][0].facts for colour in ((200, 90, 90), (90, 90, 200)))
    assert "redder" in red and "bluer" in blue and "redder" not in blue.split("bluer")[1]


def test_a_thin_dark_line_that_the_median_hides_is_said():
    box = (50, 50, 130, 80)
    picture = painted((50, 60, 130, 66), (20, 20, 20))
    (region,), _ = marked(boxes(box), picture)
    assert "on average coloured like its surroundings" in region.facts and "darkest tenth darker by" in region.facts


def test_a_long_region_is_line_like_and_one_with_bays_is_ragged():
    (line,), _ = marked(boxes((20, 50, 220, 60)))
    assert "line-like" in line.facts
    cross = boxes((100, 20, 110, 180), (20, 95, 190, 105))
    cross[cross > 0] = 0.9
    (region,), _ = marked(cross)
    assert "ragged" in region.facts and "line-like" not in region.facts


def test_a_region_of_a_few_map_values_has_the_map_s_shape_and_none_of_its_own():
    amap = np.zeros((14, 14), np.float32)
    amap[0:1, 5:7] = 1
    (region,), _ = marked(amap, size=(100, 1400))
    assert "line-like" not in region.facts
