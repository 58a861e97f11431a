"""AnomalyCLIP against the numbers of zqhang/AnomalyCLIP (tests/golden/anomalyclip.npz), and its authors' files.

Two correct float32 implementations differ by rounding through 24 blocks: some 1e-5 in features of size 5, which a
softmax at temperature 0.07 and a mean turn into less than 1e-6 of a probability. Gradients and the totals of Adam's
steps, which divide by them, are held to 1e-4 of their size.
"""

import os

import numpy as np
import pytest
import torch
from conftest import GOLDEN, _written

import vlad
from vlad.detector import Detector
from vlad.learning.losses import dice, focal, whole_picture
from vlad.learning.prompt_learner import state_maps, value_stream
from vlad.learning.scorer import Batch
from vlad.maps import anomaly_probability, state_logits
from vlad.methods.anomalyclip import AnomalyClip

FILE = GOLDEN / "anomalyclip_official_format.pth"
FEATURES, MAPS, SCORES, TRAINING = 5e-5, 5e-6, 2e-6, 1e-4
QUARTERS = (6, 12, 18, 24)
SETTINGS = {"tap24_": (24,), "tap4_": QUARTERS}


def trained(detector):
    """The detector, in the mode in which its layers learn."""
    detector.scorer.train()
    return detector


def official(small_folder, file=FILE, **options):
    return vlad.load(
        "anomalyclip", encoder=f"local-dir:{small_folder}", adapter=file, device="cpu", dtype="float32", **options
    )


@pytest.fixture(scope="module")
def detector(small_folder):
    return official(small_folder)


@pytest.mark.parametrize("side", [112, 154])
@pytest.mark.parametrize("layers", [(24,), QUARTERS])
@pytest.mark.parametrize("sigma", [0, 4])
def test_scores_and_maps_match_through_the_public_api(golden, picture, small_folder, side, layers, sigma):
    detector = official(small_folder, resolution=side, sigma=sigma, layers=layers)
    prediction = detector.predict(picture)
    key = f"s{side}_map_tap" + "s" * (len(layers) > 1) + "_".join(map(str, layers)) + "_smooth" * (sigma > 0)
    np.testing.assert_allclose(prediction.score, golden[f"s{side}_score"][0], atol=SCORES, rtol=0)
    np.testing.assert_allclose(prediction.map * len(layers), golden[key], atol=MAPS, rtol=0)  # theirs is the sum


@pytest.mark.parametrize("side", [112, 154])
@torch.no_grad()
def test_features_and_patch_probabilities_match(golden, picture, detector, side):
    encoder = detector.encoder
    pixels = encoder.pixels([picture], side)
    resized = ((pixels * encoder.std + encoder.mean)[0] * 255).permute(1, 2, 0)
    np.testing.assert_allclose(resized, golden[f"s{side}_resized_uint8"], atol=1e-3, rtol=0)
    _, image, taps = value_stream(encoder, pixels, QUARTERS)
    np.testing.assert_allclose(image[0], golden[f"s{side}_image_feature"], atol=FEATURES, rtol=0)
    np.testing.assert_allclose(torch.cat(taps), golden[f"s{side}_patch_features"], atol=FEATURES, rtol=0)
    states = state_logits(torch.cat(taps)[:, 1:], detector.scorer.prompt_learner(encoder)).softmax(-1)
    np.testing.assert_allclose(states, golden[f"s{side}_patch_prob"], atol=MAPS, rtol=0)


@torch.no_grad()
def test_sentences_match(golden, detector):
    np.testing.assert_array_equal(detector.scorer.prompt_learner.ids, golden["tokens"])
    raw = detector.scorer.prompt_learner(detector.encoder)
    np.testing.assert_allclose(raw, golden["text_features_raw"], atol=FEATURES, rtol=0)
    unit = torch.nn.functional.normalize(raw, dim=-1)
    np.testing.assert_allclose(unit, golden["text_features"], atol=FEATURES, rtol=0)


@torch.no_grad()
def test_with_deep_prompts_rounded_to_half_as_in_the_official_code_sentences_and_scores_are_the_official_ones(
    golden, picture, small_folder
):
    for side in (112, 154):
        detector = official(small_folder, resolution=side)
        for prompt in detector.scorer.prompt_learner.compound_prompts_text:
            prompt.copy_(prompt.half())
        unit = torch.nn.functional.normalize(detector.scorer.prompt_learner(detector.encoder), dim=-1)
        np.testing.assert_allclose(unit, golden["text_features_half"], atol=MAPS, rtol=0)
        np.testing.assert_allclose(detector.predict(picture).score, golden[f"s{side}_score_half"][0], atol=SCORES)


# Training


def trainable(golden, golden_weights, small_folder, key):
    """The official learner, and the golden's batch: an anomalous picture with a mask, then a normal one."""
    detector = trained(official(small_folder, layers=SETTINGS[key], resolution=112))
    mask, seed = torch.from_numpy(golden[f"{key}train_mask"]).float(), int(golden["seed"])
    with torch.no_grad():
        pixels = detector.encoder.pixels([golden_weights.image(seed + i, 200) for i in range(2)], 112)
        features = detector.scorer.image_side(pixels)
    return detector, Batch(features, torch.stack([mask, 0 * mask]), torch.tensor([1, 0]), ["a", "b"])


@pytest.mark.parametrize("key", SETTINGS)
def test_each_part_of_the_loss_matches(golden, golden_weights, small_folder, key):
    detector, batch = trainable(golden, golden_weights, small_folder, key)
    image, *layers = batch.features
    with torch.no_grad():
        states = detector.scorer.prompt_learner(detector.encoder)
        whole = whole_picture(state_logits(image, states), batch.labels)
        maps = [state_maps(patches, states, (112, 112), 14) for patches in layers]
        parts = [[focal(m, batch.masks), dice(m[:, 1], batch.masks), dice(m[:, 0], 1 - batch.masks)] for m in maps]
        total = detector.scorer.loss(batch)
    np.testing.assert_allclose(whole, golden[f"{key}train_image_loss"], rtol=1e-5)
    np.testing.assert_allclose(parts, golden[f"{key}train_pixel_parts"], rtol=1e-5)
    np.testing.assert_allclose(total - whole, golden[f"{key}train_pixel_loss_x4"], rtol=1e-5)
    np.testing.assert_allclose(total, golden[f"{key}train_total"], rtol=1e-5)


@pytest.mark.parametrize("key", SETTINGS)
def test_gradients_match_and_the_encoder_gets_none(golden, golden_weights, small_folder, key):
    detector, batch = trainable(golden, golden_weights, small_folder, key)
    detector.scorer.loss(batch).backward()
    parameters = dict(detector.scorer.prompt_learner.named_parameters())
    assert sorted(parameters) == sorted(golden[f"{key}grad_names"])
    for name, norm in zip(golden[f"{key}grad_names"], golden[f"{key}grad_norms"], strict=True):
        ours, theirs = parameters[name].grad.numpy(), golden[f"{key}grad_{name}"]
        np.testing.assert_allclose(ours, theirs, atol=TRAINING * np.abs(theirs).max(), rtol=0)
        np.testing.assert_allclose(np.linalg.norm(ours), norm, rtol=TRAINING)
    assert all(p.grad is None for p in detector.encoder.model.parameters())


@pytest.mark.parametrize("key", SETTINGS)
def test_five_steps_of_adam_match(golden, golden_weights, small_folder, key):
    detector, batch = trainable(golden, golden_weights, small_folder, key)
    optimizer, totals = torch.optim.Adam(detector.scorer.parameters(), lr=1e-3, betas=(0.5, 0.999)), []
    for _ in range(5):
        optimizer.zero_grad()
        loss = detector.scorer.loss(batch)
        totals.append(loss.item())
        loss.backward()
        optimizer.step()
    np.testing.assert_allclose(totals, golden[f"{key}train_total_5_adam_steps"], rtol=TRAINING)
    assert totals[-1] < totals[0]


def test_features_kept_in_half_precision_train_almost_alike(golden, golden_weights, small_folder):
    detector, batch = trainable(golden, golden_weights, small_folder, "tap24_")
    half = Batch(tuple(f.half() for f in batch.features), batch.masks, batch.labels, batch.names)
    assert detector.scorer.loss(half).item() == pytest.approx(detector.scorer.loss(batch).item(), rel=1e-3)


# Learned sentences


def test_sentences_are_encoded_once_and_again_after_anything_that_changes_them(small_folder, picture, monkeypatch):
    detector, calls = official(small_folder), []
    walk = detector.encoder.walk_text
    monkeypatch.setattr(detector.encoder, "walk_text", lambda *a: calls.append(1) or walk(*a))
    first = detector.predict([picture] * 3, batch_size=1)[0].score
    assert detector.predict(picture).score == first and len(calls) == 1
    detector.scorer.prompt_learner.ctx_neg.data.neg_()  # as some optimisers do, behind autograd's back
    changed = detector.predict(picture).score
    assert abs(changed - first) > 1e-3 and len(calls) == 2
    detector.scorer.load_learned(official(small_folder).scorer.learned())
    assert detector.predict(picture).score == first and len(calls) == 3
    with torch.enable_grad():
        assert detector.scorer.prompt_learner(detector.encoder).requires_grad and len(calls) == 4


def test_an_untrained_learner_follows_the_global_seed_and_leaves_it_alone(small_encoder):
    def start(seed):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        made = AnomalyClip(small_encoder)
        assert torch.equal(before, torch.get_rng_state())
        return torch.nn.utils.parameters_to_vector(made.parameters()).detach()

    assert torch.equal(start(1), start(1)) and not torch.equal(start(1), start(2))
    assert start(1).std() == pytest.approx(0.02, rel=0.05)


def test_deep_prompts_go_no_deeper_than_the_text_tower(tiny_encoder, picture, tmp_path):
    made = AnomalyClip(tiny_encoder)
    assert made.options["depth"] == tiny_encoder.text_depth == 3
    made.save_adapter(tmp_path / "a.safetensors", recipe={})
    again = vlad.load("anomalyclip", encoder=tiny_encoder, adapter=tmp_path / "a.safetensors")
    assert again.predict(picture).score == Detector(made).predict(picture).score


@torch.no_grad()
def test_an_encoder_that_aligns_its_ordinary_tokens_is_taken_as_it_is(tiny_encoder, picture):
    made = AnomalyClip(tiny_encoder, sigma=0)
    pixels = tiny_encoder.pixels([picture])
    image, patches = tiny_encoder.dense(pixels)
    states = made.prompt_learner(tiny_encoder)
    found = made(pixels)
    assert torch.equal(found.score, anomaly_probability(image, states)) and torch.equal(found.image, image)
    assert torch.equal(made.image_side(pixels)[1], patches)


def test_cosines_with_phrases_are_those_of_clips_own_embedding(small_encoder, detector, picture):
    prediction = detector.describe("bolt", {"normal": ["{}"], "anomalous": ["bad {}"]}).predict(picture)
    with torch.no_grad():
        image = small_encoder(small_encoder.pixels([picture])).image[0]
        text = torch.nn.functional.normalize(small_encoder.text(["bolt", "bad bolt"]), dim=-1)
    expected = dict(zip(["bolt", "bad bolt"], (text @ image).tolist(), strict=True))
    assert prediction.phrases == pytest.approx(expected, abs=1e-5) and prediction.name == "bolt"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_ctx": 30}, "n_ctx is 30, too long for 'tiny', which reads 30 tokens"),
        ({"n_ctx": 0}, "n_ctx is 0"),
        ({"length": 13}, "length 13; expected .* 0 to n_ctx"),
        ({"depth": 0}, "depth 0"),
        ({"layers": [5]}, "numbers from 1 to 4"),
    ],
)
def test_wrong_options_say_what_is_allowed(tiny_encoder, options, words):
    with pytest.raises(ValueError, match=words):
        AnomalyClip(tiny_encoder, **options)


def test_a_text_tower_that_does_not_read_from_left_to_right_is_refused(golden_weights, tmp_path):
    import open_clip

    text = {**golden_weights.TINY_CLIP["text_cfg"], "no_causal_mask": True}
    config = {**golden_weights.TINY_CLIP, "text_cfg": text}
    folder = _written(tmp_path, open_clip.model.CustomTextCLIP(**config), {**config, "custom_text": True})
    encoder = vlad.Encoder.load(f"local-dir:{folder}", device="cpu")
    assert encoder.text(["a bolt"]).shape == (1, 64) and encoder.text_width is None
    with pytest.raises(TypeError, match="reads as CLIP's does"):
        AnomalyClip(encoder)


# The authors' files


def test_an_official_file_gives_its_options_by_shape(detector, tmp_path, official_copy, small_folder):
    assert {key: detector.options[key] for key in ("n_ctx", "depth", "length")} == dict(n_ctx=12, depth=9, length=4)

    def shorter(content):
        learner = content["prompt_learner"]
        for key in ("ctx_pos", "ctx_neg"):
            learner[key] = learner[key][:, :, :7]
        for key in [key for key in learner if key.startswith("compound") and key.split(".")[1] in "34567"]:
            del learner[key]

    options = official(small_folder, official_copy(FILE, shorter)).options
    assert {key: options[key] for key in ("n_ctx", "depth", "length")} == dict(n_ctx=7, depth=4, length=4)


LEARNER = "prompt_learner"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c[LEARNER].pop("ctx_neg"), "prompt_learner.ctx_neg is missing"),
        (lambda c: c[LEARNER].pop("ctx_pos"), "prompt_learner.ctx_pos is missing"),
        (lambda c: c[LEARNER].pop("compound_prompts_text.3"), "compound_prompts_text.3 is missing"),
        (lambda c: c[LEARNER].pop("compound_prompts_text.7"), "compound_prompts_text.7 is missing"),
        (lambda c: c[LEARNER].update(ctx_odd=torch.zeros(1)), "prompt_learner.ctx_odd is unknown"),
        (
            lambda c: c[LEARNER].update(ctx_neg=c[LEARNER]["ctx_neg"][:, :, :11]),
            r"ctx_neg is \[1, 1, 11, 128\], expected \[1, 1, 12, 128\]",
        ),
        (lambda c: c[LEARNER].update(ctx_pos=torch.zeros(12, 128)), r"ctx_pos is \[12, 128\]"),
        (lambda c: c[LEARNER]["ctx_pos"].fill_(torch.nan), "ctx_pos is not finite"),
        (lambda c: c[LEARNER].update({"compound_prompts_text.x": torch.zeros(1)}), "text.x is unknown"),
        (lambda c: c[LEARNER].update({3: torch.zeros(1)}), "'prompt_learner' is no table of tensors"),
        (lambda c: c[LEARNER].update(ctx_pos="text"), "'prompt_learner' is no table of tensors"),
        (lambda c: c.update(epoch=3), "it holds 'epoch', 'prompt_learner'; .* holds 'prompt_learner'"),
        (lambda c: c.update(prompt_learner=[1]), "looks of no kind that VLAD knows"),
        (
            lambda c: c[LEARNER].update({k: v[..., :64] for k, v in c[LEARNER].items() if "_" in k and v.ndim > 1}),
            r"text width 128, .*: it belongs to encoder 'ViT-L-14-336-quickgelu/openai'.*\[1, 1, 12, 64\]",
        ),
    ],
)
def test_a_damaged_official_file_is_refused_with_what_is_wrong(official_copy, small_folder, change, words):
    with pytest.raises(ValueError, match=words):
        official(small_folder, official_copy(FILE, change))


def test_files_of_other_methods_are_named(official_copy, small_folder):
    def other(content, names):
        content.clear()
        content.update({name: torch.zeros(1) for name in names})

    for names, words in [
        (["textual_learner", "visual_learner", "pq_learner"], "looks adaptclip's"),
        (["clip_model.text_prompter.static_prompts.0"], "looks adaclip's"),
        (["anomaly_token"], "looks visualad's"),
        (["weight"], "looks of no kind that VLAD knows"),
    ]:
        file = official_copy(FILE, lambda content: other(content, names))  # noqa: B023
        with pytest.raises(ValueError, match=f"it is no file of anomalyclip's authors: .*{words}"):
            official(small_folder, file)
    several = official_copy(FILE, lambda c: c[LEARNER].update(ctx_neg=torch.zeros(1, 10, 2, 128)))
    with pytest.raises(ValueError, match="looks faprompt's"):
        official(small_folder, several)


def test_a_truncated_or_pickled_file_is_refused_and_nothing_in_it_runs(small_folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    whole = FILE.read_bytes()
    for number, length in enumerate((0, 100, len(whole) // 2, len(whole) - 50)):
        (tmp_path / f"{number}.pth").write_bytes(whole[:length])
    torch.save({"prompt_learner": Trap()}, tmp_path / "trap.pth")
    for file in tmp_path.glob("*.pth"):
        with pytest.raises(ValueError, match="no checkpoint of plain tensors"):
            official(small_folder, file)
    assert not (tmp_path / "run").exists()


def test_another_activation_is_refused(small_folder):
    encoder = vlad.Encoder.load(f"local-dir:{small_folder}", device="cpu", dtype="float32", activation="gelu")
    with pytest.raises(ValueError, match=r"activation quickgelu, and encoder .* computes gelu"):
        vlad.load("anomalyclip", encoder=encoder, adapter=FILE)
