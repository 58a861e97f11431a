"""Learning an adapter on annotated pictures of one data set, to be used on others: one loop for every learned method.

`train` is the whole interface, and `vlad.train` is that function. The loop is accelerate's: it runs on a CPU, on a GPU,
and, started by `accelerate launch`, on several. All randomness of a step comes from the recipe's seed and the step's
number, so that a run which was killed and goes on ends with the weights of an undisturbed one.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vlad.detector import Detector
from vlad.encoders import load as load_encoder
from vlad.encoders.dtypes import INT8
from vlad.encoders.encoder import Encoder
from vlad.learning import recipes
from vlad.learning.data import TrainingSet, gather, gather_normals
from vlad.learning.features import Progress
from vlad.learning.recipes import Recipe
from vlad.learning.run import STORE_EVERY, Run
from vlad.learning.scorer import LearnedScorer
from vlad.methods import method_class


def train(
    recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str],
    data: Any = None,
    out: str | os.PathLike[str] = "adapter.safetensors",
    *,
    split: str | None = None,
    encoder: str | Encoder | None = None,
    device: str | None = None,
    dtype: Any = None,
    progress: Progress | None = None,
    store_every: float = STORE_EVERY,
) -> Detector:
    """Learns an adapter and writes it; returns the detector that has it.

    Beside `out` lies a checkpoint while it runs; the same call goes on from there.

    Args:
        recipe: a shipped one's name, a .toml file, or a dict with its keys.
        data: as in the recipe's `data`, in its place; what lies elsewhere than an installed data set needs its place,
            "mvtec_ad:ROOT".
        out: the adapter's .safetensors file.
        split: of data sets, in the place of the recipe's: "train", "validation" or "test".
        encoder: a name, or an Encoder, in the place of the recipe's.
        device, dtype: of an encoder given by name.
        progress: called with (what, done, in all) as it goes.
        store_every: seconds between two checkpoints within an epoch.

    Raises:
        ValueError: a wrong recipe or data; a method that learns nothing; `out` exists, or its checkpoint belongs to
            other settings; a loss that is not finite.
        FileNotFoundError: the recipe or the data are missing.
    """
    plan = recipes.load(recipe)
    plan = plan if split is None else recipes.load({**plan.to_dict(), "split": split})
    kind = _learning(plan.method)
    out = Path(out)
    if out.suffix != ".safetensors":
        raise ValueError(f"out is {str(out)!r}; an adapter is a file that ends in .safetensors")
    if out.exists():
        raise ValueError(f"{out} exists already; name another file, or delete it to learn anew")
    given = plan.data if data is None else data
    if kind.views:
        found = gather_normals(given, plan.shots, kind.views, plan.seed)
    else:
        found = gather(given, plan.pictures, plan.seed, plan.split, kind.learns_from_labels)
    plan = replace(plan, data=found.sources)
    tower = load_encoder(encoder or plan.encoder, device, dtype)
    if tower.precision == INT8:
        raise ValueError("int8 has no gradients and rounds what is learned from; train in 'bfloat16' or 'float32'")
    return Detector(_learned(kind, plan, found, tower, out, progress, store_every).eval())


def _learned(
    kind: type[LearnedScorer],
    plan: Recipe,
    found: TrainingSet,
    tower: Encoder,
    out: Path,
    progress: Progress | None,
    store_every: float,
) -> LearnedScorer:
    """What the recipe's stages make of it, one after the other; written by the main process alone."""
    checkpoints = [out.with_name(f".{out.name}.{name}") for name in ("checkpoint", "then.checkpoint")]
    scorer: LearnedScorer | None = None
    losses: list[float] = []
    for stage, checkpoint in zip(_stages(kind, plan), checkpoints, strict=False):
        before, scorer = scorer, _untrained(kind, stage, tower)
        if before is not None:
            scorer.load_learned(before.learned())
        run = Run(scorer, stage, found, checkpoint, store_every)
        main = run.accelerator.is_main_process
        run.prepare(progress if main else None)
        run.train(progress if main else None)
        losses += run.losses
    assert scorer is not None  # there is a first stage
    scorer.trained_on = () if kind.views else found.sources  # normal pictures give no answers away
    if main:
        scorer.save_adapter(out, {**plan.to_dict(), "learned_from": len(found.items), "losses": losses})
        for checkpoint in checkpoints:
            checkpoint.unlink(missing_ok=True)
    run.accelerator.wait_for_everyone()
    return scorer


def _learning(method: str) -> type[LearnedScorer]:
    kind = method_class(method)
    if not issubclass(kind, LearnedScorer):
        raise ValueError(f"{method} has nothing to learn; vlad.load takes it as it is")
    if kind.loss is LearnedScorer.loss:
        raise ValueError(f"how {method} learns is not published; vlad.load takes its authors' file")
    return kind


def _stages(kind: type[LearnedScorer], plan: Recipe) -> list[Recipe]:
    """A recipe that says nothing of stages means all of the method's alike."""
    if plan.then or kind.stages == 1 or "stage" in plan.options:
        return plan.stages()
    return [replace(plan, options={**plan.options, "stage": stage}) for stage in range(1, kind.stages + 1)]


def _untrained(kind: type[LearnedScorer], plan: Recipe, tower: Encoder) -> LearnedScorer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        return kind(tower, resolution=plan.resolution, **plan.options).to(tower.device)
