"""VCP-CLIP against the numbers of xiaozhen228/VCP-CLIP (../shared/parity/vcpclip.npz), and its authors' files.

Two correct float32 implementations differ by rounding through 24 blocks: some 1e-6 in unit vectors and probabilities.
Gradients, and the totals of Adam's steps, which divide by them, are held to 1e-3 of their size.
"""

import math

import numpy as np
import pytest
import torch
from learned_goldens import batch_of, check_gradients, check_steps, close

import vlad
from vlad.learning.losses import dice, focal
from vlad.maps import rescaled
from vlad.methods.vcpclip import VECTORS, VcpClip

EXACT, TRAINING = 1e-5, 1e-3
SIDES = (112, 154)
SLOT = 49408  # the golden's id for the place of the picture
NO_GRADIENT = ("Zero_try.k_proj_pre_1.bias", "New_Lan_Embed.prompt_linear1.fc.bias")  # theirs is rounding noise


@pytest.fixture(scope="module")
def weights(golden_weights, own_weights, wide_encoder):
    def draw(name, shape):
        if ".prompt_temp" in name:
            return math.log(1 / 0.07) + 0.1 * golden_weights.tensor(f"vcpclip.{name}", (1,), 0)[0]
        return golden_weights.tensor(f"vcpclip.{name}", shape, 0)

    return own_weights(VcpClip(wide_encoder), draw)


@pytest.fixture(scope="module")
def official(weights, wide_encoder):
    def loaded(file=weights, encoder=wide_encoder, **options):
        return vlad.load("vcpclip", encoder=encoder, adapter=file, **options)

    return loaded


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
    """The golden's weights and its batch."""
    detector = official()
    return detector, batch_of(detector.scorer, golden, golden_weights)


@torch.no_grad()
def test_each_part_of_the_loss_matches(golden, trainable):
    detector, batch = trainable
    image, *taps = batch.features
    new, raw = detector.scorer.maps(image, taps, (112, 112))
    parts = [[focal(torch.stack([1 - m, m], 1), batch.masks), dice(m, batch.masks)] for m in (*new, *raw)]
    np.testing.assert_allclose(parts, golden["train_parts_focal_dice1_new_then_raw"], rtol=1e-5)
    assert detector.scorer.loss(batch).item() == pytest.approx(np.sum(parts), rel=1e-6)


def test_gradients_match_and_the_encoder_gets_none(golden, trainable):
    scorer, batch = trainable[0].scorer, trainable[1]
    check_gradients(golden, scorer, scorer.loss(batch), TRAINING, none=NO_GRADIENT)
    assert [name for name, one in scorer.named_parameters() if not one.requires_grad] == list(golden["no_grad_names"])


def test_three_steps_of_adam_match(golden, trainable):
    scorer, batch = trainable[0].scorer, trainable[1]
    adam = torch.optim.Adam(scorer.parameter_groups(4e-5), betas=(0.5, 0.999))
    totals = check_steps(golden, scorer, batch, adam, EXACT)
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


# The authors' files


def test_an_official_file_gives_the_goldens_weights(official, file):
    for key, value in official(file).scorer.learned().items():
        assert torch.equal(value, official().scorer.learned()[key]), key


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
