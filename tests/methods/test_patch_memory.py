"""patch_memory: the maps and masks of the official codes (tests/golden/patchcore.npz), and its settings."""

import numpy as np
import pytest
import torch
from conftest import GOLDEN

import vlad
from vlad.encoders.views import rotated
from vlad.maps import smooth_map, top_mean
from vlad.methods.patch_memory import PRESETS, foreground


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "patchcore.npz")


@pytest.fixture(scope="module")
def normals(golden_weights):
    return [golden_weights.image(seed, 112) for seed in range(20, 23)]


def fitted(encoder, normals, **options):
    with pytest.warns(UserWarning, match="no threshold from 3 normals"):
        return vlad.load("patch_memory", encoder=encoder, **options).fit(normals)


def test_the_smoothed_map_is_that_of_patchcore(golden):
    grid = torch.from_numpy(golden["pc_patch_k1"]).view(3, 8, 8)
    np.testing.assert_allclose(smooth_map(grid, (64, 64), 4), golden["pc_map_k1"], rtol=1e-5)


def test_map_and_score_are_those_of_anomaly_dino(golden):
    patches = torch.from_numpy(golden["dino_patch"])
    np.testing.assert_allclose(top_mean(patches), golden["dino_image"], atol=1e-6)
    first = smooth_map(patches[:1].view(1, 20, 20), (100, 140), 4)[0]
    np.testing.assert_allclose(first, golden["dino_map0"], atol=1e-6)


def test_the_mask_is_that_of_anomaly_dino_in_two_dimensions(golden, golden_weights):
    common = 8 * golden_weights.tensor("pc.dino.base", (400, 64))
    query = common + 0.6 * 8 * golden_weights.tensor("pc.dino.qry.noise.0", (400, 64))
    query.view(20, 20, 64)[4:8, 4:9] += 1.5 * 8 * golden_weights.tensor("pc.dino.qry.odd.0", (1, 64))[0]
    ramp = torch.zeros(20, 20)
    ramp[4:16, 5:17] = 30
    direction = torch.nn.functional.normalize(golden_weights.tensor("pc.dino.dir", (1, 64))[0], dim=0)
    tokens = 0.3 * query + ramp.view(-1, 1) * direction
    if not np.allclose(tokens[:3], golden["dino_mask_input"], atol=1e-5):
        pytest.fail("the recipe of the input is wrong")
    assert foreground(tokens, (20, 20), 10.0).numpy().tolist() == golden["dino_mask_2d"].tolist()
    otsu = foreground(0.01 * tokens, (20, 20))
    assert (otsu.numpy() == golden["dino_mask_2d"]).mean() > 0.9, "without a level of its own, at any length"


def test_a_normal_it_has_seen_scores_zero_and_another_picture_does_not(small_encoder, normals, golden_weights):
    for preset in PRESETS:
        detector = fitted(small_encoder, normals, preset=preset, coreset=1.0)
        seen, other = detector.predict([normals[0], golden_weights.image(40, 112)])
        assert seen.score < 1e-3 < other.score and seen.map.max() < 1e-3
        assert seen.phrases == {} and seen.name is None


def test_the_score_is_half_the_largest_distance_of_a_patch(small_encoder, normals, golden_weights):
    detector = fitted(small_encoder, normals, sigma=0, layers=(12,), neighbours=1)
    picture = golden_weights.image(40, 112)
    with torch.no_grad():
        tokens = [small_encoder(small_encoder.pixels([p]), layers=(12,)).patches[0][0] for p in [picture, *normals]]
    unit = [torch.nn.functional.normalize(t, dim=-1) for t in tokens]
    closest = torch.cdist(unit[0], torch.cat(unit[1:])).amin(1)
    assert detector.predict(picture).score == pytest.approx(float(closest.max()) / 2, abs=1e-5)


def test_a_row_joins_the_patch_itself_and_what_is_around_it(small_encoder, normals, golden_weights):
    """Two sizes side by side: the squared distance is the mean of what each size alone finds at the same place."""
    detector = fitted(small_encoder, normals, layers=(12,))
    assert detector.scorer.settings["neighbours"] == [1, 3]
    assert detector.scorer.memory.rows.shape[1] == 2 * small_encoder.width
    picture = golden_weights.image(40, 112)
    with torch.no_grad():
        pixels = [small_encoder.pixels([p]) for p in [picture, *normals]]
        near, far = (
            torch.stack(
                [fitted(small_encoder, normals, layers=(12,), neighbours=size).scorer.tokens(p)[0] for p in pixels]
            )
            for size in (1, 3)
        )
    squared = (torch.cdist(near[0], near[1:].flatten(0, 1)) ** 2 + torch.cdist(far[0], far[1:].flatten(0, 1)) ** 2) / 2
    assert detector.predict(picture).score == pytest.approx(float(squared.amin(1).max().sqrt()) / 2, abs=1e-5)


def test_a_turned_normal_is_closer_with_rotations(small_encoder, normals):
    turned = np.ascontiguousarray(np.rot90(normals[0]))
    plain = fitted(small_encoder, normals, rotations=1).predict(turned).score
    assert fitted(small_encoder, normals, rotations=4).predict(turned).score < 0.3 * plain


def test_rotations_turn_the_picture_on_its_canvas(golden_weights):
    picture = torch.from_numpy(golden_weights.image(0, 64)).permute(2, 0, 1)[None].float()
    turns = list(rotated(picture, 4))
    assert torch.equal(turns[0], picture)
    assert {
        tuple(round(float((turns[i] - torch.rot90(picture, j, (2, 3))).abs().max()), 2) for j in (1, 2, 3)).index(0.0)
        for i in (1, 2, 3)
    } == {0, 1, 2}


def test_rotations_of_a_normal_are_left_out_with_it(small_encoder, normals):
    detector = fitted(small_encoder, normals, rotations=4)
    assert min(detector.calibration.scores) > 0.01, "no normal met its own rotation"
    assert detector.references == ["0", "1", "2"]
    assert len(detector.scorer.memory) == 3 * 4 * 64


def test_a_coreset_keeps_a_share_of_the_rows(small_encoder, normals, tmp_path):
    detector = fitted(small_encoder, normals, preset="patchcore")
    assert len(detector.scorer.memory) == int(3 * 64 * 0.1)
    detector.save(tmp_path / "part.safetensors")
    loaded = vlad.load(tmp_path / "part.safetensors", encoder=small_encoder)
    assert loaded.predict(normals[1]).score == pytest.approx(detector.predict(normals[1]).score, abs=1e-6)


def test_the_mask_leaves_the_background_out(small_encoder, normals, golden_weights, monkeypatch):
    detector = fitted(small_encoder, normals, mask=True, sigma=0)
    upper = torch.arange(64).view(1, 64) < 32
    monkeypatch.setattr(detector.scorer, "_masks", lambda pixels: upper.float())
    prediction = detector.predict(golden_weights.image(40, 112))
    assert (prediction.map[-40:] == 0).all() and (prediction.map[:40] > 0).all()
    assert prediction.score == pytest.approx(float(prediction.map.max()), abs=0.01)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "dino"}, "expected one of few, patchcore, anomaly_dino"),
        ({"score": "mean"}, "expected one of max, reweighted, top"),
        ({"metric": "squared"}, "'cosine' or 'euclidean'"),
        ({"coreset": 0.0}, "above 0 and at most 1"),
        ({"neighbours": 2}, "odd sides"),
        ({"neighbours": (1, 0)}, r"neighbours is \[1, 0\]"),
        ({"neighbours": ()}, "odd sides"),
        ({"rotations": 0}, "rotations is 0"),
        ({"layers": (99,)}, "from 1 to 24"),
    ],
)
def test_wrong_settings_are_refused(options, words, small_encoder):
    with pytest.raises(ValueError, match=words):
        vlad.load("patch_memory", encoder=small_encoder, **options)


def test_it_takes_no_words(small_encoder):
    with pytest.raises(TypeError, match="takes no name"):
        vlad.load("patch_memory", "bolt", encoder=small_encoder)
    with pytest.raises(TypeError, match="takes no prompts"):
        vlad.load("patch_memory", encoder=small_encoder, prompts="winclip")


def test_a_cloth_of_another_grain_stands_out_by_its_texture_where_no_place_does(tiny_encoder, tmp_path):
    def cloth(seed, period):
        noise = np.random.default_rng(seed).normal(0, 12, (224, 224))
        waves = 50 * np.sin(np.arange(224)[:, None] * 2 * np.pi / period) + 50 * np.sin(np.arange(224) * 2 * np.pi / 9)
        return np.clip(128 + waves + noise, 0, 255).astype(np.uint8)

    detector = vlad.load("patch_memory", encoder=tiny_encoder, score="texture").fit([cloth(i, 12) for i in range(6)])
    both = [cloth(8, 12), cloth(9, 11)]
    good, other = detector.predict(both)
    assert not good.is_anomalous and other.score > 3 * max(detector.calibration.scores)
    detector.save(tmp_path / "cloth.safetensors")
    loaded = vlad.load(tmp_path / "cloth.safetensors", encoder=tiny_encoder)
    assert loaded.predict(both)[1].score == other.score
