"""The optimisers that recipes name, and how fast they learn at each step."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

WARM = 100  # steps until "warm-cosine" has reached the full rate
STABLE_EPSILON = 1e-10


class StableAdamW(Optimizer):
    """AdamW with amsgrad whose step in a tensor shrinks where its gradients are larger than their memory says.

    Source: arXiv:2304.13013, with the memory of the largest squares as INP-Former (arXiv:2503.02424) uses it.
    """

    def __init__(self, parameters: Any, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.0):
        super().__init__(parameters, {"lr": 1e-3, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step with the gradients as they are; `closure` is never called."""
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state, gradient = self.state[parameter], parameter.grad
                if not state:
                    state["step"] = torch.zeros(())
                    state.update({key: torch.zeros_like(parameter) for key in ("mean", "square", "largest")})
                state["step"] += 1
                count = int(state["step"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                state["mean"].lerp_(gradient, 1 - first)
                state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
                torch.maximum(state["largest"], state["square"], out=state["largest"])
                spread = state["largest"].sqrt().div_(math.sqrt(1 - second**count)).add_(STABLE_EPSILON)
                surprise = (gradient / spread).square_().mean().sqrt_().clamp_min_(1)
                rate = group["lr"] / (1 - first**count)
                parameter.addcdiv_(state["mean"] / surprise, spread, value=-rate)


def groups_by_rate(module: nn.Module, rate: float, factor: Callable[[str], float]) -> list[dict[str, Any]]:
    """What an optimiser is built from: `factor` says, by a parameter's name, how many times `rate` it learns at."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(factor(name), []).append(parameter)
    return [{"params": part, "lr": times * rate} for times, part in groups.items()]


OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "stable_adamw": StableAdamW,
}


def constant(epoch: int, epochs: int, step: int, steps: int) -> float:
    """1, always."""
    return 1.0


def cosine(epoch: int, epochs: int, step: int, steps: int) -> float:
    """From 1 down to near 0, one value an epoch."""
    return _half_wave(epoch, epochs)


def warm_cosine(epoch: int, epochs: int, step: int, steps: int) -> float:
    """From 0 up to 1 within the first WARM steps of all, then down to near 0."""
    done, total = epoch * steps + step, epochs * steps
    return done / (WARM - 1) if done < WARM else _half_wave(done - WARM, total - WARM)


def tenth_cosine(epoch: int, epochs: int, step: int, steps: int) -> float:
    """From 0 up to 1 in the first tenth of all steps, then down to near 0; as transformers' cosine with warm-up."""
    done, total = epoch * steps + step, epochs * steps
    warm = total // 10
    return done / warm if done < warm else _half_wave(done - warm, total - warm)


def _half_wave(done: int, total: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * done / total))


SCHEDULES = {"constant": constant, "cosine": cosine, "warm-cosine": warm_cosine, "tenth-cosine": tenth_cosine}
