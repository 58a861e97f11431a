"""AA-CLIP against the numbers of Mwxinnn/AA-CLIP (../shared/parity/aaclip.npz), and its authors' files.

Two correct float32 implementations differ by rounding through 24 blocks: some 1e-6 in unit vectors, which the scale of
100 and the sum over four taps make 1e-5 of a map. Gradients, and the totals of Adam's steps, which divide by them, are
held to 1e-3 of their size.
"""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from learned_goldens import batch_of, check_gradients, check_steps, close

import vlad
from vlad.learning.losses import dice, focal, whole_picture
from vlad.learning.tap_layers import states_of
from vlad.maps import blurred, enlarge, to_size
from vlad.methods.aaclip import SCALE, AaClip

FEATURES, MAPS, SCORES, TRAINING = 1e-5, 5e-5, 1e-5, 1e-3
NAME = "metal nut which has four notched edges"
SIDES = (112, 154)


@pytest.fixture(scope="module")
def folder(parity, tmp_path_factory):
    """The authors' two files."""
    place = tmp_path_factory.mktemp("aaclip")
    for part in ("text", "image"):
        shutil.copy(parity / f"aaclip_official_format_{part}_adapter.pth", place / f"{part}_adapter.pth")
    return place


@pytest.fixture(scope="module")
def gelu_encoder(small_folder):
    return vlad.Encoder.load(f"local-dir:{small_folder}", device="cpu", dtype="float32", activation="gelu")


@pytest.fixture(scope="module")
def weights(own_weights, gelu_encoder):
    return own_weights(AaClip(gelu_encoder))


@pytest.fixture(scope="module")
def official(weights, gelu_encoder):
    def loaded(file=weights, encoder=gelu_encoder, **options):
        return vlad.load("aaclip", NAME, encoder=encoder, adapter=file, **options)

    return loaded


@pytest.fixture(scope="module")
def pictures(golden, golden_weights):
    return [golden_weights.image(int(golden["seed"]) + number, 200) for number in range(3)]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", ["industrial", "medical"])
def test_scores_and_maps_match_through_the_public_api(golden, pictures, official, side, kind):
    prediction = official(resolution=side, kind=kind).predict(pictures[0])
    close(prediction.score, golden[f"s{side}_image_score"][0], SCORES)
    close(prediction.map, golden[f"s{side}_map_{kind}"], MAPS)
    assert official(resolution=side, kind=kind, score="map").predict(pictures[0]).score == prediction.map.max()


@pytest.mark.parametrize("side", SIDES)
@torch.no_grad()
def test_what_the_vision_tower_gives_matches(golden, pictures, official, side):
    detector, encoder = official(), official().encoder
    pixels = encoder.pixels(pictures[:1], side)
    resized = ((pixels * encoder.std + encoder.mean)[0] * 255).permute(1, 2, 0)
    close(resized, golden[f"s{side}_resized_uint8"], 1e-3)
    patches, whole = detector.scorer.see(pixels)
    close(torch.cat(patches), golden[f"s{side}_seg_tokens"], FEATURES)
    close(whole[0], golden[f"s{side}_det_token"], FEATURES)
    close(whole[0] @ detector.scorer.prototypes.T, golden[f"s{side}_image_cosines"], FEATURES)
    if side == 112:
        cosines = torch.cat(patches) @ detector.scorer.prototypes.T
        grids = ((SCALE * (cosines[..., 1] - cosines[..., 0]) + 1) / 2).unflatten(1, (8, 8))
        close(to_size(blurred(grids, 7, 1.0), (112, 112), align_corners=True), golden["s112_map_each"], MAPS)


@torch.no_grad()
def test_sentences_match(golden, official):
    detector = official()
    normal, anomalous = detector.pack.sentences(NAME)
    np.testing.assert_array_equal(detector.encoder.tokenize(normal), golden["tokens_normal"])
    np.testing.assert_array_equal(detector.encoder.tokenize(anomalous), golden["tokens_abnormal"])
    each = F.normalize(torch.from_numpy(golden["text_each_raw_abnormal"]), dim=-1)
    close(detector.scorer.sentences(anomalous), each, FEATURES)
    close(detector.scorer.prototypes.T, golden["text_features"], FEATURES)
    means = [F.normalize(detector.encoder.text(one), dim=-1).mean(0) for one in (normal, anomalous)]
    close(F.normalize(torch.stack(means), dim=-1).T, golden["text_features_unadapted"], FEATURES)


def test_layers_with_a_leaky_relu_match_and_are_known_by_their_names(golden, pictures, official, folder, tmp_path):
    def renamed(content):
        table = content["image_adapter"]
        for key in [key for key in table if "proj" in key]:
            table[key.replace("fc.weight", "fc.0.weight")] = table.pop(key)

    content = {key: value for file in folder.iterdir() for key, value in torch.load(file, weights_only=True).items()}
    renamed(content)
    torch.save(content, tmp_path / "both.pth")
    detector = official(tmp_path / "both.pth", resolution=112)
    assert detector.options["relu"] is True
    prediction = detector.predict(pictures[0])
    close(prediction.score, golden["s112_relu_image_score"][0], SCORES)
    close(prediction.map, golden["s112_relu_map_industrial"], MAPS)
    with torch.no_grad():
        patches, whole = detector.scorer.see(detector.encoder.pixels(pictures[:1], 112))
    close(torch.cat(patches), golden["s112_relu_seg_tokens"], FEATURES)
    close(whole[0], golden["s112_relu_det_token"], FEATURES)
    close(whole[0] @ detector.scorer.prototypes.T, golden["s112_relu_image_cosines"], FEATURES)


def test_the_published_scores_of_a_class_come_only_where_they_are_asked_for(golden, pictures, official):
    alone = official().predict(pictures)
    close([one.score for one in alone], golden["class_image_score"], SCORES)
    close([one.map.max() for one in alone], golden["class_raw_max"], MAPS)
    close([one.map.min() for one in alone], golden["class_raw_min"], MAPS)
    together = official(score="set")
    close([one.score for one in together.predict(pictures, batch_size=2)], golden["class_scores"], 1e-4)
    medical = official(score="set", kind="medical").predict(pictures)
    assert max(one.score for one in medical) == 1 and min(one.map.min() for one in medical) == 0
    with pytest.raises(TypeError, match="scores a set of pictures against each other"):
        together.stream(pictures)


def test_a_blur_never_reaches_over_the_whole_of_a_small_grid():
    grid = torch.rand(1, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(blurred(grid, 9, 1.5), blurred(grid, 5, 1.5))
    flat = torch.full((1, 8, 8), 3.0)
    assert torch.allclose(blurred(flat, 7, 1.0), flat)


# Training


NAMES = [NAME, "screw"]


def adam(scorer, rate):
    return torch.optim.Adam(scorer.parameter_groups(rate), betas=(0.5, 0.999))


@torch.no_grad()
def test_the_first_stages_tower_attends_over_the_pictures_only_where_that_is_asked_for(golden, pictures, official):
    detector, single = official(stage=1, across=True), official(stage=1)
    pixels = detector.encoder.pixels(pictures[:2], 112)
    together = torch.stack(detector.scorer.surgery(pixels, detector.scorer.layers))
    close(together[:, 0], golden["stage1_patch_plus_class_batch"], FEATURES)
    alone = single.scorer.image_side(pixels)[0]
    close(alone[0], golden["stage1_patch_plus_class_alone_tap24"], FEATURES)
    close(detector.scorer.image_side(pixels[:1])[0][0], golden["stage1_patch_plus_class_alone_tap24"], FEATURES)
    assert (together[-1, 0] - alone[0]).abs().max() > 0.01
    assert (
        single.scorer.frozen_image_side
        and not detector.scorer.frozen_image_side
        and not official().scorer.frozen_image_side
    )


def test_the_first_stage_matches_in_losses_gradients_and_steps(golden, golden_weights, pictures, official):
    scorer = official(stage=1, across=True).scorer
    batch = batch_of(scorer, golden, golden_weights, NAMES)
    with torch.no_grad():
        states, parts = states_of(scorer, batch.names), []
        for tap in scorer.surgery(scorer.encoder.pixels(pictures[:2], 112), scorer.layers):
            maps = enlarge(SCALE * tap @ states.mT, (8, 8), (112, 112)).softmax(1)
            three = [focal(maps, batch.masks), dice(maps[:, 0], 1 - batch.masks), dice(maps[:, 1], batch.masks)]
            apart = (states[:, 0] * states[:, 1]).sum(-1).mean().square()
            parts.append([*three, apart, sum(three) + 0.1 * apart])
    expected = golden["stage1_parts_focal_dice0_dice1_orthogonal_loss"]
    np.testing.assert_allclose(parts, expected, rtol=5e-5)
    assert scorer.loss(batch).item() == pytest.approx(expected[-1, -1], rel=1e-5)
    check_gradients(golden, scorer, scorer.loss(batch), TRAINING, "stage1_", "text_adapter.{}".format)
    check_steps(golden, scorer, batch, adam(scorer, 1e-5), 1e-5, "stage1_totals_3_steps")


def test_the_second_stage_matches_in_losses_gradients_and_steps(golden, golden_weights, official):
    scorer = official().scorer
    batch = batch_of(scorer, golden, golden_weights, NAMES)
    with torch.no_grad():
        states, parts = states_of(scorer, batch.names), []
        patches, whole = scorer.see(batch.features[0])
        for one in patches:
            maps = enlarge(SCALE * one @ states.mT, (8, 8), (112, 112)).softmax(1)
            parts.append([focal(maps, batch.masks), dice(maps[:, 0], 1 - batch.masks), dice(maps[:, 1], batch.masks)])
        entropy = whole_picture((states @ whole[..., None])[..., 0], batch.labels)
    np.testing.assert_allclose(entropy, golden["stage2_ce"], rtol=1e-5)
    np.testing.assert_allclose(parts, golden["stage2_parts_focal_dice0_dice1"], rtol=5e-5)
    check_gradients(golden, scorer, scorer.loss(batch), TRAINING, "stage2_", "image_adapter.{}".format)
    check_steps(golden, scorer, batch, adam(scorer, 5e-4), TRAINING, "stage2_totals_3_steps")


def test_checkpointing_changes_no_gradient(golden, golden_weights, official):
    found = []
    for checkpointing in (False, True):
        scorer = official(checkpointing=checkpointing).scorer
        scorer.loss(batch_of(scorer, golden, golden_weights, NAMES)).backward()
        found.append([p.grad for p in scorer.image_adapter.parameters()])
    for one, other in zip(*found, strict=True):
        close(one, other, 1e-6 * one.abs().max())


# Encoders and options


def test_it_has_as_many_layers_as_a_smaller_tower_allows(tiny_encoder, pictures, tmp_path):
    made = AaClip(tiny_encoder)
    assert (len(made.text_adapter), len(made.image_adapter.layer_adapters)) == (
        1 + tiny_encoder.text_depth,
        1,
    )
    made.save_adapter(file := tmp_path / "tiny.safetensors", recipe={})
    prediction = vlad.load("aaclip", "metal bolt", encoder=tiny_encoder, adapter=file).predict(pictures[0])
    assert 0 < prediction.score < 1


def test_phrases_are_cosines_with_the_pictures_own_vector_by_the_learned_towers(golden, pictures, official):
    detector = official().describe("bolt", {"normal": ["{}"], "anomalous": ["bad {}"]})
    whole = F.normalize(torch.from_numpy(golden["s112_det_token"]), dim=0)
    expected = (detector.scorer.sentences(["bolt", "bad bolt"]) @ whole).tolist()
    assert list(detector.predict(pictures[0]).phrases.values()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("option", [{"kind": "natural"}, {"score": "max"}, {"stage": 3}])
def test_options_out_of_range_are_refused(tiny_encoder, option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name} is .*; expected one of"):
        AaClip(tiny_encoder, **option)


# The authors' files


def test_both_files_give_the_goldens_weights(official, folder):
    for key, value in official(folder).scorer.learned().items():
        assert torch.equal(value, official().scorer.learned()[key]), key


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("text", lambda c: c["text_adapter"].pop("3.fc.0.weight"), "text_adapter.3.fc.0.weight is missing"),
        (
            "image",
            lambda c: c["image_adapter"].pop("det_proj.fc.weight"),
            "image_adapter.det_proj.fc.weight is missing",
        ),
        ("image", lambda c: c["image_adapter"].update(more=torch.zeros(1)), "image_adapter.more is unknown"),
        ("text", lambda c: c["text_adapter"]["0.fc.0.weight"].fill_(torch.nan), "0.fc.0.weight is not finite"),
        ("text", lambda c: c.update(text_adapter=3), "'text_adapter' is no table of tensors"),
        ("text", lambda c: c.update(more={}), "it holds 'image_adapter', 'more', 'text_adapter'"),
        ("text", lambda c: c.update(image_adapter={}), "holds 'text_adapter'|holds 'image_adapter', and so does"),
    ],
)
def test_damaged_official_files_are_refused_with_what_is_wrong(official, folder, tmp_path, part, change, words):
    copy = shutil.copytree(folder, tmp_path / "copy")
    content = torch.load(copy / f"{part}_adapter.pth", weights_only=True)
    change(content)
    torch.save(content, copy / f"{part}_adapter.pth")
    with pytest.raises(ValueError, match=words):
        official(copy)


def test_one_of_the_two_files_asks_for_the_other(official, folder):
    with pytest.raises(ValueError, match=r"it lacks 'image_adapter': .* put both files into one folder"):
        official(folder / "text_adapter.pth")
