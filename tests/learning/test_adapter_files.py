"""Adapters of other CLIPs, damaged ones, and files that are none."""

import json
import logging

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import vlad

OFFICIAL = GOLDEN / "anomalyclip_official_format.pth"


@pytest.fixture(scope="module")
def sibling(tmp_path_factory, golden_weights):
    """A CLIP of the very shape of the small one, with other weights."""
    import open_clip

    model = golden_weights.fill_(open_clip.model.CLIP(**golden_weights.TINY_CLIP).eval(), seed=7)
    folder = tmp_path_factory.mktemp("sibling")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": golden_weights.TINY_CLIP}))
    return vlad.Encoder.load(f"local-dir:{folder}", device="cpu", dtype="float32")


def load(encoder, file):
    return vlad.load("anomalyclip", encoder=encoder, adapter=file)


def test_an_authors_file_is_refused_on_another_clip_of_the_same_shape(small_encoder, sibling):
    load(small_encoder, OFFICIAL)
    with pytest.raises(ValueError, match="was learned on another CLIP than encoder 'local-dir:"):
        load(sibling, OFFICIAL)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rounding_makes_no_other_clip(small_encoder, sibling, official_copy, dtype):
    def rounded(content):
        content["prompt_learner"] = {k: v.to(dtype) for k, v in content["prompt_learner"].items()}

    file = official_copy(OFFICIAL, rounded)
    load(small_encoder, file)
    with pytest.raises(ValueError, match="was learned on another CLIP"):
        load(sibling, file)


def test_a_file_that_does_not_say_its_clip_is_taken_with_a_note(sibling, official_copy, caplog):
    def silent(content):
        content["prompt_learner"] = {k: v for k, v in content["prompt_learner"].items() if "token_" not in k}

    with caplog.at_level(logging.WARNING):
        load(sibling, official_copy(OFFICIAL, silent))
    assert (
        "does not say which CLIP it was learned on; it belongs to encoder 'ViT-L-14-336-quickgelu/openai'"
        in caplog.text
    )


@pytest.mark.parametrize("start", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_training_come_off(small_encoder, official_copy, start):
    def wrapped(content):
        content["prompt_learner"] = {f"{start}{k}": v for k, v in content["prompt_learner"].items()}

    made = load(small_encoder, official_copy(OFFICIAL, wrapped)).scorer.learned()
    for key, value in load(small_encoder, OFFICIAL).scorer.learned().items():
        assert torch.equal(value, made[key])


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            "a Git LFS pointer and not the weights; run `git lfs pull`",
        ),
        (b"<!DOCTYPE html>", "a web page"),
        (b"", "it is empty"),
        (b"\x80\x02}q", "damaged"),
        (b"\x80\x04\x95\xff\xff", "damaged"),
        (b"\x1f\x8b\x08", "a compressed file"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "pt", "pkl"])
def test_what_is_no_checkpoint_is_named(small_encoder, tmp_path, held, words, suffix):
    (tmp_path / f"a.{suffix}").write_bytes(held)
    with pytest.raises(ValueError, match=words) as caught:
        load(small_encoder, tmp_path / f"a.{suffix}")
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)


def test_more_than_tensors_is_named(small_encoder, official_copy):
    file = official_copy(OFFICIAL, lambda content: content.update(loss=np.float64(3)))
    with pytest.raises(ValueError, match=r"holds more than tensors \(numpy\.[\w.]+\), .* save its state_dict alone"):
        load(small_encoder, file)


@pytest.fixture
def own(tiny_encoder, tmp_path):
    """An adapter of our own."""
    file = tmp_path / "own.safetensors"
    vlad.load("anomalyclip", "bolt", encoder=tiny_encoder).scorer.save_adapter(file, {})
    return file


@pytest.mark.parametrize("seed", range(24))
def test_a_flipped_bit_is_refused(own, tiny_encoder, seed):
    held = bytearray(own.read_bytes())
    start = 8 + int.from_bytes(held[:8], "little")
    header = held.index(b"vlad_adapter") + 30  # in the header's text, or in the tensors
    place = int(np.random.default_rng(seed).integers(*((start, len(held)) if seed % 2 else (header, header + 200))))
    held[place] ^= 1 << (seed % 7)
    own.write_bytes(held)
    with pytest.raises(ValueError, match=r"checksum is another|not a readable|no adapter|not of anomalyclip"):
        load(tiny_encoder, own)


def test_an_adapter_without_a_checksum_loads(own, tiny_encoder):
    with safe_open(own, framework="pt") as file:
        header = file.metadata()["vlad_adapter"]
    save_file(load_file(own), own, {"vlad_adapter": header})
    made = vlad.load("anomalyclip", encoder=tiny_encoder).scorer.learned()
    for key, value in load(tiny_encoder, own).scorer.learned().items():
        assert torch.equal(value, made[key])


@pytest.mark.parametrize(
    ("value", "words"), [(1e20, "ctx_pos is not finite, or beyond"), ("int64", "ctx_pos holds int64 and no fractions")]
)
def test_numbers_that_nothing_learned_are_refused(own, tiny_encoder, value, words):
    with safe_open(own, framework="pt") as file:
        header = file.metadata()["vlad_adapter"]
    tensors = load_file(own)
    name = next(name for name in tensors if name.endswith("ctx_pos"))
    tensors[name] = tensors[name].long() if value == "int64" else torch.full_like(tensors[name], value)
    save_file(tensors, own, {"vlad_adapter": header})
    with pytest.raises(ValueError, match=words):
        load(tiny_encoder, own)
