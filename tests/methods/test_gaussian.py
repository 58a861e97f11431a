"""gaussian against its equations worked by NumPy and scikit-learn (tests/golden/gaussian_ad.npz), and few normals."""

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from scipy.stats import chi2

import vlad
from vlad.memory.statistics import Moments, Statistics
from vlad.methods.gaussian import gaussian, negative_gaussian, shrinkage

WIDTHS = (24, 32, 56)


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "gaussian_ad.npz")


@pytest.fixture(scope="module")
def patches(golden_weights):
    """[36, C] float64 of each layer's 12 normals and 5 queries, by the golden's recipe."""

    def drawn(name, layer, *shape):
        return golden_weights.tensor(f"gauss.{name}.{layer}", shape).double()

    def picture(kind, number, layer):
        C = WIDTHS[layer]
        x = 6 * drawn("base", layer, C, 36) + 3 * drawn(f"{kind}.noise.{number}", layer, C, 36)
        x = x + 2 * drawn("mix", layer, C, 4) @ drawn(f"{kind}.factor.{number}", layer, 4, 1)
        odd = kind == "query" and number in (1, 3)
        return (x + 0.8 * drawn(f"query.odd.{number}", layer, C, 1) if odd else x).T

    return {
        kind: [torch.stack([picture(kind, number, layer) for number in range(count)]) for layer in range(3)]
        for kind, count in (("train", 12), ("query", 5))
    }


@pytest.fixture(scope="module")
def pooled(patches):
    return {kind: [one.mean(1) for one in layers] for kind, layers in patches.items()}


def scores(gaussians, layers):
    return sum(own.distance(x) for own, x in zip(gaussians, layers, strict=True))


def test_mean_shrinkage_and_precision_are_the_goldens(golden, pooled):
    for layer, features in enumerate(pooled["train"]):
        np.testing.assert_allclose(features, golden[f"l{layer}_pooled_train"], atol=1e-12)
        np.testing.assert_allclose(pooled["query"][layer], golden[f"l{layer}_pooled_query"], atol=1e-12)
        moments = Moments.of(features)
        found = gaussian(moments)
        np.testing.assert_allclose(found.mean, golden[f"l{layer}_mean"], rtol=1e-9)
        assert float(shrinkage(moments)) == pytest.approx(float(golden[f"l{layer}_shrinkage"]), rel=1e-9)
        precision = found.directions @ found.directions.T
        np.testing.assert_allclose(precision[:4, :4], golden[f"l{layer}_precision_head"], rtol=1e-8, atol=1e-10)
        covariance = torch.linalg.inv(precision)[:4, :4]
        np.testing.assert_allclose(covariance, golden[f"l{layer}_covariance_head"], rtol=1e-8, atol=1e-9)
        assert found.bound() == pytest.approx(float(golden["threshold_each_9973"][layer]), rel=1e-9)


def test_distances_are_the_goldens_with_all_components_and_with_the_last(golden, pooled):
    gaussians = [gaussian(Moments.of(features)) for features in pooled["train"]]
    for row, own, x in zip(golden["layer_scores"], gaussians, pooled["query"], strict=True):
        np.testing.assert_allclose(own.distance(x), row, rtol=1e-9)
    np.testing.assert_allclose(scores(gaussians, pooled["query"]), golden["score"], rtol=1e-9)
    last = [negative_gaussian(features, 0.99) for features in pooled["train"]]
    np.testing.assert_allclose(scores(last, pooled["query"]), golden["score_npca"], rtol=1e-9)
    for layer, own in enumerate(last):
        first = int(golden[f"l{layer}_npca_first"])
        assert own.directions.shape[1] == 11 - first
        features = pooled["train"][layer].numpy()
        components = np.linalg.svd(features - features.mean(0), full_matrices=False)[2][first:11]
        inside = Moments.of(torch.from_numpy((features - features.mean(0)) @ components.T))
        assert float(shrinkage(inside)) == pytest.approx(float(golden[f"l{layer}_npca_shrinkage"]), rel=1e-9)


def test_a_normal_under_the_others_is_as_far_as_in_the_golden(golden, pooled):
    for number in range(12):
        others = torch.arange(12) != number
        gaussians = [gaussian(Moments.of(features[others])) for features in pooled["train"]]
        found = scores(gaussians, [features[number] for features in pooled["train"]])
        assert float(found) == pytest.approx(float(golden["leave_one_out"][number]), rel=1e-9)


def test_the_map_is_the_goldens_from_sums_alone(golden, patches):
    for layer, (train, query) in enumerate(zip(patches["train"], patches["query"], strict=True)):
        memory = Statistics(WIDTHS[layer])
        memory.add(train)
        memory.condense()
        moments = memory.moments(memory.rows)
        assert float(shrinkage(moments)) == pytest.approx(float(golden[f"l{layer}_map_shrinkage"]), rel=1e-9)
        found = gaussian(moments).distance(query).unflatten(1, (6, 6))
        np.testing.assert_allclose(found, golden[f"l{layer}_map"], rtol=1e-9)


@pytest.fixture(scope="module")
def normals(golden_weights):
    return [golden_weights.image(seed, 112) for seed in range(30, 42)]


@torch.no_grad()
def test_a_prediction_is_the_summed_distance_against_the_summed_bound(small_encoder, golden_weights, normals):
    detector = vlad.load("gaussian", encoder=small_encoder, sigma=0).fit(normals)
    picture = golden_weights.image(1, 112)
    taken = [small_encoder(small_encoder.pixels([p]), layers=(6, 12, 18, 24)).patches for p in [picture, *normals]]
    far = [
        gaussian(Moments.of(torch.cat([one[layer].mean(1) for one in taken[1:]]))).distance(taken[0][layer].mean(1))
        for layer in range(4)
    ]
    bound = 4 * 13.3059  # of chi-square with 128 degrees of freedom, square root taken
    total = float(sum(far))
    assert detector.predict(picture).score == pytest.approx(total / (total + bound), rel=1e-3)
    everything = gaussian(Moments.of(torch.cat([one[3][0] for one in taken[1:]]))).distance(taken[0][3][0])
    alone = vlad.load("gaussian", encoder=small_encoder, layers=(24,), sigma=0).fit(normals).predict(picture).map
    grid = (everything / (everything + bound / 4)).view(8, 8)
    assert alone[0, 0] == pytest.approx(float(grid[0, 0]), rel=1e-4)


def test_the_last_components_give_other_scores_and_keep_thresholds(small_encoder, golden_weights, normals):
    every, last = (vlad.load("gaussian", encoder=small_encoder, negative=share).fit(normals) for share in (None, 0.99))
    picture = golden_weights.image(1, 112)
    assert abs(every.predict(picture).score - last.predict(picture).score) > 1e-3
    assert every.threshold is not None and last.threshold is not None


@pytest.mark.parametrize("negative", [None, 0.9])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_few_or_equal_normals_give_finite_scores(small_encoder, golden_weights, normals, count, negative):
    blank = [np.full((40 + number, 40, 3), 128, np.uint8) for number in range(count)]
    for given in (normals[:count], blank):
        with pytest.warns(UserWarning, match="no threshold"):
            detector = vlad.load("gaussian", encoder=small_encoder, negative=negative).fit(given)
        same, other = detector.predict([given[0], golden_weights.image(1, 112)])
        assert 0 <= same.score <= 1 and 0 <= other.score <= 1
        assert negative or same.score < other.score, "the last components of so few see little of another picture"
        assert np.isfinite(same.map).all() and np.isfinite(other.map).all()


def test_two_clusters_of_patches_are_a_covariance_that_can_be_inverted():
    """Half of the samples at -1, half at 1 of one axis: nothing asks for shrinkage, the other axis has no spread."""
    samples = torch.zeros(8, 2)
    samples[:, 0] = torch.tensor([1.0, -1.0]).repeat(4)
    found = gaussian(Moments.of(samples))
    assert float(found.distance(torch.tensor([1.0, 0.0]).double())) == pytest.approx(1, rel=1e-4)
    assert np.isfinite(float(found.distance(torch.tensor([1.0, 1.0]).double())))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"negative": 1.0}, "above 0 and below 1"),
        ({"sigma": -1}, "sigma is -1"),
        ({"layers": (0,)}, "from 1 to 24"),
    ],
)
def test_wrong_settings_are_refused(options, words, small_encoder):
    with pytest.raises(ValueError, match=words):
        vlad.load("gaussian", encoder=small_encoder, **options)


@pytest.fixture(scope="module")
def b4(metauas_file, tmp_path_factory):
    """EfficientNet-B4 from a file of the tower alone, by the names of efficientnet-pytorch, with classes beside it."""
    content = torch.load(metauas_file, weights_only=True)
    alone = {name.removeprefix("encoder."): value for name, value in content.items() if name.startswith("encoder.")}
    torch.save({**alone, "_fc.weight": torch.zeros(10, 1792)}, file := tmp_path_factory.mktemp("b4") / "b4.pth")
    return vlad.Encoder.load(f"efficientnet:{file}", device="cpu")


@torch.no_grad()
def test_an_efficientnet_has_nine_levels_at_380_px(b4, golden_weights):
    assert vlad.load("gaussian", encoder=b4).resolution == 380
    levels = b4.level_maps(b4.pixels([golden_weights.image(0, 90)]), tuple(range(1, 10)))
    assert [level.shape[1] for level in levels] == list(b4.level_widths) == [48, 24, 32, 56, 112, 160, 272, 448, 1792]
    assert [level.shape[2] for level in levels] == [190, 190, 95, 48, 24, 24, 12, 12, 12]
    inner = b4.model.forward_features(b4.pixels([golden_weights.image(0, 90)]))  # timm's own way to the head
    torch.testing.assert_close(levels[-1], inner, atol=1e-5, rtol=1e-5)
    (alone,) = b4.level_maps(b4.pixels([golden_weights.image(0, 90)]), (3,))
    torch.testing.assert_close(alone, levels[2], atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_on_an_efficientnet_the_score_is_the_sum_over_its_levels_as_scikit_learn_has_it(b4, golden_weights):
    from sklearn.covariance import LedoitWolf

    normals, odd = [golden_weights.image(seed, 64) for seed in range(10, 14)], golden_weights.image(1, 64)
    layers = tuple(range(1, 9))  # one setting of the paper's leaves out the head
    with pytest.warns(UserWarning, match="no threshold"):
        detector = vlad.load("gaussian", encoder=b4, layers=layers, resolution=64).fit(normals)
    prediction, far, bound = detector.predict(odd), 0.0, 0.0
    taken = [b4.level_maps(b4.pixels([picture], 64), layers) for picture in [odd, *normals]]
    for asked, *seen in zip(*taken, strict=True):
        model = LedoitWolf().fit(torch.cat(seen).mean((2, 3)).double().numpy())
        far += float(model.mahalanobis(asked.mean((2, 3)).double().numpy())[0]) ** 0.5
        bound += chi2.ppf(0.9973, asked.shape[1]) ** 0.5
    assert prediction.score == pytest.approx(far / (far + bound), rel=1e-3)
    assert prediction.map.shape == (64, 64) and np.ptp(prediction.map) > 0.01


def test_metauas_refuses_a_side_that_it_cannot_halve(b4, metauas_file):
    with pytest.raises(ValueError, match="metauas halves its pictures five times: give resolution="):
        vlad.load("metauas", adapter=metauas_file, encoder=b4)
