"""Very large pictures are made smaller where they are read, and memory stays bounded."""

import json
import os
import subprocess
import sys
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vlad
from vlad.framing.places import places
from vlad.images import Reader, read
from vlad.images.drawing import draw_overlay
from vlad.images.sizes import LARGE, SPARE, bands, factors, resized

GIGABYTES = 2.0
HEIGHT, WIDTH = 5000, 5200  # above LARGE


pytestmark = pytest.mark.filterwarnings("ignore:.*is seen .* times smaller", "ignore:Image size")


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    """uint8 [H, W, 3] without symmetry."""
    coarse = np.random.default_rng(0).integers(0, 200, (40, 50, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((WIDTH, HEIGHT)))


def test_ordinary_pictures_and_whole_readings_are_never_reduced(large):
    assert factors((5000, 5000), 224) == (1, 1)
    assert factors((13300, 13300), None) == (1, 1)
    assert Reader().read(large).shape == large.shape


@pytest.mark.parametrize("size", [(5000, 5200), (13300, 13300), (56, 1048576), (9973, 9967), (2, 40_000_000)])
def test_each_side_keeps_three_times_what_is_looked_at_and_at_most_twice_that(size):
    for length, factor in zip(size, factors(size, 224), strict=True):
        left = -(-length // factor)
        assert left >= min(length, SPARE * 224)
        assert left <= max(length if factor == 1 else 0, 2 * SPARE * 224 + 2)
        assert factor * left - length <= 3, "the last box is nearly whole, so nothing is stretched"


def test_a_reduced_picture_has_the_means_of_boxes_and_says_the_size_it_had(large):
    small, size = Reader().read_for(224, large)
    down, right = factors(size, 224)
    assert size == (HEIGHT, WIDTH) and down > 3 and right > 3
    rows, columns = 100, 333
    box = large[rows * down : (rows + 1) * down, columns * right : (columns + 1) * right]
    assert np.abs(small[rows, columns] - box.mean((0, 1))).max() <= 1


def test_bands_of_rows_cover_a_picture_once_and_end_at_whole_boxes():
    rows = list(bands((13300, 13300), 7))
    assert rows[0].start == 0 and rows[-1].stop == 13300
    assert all(before.stop == after.start and before.stop % 7 == 0 for before, after in pairwise(rows))


def files(folder: Path, large: np.ndarray) -> list[Path]:
    """Of one large picture."""
    turned = Image.Exif()
    turned[0x0112] = 6  # row 0 is at the right
    alpha = np.dstack([large, np.full(large.shape[:2], 255, np.uint8)])
    Image.fromarray(large).save(folder / "plain.tif")
    Image.fromarray(alpha).save(folder / "alpha.png", compress_level=1)
    Image.fromarray(large[..., 0].astype(np.uint16) * 257).save(folder / "deep.tif")
    Image.fromarray(np.ascontiguousarray(np.rot90(large))).save(folder / "turned.jpg", quality=95, exif=turned)
    return list(folder.iterdir())


def test_files_of_every_kind_are_reduced_to_the_picture_that_they_hold(tmp_path, large):
    meant = Image.fromarray(Reader().read_for(224, large)[0])
    for path in files(tmp_path, large):
        found, size = Reader().read_for(224, path)
        assert size == (HEIGHT, WIDTH), path.name
        assert found.size < large.size / 4, path.name
        like = np.asarray(meant.resize(found.shape[1::-1], Image.Resampling.BILINEAR), np.int16)
        like = like[..., :1] if path.name == "deep.tif" else like
        assert np.abs(found - like).mean() < 1, path.name


def test_transparency_of_a_large_picture_is_white_and_a_forgotten_alpha_is_left_out():
    picture = np.full((HEIGHT, WIDTH, 4), 100, np.uint8)
    picture[..., 3] = 0
    with pytest.warns(UserWarning, match="alpha is 0 everywhere"):
        assert (Reader().read_for(224, picture)[0] == 100).all()
    picture[: HEIGHT // 2, :, 3] = 255
    found, _ = Reader().read_for(224, picture)
    assert (found[: len(found) // 2 - 1] == 100).all() and (found[len(found) // 2 + 1 :] == 255).all()


def test_reading_less_moves_no_score_by_more_than_a_thousandth(tmp_path, large):
    detector = vlad.load("patch_text", encoder="tiny", name="surface")
    photo = large + np.random.default_rng(1).integers(0, 55, (HEIGHT, 1, 1), np.uint8)  # structure of one pixel
    Image.fromarray(photo).save(tmp_path / "a.tif")
    Image.fromarray(photo).save(tmp_path / "a.jpg", quality=95)
    whole = detector.scorer(detector.scorer.pixels([photo])).score.item()
    for given in (tmp_path / "a.tif", tmp_path / "a.jpg", photo):
        assert detector.predict(given).score == pytest.approx(whole, abs=1e-3)


def test_prediction_and_overlay_of_a_large_picture_have_its_size(tmp_path, large):
    detector = vlad.load("patch_text", encoder="tiny", name="surface")
    Image.fromarray(large).save(tmp_path / "a.tif")
    of_file, of_array = detector.predict(tmp_path / "a.tif"), detector.predict(large)
    assert of_file.size == of_array.size == (HEIGHT, WIDTH) and of_file.score == of_array.score
    assert max(region.box[3] for region in of_file.regions(0.0)) == HEIGHT
    difference = np.abs(np.asarray(of_file.overlay(), np.int16) - np.asarray(of_array.overlay()))
    assert difference.shape == large.shape and difference.mean() < 1


def test_an_overlay_drawn_in_bands_is_that_of_the_whole_map(large):
    amap = np.random.default_rng(1).random((37, 41), np.float32)
    full = np.asarray(Image.fromarray(amap).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))
    drawn = np.asarray(draw_overlay(large, amap, low=0, high=1))
    some = slice(2000, 2600)
    alone = np.asarray(draw_overlay(large[some], full[some], low=0, high=1))
    assert np.abs(drawn[some].astype(int) - alone).max() <= 3


def test_a_large_picture_made_small_is_reduced_in_bands_to_the_same(large):
    once = np.asarray(Image.fromarray(large).resize((300, 200), Image.Resampling.BICUBIC), np.int16)
    assert np.abs(resized(large, (200, 300), Image.Resampling.BICUBIC) - once).max() <= 2


def test_evaluation_takes_large_pictures_at_a_metric_size_and_refuses_what_would_fill_the_memory(tmp_path, large):
    for number in range(2):
        Image.fromarray(np.roll(large, number * 500, 0)).save(tmp_path / f"{number}.tif")
    samples = [vlad.Sample(tmp_path / f"{number}.tif", None, number, "plate", "good", "test") for number in range(2)]
    detector = vlad.load("patch_text", encoder="tiny")
    report = vlad.evaluate(detector, samples, metric_size=224, bootstrap=0)
    meant = [detector.describe("plate").predict(sample.image).score for sample in samples]
    said = [one["score"] for one in report.predictions[next(iter(report.predictions))]]
    assert sorted(said) == pytest.approx(sorted(meant), abs=1e-6)
    with pytest.raises(ValueError, match=r"5200 x 5000 pixels; above 25 million .* metric_size=1024"):
        vlad.evaluate(detector, samples, bootstrap=0)
    with pytest.raises(ValueError, match="needs all of it"):
        vlad.evaluate(vlad.load("patch_text", encoder="tiny", tiles=2), samples, metric_size=224, bootstrap=0)


def test_painting_over_more_than_memory_holds_is_refused_and_a_box_is_not():
    most = places(ignore=[(0.1, 0.1, 0.9, 0.9)])
    most.check((5000, 5200))
    with pytest.raises(ValueError, match=r"13300 x 13300 pixels, and painting .* takes 2\.0 GB; make it smaller"):
        most.check((13300, 13300))
    places(roi=(0.8, 0.8, 1, 1), ignore=[(0.1, 0.1, 0.9, 0.9)]).check((13300, 13300))


def test_a_file_that_would_take_too_much_memory_is_refused_before_it_is_decoded(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (13300).to_bytes(4, "big") * 2 + bytes([16, 2, 0, 0, 0])  # 16 bits a channel, RGB
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b""))
    with pytest.raises(vlad.ImageError, match=r"deep\.png.* 177 million pixels take 3\.6 GB to decode.*max_pixels"):
        read(tmp_path / "deep.png")


SCORE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import vlad
from mutations import peak_memory
detector = vlad.load("patch_text", encoder="tiny", name="surface", resolution=64)
found = [float(one.score) if isinstance(one, vlad.Prediction) else str(one)
         for one in detector.stream(sys.argv[2:], on_error="yield")]
print(json.dumps({"found": found, "gigabytes": peak_memory()}))
"""


def scored_apart(paths: list[Path]) -> dict:
    """What a process of its own says of the pictures, and how much memory it ever held."""
    tests = Path(__file__).parents[1]
    command = [sys.executable, "-W", "ignore", "-c", SCORE, str(tests), *map(str, paths)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    return json.loads(found.stdout)


@pytest.mark.slow
def test_no_mix_of_the_largest_pictures_takes_two_gigabytes(tmp_path):
    side = 13300  # side * side is just below what is read at all
    Image.new("1", (side, side), 1).save(tmp_path / "bits.png")
    Image.new("RGBA", (side, side), (90, 80, 70, 200)).save(tmp_path / "alpha.png", compress_level=1)
    Image.new("I;16", (side, side), 30000).save(tmp_path / "deep.png", compress_level=1)
    Image.new("RGB", (side, side), (90, 80, 70)).save(tmp_path / "tall.jpg", progressive=True, subsampling=0)
    Image.new("RGB", (side, side), (90, 80, 70)).save(tmp_path / "plain.tif", compression="tiff_adobe_deflate")
    Image.new("L", (1048576, 56), 90).save(tmp_path / "wide.tif", compression="tiff_adobe_deflate")
    Image.new("P", (side, side), 3).save(tmp_path / "palette.gif")
    pictures = sorted(tmp_path.iterdir())
    links = [tmp_path / f"link{number}.png" for number in range(4)]
    for link in links:
        link.symlink_to(tmp_path / "bits.png")
    told = scored_apart([*links[:2], *pictures, *links[2:]])
    assert all(isinstance(score, float) for score in told["found"]), told
    assert len(told["found"]) == len(pictures) + 4
    assert told["gigabytes"] < GIGABYTES


@pytest.mark.slow
def test_four_pictures_of_one_bit_take_little_memory(tmp_path):
    Image.new("1", (13300, 13300), 1).save(tmp_path / "bits.png")
    told = scored_apart([tmp_path / "bits.png"] * 4)
    assert len(set(told["found"])) == 1
    assert told["gigabytes"] < 1.3 and LARGE < 13300**2


WAYS = {
    "tiles": "detector(tiles=2).predict(one)",
    "ignored": "detector(ignore=[(0.9, 0.9, 1, 1)]).predict(one)",
    "explained": "vlad.explain(one, detector().predict(one)).to_markdown()",
    "evaluated": "vlad.evaluate(detector(), samples, metric_size=512, bootstrap=0)",
}
ONE = """
import functools, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import vlad
from mutations import peak_memory
detector = functools.partial(vlad.load, "patch_text", encoder="tiny", name="surface", resolution=64)
one, other = map(Path, sys.argv[3:])
samples = [vlad.Sample(path, None, label, "surface", "good", "test") for label, path in enumerate((one, other))]
try:
    assert eval(sys.argv[2]) is not None
    print("done")
except vlad.ImageError as error:
    print(error)
print(peak_memory())
"""


def done_apart(way: str, side: int, folder: Path) -> tuple[str, float]:
    """What a process of its own says, and the memory that it ever held, of two names of a picture of this side."""
    if not (folder / f"{side} a.png").exists():
        Image.new("RGB", (side, side), (90, 80, 70)).save(folder / f"{side} a.png", compress_level=1)
        (folder / f"{side} b.png").symlink_to(folder / f"{side} a.png")
    paths = [str(folder / f"{side} {name}.png") for name in "ab"]
    command = [sys.executable, "-W", "ignore", "-c", ONE, str(Path(__file__).parents[1]), WAYS[way], *paths]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    said, memory = done.stdout.splitlines()
    return said, float(memory)


@pytest.mark.slow
@pytest.mark.parametrize("way", list(WAYS))
def test_what_needs_all_of_a_large_picture_takes_less_than_two_gigabytes(way, tmp_path):
    said, memory = done_apart(way, 9990, tmp_path)  # just below WHOLE
    assert said == "done" and memory < GIGABYTES


@pytest.mark.slow
def test_the_largest_pictures_are_evaluated_small_or_refused_whole(tmp_path):
    said, memory = done_apart("evaluated", 13300, tmp_path)
    assert said == "done" and memory < GIGABYTES
    said, memory = done_apart("tiles", 13300, tmp_path)
    assert "more than 100000000 pixels" in said and memory < 1.2
