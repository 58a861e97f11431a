"""Procedural pictures: the same seed draws the same, masks and captions say what was drawn, nothing leaks outside."""

import numpy as np
import pytest

from vlad.synthetic import sample
from vlad.synthetic.defects import DEFECTS, WORDS, contrast, spoil
from vlad.synthetic.scenes import SCENES, draw_scene
from vlad.synthetic.textures import TEXTURES, soft

SIZE = 96


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_same_seed_draws_the_same_picture_and_another_seed_another():
    first, again, other = sample(_rng(3), SIZE), sample(_rng(3), SIZE), sample(_rng(4), SIZE)
    assert np.array_equal(first.picture, again.picture)
    assert np.array_equal(first.mask, again.mask)
    assert first.caption == again.caption
    assert not np.array_equal(first.picture, other.picture)


def test_drawing_leaves_the_global_random_state_alone():
    before = np.random.get_state()[1].copy()
    sample(_rng(0), SIZE, defective=True)
    assert np.array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize("size", [64, 224])
def test_pictures_masks_and_twins_have_the_size_asked_for(size):
    drawn = sample(_rng(1), size, defective=True)
    assert drawn.picture.shape == drawn.clean.shape == (size, size, 3)
    assert drawn.picture.dtype == drawn.clean.dtype == np.uint8
    assert drawn.mask.shape == (size, size)
    assert drawn.mask.dtype == bool


def test_a_size_too_small_to_draw_in_is_refused():
    with pytest.raises(ValueError, match="at least 64"):
        sample(_rng(0), 32)


def test_a_normal_picture_equals_its_twin_and_has_an_empty_mask():
    for seed in range(5):
        drawn = sample(_rng(seed), SIZE, defective=False)
        assert np.array_equal(drawn.picture, drawn.clean)
        assert not drawn.mask.any()
        assert drawn.defects == ()


def test_defects_are_drawn_in_nearly_every_picture_that_asks_for_them():
    drawn = [sample(_rng(seed), SIZE, defective=True) for seed in range(20)]
    assert sum(bool(d.defects) for d in drawn) >= 18
    assert all(d.mask.any() == bool(d.defects) for d in drawn)


def test_the_camera_aside_a_picture_changes_only_at_its_defects_and_a_soft_border():
    compared = 0
    for seed in range(20):
        scene = draw_scene(_rng(seed), SIZE)
        spoiled, mask, _ = spoil(_rng(seed + 100), scene)
        change = np.abs(spoiled - scene.canvas).max(-1)
        far = soft(mask.astype(np.float32), 4) < 1e-3
        if mask.any() and far.any():
            assert change[mask].mean() > 8 * change[far].mean()
            compared += 1
    assert compared >= 15


@pytest.mark.parametrize("kind", [kind for kind in DEFECTS if kind != "missing element"])
def test_every_defect_leaves_the_canvas_alone_where_its_cover_is_zero(kind):
    for seed in range(3):
        scene = draw_scene(_rng(seed), SIZE)
        after, cover = DEFECTS[kind](_rng(seed + 50), scene, scene.canvas, contrast(scene))
        assert np.isfinite(after).all()
        assert cover.min() >= 0
        assert cover.max() <= 1 + 1e-6
        assert np.abs(after - scene.canvas)[cover == 0].max(initial=0) < 0.05 + 2 * contrast(scene)


def test_the_caption_names_object_and_material_and_a_word_for_each_defect():
    for seed in range(15):
        drawn = sample(_rng(seed), SIZE, defective=True)
        assert drawn.object in drawn.caption
        assert drawn.material in drawn.caption
        for kind in drawn.defects:
            assert any(word in drawn.caption for word in WORDS[kind])


def test_every_texture_is_a_field_with_about_unit_spread():
    for name, (draw, words) in TEXTURES.items():
        values = draw(_rng(2), SIZE)
        assert values.shape == (SIZE, SIZE), name
        assert np.isfinite(values).all(), name
        assert 0.2 < values.std() < 3, name
        assert words, name


def test_every_scene_has_a_part_to_inspect():
    for draw in SCENES:
        for seed in range(4):
            scene = draw(_rng(seed), SIZE)
            assert scene.canvas.shape == scene.ground.shape == (SIZE, SIZE, 3)
            assert scene.part.mean() > 0.01


def test_soft_keeps_the_mean_and_removes_fine_detail():
    noise = _rng(0).standard_normal((128, 128)).astype(np.float32)
    for sigma in (0.5, 2, 6):
        assert soft(noise, sigma).std() < noise.std()
        assert abs(soft(noise, sigma).mean() - noise.mean()) < 0.02
