"""AdaCLIP against the numbers of caoyunkang/AdaCLIP (tests/golden/adaclip.npz), and its authors' files.

Two correct float32 implementations differ by rounding through 24 blocks: some 1e-6 in unit vectors, which the scale of
100 and a softmax turn into about 1e-6 of a probability. Gradients, and the totals of AdamW's steps, which divide by
them, are held to 1e-3 of their size.
"""

import numpy as np
import pytest
import torch
from conftest import GOLDEN

import vlad
from vlad.detector import Detector
from vlad.learning.losses import dice, focal
from vlad.learning.scorer import Batch
from vlad.methods.adaclip import SCALE, AdaClip, class_probabilities, cluster_mean, enlarge, k_means, most_anomalous

FILE = GOLDEN / "adaclip_official_format.pth"
FEATURES, MAPS, SCORES, TRAINING = 1e-5, 5e-6, 5e-6, 1e-3
SIDES = (112, 154)


@pytest.fixture(scope="module")
def picture(golden, golden_weights):
    return golden_weights.image(int(golden["seed"]), 200)


@pytest.fixture(scope="module")
def official(golden, wide_encoder):
    def loaded(file=FILE, encoder=wide_encoder, **options):
        return vlad.load("adaclip", str(golden["class_name"]), encoder=encoder, adapter=file, **options)

    return loaded


def seen(detector, picture, side):
    """(own embedding, unit class embedding, unit patch embeddings, prototypes) of one picture."""
    pixels = detector.encoder.pixels([picture], side)
    own = detector.scorer.own_embedding(pixels)
    return own, *detector.scorer.see(pixels, own), detector.scorer.states(own, [detector.name])


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("sigma", [0, 4])
def test_scores_and_maps_match_through_the_public_api(golden, picture, official, side, sigma):
    prediction = official(resolution=side, sigma=sigma, hsf=False).predict(picture)
    np.testing.assert_allclose(prediction.score, golden[f"s{side}_score_no_hsf"][0], atol=SCORES, rtol=0)
    np.testing.assert_allclose(prediction.map, golden[f"s{side}_map" + "_smooth" * (sigma > 0)], atol=MAPS, rtol=0)
    mixed = official(resolution=side, sigma=sigma).predict(picture)
    np.testing.assert_array_equal(mixed.map, prediction.map)
    assert mixed.score == pytest.approx(golden[f"s{side}_score_hsf"][0], abs=0.01), "k-means starts elsewhere"
    assert abs(mixed.score - prediction.score) > 0.02


@pytest.mark.parametrize("side", SIDES)
@torch.no_grad()
def test_what_both_towers_give_matches(golden, picture, official, side):
    detector, encoder = official(), official().encoder
    pixels = encoder.pixels([picture], side)
    resized = ((pixels * encoder.std + encoder.mean)[0] * 255).permute(1, 2, 0)
    np.testing.assert_allclose(resized, golden[f"s{side}_resized_uint8"], atol=1e-3, rtol=0)
    walked = {}

    def recorded(*args, walk=encoder.walk, **kwargs):
        for layer, before, after in walk(*args, **kwargs):
            walked[layer] = after
            yield layer, before, after

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "walk", recorded)
        own, whole, patches, states = seen(detector, picture, side)
    for key, ours in {
        "frozen_image_feature": own[0],
        "dynamic_visual": detector.scorer.dynamic_visual_prompt_generator(own)[0],
        "dynamic_text": detector.scorer.dynamic_text_prompt_generator(own)[0],
        "tap24_tokens": walked[24][0, :-5],
        "prompted_image_feature": encoder.project(walked[24][0, 0]),
        "cls_proj": whole[0],
        "patch_proj": patches[:, 0],
        "text_features": states[0].T,
    }.items():
        theirs = golden[f"s{side}_{key}"]
        atol = FEATURES * max(1, theirs.std())  # unit vectors, and raw tokens of size 5
        np.testing.assert_allclose(ours, theirs, atol=atol, rtol=0, err_msg=key)


@pytest.mark.parametrize("side", SIDES)
@torch.no_grad()
def test_the_clusters_of_the_official_code_give_its_feature_and_score(golden, picture, official, side, monkeypatch):
    detector = official()
    _, whole, patches, states = seen(detector, picture, side)
    logits = SCALE * patches @ states.mT
    best, labels = (torch.from_numpy(golden[f"s{side}_hsf_{key}"]).long() for key in ("topk", "labels"))
    assert torch.equal(most_anomalous(logits)[0], best)
    ours = cluster_mean(patches[:, 0, best], labels)
    np.testing.assert_allclose(ours, golden[f"s{side}_hsf_feature"], atol=FEATURES, rtol=0)
    by_place = labels[best.argsort()]  # the detector sorts the patches by their places
    monkeypatch.setattr("vlad.methods.adaclip.k_means", lambda *_: by_place)
    score = class_probabilities(detector.scorer.hybrid(whole, patches, logits), states)[0, 1]
    np.testing.assert_allclose(score, golden[f"s{side}_score_hsf"][0], atol=SCORES, rtol=0)


@pytest.mark.parametrize("side", SIDES)
def test_half_precision_as_in_the_official_code_changes_no_more_than_it_does_there(golden, picture, official, side):
    detector = official(resolution=side, sigma=0)
    before = detector.predict(picture).map
    with torch.no_grad():
        for module in (detector.scorer.text_prompter, detector.scorer.visual_prompter):
            for prompt in module.static_prompts:
                prompt.copy_(prompt.half())
    moved = np.abs(detector.predict(picture).map - before).max()
    assert 0 < moved < 10 * golden[f"s{side}_map_half_maxdiff"]


@pytest.mark.parametrize("side", SIDES)
def test_the_other_activation_gives_the_official_codes_other_numbers(golden, picture, official, side):
    """Built past `vlad.load`, which refuses this."""
    exact = official(resolution=side)
    folder = exact.encoder.name
    encoder = vlad.Encoder.load(folder, device="cpu", dtype="float32", activation="quickgelu")
    prediction = (
        Detector(AdaClip(encoder, resolution=side, hsf=False).load_learned(exact.scorer.learned()))
        .describe(exact.name)
        .predict(picture)
    )
    np.testing.assert_allclose(prediction.score, golden[f"s{side}_quickgelu_score_no_hsf"][0], atol=SCORES, rtol=0)
    np.testing.assert_allclose(prediction.map, golden[f"s{side}_quickgelu_map_smooth"], atol=MAPS, rtol=0)
    with pytest.raises(ValueError, match=r"activation gelu, .* computes quickgelu: .* 'ViT-L-14-336/openai'"):
        official(encoder=encoder)


def test_phrases_are_cosines_with_the_encoders_own_embedding(golden, picture, official):
    detector = official(resolution=112)
    own = torch.nn.functional.normalize(torch.from_numpy(golden["s112_frozen_image_feature"]), dim=0)
    text = torch.nn.functional.normalize(detector.encoder.text([f"a {detector.name}", f"{detector.name} rust"]), dim=-1)
    detector.describe(detector.name, {"normal": ["a {}"], "anomalous": ["{} rust"]})
    assert list(detector.predict(picture).phrases.values()) == pytest.approx((text @ own).tolist(), abs=1e-5)


# Clusters


def test_k_means_finds_groups_and_follows_its_seed_alone():
    draw = torch.Generator().manual_seed(3)
    truth = torch.arange(60) % 4
    points = 1000 * torch.eye(4, 6)[truth] + torch.randn(60, 6, generator=draw)
    for seed in range(20):
        labels = k_means(points, 4, seed)
        assert all(len(set(labels[truth == k].tolist())) == 1 for k in range(4)) and len(set(labels.tolist())) == 4
    state = np.random.get_state()[1].copy()
    assert torch.equal(labels, k_means(points, 4, seed))
    assert (np.random.get_state()[1] == state).all()
    loose = torch.randn(60, 6, generator=draw)
    assert not torch.equal(k_means(loose, 20, seed=0), k_means(loose, 20, seed=1))


def test_k_means_is_as_good_as_another_librarys():
    cluster = pytest.importorskip("sklearn.cluster")

    def inertia(points, labels):
        return sum((points[labels == k] - points[labels == k].mean(0)).square().sum() for k in labels.unique()).item()

    points = torch.randn(100, 32, generator=torch.Generator().manual_seed(0))
    theirs = [cluster.KMeans(20, n_init=1, random_state=seed).fit(points.numpy()).inertia_ for seed in range(5)]
    ours = [inertia(points, k_means(points, 20, seed)) for seed in range(5)]
    assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.05)


def test_clusters_vote_once_whatever_their_size_and_points_that_are_alike_need_fewer():
    a, b = torch.eye(2)
    patches = torch.stack([torch.stack([a, a, a, b])] * 3)  # 3 layers, 4 patches
    expected = torch.full((2,), 0.5).sqrt()
    torch.testing.assert_close(cluster_mean(patches, torch.tensor([4, 4, 4, 0])), expected)
    assert k_means(torch.ones(5, 3), 4, seed=0).unique().numel() == 1


@torch.no_grad()
def test_each_picture_of_a_batch_gets_what_it_gets_alone(official, golden_weights):
    detector = official()
    pixels = detector.encoder.pixels([golden_weights.image(seed, 112) for seed in range(3)], 112)
    names = ["bolt", "iron pipe", "bolt"]
    own = detector.scorer.own_embedding(pixels)
    together = detector.scorer.states(own, names)
    for row, name in enumerate(names):
        np.testing.assert_allclose(together[row], detector.scorer.states(own[row : row + 1], [name])[0], atol=1e-6)
    assert (together[0] - together[2]).abs().max() > 1e-3, "the picture speaks too"
    assert (together[0] - detector.scorer.states(own[:1], ["iron pipe"])[0]).abs().max() > 1e-3


@torch.no_grad()
def test_chunks_of_sentences_change_nothing(official, golden_weights, monkeypatch):
    detector = official()
    own = detector.scorer.own_embedding(
        detector.encoder.pixels([golden_weights.image(seed, 112) for seed in range(3)], 112)
    )
    at_once = detector.scorer.states(own, ["bolt"] * 3)
    monkeypatch.setattr("vlad.methods.adaclip.SENTENCES", 1)
    np.testing.assert_allclose(detector.scorer.states(own, ["bolt"] * 3), at_once, atol=1e-6)


@torch.no_grad()
def test_prompts_leave_the_start_and_the_end_of_a_sentence(official, picture, monkeypatch):
    detector, inputs = official(), []
    detector.describe("bolt", {"normal": ["{}"], "anomalous": ["a very badly damaged old {} here"]})
    own = detector.scorer.own_embedding(detector.encoder.pixels([picture], 112))
    walk = detector.encoder.walk_text

    def watched(tokens, edit, **kwargs):
        return walk(tokens, lambda layer, x: inputs.append((x, edit(layer, x))) or inputs[-1][1], **kwargs)

    monkeypatch.setattr(detector.encoder, "walk_text", watched)
    detector.scorer.states(own, ["bolt"])
    changed = [(before != after).any(-1).tolist() for before, after in inputs]
    ids = detector.encoder.tokenize(["bolt", "a very badly damaged old bolt here"])
    short, long = (ids.argmax(-1) + 1).tolist()
    assert not np.any(changed[0]) and not np.any(changed[4:])
    for short_row, long_row in changed[1:4]:
        assert short_row == [False] + [True] * (short - 2) + [False] * (long - short + 1)
        assert long_row == [False] + [True] * 5 + [False] * (long - 6)


# Training


@pytest.fixture(scope="module")
def batch(golden, picture, wide_encoder):
    mask = torch.from_numpy(golden["train_mask"]).float()[None]
    pixels = wide_encoder.pixels([picture], 112)
    return Batch((pixels,), mask, torch.tensor([1]), [str(golden["class_name"])])


@torch.no_grad()
def test_each_part_of_the_loss_matches(golden, picture, official, batch):
    detector = official(row_dice=True)
    _, whole, patches, states = seen(detector, picture, 112)
    score = focal(class_probabilities(whole, states), batch.labels.float())
    np.testing.assert_allclose(score, golden["train_cls_loss"], rtol=1e-5)
    maps = [enlarge(logits, (8, 8), (112, 112)).softmax(1) for logits in SCALE * patches @ states.mT]
    mask, parts, whole_pictures = batch.masks, [], []
    for m in maps:
        parts.append([focal(m, mask), dice(m[:, 1], mask, rows=True), dice(m[:, 0], 1 - mask, rows=True)])
        whole_pictures.append([dice(m[:, 1], mask), dice(m[:, 0], 1 - mask)])
    np.testing.assert_allclose(parts, golden["train_pixel_parts"], rtol=2e-5)
    np.testing.assert_allclose(whole_pictures, golden["train_dice_per_image"], rtol=2e-5)
    np.testing.assert_allclose(detector.scorer.loss(batch), golden["train_total"], rtol=1e-5)
    per_picture = golden["train_total"] + (golden["train_dice_per_image"] - golden["train_pixel_parts"][:, 1:]).sum()
    np.testing.assert_allclose(official().scorer.loss(batch), per_picture, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_match_with_and_without_checkpointing(golden, official, batch, checkpointing):
    detector = official(row_dice=True, checkpointing=checkpointing)
    detector.scorer.loss(batch).backward()
    parameters = dict(detector.scorer.named_parameters())
    none = sorted(name for name, parameter in parameters.items() if parameter.grad is None)
    assert none == sorted(golden["no_grad_names"])
    assert none == sorted(name for name, parameter in parameters.items() if not parameter.requires_grad)
    assert sorted(parameters.keys() - set(none)) == sorted(golden["grad_names"])
    for name, norm in zip(golden["grad_names"], golden["grad_norms"], strict=True):
        ours = parameters[name].grad
        np.testing.assert_allclose(ours.norm(), norm, rtol=TRAINING, err_msg=name)
        if "static_prompts" in name:
            theirs = golden[f"grad_{name}"]
            np.testing.assert_allclose(ours, theirs, atol=TRAINING * np.abs(theirs).max(), rtol=0, err_msg=name)
    assert all(p.grad is None for p in detector.encoder.model.parameters())


def test_checkpointing_keeps_less(official, batch):
    def kept(**options):
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        detector = official(**options)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            detector.scorer.loss(batch)
        return total

    assert kept(checkpointing=True) < kept() / 3


def test_three_steps_of_adamw_match(golden, official, batch):
    detector, totals = official(row_dice=True), []
    optimizer = torch.optim.AdamW(detector.scorer.parameters(), lr=0.01, betas=(0.5, 0.999), weight_decay=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        loss = detector.scorer.loss(batch)
        totals.append(loss.item())
        loss.backward()
        optimizer.step()
    np.testing.assert_allclose(totals, golden["train_total_3_adamw_steps"], rtol=TRAINING)


def test_the_loss_of_a_batch_is_the_mean_of_its_pictures(official, batch, wide_encoder, golden_weights):
    detector, size = official(), (1, 112, 112)
    other = Batch(
        (wide_encoder.pixels([golden_weights.image(5, 112)], 112),), torch.zeros(size), torch.tensor([0]), ["iron pipe"]
    )
    pixels = torch.cat([batch.features[0], other.features[0]])
    both = Batch((pixels,), torch.cat([batch.masks, other.masks]), torch.tensor([1, 0]), [*batch.names, *other.names])
    with torch.no_grad():
        each = [detector.scorer.loss(one).item() for one in (batch, other)]
        assert detector.scorer.loss(both).item() == pytest.approx(np.mean(each), rel=1e-5)


# Encoders and options


def test_an_untrained_detector_follows_the_global_seed_and_leaves_it_alone(wide_encoder):
    def start(seed):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        made = AdaClip(wide_encoder)
        assert torch.equal(before, torch.get_rng_state())
        return torch.nn.utils.parameters_to_vector(made.parameters()).detach()

    assert torch.equal(start(1), start(1)) and not torch.equal(start(1), start(2))


def test_it_works_on_tiny_with_as_many_prompts_as_there_are_blocks(tiny_encoder, picture, tmp_path):
    made = AdaClip(tiny_encoder)
    assert made.layers == (1, 2, 3, 4)
    assert [len(p.static_prompts) for p in (made.text_prompter, made.visual_prompter)] == [3, 4]
    made.save_adapter(file := tmp_path / "tiny.safetensors", recipe={})
    detector = vlad.load("adaclip", "metal bolt", encoder=tiny_encoder, adapter=file)
    prediction = detector.predict(picture)
    assert prediction.map.shape == (tiny_encoder.resolution,) * 2 and 0 < prediction.score < 1
    with pytest.raises(ValueError, match="too long for tiny, which reads 30 tokens"):
        detector.describe("a very long name " * 8)
    assert detector.name == "metal bolt"


@pytest.mark.parametrize(
    ("options", "words"), [({"depth": 1}, "depth is 1"), ({"length": 0}, "length 0"), ({"resolution": 100}, "100")]
)
def test_options_out_of_range_are_refused(wide_encoder, options, words):
    with pytest.raises(ValueError, match=words):
        AdaClip(wide_encoder, **options)


def test_an_encoder_whose_text_is_not_as_wide_as_the_joint_space_is_refused(small_encoder):
    with pytest.raises(ValueError, match=r"as wide as the joint space; .* has 128 and 64: take 'ViT-L-14-336/openai'"):
        AdaClip(small_encoder)


# The authors' files

VISUAL, TEXT = "clip_model.visual_prompter.static_prompts.", "clip_model.text_prompter.static_prompts."
HEAD = "clip_model.patch_token_layer.head."


def test_an_official_file_gives_its_options_by_shape(official, official_copy):
    def shorter(content):
        for key in list(content):
            if "static_prompts.3" in key or any(f"generator.head.{number}" in key for number in (3, 4)):
                del content[key]
        for key in content:
            if "static_prompts" in key:
                content[key] = content[key][:3]

    assert {key: official().options[key] for key in ("depth", "length")} == {"depth": 4, "length": 5}
    options = official(official_copy(FILE, shorter)).options
    assert {key: options[key] for key in ("depth", "length")} == {"depth": 3, "length": 3}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop(VISUAL + "3"), "visual_prompter.static_prompts.3 is missing"),
        (lambda c: c.pop(VISUAL + "0"), "visual_prompter.static_prompts.0 is missing"),
        (lambda c: c.pop(TEXT + "0"), "text_prompter.static_prompts.0 is missing"),
        (lambda c: c.pop(HEAD + "2.bias"), "patch_token_layer.head.2.bias is missing"),
        (lambda c: c.update({HEAD + "4.bias": torch.zeros(1)}), "patch_token_layer.head.4.bias is unknown"),
        (lambda c: c.update({TEXT + "x": torch.zeros(1)}), "text_prompter.static_prompts.x is unknown"),
        (lambda c: c.update({HEAD + "0.weight": torch.zeros(3, 128)}), r"weight is \[3, 128\], expected \[128, 128\]"),
        (lambda c: c.update({VISUAL + "0": torch.zeros(7)}), r"static_prompts.0 is \[7\], expected \[5, 128\]"),
        (lambda c: c[VISUAL + "1"].fill_(torch.nan), "visual_prompter.static_prompts.1 is not finite"),
        (lambda c: c.update(epoch=3), "it holds 'epoch'; .* tensors named clip_model[.]{4} alone"),
        (lambda c: c.update({TEXT + "1": "text"}), "it holds 'clip_model.text_prompter.static_prompts.1'"),
        (
            lambda c: c.update({k: torch.cat([v, v]) for k, v in c.items() if "visual_prompt_generator" in k}),
            r"24 blocks of width 128, .*: it belongs to encoder 'ViT-L-14-336/openai'.*\[256, 128\]",
        ),
        (lambda c: c.clear(), "it looks of no kind that VLAD knows"),
    ],
)
def test_a_damaged_official_file_is_refused_with_what_is_wrong(official, official_copy, change, words):
    with pytest.raises(ValueError, match=words):
        official(official_copy(FILE, change))


@pytest.mark.parametrize("other", ["anomalyclip", "adaptclip"])
def test_files_of_other_methods_are_named(official, other):
    with pytest.raises(ValueError, match=f"it is no file of adaclip's authors: .* looks {other}'s"):
        official(GOLDEN / f"{other}_official_format.pth")


def test_an_official_file_asks_for_a_wide_encoder(small_folder, official):
    encoder = vlad.Encoder.load(f"local-dir:{small_folder}", device="cpu", dtype="float32", activation="gelu")
    with pytest.raises(ValueError, match=r"it belongs to encoder 'ViT-L-14-336/openai'. adaclip needs text tokens as"):
        official(encoder=encoder)
