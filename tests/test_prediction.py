"""What a prediction says in the pixels of the original picture, and how it is drawn and written."""

import json
import pickle
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlad.images import ImageError
from vlad.images.drawing import draw_overlay
from vlad.prediction import DRAWN_BOXES, Prediction, Region


def predicted(amap: Any = ((0.0, 0.0), (0.0, 1.0)), size: tuple[int, int] = (2, 2), **fields: Any) -> Prediction:
    values = None if amap is None else np.array(amap, dtype=np.float32)
    return Prediction(**{"score": 0.5, "map": values, "size": size, **fields})


def spots(height: int, width: int, *boxes: tuple[int, int, int, int, float]) -> np.ndarray:
    """[H, W] of zeros with rectangles (x0, y0, x1, y1, value)."""
    amap = np.zeros((height, width), dtype=np.float32)
    for x0, y0, x1, y1, value in boxes:
        amap[y0:y1, x0:x1] = value
    return amap


def difference(first: Image.Image, second: Image.Image | np.ndarray) -> np.ndarray:
    """[H, W] largest change over the channels."""
    return np.abs(np.asarray(first).astype(int) - np.asarray(second).astype(int)).max(axis=2)


# ---- map and verdict ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("small", "large"), [((15, 15), (97, 203)), ((1, 1), (5, 3)), ((3, 7), (3, 7)), ((2, 5), (64, 6))]
)
def test_full_map_is_torchs_bilinear_without_aligned_corners(small, large):
    torch = pytest.importorskip("torch")
    amap = np.random.default_rng(0).random(small, dtype=np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(amap)[None, None], size=large, mode="bilinear", align_corners=False
    )[0, 0].numpy()
    full = predicted(amap, large).full_map()
    assert full.dtype == np.float32 and full.shape == large
    assert np.abs(full - expected).max() < 1e-5  # float32 rounding


def test_full_map_of_a_smaller_picture_averages_and_stays_in_range():
    chequered = np.indices((64, 64)).sum(axis=0) % 2
    full = predicted(chequered, (8, 8)).full_map()
    assert np.abs(full - 0.5).max() < 0.01  # plain sampling would give 0 and 1


def test_a_drawing_and_a_line_of_results_make_one_full_map_and_keep_none(monkeypatch):
    made = []
    inner = Prediction.full_map
    monkeypatch.setattr(Prediction, "full_map", lambda self: made.append(1) or inner(self))
    prediction = predicted(spots(40, 30, (5, 6, 9, 9, 0.9)), (400, 300), picture=np.zeros((400, 300, 3), np.uint8))
    prediction.overlay()
    assert prediction.to_dict()["regions"][0]["box"] == prediction.regions()[0].box
    assert len(made) == 1
    kept = [value for value in vars(prediction).values() if isinstance(value, np.ndarray)]
    assert sum(array.size for array in kept) == 40 * 30 + 400 * 300 * 3


def test_regions_follow_a_replaced_threshold_though_earlier_ones_are_kept():
    prediction = predicted(spots(8, 8, (1, 1, 3, 3, 0.6)), (8, 8))
    assert len(prediction.regions()) == 1 and len(prediction.regions(0.7)) == 0
    assert prediction.regions(min_area=5) == [] and len(prediction.regions()) == 1
    assert replace(prediction, map_threshold=0.7).regions() == []


def test_full_map_does_not_share_memory_with_the_map():
    prediction = predicted([[0.0, 1.0]], (1, 2))
    prediction.full_map()[:] = 7
    assert prediction.map.tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize(("threshold", "verdict"), [(None, None), (0.5, True), (0.51, False), (np.float32(0.4), True)])
def test_verdict_is_whether_the_score_reaches_the_threshold(threshold, verdict):
    assert predicted(threshold=threshold).is_anomalous is verdict


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"score": float("nan")}, "score"),
        ({"score": float("inf")}, "score"),
        ({"amap": [[np.nan, 0.0]]}, "map"),
        ({"amap": [0.0, 1.0]}, "map"),
        ({"amap": np.zeros((0, 3))}, "map"),
        ({"size": (0, 4)}, "size"),
        ({"size": (4, 4, 3)}, "size"),
    ],
)
def test_senseless_prediction_is_refused_by_the_name_of_its_field(fields, word):
    with pytest.raises(ValueError, match=f"^{word} "):
        predicted(**fields)


def test_prediction_and_region_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        predicted().score = 1.0
    with pytest.raises(FrozenInstanceError):
        predicted().regions()[0].area = 1


def test_repr_is_short_and_tells_the_verdict():
    text = repr(predicted(np.zeros((500, 500)), source="a.png", threshold=0.1))
    assert "anomalous" in text and "500x500" in text and "a.png" in text and len(text) < 150
    assert "uncalibrated" in repr(predicted(None))


def test_prediction_survives_a_process_boundary():
    prediction = predicted(phrases={"a": 0.25}, source="a.png")
    again = pickle.loads(pickle.dumps(prediction))
    assert again.to_dict() == prediction.to_dict() and np.array_equal(again.map, prediction.map)


# ---- regions -----------------------------------------------------------------------------------------------------


def test_region_is_measured_in_half_open_pixels_of_the_picture():
    amap = spots(30, 60, (50, 20, 54, 23, 0.6))
    amap[21, 51] = 0.9
    (region,) = predicted(amap, (30, 60)).regions()
    assert region == Region((50, 20, 54, 23), 12, float(np.float32(0.9)), region.mean, (52.0, 21.5), "lower right")
    assert region.mean == pytest.approx((11 * 0.6 + 0.9) / 12)


def test_region_of_a_coarse_map_lies_where_the_picture_is_larger():
    coarse = np.zeros((4, 8))
    coarse[1, 6] = 1.0
    (region,) = predicted(coarse, (40, 160)).regions()
    # the cell is (120, 10, 140, 20); at its left edge, x 120: (1 - 9.5 / 20) * (1 - 0.5 / 10) = 0.499 < 0.5
    assert region.box == (121, 10, 139, 20)
    assert region.center == (130.0, 15.0)


def test_pixels_that_touch_at_a_corner_are_one_region():
    assert [region.area for region in predicted(np.eye(5), (5, 5)).regions()] == [5]


def test_regions_come_with_the_highest_peak_first():
    amap = spots(20, 20, (0, 0, 2, 2, 0.6), (10, 10, 12, 12, 0.9), (0, 15, 2, 20, 0.7))
    assert [round(region.peak, 3) for region in predicted(amap, (20, 20)).regions()] == [0.9, 0.7, 0.6]


def test_threshold_of_regions_is_the_given_else_the_fitted_else_the_methods_own():
    amap = spots(20, 20, (0, 0, 2, 2, 0.3), (5, 5, 7, 7, 0.6), (10, 10, 12, 12, 0.9))
    assert len(predicted(amap, (20, 20)).regions()) == 2
    assert len(predicted(amap, (20, 20), region_level=0.2).regions()) == 3
    assert len(predicted(amap, (20, 20), region_level=0.2, map_threshold=0.7).regions()) == 1
    assert len(predicted(amap, (20, 20), map_threshold=0.7).regions(threshold=0.0)) == 1  # everything, connected
    assert len(predicted(amap, (20, 20)).regions(threshold=float(np.float32(0.9)))) == 1  # reached is enough


def test_small_regions_are_left_out_below_min_area():
    amap = spots(20, 20, (0, 0, 2, 2, 0.9), (10, 10, 13, 13, 0.6))
    assert [region.area for region in predicted(amap, (20, 20)).regions(min_area=5)] == [9]
    assert [region.area for region in predicted(amap, (20, 20)).regions(min_area=4)] == [4, 9]


def test_each_third_of_the_picture_has_its_own_words():
    rows = ["upper left", "top", "upper right", "left", "centre", "right", "lower left", "bottom", "lower right"]
    for index, words in enumerate(rows):
        x, y = 20 + 60 * (index % 3), 10 + 30 * (index // 3)
        (region,) = predicted(spots(90, 180, (x, y, x + 1, y + 1, 1.0)), (90, 180)).regions()
        assert region.location == words


def test_last_pixel_of_a_picture_is_lower_right():
    (region,) = predicted(spots(7, 5, (4, 6, 5, 7, 1.0)), (7, 5)).regions()
    assert (region.box, region.location) == ((4, 6, 5, 7), "lower right")


def test_prediction_without_a_map_has_no_regions_and_says_so_when_drawn():
    prediction = predicted(None)
    assert prediction.regions() == []
    for call in (prediction.full_map, prediction.overlay):
        with pytest.raises(ValueError, match="no map"):
            call()


# ---- to_dict -----------------------------------------------------------------------------------------------------


def test_to_dict_is_plain_json_even_from_numpy_numbers():
    prediction = predicted(
        [[0.0, 0.75]],
        (np.int64(1), np.int64(2)),
        score=np.float32(0.5),
        threshold=np.float64(0.25),
        p_value=np.float32(0.5),
        phrases={"damaged bolt": np.float32(0.25)},
        source=Path("parts") / "a.png",
        name="bolt",
    )
    assert json.loads(json.dumps(prediction.to_dict(), allow_nan=False)) == {
        "source": "parts/a.png",
        "name": "bolt",
        "verdict": "anomalous",
        "score": 0.5,
        "is_anomalous": True,
        "threshold": 0.25,
        "map_threshold": None,
        "p_value": 0.5,
        "size": [1, 2],
        "phrases": {"damaged bolt": 0.25},
        "regions": [
            {
                "box": [1, 0, 2, 1],
                "area": 1,
                "peak": 0.75,
                "mean": 0.75,
                "center": [1.5, 0.5],
                "location": "right",
                "below_threshold": False,
            }
        ],
    }


@pytest.mark.parametrize(
    ("score", "verdict", "called"), [(0.2, "normal", False), (0.4, "unsure", None), (0.7, "anomalous", True)]
)
def test_a_verdict_is_one_word_and_is_anomalous_follows_it(score, verdict, called):
    prediction = predicted([[0.1, 0.2]], score=score, threshold=0.6, unsure=(0.3, 0.6))
    assert (prediction.verdict, prediction.is_anomalous) == (verdict, called)
    assert predicted([[0.1, 0.2]], score=score).verdict == "uncalibrated"


def test_what_is_not_called_normal_has_its_highest_place_marked_where_none_reaches_the_threshold():
    grid = np.full((8, 8), 0.1)
    grid[2:4, 5:7] = 0.3
    for score, marked in ((0.7, True), (0.4, True), (0.2, False)):
        found = predicted(grid, (8, 8), score=score, threshold=0.6, unsure=(0.3, 0.6), map_threshold=0.5).regions()
        assert bool(found) is marked
        if marked:
            assert found[0].below_threshold and found[0].box == (5, 2, 7, 4) and found[0].peak == pytest.approx(0.3)
    reached = predicted(grid, (8, 8), score=0.7, threshold=0.6, map_threshold=0.2).regions()
    assert [region.below_threshold for region in reached] == [False]
    assert predicted(grid, (8, 8), score=0.7).regions() == [], "nothing was calibrated"
    assert predicted(grid, (8, 8), score=0.7, threshold=0.6, map_threshold=0.5).regions(0.9) == [], "asked for"


def test_the_mask_is_where_the_full_map_reaches_the_threshold():
    prediction = predicted([[0.0, 1.0]], (2, 2), map_threshold=0.5)
    assert prediction.mask().tolist() == [[False, True]] * 2 and prediction.mask().dtype == bool
    assert prediction.mask(0.0).all()


# ---- overlay -----------------------------------------------------------------------------------------------------


@pytest.fixture
def photo() -> np.ndarray:
    """uint8 [60, 90, 3], a soft texture."""
    return np.random.default_rng(0).integers(90, 160, (60, 90, 3), dtype=np.uint8)


def test_overlay_leaves_a_good_part_as_the_photo_and_a_defect_hot(photo):
    overlay = predicted(spots(60, 90, (0, 0, 90, 60, 0.2), (40, 20, 50, 30, 1.0)), (60, 90)).overlay(photo)
    assert overlay.mode == "RGB" and overlay.size == (90, 60)
    changed = difference(overlay, photo)
    assert changed[:, :35].max() <= 2 and changed[40:].max() <= 2
    red, _, blue = np.asarray(overlay).astype(int)[25, 45]
    assert red > 180 and red - blue > 80


def test_overlay_grows_with_the_map_value(photo):
    changes = [
        difference(draw_overlay(photo, np.full((60, 90), value), low=0.0, high=1.0), photo).mean()
        for value in (0.0, 0.35, 0.5, 0.75)
    ]
    assert changes[0] == 0 and changes == sorted(changes) and changes[2] > 3 * changes[1]


def test_overlay_scale_is_the_methods_and_not_the_pictures(photo):
    weak = np.random.default_rng(1).random((6, 9)) * 0.15
    assert difference(predicted(weak, (60, 90)).overlay(photo), photo).max() == 0
    assert difference(predicted(weak, (60, 90), scale=(0.0, 0.15)).overlay(photo), photo).max() > 50


def test_stretched_overlay_is_hot_somewhere_and_has_words_on_it(photo):
    weak = spots(60, 90, (40, 20, 50, 30, 0.15))
    stretched = predicted(weak, (60, 90)).overlay(photo, stretch=True)
    assert difference(stretched, photo)[25, 45] > 50
    full_range = predicted(spots(60, 90, (40, 5, 50, 15, 1.0)), (60, 90))  # stretching changes no colour here
    words = difference(full_range.overlay(photo), full_range.overlay(photo, stretch=True))
    assert words[30:].max() > 80 and words[:25].max() == 0


@pytest.mark.parametrize("size", [(1, 1), (8, 200), (200, 8)])
def test_overlay_of_a_tiny_or_narrow_picture_has_its_size(size):
    overlay = predicted([[0.0, 1.0]], size, picture=np.zeros((*size, 3), np.uint8)).overlay(stretch=True)
    assert overlay.size == size[::-1]


def test_flat_map_stretched_stays_cold(photo):
    flat = predicted(np.full((60, 90), 0.1), (60, 90), region_level=1.0)
    assert difference(flat.overlay(photo, stretch=True), photo)[:30].max() == 0


def test_overlay_outlines_the_strongest_regions_only(photo):
    columns = [(4 * index, 2, 4 * index + 2, 4, 0.6 + 0.02 * index) for index in range(DRAWN_BOXES + 2)]
    overlay = predicted(spots(60, 90, *columns), (60, 90), scale=(0.0, 100.0)).overlay(photo)
    changed = difference(overlay, photo)
    assert changed[:, 0].max() == 0  # the weakest
    assert all((np.asarray(overlay)[4, x0] == 255).all() for x0, *_ in columns[2:])  # white, below each box


def test_overlay_takes_the_given_picture_else_the_kept_one_else_the_file(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "a.png")
    black, cold = np.zeros_like(photo), np.zeros((6, 9))
    kept = predicted(cold, (60, 90), picture=black, source=tmp_path / "a.png")
    assert np.array_equal(np.asarray(kept.overlay()), black)
    assert np.array_equal(np.asarray(kept.overlay(Image.fromarray(photo))), photo)
    assert np.array_equal(np.asarray(predicted(cold, (60, 90), source=tmp_path / "a.png").overlay()), photo)


def test_overlay_without_its_picture_says_what_to_pass(tmp_path, photo):
    with pytest.raises(ValueError, match=r"overlay\(picture\)"):
        predicted().overlay()
    with pytest.raises(ImageError, match=r"gone\.png"):
        predicted(source=tmp_path / "gone.png").overlay()
    with pytest.raises(ValueError, match=r"\(60, 90\).*\(2, 2\)"):
        predicted().overlay(photo)


def test_overlay_does_not_paint_on_the_photo_it_was_given(photo):
    before = photo.copy()
    predicted(np.ones((6, 9)), (60, 90)).overlay(photo)
    assert np.array_equal(photo, before)


def test_saved_overlay_is_the_overlay_and_nothing_else_is_left(tmp_path, photo):
    prediction = predicted([[0.0, 1.0]], (60, 90), picture=photo)
    for _ in range(2):  # the second time over an existing file
        prediction.save(tmp_path / "maps" / "a.jpg.png")
    with Image.open(tmp_path / "maps" / "a.jpg.png") as saved:
        assert saved.format == "PNG" and difference(saved, prediction.overlay()).max() == 0
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["a.jpg.png"]


def test_failed_save_leaves_the_old_overlay_alone(tmp_path, photo, monkeypatch):
    prediction = predicted([[0.0, 1.0]], (60, 90), picture=photo)
    (tmp_path / "a.png").write_bytes(b"old")

    def full_disk(image, path, **_):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="disk full"):
        prediction.save(tmp_path / "a.png")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_overlay_is_not_written_under_a_suffix_of_another_format(tmp_path, photo):
    with pytest.raises(ValueError, match=r"a\.jpg.*\.png"):
        predicted([[0.0]], (60, 90), picture=photo).save(tmp_path / "a.jpg")
