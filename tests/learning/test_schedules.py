"""Rates over the steps of a run, against the schedulers that the papers' code takes."""

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from vlad.learning import recipes
from vlad.learning.optimizers import SCHEDULES
from vlad.learning.run import Run
from vlad.learning.train import train


def rates_of(scheduler, optimizer, count):
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.fixture
def adam():
    return torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.5)


@pytest.mark.parametrize(("epochs", "steps"), [(5, 9), (1, 3), (30, 7)])
def test_tenth_cosine_is_transformers_cosine_with_a_tenth_to_warm_up(adam, epochs, steps):
    total = epochs * steps
    theirs = rates_of(get_cosine_schedule_with_warmup(adam, int(0.1 * total), total), adam, total)
    ours = [0.5 * SCHEDULES["tenth-cosine"](n // steps, epochs, n % steps, steps) for n in range(total)]
    assert ours == pytest.approx(theirs, abs=1e-9)


def test_halving_is_torchs_multi_step_schedule_on_top_of_any_other(adam, tiny_encoder, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Run, "_advance", lambda run, _: seen.append(run.optimizer.param_groups[0]["lr"]) or 1.0)
    how = {"learning_rate": 0.5, "halve_at": [2, 5]}
    recipe = {"method": "anomalyclip", "resolution": 64, "pictures": 12, "epochs": 2, "batch_size": 4, "optimizer": how}
    train(recipe, "synthetic", tmp_path / "a.safetensors", encoder=tiny_encoder)
    assert seen == rates_of(torch.optim.lr_scheduler.MultiStepLR(adam, [2, 5], 0.5), adam, 6)


def test_the_papers_recipes_have_their_steps():
    assert recipes.load("aaclip").stages()[1].optimizer.halve_at == (16000, 32000)
    first, second = recipes.load("bayes_pfl").stages()
    assert (first.optimizer.schedule, second.optimizer.schedule) == ("tenth-cosine", "constant")


@pytest.mark.parametrize("steps", [[0], [1.5], 3, ["a"], [True]])
def test_steps_that_are_none_are_refused(steps):
    with pytest.raises(ValueError, match=r"optimizer.halve_at: expected a list of numbers of steps, each above 0"):
        recipes.load({"method": "aaclip", "optimizer": {"halve_at": steps}})
