"""One door for encoder names: what loads in `vlad.load` loads in every verb, suite and function."""

import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from vlad import Encoder
from vlad.cli import app
from vlad.evaluate.suites import load as load_suite


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """The name of a small DINOv2 with random weights in a folder."""
    import transformers

    size = dict(hidden_size=48, num_hidden_layers=4, num_attention_heads=3, image_size=56, patch_size=14)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.Dinov2Model(transformers.Dinov2Config(**size))
    folder = tmp_path_factory.mktemp("dino")
    model.save_pretrained(folder)
    return f"dino:{folder}"


@pytest.fixture(scope="module")
def data(tmp_path_factory, golden_weights):
    """A data set of one category: four good pictures to learn from, a good and a bad one to test."""
    root = tmp_path_factory.mktemp("data") / "bolt"
    for number, place in enumerate(["train/good"] * 4 + ["test/good", "test/broken"]):
        (root / place).mkdir(parents=True, exist_ok=True)
        Image.fromarray(golden_weights.image(number, 80)).save(root / place / f"{number}.png")
    (root / "ground_truth/broken").mkdir(parents=True)
    Image.new("L", (80, 80), 255).save(root / "ground_truth/broken/5_mask.png")
    return root.parent


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_eval_takes_a_dino(dino, data):
    done = run(
        "eval", "--data", f"folder:{data}", "--method", "patch_memory", "--encoder", dino, "--shots", 2, "--json"
    )
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)


def test_a_suite_takes_a_dino(dino, data, tmp_path):
    suite = tmp_path / "suite.toml"
    lines = ['title = "t"', f'datasets = ["folder:{data}"]', "[[detectors]]", 'method = "patch_memory"']
    suite.write_text("\n".join([*lines, f'encoder = "{dino}"']))
    assert load_suite(str(suite)).detectors
    done = run("eval", suite, "--shots", 2, "--json")
    assert done.exit_code == 0, done.stderr


def test_what_needs_words_says_so_of_a_dino_everywhere(dino, data, tmp_path):
    pack = run("prompts", "check", "winclip", "--name", "bolt", "--encoder", dino)
    learned = run(
        "train", "anomalyclip", "--data", f"folder:{data}", "--encoder", dino, "--out", tmp_path / "a.safetensors"
    )
    exam = run("eval-explain", "--data", f"folder:{data}", "--encoder", dino)
    for done in (pack, learned, exam):
        assert done.exit_code == 2
        assert "knows pictures alone" in done.stderr, done.stderr
        assert "unknown encoder" not in done.stderr


def test_encoder_load_and_the_function_take_every_kind_of_name(dino):
    from vlad import encoders

    for name in ("tiny", dino):
        made = Encoder.load(name, device="cpu", dtype="float32")
        assert isinstance(made, Encoder) and made.digest == encoders.load(name, device="cpu").digest
    assert encoders()[0] == "tiny"
