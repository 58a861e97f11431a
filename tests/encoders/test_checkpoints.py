"""Weights as people have them: wrappings, suffixes, shards, archives, transformers' folders, and what is no weights."""

import argparse
import json
import os
import pickle
import zipfile

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from vlad import Encoder
from vlad.encoders.checkpoint import content

MODEL = "ViT-S-32-alt"


@pytest.fixture(scope="module")
def state():
    """The tensors of a small named model, random."""
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**open_clip.get_model_config(MODEL))
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def digest(state, tmp_path_factory):
    file = tmp_path_factory.mktemp("plain") / "w.safetensors"
    save_file(state, file)
    return Encoder.load(f"{MODEL}:{file}", device="cpu", dtype="float32").digest


def named(state, prefix):
    return {f"{prefix}{name}": value for name, value in state.items()}


WRAPPED = {
    "a bare table": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {0: torch.zeros(2)}}},
    "two wrappers": lambda s: {"model": {"state_dict": s}},
    "a name nobody knows": lambda s: {"student": s, "step": 4},
    "module.": lambda s: {"state_dict": named(s, "module.")},
    "model.": lambda s: {"state_dict": named(s, "model.")},
    "_orig_mod.": lambda s: named(s, "_orig_mod."),
    "module._orig_mod.": lambda s: named(s, "module._orig_mod."),
    "a compiled tower": lambda s: {k.replace("visual.", "visual._orig_mod."): v for k, v in s.items()},
    "ema alone": lambda s: {"ema": named(s, "module.")},
    "weights and their means": lambda s: {"state_dict": s, "ema": {k: v + 1 for k, v in s.items()}},
    "a loss beside": lambda s: {"state_dict": {**named(s, "model."), "loss.weight": torch.zeros(3)}},
    "the constant mask": lambda s: {**s, "attn_mask": torch.zeros(77, 77)},
    "OpenAI's facts, in part": lambda s: {
        **s,
        "input_resolution": torch.tensor(256),
        "vocab_size": torch.tensor(49408),
    },
}


@pytest.mark.parametrize("how", WRAPPED)
def test_wrappings_come_off(how, state, digest, tmp_path):
    torch.save(WRAPPED[how](state), tmp_path / "w.pt")
    assert Encoder.load(f"{MODEL}:{tmp_path / 'w.pt'}", device="cpu").digest == digest


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt", "tar", "weights", "safetensors"])
def test_the_suffix_does_not_count(suffix, state, digest, tmp_path):
    torch.save(state, tmp_path / f"torch.{suffix}")
    save_file(state, tmp_path / f"safe.{suffix}")
    torch.save(state, tmp_path / f"old.{suffix}", _use_new_zipfile_serialization=False)
    for file in ("torch", "safe", "old"):
        assert Encoder.load(f"{MODEL}:{tmp_path / file}.{suffix}", device="cpu").digest == digest


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read_as_float32(dtype, state, tmp_path):
    save_file({name: value.to(dtype) for name, value in state.items()}, tmp_path / "w.safetensors")
    encoder = Encoder.load(f"{MODEL}:{tmp_path / 'w.safetensors'}", device="cpu", dtype="float32")
    expected = state["visual.proj"].to(dtype).float()
    assert encoder.projection.dtype == torch.float32 and torch.equal(encoder.projection, expected)


class _Holder(torch.nn.Module):
    """A module of the same names as the tensors, as OpenAI's archive is."""

    def __init__(self, state):
        super().__init__()
        for name, value in state.items():
            place, *parts = self, *name.split(".")
            for part in parts[:-1]:
                if part not in dict(place.named_children()):
                    place.add_module(part, torch.nn.Module())
                place = getattr(place, part)
            if value.is_floating_point():
                place.register_parameter(parts[-1], torch.nn.Parameter(value.clone(), requires_grad=False))
            else:
                place.register_buffer(parts[-1], value.clone())

    def forward(self, x: torch.Tensor):
        return x


FACTS = {
    "input_resolution": torch.tensor(256),
    "context_length": torch.tensor(77),
    "vocab_size": torch.tensor(49408),
}


@pytest.fixture(scope="module")
def archive(state, tmp_path_factory):
    file = tmp_path_factory.mktemp("archive") / "ViT.pt"
    half = {name: value.half() for name, value in state.items()}
    torch.jit.script(_Holder({**half, **FACTS})).save(str(file))
    return file


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_openais_archive_is_read_and_computes_quickgelu(archive, state):
    encoder = Encoder.load(f"{MODEL}:{archive}", device="cpu", dtype="float32")
    assert encoder.activation == "quickgelu"
    assert torch.equal(encoder.projection, state["visual.proj"].half().float())
    assert Encoder.load(f"{MODEL}:{archive}", device="cpu", activation="gelu").activation == "gelu"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_openais_table_of_tensors_loses_its_three_facts(state, tmp_path):
    torch.save({**state, **FACTS}, tmp_path / "w.pt")
    assert Encoder.load(f"{MODEL}:{tmp_path / 'w.pt'}", device="cpu").activation == "quickgelu"


class _Runs:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.system, (f"touch {self.folder}/RAN",)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_code_of_an_archive_or_a_pickle_runs(archive, state, tmp_path):
    with zipfile.ZipFile(archive) as own, zipfile.ZipFile(tmp_path / "evil.pt", "w") as evil:
        for part in own.infolist():
            held = own.read(part)
            if part.filename.endswith("data.pkl"):
                held = pickle.dumps({"state_dict": _Runs(tmp_path)}, protocol=2)
            evil.writestr(part.filename, held)
    torch.save({"state_dict": state, "x": _Runs(tmp_path)}, tmp_path / "evil.pth")
    (tmp_path / "evil.bin").write_bytes(pickle.dumps(_Runs(tmp_path)))
    for file in ("evil.pt", "evil.pth", "evil.bin"):
        with pytest.raises(ValueError, match=r"holds more than tensors \(posix.system\)|damaged or holds no weights"):
            Encoder.load(f"{MODEL}:{tmp_path / file}", device="cpu")
    assert not (tmp_path / "RAN").exists()


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ({"loss": np.float64(3)}, "numpy"),
        ({"args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
        ({"model_object": torch.nn.Linear(1, 1)}, "torch.nn.modules.linear.Linear"),
    ],
)
def test_more_than_tensors_is_named(beside, words, state, tmp_path):
    torch.save({"state_dict": {"visual.proj": state["visual.proj"]}, **beside}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"holds more than tensors .* save its state_dict alone") as caught:
        Encoder.load(f"{MODEL}:{tmp_path / 'w.pt'}", device="cpu")
    assert words in str(caught.value) and "weights_only" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "bin"])
@pytest.mark.parametrize(
    ("held", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"\n<html lang='en'>", "web page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "web page"),
        (b'{"error": "Unauthorized"}', "damaged or holds no weights"),
        (b"", "empty"),
        (b"\x1f\x8b\x08\x00rest", "compressed"),
        (b"PK\x03\x04cut", "damaged or holds no weights"),
        (b"\x80\x02}q\x00", "damaged or holds no weights"),
        (b"\xff" * 600, "damaged or holds no weights"),
    ],
)
def test_what_is_no_weights_is_named(held, words, suffix, tmp_path):
    (tmp_path / f"w.{suffix}").write_bytes(held)
    with pytest.raises(ValueError, match=words) as caught:
        Encoder.load(f"{MODEL}:{tmp_path / f'w.{suffix}'}", device="cpu")
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {k: v for k, v in s.items() if k.startswith("visual.")}, "holds a vision tower alone"),
        (
            lambda s: {k.removeprefix("visual."): v for k, v in s.items() if k.startswith("visual.")},
            "holds a vision tower alone",
        ),
        (lambda s: {"fc.weight": torch.zeros(3, 3)}, "no CLIP with a vision transformer but 'fc.weight'"),
        (lambda s: {"visual.attnpool.q": torch.zeros(3), "token_embedding.weight": torch.zeros(3, 3)}, "a ResNet"),
        (lambda s: {k: v for k, v in s.items() if k != "visual.proj"}, "visual.proj is missing"),
        (lambda s: {**s, "extra.weight": torch.zeros(2)}, "extra.weight is unknown"),
        (lambda s: {**s, "visual.proj": s["visual.proj"].T}, r"visual.proj is \[256, 384\], expected \[384, 256\]"),
        (lambda s: {**s, "visual.proj": s["visual.proj"].long()}, "visual.proj holds int64 and no fractions"),
        (lambda s: {**s, "visual.proj": s["visual.proj"] * float("nan")}, "visual.proj is not finite"),
        (lambda s: {**named(s, "student."), **named(s, "teacher.")}, "several models, under 'student.', 'teacher.'"),
        (lambda s: {"a": {"b": torch.zeros(2)}, "c": {"d": torch.zeros(2)}}, "save its state_dict alone"),
        (lambda s: [1, 2], "holds a list"),
        (lambda s: {"state_dict": {}}, "save its state_dict alone"),
    ],
)
def test_what_does_not_fit_is_named_in_a_sentence(change, words, state, tmp_path):
    torch.save(change(state), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=words) as caught:
        Encoder.load(f"{MODEL}:{tmp_path / 'w.pt'}", device="cpu")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_the_model_that_a_file_looks_like_is_named(state, tmp_path):
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=f"its shapes are those of {MODEL}"):
        Encoder.load(f"ViT-M-32:{tmp_path / 'w.safetensors'}", device="cpu")


def test_weights_of_another_side_are_resampled_with_a_warning(state, tmp_path):
    table = torch.randn(1 + 8 * 8, 384)
    save_file({**state, "visual.positional_embedding": table}, tmp_path / "w.safetensors")
    with pytest.warns(UserWarning, match="are for pictures of 256 px .* resampled to 224 px"):
        encoder = Encoder.load(f"{MODEL}:{tmp_path / 'w.safetensors'}", device="cpu")
    assert torch.equal(encoder.visual.positional_embedding[0], table[0])


def test_a_file_that_does_not_say_its_activation_warns_where_there_are_two(tmp_path):
    config = open_clip.get_model_config("ViT-B-32")
    with torch.device("meta"):
        shapes = open_clip.model.CLIP(**config).state_dict()
    torch.save(
        {name: torch.zeros(value.shape, dtype=torch.float16) for name, value in shapes.items()}, tmp_path / "w.pt"
    )
    with pytest.warns(UserWarning, match=r"take ViT-B-32-quickgelu:w\.pt"):
        assert Encoder.load(f"ViT-B-32:{tmp_path / 'w.pt'}", device="cpu").activation == "gelu"
    with pytest.raises(Exception, match='encoder="ViT-B-32-quickgelu:FILE"'):
        Encoder.load("ViT-B-32/openai")


# Folders


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": open_clip.get_model_config(MODEL)}))
    return tmp_path


def halves(state):
    names = sorted(state)
    return {k: state[k] for k in names[::2]}, {k: state[k] for k in names[1::2]}


@pytest.mark.parametrize("index", [True, False])
def test_shards_are_joined_and_a_missing_one_is_named(index, folder, state, digest):
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    weight_map = {}
    for file, part in zip(files, halves(state), strict=True):
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert Encoder.load(f"local-dir:{folder}", device="cpu").digest == digest
    (folder / files[1]).unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks model-00002-of-00002\.safetensors"):
        Encoder.load(f"local-dir:{folder}", device="cpu")


@pytest.mark.parametrize(
    "held", ['{"weight_map": {"a": "../secret.bin"}}', '{"weight_map": {"a": "/etc/passwd"}}', "{}"]
)
def test_an_index_leads_to_no_file_elsewhere(held, folder):
    (folder / "model.safetensors.index.json").write_text(held)
    with pytest.raises(ValueError, match="no index of files beside it"):
        Encoder.load(f"local-dir:{folder}", device="cpu")


def test_several_files_that_are_no_shards_are_named(folder, state):
    for file in ("one.pt", "two.pt"):
        torch.save(state, folder / file)
    with pytest.raises(ValueError, match=r"several weight files, one\.pt, two\.pt; keep one"):
        Encoder.load(f"local-dir:{folder}", device="cpu")


@pytest.fixture(scope="module")
def theirs():
    """A small CLIPModel of transformers."""
    import transformers

    torch.manual_seed(1)
    shape = dict(hidden_size=64, intermediate_size=256, num_hidden_layers=3)
    config = transformers.CLIPConfig(
        text_config=dict(**shape, num_attention_heads=1),
        vision_config=dict(**shape, num_attention_heads=1, image_size=56, patch_size=14),
        projection_dim=32,
    )
    return transformers.CLIPModel(config).eval()


@torch.no_grad()
@pytest.mark.parametrize("shard", ["50GB", "300KB"])
def test_a_folder_of_transformers_clip_computes_what_transformers_does(shard, theirs, tmp_path, golden_weights):
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert len(list(tmp_path.glob("*.safetensors"))) > (shard == "300KB")
    encoder = Encoder.load(f"local-dir:{tmp_path}", device="cpu", dtype="float32")
    assert (encoder.activation, encoder.resolution, encoder.depth) == ("quickgelu", 56, 3)
    pixels = encoder.pixels([golden_weights.image(0, 80)])
    vision = theirs.vision_model(pixels)
    torch.testing.assert_close(
        encoder.project(list(encoder.walk(encoder.embed(pixels)))[-1][2][:, 0]),
        theirs.visual_projection(vision.pooler_output),
        atol=1e-5,
        rtol=0,
    )
    ids = encoder.tokenize(["a scratched bolt"])
    words = theirs.text_projection(theirs.text_model(ids).pooler_output)
    torch.testing.assert_close(encoder.text(["a scratched bolt"]), words, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_the_same_clip_from_transformers_has_the_same_digest(tmp_path):
    """open_clip's tensors under transformers' names, as OpenAI's weights lie on the hub."""
    import transformers

    model = transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config=dict(num_hidden_layers=12, patch_size=32), text_config=dict(num_hidden_layers=12)
        )
    )
    model.save_pretrained(tmp_path / "theirs")
    encoder = Encoder.load(f"local-dir:{tmp_path / 'theirs'}", device="cpu", dtype="float32")
    torch.save(encoder.model.state_dict(), tmp_path / "w.pt")
    assert Encoder.load(f"ViT-B-32-quickgelu:{tmp_path / 'w.pt'}", device="cpu").digest == encoder.digest


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ('{"model_type": "llama"}', "model_type is 'llama'"),
        ("[]", "no configuration of a CLIPModel"),
        ('{"model_type": "clip", "vision_config": {}}', "it lacks 'text_config'"),
        ('{"model_type": "clip", "vision_config": {"hidden_act": "relu"}, "text_config": {}}', "activation is 'relu'"),
        ('{"model_type": "clip", "vision_config": {}, "text_config": {"vocab_size": 5}}', "vocabulary has 5 pieces"),
    ],
)
def test_other_folders_of_transformers_are_refused(held, words, tmp_path):
    (tmp_path / "config.json").write_text(held)
    torch.save({}, tmp_path / "model.bin")
    with pytest.raises(ValueError, match=words):
        Encoder.load(f"local-dir:{tmp_path}", device="cpu")


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_checkpoint_ends_in_a_sentence(seed, state, archive, tmp_path):
    draw = np.random.default_rng(seed)
    files = [archive, tmp_path / "new.pt", tmp_path / "old.pt", tmp_path / "safe.safetensors"]
    small = {name: value for name, value in state.items() if value.numel() < 2000}
    torch.save(small, files[1])
    torch.save(small, files[2], _use_new_zipfile_serialization=False)
    save_file(small, files[3])
    held = bytearray(files[seed % 4].read_bytes())
    for place in draw.integers(0, min(len(held), 4000), 8):
        held[place] = draw.integers(256)
    cut = len(held) if seed % 3 else int(draw.integers(len(held)))
    (tmp_path / "w.pt").write_bytes(held[:cut])
    try:
        content(tmp_path / "w.pt")
    except ValueError as error:
        assert "\n" not in str(error) and "weights_only" not in str(error)
