"""Arithmetic on anomaly maps: float32 [B, h, w], one score per position, covering the whole picture."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.07  # of the softmax over the two states (WinCLIP and most of its successors)


def state_logits(embeddings: Tensor, prototypes: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """[..., 2]: cosine similarities with the two states over the temperature.

    Args:
        embeddings: [..., D], any length.
        prototypes: [2, D], row 0 normal, row 1 anomalous, any length.
        temperature: divides the cosines.
    """
    return F.normalize(embeddings.float(), dim=-1) @ F.normalize(prototypes.float(), dim=-1).T / temperature


def anomaly_probability(embeddings: Tensor, prototypes: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """[...] in [0, 1]: the anomalous share of the softmax over the two states' logits; arguments as there.

    Source: WinCLIP (arXiv:2303.14814), eq. 1.
    """
    return state_logits(embeddings, prototypes, temperature).softmax(-1)[..., 1]


def to_size(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, *size] from [B, h, w], bilinear, align_corners=False, not antialiased."""
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def smooth_map(grid: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """[B, *size] from [B, rows, columns]: bilinear, then `gaussian`."""
    return gaussian(to_size(grid, size), sigma)


def gaussian(maps: Tensor, sigma: float) -> Tensor:
    """[B, h, w] smoothed with a gaussian of sigma px, cut at 4 sigma, mirrored border; 0 leaves them as they are."""
    from scipy import ndimage

    if not sigma:
        return maps
    smooth = [ndimage.gaussian_filter(one, sigma) for one in maps.detach().float().cpu().numpy()]
    return torch.from_numpy(np.stack(smooth)).to(maps.device)


def top_mean(grid: Tensor, share: float = 0.01) -> Tensor:
    """[B] mean of the largest `share` of [B, ...] values, rounded down, at least one. Source: AnomalyDINO."""
    flat = grid.flatten(1)
    return flat.topk(max(1, int(flat.shape[1] * share)), dim=1).values.mean(1)


def harmonic_mean(terms: list[Tensor]) -> Tensor:
    """Elementwise harmonic mean of tensors >= 0 that broadcast; 0 where any term is 0."""
    stacked = torch.stack(torch.broadcast_tensors(*terms)).clamp_min(0)
    return len(terms) / (1 / stacked).sum(0)  # 1/0 is inf and n/inf is 0, as it should be
