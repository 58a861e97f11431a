"""The training loop: what it writes, that it learns, and that a killed run ends like an undisturbed one."""

import errno
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from small_sets import write_category
from typer.testing import CliRunner

import vlad
from vlad.cli import app
from vlad.datasets import folder
from vlad.evaluate import evaluate
from vlad.files import resource
from vlad.learning import adapter_file
from vlad.learning.run import Run
from vlad.learning.train import train

RECIPE = {"method": "anomalyclip", "resolution": 64, "epochs": 2, "batch_size": 4, "seed": 3}


@pytest.fixture
def data(tmp_path):
    write_category(tmp_path / "set" / "nut", normals=5, anomalous=6)
    return f"folder:{tmp_path / 'set'}"


def tensors(file):
    return adapter_file.read(file).tensors


def check_equal(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


def test_what_is_learned_lowers_the_loss_and_loads_with_all_it_needs(data, tiny_encoder, tmp_path):
    made = train({**RECIPE, "epochs": 12}, data, tmp_path / "a.safetensors", encoder=tiny_encoder)
    facts = adapter_file.read(tmp_path / "a.safetensors").facts
    assert facts["recipe"]["losses"][-1] < 0.9 * facts["recipe"]["losses"][0] and len(facts["recipe"]["losses"]) == 12
    assert facts["trained_on"] == ["set"] and facts["recipe"]["learned_from"] == 11
    loaded = vlad.load("anomalyclip", adapter=tmp_path / "a.safetensors", encoder=tiny_encoder)
    picture = np.random.default_rng(0).integers(0, 255, (50, 60, 3)).astype(np.uint8)
    one, other = made.predict(picture), loaded.predict(picture)
    assert one.score == other.score and (one.map == other.map).all() and loaded.resolution == 64
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["a.safetensors"], "no checkpoint is left"


def test_the_same_seed_gives_the_same_weights_and_another_one_others(data, tiny_encoder, tmp_path):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.manual_seed(len(name) if name == "a" else 99)
        train({**RECIPE, "seed": seed}, data, tmp_path / f"{name}.safetensors", encoder=tiny_encoder)
    a, b, c = (tensors(tmp_path / f"{name}.safetensors") for name in "abc")
    check_equal(a, b)
    assert any(not torch.equal(a[key], c[key]) for key in a)
    torch.manual_seed(0)
    train({**RECIPE, "epochs": 1}, data, tmp_path / "d.safetensors", encoder=tiny_encoder)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"


@pytest.mark.parametrize("moment", ["epoch", "encoding"])
def test_killed_in_the_middle_it_goes_on_to_the_weights_of_an_undisturbed_run(data, tiny_encoder, tmp_path, moment):
    code = f"""
        import os, signal, torch
        from vlad.learning.train import train
        seen = 0
        def progress(what, done, total):
            global seen
            seen += what.startswith({moment!r})
            if seen == {2 if moment == "encoding" else 4}:
                os.kill(os.getpid(), signal.SIGKILL)
        torch.set_num_threads(1)
        train({RECIPE!r}, {data!r}, {str(tmp_path / "killed.safetensors")!r}, dtype="float32", device="cpu",
              progress=progress, store_every=0)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env={**os.environ})
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "killed.safetensors").exists()
    assert (tmp_path / ".killed.safetensors.checkpoint").exists() == (moment == "epoch")
    stages = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(RECIPE, data, tmp_path / "killed.safetensors", encoder=tiny_encoder, progress=lambda *s: stages.append(s))
        train(RECIPE, data, tmp_path / "whole.safetensors", encoder=tiny_encoder)
    finally:
        torch.set_num_threads(threads)
    check_equal(tensors(tmp_path / "killed.safetensors"), tensors(tmp_path / "whole.safetensors"))
    first = {what.partition(" ")[0]: done for what, done, _ in reversed(stages)}
    if moment == "epoch":
        assert first == {"epoch": 4}, "three of six steps were kept, and nothing is encoded again"
    else:
        assert first["encoding"] > 4, "the first batch is on disk"


def test_features_are_encoded_once_for_all_runs_on_the_same_pictures(data, tiny_encoder, tmp_path, monkeypatch):
    train(RECIPE, data, tmp_path / "a.safetensors", encoder=tiny_encoder)
    monkeypatch.setattr(type(tiny_encoder), "pixels", None)
    train({**RECIPE, "epochs": 3}, data, tmp_path / "b.safetensors", encoder=tiny_encoder)
    with pytest.raises(TypeError):
        train({**RECIPE, "resolution": 48}, data, tmp_path / "c.safetensors", encoder=tiny_encoder)


@pytest.mark.parametrize("cut", ["0.bin", "1.bin", "masks.bin", "words.bin", "done.bin", "shapes.json"])
def test_what_a_cut_file_of_features_has_lost_is_encoded_again(data, tiny_encoder, tmp_path, monkeypatch, cut):
    monkeypatch.setenv("VLAD_CACHE", str(tmp_path / "cache"))
    train(RECIPE, data, tmp_path / "a.safetensors", encoder=tiny_encoder)
    (file,) = (tmp_path / "cache").glob(f"features/*/{cut}")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    train(RECIPE, data, tmp_path / "b.safetensors", encoder=tiny_encoder)
    check_equal(tensors(tmp_path / "a.safetensors"), tensors(tmp_path / "b.safetensors"))


def test_a_full_disk_is_one_sentence_before_anything_is_encoded(data, tiny_encoder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"what the encoder makes of the pictures needs .* set VLAD_CACHE to a folder"):
        train({**RECIPE, "resolution": 32}, data, tmp_path / "a.safetensors", encoder=tiny_encoder)


@pytest.mark.parametrize("kind", ["text", "cut", "empty", "foreign", "alien"])
def test_a_checkpoint_that_is_none_is_refused_in_one_sentence(data, tiny_encoder, tmp_path, kind):
    def stop(what, done, total):
        if what.startswith("epoch 2"):
            raise KeyboardInterrupt

    out = tmp_path / "a.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, data, out, encoder=tiny_encoder, progress=stop)
    file = tmp_path / ".a.safetensors.checkpoint"
    whole = torch.load(file, weights_only=True)
    match kind:
        case "text":
            file.write_text("hello")
        case "cut":
            file.write_bytes(file.read_bytes()[:900])
        case "empty":
            file.write_bytes(b"")
        case "foreign":
            torch.save({"state_dict": {}}, file)
        case "alien":
            torch.save({**whole, "optimizer": {"state": {}}, "place": 3}, file)
    with pytest.raises(ValueError, match=r"damaged or no checkpoint of ours \(\w+\); delete it"):
        train(RECIPE, data, out, encoder=tiny_encoder)


def test_a_checkpoint_of_other_settings_is_refused(data, tiny_encoder, tmp_path):
    def stop(what, done, total):
        if what.startswith("epoch 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, data, tmp_path / "a.safetensors", encoder=tiny_encoder, progress=stop)
    with pytest.raises(ValueError, match="of a run with other settings or data"):
        train({**RECIPE, "batch_size": 2}, data, tmp_path / "a.safetensors", encoder=tiny_encoder)


def test_a_held_out_part_chooses_the_epoch(data, tiny_encoder, tmp_path, monkeypatch):
    states = []
    finish = Run._finish_epoch

    def watched(run):
        finish(run)
        states.append({key: value.clone() for key, value in run.scorer.learned().items()})

    monkeypatch.setattr(Run, "_finish_epoch", watched)
    recipe = {**RECIPE, "epochs": 4, "validation": 0.4, "optimizer": {"learning_rate": 0.3}}
    train(recipe, data, tmp_path / "a.safetensors", encoder=tiny_encoder)
    losses = adapter_file.read(tmp_path / "a.safetensors").facts["recipe"]["losses"]
    check_equal(tensors(tmp_path / "a.safetensors"), states[int(np.argmin(losses))])


def test_a_cosine_schedule_lowers_the_rate_epoch_by_epoch_towards_its_floor(data, tiny_encoder, tmp_path, monkeypatch):
    rates = []
    monkeypatch.setattr(Run, "_finish_epoch", _then(Run._finish_epoch, lambda run: rates.append(_rate(run))))
    optimizer = {"learning_rate": 0.1, "schedule": "cosine", "floor": 0.02}
    train({**RECIPE, "epochs": 2, "optimizer": optimizer}, data, tmp_path / "a.safetensors", encoder=tiny_encoder)
    assert rates == pytest.approx([0.1, 0.06])


def _then(method, extra):
    def both(run):
        method(run)
        extra(run)

    return both


def _rate(run):
    return run.optimizer.param_groups[0]["lr"]


def test_with_mosaics_pictures_are_encoded_as_they_come(data, tiny_encoder, tmp_path):
    stages = set()
    recipe = {**RECIPE, "epochs": 1, "mosaic": 0.5}
    train(recipe, data, tmp_path / "a.safetensors", encoder=tiny_encoder, progress=lambda *s: stages.add(s[0][:5]))
    assert stages == {"epoch"} and tensors(tmp_path / "a.safetensors")


def test_drawn_pictures_are_enough_to_learn_from(tiny_encoder, tmp_path):
    made = train({**RECIPE, "pictures": 8}, "synthetic", tmp_path / "a.safetensors", encoder=tiny_encoder)
    assert made.trained_on == ("synthetic",)


STAGES = {**RECIPE, "method": "aaclip", "options": {"stage": 1}, "then": {"options": {"stage": 2}, "batch_size": 6}}


@pytest.mark.parametrize("moment", [5, 8])  # steps: three in each epoch of the first stage, two in the second's
def test_a_second_stage_goes_on_from_the_first_also_when_either_was_stopped(data, tiny_encoder, tmp_path, moment):
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    detector = train(STAGES, data, whole, encoder=tiny_encoder)
    assert detector.options["stage"] == 2 and len(adapter_file.read(whole).facts["recipe"]["losses"]) == 4
    first = {**STAGES, "then": {}}
    train(first, data, tmp_path / "first.safetensors", encoder=tiny_encoder)
    for key, value in tensors(tmp_path / "first.safetensors").items():
        assert torch.equal(value, tensors(whole)[key]) == key.startswith("text_adapter"), key
    steps = []

    def stop(what, done, total):
        steps.append(what)
        if sum(step.startswith("epoch") for step in steps) == moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(STAGES, data, stopped, encoder=tiny_encoder, progress=stop, store_every=0)
    train(STAGES, data, stopped, encoder=tiny_encoder)
    check_equal(tensors(whole), tensors(stopped))
    assert not list(tmp_path.glob(".*checkpoint"))


def test_both_stages_read_the_features_that_were_encoded_once(data, tiny_encoder, tmp_path):
    encoded = []
    recipe = {**RECIPE, "method": "bayes_pfl", "epochs": 1}
    told = lambda what, done, total: encoded.append(done) if what == "encoding" else None  # noqa: E731
    train(recipe, data, tmp_path / "a.safetensors", encoder=tiny_encoder, progress=told)
    assert sorted(set(encoded)) == encoded and encoded[-1] == 11, "eleven pictures, once"


def test_a_recipe_that_says_nothing_of_stages_means_all_of_them(data, tiny_encoder, tmp_path):
    plain = {**RECIPE, "method": "aaclip", "epochs": 1}
    detector = train(plain, data, tmp_path / "a.safetensors", encoder=tiny_encoder)
    said = {**plain, "options": {"stage": 1}, "then": {"options": {"stage": 2}}}
    train(said, data, tmp_path / "b.safetensors", encoder=tiny_encoder)
    check_equal(tensors(tmp_path / "a.safetensors"), tensors(tmp_path / "b.safetensors"))
    assert detector.options["stage"] == 2
    train({**plain, "options": {"stage": 1}}, data, tmp_path / "c.safetensors", encoder=tiny_encoder)
    assert len(adapter_file.read(tmp_path / "c.safetensors").facts["recipe"]["losses"]) == 1


def test_what_ships_is_taken_for_tiny_or_by_its_name_and_another_encoder_needs_a_file(tiny_encoder, small_encoder):
    own = vlad.load("april_gan", encoder=tiny_encoder)
    named = vlad.load("april_gan", adapter="april_gan-tiny", encoder=tiny_encoder)
    check_equal(own.scorer.learned(), named.scorer.learned())
    assert own.trained_on == ("synthetic",)
    with pytest.raises(ValueError, match=r"has no adapter that ships for encoder .*: give adapter=FILE"):
        vlad.load("april_gan", encoder=small_encoder)
    with pytest.raises(FileNotFoundError, match="there is no adapter file april_gan-large"):
        vlad.load("april_gan", adapter="april_gan-large", encoder=tiny_encoder)


@pytest.mark.parametrize(
    "name",
    ["aaclip", "anomalyclip", "adaptclip", "adaclip", "april_gan", "clip_ad_plus", "vcpclip", "crane", "sowa"],
)
def test_every_adapter_that_ships_is_small_and_learned_on_drawn_pictures_alone(name, tiny_encoder):
    file = resource(f"adapters/weights/{name}-tiny.safetensors")
    read = adapter_file.read(file)
    assert file.stat().st_size < 1_000_000 and read.facts["trained_on"] == ["synthetic"]
    detector = vlad.load(read.facts["method"], "bolt", encoder=tiny_encoder, adapter=f"{name}-tiny")
    check_equal(detector.scorer.learned(), read.tensors)
    picture = np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype(np.uint8)
    assert 0 <= detector.predict(picture).score <= 1


@pytest.mark.parametrize(
    ("change", "out", "said"),
    [
        ({"method": "winclip"}, "a.safetensors", "winclip has nothing to learn"),
        ({}, "a.pth", "ends in .safetensors"),
        ({}, "there.safetensors", "exists already"),
        ({"options": {"n_context": 3}}, "a.safetensors", "n_context"),
        ({"optimizer": {"learning_rate": 1e30}}, "a.safetensors", r"the loss is .* in epoch 1; lower"),
        ({"data": ["mvtec_ad"]}, "a.safetensors", "lacks its folder; write mvtec_ad:ROOT"),
    ],
)
def test_wrong_calls_say_what_is_wrong(data, tiny_encoder, tmp_path, change, out, said):
    (tmp_path / "there.safetensors").touch()
    with pytest.raises((ValueError, TypeError), match=said):
        train({**RECIPE, **change}, None if "data" in change else data, tmp_path / out, encoder=tiny_encoder)


def test_what_was_trained_on_a_data_set_is_not_measured_on_it_unless_forced(data, tiny_encoder, tmp_path):
    made = train({**RECIPE, "epochs": 1}, data, tmp_path / "a.safetensors", encoder=tiny_encoder)
    samples = folder(tmp_path / "set")
    loaded = vlad.load("anomalyclip", adapter=tmp_path / "a.safetensors", encoder=tiny_encoder)
    for detector in (made, loaded):
        with pytest.raises(ValueError, match="was trained on set"):
            evaluate(detector, samples, bootstrap=0)
    loaded.save(tmp_path / "detector.safetensors")
    again = vlad.load(tmp_path / "detector.safetensors", encoder=tiny_encoder)
    with pytest.raises(ValueError, match="was trained on set"):
        evaluate(again, samples, bootstrap=0)
    assert evaluate(again, samples, bootstrap=0, force=True).rows


def test_the_command_learns_an_adapter_that_score_takes(data, tmp_path):
    (tmp_path / "mine.toml").write_text('method = "anomalyclip"\nencoder = "tiny"\nresolution = 64\nepochs = 1\n')
    out = str(tmp_path / "a.safetensors")
    done = CliRunner().invoke(app, ["train", str(tmp_path / "mine.toml"), "--data", data, "--out", out])
    assert done.exit_code == 0 and "learned on set in" in done.stdout, done.output
    picture = next((tmp_path / "set" / "nut" / "test" / "spot").iterdir())
    scored = CliRunner().invoke(app, ["score", str(picture), "--method", "anomalyclip", "--adapter", out])
    assert scored.exit_code == 0 and picture.name in scored.stdout, scored.output
    again = CliRunner().invoke(app, ["train", str(tmp_path / "mine.toml"), "--data", data, "--out", out])
    assert again.exit_code == 2 and "exists already" in again.stderr


@pytest.mark.slow
def test_two_processes_learn_one_adapter_together(data, tmp_path):
    (tmp_path / "mine.toml").write_text('method = "anomalyclip"\nencoder = "tiny"\nresolution = 64\nepochs = 12\n')
    out = tmp_path / "a.safetensors"
    command = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "vlad.cli", "train"]
    command += [str(tmp_path / "mine.toml"), "--data", data, "--out", str(out), "--device", "cpu"]
    done = subprocess.run([sys.executable, *command], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    assert done.returncode == 0 and done.stdout.count(b"learned on set") == 1, done.stderr.decode()
    losses = adapter_file.read(out).facts["recipe"]["losses"]
    assert len(losses) == 12 and losses[-1] < losses[0]
