"""SOWA against the numbers of huzongxiang/sowa (../shared/parity/sowa.npz), and files of its authors' format.

Two correct float32 implementations differ by rounding through 24 blocks, some 1e-5 in tokens of size 5; cosines that no
temperature divides and a softmax leave 1e-6 of it. Gradients, and the totals of AdamW's steps, which divide by them,
are held to 1e-4 of their size.
"""

import argparse
import functools
import math
import os
import pickle
import re
import warnings
import zipfile

import numpy as np
import pytest
import torch
from conftest import _encoder
from learned_goldens import batch_of, check_gradients, check_steps, weights_file

import vlad
from vlad.detector import Detector
from vlad.encoders.placeholders import without_classes
from vlad.learning.features import mask_at
from vlad.learning.losses import dice, focal, whole_picture
from vlad.maps import picture_logits, state_logits
from vlad.methods.sowa import NAMES, Sowa, WindowAttention, offset_numbers, whole, windowed

FILE = "sowa_official_format.ckpt"
FEATURES, MAPS, SCORES, TRAINING = 5e-5, 5e-6, 2e-6, 1e-4
SIDES = (112, 168)


@pytest.fixture(scope="module")
def shots(golden, golden_weights):
    return [golden_weights.image(int(golden["seed"]) + 100 + number, 200) for number in range(2)]


@pytest.fixture(scope="module")
def encoders(small_encoder, golden_weights, tmp_path_factory):
    """One for each side: the method knows no other than the tower's own."""
    vision = {**golden_weights.TINY_CLIP["vision_cfg"], "image_size": 168}
    return {112: small_encoder, 168: _encoder(tmp_path_factory.mktemp("larger"), golden_weights, vision_cfg=vision)}


@pytest.fixture(scope="module")
def weights(golden_weights, encoders, tmp_path_factory):
    """Side -> the golden's own weights as a file of ours: an adapter belongs to one encoder."""

    def draw(name, shape):
        name = re.sub(r"^adapters\.(\d)\.", r"visual_encoder.adapters.\1.blocks.0.", name)
        name = name.replace(".mlp.weight", ".mlp.layers.0.weight")
        if name.endswith("attn.logit_scale"):
            return math.log(10) + torch.linspace(-1, 2.6, 8).view(8, 1, 1)
        return golden_weights.tensor(f"sowa.{name}", shape, 0)

    place = tmp_path_factory.mktemp("sowa")
    return {side: weights_file(place / f"{side}.safetensors", Sowa(one), draw) for side, one in encoders.items()}


@pytest.fixture(scope="module")
def load(weights, golden, encoders):
    def loaded(side=112, normals=(), file=None, **options):
        options = {"window": int(golden[f"s{side}_window"]), **options}
        detector = vlad.load("sowa", encoder=encoders[side], adapter=file or weights[side], **options)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # too few for a threshold
            return detector.fit(list(normals)) if normals else detector

    return loaded


def official_name(name):
    for theirs, ours in NAMES:
        name = name.replace(theirs, ours)
    return name


@pytest.mark.parametrize("side", SIDES)
def test_scores_and_maps_match_through_the_public_api(golden, picture, load, side):
    for sigma, smooth in ((0, ""), (4, "_smooth")):
        prediction = load(side, sigma=sigma).predict(picture)
        np.testing.assert_allclose(prediction.map, golden[f"s{side}_map{smooth}"], atol=MAPS, rtol=0)
    np.testing.assert_allclose(prediction.score, golden[f"s{side}_score"], atol=SCORES, rtol=0)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("count", [1, 2])
def test_what_normals_add_matches_through_the_public_api(golden, picture, shots, load, side, count):
    plain, key = load(side).predict(picture), f"s{side}_shot{count}_"
    fitted = load(side, shots[:count]).predict(picture)
    if f"{key}map_memory" in golden:
        np.testing.assert_allclose(fitted.map - plain.map, golden[f"{key}map_memory"], atol=MAPS, rtol=0)
    peak = golden[f"{key}max"]
    np.testing.assert_allclose(fitted.map.max(), peak, atol=MAPS, rtol=0)
    expected = (golden[f"s{side}_score"] + (peak - 2) / 2) / 2
    np.testing.assert_allclose(fitted.score, expected, atol=MAPS, rtol=0)
    alone = load(side, shots[:count], score="class").predict(picture)
    np.testing.assert_allclose(alone.score, golden[f"s{side}_score"], atol=SCORES, rtol=0)


def test_the_published_score_is_rescaled_over_a_set_where_it_is_asked_for(golden_weights, shots, load):
    pictures = [golden_weights.image(seed, 90) for seed in range(3)]
    own, together = load(normals=shots, bounds=(0, 1)), load(normals=shots, score="set")
    classes = load(normals=shots, score="class").predict(pictures)
    peaks = np.array([one.map.max() for one in own.predict(pictures)])
    scaled = (peaks - peaks.min()) / (peaks.max() - peaks.min())
    expected = [(one.score + peak) / 2 for one, peak in zip(classes, scaled, strict=True)]
    for batch_size in (1, 2):
        scores = [one.score for one in together.predict(pictures, batch_size=batch_size)]
        np.testing.assert_allclose(scores, expected, atol=MAPS)


@pytest.mark.parametrize("side", SIDES)
@torch.no_grad()
def test_taps_adapters_and_cosines_match(golden, picture, load, side):
    detector, key = load(side), f"s{side}_"
    encoder = detector.encoder
    pixels = encoder.pixels([picture])
    resized = ((pixels * encoder.std + encoder.mean)[0] * 255).permute(1, 2, 0)
    np.testing.assert_allclose(resized, golden[f"{key}resized_uint8"], atol=1e-3, rtol=0)
    own, *taps = detector.scorer.image_side(pixels)
    np.testing.assert_allclose(own[0], golden[f"{key}image_feature"], atol=FEATURES, rtol=0)
    states, adapted = detector.scorer.states(), torch.cat(detector.scorer.adapted(taps))
    raw = detector.scorer.prompt_learner(encoder)
    np.testing.assert_array_equal(detector.scorer.prompt_learner.ids, golden["tokens"])
    np.testing.assert_allclose(raw, golden[f"{key}text_features_raw"], atol=FEATURES, rtol=0)
    np.testing.assert_allclose(states, golden[f"{key}text_features_linear"], atol=FEATURES, rtol=0)
    patches = torch.cat(taps) @ encoder.projection
    np.testing.assert_allclose(patches, golden[f"{key}patches"], atol=FEATURES, rtol=0)
    np.testing.assert_allclose(adapted, golden[f"{key}adapted"], atol=FEATURES, rtol=0)
    np.testing.assert_allclose(state_logits(adapted, states, 1.0), golden[f"{key}similarity"], atol=MAPS, rtol=0)
    probabilities = picture_logits(own, states).softmax(-1)[0]
    np.testing.assert_allclose(probabilities, golden[f"{key}prob"], atol=SCORES, rtol=0)
    if side == 112:
        np.testing.assert_allclose(torch.cat(taps), golden["s112_taps"], atol=FEATURES, rtol=0)
        attended = [
            one.attended(encoder, layer, tokens, detector.scorer.window)[0]
            for one, layer, tokens in zip(detector.scorer.adapters, detector.scorer.layers, taps, strict=True)
        ]
        np.testing.assert_allclose(torch.stack(attended), golden["s112_window_attention"], atol=FEATURES, rtol=0)
        biases = detector.scorer.adapters[0].attn.biases(detector.scorer.window)
        np.testing.assert_allclose(biases, golden["s112_bias_table_tap6"], atol=FEATURES, rtol=0)


# Training


def trainable(golden, golden_weights, load):
    """The golden's weights without dropout, and its batch."""
    scorer = load(dropout=0.0).scorer.train()
    return scorer, batch_of(scorer, golden, golden_weights)


def test_each_part_of_the_loss_and_every_gradient_match(golden, golden_weights, load):
    scorer, batch = trainable(golden, golden_weights, load)
    own, *taps = batch.features
    with torch.no_grad():
        states = scorer.states()
        doubled = whole_picture(picture_logits(own, states).softmax(-1), batch.labels)
        parts = []
        for one in scorer.maps(taps, states, (112, 112)):
            pair, mask = torch.stack([1 - one, one], 1), batch.masks
            parts.append([focal(pair, mask), dice(one, mask), dice(1 - one, 1 - mask)])
    np.testing.assert_allclose(doubled, golden["train_ce"], rtol=1e-5)
    np.testing.assert_allclose(parts, golden["train_parts_focal_dice1_dice0"], rtol=1e-5)
    check_gradients(golden, scorer, scorer.loss(batch), TRAINING, named=official_name)


def test_three_steps_of_adamw_match(golden, golden_weights, load):
    scorer, batch = trainable(golden, golden_weights, load)
    adamw = torch.optim.AdamW(scorer.parameters(), lr=1e-3, weight_decay=0.2)
    check_steps(golden, scorer, batch, adamw, TRAINING)


@torch.no_grad()
def test_dropout_is_for_training_alone(load):
    detector, tokens = load(), torch.randn(1, 64, 128, generator=torch.Generator().manual_seed(0))
    scored = [detector.scorer.adapted([tokens] * 4)[0] for _ in range(2)]
    detector.scorer.train()
    learning = [detector.scorer.adapted([tokens] * 4)[0] for _ in range(2)]
    assert torch.equal(*scored) and not torch.equal(*learning)


def test_a_pixel_that_is_anomalous_at_all_is_learned_as_such(tiny_encoder, small_encoder):
    mask = np.zeros((8, 8), bool)
    mask[0, 0] = True
    assert mask_at(mask, 4, Sowa(small_encoder).mask_share).sum() == 1 and mask_at(mask, 4).sum() == 0


# Windows


def test_windows_are_taken_apart_row_by_row_and_put_together_again():
    tokens = torch.arange(16.0).view(1, 16, 1)
    windows = windowed(tokens, 4, 2)
    assert windows[0, :, :, 0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert torch.equal(whole(windows, 4, 2), tokens)


def test_the_bias_of_a_pair_is_that_of_the_step_from_key_to_query():
    attention = WindowAttention(2, 0.0)
    pairs = attention.biases(2)[offset_numbers(2)]  # [query, key, heads]
    seen = torch.tensor([[0.0, 0.0], [8.0, -8.0]])  # from a place to itself, and to the upper right from the lower left
    by_hand = 16 * attention.cpb_mlp(seen.sign() * (seen.abs() + 1).log2() / 3).sigmoid()
    torch.testing.assert_close(pairs[0, 0], by_hand[0])
    torch.testing.assert_close(pairs[2, 1], by_hand[1])  # query in the second row's first column, key above right


@pytest.mark.parametrize(
    ("resolution", "window", "expected"),
    [(112, None, 8), (336, None, 12), (196, None, 7), (182, None, 13), (112, 4, 4), (112, 12, 8), (14, None, 1)],
)
def test_a_window_is_what_fits_the_grid(small_encoder, golden_weights, resolution, window, expected):
    made = Sowa(small_encoder, resolution=resolution, window=window)
    assert made.window == expected
    if resolution < 336:
        assert np.isfinite(Detector(made).predict(golden_weights.image(0, 60)).map).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 3}, "window is 3, and resolution 112 gives 8 patches a side: expected a number that divides"),
        ({"window": 0}, "window is 0"),
        ({"heads": 5}, "heads is 5; expected a number that divides 128"),
        ({"score": "best"}, "score is 'best'; expected one of bounds, class, set"),
        ({"bounds": (3, 3)}, "bounds are"),
        ({"layers": [25]}, "numbers from 1 to 24"),
    ],
)
def test_wrong_options_say_what_is_allowed(small_encoder, options, words):
    with pytest.raises(ValueError, match=words):
        Sowa(small_encoder, **options)


# The authors' files

TABLE = "state_dict"


def test_a_file_gives_the_goldens_weights_and_options_and_an_adapter_of_ours_keeps_them(
    load, parity, small_encoder, picture, tmp_path
):
    made = vlad.load("sowa", encoder=small_encoder, adapter=parity / FILE)
    for key, value in made.scorer.learned().items():
        assert torch.equal(value, load().scorer.learned()[key]), key
    assert {key: made.scorer.options[key] for key in ("window", "heads", "n_ctx")} == {
        "window": 4,
        "heads": 8,
        "n_ctx": 12,
    }
    made.scorer.save_adapter(tmp_path / "a.safetensors", recipe={})
    again = vlad.load("sowa", encoder=small_encoder, adapter=tmp_path / "a.safetensors")
    assert again.predict(picture).score == made.predict(picture).score and again.scorer.window == 4


class Trap:
    """Runs something when it is unpickled as pickle does it."""

    def __init__(self, call, *arguments):
        self.call = call, arguments

    def __reduce__(self):
        return self.call


def test_what_a_lightning_file_holds_beside_tensors_is_never_run(load, official_copy, parity, picture, tmp_path):
    def lightning(content):
        optimizer = functools.partial(torch.optim.AdamW, lr=1e-3)
        own = {"optimizer": optimizer, "trap": Trap(os.mkdir, str(tmp_path / "run")), "kind": Sowa}
        content["hyper_parameters"] = {
            **own,
            "set": {1, 2},
            "built": argparse.Namespace(a=[1], b=torch.nn.Linear(2, 2)),
        }

    file = official_copy(parity / FILE, lightning)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)
    assert load(file=file).predict(picture).score == load().predict(picture).score
    assert not (tmp_path / "run").exists()
    file.rename(file.with_suffix(".pth"))
    with pytest.raises(ValueError, match="no checkpoint of plain tensors"):
        load(file=file.with_suffix(".pth"))


def test_a_file_that_hides_its_tensors_behind_code_is_refused_and_nothing_runs(load, tmp_path):
    traps = {
        "whole": Trap(os.mkdir, str(tmp_path / "run")),
        "table": {TABLE: Trap(os.mkdir, str(tmp_path / "run"))},
        "tensor": {TABLE: {"net.cross_fusion.linear.bias": Trap(os.mkdir, str(tmp_path / "run"))}},
    }
    for name, content in traps.items():
        torch.save(content, tmp_path / f"{name}.ckpt")
    torch.save(traps["table"], tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.ckpt").write_bytes(pickle.dumps(traps["table"], protocol=2))
    whole = (tmp_path / "tensor.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) == 6
    for file in files:
        with pytest.raises(ValueError, match=r"no checkpoint of plain tensors|holds a|no file of sowa|is no tensor"):
            load(file=file)
    assert not (tmp_path / "run").exists()


def test_a_program_in_a_checkpoints_dress_is_refused_before_torch_sees_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as file:
        file.writestr("a/constants.pkl", b"")
    with pytest.raises(pickle.UnpicklingError, match="a program"):
        without_classes(tmp_path / "a.ckpt")


NAME = "net.visual_encoder.adapters.2.blocks.0."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("net.prompt_learner.ctx_neg"), "prompt_learner.ctx_neg is missing"),
        (lambda t: t.pop(NAME + "attn.cpb_mlp.0.bias"), "adapters.2.attn.cpb_mlp.0.bias is missing"),
        (lambda t: t.pop(NAME + "mlp.layers.0.weight"), "adapters.2.mlp.weight is missing"),
        (lambda t: t.update({NAME + "norm3.bias": torch.zeros(1)}), "adapters.2.norm3.bias is unknown"),
        (lambda t: t.update({NAME + "norm1.bias": torch.zeros(3)}), r"norm1.bias is \[3\], expected \[128\]"),
        (lambda t: t["net.cross_fusion.linear.bias"].fill_(torch.nan), "cross_fusion.linear.bias is not finite"),
        (
            lambda t: t.update({"net.cross_fusion.linear.bias": "text"}),
            "'cross_fusion.linear.bias', which is no tensor",
        ),
        (lambda t: t.clear(), "looks of no kind that VLAD knows"),
    ],
)
def test_a_damaged_file_is_refused_with_what_is_wrong(load, parity, official_copy, change, words):
    with pytest.raises(ValueError, match=words):
        load(file=official_copy(parity / FILE, lambda content: change(content[TABLE])))
