"""WinCLIP against the numbers of open-edge-platform/anomalib (tests/golden/winclip.npz)."""

import numpy as np
import pytest
import torch

import vlad
from vlad.encoders.blocks import window_index
from vlad.methods.winclip import WinClip, covering_mean

EMBEDDINGS, SCORES = 2e-5, 2e-6  # the golden's own suggested tolerances


@pytest.fixture(scope="module")
def pictures(golden, golden_weights):
    return [golden_weights.image(int(seed), 112) for seed in golden["query_seeds"]]


@pytest.fixture(scope="module")
def detector(golden, small_folder):
    name = str(golden["class_name"])
    encoder = f"local-dir:{small_folder}"
    return vlad.load("winclip", name, encoder=encoder, prompts="winclip-anomalib", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def embedded(detector, pictures):
    """Embeddings of the whole pictures and of the windows of both scales."""
    encoder = detector.encoder
    with torch.no_grad():
        return encoder.windows(encoder.pixels(pictures), (2, 3))


def test_scores_and_maps_match_through_the_public_api(detector, pictures, golden):
    predictions = detector.predict(pictures)
    np.testing.assert_allclose([p.score for p in predictions], golden["zero_shot_image_score"], atol=SCORES, rtol=0)
    np.testing.assert_allclose([p.map for p in predictions], golden["zero_shot_anomaly_map"], atol=SCORES, rtol=0)
    full = [p.full_map() for p in predictions]
    np.testing.assert_allclose(full, golden["zero_shot_anomaly_map"], atol=SCORES, rtol=0)


# WinCLIP+


@pytest.fixture(scope="module")
def fitted(golden, small_folder, golden_weights):
    name, encoder = str(golden["class_name"]), f"local-dir:{small_folder}"
    detector = vlad.load("winclip", name, encoder=encoder, prompts="winclip-anomalib", dtype="float32", device="cpu")
    with pytest.warns(UserWarning, match="no threshold from 2 normals.*5 or more.*19 for a false-alarm rate of 5%"):
        return detector.fit([golden_weights.image(int(seed), 112) for seed in golden["reference_seeds"]])


def test_few_shot_scores_and_maps_match_through_the_public_api(fitted, pictures, golden):
    predictions = fitted.predict(pictures)
    np.testing.assert_allclose([p.score for p in predictions], golden["few_shot_image_score"], atol=SCORES, rtol=0)
    np.testing.assert_allclose([p.map for p in predictions], golden["few_shot_anomaly_map"], atol=SCORES, rtol=0)


@torch.no_grad()
def test_associations_with_the_references_match(fitted, pictures, embedded, golden):
    tokens = fitted.scorer._patch_tokens(fitted.encoder.pixels(pictures))
    for memory, rows, key in zip(
        fitted.scorer._levels(), [tokens, *embedded[1:]], ("patch", "window_2", "window_3"), strict=True
    ):
        np.testing.assert_allclose(memory.distance(rows) / 2, golden[f"association_{key}"], atol=SCORES, rtol=0)
    grid = fitted.scorer.association(tokens, list(embedded[1:]), (8, 8))
    np.testing.assert_allclose(grid, golden["few_shot_grid"], atol=SCORES, rtol=0)


def test_a_reference_scored_as_a_query_is_associated_with_itself(fitted, golden, golden_weights):
    reference = golden_weights.image(int(golden["reference_seeds"][0]), 112)
    pixels = fitted.encoder.pixels([reference])
    with torch.no_grad():
        _, *windows = fitted.encoder.windows(pixels, fitted.scorer.scales)
        seen = fitted.scorer.association(fitted.scorer._patch_tokens(pixels), windows, (8, 8))
    assert seen.max() < 1e-9, "alone in its batch or not, its tokens differ by rounding only"


def test_embeddings_match(embedded, golden):
    for ours, key in zip(embedded, ("image_embeddings", "window_embeddings_2", "window_embeddings_3"), strict=True):
        np.testing.assert_allclose(ours, golden[key], atol=EMBEDDINGS, rtol=0)


@torch.no_grad()
def test_patch_tokens_match(detector, pictures, golden):
    encoder = detector.encoder
    tokens = encoder.visual.ln_post(encoder(encoder.pixels(pictures), layers=(24,)).patches[0])
    np.testing.assert_allclose(tokens, golden["patch_tokens_ln_post"], atol=EMBEDDINGS, rtol=0)


def test_window_scores_and_harmonic_maps_match(detector, embedded, golden):
    from vlad.maps import anomaly_probability

    for windows, size in zip(embedded[1:], (2, 3), strict=True):
        scores = anomaly_probability(windows, detector.scorer.prototypes)
        np.testing.assert_allclose(scores, golden[f"window_scores_{size}"], atol=SCORES, rtol=0)
        mean = covering_mean(scores, (8, 8), size)
        np.testing.assert_allclose(mean, golden[f"harmonic_map_{size}"], atol=SCORES, rtol=0)


def test_the_grid_before_upsampling_matches(detector, embedded, golden):
    score, grid = detector.scorer.zero_shot(embedded[0], list(embedded[1:]), (8, 8))
    np.testing.assert_allclose(score, golden["zero_shot_image_score"], atol=SCORES, rtol=0)
    np.testing.assert_allclose(grid, golden["zero_shot_grid"], atol=SCORES, rtol=0)


def test_pictures_of_one_batch_do_not_see_each_other(detector, pictures):
    together = detector.predict(pictures * 2, batch_size=4)
    alone = [detector.predict(picture) for picture in pictures]
    for one, other in zip(together, alone * 2, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-6)
        np.testing.assert_allclose(one.map, other.map, atol=1e-6)


@pytest.mark.parametrize(("grid", "size"), [((4, 4), 2), ((3, 5), 3), ((5, 3), 1), ((3, 3), 3)])
def test_the_covering_mean_is_the_slow_loop_over_patches_and_windows(grid, size):
    rows, columns = grid
    tops = [(r, c) for r in range(rows - size + 1) for c in range(columns - size + 1)]
    scores = torch.rand(2, len(tops), generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(2, rows, columns)
    for r in range(rows):
        for c in range(columns):
            covering = [i for i, (y, x) in enumerate(tops) if y <= r < y + size and x <= c < x + size]
            expected[:, r, c] = len(covering) / (1 / scores[:, covering]).sum(1)
    torch.testing.assert_close(covering_mean(scores, grid, size), expected)


def test_the_covering_mean_is_zero_under_a_window_of_zero():
    scores = torch.tensor([[0.0, 0.5, 0.5, 0.5]])  # 3 x 3 patches, 2 x 2 windows
    mean = covering_mean(scores, (3, 3), 2)[0]
    assert (mean[:2, :2] == 0).all()
    assert mean[2, 2] == 0.5 and torch.isfinite(mean).all()


def test_windows_hold_the_class_token_and_their_patches_row_by_row():
    assert window_index((3, 3), 2).tolist() == [[0, 1, 2, 4, 5], [0, 2, 3, 5, 6], [0, 4, 5, 7, 8], [0, 5, 6, 8, 9]]


def test_wrong_scales_and_temperature_are_refused(small_encoder):
    with pytest.raises(ValueError, match="window sides from 1 to 8"):
        WinClip(small_encoder, scales=(9,))
    with pytest.raises(ValueError, match="temperature is 0"):
        WinClip(small_encoder, temperature=0)
