"""The parts of an explanation one by one: regions and their measures, rule files, the verdict of two."""

import numpy as np
import pytest

from vlad.explain.case import Rule
from vlad.explain.defects import cell_box
from vlad.explain.regions import mark, merged, size_words
from vlad.explain.rules import read_rules
from vlad.explain.verdicts import judge, of_detector
from vlad.prediction import LOCATIONS, Prediction


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


# Regions


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


# Rules


def test_rules_are_numbered_by_kind_and_tags_are_taken_out(tmp_path):
    file = tmp_path / "rules.txt"
    file.write_text(
        "# screws\n\nnormal: all screws are there [count: screw == 4]\nAbnormal: rust [region: upper  LEFT]\n"
        "ignore: fingerprints\nabnormal: a dent\ncritical: a crack\n"
    )
    assert (
        read_rules(file)
        == read_rules(str(file))
        == (
            Rule("n1", "normal", "all screws are there", None, ("screw", 4)),
            Rule("a1", "abnormal", "rust", "upper left"),
            Rule("i1", "ignore", "fingerprints"),
            Rule("a2", "abnormal", "a dent"),
            Rule("c1", "critical", "a crack"),
        )
    )


def test_rules_may_be_lines_dicts_or_a_text():
    wanted = (Rule("n1", "normal", "clean"), Rule("a1", "abnormal", "rust", "centre"))
    assert read_rules(["normal: clean", "abnormal: rust [region: center]"]) == wanted
    assert read_rules("normal: clean\nabnormal: rust [region: centre]") == wanted
    assert read_rules([{"kind": "normal", "text": "clean"}, {"kind": "abnormal", "text": "rust", "region": "centre"}])
    assert read_rules(wanted) == wanted and read_rules(None) == ()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no rust", "line 2: a rule begins with normal:, abnormal:, ignore:, critical:"),
        ("forbidden: rust", "got 'forbidden: rust'"),
        ("normal: x [region: north]", "region is 'north'; expected one of upper left"),
        ("normal: x [count: four screws]", "expected such as: screw == 4"),
        ("normal: x [colour: red]", "unknown tag"),
        ("normal:  ", "0 characters"),
        (f"normal: {'x' * 301}", "301 characters"),
        ({"kind": "normal", "txt": "x"}, "unknown key 'txt'.*did you mean 'text'"),
    ],
)
def test_a_wrong_rule_is_named_by_its_line(line, message):
    with pytest.raises(ValueError, match=message):
        read_rules(["normal: fine", line])


def test_a_rule_file_that_is_not_there_is_said():
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_rules("rules.txt")


# The verdict of two

ANOMALOUS, NORMAL, UNSURE = "anomalous", "normal", "unsure"


def predicted(verdict, **changes):
    score = {ANOMALOUS: 0.9, NORMAL: 0.1, UNSURE: 0.5}[verdict]
    made = Prediction(score, None, (4, 4), threshold=0.5, unsure=(0.4, 0.6), **changes)
    assert of_detector(made) == verdict
    return made


@pytest.mark.parametrize(
    ("detector", "reasoner", "agreement", "either", "both", "review"),
    [
        (ANOMALOUS, ANOMALOUS, "agree", ANOMALOUS, ANOMALOUS, False),
        (NORMAL, NORMAL, "agree", NORMAL, NORMAL, False),
        (ANOMALOUS, NORMAL, "detector_only", ANOMALOUS, NORMAL, True),
        (NORMAL, ANOMALOUS, "reasoner_only", ANOMALOUS, NORMAL, True),
        (ANOMALOUS, UNSURE, "reasoner_unsure", ANOMALOUS, UNSURE, False),
        (NORMAL, UNSURE, "reasoner_unsure", UNSURE, NORMAL, False),
        (UNSURE, ANOMALOUS, "detector_unsure", ANOMALOUS, UNSURE, True),
        (UNSURE, NORMAL, "detector_unsure", UNSURE, NORMAL, True),
        (ANOMALOUS, None, "no_reasoner", ANOMALOUS, ANOMALOUS, False),
        (UNSURE, None, "no_reasoner", UNSURE, UNSURE, True),
    ],
)
def test_the_matrix_of_detector_and_reasoner(detector, reasoner, agreement, either, both, review):
    prediction = predicted(detector)
    judged = {policy: judge(prediction, policy, reasoner) for policy in ("detector", "either", "both")}
    assert judged["detector"].verdict == detector
    assert (judged["either"].verdict, judged["both"].verdict) == (either, both)
    assert {one.agreement for one in judged.values()} == {agreement}
    assert bool(judged["detector"].reasons) is review


@pytest.mark.parametrize(("p_value", "p", "verdict"), [(0.1, 0.9, ANOMALOUS), (0.9, 0.1, NORMAL), (0.1, 0.1, UNSURE)])
def test_blend_is_the_mean_of_both(p_value, p, verdict):
    prediction = predicted(ANOMALOUS, p_value=p_value)
    assert judge(prediction, "blend", "unsure", p).verdict == verdict


def test_an_unsure_reasoner_asks_for_review_only_close_to_the_threshold():
    far, close = (Prediction(score, None, (4, 4), threshold=0.5) for score in (0.9, 0.505))
    calibration = np.linspace(0, 0.5, 51)  # the closest tenth lies within 0.05
    assert not judge(far, "detector", UNSURE, calibration=calibration).reasons
    assert judge(close, "detector", UNSURE, calibration=calibration).reasons


def test_the_ninths_tile_a_picture_and_have_pixels_in_the_smallest():
    for size in ((180, 240), (7, 5), (1, 1)):
        found = [cell_box(place, size) for row in LOCATIONS for place in row]
        assert all(0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0] for x0, y0, x1, y1 in found)
    assert cell_box("centre", (180, 240)) == (80, 60, 160, 120)
