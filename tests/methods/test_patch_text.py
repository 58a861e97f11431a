import numpy as np
import pytest
import torch
from torch.nn import functional as F

import vlad
from vlad.memory import layer_tokens
from vlad.memory.layers import weighted_mean
from vlad.methods.patch_text import image_score


@pytest.fixture(scope="module")
def picture(golden_weights):
    return golden_weights.image(3, 112)


def test_the_map_is_the_softmax_over_patch_and_prototype_cosines(small_encoder, picture):
    detector = vlad.load("patch_text", "metal bolt", encoder=small_encoder)
    prediction = detector.predict(picture)
    with torch.no_grad():
        _, patches = small_encoder.dense(small_encoder.pixels([picture]))
    cosines = F.normalize(patches[0], dim=-1) @ F.normalize(detector.scorer.prototypes, dim=-1).T
    expected = (cosines / 0.07).softmax(-1)[:, 1].view(8, 8)
    np.testing.assert_allclose(prediction.map, expected, atol=1e-6)
    assert prediction.score == pytest.approx(float((expected.max() * expected.mean()).sqrt()), abs=1e-6)


def test_scores_are_the_named_summaries_of_the_grid(small_encoder, picture):
    grids = torch.tensor([[[0.1, 0.9], [0.2, 0.4]]])
    assert image_score(grids, "max").item() == pytest.approx(0.9)
    assert image_score(grids, "mean").item() == pytest.approx(0.4)
    assert image_score(grids, "sqrt").item() == pytest.approx(0.6)
    detector = vlad.load("patch_text", "bolt", encoder=small_encoder, score="global")
    cosines = detector.predict(picture).phrases
    assert len(cosines) == 11
    assert 0 < detector.predict(picture).score < 1


def test_an_unknown_score_is_refused(small_encoder):
    with pytest.raises(ValueError, match="expected one of sqrt, max, mean, global"):
        vlad.load("patch_text", "bolt", encoder=small_encoder, score="median")


def test_with_normals_the_map_is_the_geometric_mean_of_words_and_memory(small_encoder, golden_weights, picture):
    words = vlad.load("patch_text", "bolt", encoder=small_encoder, layers=(12, 18))
    with pytest.warns(UserWarning, match="no threshold from 2 normals"):
        both = vlad.load("patch_text", "bolt", encoder=small_encoder, layers=(12, 18)).fit(
            [golden_weights.image(seed, 112) for seed in (4, 5)]
        )
    with torch.no_grad():
        unlike = both.scorer.memory.unlike(small_encoder.pixels([picture]))[0]
        seen = [small_encoder.pixels([p]) for p in (picture, *(golden_weights.image(seed, 112) for seed in (4, 5)))]
        one, *others = (layer_tokens(small_encoder, pixels, (12, 18), (1, 3))[0] for pixels in seen)
    cosines = F.normalize(one, dim=-1) @ F.normalize(torch.cat(others), dim=-1).T
    np.testing.assert_allclose(unlike.flatten(), (1 - cosines.amax(1)) / 2, atol=1e-5)
    expected = (words.predict(picture).map * unlike.numpy() ** 4) ** (1 / 5)
    np.testing.assert_allclose(both.predict(picture).map, expected, atol=1e-6)
    assert both.predict(picture).score == pytest.approx(float(expected.max()), abs=1e-6)
    assert both.predict(golden_weights.image(4, 112)).score < 1e-4, "a normal it has seen"
    assert both.predict(picture).phrases == pytest.approx(words.predict(picture).phrases, abs=1e-6)


def test_the_weight_of_the_normal_words_is_taken_from_the_anomalous_ones(small_encoder, picture):
    maps, scores = {}, {}
    for weight in (0.0, 1.0, 1.5):
        options = {} if weight == 1 else {"negative": weight}
        detector = vlad.load("patch_text", "bolt", encoder=small_encoder, score="global", **options)
        prediction = detector.predict(picture)
        maps[weight], scores[weight] = prediction.map, prediction.score
    with torch.no_grad():
        image, patches = small_encoder.dense(small_encoder.pixels([picture]))
    states = F.normalize(detector.scorer.prototypes, dim=-1)
    normal, anomalous = (F.normalize(torch.cat([image[:, None], patches], 1), dim=-1)[0] @ states.T).unbind(-1)
    for weight in maps:
        expected = ((anomalous - weight * normal) / 0.07).sigmoid()
        assert scores[weight] == pytest.approx(float(expected[0]), abs=1e-6)
        np.testing.assert_allclose(maps[weight], expected[1:].view(8, 8), atol=1e-6)
    with pytest.raises(ValueError, match="negative is -1; expected a weight of 0 or more"):
        vlad.load("patch_text", "bolt", encoder=small_encoder, negative=-1)


def test_layers_that_the_encoder_does_not_have_are_refused(small_encoder):
    with pytest.raises(ValueError, match="expected numbers from 1 to 24"):
        vlad.load("patch_text", "bolt", encoder=small_encoder, layers=(0, 25))


def test_with_a_memory_the_tower_is_walked_once_a_batch_and_gives_what_two_walks_give(
    small_encoder, golden_weights, monkeypatch
):
    pictures = [golden_weights.image(seed) for seed in range(6)]
    detector = vlad.load("patch_text", "bolt", encoder=small_encoder).fit(pictures[:5])
    pixels, walked = small_encoder.pixels(pictures[4:]), []
    embed = type(small_encoder).embed
    monkeypatch.setattr(
        type(small_encoder), "embed", lambda self, *args, **how: walked.append(1) or embed(self, *args, **how)
    )
    with torch.no_grad():
        grid = detector.scorer.forward(pixels)[1]
        assert len(walked) == 1
        unlike = detector.scorer.memory.unlike(pixels)
        detector.scorer.memory.clear()
        assert torch.equal(grid, weighted_mean(detector.scorer.forward(pixels)[1], unlike))
