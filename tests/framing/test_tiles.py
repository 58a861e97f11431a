"""Closer looks: where tiles lie, how their maps meet, what is remembered of them, and what refuses them."""

import math
import warnings
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vlad
from vlad.framing import Framing, Look, framing
from vlad.framing.looking import TILE_ROWS, passes
from vlad.framing.tiles import Canvas, layout
from vlad.memory import Memory
from vlad.synthetic.large import large_photo

PICTURES = Path(__file__).parents[2] / "examples" / "pictures"
BRICKS = ("good", "scratched")


@pytest.fixture(scope="module")
def pictures(golden_weights):
    return [golden_weights.image(seed, 300)[:, :200] for seed in range(7)]


# ---- where tiles lie ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("look", [Look("tiles", 1), Look("tiles", 2), Look("tiles", 5), Look("scale", 0.5)])
@pytest.mark.parametrize("size", [(512, 384), (100, 90), (15, 300), (64, 1280), (1000, 999)])
def test_tiles_cover_the_picture_on_the_lattice_and_lie_over_each_other(look, size):
    where = layout(look, size, 224, 16)
    for edges, length in ((where.rows, where.size[0]), (where.columns, where.size[1])):
        assert edges[0] == 0 and edges[-1] + 224 == length and length % 16 == 0
        assert all(edge % 16 == 0 for edge in edges)
        assert all(b - a <= 11 * 16 for a, b in pairwise(edges))
    assert len(list(where)) == len(where)


def test_two_tiles_along_the_shorter_side_are_four_of_a_square_and_six_of_a_photo():
    assert len(layout(Look("tiles", 2), (500, 500), 224, 16)) == 4
    assert len(layout(Look("tiles", 2), (3000, 4000), 224, 16)) == 6
    assert layout(Look("tiles", 2), (500, 500), 224, 16).size == (400, 400)


def test_the_smallest_defect_sets_the_scale_and_enlarges_twice_at_most():
    for defect, scale in ((24, 1.0), (96, 0.25), (3, 2.0)):
        (look,) = framing(smallest_defect=defect).closer(16)
        assert look == Look("scale", scale)
    where = layout(Look("scale", 0.5), (3000, 4000), 224, 16)
    assert where.size == (1504, 2000)
    assert layout(Look("scale", 0.5), (100, 100), 224, 16).size == (224, 224), "never below one tile"


def test_more_tiles_than_fit_are_refused_with_what_fits():
    with pytest.raises(ValueError, match=r"6000 x 4000 pixels, \d+ tiles; 1024 fit, with tile_scale=1\.\d+"):
        layout(Look("scale", 2.0), (4000, 6000), 224, 16)
    fits = layout(Look("scale", 1.08), (4000, 6000), 224, 16)
    assert len(fits) <= 1024
    with pytest.raises(ValueError, match="fit, with tiles=7"):
        layout(Look("tiles", 16), (100, 2000), 224, 16)
    assert len(layout(Look("tiles", 7), (100, 2000), 224, 16)) <= 1024


@pytest.mark.parametrize("fine", [1, 3])
def test_parts_of_one_map_meet_in_it_again(fine):
    where = layout(Look("tiles", 3), (500, 800), 224, 16)
    height, width = (length // 16 * fine for length in where.size)
    whole, side = torch.rand(height, width), 14 * fine
    canvas = Canvas(where)
    for y, x in where:
        top, left = y // 16 * fine, x // 16 * fine
        canvas.add(whole[None, top : top + side, left : left + side], [(y, x)])
    torch.testing.assert_close(canvas.mean(), whole, atol=1e-5, rtol=0)


def test_where_tiles_disagree_the_one_whose_middle_is_closer_counts_more():
    where = layout(Look("tiles", 1), (224, 384), 224, 16)
    assert where.columns == (0, 160)
    canvas = Canvas(where)
    canvas.add(torch.stack([torch.zeros(14, 14), torch.ones(14, 14)]), list(where))
    row = canvas.mean()[7]  # both tiles lie over the places 10 to 13
    assert row[:10].max() == 0 and row[14:].min() == 1
    assert (row.diff() >= -1e-6).all() and row[10] < 0.3 and row[13] > 0.7


# ---- detectors ---------------------------------------------------------------------------------------------------


def test_score_and_map_are_the_means_of_the_whole_and_of_its_tiles(tiny_encoder, pictures):
    plain, closer = (vlad.load(name="bolt", encoder=tiny_encoder, tiles=tiles) for tiles in (None, 1))
    square = pictures[0][:200]  # one tile, and that is the whole
    one, other = plain.predict(square), closer.predict(square)
    assert other.score == pytest.approx(one.score, abs=1e-6)
    np.testing.assert_allclose(other.map, one.map, atol=1e-6)
    tall = closer.predict(pictures[0])
    assert tall.map.shape == (21, 14)
    parts = [plain.predict(pictures[0]).score, tall.score]
    assert parts[0] != parts[1]


def test_tiles_are_as_light_as_their_picture(tiny_encoder):
    """`tiny` levels brightness: a dark corner must not be taken for a picture of its own."""
    picture = np.full((448, 448, 3), 200, np.uint8)
    picture[:224, :224] = 40
    whole = tiny_encoder.pixels([picture], 224)
    tile = tiny_encoder.pixels([picture[:224, :224]], 224, like=picture)
    assert tile.mean().item() == pytest.approx(whole[..., :100, :100].mean().item(), abs=0.02)
    assert abs(tiny_encoder.pixels([picture[:224, :224]], 224).mean().item()) < abs(tile.mean().item()) / 2


def test_a_small_spot_that_the_whole_does_not_see_is_the_highest_place_in_tiles(tiny_encoder):
    blocks = np.random.default_rng(0).normal(128, 40, (3, 70, 93)).repeat(10, 1).repeat(10, 2)
    blocks[2, 342:358, 592:608] += np.where(np.arange(16) // 2 % 2, 50, -50)[:, None]  # grey, seen from afar
    photos = [np.clip(one, 0, 255).astype(np.uint8) for one in blocks]
    for options, found in (({}, False), ({"smallest_defect": 24}, True)):
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            detector = vlad.load("patch_memory", encoder=tiny_encoder, **options).fit(photos[:2])
        full = detector.predict(photos[2]).full_map()
        y, x = np.unravel_index(full.argmax(), full.shape)
        assert (math.hypot(y - 350, x - 600) < 24) is found


def test_a_scratched_brick_beside_seven_good_ones_is_told_from_eight_good_ones(tiny_encoder):
    good, scratched = (np.asarray(Image.open(PICTURES / f"brick_{kind}.jpg").convert("RGB")) for kind in BRICKS)
    rows = [np.concatenate([good] * 3 + [one] + [good] * 4, axis=1) for one in (good, scratched)]
    with pytest.warns(UserWarning, match="3072 x 384 pixels and is seen 14 times smaller"):
        plain = vlad.load(name="surface", encoder=tiny_encoder).predict(rows)
    closer = vlad.load(name="surface", encoder=tiny_encoder, smallest_defect=41).predict(rows)
    assert plain[1].score < 0.05, "of the whole nothing is seen"
    assert closer[0].score < 0.05 < 0.2 < closer[1].score
    (region, *_) = closer[1].regions()
    assert 3 * 384 <= region.box[0] < region.box[2] <= 4 * 384


def test_the_score_of_tiles_is_the_rule_of_the_map_that_they_make_together(tiny_encoder, pictures):
    detector = vlad.load(name="bolt", encoder=tiny_encoder, tiles=2)
    found = detector.predict(pictures[0])
    plain = vlad.load(name="bolt", encoder=tiny_encoder).predict(pictures[0])
    size = found.map.shape
    whole = torch.nn.functional.interpolate(torch.from_numpy(plain.map)[None, None], size, mode="bilinear")[0, 0]
    tiles = 2 * torch.from_numpy(found.map) - whole
    rule = (tiles.max() * tiles.mean()).sqrt().item()
    assert found.score == pytest.approx((plain.score + rule) / 2, abs=1e-5)


def test_a_picture_owns_the_rows_of_its_tiles_and_is_left_out_with_them(tiny_encoder, pictures):
    detector = vlad.load("patch_memory", encoder=tiny_encoder, tiles=2).fit(pictures[:6])
    (look,) = detector.scorer.closer
    rows = look.memory.owners.bincount().tolist()
    assert look.memory.ids == detector.references and len(set(rows)) == 1 and len(rows) == 6
    others = vlad.load("patch_memory", encoder=tiny_encoder, tiles=2).fit(pictures[1:6])
    alone = others.predict(pictures[0])
    assert min(abs(score - alone.score) for score in detector.calibration.scores) < 1e-6
    assert min(abs(peak - float(alone.map.max())) for peak in detector.map_calibration.scores) < 1e-6


def test_a_memory_keeps_so_many_rows_of_the_parts_that_it_joins():
    memory = Memory(8)
    memory.add(torch.randn(1, 5, 8))
    memory.add(torch.randn(3, 50, 8))
    first = memory.rows[:5].clone()
    memory.join(1, 40)
    assert memory.ids == ["0", "1"] and memory.owners.tolist() == [0] * 5 + [1] * 40
    assert torch.equal(memory.rows[:5], first)
    assert TILE_ROWS == 20_000


def test_words_are_taken_by_every_look(tiny_encoder, pictures):
    detector = vlad.load(encoder=tiny_encoder, tiles=2, name="bolt").describe("cloth")
    fresh = vlad.load(encoder=tiny_encoder, tiles=2, name="cloth")
    assert detector.predict(pictures[0]).score == fresh.predict(pictures[0]).score
    copy = detector.copy().fit(pictures[:5])
    assert not detector.references and not detector.scorer.closer[0].references
    assert copy.scorer.closer[0].references == copy.references


def test_a_picture_keeps_its_shape_in_about_as_many_patches(tiny_encoder, pictures):
    kept = vlad.load(name="bolt", encoder=tiny_encoder, keep_aspect=True)
    assert kept.predict(pictures[0]).map.shape == (17, 11)
    mixed = [pictures[0], pictures[1][:200], pictures[2]]
    for one, other in zip(kept.predict(mixed), map(kept.predict, mixed), strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-6)


def test_passes_are_counted_before_anything_is_scored(tiny_encoder):
    size = (3000, 4000)
    for options, count in (({}, 1), ({"looks": (1, 2)}, 5), ({"tiles": 2}, 7), ({"tile_scale": 0.25}, 25)):
        assert passes(vlad.load(encoder=tiny_encoder, **options).scorer, size) == count
    detector = vlad.load(name="bolt", encoder=tiny_encoder, tile_scale=2.0)
    (error,) = detector.stream([np.zeros((4000, 6000, 3), np.uint8)], on_error="yield")
    assert isinstance(error, vlad.ImageError) and "1024 fit" in str(error)


@pytest.mark.filterwarnings("ignore:.*no threshold")
def test_what_a_scale_costs_is_said_once_a_run_before_the_first_picture_is_scored(tiny_encoder, pictures, caplog):
    detector = vlad.load(name="bolt", encoder=tiny_encoder, smallest_defect=24)
    results = detector.stream(pictures[:2])
    next(results)
    assert "200 x 300 pixels and is seen at 224 x 336 (0.1 megapixels): 3 passes" in caplog.text
    assert passes(detector.scorer, (300, 200)) == 3
    list(results)
    assert len(caplog.records) == 1
    detector.fit(pictures[2:4])
    assert len(caplog.records) == 2
    vlad.load(name="bolt", encoder=tiny_encoder, tiles=2).predict(pictures[0])
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tiles": 0}, "tiles is .*expected a number from 1"),
        ({"tiles": (3, 2)}, "tiles is"),
        ({"tiles": True}, "tiles is"),
        ({"tiles": "2"}, "tiles is"),
        ({"looks": (2,)}, "looks is"),
        ({"looks": (1, 16)}, "3584 px; 2048 is the most"),
        ({"tile_scale": 0}, "tile_scale is 0"),
        ({"tile_scale": 5}, "up to 2"),
        ({"smallest_defect": float("nan")}, "smallest_defect is nan"),
        ({"keep_aspect": "yes"}, "keep_aspect is 'yes'"),
        ({"tiles": 2, "smallest_defect": 9}, "tiles and smallest_defect each say how closely to look; give one"),
        ({"tiles": 2, "looks": (1, 2)}, "tiles and looks each say"),
    ],
)
def test_looks_that_cannot_be_say_what_was_given_and_what_is_allowed(options, words, tiny_encoder):
    with pytest.raises(ValueError, match=words):
        vlad.load(name="bolt", encoder=tiny_encoder, **options)


def test_a_framing_comes_back_from_plain_values():
    given = framing(tiles=(2, 3), keep_aspect=True, roi=(0, 0, 5, 5))
    assert Framing.from_dict(given.to_dict()) == given
    assert Framing().to_dict() == {}
    with pytest.raises(ValueError, match="a way that is not known: tile"):
        Framing.from_dict({"tile": 2})


@pytest.mark.slow
def test_with_tiles_one_good_part_of_ten_is_called_anomalous_after_nine_normals(tiny_encoder):
    """Over 100 splits of drawn parts of one surface: thresholds are one a picture, not one a tile."""
    surface = partial(large_photo, size=(56, 56))
    parts = [surface(np.random.default_rng(5), part=np.random.default_rng((5, part)))[0] for part in range(60)]
    detector = vlad.load("patch_memory", encoder=tiny_encoder, resolution=32, tiles=2)
    alarms = []
    for split in range(100):
        order = np.random.default_rng(split).permutation(len(parts))
        detector.fit([parts[number] for number in order[:9]])
        alarms += [one.is_anomalous for one in detector.predict([parts[number] for number in order[9:15]])]
    assert 0.04 < np.mean(alarms) < 0.16
