"""What tiles of large photos are cut from: a picture reduced by a whole number, the same of a file and of an array."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vlad
from vlad.detector.predicting import reading_of
from vlad.framing.looking import reduction, views_of
from vlad.framing.places import Framed
from vlad.images import Reader, Remarks, read
from vlad.images.sizes import SPARE, TILED, factor, reduced

HEIGHT, WIDTH = 2503, 3301  # primes, above TILED together
WHOLE = 2499, 3304  # multiples of 7
TURNED = 0x0112

pytestmark = pytest.mark.filterwarnings("ignore:.*is seen .* times smaller", "ignore:no threshold")


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """uint8 [H, W, 3] without symmetry, and with grain."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 200, (40, 50, 3), np.uint8)).resize((WIDTH + 3, HEIGHT))
    return np.asarray(coarse) + rng.integers(0, 55, (HEIGHT, WIDTH + 3, 1), np.uint8)


@pytest.fixture(scope="module")
def tiled(tiny_encoder):
    return vlad.load("patch_text", "plate", encoder=tiny_encoder, resolution=64, tiles=2)


def files(folder: Path, photo: np.ndarray) -> dict[str, Path]:
    """The picture as files of many kinds, by name."""
    picture, upright = photo[:, :WIDTH], Image.Exif()
    upright[TURNED] = 6  # row 0 is at the right
    jpeg = partial(Image.Image.save, quality=90, exif=upright)
    opaque = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    fast = partial(Image.Image.save, compress_level=1)
    kinds = {
        "plain.jpg": (picture, partial(Image.Image.save, quality=90)),
        "plain.png": (picture, fast),
        "grey.png": (picture[..., 0], fast),
        "alpha.png": (np.dstack([picture, opaque]), fast),
        "plain.tif": (picture, Image.Image.save),
        "turned, primes.jpg": (picture, jpeg),
        "turned, whole.jpg": (photo[: WHOLE[0], : WHOLE[1]], jpeg),
    }
    for name, (values, save) in kinds.items():
        save(Image.fromarray(np.ascontiguousarray(values)), folder / name)
    return {name: folder / name for name in kinds}


def test_a_file_and_its_pixels_are_scored_alike_to_the_bit(tiled, tmp_path, photo):
    read_smaller = set()
    for name, path in files(tmp_path, photo).items():
        with Remarks() as remarks:
            reading = reading_of(path, Reader(), remarks, tiled.scorer)
        read_smaller |= {name} if reading.whole is None else set()
        of_file, of_pixels = tiled.predict(path), tiled.predict(read(path))
        assert of_file.size == of_pixels.size
        assert of_file.score == of_pixels.score, name
        assert (of_file.map == of_pixels.map).all(), name
    assert read_smaller == {"plain.jpg", "plain.png", "grey.png", "turned, whole.jpg"}


def test_what_is_no_file_keeps_its_pixels_for_its_overlay(tiled, tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "a.jpg", quality=90)
    for given in (photo, (tmp_path / "a.jpg").read_bytes()):
        found = tiled.predict(given)
        assert found.picture.shape == photo.shape
        assert found.overlay().size == photo.shape[1::-1]
    assert tiled.predict(tmp_path / "a.jpg").overlay().size == photo.shape[1::-1]


@pytest.mark.parametrize("options", [{"tiles": 2}, {"tiles": (1, 3)}, {"tiles": 2, "keep_aspect": True}])
def test_a_detector_fitted_on_files_is_that_fitted_on_their_pixels_saved_or_not(tiny_encoder, tmp_path, photo, options):
    made = partial(vlad.load, "patch_memory", encoder=tiny_encoder, resolution=64, **options)
    shots = [np.roll(photo[:, :WIDTH], shift, axis) for shift, axis in ((0, 0), (300, 0), (500, 1))]
    for number, shot in enumerate(shots):
        Image.fromarray(shot).save(tmp_path / f"{number}.png", compress_level=1)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    of_files, of_pixels = made().fit(paths[:2]), made().fit(shots[:2])
    assert of_files.judge.calibration.scores == of_pixels.judge.calibration.scores
    assert of_files.predict(shots[0]).score == pytest.approx(0, abs=1e-3), "it is in the memory"
    of_files.save(tmp_path / "detector.safetensors")
    again = vlad.load(tmp_path / "detector.safetensors", encoder=tiny_encoder)
    found = [one.predict(given).score for one in (of_files, of_pixels, again) for given in (paths[2], shots[2])]
    assert len(set(found)) == 1 and found[0] > 0.01


def test_a_mark_at_the_edge_of_a_reduced_picture_with_prime_sides_stays_where_it_is(tiled):
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[-90:-40, -110:-60] = 255
    by = reduction(tiled.scorer, (HEIGHT, WIDTH))
    assert by == 7
    whole = Framed.whole(picture)
    seen = [one.resized((112, 144), Image.Resampling.BICUBIC)[..., 0] for one in (whole, whole.reduced(by))]
    middles = [
        [(np.arange(n) + 0.5) @ one.sum(1 - axis) / one.sum() for axis, n in enumerate(one.shape)] for one in seen
    ]
    assert middles[1] == pytest.approx(middles[0], abs=0.02)
    plain = np.abs(seen[0].astype(int) - seen[1])
    assert plain.max() < 40, "no shift of a tenth of a pixel either"
    views = views_of(tiled.scorer, [picture])
    like = whole.reduced(by).resized((64, 64), Image.Resampling.BICUBIC)
    assert (views.wholes[0][0] == tiled.scorer.pixels([like])).all(), "the look at the whole is cut from it as well"


def test_boxes_are_squares_of_whole_pixels_with_their_means(photo):
    found = reduced(photo, 7)
    assert found.shape == (-(-HEIGHT // 7), -(-(WIDTH + 3) // 7), 3)
    assert np.abs(found[100, 200] - photo[700:707, 1400:1407].mean((0, 1))).max() <= 0.51
    assert np.abs(found[-1, -1] - photo[357 * 7 :, 471 * 7 :].mean((0, 1))).max() <= 0.51


def test_ordinary_pictures_and_looks_at_the_whole_alone_are_not_reduced(tiny_encoder, tmp_path, photo):
    load = partial(vlad.load, "patch_text", "plate", encoder=tiny_encoder)
    Image.fromarray(photo).save(tmp_path / "a.jpg")
    for options in ({}, {"looks": (1, 2)}, {"keep_aspect": True}):
        scorer = load(**options).scorer
        assert reduction(scorer, (4000, 6000)) == 1
        with Remarks() as remarks:
            assert reading_of(tmp_path / "a.jpg", Reader(), remarks, scorer).picture.shape == photo.shape
    assert factor((2000, TILED // 2000), (100, 100)) == 1
    assert reduction(load(tiles=2).scorer, (4000, 6000)) == 4000 // (SPARE * 400)
    assert reduction(load(tiles=(2, 3)).scorer, (4000, 6000)) == 4000 // (SPARE * 560)
    assert reduction(load(smallest_defect=24).scorer, (4000, 6000)) == 1, "all of it is looked at"


def test_places_are_those_of_the_picture_itself(tiled, tiny_encoder, tmp_path, photo):
    load = partial(vlad.load, "patch_text", "plate", encoder=tiny_encoder, resolution=64, tiles=2)
    edged = np.pad(photo[:, :WIDTH], ((301, 97), (203, 99), (0, 0)))
    Image.fromarray(edged).save(tmp_path / "edged.png", compress_level=1)
    box = (203, 301, 203 + WIDTH, 301 + HEIGHT)
    alone = tiled.predict(photo[:, :WIDTH])
    for given in (edged, tmp_path / "edged.png"):
        assert load(roi=box).predict(given).score == alone.score
    ignoring = load(ignore=[(1000, 900, 1900, 1800)])
    spoiled = photo.copy()
    spoiled[900:1800, 1000:1900] = 255
    Image.fromarray(spoiled).save(tmp_path / "spoiled.png", compress_level=1)
    meant = ignoring.predict(photo)
    for given in (spoiled, tmp_path / "spoiled.png"):
        assert ignoring.predict(given).score == meant.score
    assert meant.score != tiled.predict(photo).score


def test_a_large_file_with_too_many_tiles_says_so(tiny_encoder, tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "a.jpg")
    detector = vlad.load("patch_text", "plate", encoder=tiny_encoder, resolution=64, tile_scale=1.0)
    with pytest.raises(vlad.ImageError, match=r"a\.jpg: it has 3304 x 2503 pixels, \d+ tiles; 1024 fit"):
        detector.predict(tmp_path / "a.jpg")


def test_the_shape_of_a_closer_look_is_that_of_the_whole_photo(tiny_encoder, tmp_path, photo):
    """A layout made from the reduced copy would ask for other tiles."""
    detector = vlad.load("patch_text", "plate", encoder=tiny_encoder, resolution=64, tile_scale=0.1)
    assert reduction(detector.scorer, photo.shape[:2]) == 3
    assert detector.predict(photo).map.shape[0] == pytest.approx(0.1 * HEIGHT / 16, abs=1)
