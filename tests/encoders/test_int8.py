"""int8 in plain torch: close to float32, the same for a picture whatever its company, and refused where it is not."""

import logging
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import vlad
from vlad.encoders import efficientnet
from vlad.encoders.encoder import Encoder
from vlad.encoders.int8 import Int8Linear, int8_product, quantised_rows

METHODS = ("patch_text", "winclip", "clip_surgery", "clip_ad", "april_gan", "anomalyclip", "adaptclip")
METHODS += ("aaclip", "adaclip", "crane", "sowa", "vcpclip")  # all that have words or an adapter for `tiny`


@pytest.fixture(scope="module")
def int8():
    return Encoder.load("tiny", device="cpu", dtype="int8")


@pytest.fixture(scope="module")
def pictures(golden_weights):
    return [golden_weights.image(seed, size) for seed, size in enumerate((224, 200, 150, 224, 96, 224, 224, 300))]


def loaded(method, encoder):
    words = vlad.methods.method_class(method).words != "none"
    return vlad.load(method, "metal bolt" if words else None, encoder=encoder)


def test_a_quantised_row_is_within_half_a_step_of_what_it_was():
    rows = torch.randn(7, 40, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 7)[:, None]
    values, scales = quantised_rows(rows)
    assert values.dtype == torch.int8 and values.abs().amax(1).eq(127).all()
    assert ((values * scales - rows).abs() <= scales * 0.5001).all()


def test_a_row_of_zeros_stays_zero():
    values, scales = quantised_rows(torch.zeros(2, 8))
    assert not values.any() and torch.isfinite(scales).all()


def test_what_a_layer_makes_of_a_token_does_not_depend_on_the_tokens_beside_it():
    torch.manual_seed(0)
    layer, tokens = Int8Linear(torch.nn.Linear(64, 32)), torch.randn(600, 64)
    loud = torch.cat([tokens, 1000 * torch.randn(5, 64)])
    assert torch.equal(layer(loud)[:600], layer(tokens))
    assert torch.equal(layer(tokens)[17:18], layer(tokens[17:18]))


def test_tokens_point_where_those_of_float32_do(int8, tiny_encoder, pictures):
    pixels, layers = int8.pixels(pictures), tuple(range(1, int8.depth + 1))
    with torch.no_grad():
        for ours, exact in zip(int8(pixels, layers).patches, tiny_encoder(pixels, layers).patches, strict=True):
            assert F.cosine_similarity(ours, exact, dim=-1).min() >= 0.999
        for ours, exact in zip(int8.windows(pixels, (2, 3)), tiny_encoder.windows(pixels, (2, 3)), strict=True):
            assert F.cosine_similarity(ours, exact, dim=-1).min() >= 0.99  # class tokens of four patches


@pytest.mark.parametrize("method", METHODS)
def test_every_method_scores_in_int8_about_as_in_float32(method, int8, tiny_encoder, pictures):
    ours, exact = (loaded(method, encoder).predict(pictures[:3]) for encoder in (int8, tiny_encoder))
    width = max(1.0, exact[0].scale[1] - exact[0].scale[0])
    for one, other in zip(ours, exact, strict=True):
        assert abs(one.score - other.score) <= 0.06
        assert np.abs(one.map - other.map).mean() <= 0.02 * width


@pytest.mark.parametrize("method", ["patch_text", "winclip", "clip_ad"])
def test_a_batch_of_eight_gives_the_scores_of_single_pictures(method, int8, pictures):
    detector = loaded(method, int8)
    together, alone = detector.predict(pictures), [detector.predict(one) for one in pictures]
    assert max(abs(one.score - other.score) for one, other in zip(together, alone, strict=True)) <= 1e-3


def test_a_dino_computes_in_int8_too(pictures):
    exact, ours = (Encoder.load("dino:small/random:0", device="cpu", dtype=dtype) for dtype in ("float32", "int8"))
    pixels = exact.pixels(pictures[:1], 112)
    with torch.no_grad():
        one, other = (encoder(pixels, (6, 12)).patches for encoder in (exact, ours))
    assert all(F.cosine_similarity(a, b, dim=-1).min() >= 0.999 for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[1], other[1])


def test_the_blocks_take_a_quarter_of_the_memory(int8, tiny_encoder):
    matrix = tiny_encoder.blocks[0].mlp.c_fc.weight
    assert int8.blocks[0].mlp.c_fc.matrix.values.nbytes * 4 == matrix.nbytes
    assert not [name for name, _ in int8.blocks.named_parameters() if name.endswith(("proj.weight", "fc.weight"))]


def test_a_tower_of_convolutions_refuses_int8(metauas_file):
    with pytest.raises(ValueError, match=r"does not compute in int8; take dtype='bfloat16' or 'float32'"):
        efficientnet.load(f"efficientnet:{metauas_file}", device="cpu", dtype="int8")


@pytest.mark.parametrize("units", [True, False])
def test_a_product_is_exact_with_and_without_units_for_it(units, monkeypatch):
    monkeypatch.setattr("vlad.encoders.int8.has_int8_units", lambda: units)
    left, right = torch.randint(-127, 128, (2, 5, 3001), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    left[0] = right[0] = 127  # the largest sum, an odd one above 2**24, which no float32 is
    assert torch.equal(int8_product(left, right.T).long(), left.long() @ right.T.long())


def test_a_processor_without_units_for_int8_is_named(monkeypatch):
    monkeypatch.setattr("vlad.encoders.int8.has_int8_units", lambda: False)
    with pytest.warns(UserWarning, match="no units for int8"):
        Encoder.load("tiny", device="cpu", dtype="int8")


def test_a_torch_without_int8_products_is_named(monkeypatch):
    monkeypatch.setattr("vlad.encoders.int8.has_int8_units", lambda: True)
    monkeypatch.delattr(torch, "_int_mm")
    with pytest.raises(ValueError, match=re.escape(f"this torch ({torch.__version__}) has no int8 products")):
        Encoder.load("tiny", device="cpu", dtype="int8")


def test_training_refuses_int8(tmp_path, shared):
    from vlad.learning.train import train

    with pytest.raises(ValueError, match="int8 has no gradients"):
        train(
            "anomalyclip", f"folder:{shared}/data/aws_lookout", tmp_path / "a.safetensors", encoder="tiny", dtype="int8"
        )


@pytest.fixture
def fitted_file(int8, golden_weights, tmp_path):
    detector = vlad.load("patch_memory", encoder=int8).fit([golden_weights.image(seed, 224) for seed in range(20, 26)])
    detector.save(tmp_path / "bolt.safetensors")
    assert detector.threshold is not None
    return tmp_path / "bolt.safetensors"


def test_a_file_names_its_arithmetic_and_is_loaded_in_it(fitted_file):
    again = vlad.load(fitted_file, device="cpu")
    assert again.encoder.precision == "int8" and again.threshold is not None
    assert again.encoder.arithmetic == "int8 on torch"


def test_thresholds_do_not_pass_to_another_precision(fitted_file, caplog):
    with caplog.at_level(logging.WARNING):
        other = vlad.load(fitted_file, device="cpu", dtype="float32")
    assert other.threshold is None and other.map_threshold is None and other.calibration is None
    assert "the thresholds from int8 on torch are dropped, fit again in float32" in caplog.text
    assert len(other.references) == 6
