"""MetaUAS against the numbers of gaobb/MetaUAS (tests/golden/metauas.npz), and its authors' file.

Two correct float32 implementations differ by rounding through 32 blocks, some 1e-5 in features of size 5; the softmax
over large products of random features makes 2e-4 of it in what is aligned.
"""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN

import vlad
from vlad.encoders import efficientnet
from vlad.methods.metauas import found

FEATURES, ALIGNED, DECODED, MAPS, SCORES = 2e-5, 5e-4, 1e-4, 1e-4, 1e-5


@pytest.fixture(scope="module")
def pair(golden_weights):
    """A function: (query, prompt) of a side, uint8 [S, S, 3]."""

    def drawn(side, seed=0):
        prompt, other = golden_weights.image(seed, side), golden_weights.image(seed + 100, side)
        query, place = prompt.copy(), (slice(side // 4, side // 2), slice(side // 3, side // 2 + side // 8))
        query[place] = other[place]
        return query, prompt

    return drawn


@pytest.fixture(scope="module")
def encoder(metauas_file):
    return efficientnet.load(f"efficientnet:{metauas_file}", device="cpu")


@pytest.fixture(scope="module")
def load(metauas_file, encoder):
    """`vlad.load` with a file of the authors' form, and normal pictures as its prompts."""

    def loaded(side, normals=(), **options):
        detector = vlad.load("metauas", adapter=metauas_file, encoder=encoder, resolution=side, **options)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # too few for a threshold
            return detector.fit(normals) if normals else detector

    return loaded


@pytest.mark.parametrize("side", [128, 192])
def test_scores_and_maps_match_through_the_public_api(golden, pair, metauas_file, side):
    query, prompt = pair(side)
    detector = vlad.load("metauas", adapter=metauas_file, device="cpu", resolution=side)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # too few for a threshold
        prediction = detector.fit(prompt).predict(query)
    np.testing.assert_allclose(prediction.map, golden[f"{side}_map"], atol=MAPS, rtol=0)
    np.testing.assert_allclose(prediction.score, golden[f"{side}_score"], atol=SCORES, rtol=0)
    assert prediction.map.std() > 1e-3, "not all the same"


@pytest.mark.parametrize("side", [128, 192])
@torch.no_grad()
def test_each_stage_matches(golden, pair, load, side):
    detector = load(side)
    pixels = detector.encoder.pixels(pair(side), side)
    levels = detector.encoder.levels(pixels)
    for number, level in enumerate(levels, 1):
        np.testing.assert_allclose(level[0, :8, :16, :16], golden[f"{side}_enc{number}"], atol=FEATURES, rtol=0)
        check_statistics(level[:1], golden[f"{side}_enc{number}_mean_std"])
    np.testing.assert_allclose(levels[4][1, :8, :16, :16], golden[f"{side}_enc5_prompt"], atol=FEATURES, rtol=0)
    queries, prompts = ([level[i : i + 1] for level in levels] for i in (0, 1))
    for i, part in enumerate(detector.scorer.alignment):
        matching = part(queries[4 - i], prompts[4 - i])[0, levels[4 - i].shape[1] :]
        np.testing.assert_allclose(matching[:8], golden[f"{side}_aligned{i}"], atol=ALIGNED, rtol=0)
    steps = []
    for step in detector.scorer.decoder["blocks"]:
        step.register_forward_hook(lambda *call: steps.append(call[2]))
    logits = detector.scorer.logits(queries, prompts[:1:-1])
    for number, features in enumerate(steps):
        np.testing.assert_allclose(features[0, :4, :24, :24], golden[f"{side}_dec{number}"], atol=DECODED, rtol=0)
        check_statistics(features, golden[f"{side}_dec{number}_mean_std"])
    np.testing.assert_allclose(logits[0], golden[f"{side}_logits"], atol=DECODED, rtol=0)


def check_statistics(features, expected):
    assert len(expected) == 2
    np.testing.assert_allclose([features.mean(), features.std()], expected, atol=2e-4, rtol=2e-4)


def test_a_stride_of_two_pads_one_before_and_two_after(encoder):
    layer = encoder.model.blocks[2][0].conv_dw  # 5 x 5, stride 2
    x = torch.randn(1, layer.in_channels, 16, 16, generator=torch.Generator().manual_seed(0))
    padded = F.conv2d(F.pad(x, (1, 2, 1, 2)), layer.weight, stride=2, groups=layer.groups)
    torch.testing.assert_close(layer(x), padded, atol=1e-6, rtol=0)


def test_what_is_found_is_a_mean_of_what_there_is_also_in_parts(monkeypatch):
    random = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(2, 7, 4, generator=random), torch.randn(2, 9, 4, generator=random)
    torch.testing.assert_close(found(queries, keys, torch.ones(2, 9, 3)), torch.ones(2, 7, 3))
    values = torch.randn(2, 9, 3, generator=random)
    whole = found(queries, keys, values)
    monkeypatch.setattr("vlad.methods.metauas.QUERIES", 2)
    torch.testing.assert_close(found(queries, keys, values), whole)
    by_hand = sum(
        weight * value for weight, value in zip(torch.softmax(keys[1] @ queries[1, 3], 0), values[1], strict=True)
    )
    torch.testing.assert_close(whole[1, 3], by_hand)


def test_of_several_normals_the_closest_is_the_prompt(pair, load):
    query, prompt = pair(64)
    others = [pair(64, seed)[1] for seed in (5, 6)]
    several = load(64, [others[0], prompt, others[1]]).predict([query, others[1]])
    alone = [load(64, [one]).predict(picture) for one, picture in ((prompt, query), (others[1], others[1]))]
    for one, other in zip(several, alone, strict=True):
        np.testing.assert_allclose(one.map, other.map, atol=1e-5)


def test_changed_is_the_least_against_every_normal_where_that_is_asked(pair, load):
    query, prompt = pair(64)
    normals = [prompt, pair(64, 5)[1]]
    together = load(64, normals, several="least").predict(query)
    alone = [load(64, [normal]).predict(query).map for normal in normals]
    np.testing.assert_allclose(together.map, np.minimum(*alone), atol=1e-5)
    assert 0.01 < (alone[0] < alone[1]).mean() < 0.99 and together.score == together.map.max()
    with pytest.raises(ValueError, match="several is 'mean'; expected one of closest, least"):
        load(64, several="mean")


def test_pictures_are_resized_with_aligned_corners(encoder):
    picture = np.zeros((3, 5, 3), np.uint8)
    picture[2, 4] = 255
    pixels = encoder.pixels([picture], 64) * encoder.std + encoder.mean
    assert pixels[0, 0, -1, -1] == pytest.approx(1, abs=1e-6) and pixels[0, 0, 0, 0] == pytest.approx(0, abs=1e-6)
    assert pixels[0, 0, -1, 62] == pytest.approx(1 - 4 / 63, abs=1e-5), "the last columns rise in a line to the corner"


def test_the_side_stands_in_the_files_name(metauas_file, tmp_path):
    (tmp_path / "metauas-512.ckpt").symlink_to(metauas_file)
    assert vlad.load("metauas", adapter=metauas_file, device="cpu").resolution == 256
    assert vlad.load("metauas", adapter=tmp_path / "metauas-512.ckpt", device="cpu").resolution == 512


def test_its_tower_is_an_encoder_for_a_memory_too(encoder, pair):
    query, prompt = pair(128)
    detector = vlad.load("patch_memory", encoder=encoder, resolution=128, sigma=0)
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        seen, changed = detector.fit([prompt]).predict([prompt, query])
    assert seen.score < 1e-3 < changed.score


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("mask_head.bias"), "mask_head.bias is missing"),
        (lambda c: c.update(odd=torch.zeros(1)), "odd is unknown"),
        (lambda c: c.update({"mask_head.bias": torch.zeros(2)}), r"mask_head.bias is \[2\], expected \[1\]"),
        (lambda c: c["decoder.blocks.0.conv1.1.bias"].fill_(torch.nan), "conv1.1.bias is not finite"),
        (lambda c: c["decoder.blocks.1.conv2.1.running_var"].zero_(), "running_var is a variance and not above 0"),
        (lambda c: c.update(epoch=3), "'epoch' in it is no tensor"),
    ],
)
def test_a_damaged_official_file_is_refused_with_what_is_wrong(official_copy, metauas_file, encoder, change, words):
    with pytest.raises(ValueError, match=words):
        vlad.load("metauas", adapter=official_copy(metauas_file, change), encoder=encoder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("encoder._blocks.9._bn1.bias"), "blocks.2.3.bn2.bias is missing"),
        (
            lambda c: c.update({"encoder._blocks.0._expand_conv.weight": torch.zeros(3)}),
            "_expand_conv.weight is unknown",
        ),
        (lambda c: c["encoder._bn0.running_var"].zero_(), "bn1.running_var is not finite, or a variance"),
        (lambda c: c.update({"encoder._conv_stem.weight": torch.zeros(3)}), r"is \[3\], expected \[48, 3, 3, 3\]"),
        (lambda c: [c.pop(key) for key in list(c) if key.startswith("encoder.")], "the file holds no tower"),
    ],
)
def test_a_damaged_tower_is_refused_with_what_is_wrong(official_copy, metauas_file, change, words):
    with pytest.raises(ValueError, match=words):
        efficientnet.load(f"efficientnet:{official_copy(metauas_file, change)}")


def test_files_of_other_methods_are_named_and_so_is_the_reverse(metauas_file, small_encoder):
    with pytest.raises(ValueError, match=r"no file of metauas's authors: .* it looks anomalyclip's"):
        vlad.load("metauas", adapter=GOLDEN / "anomalyclip_official_format.pth")
    with pytest.raises(ValueError, match=r"no file of anomalyclip's authors: .* it looks metauas's"):
        vlad.load("anomalyclip", adapter=metauas_file, encoder=small_encoder)


def test_without_a_file_or_with_another_tower_it_says_what_it_needs(metauas_file, small_encoder, tmp_path):
    with pytest.raises(ValueError, match=r"metauas needs its authors' file, .* give adapter=FILE"):
        vlad.load("metauas")
    with pytest.raises(TypeError, match=r"metauas has a tower of its own, .* leave encoder=.* out"):
        vlad.load("metauas", adapter=metauas_file, encoder=small_encoder)
    with pytest.raises(ValueError, match="how metauas learns is not published"):
        vlad.train({"method": "metauas"}, "synthetic", tmp_path / "a.safetensors")
