"""What `vlad train` promises of every learned method: losses fall, seeds repeat to the bit, a stopped run goes on."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from vlad.learning import adapter_file
from vlad.learning.scorer import LearnedScorer
from vlad.learning.train import train
from vlad.methods import METHODS, method_class
from vlad.synthetic import sample

KINDS = {name: kind for name in METHODS if issubclass(kind := method_class(name), LearnedScorer)}
# others learn in a tower of their own, or from normal pictures alone: their own tests train them
LEARNED = [name for name, kind in KINDS.items() if not kind.own_encoder and not kind.views]
OPTIONS = {
    "clip_ad": {"plus": True},
    "filo": {"positions": ["top"]},
}  # clip_ad as it is learns nothing; filo reads less


def recipe(method, **changes):
    table = {"method": method, "options": OPTIONS.get(method, {}), "resolution": 64, "batch_size": 4, "seed": 3}
    return {**table, "pictures": 8, "epochs": 2, "optimizer": {"learning_rate": 1e-3}, **changes}


def annotated(place):
    """A category in MVTec's layout: four good pictures to train on; five good and six marked ones to test on."""
    for number in range(15):
        bad = number > 8
        kind = "train/good" if number < 4 else "test/spot" if bad else "test/good"
        drawn = sample(np.random.default_rng(number), 64, defective=bad)
        files = [(drawn.picture, f"{kind}/{number}.png")]
        files += [(drawn.mask.astype(np.uint8) * 255, f"ground_truth/spot/{number}_mask.png")] if bad else []
        for array, name in files:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(place / name)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def check_equal(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


@pytest.mark.parametrize("method", LEARNED)
def test_on_drawn_pictures_the_loss_falls_and_the_same_seed_gives_the_same_weights(method, tiny_encoder, tmp_path):
    made = {}
    for name in "ab":
        torch.manual_seed(ord(name))  # the global generator has no say
        file = tmp_path / f"{name}.safetensors"
        made[name] = train(recipe(method, epochs=4), "synthetic", file, encoder=tiny_encoder)
    losses = adapter_file.read(tmp_path / "a.safetensors").facts["recipe"]["losses"]
    assert losses[-1] < losses[0]
    check_equal(made["a"].scorer.learned(), made["b"].scorer.learned())


@pytest.mark.parametrize("method", LEARNED)
def test_a_run_that_was_stopped_on_an_annotated_set_ends_as_an_undisturbed_one(method, tiny_encoder, tmp_path):
    annotated(tmp_path / "set" / "nut")
    data, stopped = f"folder:{tmp_path / 'set'}", tmp_path / "stopped.safetensors"
    steps = []

    def stop(what, done, total):
        steps.append(what)
        if sum(step.startswith("epoch") for step in steps) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe(method), data, stopped, encoder=tiny_encoder, progress=stop, store_every=0)
    assert not stopped.exists()
    stages = []
    resumed = train(recipe(method), data, stopped, encoder=tiny_encoder, progress=lambda *s: stages.append(s))
    whole = train(recipe(method), data, tmp_path / "whole.safetensors", encoder=tiny_encoder)
    check_equal(resumed.scorer.learned(), whole.scorer.learned())
    assert next(done for what, done, _ in stages if what.startswith("epoch")) == 4, "three of six steps were kept"


@pytest.mark.parametrize("method", LEARNED)
def test_labels_alone_lower_the_loss_over_pictures_where_a_method_has_one(method, tiny_encoder, tmp_path):
    annotated(tmp_path / "set" / "nut")
    shutil.rmtree(tmp_path / "set" / "nut" / "ground_truth")
    data, out = f"folder:{tmp_path / 'set'}", tmp_path / "a.safetensors"
    if not KINDS[method].learns_from_labels:
        with pytest.raises(ValueError, match="with masks in one split; got 5 normal and 0 anomalous ones"):
            train(recipe(method), data, out, encoder=tiny_encoder)
        return
    made = train(recipe(method, epochs=6, batch_size=11), data, out, encoder=tiny_encoder)
    losses = adapter_file.read(out).facts["recipe"]["losses"]
    assert losses[-1] < losses[0] and all(tensor.isfinite().all() for tensor in made.scorer.learned().values())
