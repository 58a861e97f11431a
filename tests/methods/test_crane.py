"""Crane and Crane+ against the numbers of AlirezaSalehy/Crane (../shared/parity/crane.npz), and its authors' files.

Two correct float32 implementations differ by rounding through 24 blocks, some 1e-6 in features, which a softmax at
temperature 0.07 and means turn into 1e-6 of a probability. Gradients, and the totals of Adam's steps, which divide by
them, are held to 1e-4 of their size.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN, SHARED
from learned_goldens import batch_of, check_gradients, check_steps

import vlad
from vlad.detector import Detector
from vlad.encoders.encoder import Features
from vlad.learning.losses import dice, focal, whole_picture
from vlad.maps import CLIP_TEMPERATURE, picture_logits, state_logits
from vlad.methods.crane import Crane, alike, pooled

FILE = GOLDEN / "crane_official_format.pth"
FEATURES, MAPS, SCORES, TRAINING = 2e-5, 5e-6, 2e-6, 1e-4
SIDES = (112, 154)


class GivenDino:
    """In DINO's place: the golden's features, one table a picture in the order in which pictures come."""

    name, depth, patch_size = "given", 12, 14
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))

    def __init__(self, seed):
        self.seed, self.seen = seed, []

    def __call__(self, pixels, layers=()):
        self.seen.append(pixels)
        grid = pixels.shape[-2] // 14, pixels.shape[-1] // 14
        draws = [np.random.RandomState(9000 + self.seed + number) for number in range(len(pixels))]
        coarse = [draw.standard_normal((1, 32, 4, 4)) for draw in draws]
        fine = F.interpolate(torch.from_numpy(np.concatenate(coarse)).float(), grid, mode="bilinear") + 0.5
        return Features(torch.empty(0), (fine.flatten(2).mT,), grid)


@pytest.fixture(scope="module")
def seed(golden):
    return int(golden["seed"])


@pytest.fixture(scope="module")
def weights(own_weights, broad_encoder):
    return own_weights(Crane(broad_encoder))


@pytest.fixture(scope="module")
def load(weights, broad_encoder):
    def loaded(plus=None, file=weights, encoder=broad_encoder, **options):
        dino = {} if plus is None else {"dino": GivenDino(plus)}
        return vlad.load("crane", encoder=encoder, adapter=file, **dino, **options)

    return loaded


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("context", [False, True])
def test_scores_and_maps_match_through_the_public_api(golden, seed, picture, load, side, plus, context):
    def predicted(**options):
        return load(seed if plus else None, resolution=side, context=context, **options).predict(picture)

    key = f"s{side}_" + "plus_" * plus + "context_" * context
    plain = predicted(sigma=0, soft_mean=True)
    np.testing.assert_allclose(plain.score, golden[f"{key}score"], atol=SCORES, rtol=0)
    np.testing.assert_allclose(plain.map, golden[f"{key}map"], atol=MAPS, rtol=0)
    if not context:
        np.testing.assert_allclose(predicted(soft_mean=True).map, golden[f"{key}map_smooth"], atol=MAPS, rtol=0)
        logits = predicted(sigma=0, soft_mean=False).map
        np.testing.assert_allclose(logits, golden[f"{key}map_logit_mean"], atol=MAPS, rtol=0)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("plus", [False, True])
@torch.no_grad()
def test_features_sentences_and_the_pooled_embedding_match(golden, seed, picture, load, side, plus):
    detector = load(seed if plus else None, resolution=side)
    encoder = detector.encoder
    pixels = encoder.pixels([picture], side)
    resized = ((pixels * encoder.std + encoder.mean)[0] * 255).permute(1, 2, 0)
    np.testing.assert_allclose(resized, golden[f"s{side}_resized_uint8"], atol=1e-3, rtol=0)
    own, *layers = detector.scorer.image_side(pixels)
    np.testing.assert_allclose(own[0], golden[f"s{side}_image_feature"], atol=FEATURES, rtol=0)
    np.testing.assert_allclose(layers[-1][0], golden[f"s{side}_patch_features"], atol=FEATURES, rtol=0)
    if plus:
        np.testing.assert_allclose(layers[0][0], golden[f"s{side}_plus_dattn_features"], atol=FEATURES, rtol=0)
        (seen,) = detector.scorer.dino.seen
        expected = golden[f"s{side}_plus_dino_input_mean_std"]
        np.testing.assert_allclose([seen.mean(), seen.std()], expected, atol=1e-5, rtol=0)
    for context, key in ((False, ""), (True, "context_")):
        key = f"s{side}_" + "plus_" * plus + key
        states = detector.scorer.states(own, context)
        unit = F.normalize(states, dim=-1).reshape(2, -1)
        np.testing.assert_allclose(unit, golden[f"{key}text_features"], atol=MAPS, rtol=0)
        z = pooled(torch.stack(layers), state_logits(torch.stack(layers), states))
        np.testing.assert_allclose(z[0], golden[f"{key}pooled"], atol=MAPS, rtol=0)


def test_sentences_have_the_official_tokens_with_and_without_the_pictures_word(golden, load, monkeypatch):
    detector, read = load(), []
    np.testing.assert_array_equal(detector.scorer.prompt_learner.ids, golden["tokens"])
    monkeypatch.setattr(detector.encoder, "pool_text", lambda tokens, ids: read.append(ids) or tokens[:, 0])
    detector.scorer.states(torch.ones(1, 128), True)
    ends = golden["context_tokens"].argmax(-1)  # their other ids are not looked at any more
    np.testing.assert_array_equal(read[0].argmax(-1), ends)
    assert [read[0][row, ends[row] - 1] for row in (0, 1)] == [269, 269], "the full stop"


@torch.no_grad()
def test_the_official_threshold_is_a_mean_over_the_batch_and_ours_a_pictures_own(golden, seed, golden_weights, load):
    pictures = [golden_weights.image(seed + number, 200) for number in range(2)]
    for batch_mean, key in ((True, "s112_plus_batch2_dattn_features"), (False, "s112_plus_dattn_features")):
        detector = load(seed, batch_mean=batch_mean)
        refined = detector.scorer.image_side(detector.encoder.pixels(pictures, 112))[1][0]
        np.testing.assert_allclose(refined, golden[key], atol=FEATURES, rtol=0)
    assert np.abs(golden["s112_plus_batch2_dattn_features"] - golden["s112_plus_dattn_features"]).max() > 0.01


def test_patches_that_dino_finds_less_alike_than_its_average_give_nothing():
    patches = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]])
    weights = alike(patches)[0]
    torch.testing.assert_close(weights, torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]))
    same = alike(torch.ones(1, 4, 2))
    torch.testing.assert_close(same, torch.full((1, 4, 4), 0.25))


# Training


def trainable(golden, golden_weights, load, plus):
    """The golden's learner and its batch."""
    scorer = load(int(golden["seed"]) if plus else None, batch_mean=True).scorer.train()
    return scorer, batch_of(scorer, golden, golden_weights)


@pytest.mark.parametrize("plus", [False, True])
def test_each_part_of_the_loss_and_every_gradient_match(golden, golden_weights, load, plus):
    scorer, batch = trainable(golden, golden_weights, load, plus)
    key = "trainplus" if plus else "train"
    own, *layers = batch.features
    with torch.no_grad():
        states = scorer.states(own, True)
        logits = state_logits(torch.stack(layers), states)
        maps = scorer.training_maps(logits, batch.masks)
        scored = scorer.scored(own, torch.stack(layers), logits)
        ce = whole_picture(picture_logits(scored, states, CLIP_TEMPERATURE), batch.labels)
    count = len(golden[f"{key}_focal"]) // len(layers)  # of the same map
    focals = [focal(one, batch.masks).item() for one in maps] * count
    dices = [dice(one[:, 1], batch.masks).item() for one in maps] * count
    np.testing.assert_allclose(focals, golden[f"{key}_focal"], rtol=1e-5)
    np.testing.assert_allclose(dices, golden[f"{key}_dice"], rtol=1e-5)
    np.testing.assert_allclose(ce, golden[f"{key}_ce"], rtol=1e-5)
    check_gradients(golden, scorer, scorer.loss(batch), TRAINING, f"{key}_", "prompt_learner.{}".format)


@pytest.mark.parametrize("plus", [False, True])
def test_three_steps_of_adam_match(golden, golden_weights, load, plus):
    scorer, batch = trainable(golden, golden_weights, load, plus)
    adam = torch.optim.Adam(scorer.parameters(), lr=1e-3, betas=(0.6, 0.999))
    check_steps(golden, scorer, batch, adam, TRAINING, f"train{'plus' * plus}_totals_3_steps")


# Crane+ and its options


def test_alone_and_in_a_batch_a_picture_scores_the_same_unless_the_official_threshold_is_asked_for(
    golden_weights, broad_encoder
):
    pictures = [golden_weights.image(seed, 100) for seed in range(3)]
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="untrained weights"):
        own = Crane(broad_encoder, dino="dino:small/random:0")
    shared = Crane(broad_encoder, dino=own.dino, batch_mean=True).load_learned(own.learned())
    own, shared = Detector(own), Detector(shared)
    together = [detector.predict(pictures)[0].map for detector in (own, shared)]
    alone = own.predict(pictures[0]).map
    np.testing.assert_allclose(alone, together[0], atol=2e-6, rtol=0)
    assert np.abs(alone - together[1]).max() > 1e-5
    with pytest.warns(UserWarning, match="of one colour"):
        flat = own.predict(np.full((50, 50, 3), 120, np.uint8))
    assert np.isfinite(flat.score) and np.isfinite(flat.map).all(), "where all patches are alike"


def test_a_saved_crane_plus_names_its_dino_and_scores_the_same(golden_weights, broad_encoder, tmp_path):
    made = Detector(Crane(broad_encoder, dino="dino:small/random:1", context=True))
    assert made.options["dino"] == "dino:small/random:1" and made.options["soft_mean"] is False
    made.save(tmp_path / "crane.safetensors")
    picture = golden_weights.image(0, 90)
    again = vlad.load(tmp_path / "crane.safetensors", encoder=broad_encoder)
    one, other = made.predict(picture), again.predict(picture)
    assert one.score == other.score
    np.testing.assert_array_equal(one.map, other.map)
    made.scorer.save_adapter(tmp_path / "a.safetensors", recipe={})
    plain = vlad.load("crane", encoder=broad_encoder, adapter=tmp_path / "a.safetensors", dino=None, context=False)
    assert plain.scorer.dino is None and abs(plain.predict(picture).score - one.score) > 1e-6


def test_a_file_opens_no_dino_that_its_user_has_not_named(tmp_path, broad_encoder, golden_weights):
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=112, patch_size=14)
    Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**config)).save_pretrained(tmp_path / "tower")
    name = f"dino:{tmp_path / 'tower'}"
    made = Detector(Crane(broad_encoder, dino=name))
    assert made.scorer.dino.skipped == 5, "the class token and four registers"
    made.save(tmp_path / "crane.safetensors")
    made.scorer.save_adapter(tmp_path / "a.safetensors", recipe={})
    calls = [
        lambda **how: vlad.load(tmp_path / "crane.safetensors", encoder=broad_encoder, **how),
        lambda **how: vlad.load("crane", encoder=broad_encoder, adapter=tmp_path / "a.safetensors", **how),
    ]
    picture = golden_weights.image(0, 90)
    for call in calls:
        with pytest.raises(ValueError, match=r"asks for dino='dino:.*tower', a file, folder or repository, which is"):
            call()
        assert call(dino=name).predict(picture).score == made.predict(picture).score
    with pytest.raises(TypeError, match="records its own options; leave out sigma"):
        calls[0](sigma=2)


def test_dino_sees_the_picture_at_the_size_that_gives_the_encoders_grid(tiny_encoder, golden_weights):
    dino = GivenDino(0)
    made = Crane(tiny_encoder, dino=dino)
    prediction = Detector(made).predict(golden_weights.image(0, 90))
    rows = tiny_encoder.resolution // tiny_encoder.patch_size
    assert dino.seen[0].shape[-2:] == (14 * rows, 14 * rows)
    assert prediction.map.shape == (tiny_encoder.resolution,) * 2 and 0 < prediction.score < 1


def test_a_pictures_embedding_is_no_word_where_words_are_wider(small_encoder):
    with pytest.raises(ValueError, match=r"words of .* are 128 wide, embeddings 64: leave it out"):
        Crane(small_encoder, context=True)


# The authors' files


def test_a_published_file_is_read_and_gives_finite_maps_on_its_own_clip_alone(official_copy):
    file = SHARED / "published" / "crane_trained_on_mvtec_epoch_5.pth"
    if not file.is_file():
        pytest.skip("the published file of ../shared/published is not here")
    encoder = vlad.Encoder.load("ViT-L-14-336-quickgelu/random:0", device="cpu")
    with pytest.raises(ValueError, match="was learned on another CLIP"):
        vlad.load("crane", encoder=encoder, adapter=file, resolution=56)

    def silent(content):
        for key in [key for key in content["prompt_learner"] if key.startswith("token_")]:
            del content["prompt_learner"][key]

    detector = vlad.load("crane", encoder=encoder, adapter=official_copy(file, silent), resolution=56)
    prediction = detector.predict(np.random.default_rng(0).integers(0, 255, (60, 50, 3)).astype(np.uint8))
    assert np.isfinite(prediction.map).all() and 0 < prediction.score < 1
    published = torch.load(file, map_location="cpu", weights_only=True)["prompt_learner"]
    for key, value in detector.scorer.prompt_learner.state_dict().items():
        assert torch.equal(value, published[key]), key


LEARNER = "prompt_learner"


def test_a_file_gives_the_goldens_weights(load):
    for key, value in load(file=FILE).scorer.learned().items():
        assert torch.equal(value, load().scorer.learned()[key]), key


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c[LEARNER].pop("ctx_neg"), "prompt_learner.ctx_neg is missing"),
        (lambda c: c[LEARNER].pop("compound_prompts_text.3"), "compound_prompts_text.3 is missing"),
        (lambda c: c[LEARNER].pop("compound_prompts_text.7"), "compound_prompts_text.7 is missing"),
        (lambda c: c[LEARNER].update(ctx_odd=torch.zeros(1)), "prompt_learner.ctx_odd is unknown"),
        (lambda c: c[LEARNER]["ctx_pos"].fill_(torch.nan), "ctx_pos is not finite"),
        (lambda c: c[LEARNER].update(ctx_pos=torch.zeros(12, 128)), r"ctx_pos is \[12, 128\]"),
        (lambda c: c.update(epoch=3), "it holds 'epoch', 'prompt_learner'; .* holds 'prompt_learner'"),
    ],
)
def test_a_damaged_official_file_is_refused_with_what_is_wrong(official_copy, load, change, words):
    with pytest.raises(ValueError, match=words):
        load(file=official_copy(FILE, change))
