"""AnoVL against the numbers of hq-deng/AnoVL (tests/golden/anovl.npz), whose code has twelve blocks."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import _written

import vlad
from vlad.methods.anovl import PatchAdapter, adapted, neighbour_mean, views

TOKENS, SCORES = 2e-5, 1e-6  # the golden's own suggested tolerances


@pytest.fixture(scope="module")
def encoder(golden, golden_weights, tmp_path_factory):
    import open_clip

    config = golden_weights.TINY_CLIP
    config = {**config, "vision_cfg": {**config["vision_cfg"], "layers": int(golden["vision_layers"])}}
    model = golden_weights.fill_(open_clip.model.CLIP(**config).eval(), seed=0)
    folder = _written(tmp_path_factory.mktemp("twelve"), model, config)
    return vlad.Encoder.load(f"local-dir:{folder}", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def pictures(golden, golden_weights):
    return [golden_weights.image(int(seed), 112) for seed in golden["query_seeds"]]


@pytest.fixture(scope="module")
def detector(golden, encoder):
    return vlad.load("anovl", str(golden["class_name"]), encoder=encoder, views=1)


def test_scores_and_maps_match_through_the_public_api(detector, pictures, golden):
    predictions = detector.predict(pictures)
    np.testing.assert_allclose([p.score for p in predictions], golden["image_score"], atol=SCORES, rtol=0)
    np.testing.assert_allclose([p.map for p in predictions], golden["anomaly_map"], atol=SCORES, rtol=0)


def test_prototypes_match(detector, golden):
    assert [len(state) for state in detector.pack.sentences("x")] == [int(golden["prompts_per_class"])] * 2
    np.testing.assert_allclose(
        F.normalize(detector.scorer.prototypes, dim=-1), golden["text_prototypes"], atol=SCORES, rtol=0
    )


@torch.no_grad()
def test_tokens_and_the_grid_match(detector, pictures, golden):
    image, patches = detector.encoder.dense(detector.encoder.pixels(pictures), 12)
    np.testing.assert_allclose(torch.cat([image[:, None], patches], 1), golden["all_tokens"], atol=TOKENS, rtol=0)
    np.testing.assert_allclose(patches.unflatten(1, (8, 8)), golden["patch_tokens"], atol=TOKENS, rtol=0)
    grid = (F.normalize(patches, dim=-1) @ F.normalize(detector.scorer.prototypes, dim=-1).T).softmax(-1)[..., 1]
    np.testing.assert_allclose(grid.unflatten(1, (8, 8)), golden["grid"], atol=SCORES, rtol=0)


def test_the_neighbour_mean_repeats_the_border():
    grid = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    assert neighbour_mean(grid)[0, 0, 0].item() == pytest.approx((4 * 1 + 2 * 2 + 2 * 3 + 4) / 9)


def test_there_are_22_different_views_of_known_kinds(golden_weights):
    picture = torch.from_numpy(golden_weights.image(3, 32).copy()).permute(2, 0, 1)[None].float()
    seen = views(picture)
    assert len(seen) == 21 and all(view.shape == picture.shape for view in seen)
    everything = [picture, *seen]
    for number, one in enumerate(everything):
        assert all((one - other).abs().max() > 1 for other in everything[:number])
    flip, grey, *turns = seen[16:]
    assert torch.equal(flip, picture.flip(3))
    assert torch.equal(grey[:, 0], grey[:, 2]) and torch.equal(turns[1], picture.rot90(2, (2, 3)))
    spot = torch.zeros(1, 3, 40, 40)
    spot[..., 20, 30] = 1
    places = [divmod(int(view[0, 0].argmax()), 40) for view in views(spot)[8:16]]
    assert set(places) >= {(16, 26), (24, 26), (18, 28), (22, 28)}, "0.2 and 0.1 of half a side of 40, each way"


def test_a_full_turn_of_eight_views_is_symmetric():
    ring = torch.zeros(1, 3, 33, 33)
    y, x = torch.meshgrid(*[torch.arange(33) - 16.0] * 2, indexing="ij")
    ring[0] = torch.exp(-((x - 8) ** 2 + y**2) / 4)
    weights = [(view[0, 0] / view[0, 0].sum()) for view in views(ring)[:8]]
    angles = [math.degrees(math.atan2(float((w * y).sum()), float((w * x).sum()))) for w in weights]
    assert sorted(angles) == pytest.approx([-45, -33.75, -22.5, -11.25, 11.25, 22.5, 33.75, 45], abs=1.5)


def test_the_score_of_22_views_is_the_mean_of_their_own_scores(encoder, detector, pictures):
    many = vlad.load("anovl", "metal bolt", encoder=encoder).predict(pictures[0])
    pixels = encoder.pixels(pictures[:1])
    with torch.no_grad():
        embeddings = [encoder(view).image for view in [pixels, *views(pixels)]]
    states = F.normalize(detector.scorer.prototypes, dim=-1)
    expected = np.mean([float((image @ states.T).softmax(-1)[0, 1]) for image in embeddings])
    one = detector.predict(pictures[0])
    assert many.score == pytest.approx(expected, abs=1e-6) and many.score != pytest.approx(one.score, abs=1e-6)
    np.testing.assert_allclose(many.map, one.map, atol=1e-7)


def test_adaptation_is_the_same_for_a_picture_whatever_came_before(encoder, pictures):
    detector = vlad.load("anovl", "metal bolt", encoder=encoder, views=1, adapt=True)
    alone = detector.predict(pictures[1]).map
    together = detector.predict([*pictures, pictures[1]])
    np.testing.assert_allclose(together[1].map, alone, atol=2e-6)
    np.testing.assert_allclose(together[2].map, alone, atol=2e-6)
    other = vlad.load("anovl", "metal bolt", encoder=encoder, views=1, adapt=True, seed=1)
    assert np.abs(other.predict(pictures[1]).map - alone).max() > 1e-5


def test_adaptation_changes_the_map_and_lives_in_the_file(encoder, detector, pictures, tmp_path):
    adapting = vlad.load("anovl", "metal bolt", encoder=encoder, views=1, adapt=True)
    found = adapting.predict(pictures[0])
    assert np.abs(found.map - detector.predict(pictures[0]).map).max() > 1e-4
    assert found.score == detector.predict(pictures[0]).score
    adapting.save(tmp_path / "a.safetensors")
    again = vlad.load(tmp_path / "a.safetensors", encoder=encoder).predict(pictures[0])
    np.testing.assert_allclose(again.map, found.map, atol=1e-6)


def test_adaptation_leaves_gradients_and_global_randomness_alone(encoder, pictures):
    detector = vlad.load("anovl", "metal bolt", encoder=encoder, views=1, adapt=True)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    detector.predict(pictures[0])
    assert torch.equal(state, torch.get_rng_state())
    assert all(not p.requires_grad and p.grad is None for p in encoder.model.parameters())


def test_five_steps_make_the_verdicts_surer_and_follow_torch_s_own_layer():
    generator = torch.Generator().manual_seed(0)
    sentences = F.normalize(torch.randn(20, 16, generator=generator), dim=-1)
    states, tokens = torch.randn(2, 16, generator=generator), torch.randn(30, 16, generator=generator)

    def normal(z):
        p = (F.normalize(z, dim=-1) @ F.normalize(states, dim=-1).T).softmax(-1)
        return float(p[:, 0].mean())

    start = PatchAdapter(sentences, torch.Generator().manual_seed(7))
    bound = 16**-0.5
    assert 0.9 * bound < start.layer.weight.abs().max() <= bound
    with torch.no_grad():
        before = start(tokens)
    after = adapted(tokens, sentences, states, torch.Generator().manual_seed(7))
    assert not after.requires_grad
    assert normal(after) > normal(before), "the clean patches are drawn towards normal"


def test_wrong_views_are_refused(encoder):
    with pytest.raises(ValueError, match="views is 5; expected 1, the picture alone, or 22"):
        vlad.load("anovl", "bolt", encoder=encoder, views=5)
