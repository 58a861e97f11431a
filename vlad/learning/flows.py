"""Random vectors of a learned distribution: a gaussian, bent by planar flows.

Source: "Variational Inference with Normalizing Flows" (arXiv:1505.05770), as Bayes-PFL (arXiv:2503.10080) uses it: the
flows are not held to be invertible. Parameters have the names of its code, xiaozhen228/Bayes-PFL.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Draw(NamedTuple):
    """R draws: what they shift words by [B, R, D]; `divergence` [B, R]; and what the flows did to their density."""

    shift: Tensor
    apart: Tensor
    change: Tensor


def planar_flows(first: Tensor, u: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(draws [B, R, D], logarithms of their densities' change [B, R]) after the flows, one after the other.

    Args:
        first: [B, R, D] draws.
        u, w: [B, flows, D]; b: [B, flows]: each adds u tanh(w . z + b).
    """
    z, change = first, first.new_zeros(first.shape[:2])
    for k in range(u.shape[1]):
        bent = ((z * w[:, k, None]).sum(-1) + b[:, k, None]).tanh()  # [B, R]
        stretch = (1 - bent.square()) * (w[:, k] * u[:, k]).sum(-1, keepdim=True)
        change = change + ((1 + stretch).abs() + 1e-5).log()
        z = z + u[:, k, None] * bent[..., None]
    return z, change


def divergence(mean: Tensor, variance: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """[B, R] log densities of draws [B, R, D] under their gaussian, less those of what became of them under the unit
    one, without the constants that both have."""
    mean, variance = mean[:, None], variance[:, None]
    own = (variance.log() + (first - mean).square() / variance).sum(-1)
    return (last.square().sum(-1) - own) / 2


def perceptron(inner: int, hidden: int, outer: int) -> nn.ModuleDict:
    """Three layers with softplus between them, named as in the official code; their first weights are small."""
    steps = [
        nn.Linear(inner, hidden),
        nn.Softplus(),
        nn.Linear(hidden, hidden),
        nn.Softplus(),
        nn.Linear(hidden, outer),
    ]
    return nn.ModuleDict({"module": nn.Sequential(*steps)})


class Gaussian(nn.Module):
    """Mean and variance [B, D] by a perceptron each, from rows [B, D]."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.weight_mean, self.weight_log_variance = (perceptron(width, hidden, width) for _ in range(2))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.weight_mean["module"](rows), (0.5 * self.weight_log_variance["module"](rows)).exp()


class PictureFlows(nn.Module):
    """The flows of the context: linear layers make them of each picture's embedding."""

    def __init__(self, width: int, flows: int):
        super().__init__()
        self.amor_u, self.amor_w = (nn.Linear(width, flows * width) for _ in range(2))
        self.amor_b = nn.Linear(width, flows)

    def forward(self, first: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        u, w = (layer(image).unflatten(-1, (-1, image.shape[-1])) for layer in (self.amor_u, self.amor_w))
        return planar_flows(first, u, w, self.amor_b(image))


class StateFlows(nn.Module):
    """The flows of one state, the same for every row, and the row that its gaussian is made of."""

    def __init__(self, width: int, flows: int):
        super().__init__()
        self.amor_u = nn.Parameter(torch.randn(1, flows, width, 1))
        self.amor_w = nn.Parameter(torch.randn(1, flows, 1, width))
        self.amor_b = nn.Parameter(torch.randn(1, flows, 1, 1))
        self.state = nn.Parameter(torch.randn(1, width))

    def forward(self, first: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        return planar_flows(first, self.amor_u[..., 0], self.amor_w[:, :, 0], self.amor_b[..., 0, 0])


def drawn(gaussian: Gaussian, flows: PictureFlows | StateFlows, row: Tensor, noise: Tensor) -> Draw:
    """By noise [B or 1, R, D] of the gaussian and the flows that belong to rows [B, D]."""
    mean, variance = gaussian(row)
    first = mean[:, None] + variance.sqrt()[:, None] * noise
    last, change = flows(first, row)
    return Draw(last, divergence(mean, variance, first, last), change)
