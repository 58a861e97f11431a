import json
import os
import socket
import subprocess
import sys
import time

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

import vlad
from vlad import Encoder, WeightsError

ABSENT = "ViT-B-16-plus-240/laion400m_e32"


def test_missing_weights_say_what_to_download_from_which_tag_and_where_to_put_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError) as caught:
        Encoder.load(ABSENT)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("laion400m_e32", "ViT-B-16-plus-240", "HF_HUB_OFFLINE", "open_clip_model.safetensors", "https://"):
        assert part in message
    assert 'encoder="ViT-B-16-plus-240:FILE"' in message


def test_an_unreachable_hub_is_reported_in_seconds():
    """A closed port on this machine stands for the hub; its client alone would retry for half a minute."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    code = "import open_clip, time, vlad; vlad.Encoder.load('tiny'); s = time.time()\n"  # imports are not its time
    code += f"try: vlad.Encoder.load({ABSENT!r})\n"
    code += "except vlad.WeightsError as e: print(time.time() - s, e)"
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert "could not be fetched" in done.stdout, done.stderr
    assert float(done.stdout.split()[0]) < 25, f"took {time.monotonic() - started:.0f} s in all"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ViT-B-16-pluss-240/laion400m_e32", "close: ViT-B-16-plus-240"),
        ("ViT-B-32/nonsense", "known tags: openai"),
        ("RN50/openai", "ResNet"),
        ("ViT-B-16-SigLIP/webli", "timm"),
        ("ViT-B-32/random:x", "whole number"),
        ("", "unknown encoder ''"),
        ("ViT-B-32", "names no weights"),
        ("w.safetensors", "put its open_clip model in front"),
        ("hf-hub:", "owner"),
    ],
)
def test_wrong_names_are_refused_with_the_way_out(name, words):
    with pytest.raises(ValueError, match=words):
        Encoder.load(name)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        Encoder.load(f"ViT-B-32:{tmp_path / 'absent.pt'}")
    with pytest.raises(FileNotFoundError, match=r"open_clip_config\.json is missing"):
        Encoder.load(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no weights"):
        Encoder.load(f"local-dir:{tmp_path}")


def test_the_same_weights_give_the_same_digest_from_any_file(small_folder, small_encoder, tmp_path):
    tensors = load_file(small_folder / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text((small_folder / "open_clip_config.json").read_text())
    torch.save(tensors, tmp_path / "weights.pt")
    assert Encoder.load(f"local-dir:{tmp_path}", device="cpu").digest == small_encoder.digest
    tensors["visual.proj"][0, 0] += 1e-3
    torch.save(tensors, tmp_path / "weights.pt")
    assert Encoder.load(f"local-dir:{tmp_path}", device="cpu").digest != small_encoder.digest


def test_weights_that_do_not_fit_are_refused(small_folder, tmp_path):
    config = json.loads((small_folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["layers"] = 12
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(load_file(small_folder / "open_clip_model.safetensors"), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="do not fit"):
        Encoder.load(f"local-dir:{tmp_path}")


def test_a_checkpoint_file_of_a_named_model_loads_without_the_network(tmp_path):
    model = open_clip.model.CLIP(**open_clip.get_model_config("ViT-S-32-alt"))
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "w.pt")
    encoder = Encoder.load(f"ViT-S-32-alt:{tmp_path / 'w.pt'}", device="cpu", dtype="float32")
    assert torch.equal(encoder.visual.proj, model.visual.proj)


def test_random_weights_warn_and_depend_on_the_seed_alone():
    with pytest.warns(UserWarning, match="untrained weights"):
        first = Encoder.load("ViT-S-32-alt/random:1", device="cpu")
    with pytest.warns(UserWarning):
        again, other = (Encoder.load(f"ViT-S-32-alt/random:{seed}", device="cpu") for seed in (1, 2))
    assert first.digest == again.digest != other.digest
    assert torch.equal(first.visual.proj, again.visual.proj)
    assert not torch.equal(first.visual.proj, other.visual.proj)
    assert torch.isfinite(first.text(["a bolt"])).all()


def test_the_list_of_encoders_starts_with_tiny_and_holds_only_walkable_ones():
    names = vlad.encoders()
    assert names[0] == "tiny"
    assert "ViT-L-14-336/openai" in names and ABSENT in names
    assert not [n for n in names if n.startswith(("RN50", "ViT-B-16-SigLIP", "coca"))]


@pytest.mark.parametrize(("file", "content"), [("w.safetensors", b"garbage" * 9), ("w.pt", b"garbage"), ("w.bin", b"")])
def test_damaged_weights_are_named_in_one_sentence(small_folder, tmp_path, file, content):
    (tmp_path / "open_clip_config.json").write_text((small_folder / "open_clip_config.json").read_text())
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file} is damaged or holds no weights") as caught:
        Encoder.load(f"local-dir:{tmp_path}")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_cfg": {"embed_dim": 4}}'])
def test_a_wrong_configuration_is_named(tmp_path, content):
    (tmp_path / "open_clip_config.json").write_text(content)
    (tmp_path / "w.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"open_clip_config\.json is no open_clip configuration"):
        Encoder.load(f"local-dir:{tmp_path}")


def test_a_missing_tokenizer_of_the_hub_is_a_weights_error_at_once(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match="hf download"):
        Encoder.load("xlm-roberta-base-ViT-B-32/random:0")


def test_another_colour_mean_makes_another_encoder(small_folder, small_encoder, tmp_path):
    config = json.loads((small_folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(load_file(small_folder / "open_clip_model.safetensors"), tmp_path / "w.safetensors")
    assert Encoder.load(f"local-dir:{tmp_path}", device="cpu").digest != small_encoder.digest
