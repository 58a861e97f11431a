"""The loop: steps, epochs, and the checkpoint that a killed run goes on from."""

import hashlib
import io
import json
import logging
import math
import pickle
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlad.files import write_whole
from vlad.learning.data import TrainingSet, mosaic
from vlad.learning.features import FeatureCache, Progress, mask_at
from vlad.learning.optimizers import OPTIMIZERS, SCHEDULES
from vlad.learning.recipes import Recipe
from vlad.learning.scorer import Batch, LearnedScorer

logger = logging.getLogger(__name__)

DAMAGED = (  # what torch raises at bytes that are no checkpoint, and what a foreign one raises where it is used
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    OSError,
)
STORE_EVERY = 30.0  # seconds between two checkpoints within an epoch


class _Loss(nn.Module):
    """The scorer's loss as a forward pass, which is what accelerate distributes."""

    def __init__(self, scorer: LearnedScorer):
        super().__init__()
        self.scorer = scorer

    def forward(self, batch: Batch) -> Tensor:
        return self.scorer.loss(batch)


class Run:
    """One training run.

    Attributes:
        losses: the mean loss of each finished epoch; with a held-out part, of that.
        checkpoint: the file it goes on from.
    """

    def __init__(self, scorer: LearnedScorer, plan: Recipe, data: TrainingSet, checkpoint: Path, store_every: float):
        from accelerate import Accelerator, DistributedDataParallelKwargs

        self.scorer, self.plan, self.data, self.store_every = scorer, plan, data, store_every
        self.checkpoint = checkpoint
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # some official prompts are dead
        self.accelerator = Accelerator(cpu=scorer.encoder.device.type == "cpu", kwargs_handlers=[unused])
        make = OPTIMIZERS[plan.optimizer.name]
        how: dict[str, Any] = {"betas": plan.optimizer.betas, "weight_decay": plan.optimizer.weight_decay}
        optimizer = make(scorer.parameter_groups(plan.optimizer.learning_rate), **how)
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.loss, self.optimizer = self.accelerator.prepare(_Loss(scorer), optimizer)
        self.cached = scorer.frozen_image_side and not plan.mosaic
        self.learning, self.held_out = _split(data, plan)
        self.normals_of = _by_category(data) if scorer.compares else {}
        self.epoch = self.step = 0
        self.losses: list[float] = []
        self.running: list[float] = []
        self.best: dict[str, Tensor] = {}

    def prepare(self, progress: Progress | None) -> None:
        """Encodes what can be encoded once, and goes back to the checkpoint if there is one."""
        if self.cached:
            self.features = FeatureCache(self.scorer, self.data.items)
            self.normals = FeatureCache(self.scorer, self.data.normals) if self.scorer.compares else None
            with self.accelerator.main_process_first():
                self.features.fill(progress)
                if self.normals is not None:
                    self.normals.fill(progress)
        self._resume()

    def train(self, progress: Progress | None) -> None:
        """All epochs that are left; then the scorer has the weights of the last, or of the best held-out one."""
        stored = time.monotonic()
        while self.epoch < self.plan.epochs:
            batches = self._batches(self.epoch)
            while self.step < len(batches):
                self._set_rates(len(batches))
                self.running.append(self._advance(batches[self.step]))
                self.step += 1
                if progress:
                    said = f"epoch {self.epoch + 1} of {self.plan.epochs}, loss {np.mean(self.running[-50:]):.4f}"
                    done = self.epoch * len(batches) + self.step
                    progress(said, done, self.plan.epochs * len(batches))
                if time.monotonic() - stored >= self.store_every:
                    self._store()
                    stored = time.monotonic()
            self._finish_epoch()
            self._store()
        if self.best:
            self.scorer.load_learned(self.best)

    def _advance(self, numbers: Sequence[int]) -> float:
        """One step; its randomness depends on the seed and its place alone."""
        place = self.plan.seed, self.epoch, self.step
        self.loss.train()
        with torch.random.fork_rng(devices=_gpus(self.scorer)):
            torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
            value = self.loss(self._batch(numbers, place))
            self.optimizer.zero_grad()
            self.accelerator.backward(value)
        for group in self.optimizer.param_groups:
            for parameter in group["params"] if "clip" in group else ():
                torch.nn.utils.clip_grad_norm_(parameter, group["clip"])
            if "clip_together" in group:
                torch.nn.utils.clip_grad_norm_(group["params"], group["clip_together"])
        if not math.isfinite(float(value.detach())):
            raise ValueError(
                f"the loss is {float(value.detach())} in epoch {self.epoch + 1}; lower optimizer.learning_rate"
            )
        self.optimizer.step()
        return float(value.detach())

    def _batches(self, epoch: int) -> list[list[int]]:
        """The pictures of each step of an epoch, for this process."""
        order = np.random.default_rng((self.plan.seed, epoch)).permutation(self.learning)
        size = self.plan.batch_size * self.accelerator.num_processes
        whole = [order[start : start + size] for start in range(0, len(order), size)]
        least = size if self.scorer.views else max(2, self.accelerator.num_processes)
        if len(whole) > 1 and len(whole[-1]) < least:
            whole.pop()  # batch norm needs two, and every process one
        return [batch[self.accelerator.process_index :: self.accelerator.num_processes].tolist() for batch in whole]

    def _batch(self, numbers: Sequence[int], seed: tuple[int, ...]) -> Batch:
        rng = np.random.default_rng(seed)
        device = self.scorer.encoder.device
        labels = torch.tensor([self.data.items[number].label for number in numbers], device=device)
        if self.cached:
            features, masks = self.features.rows(numbers), self.features.masks_of(numbers)
            names = self.features.names_of(numbers)
        else:
            features, masks, names = self._online(numbers, rng)
        masks[[not self.data.items[number].marked for number in numbers]] = math.nan
        references = self._references(numbers, rng) if self.scorer.compares else None
        moved = [tuple(part.to(device) for part in parts) for parts in (features, references or ())]
        return Batch(moved[0], masks.to(device), labels, names, moved[1] or None)

    def _online(self, numbers: Sequence[int], rng: np.random.Generator) -> tuple[tuple[Tensor, ...], Tensor, list[str]]:
        """Pictures read and encoded now, some of them as mosaics; a mosaic keeps its first picture's label."""
        side, seen = self.scorer.resolution, []
        for number in numbers:
            if self.plan.mosaic and rng.random() < self.plan.mosaic:
                kind = self.data.items[number].category, self.data.items[number].marked
                same = [n for n in self.learning if (self.data.items[n].category, self.data.items[n].marked) == kind]
                parts = [number, *rng.choice(same, 3)]
                seen.append(mosaic([self.data.items[n].read() for n in parts], 2 * side))
            else:
                seen.append(self.data.items[number].read())
        views = [self.data.items[number].view for number in numbers]
        with torch.no_grad():
            features = self.scorer.image_side(self.scorer.viewed([one.picture for one in seen], views))
        masks = np.stack([mask_at(one.mask, side, self.scorer.mask_share) for one in seen])
        return features, torch.from_numpy(masks).float(), [one.name for one in seen]

    def _references(self, numbers: Sequence[int], rng: np.random.Generator) -> tuple[Tensor, ...]:
        """The image side of a random normal picture of each one's category."""
        chosen = [int(rng.choice(self.normals_of[self.data.items[number].category])) for number in numbers]
        if self.cached and self.normals is not None:
            return self.normals.rows(chosen)
        with torch.no_grad():
            pictures = [self.data.normals[n].read().picture for n in chosen]
            return self.scorer.image_side(self.scorer.pixels(pictures))

    def _set_rates(self, steps: int) -> None:
        """The rates of the step that comes, of an epoch of so many."""
        how, done = self.plan.optimizer, self.epoch * steps + self.step
        share = SCHEDULES[how.schedule](self.epoch, self.plan.epochs, self.step, steps)
        share *= 0.5 ** sum(done >= at for at in how.halve_at)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            floor = min(how.floor, peak)
            group["lr"] = floor + (peak - floor) * share

    @torch.no_grad()
    def _finish_epoch(self) -> None:
        """Counts the epoch; with a held-out part, keeps its weights if that part's loss is the lowest so far."""
        mean = torch.tensor(float(np.mean(self.running)), device=self.accelerator.device)
        value = float(self.accelerator.reduce(mean, "mean"))  # of all processes' pictures
        if len(self.held_out):
            self.loss.eval()
            size, held = self.plan.batch_size, self.held_out
            parts = [held[start : start + size].tolist() for start in range(0, len(held), size)]
            value = float(np.mean([self.scorer.loss(self._batch(part, (self.plan.seed, 0))).item() for part in parts]))
            if value <= min([value, *self.losses]):
                self.best = {key: tensor.clone() for key, tensor in self.scorer.learned().items()}
        logger.info("epoch %d of %d: loss %.4f", self.epoch + 1, self.plan.epochs, value)
        self.losses.append(value)
        self.epoch, self.step, self.running = self.epoch + 1, 0, []

    # The checkpoint

    def _fingerprint(self) -> str:
        scorer = self.scorer
        facts = [self.plan.to_dict(), scorer.options, scorer.encoder.digest, scorer.encoder.precision]
        keys = [item.key for item in (*self.data.items, *self.data.normals)]
        return hashlib.sha256(json.dumps([facts, keys], sort_keys=True).encode()).hexdigest()

    def _store(self) -> None:
        if not self.accelerator.is_main_process:
            return
        state = {
            "fingerprint": self._fingerprint(),
            "learned": self.scorer.learned(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "place": [self.epoch, self.step],
            "losses": self.losses,
            "running": self.running,
        }
        torch.save(state, content := io.BytesIO())
        write_whole(self.checkpoint, content.getvalue())

    def _resume(self) -> None:
        if not self.checkpoint.exists():
            return
        try:
            state = torch.load(self.checkpoint, map_location=self.scorer.encoder.device, weights_only=True)
            other = state["fingerprint"] != self._fingerprint()
        except DAMAGED as error:
            raise self._unusable(error) from None
        if other:
            raise ValueError(
                f"{self.checkpoint} is of a run with other settings or data; go on with those, or delete it"
            )
        try:
            self.scorer.load_learned(state["learned"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.best, (self.epoch, self.step) = state["best"], state["place"]
            self.losses, self.running = list(state["losses"]), list(state["running"])
        except DAMAGED as error:
            raise self._unusable(error) from None
        logger.info("goes on in epoch %d, step %d", self.epoch + 1, self.step + 1)

    def _unusable(self, error: Exception) -> ValueError:
        what = f"{self.checkpoint} is damaged or no checkpoint of ours ({type(error).__name__})"
        return ValueError(f"{what}; delete it to learn from the start")


def _gpus(scorer: LearnedScorer) -> list[int]:
    device = scorer.encoder.device
    return [device.index or 0] if device.type == "cuda" else []


def _split(data: TrainingSet, plan: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """(numbers to learn from, numbers held out), of each category and label the same share."""
    numbers = np.arange(len(data.items))
    if not plan.validation:
        return numbers, numbers[:0]
    groups: dict[tuple[str, int], list[int]] = {}
    for number, item in enumerate(data.items):
        drawn = item.category.startswith("synthetic/")
        groups.setdefault(("" if drawn else item.category, item.label), []).append(number)
    rng = np.random.default_rng(plan.seed)
    held = [n for group in groups.values() for n in rng.permutation(group)[: round(len(group) * plan.validation)]]
    return np.setdiff1d(numbers, held), np.sort(np.array(held, dtype=int))


def _by_category(data: TrainingSet) -> dict[str, list[int]]:
    """Category -> its normals' numbers."""
    found: dict[str, list[int]] = {}
    for number, normal in enumerate(data.normals):
        found.setdefault(normal.category, []).append(number)
    if missing := sorted({item.category for item in data.items} - set(found)):
        raise ValueError(f"{missing[0]} has no normal pictures in its train split, which this method compares with")
    return found
