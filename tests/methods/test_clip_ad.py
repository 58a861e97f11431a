"""CLIP-AD against the numbers of ByChelsea/CLIP-AD (tests/golden/clip_ad.npz), and its authors' files."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import vlad
from vlad.detector import Detector
from vlad.learning.tap_layers import anomalous_pixels
from vlad.maps import feature_surgery, smooth_map, to_size
from vlad.methods.clip_ad import ClipAd, dbscan, representative
from vlad.prompts import state_rows

TOKENS, SDP, PLUS, SCORES = 5e-5, 1e-6, 5e-5, 5e-6  # the golden's own suggested tolerances
QUIRK = "after_next_attention"


@pytest.fixture(scope="module")
def pictures(golden, golden_weights):
    return [golden_weights.image(int(seed), 112) for seed in golden["query_seeds"]]


@pytest.fixture(scope="module")
def layers(golden_weights):
    """The golden's linear layers, as the authors' files name them."""
    shapes = {"weight": (64, 128), "bias": (64,)}
    names = [f"fc.{i}.{part}" for i in range(4) for part in shapes]
    return {n: golden_weights.tensor(f"linearlayer.{n}", shapes[n.rpartition(".")[2]], 0) for n in names}


@pytest.fixture(scope="module")
def sdp(golden, small_encoder):
    name = str(golden["class_name"])
    return vlad.load("clip_ad", name, encoder=small_encoder, representative="mean", tap=QUIRK)


@pytest.fixture(scope="module")
def adapter(small_encoder, layers, tmp_path_factory):
    file = tmp_path_factory.mktemp("clip_ad") / "plus.safetensors"
    detector = ClipAd(small_encoder, plus=True, representative="mean", tap=QUIRK)
    detector.load_learned({f"linear.{key}": value for key, value in layers.items()}).save_adapter(file, recipe={})
    return file


@pytest.fixture(scope="module")
def plus(golden, small_encoder, adapter):
    return vlad.load("clip_ad", str(golden["class_name"]), encoder=small_encoder, adapter=adapter)


def test_scores_and_maps_of_sdp_match_through_the_public_api(sdp, pictures, golden):
    predictions = sdp.predict(pictures)
    np.testing.assert_allclose([p.score for p in predictions], golden["sdp_image_prob"], atol=SCORES, rtol=0)
    np.testing.assert_allclose([p.map for p in predictions], golden["sdp_anomaly_map"], atol=SDP, rtol=0)


def test_maps_of_sdp_plus_match_through_the_public_api(plus, pictures, golden):
    predictions = plus.predict(pictures)
    np.testing.assert_allclose([p.map for p in predictions], golden["sdp_plus_anomaly_map"], atol=PLUS, rtol=0)
    np.testing.assert_allclose([p.score for p in predictions], golden["sdp_image_prob"], atol=SCORES, rtol=0)


@pytest.fixture(scope="module")
def seen(plus, pictures):
    with torch.no_grad():
        return plus.scorer.tokens(plus.encoder.pixels(pictures))


@torch.no_grad()
def test_tokens_of_both_paths_match(plus, seen, golden):
    streams, ordinary = seen
    projected = [plus.encoder.project(tokens) for tokens in streams]
    np.testing.assert_allclose(torch.stack(projected, 1), golden["surgery_tokens"], atol=TOKENS, rtol=0)
    np.testing.assert_allclose(torch.stack(ordinary, 1), golden["ori_tokens"], atol=TOKENS, rtol=0)


@torch.no_grad()
def test_similarities_and_the_two_parts_of_the_map_match(plus, seen, golden):
    streams, ordinary = seen
    projected = [plus.encoder.project(tokens) for tokens in streams]
    similarity = sum(feature_surgery(tokens, plus.scorer.prototypes, 1.0) for tokens in projected)
    np.testing.assert_allclose(similarity, golden["similarity"], atol=SDP, rtol=0)
    _, grid = plus.scorer.surgery(streams, (8, 8))
    np.testing.assert_allclose(to_size(grid, (112, 112)), golden["upsampled_abnormal"], atol=SDP, rtol=0)
    embeddings = plus.scorer.linear([tokens[:, 1:] for tokens in ordinary])
    maps = sum(anomalous_pixels(one, plus.scorer.prototypes, (8, 8), (112, 112)) for one in embeddings)
    np.testing.assert_allclose(maps, golden["finetuned_map"], atol=PLUS, rtol=0)
    smooth = smooth_map(grid, (112, 112), float(golden["sigma"]))
    np.testing.assert_allclose(smooth, golden["sdp_anomaly_map"], atol=SDP, rtol=0)


def test_representative_vectors_match(sdp, small_encoder, golden):
    np.testing.assert_allclose(sdp.scorer.prototypes, golden["text_prototypes"], atol=SDP, rtol=0)
    clustered = vlad.load("clip_ad", str(golden["class_name"]), encoder=small_encoder)
    np.testing.assert_allclose(clustered.scorer.prototypes, golden["text_prototypes_dbscan"], atol=1e-3, rtol=0)


def test_clusters_of_sentences_match(sdp, golden):
    for rows, key in zip(state_rows(sdp.encoder, sdp.pack, sdp.name), ("normal", "abnormal"), strict=True):
        assert dbscan(F.normalize(rows, dim=-1), 0.5, 15).tolist() == golden[f"dbscan_labels_{key}"].tolist()


def test_clusters_of_harder_points_match(golden):
    labels = dbscan(torch.from_numpy(golden["dbscan_points"]).float(), 0.5, 15)
    assert labels.tolist() == golden["dbscan_point_labels"].tolist()


@pytest.mark.parametrize("seed", range(8))
def test_clusters_are_those_of_scikit_learn(seed):
    from sklearn.cluster import DBSCAN

    points = np.random.default_rng(seed).normal(size=(120, 2)).astype(np.float32)
    expected = DBSCAN(eps=0.25, min_samples=4).fit_predict(points)
    assert len(set(expected.tolist())) > 3
    assert dbscan(torch.from_numpy(points), 0.25, 4).tolist() == expected.tolist()


def test_the_representative_is_the_mean_of_the_largest_cluster_and_the_plain_mean_where_all_is_noise():
    rows = torch.tensor([[2.0, 0.0], [3.0, 0.1], [1.0, 0.05], [0.0, 1.0], [-1.0, 0.0]])
    unit = F.normalize(rows, dim=-1)
    found = representative(rows, "dbscan", 0.5, 2)
    torch.testing.assert_close(found, F.normalize(unit[:3].mean(0), dim=-1))
    torch.testing.assert_close(representative(rows, "dbscan", 0.5, 5), representative(rows, "mean", 0.5, 5))


@torch.no_grad()
def test_without_the_quirk_ordinary_tokens_are_the_blocks_own(small_encoder, pictures):
    clean = vlad.load("clip_ad", "bolt", encoder=small_encoder)
    pixels = small_encoder.pixels(pictures)
    streams, ordinary = clean.scorer.tokens(pixels)
    for layer, _, after in small_encoder.walk(small_encoder.embed(pixels)):
        if layer in (6, 12, 18):
            number = layer // 6 - 1
            torch.testing.assert_close(ordinary[number], after, atol=2e-5, rtol=0)
            torch.testing.assert_close(streams[number][:, 0], after[:, 0], atol=2e-5, rtol=0)
    torch.testing.assert_close(streams[-1][:, 0], after[:, 0], atol=2e-5, rtol=0)
    assert ordinary[-1].shape[1] == 1, "of the last block the class token alone is used"


def test_scores_of_a_set_are_rescaled_only_where_that_is_asked_for(small_encoder, pictures):
    detector = vlad.load("clip_ad", "bolt", encoder=small_encoder, score="set")
    streaming = vlad.load("clip_ad", "bolt", encoder=small_encoder)
    many = [*pictures, np.tile(np.arange(112, dtype=np.uint8)[:, None, None], (1, 112, 3))]
    p = np.array([one.score for one in streaming.predict(many)])
    peaks = np.array([one.map.max() for one in streaming.predict(many)])
    expected = sum((x - x.min()) / (x.max() - x.min()) for x in (p, peaks))
    found = [one.score for one in detector.predict(many, batch_size=2)]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    with pytest.raises(TypeError, match="scores a set of pictures against each other"):
        detector.stream(many)


def test_plus_without_an_adapter_says_what_it_needs(small_encoder):
    with pytest.raises(ValueError, match=r"clip_ad has no adapter that ships.*give adapter=FILE"):
        vlad.load("clip_ad", "bolt", encoder=small_encoder, plus=True)


def test_wrong_options_are_refused(small_encoder):
    for options, words in [
        ({"representative": "pca"}, "expected one of dbscan, mean"),
        ({"tap": "next"}, "expected one of block, after_next_attention"),
        ({"score": "max"}, "expected one of class, set"),
    ]:
        with pytest.raises(ValueError, match=words):
            vlad.load("clip_ad", "bolt", encoder=small_encoder, **options)


@torch.no_grad()
def test_an_encoder_whose_tokens_align_with_text_uses_its_last_block(tiny_encoder, golden_weights):
    detector = vlad.load("clip_ad", "bolt", encoder=tiny_encoder)
    pixels = tiny_encoder.pixels([golden_weights.image(0, 112)])
    streams, _ = detector.scorer.tokens(pixels)
    image, patches = tiny_encoder.dense(pixels)
    torch.testing.assert_close(tiny_encoder.project(streams[0]), torch.cat([image[:, None], patches], 1))
    assert len(streams) == 1


# The authors' files


@pytest.fixture
def gelu_encoder(small_folder):
    return vlad.Encoder.load(f"local-dir:{small_folder}", device="cpu", dtype="float32", activation="gelu")


def test_the_authors_file_is_sdp_plus_with_the_quirk(gelu_encoder, layers, pictures, tmp_path):
    torch.save({"linear_layers": layers}, tmp_path / "a.pth")
    read = vlad.load("clip_ad", "metal bolt", encoder=gelu_encoder, adapter=tmp_path / "a.pth")
    assert read.options["plus"] is True and read.options["tap"] == QUIRK
    scorer = ClipAd(gelu_encoder, plus=True, tap=QUIRK)
    scorer.load_learned({f"linear.{key}": value for key, value in layers.items()})
    own = Detector(scorer).describe("metal bolt")
    for one, other in zip(read.predict(pictures), own.predict(pictures), strict=True):
        np.testing.assert_array_equal(one.map, other.map)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda c: c["linear_layers"].pop("fc.3.weight"), "linear.fc.3.weight is missing"),
        (lambda c: c["linear_layers"].update({"fc.9.bias": torch.zeros(64)}), "linear.fc.9.bias is unknown"),
        (lambda c: c["linear_layers"]["fc.1.bias"].fill_(float("inf")), "fc.1.bias is not finite"),
        (lambda c: c.update(trainable_linearlayer=c.pop("linear_layers")), "it looks april_gan's"),
    ],
)
def test_damaged_files_are_refused(damage, words, gelu_encoder, layers, tmp_path):
    content = {"linear_layers": {key: value.clone() for key, value in layers.items()}}
    damage(content)
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=words):
        vlad.load("clip_ad", "bolt", encoder=gelu_encoder, adapter=tmp_path / "a.pth")


def test_a_fitted_sdp_plus_scores_the_same_from_its_file(small_encoder, adapter, golden_weights, pictures, tmp_path):
    detector = vlad.load("clip_ad", "bolt", encoder=small_encoder, adapter=adapter)
    detector.fit([golden_weights.image(seed, 112) for seed in range(40, 45)])
    detector.save(tmp_path / "plus.safetensors")
    loaded = vlad.load(tmp_path / "plus.safetensors", encoder=small_encoder)
    for one, other in zip(detector.predict(pictures), loaded.predict(pictures), strict=True):
        assert one.to_dict() == other.to_dict()
        assert 0 <= one.map.min() <= one.map.max() <= 1
