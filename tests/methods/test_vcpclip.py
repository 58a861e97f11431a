"""VCP-CLIP against the numbers of xiaozhen228/VCP-CLIP (../shared/parity/vcpclip.npz), and its authors' files.

Two correct float32 implementations differ by rounding through 24 blocks: some 1e-6 in unit vectors and probabilities.
Gradients, and the totals of Adam's steps, which divide by them, are held to 1e-3 of their size.
"""

import numpy as np
import pytest
import torch
from conftest import GOLDEN

import vlad
from vlad.learning.losses import dice, focal
from vlad.learning.scorer import Batch
from vlad.maps import rescaled
from vlad.methods.vcpclip import VECTORS, VcpClip

EXACT, TRAINING = 1e-5, 1e-3
SIDES = (112, 154)
SLOT = 49408  # the golden's id for the place of the picture
NO_GRADIENT = ("Zero_try.k_proj_pre_1.bias", "New_Lan_Embed.prompt_linear1.fc.bias")  # theirs is rounding noise


@pytest.fixture(scope="module")
def golden(parity):
    return np.load(parity / "vcpclip.npz")


@pytest.fixture(scope="module")
def file(parity):
    return parity / "vcpclip_official_format.pth"


@pytest.fixture(scope="module")
def official(file, wide_encoder):
    def loaded(file=file, encoder=wide_encoder, **options):
        return vlad.load("vcpclip", encoder=encoder, adapter=file, **options)

    return loaded


@pytest.fixture(scope="module")
def picture(golden, golden_weights):
    return golden_weights.image(int(golden["seed"]), 200)


def close(ours, theirs, atol=EXACT, **more):
    np.testing.assert_allclose(ours, theirs, atol=atol, rtol=0, **more)


@pytest.mark.parametrize("side", SIDES)
def test_scores_and_maps_match_through_the_public_api(golden, picture, official, side):
    prediction = official(resolution=side, top=2000.5 / side**2).predict(picture)
    close(prediction.score, golden[f"s{side}_score"])
    close(prediction.map, golden[f"s{side}_map_smooth"])


@pytest.mark.parametrize("side", SIDES)
@torch.no_grad()
def test_what_both_towers_give_matches(golden, picture, official, side):
    detector, encoder = official(), official().encoder
    pixels = encoder.pixels([picture], side)
    resized = ((pixels * encoder.std + encoder.mean)[0] * 255).permute(1, 2, 0)
    close(resized, golden[f"s{side}_resized_uint8"], atol=1e-3)
    image, *taps = detector.scorer.image_side(pixels)
    states = detector.scorer.states(image)
    attended = [detector.scorer.Zero_try(states, torch.nn.functional.normalize(tokens, dim=-1)) for tokens in taps]
    new, raw = detector.scorer.maps(image, taps, (side, side))
    close(image[0], golden[f"s{side}_image_feature"], atol=5 * EXACT)
    close(detector.scorer.New_Lan_Embed(image)[0], golden[f"s{side}_class_vectors"], atol=5 * EXACT)
    close(states[0], golden[f"s{side}_text_features"])
    close(torch.nn.functional.normalize(torch.cat(attended), dim=-1), golden[f"s{side}_text_attended"])
    close(torch.cat(new).mean(0), golden[f"s{side}_map_new"])
    close(torch.cat(raw).mean(0), golden[f"s{side}_map_raw"])
    if side == 112:
        close(torch.cat(taps), golden["s112_taps"][:, 1:], atol=5 * EXACT)
        close(torch.cat(new), golden["s112_maps_new"])
        close(torch.cat(raw), golden["s112_maps_raw"])


def test_the_sentences_are_the_official_ones_with_two_places_for_the_pictures_one_slot(golden, official):
    ids = official().scorer.ids.tolist()
    for ours, theirs in zip(ids, golden["tokens"].tolist(), strict=True):
        at = theirs.index(SLOT)
        assert ours[:at] == theirs[:at] and ours[at] == ours[at + 1]
        assert ours[at + VECTORS :] == theirs[at + 1 : len(theirs) + 1 - VECTORS]


def test_scores_and_maps_of_a_set_are_rescaled_only_where_that_is_asked_for(official, golden_weights):
    pictures = [golden_weights.image(seed, 112) for seed in range(3)]
    alone, found = official().predict(pictures), official(score="set").predict(pictures, batch_size=2)
    close([one.score for one in found], rescaled(torch.tensor([one.score for one in alone])), 1e-4)
    close(np.stack([one.map for one in found]), rescaled(torch.tensor(np.stack([one.map for one in alone]))), 1e-4)
    with pytest.raises(TypeError, match="scores a set of pictures against each other"):
        official(score="set").stream(pictures)


# Training


@pytest.fixture
def trainable(golden, golden_weights, official):
    """The official weights, and the golden's batch: an anomalous picture with a mask, then a normal one."""
    detector, seed = official(), int(golden["seed"])
    mask = torch.from_numpy(golden["train_mask"]).float()
    with torch.no_grad():
        pixels = detector.encoder.pixels([golden_weights.image(seed + i, 200) for i in range(2)], 112)
        features = detector.scorer.image_side(pixels)
    return detector, Batch(features, torch.stack([mask, 0 * mask]), torch.tensor([1, 0]), ["a", "b"])


@torch.no_grad()
def test_each_part_of_the_loss_matches(golden, trainable):
    detector, batch = trainable
    image, *taps = batch.features
    new, raw = detector.scorer.maps(image, taps, (112, 112))
    parts = [[focal(torch.stack([1 - m, m], 1), batch.masks), dice(m, batch.masks)] for m in (*new, *raw)]
    np.testing.assert_allclose(parts, golden["train_parts_focal_dice1_new_then_raw"], rtol=1e-5)
    assert detector.scorer.loss(batch).item() == pytest.approx(np.sum(parts), rel=1e-6)


def test_gradients_match_and_the_encoder_gets_none(golden, trainable):
    detector, batch = trainable
    detector.scorer.loss(batch).backward()
    parameters = dict(detector.scorer.named_parameters())
    assert sorted(p for p in parameters if parameters[p].grad is not None) == sorted(golden["grad_names"])
    assert [p for p in parameters if not parameters[p].requires_grad] == list(golden["no_grad_names"])
    for name, norm in zip(golden["grad_names"], golden["grad_norms"], strict=True):
        ours = parameters[name].grad.numpy()
        if name in NO_GRADIENT:
            assert np.linalg.norm(ours) < 1e-6
            continue
        np.testing.assert_allclose(np.linalg.norm(ours), norm, rtol=TRAINING, err_msg=name)
        if f"grad_{name}" in golden:
            theirs = golden[f"grad_{name}"]
            close(ours, theirs, atol=TRAINING * np.abs(theirs).max(), err_msg=name)
    assert all(p.grad is None for p in detector.encoder.model.parameters())


def test_three_steps_of_adam_match(golden, trainable):
    detector, batch = trainable
    optimizer, totals = torch.optim.Adam(detector.scorer.parameter_groups(4e-5), betas=(0.5, 0.999)), []
    for _ in range(3):
        optimizer.zero_grad()
        loss = detector.scorer.loss(batch)
        totals.append(loss.item())
        loss.backward()
        optimizer.step()
    np.testing.assert_allclose(totals, golden["train_totals_3_steps"], rtol=1e-5)
    assert totals[-1] < totals[0]


def test_learned_tokens_are_dropped_out_while_training_alone(trainable):
    detector, batch = trainable
    with torch.no_grad():
        assert detector.scorer.loss(batch) == detector.scorer.loss(batch)
        detector.scorer.train()
        assert detector.scorer.loss(batch) != detector.scorer.loss(batch)


# Encoders and options


@pytest.mark.parametrize(
    ("options", "words"),
    [({"top": 0}, "top is 0"), ({"top": 1.5}, "top is 1.5"), ({"score": "max"}, "expected one of picture, set")],
)
def test_options_out_of_range_are_refused(wide_encoder, options, words):
    with pytest.raises(ValueError, match=words):
        VcpClip(wide_encoder, **options)


def test_an_encoder_whose_text_is_not_as_wide_as_the_joint_space_is_refused(small_encoder):
    with pytest.raises(ValueError, match=r"as wide as the joint space; .* has 128 and 64: take 'ViT-L-14-336/openai'"):
        VcpClip(small_encoder)


# The authors' files


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("prompt_text_projection"), "prompt_text_projection is missing"),
        (lambda c: c["New_Lan_Embed"].pop("prompt_temp"), "New_Lan_Embed.prompt_temp is missing"),
        (lambda c: c["Zero_try"].update(more=torch.zeros(1)), "Zero_try.more is unknown"),
        (lambda c: c.update(deep_prompt_embeddings=torch.zeros(3, 1, 128)), r"is \[3, 1, 128\], expected \[11, 1, 128"),
        (lambda c: c["Zero_try"]["q_proj_pre.bias"].fill_(torch.nan), "q_proj_pre.bias is not finite"),
        (lambda c: c.update(epoch=3), "it holds 'epoch', which is no tensor"),
        (lambda c: c.update(more={"a": torch.zeros(1)}), "more.a is unknown"),
        (lambda c: c.pop("Zero_try"), "it looks april_gan's"),
    ],
)
def test_a_damaged_official_file_is_refused_with_what_is_wrong(official, official_copy, file, change, words):
    with pytest.raises(ValueError, match=words):
        official(official_copy(file, change))


def test_its_files_are_not_taken_for_april_gans_nor_other_methods_files_for_its(official, file, wide_encoder):
    with pytest.raises(ValueError, match=r"no file of april_gan's authors: .* it looks vcpclip's"):
        vlad.load("april_gan", encoder=wide_encoder, adapter=file)
    with pytest.raises(ValueError, match=r"no file of vcpclip's authors: .* it looks adaclip's"):
        official(GOLDEN / "adaclip_official_format.pth")


def test_another_activation_is_refused(official, wide_encoder):
    encoder = vlad.Encoder.load(wide_encoder.name, device="cpu", dtype="float32", activation="quickgelu")
    with pytest.raises(ValueError, match=r"activation gelu, .* computes quickgelu: .* 'ViT-L-14-336/openai'"):
        official(encoder=encoder)
