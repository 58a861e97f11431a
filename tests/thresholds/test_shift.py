"""A run of pictures beside the good ones: a moved camera and another light are noticed, defects and luck are not."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import vlad
from vlad.cli import app
from vlad.datasets.corrupt import corrupt
from vlad.images import read
from vlad.images.looks import LIGHT, is_look, light_and_edges, look_of
from vlad.thresholds import ladder
from vlad.thresholds.shift import LEVEL, energy_test, notice

CHANGES = ("shift", "rotation", "brightness")


def part(number, broken=False):
    """A bright plate with a slot on a dark ground, never quite in the same place and light; broken: with a hole."""
    draw = np.random.default_rng(number)
    picture = np.full((96, 96, 3), 60.0)
    x, y = draw.integers(-1, 2, 2)
    picture[24 + y : 72 + y, 16 + x : 80 + x] = 160
    picture[44 + y : 52 + y, 30 + x : 66 + x] = 90
    if broken:
        a, b = draw.integers(24, 56, 2)
        picture[a : a + 18, b : b + 18] = 20
    picture = picture * draw.normal(1, 0.02) + draw.normal(0, 4, picture.shape)
    return picture.clip(0, 255).astype(np.uint8)


def looks(numbers, kind=None, broken=False):
    pictures = [part(number, broken) for number in numbers]
    return [look_of(one if kind is None else corrupt(one, kind, 3, str(i))[0]) for i, one in enumerate(pictures)]


@pytest.fixture(scope="module")
def made():
    """A calibration whose scores say nothing of the run: all of the run score below them."""
    from dataclasses import replace

    return replace(ladder([1.0] * 10), looks=tuple(looks(range(20, 30))))


def said(seen, made):
    return notice([0.5] * len(seen), seen, made)


@pytest.mark.parametrize("kind", CHANGES)
def test_a_changed_pile_is_noticed(kind, made):
    words = said(looks(range(100, 160), kind), made)
    assert words.startswith("these 60 pictures are unlike the good ones as a whole")
    assert ("light is another (mean level" in words) == (kind == "brightness")
    assert "lies elsewhere or is turned" in words or kind == "brightness"


def test_ten_fresh_piles_of_good_pictures_are_not(made):
    assert [said(looks(range(100 + 60 * pile, 160 + 60 * pile)), made) for pile in range(10)] == [None] * 10


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3])
def test_defects_are_no_change_of_the_whole(share, made):
    bad = round(60 * share)
    for pile in range(3):
        start = 1000 * (pile + 1)
        assert said(looks(range(start, start + 60 - bad)) + looks(range(start, start + bad), broken=True), made) is None


def test_the_test_holds_its_level_and_sees_what_is_moved():
    draw = np.random.default_rng(0)
    p = np.array([energy_test(draw.standard_t(3, (8, 4)), draw.standard_t(3, (40, 4)), seed) for seed in range(200)])
    assert np.mean(p <= 0.05) <= 0.09 and np.mean(p <= LEVEL) <= 0.02
    assert energy_test(draw.normal(0, 1, (8, 4)), draw.normal(3, 1, (40, 4))) < LEVEL


def test_a_change_too_small_to_matter_is_none(made):
    """Ten pictures of one and the same light, and sixty that are one level brighter."""
    from dataclasses import replace

    flat = np.full((64, 64, 3), 100, np.uint8)
    flat[16:48, 16:48] = 180
    same = replace(made, looks=(look_of(flat),) * 10)
    assert said([look_of(flat + np.uint8(1))] * 60, same) is None
    assert "light is another" in said([look_of(flat + np.uint8(20))] * 60, same)


def test_few_pictures_and_few_normals_say_nothing(made):
    from dataclasses import replace

    moved = looks(range(100, 160), "shift")
    assert said(moved[:29], made) is None and said(moved, None) is None
    assert said(moved, replace(made, scores=made.scores[:4])) is None
    assert said(moved, replace(made, looks=())) is None, "a detector of an older VLAD"


def test_scores_that_are_higher_as_a_whole_are_noticed_without_looks(made):
    assert "score as low as the better half" in notice([2.0] * 60, [], made)
    assert notice([2.0] * 18 + [0.5] * 42, [], made) is None


def test_a_look_says_how_light_it_is_and_where_edges_lie():
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, 32:] = (200, 100, 0)
    light, edges = (one[0] for one in light_and_edges([look_of(picture)]))
    assert light.tolist()[:3] == [100, 50, 0] and len(light) == LIGHT
    assert set(np.flatnonzero(edges[:32] > 16)) == {15, 16} and not edges[32:].any()
    assert is_look(look_of(picture)) and not any(map(is_look, ("", "eA==", 3, None, "\u00e9" * 92)))


def test_vlad_score_says_it_once_and_so_does_the_page(small_folder, tmp_path):
    for folder, numbers, kind in (
        ("good", range(20, 30), None),
        ("same", range(100, 130), None),
        ("moved", range(100, 130), "shift"),
    ):
        (tmp_path / folder).mkdir()
        for i, number in enumerate(numbers):
            picture = part(number) if kind is None else corrupt(part(number), kind, 3, str(i))[0]
            Image.fromarray(picture).save(tmp_path / folder / f"{number}.png")
    encoder = f"local-dir:{small_folder}"
    detector = vlad.load("patch_memory", encoder=encoder).fit(tmp_path / "good")
    detector.save(file := tmp_path / "d.safetensors")

    def scored(folder, *told):
        told = ("score", tmp_path / folder, "--detector", file, "--encoder", encoder, *told)
        done = CliRunner().invoke(app, [str(one) for one in told])
        assert done.exit_code == 0, done.output
        return done

    done = scored("moved", "--out", tmp_path / "out", "--page")
    assert done.stderr.count("unlike the good ones as a whole") == 1 and "lies elsewhere" in done.stderr
    assert "lies elsewhere or is turned" in (tmp_path / "out" / "index.html").read_text()
    done = scored("moved", "--json")
    assert "lies elsewhere" in done.stderr and '"look"' not in done.stdout
    assert "unlike" not in scored("same", "--json").stderr


@pytest.mark.slow
@pytest.mark.parametrize("cells", ["solar_cell_mono", "solar_cell_poly"])
def test_sixty_real_cells_moved_turned_or_darkened_are_noticed_and_fresh_draws_are_not(shared, cells):
    folder: Path = shared / "data" / "elpv" / cells
    good = [read(path) for part in ("train", "test") for path in sorted((folder / part / "good").iterdir())]
    bad = [look_of(read(path)) for path in sorted(folder.glob("test/*/*")) if path.parent.name not in ("good",)]
    plain = [look_of(picture) for picture in good]
    changed = {kind: [look_of(corrupt(one, kind, 3, str(i))[0]) for i, one in enumerate(good)] for kind in CHANGES}
    noticed = dict.fromkeys((*CHANGES, "good", "defects"), 0)
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(len(good))
        n = 8 if seed % 2 else 20
        fitted = ladder([1.0] * n).to_dict() | {"looks": [plain[i] for i in order[:n]]}
        calibration = vlad.thresholds.Calibration.from_dict(fitted)
        for kind, pile in {**changed, "good": plain}.items():
            noticed[kind] += said([pile[i] for i in order[n : n + 60]], calibration) is not None
        mixed = [plain[i] for i in order[n : n + 42]] + bad[seed : seed + 18]
        noticed["defects"] += said(mixed, calibration) is not None
    assert noticed["good"] == noticed["defects"] == 0
    assert noticed["shift"] >= 9 and noticed["rotation"] == noticed["brightness"] == 10
