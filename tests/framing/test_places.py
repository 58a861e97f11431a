"""What counts of a picture: boxes, polygons and masks, on pictures of every size, from Python to the command line."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import vlad
from vlad.cli import app
from vlad.framing import Framing, framing
from vlad.framing.places import cells, places

LEFT = np.zeros((60, 80), bool)
LEFT[:, :30] = True


@pytest.fixture(scope="module")
def pictures(golden_weights):
    return [golden_weights.image(seed, 96) for seed in range(8)]


def spoiled(picture, box):
    """The picture with noise in a box (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = box
    other = picture.copy()
    other[y0:y1, x0:x1] = np.random.default_rng(1).integers(0, 256, (y1 - y0, x1 - x0, 3))
    return other


# ---- which pixels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ignore", "expected"),
    [
        ([(10, 20, 30, 50)], (10, 20, 30, 50)),
        ([(0.125, 0.5, 0.5, 1)], (10, 30, 40, 60)),
        ([[(20, 10), (40, 10), (40, 30), (20, 30)]], (20, 10, 41, 31)),  # a polygon's own corners belong to it
        (LEFT, (0, 0, 30, 60)),
        (LEFT.astype(np.uint8) * 255, (0, 0, 30, 60)),
        (Image.fromarray(LEFT), (0, 0, 30, 60)),
    ],
)
def test_boxes_polygons_and_masks_mark_the_pixels_they_say(ignore, expected):
    x0, y0, x1, y1 = expected
    wanted = np.zeros((60, 80), bool)
    wanted[y0:y1, x0:x1] = True
    np.testing.assert_array_equal(places(ignore=ignore).ignored((60, 80)), wanted)


def test_a_mask_is_scaled_to_pictures_of_another_size_and_refuses_another_shape():
    these = places(ignore=LEFT)
    these.check((120, 160))
    assert these.ignored((120, 160))[:, :60].all() and not these.ignored((120, 160))[:, 60:].any()
    with pytest.raises(ValueError, match=r"has 60 x 80 pixels, and the mask .* has 80 x 60: .* another shape"):
        these.check((80, 60))


def test_a_box_in_pixels_that_reaches_out_of_a_picture_is_refused():
    places(roi=(0, 0, 80, 60)).check((60, 80))
    with pytest.raises(ValueError, match=r"has 70 x 60 pixels, and the box \(0, 0, 80, 60\) reaches out"):
        places(roi=(0, 0, 80, 60)).check((60, 70))
    with pytest.raises(ValueError, match="nothing is left to look at"):
        places(roi=(0, 0, 20, 20), ignore=LEFT).check((60, 80))


def test_what_is_painted_over_comes_from_beside_alone():
    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    these = places(ignore=[(20, 10, 50, 40), (0, 55, 80, 60)])
    framed, other = (these.framed(one) for one in (picture, spoiled(picture, (20, 10, 50, 40))))
    np.testing.assert_array_equal(framed.picture, other.picture)
    np.testing.assert_array_equal(framed.picture[~framed.ignored], picture[~framed.ignored])
    assert (framed.picture[55:, 5] == picture[53:48:-1, 5]).all(), "mirrored at the edge"


@pytest.mark.parametrize("grain", [1, 500])
def test_large_pictures_are_painted_over_from_counted_pixels_too(grain):
    """A fine grain leaves no block whole, a coarse one does."""
    size = (1500, 1601)
    chequered = (np.indices(size) // grain).sum(axis=0) % 2 == 0
    picture = np.where(chequered[..., None], np.uint8(255), np.uint8(7)).repeat(3, 2)
    assert (places(ignore=chequered).framed(picture).picture == 7).all()


def test_a_cell_is_ignored_from_half_of_it_on():
    mask = np.zeros((8, 8), bool)
    mask[:, :2] = True
    mask[:3, 4:6] = True
    np.testing.assert_array_equal(cells(mask, (2, 2)), [[True, False], [True, False]])


@pytest.mark.parametrize("given", [{"roi": (1, 2, 30, 40)}, {"ignore": [(0, 0, 0.5, 1)]}, {"ignore": LEFT}])
def test_places_come_back_from_plain_values(given):
    kept = json.loads(json.dumps(framing(**given).to_dict()))
    assert Framing.from_dict(kept) == framing(**given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"roi": (1, 2, 3)}, "roi has .* expected a box"),
        ({"roi": (10, 0, 5, 5)}, "empty"),
        ({"roi": (0, 0, float("nan"), 5)}, "expected a box"),
        ({"roi": "left"}, "expected a box"),
        ({"ignore": [(0, 0, -1, 5)]}, "or a polygon"),
        ({"ignore": [[(0, 0), (5, 5)], [(1, 1)]]}, "or a polygon"),
        ({"ignore": np.zeros((5, 5), bool)}, "marks nothing"),
        ({"ignore": np.ones((5, 5), bool)}, "marks everything"),
        ({"ignore": "absent.png"}, "absent.png"),
    ],
)
def test_places_that_cannot_be_say_what_was_given_and_what_is_allowed(given, words):
    with pytest.raises(ValueError, match=words):
        vlad.load("patch_text", "bolt", **given)


# ---- detectors ---------------------------------------------------------------------------------------------------


def test_the_map_of_a_roi_lies_where_the_roi_does(tiny_encoder, pictures):
    whole = np.zeros((200, 320, 3), np.uint8)
    whole[60:156, 200:296] = pictures[0]
    found = vlad.load(name="bolt", encoder=tiny_encoder, roi=(200, 60, 296, 156)).predict(whole)
    alone = vlad.load(name="bolt", encoder=tiny_encoder).predict(pictures[0])
    assert found.score == pytest.approx(alone.score, abs=1e-6) and found.size == (200, 320)
    full = found.full_map()
    assert np.abs(full[60:156, 200:296] - alone.full_map()).mean() < 0.01
    full[60:156, 200:296] = 0
    assert not full.any(), "zero is the lowest value of its scale"
    assert all(
        x0 >= 200 and y0 >= 60 and x1 <= 296 and y1 <= 156 for x0, y0, x1, y1 in (r.box for r in found.regions())
    )


def test_a_spoiled_place_that_is_ignored_is_neither_scored_nor_marked_but_hatched(tiny_encoder, pictures):
    box = (0, 0, 96, 30)
    bad = [spoiled(picture, box) for picture in pictures]
    detector = vlad.load(name="bolt", encoder=tiny_encoder, ignore=[box]).fit(bad[:6])
    clean = vlad.load(name="bolt", encoder=tiny_encoder, ignore=[box]).fit(pictures[:6])
    assert detector.calibration == clean.calibration and detector.map_calibration == clean.map_calibration
    found = detector.predict(bad[7])
    assert found.score == clean.predict(pictures[7]).score
    assert (found.full_map()[:30] == found.map.min()).all() and not found.mask(found.map.min() + 1e-6)[:30].any()
    drawn, plain = (np.asarray(one, int) for one in (found.overlay(bad[7]), Image.fromarray(bad[7])))
    assert (np.abs(drawn - plain)[:30].max(axis=2) > 0).mean() > 0.9


def test_ignored_places_are_kept_in_the_file_and_can_be_set_later(tiny_encoder, pictures, tmp_path):
    detector = vlad.load(name="bolt", encoder=tiny_encoder).fit(pictures[:6])
    box = (0, 0, 96, 30)
    assert detector.ignore is None
    detector.ignore = [box]
    assert detector.ignore == [list(box)] and detector.threshold is not None
    detector.save(tmp_path / "bolt.safetensors")
    loaded = vlad.load(tmp_path / "bolt.safetensors", encoder=tiny_encoder)
    assert loaded.framing == detector.framing
    assert loaded.predict(spoiled(pictures[7], box)).score == detector.predict(pictures[7]).score
    other = vlad.load(tmp_path / "bolt.safetensors", encoder=tiny_encoder, ignore=LEFT)
    np.testing.assert_array_equal(other.ignore, LEFT)
    with pytest.raises(TypeError, match="records its own options; leave out roi"):
        vlad.load(tmp_path / "bolt.safetensors", encoder=tiny_encoder, roi=box)


def test_a_picture_that_cannot_be_framed_takes_its_place_as_an_error(tiny_encoder, pictures):
    detector = vlad.load(name="bolt", encoder=tiny_encoder, ignore=np.eye(96, dtype=bool))
    found = list(detector.stream([pictures[0], pictures[1][:40]], on_error="yield"))
    assert isinstance(found[0], vlad.Prediction) and isinstance(found[1], vlad.ImageError)
    assert "another shape" in str(found[1])
    with pytest.raises(vlad.ImageError, match="another shape"):
        detector.fit([pictures[0], pictures[1][:40]])


def test_the_command_line_frames_pictures_and_goes_on_only_with_the_same_frame(pictures, tmp_path):
    good, mask = tmp_path / "good", np.zeros((96, 96), bool)
    good.mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(good / f"{i}.png")
    mask[:30] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    file, out, run = tmp_path / "bolt.safetensors", tmp_path / "out", CliRunner()
    fit = ["fit", str(good), "--name", "bolt", "--out", str(file), "--ignore", str(tmp_path / "mask.png")]
    assert run.invoke(app, [*fit, "--roi", "0,0,0.9,1"]).exit_code == 0
    kept = vlad.load(file).framing.places
    assert kept.roi == (0, 0, 0.9, 1) and kept.ignored((96, 96)).sum() == mask.sum()
    score = ["score", str(good), "--out", str(out), "--name", "bolt"]
    assert run.invoke(app, [*score, "--roi", "0,0,0.5,1"]).exit_code == 0
    said = run.invoke(app, [*score, "--resume", "--roi", "0,0,0.6,1"])
    assert said.exit_code == 2 and "framing" in said.output
    said = run.invoke(app, [*score[:2], "--name", "bolt", "--roi", "left"])
    assert said.exit_code == 2 and "roi has ['left']" in said.output
