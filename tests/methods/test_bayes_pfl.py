"""Bayes-PFL against the numbers of xiaozhen228/Bayes-PFL (../shared/parity/bayes_pfl.npz), and its authors' files.

Two correct float32 implementations differ by rounding through 24 blocks: some 1e-6 in unit vectors and probabilities,
which ten flows make 1e-4 in draws of size 14. Gradients are held to 1e-3 of their size.
"""

import math
import zlib

import numpy as np
import pytest
import torch
from learned_goldens import batch_of, check_gradients, close

import vlad
from vlad.learning.flows import planar_flows
from vlad.maps import rescaled, top_mean
from vlad.methods.bayes_pfl import BayesPfl

DRAWS, LOGITS, EXACT, TRAINING = 1e-3, 1e-4, 1e-5, 1e-3
NAME = "printed circuit board"  # what the official code calls pcb1
SIDES = (112, 154)


@pytest.fixture(scope="module")
def weights(golden_weights, own_weights, wide_encoder):
    def draw(name, shape):
        if name.startswith("temperature_"):
            return math.log(1 / 0.07) + 0.1 * golden_weights.tensor(f"bayespfl.{name}", (1,), 0)[0]
        if name.endswith(("normal.amor_u", "normal.amor_w", "normal.state")):  # not brought to unit variance
            stream = np.random.RandomState(zlib.crc32(f"0:bayespfl.{name}".encode()))
            return torch.from_numpy(0.1 * stream.standard_normal(shape).astype(np.float32))
        return golden_weights.tensor(f"bayespfl.{name}", shape, 0)

    return own_weights(BayesPfl(wide_encoder), draw)


@pytest.fixture(scope="module")
def official(weights, wide_encoder):
    def loaded(file=weights, encoder=wide_encoder, **options):
        return vlad.load("bayes_pfl", NAME, encoder=encoder, adapter=file, **options)

    return loaded


@pytest.fixture(scope="module")
def drawn(golden, official):
    """The golden's weights with its draws in the place of a seed's."""

    def loaded(**options):
        detector = official(draws=5, **options)
        detector.scorer.noise = torch.from_numpy(golden["noise"])
        return detector

    return loaded


@pytest.mark.parametrize("side", SIDES)
def test_scores_and_maps_match_through_the_public_api(golden, picture, drawn, side):
    prediction = drawn(resolution=side).predict(picture)
    close(prediction.score, golden[f"s{side}_prob"])
    close(prediction.map, golden[f"s{side}_map_smooth"])
    close(drawn(resolution=side, stage=1).predict(picture).score, golden[f"s{side}_stage1_prob"])
    for count in (20, 2000):
        both = drawn(resolution=side, score="both", top=(count + 0.5) / side**2).predict(picture).score
        close(both, (golden[f"s{side}_prob"] + golden[f"s{side}_top{count}_mean"]) / 2)


@pytest.mark.parametrize("side", SIDES)
@torch.no_grad()
def test_what_both_towers_give_matches(golden, picture, drawn, side):
    detector = drawn().scorer
    encoder, noise = detector.encoder, detector.noise[:, None]
    pixels = encoder.pixels([picture], side)
    resized = ((pixels * encoder.std + encoder.mean)[0] * 255).permute(1, 2, 0)
    close(resized, golden[f"s{side}_resized_uint8"], 1e-3)
    image, *taps = detector.image_side(pixels)
    close(image[0], golden[f"s{side}_image_feature"], 5 * EXACT)
    close(torch.cat(taps) if side == 112 else taps[-1][0], golden[f"s{side}_taps"], 5 * EXACT)
    shifts = [draw.shift for draw in detector.drawn(image, noise)]
    texts = detector.texts([NAME], shifts)
    close(texts[0], golden[f"s{side}_text_features"])
    seen = detector.RCA(texts, taps)
    close(torch.cat([one for one, _ in seen]), golden[f"s{side}_text_attended"])
    close(detector.fuse(taps)[0], golden[f"s{side}_fused"], 5 * EXACT)
    close(detector.image_logits(texts, image, taps)[0], golden[f"s{side}_image_logits"], LOGITS)
    maps = torch.cat([one.mean(1) for one in detector.maps(texts, taps, (side, side))])
    close(maps.mean(0), golden[f"s{side}_map"])
    close(top_mean(maps.mean(0)[None], 20.5 / side**2), golden[f"s{side}_top20_mean"])
    if side == 112:
        mean, variance = detector.context_encoder(image)
        close(mean[0], golden["context_mean"])
        close(variance[0], golden["context_variance"])
        for ours, key in zip(shifts, ("context", "normal", "abnormal"), strict=True):
            close(ours[0], golden[f"z_{key}"], DRAWS)
        close(torch.cat([patches for _, patches in seen]), golden["s112_patches_projected"])
        close(maps, golden["s112_map_each_mean"])


def test_the_sentence_is_the_official_one_with_ten_places_for_its_first(golden, official):
    (theirs,) = golden["tokens"].tolist()
    ids = official().encoder.tokenize([" ".join(["X"] * 10 + [NAME])])[0].tolist()
    assert ids[:1] + ids[10:] == theirs[: len(theirs) - 9] and len(set(ids[1:11])) == 1


def test_draws_follow_their_seed_alone_and_more_of_them_agree_better(official, picture):
    torch.manual_seed(1)
    one, same, other = (official(seed=seed).predict(picture).score for seed in (0, 0, 1))
    assert one == same != other
    spread = [
        np.std([official(seed=seed, draws=draws).predict(picture).score for seed in range(4)]) for draws in (1, 16)
    ]
    assert spread[1] < spread[0]


def test_a_picture_is_scored_the_same_alone_and_in_company(official, golden_weights):
    detector = official(draws=2)
    pictures = [golden_weights.image(seed, 112) for seed in range(3)]
    for one, other in zip(detector.predict(pictures), map(detector.predict, pictures), strict=True):
        close(one.score, other.score, 1e-6)
        close(one.map, other.map, 1e-6)


def test_the_published_scores_of_a_class_come_only_where_they_are_asked_for(official, golden_weights):
    pictures = [golden_weights.image(seed, 112) for seed in range(3)]
    alone = torch.tensor([one.score for one in official(draws=2).predict(pictures)])
    both = torch.tensor([one.score for one in official(draws=2, score="both").predict(pictures)])
    found = [one.score for one in official(draws=2, score="set").predict(pictures, batch_size=2)]
    close(found, (rescaled(alone) + rescaled(2 * both - alone)) / 2, 1e-3)
    with pytest.raises(TypeError, match="scores a set of pictures against each other"):
        official(score="set").stream(pictures)


def test_the_flows_density_is_that_of_their_jacobian():
    draw = torch.Generator().manual_seed(0)
    first, u, w, b = (torch.randn(shape, generator=draw) for shape in ((1, 1, 4), (1, 3, 4), (1, 3, 4), (1, 3)))
    jacobian = torch.autograd.functional.jacobian(
        lambda row: planar_flows(row[None, None], u, w, b)[0][0, 0], first[0, 0]
    )
    expected = torch.linalg.slogdet(jacobian).logabsdet
    assert planar_flows(first, u, w, b)[1].item() == pytest.approx(expected.item(), abs=1e-3)


# Training


def training(golden, golden_weights, scorer):
    """The golden's batch and its draws."""
    return batch_of(scorer, golden, golden_weights, [NAME, "candle"]), torch.from_numpy(golden["train_noise"])


@torch.no_grad()
def test_each_part_of_the_loss_matches(golden, golden_weights, official):
    detector = official(stage=1).scorer
    batch, noise = training(golden, golden_weights, detector)
    parts = detector.losses(batch, noise, entry=1)
    for part, key in {
        "entropy": "ce",
        "orthogonality": "orthogonal",
        "focal": "focal",
        "dice": "dice",
        "divergence": "kl_times_001",
    }.items():
        np.testing.assert_allclose(parts[part], golden[f"train_{key}"], rtol=1e-5, err_msg=part)
    total = sum(value.sum() for value in parts.values())
    np.testing.assert_allclose(total, golden["train_total"], rtol=1e-5)
    image, *taps = batch.features
    shifts = [draw.shift for draw in detector.drawn(image, noise[:, None].split([2, 1, 1]))]
    texts = detector.texts(batch.names, shifts)
    close(texts, golden["train_text"])
    close(detector.image_logits(texts, image, taps), golden["train_image_logits"], LOGITS)
    second = official().scorer
    close(second.image_logits(texts, image, taps), golden["train2_image_logits"], LOGITS)
    assert second.losses(batch, noise, entry=1).keys() == {"entropy"}
    np.testing.assert_allclose(second.losses(batch, noise, entry=1)["entropy"], golden["train2_ce"], rtol=1e-5)


def test_gradients_match_and_the_encoder_gets_none(golden, golden_weights, official):
    scorer = official(stage=1).scorer
    batch, noise = training(golden, golden_weights, scorer)
    loss = sum(value.sum() for value in scorer.losses(batch, noise, entry=1).values())
    check_gradients(golden, scorer, loss, TRAINING)
    learning = {name for name, one in scorer.named_parameters() if one.requires_grad}
    assert learning == set(golden["grad_names"]) and not learning & set(golden["no_grad_names"])


def test_each_stage_learns_its_parts_at_their_rates(wide_encoder):
    rates = {
        stage: {
            round(group["lr"] / 1e-4): len(group["params"])
            for group in BayesPfl(wide_encoder, stage=stage).parameter_groups(1e-4)
        }
        for stage in (1, 2)
    }
    assert rates[1].keys() == {1, 10, 100} and rates[1][100] == 2 and rates[2] == {1: 10}


def test_a_steps_draws_and_pair_follow_the_global_seed(golden, golden_weights, official):
    detector = official(stage=1).scorer
    batch, _ = training(golden, golden_weights, detector)
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        with torch.no_grad():
            losses.append(detector.loss(batch).item())
    assert losses[0] == losses[1] != losses[2]


# Encoders and options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"draws": 0}, "draws is 0"),
        ({"bank": 1.5}, "bank is 1.5"),
        ({"top": 0}, "top is 0"),
        ({"score": "max"}, "expected one of probability, both, set"),
        ({"stage": 3}, "stage is 3"),
    ],
)
def test_options_out_of_range_are_refused(wide_encoder, options, words):
    with pytest.raises(ValueError, match=words):
        BayesPfl(wide_encoder, **options)


# The authors' files


def test_an_official_file_gives_the_goldens_weights_and_its_options_by_shape(official, official_copy, file):
    for key, value in official(file).scorer.learned().items():
        assert torch.equal(value, official().scorer.learned()[key]), key

    def smaller(content):
        table = content["MyModel"]
        for key in ("prompt_context", "prompt_state_normal", "prompt_state_abnormal"):
            table[key] = table[key][:2, :4]
        for key in [key for key in table if ".amor_" in key]:
            axis = 1 if not key.startswith("PFL_context") else 0
            table[key] = table[key].narrow(axis, 0, table[key].shape[axis] * 7 // 10)

    options = official(official_copy(file, smaller)).options
    assert {key: options[key] for key in ("bank", "length", "flows")} == dict(bank=2, length=4, flows=7)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("prompt_context"), "prompt_context is missing"),
        (lambda t: t.pop("RCA.linear_proj.2.weight"), "RCA.linear_proj.2.weight is missing"),
        (lambda t: t.update(more=torch.zeros(1)), "more is unknown"),
        (lambda t: t["fuse.compress.bias"].fill_(torch.nan), "fuse.compress.bias is not finite"),
        (
            lambda t: t.update({"PFL_normal.encoder.weight_mean.module.0.bias": torch.zeros(64)}),
            r"'PFL_normal.encoder.weight_mean.module.0.bias' is not what stands under 'state_encoder",
        ),
    ],
)
def test_a_damaged_official_file_is_refused_with_what_is_wrong(official, official_copy, file, change, words):
    with pytest.raises(ValueError, match=words):
        official(official_copy(file, lambda content: change(content["MyModel"])))
