"""FAPrompt against the numbers of mala-lab/FAPrompt (../shared/parity/faprompt.npz), and files of its format.

Two correct float32 implementations differ by rounding through 24 blocks, some 1e-6 in features, which a softmax at
temperature 0.07 turns into 1e-6 of a probability. Gradients, and the totals of Adam's steps, which divide by them, are
held to 1e-4 of their size.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from learned_goldens import batch_of, check_gradients, check_steps

import vlad
from vlad.detector import Detector
from vlad.learning.losses import dice, focal, whole_picture
from vlad.learning.prompt_learner import state_maps, value_stream
from vlad.maps import picture_logits, state_logits
from vlad.methods.faprompt import FaPrompt, averaged, likeness, score_focal

FILE = "faprompt_official_format.pth"
FEATURES, MAPS, SCORES, TRAINING = 2e-5, 5e-6, 2e-6, 1e-4
SIDES = (112, 154)
PRIORS = ("first", "ranked")


@pytest.fixture(scope="module")
def weights(own_weights, broad_encoder):
    return own_weights(FaPrompt(broad_encoder))


@pytest.fixture(scope="module")
def load(weights, broad_encoder):
    def loaded(file=weights, **options):
        return vlad.load("faprompt", encoder=broad_encoder, adapter=file, **options)

    return loaded


def key_of(side, prior):
    return f"s{side}_" + "ranked_" * (prior == "ranked")


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("prior", PRIORS)
def test_scores_and_maps_match_through_the_public_api(golden, picture, load, side, prior):
    key = key_of(side, prior)
    prediction = load(resolution=side, prior=prior, sigma=0).predict(picture)
    np.testing.assert_allclose(prediction.score, golden[f"{key}score"], atol=SCORES, rtol=0)
    np.testing.assert_allclose(prediction.map, golden[f"{key}map"], atol=MAPS, rtol=0)
    if prior == "first":
        smooth = load(resolution=side).predict(picture).map
        np.testing.assert_allclose(smooth, golden[f"{key}map_smooth"], atol=MAPS, rtol=0)


@pytest.mark.parametrize("side", SIDES)
@torch.no_grad()
def test_features_and_both_looks_match(golden, picture, load, side):
    detector, key = load(resolution=side), f"s{side}_"
    encoder = detector.encoder
    pixels = encoder.pixels([picture], side)
    resized = ((pixels * encoder.std + encoder.mean)[0] * 255).permute(1, 2, 0)
    np.testing.assert_allclose(resized, golden[f"{key}resized_uint8"], atol=1e-3, rtol=0)
    _, _, (tokens,) = value_stream(encoder, pixels, (24,))
    np.testing.assert_allclose(F.normalize(tokens[0], dim=-1), golden[f"{key}patch_features"], atol=MAPS, rtol=0)
    image, patches = detector.scorer.image_side(pixels)
    np.testing.assert_allclose(image[0], golden[f"{key}image_feature"], atol=FEATURES, rtol=0)
    first, second, shift = detector.scorer.looks(detector.scorer.prompt_learner(encoder), patches)
    np.testing.assert_allclose(F.normalize(first, dim=-1), golden["text_features_1"], atol=MAPS, rtol=0)
    np.testing.assert_allclose(F.normalize(second[0], dim=-1), golden[f"{key}text_features_2"], atol=MAPS, rtol=0)
    np.testing.assert_allclose(shift[0], golden[f"{key}bias"], atol=MAPS, rtol=0)
    for states, name in ((first, "prob_1"), (second, "prob_2")):
        ours = state_logits(patches, states).softmax(-1)[0]
        np.testing.assert_allclose(ours, golden[f"{key}{name}"], atol=MAPS, rtol=0)
    np.testing.assert_allclose(
        picture_logits(image, second).softmax(-1)[0, 1], golden[f"{key}image_prob"], atol=SCORES, rtol=0
    )
    order = state_logits(patches, first).softmax(-1)[0, :, 1].argsort(descending=True)[:10]
    np.testing.assert_array_equal(order, golden[f"{key}ranked"])
    ranked = load(resolution=side, prior="ranked").scorer.shift(patches, first)
    np.testing.assert_allclose(ranked[0], golden[f"{key}ranked_bias"], atol=MAPS, rtol=0)


@torch.no_grad()
def test_sentences_match(golden, load):
    detector = load()
    np.testing.assert_array_equal(detector.scorer.prompt_learner.ids, golden["tokens"])
    raw = detector.scorer.prompt_learner(detector.encoder)
    np.testing.assert_allclose(raw[1:], golden["text_anomalies_raw"], atol=FEATURES, rtol=0)


@torch.no_grad()
def test_with_deep_prompts_rounded_to_half_the_score_is_the_official_one(golden, picture, load):
    detector = load(resolution=112)
    for prompt in detector.scorer.prompt_learner.compound_prompts_text:
        prompt.copy_(prompt.half())
    np.testing.assert_allclose(detector.predict(picture).score, golden["s112_score_half"], atol=SCORES, rtol=0)


# Training


def trainable(golden, golden_weights, load):
    """The golden's learner and its batch."""
    scorer = load(resolution=112).scorer.train()
    return scorer, batch_of(scorer, golden, golden_weights)


def test_each_part_of_the_loss_and_every_gradient_match(golden, golden_weights, load):
    scorer, batch = trainable(golden, golden_weights, load)
    image, patches = batch.features
    with torch.no_grad():
        sentences = scorer.prompt_learner(scorer.encoder)
        first, second, shift = scorer.looks(sentences, patches)
        logits = picture_logits(image, second)
        grids = torch.stack([state_logits(patches, states).softmax(-1)[..., 1] for states in (first, second)])
        for number, states in ((1, first), (2, second)):
            map_ = state_maps(patches, states, (112, 112), 14)
            parts = focal(map_, batch.masks), dice(map_[:, 1], batch.masks), dice(map_[:, 0], 1 - batch.masks)
            np.testing.assert_allclose(parts, golden[f"train_parts_map{number}"], rtol=1e-5)
        np.testing.assert_allclose(whole_picture(logits, batch.labels), golden["train_ce"], rtol=1e-5)
        scores = scorer.scored(logits, grids)
        np.testing.assert_allclose(score_focal(scores, batch.labels), golden["train_binary_focal"], rtol=1e-5)
        np.testing.assert_allclose(likeness(sentences[1:]), golden["train_orthogonal"], rtol=1e-5)
        np.testing.assert_allclose(shift[1].square().mean(), golden["train_bias"], rtol=1e-5)
    check_gradients(golden, scorer, scorer.loss(batch), TRAINING, named="prompt_learner.{}".format)


def test_three_steps_of_adam_match(golden, golden_weights, load):
    scorer, batch = trainable(golden, golden_weights, load)
    adam = torch.optim.Adam(scorer.parameters(), lr=1e-3, betas=(0.5, 0.999))
    check_steps(golden, scorer, batch, adam, TRAINING)


# Its own rules


def test_the_penalty_counts_every_pair_once_whichever_way_it_points():
    assert likeness(torch.tensor([[2.0, 0.0], [-1.0, 0.0], [0.0, 3.0], [1.0, 1.0]])).item() == pytest.approx(
        1 + 3 * 0.5**0.5
    )


def test_the_score_counts_a_confident_mistake_more_than_a_doubt():
    scores = torch.tensor([0.0, 3.0])
    doubt, mistake = np.log(2), np.log1p(np.exp(3.0))
    expected = (0.25 * doubt + (1 - np.exp(-mistake)) ** 2 * mistake) / 2
    assert score_focal(scores, torch.tensor([1, 0])).item() == pytest.approx(expected, rel=1e-5)


def test_the_prototype_is_the_mean_of_sentences_of_any_length():
    sentences = torch.tensor([[1.0, 0.0], [0.0, 4.0], [2.0, 0.0]])
    torch.testing.assert_close(averaged(sentences), torch.tensor([[1.0, 0.0], [1.0, 2.0]]))


def test_ranked_patches_do_not_depend_on_where_the_damage_is(small_encoder):
    torch.manual_seed(0)
    made = FaPrompt(small_encoder, prior="ranked", top=3)
    states = made.prompt_learner(small_encoder)[:2]
    patches = F.normalize(torch.randn(1, 64, 64), dim=-1)
    there = patches.roll(20, 1)
    with torch.no_grad():
        torch.testing.assert_close(made.shift(patches, states), made.shift(there, states))
        first = FaPrompt(small_encoder, top=3).load_learned(made.learned())
        assert (first.shift(patches, states) - first.shift(there, states)).abs().max() > 1e-3


def test_a_picture_costs_one_pass_of_its_own_sentences_and_the_others_are_kept(
    small_encoder, golden_weights, monkeypatch
):
    made, read = Detector(FaPrompt(small_encoder)), []
    walk = small_encoder.walk_text
    monkeypatch.setattr(small_encoder, "walk_text", lambda tokens, *a: read.append(len(tokens)) or walk(tokens, *a))
    made.predict([golden_weights.image(seed) for seed in range(3)], batch_size=1)
    assert read == [1, 10, 10, 10, 10]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prior": "last"}, "prior is 'last'; expected one of first, ranked"),
        ({"resolution": 42}, "top is 10, and resolution 42 has 9 patches: take a larger one"),
        ({"length": 6}, "length 6; expected 1 or more, and of length 0 to n_ctx"),
        ({"kinds": 0}, "kinds 0"),
        ({"n_own": 80}, "too long for"),
    ],
)
def test_wrong_options_say_what_is_allowed(small_encoder, options, words):
    with pytest.raises(ValueError, match=words):
        FaPrompt(small_encoder, **options)


# Files of the authors' code

LEARNER = "prompt_learner"


def test_a_file_gives_the_goldens_weights_and_its_options_by_shape(load, parity, official_copy):
    names, made = ("n_ctx", "n_own", "kinds", "depth", "length", "top"), load(parity / FILE)
    assert [made.options[name] for name in names] == [5, 2, 10, 9, 4, 10]
    for key, value in made.scorer.learned().items():
        assert torch.equal(value, load().scorer.learned()[key]), key

    def smaller(content):
        learner = content[LEARNER]
        learner["ctx_neg"] = learner["ctx_neg"][:, :6]
        learner["patch_meta_net.linear1.weight"] = torch.zeros(40, 640)
        learner["patch_meta_net.linear1.bias"] = torch.zeros(40)
        learner["patch_meta_net.linear2.weight"] = torch.zeros(128, 40)

    options = load(official_copy(parity / FILE, smaller)).options
    assert [options[name] for name in names] == [5, 2, 6, 9, 4, 5]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c[LEARNER].pop("ctx_pos"), "prompt_learner.ctx_pos is missing"),
        (lambda c: c[LEARNER].pop("compound_prompts_text.7"), "compound_prompts_text.7 is missing"),
        (lambda c: c[LEARNER].pop("patch_meta_net.linear2.bias"), "patch_meta_net.linear2.bias is missing"),
        (lambda c: c[LEARNER].update(ctx_odd=torch.zeros(1)), "prompt_learner.ctx_odd is unknown"),
        (lambda c: c[LEARNER]["ctx_neg"].fill_(torch.nan), "ctx_neg is not finite"),
        (
            lambda c: c[LEARNER].update({"patch_meta_net.linear1.weight": torch.zeros(80, 1000)}),
            r"linear1.weight is \[80, 1000\], expected",
        ),
        (lambda c: c.update(epoch=3), "it holds 'epoch', 'prompt_learner'"),
        (lambda c: c[LEARNER].update(ctx_neg=c[LEARNER]["ctx_neg"][:, :1]), "looks anomalyclip's"),
    ],
)
def test_a_damaged_file_is_refused_with_what_is_wrong(load, parity, official_copy, change, words):
    with pytest.raises(ValueError, match=words):
        load(official_copy(parity / FILE, change))
