"""CLIP Surgery against the numbers of xmed-lab/CLIP_Surgery (tests/golden/clip_surgery.npz)."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import vlad
from vlad.maps import feature_surgery, to_size
from vlad.methods.clip_surgery import SHARPNESS
from vlad.prompts import PromptPack, embed

TOKENS, MAPS, EXACT = 2e-5, 1e-5, 1e-6  # the golden's own suggested tolerances


@pytest.fixture(scope="module")
def pictures(golden, golden_weights):
    return [golden_weights.image(int(seed), 112) for seed in golden["query_seeds"]]


@pytest.fixture(scope="module")
def detector(small_encoder):
    return vlad.load("clip_surgery", "metal bolt", encoder=small_encoder)


@pytest.fixture(scope="module")
def tokens(detector, pictures):
    with torch.no_grad():
        return detector.scorer.embeddings(detector.encoder.pixels(pictures))


def test_tokens_of_the_value_path_match(tokens, golden):
    np.testing.assert_allclose(tokens, golden["tokens"], atol=TOKENS, rtol=0)


def text_features(encoder, texts):
    """[K, D] of length 1: of each text the mean over the templates of its unit embeddings."""
    templates = PromptPack.load("clip_surgery").templates
    rows = embed(encoder, [template.replace("{}", text) for text in texts for template in templates])
    return F.normalize(F.normalize(rows, dim=-1).unflatten(0, (len(texts), -1)).mean(1), dim=-1)


def test_texts_match(small_encoder, golden):
    texts = [str(text) for text in golden["texts"]]
    np.testing.assert_allclose(text_features(small_encoder, texts), golden["text_features"], atol=EXACT, rtol=0)
    np.testing.assert_allclose(text_features(small_encoder, [""]), golden["redundant_feature"], atol=EXACT, rtol=0)


def test_the_surgery_of_several_texts_matches(tokens, golden):
    similarity = feature_surgery(tokens, torch.from_numpy(golden["text_features"]), SHARPNESS)
    np.testing.assert_allclose(similarity, golden["similarity"], atol=EXACT, rtol=0)


def test_maps_of_several_texts_match(tokens, golden):
    similarity = feature_surgery(tokens, torch.from_numpy(golden["text_features"]), SHARPNESS)
    grids = similarity[:, 1:].transpose(1, 2).unflatten(2, (8, 8))  # [B, K, rows, columns]
    low, high = grids.amin((2, 3), keepdim=True), grids.amax((2, 3), keepdim=True)
    for grid, expected in zip((grids - low) / (high - low), golden["similarity_map"], strict=True):
        np.testing.assert_allclose(to_size(grid, (112, 112)), expected, atol=MAPS, rtol=0)


def test_the_closed_form_is_the_slow_product_over_all_channels():
    generator = torch.Generator().manual_seed(0)
    tokens, texts = torch.randn(2, 5, 8, generator=generator), torch.randn(3, 8, generator=generator)
    f, t = F.normalize(tokens, dim=-1), F.normalize(texts, dim=-1)
    weights = (2.0 * f[:, :1] @ t.T).softmax(-1)
    weights = weights / weights.mean(-1, keepdim=True)  # [B, 1, K]
    product = f[:, :, None] * t * weights[..., None]  # [B, T, K, D]
    expected = (product - product.mean(2, keepdim=True)).sum(-1)
    torch.testing.assert_close(feature_surgery(tokens, texts, 2.0), expected)


def test_the_map_is_the_surgery_of_the_two_states(detector, pictures, tokens):
    similarity = feature_surgery(tokens, detector.scorer.prototypes, SHARPNESS)
    torch.testing.assert_close(similarity[..., 0], -similarity[..., 1])
    maps = [prediction.map for prediction in detector.predict(pictures)]
    np.testing.assert_allclose(maps, similarity[:, 1:, 1].unflatten(1, (8, 8)), atol=1e-6)


def test_at_another_size_positions_are_resampled_without_antialiasing(small_encoder, golden_weights):
    detector = vlad.load("clip_surgery", "bolt", encoder=small_encoder, resolution=56)
    pixels = small_encoder.pixels([golden_weights.image(0, 56)], 56)
    with torch.no_grad():
        ours, other = detector.scorer.embeddings(pixels), small_encoder.dense(pixels)[1]
        plain = small_encoder.dense(pixels, positions="bilinear")[1]
    assert torch.equal(ours[:, 1:], plain) and (plain - other).abs().max() > 1e-3
