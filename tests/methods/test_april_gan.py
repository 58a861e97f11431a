"""APRIL-GAN against the numbers of ByChelsea/VAND-APRIL-GAN (tests/golden/april_gan.npz), and its authors' files."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import vlad
from vlad.detector import Detector
from vlad.learning.losses import dice, focal
from vlad.learning.scorer import Batch
from vlad.learning.tap_layers import anomalous_pixels
from vlad.maps import to_size
from vlad.methods.april_gan import AprilGan

TOKENS, SCORES = 5e-5, 5e-6  # the golden's own suggested tolerances


@pytest.fixture(scope="module")
def layers(golden_weights):
    """The golden's linear layers, as the authors' files name them."""
    shapes = {"weight": (64, 128), "bias": (64,)}
    names = [f"fc.{i}.{part}" for i in range(4) for part in shapes]
    return {n: golden_weights.tensor(f"linearlayer.{n}", shapes[n.rpartition(".")[2]], 0) for n in names}


@pytest.fixture(scope="module")
def adapter(layers, small_encoder, tmp_path_factory):
    """The same layers as a file of our own."""
    file = tmp_path_factory.mktemp("april_gan") / "linear.safetensors"
    tensors = {f"linear.{key}": value for key, value in layers.items()}
    AprilGan(small_encoder).load_learned(tensors).save_adapter(file, recipe={})
    return file


@pytest.fixture(scope="module")
def load(golden, small_encoder, adapter):
    def loaded(**options):
        return vlad.load("april_gan", str(golden["class_name"]), encoder=small_encoder, adapter=adapter, **options)

    return loaded


@pytest.fixture(scope="module")
def detector(load):
    return load()


@pytest.fixture(scope="module")
def pictures(golden, golden_weights):
    return [golden_weights.image(int(seed), 112) for seed in golden["query_seeds"]]


@pytest.fixture(scope="module")
def references(golden, golden_weights):
    return [golden_weights.image(int(seed), 112) for seed in golden["reference_seeds"]]


@pytest.fixture(scope="module")
def fitted(load, references):
    with pytest.warns(UserWarning, match="no threshold from 2 normals"):
        return load().fit(references)


def test_scores_and_maps_match_through_the_public_api(detector, pictures, golden):
    predictions = detector.predict(pictures)
    np.testing.assert_allclose([p.score for p in predictions], golden["zero_shot_image_score"], atol=SCORES, rtol=0)
    np.testing.assert_allclose([p.map for p in predictions], golden["zero_shot_anomaly_map"], atol=TOKENS, rtol=0)


def test_fused_maps_match_through_the_public_api(fitted, pictures, golden):
    maps = [p.map for p in fitted.predict(pictures)]
    np.testing.assert_allclose(maps, golden["fused_anomaly_map"], atol=TOKENS, rtol=0)


def test_another_resolution_matches_through_the_public_api(load, golden, golden_weights):
    prediction = load(resolution=154).predict(golden_weights.image(int(golden["query_seeds"][0]), 154))
    assert prediction.score == pytest.approx(float(golden["s154_zero_shot_image_score"]), abs=SCORES)
    np.testing.assert_allclose(prediction.map, golden["s154_zero_shot_anomaly_map"], atol=TOKENS, rtol=0)


def test_resampled_positions_match(small_encoder, golden):
    from vlad.encoders.blocks import resample_positions

    table = small_encoder.visual.positional_embedding
    found = resample_positions(table, (8, 8), (11, 11), "bicubic-antialias")
    np.testing.assert_allclose(found, golden["s154_positional_embedding"], atol=1e-6, rtol=0)


def test_prototypes_match(detector, golden):
    states = F.normalize(detector.scorer.prototypes, dim=-1)
    np.testing.assert_allclose(states, golden["text_prototypes"], atol=SCORES, rtol=0)


@torch.no_grad()
def test_tokens_projections_and_logits_match(detector, pictures, golden):
    encoder = detector.encoder
    pixels = encoder.pixels(pictures)
    taps = [after for layer, _, after, _ in encoder.value_walk(pixels, first=25) if layer in detector.scorer.layers]
    np.testing.assert_allclose(torch.stack(taps, 1), golden["tokens"], atol=TOKENS, rtol=0)
    np.testing.assert_allclose(encoder.dense(pixels)[0], golden["image_embeddings"], atol=TOKENS, rtol=0)
    projected = F.normalize(torch.stack(detector.scorer.linear(detector.scorer.image_side(pixels)), 1), dim=-1)
    np.testing.assert_allclose(projected, golden["projected"], atol=TOKENS, rtol=0)
    logits = 100 * projected @ F.normalize(detector.scorer.prototypes, dim=-1).T
    np.testing.assert_allclose(logits.unflatten(2, (8, 8)), golden["logits"], atol=TOKENS, rtol=0)


@torch.no_grad()
def test_distances_to_the_references_match(fitted, pictures, golden):
    grids = fitted.scorer.association(fitted.encoder(fitted.encoder.pixels(pictures), layers=fitted.scorer.layers))
    np.testing.assert_allclose(grids, golden["few_shot_grid"], atol=TOKENS, rtol=0)
    maps = to_size(grids.sum(1), (112, 112), align_corners=True)
    np.testing.assert_allclose(maps, golden["few_shot_map"], atol=TOKENS, rtol=0)


def test_the_score_after_fit_is_the_mean_with_the_maximum_between_its_bounds(load, pictures, references, golden):
    p, peaks = golden["zero_shot_image_score"], golden["fused_anomaly_map"].max((1, 2))
    for options, expected in [
        ({}, (p + peaks / 4) / 2),
        ({"score": "class"}, p),
        ({"bounds": (1, 3)}, (p + (peaks - 1) / 2) / 2),
    ]:
        with pytest.warns(UserWarning, match="no threshold from 2 normals"):
            found = load(**options).fit(references).predict(pictures)
        np.testing.assert_allclose([one.score for one in found], expected, atol=TOKENS)


def test_scores_of_a_set_are_rescaled_only_where_that_is_asked_for(load, pictures, references, golden):
    detector = load(score="set")
    words = [p.score for p in detector.predict(pictures)]
    np.testing.assert_allclose(words, golden["zero_shot_image_score"], atol=SCORES)
    detector.fit(references)
    assert detector.threshold is None and detector.calibration is None
    third = np.tile(np.arange(112, dtype=np.uint8)[:, None, None], (1, 112, 3))
    found = detector.predict([*pictures, third], batch_size=2)
    peaks = np.array([p.map.max() for p in found])
    expected = (peaks[:2] - peaks.min()) / (peaks.max() - peaks.min())
    scores = [p.score for p in found[:2]]
    np.testing.assert_allclose(scores, (golden["zero_shot_image_score"] + expected) / 2, atol=TOKENS)
    with pytest.raises(TypeError, match="scores a set of pictures against each other"):
        detector.stream(pictures)


def test_upsampling_the_difference_of_the_logits_is_the_softmax_after_upsampling_both():
    generator = torch.Generator().manual_seed(0)
    embeddings, states = torch.randn(2, 12, 8, generator=generator), torch.randn(2, 8, generator=generator)
    cosines = F.normalize(embeddings, dim=-1) @ F.normalize(states, dim=-1).T
    logits = (100 * cosines).transpose(1, 2).unflatten(2, (3, 4))
    expected = F.interpolate(logits, (9, 8), mode="bilinear", align_corners=True).softmax(1)[:, 1]
    torch.testing.assert_close(anomalous_pixels(embeddings, states, (3, 4), (9, 8)), expected, atol=1e-5, rtol=0)


# Training


def test_the_loss_is_focal_and_dice_over_the_taps_for_each_picture_s_own_words(detector, pictures):
    with torch.no_grad():
        features = detector.scorer.image_side(detector.encoder.pixels(pictures))
    masks = torch.zeros(2, 112, 112)
    masks[0, 20:60, 30:90] = 1
    loss = detector.scorer.loss(Batch(features, masks, torch.tensor([1, 0]), ("metal bolt", "wood")))
    pair = [detector.scorer.prototypes_of(detector.pack, name) for name in ("metal bolt", "wood")]
    expected = 0
    for tap in detector.scorer.linear(features):
        rows = [anomalous_pixels(tap[i : i + 1], pair[i], (8, 8), (112, 112)) for i in range(2)]
        a = torch.cat(rows)
        expected = expected + focal(torch.stack([1 - a, a], 1), masks) + dice(a, masks)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_training_the_layers_lowers_the_loss(small_encoder, pictures):
    torch.manual_seed(0)
    detector = AprilGan(small_encoder)
    with torch.no_grad():
        features = detector.image_side(small_encoder.pixels(pictures))
    masks = torch.zeros(2, 112, 112)
    masks[:, :50] = 1
    batch = Batch(features, masks, torch.tensor([1, 1]), ("bolt", "wood"))
    optimiser = torch.optim.Adam(detector.parameters(), lr=1e-3, betas=(0.5, 0.999))
    losses = []
    for _ in range(8):
        loss = detector.loss(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


# The authors' files


@pytest.fixture
def gelu_encoder(small_folder):
    return vlad.Encoder.load(f"local-dir:{small_folder}", device="cpu", dtype="float32", activation="gelu")


def official(path, content):
    torch.save(content, path)
    return path


def test_the_authors_file_gives_the_maps_of_the_same_layers(gelu_encoder, layers, pictures, tmp_path):
    file = official(tmp_path / "a.pth", {"trainable_linearlayer": layers})
    read = vlad.load("april_gan", "metal bolt", encoder=gelu_encoder, adapter=file)
    own = Detector(AprilGan(gelu_encoder).load_learned({f"linear.{key}": value for key, value in layers.items()}))
    own.describe("metal bolt")
    for one, other in zip(read.predict(pictures), own.predict(pictures), strict=True):
        np.testing.assert_array_equal(one.map, other.map)


def test_the_authors_file_is_refused_on_the_other_activation(small_encoder, layers, tmp_path):
    file = official(tmp_path / "a.pth", {"trainable_linearlayer": layers})
    with pytest.raises(ValueError, match=r"activation gelu, and encoder .* computes quickgelu"):
        vlad.load("april_gan", "bolt", encoder=small_encoder, adapter=file)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda c: c["trainable_linearlayer"].pop("fc.2.bias"), "linear.fc.2.bias is missing"),
        (lambda c: c["trainable_linearlayer"].update({"fc.4.bias": torch.zeros(64)}), "linear.fc.4.bias is unknown"),
        (
            lambda c: c["trainable_linearlayer"].update({"fc.0.weight": torch.zeros(64, 96)}),
            r"linear.fc.0.weight is \[64, 96\], expected \[64, 128\]",
        ),
        (lambda c: c["trainable_linearlayer"]["fc.1.weight"].fill_(float("nan")), "fc.1.weight is not finite"),
        (lambda c: c.update(more={}), "it holds 'more', 'trainable_linearlayer'"),
        (lambda c: c.update(trainable_linearlayer=3), "no table of tensors"),
        (lambda c: c.update(linear_layers=c.pop("trainable_linearlayer")), "it looks clip_ad's"),
        (lambda c: c.update(other=c.pop("trainable_linearlayer")), "of no kind that VLAD knows"),
    ],
)
def test_damaged_files_are_refused(damage, words, gelu_encoder, layers, tmp_path):
    content = {"trainable_linearlayer": {key: value.clone() for key, value in layers.items()}}
    damage(content)
    with pytest.raises(ValueError, match=words):
        vlad.load("april_gan", "bolt", encoder=gelu_encoder, adapter=official(tmp_path / "a.pth", content))


def test_without_an_adapter_it_says_what_it_needs(small_encoder):
    with pytest.raises(ValueError, match="april_gan has no adapter that ships"):
        vlad.load("april_gan", "bolt", encoder=small_encoder)


def test_wrong_options_are_refused(load):
    with pytest.raises(ValueError, match="expected one of bounds, class, set"):
        load(score="max")
    with pytest.raises(ValueError, match=r"expected \(low, high\)"):
        load(bounds=(4, 4))
