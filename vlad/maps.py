"""Arithmetic on anomaly maps: float32 [B, h, w], one score per position, covering the whole picture."""

import math
from collections.abc import Sequence
from functools import lru_cache
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.07  # of the softmax over the two states (WinCLIP and most of its successors)
CLIP_TEMPERATURE = 0.01  # CLIP's own, as trained: its logit scale is 100

LARGEST_SIGMA = 256.0  # px; wider than any map has structure, and scipy's window would fill the memory

CERTAIN = 3.0  # temperatures between two cosines at which a softmax of them is sure of 95 %


def state_logits(embeddings: Tensor, prototypes: Tensor, temperature: float | Tensor = TEMPERATURE) -> Tensor:
    """[..., 2]: cosine similarities with the two states over the temperature.

    Args:
        embeddings: [..., D], any length.
        prototypes: [2, D], row 0 normal, row 1 anomalous, any length; or [B, 2, D], a pair for each of [B, N, D].
        temperature: divides the cosines.
    """
    return F.normalize(embeddings.float(), dim=-1) @ F.normalize(prototypes.float(), dim=-1).mT / temperature


def picture_logits(embeddings: Tensor, prototypes: Tensor, temperature: float | Tensor = TEMPERATURE) -> Tensor:
    """[B, 2]: `state_logits` of one embedding a picture, [B, D], with prototypes [2, D] or each one's own [B, 2, D]."""
    return state_logits(embeddings[:, None], prototypes, temperature)[:, 0]


def anomaly_probability(
    embeddings: Tensor, prototypes: Tensor, temperature: float = TEMPERATURE, negative: float = 1.0
) -> Tensor:
    """[...] in [0, 1]: the anomalous share of the softmax over the two states' logits; arguments as there.

    `negative` multiplies the normal state's logit before: the share is the sigmoid of anomalous - negative * normal.

    Source: WinCLIP (arXiv:2303.14814), eq. 1; the weighted difference after CLAP (arXiv:2411.07546).
    """
    logits = state_logits(embeddings, prototypes, temperature)
    return (logits * logits.new_tensor([negative, 1.0])).softmax(-1)[..., 1]


def feature_surgery(embeddings: Tensor, texts: Tensor, sharpness: float) -> Tensor:
    """[B, T, K]: how much more a token is like each of several texts than like all of them together.

    A text counts in the measure in which the class token is like it; of that, the mean over the texts is redundant.
    Of two texts the second one's column is p_1 c_1 - p_0 c_0, with cosines c and the class token's probabilities p.

    Args:
        embeddings: [B, T, D] of the class token and the patches, any length.
        texts: [K, D], any length.
        sharpness: multiplies the class token's cosines before their softmax.

    Source: CLIP Surgery (arXiv:2304.05653), feature surgery, without building its [B, T, K, D].
    """
    cosines = state_logits(embeddings, texts, 1.0)  # [B, T, K]
    weights = (sharpness * cosines[:, :1]).softmax(-1)
    similarity = cosines * weights / weights.mean(-1, keepdim=True)
    return similarity - similarity.mean(-1, keepdim=True)


def surgery_probability(maps: Tensor) -> Tensor:
    """[...] in [0, 1] of the anomalous column of a `feature_surgery` of two states, as a softmax of both would give it.

    Where the class token is undecided the column is half the difference of the cosines.
    """
    return (2 * maps / TEMPERATURE).sigmoid()


def to_size(maps: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """[B, *size] from [B, h, w], bilinear, not antialiased."""
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=align_corners)[:, 0]


def rescaled(values: Tensor) -> Tensor:
    """[n] brought to [0, 1] by the smallest and the largest of them; zeros where all are the same."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)


def rescaled_together(parts: Sequence[Tensor]) -> list[Tensor]:
    """`rescaled`, of the values of several tensors [n, ...] as if they were one."""
    return list(rescaled(torch.cat(list(parts))).split([len(part) for part in parts]))


def smooth_map(grid: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """[B, *size] from [B, rows, columns]: bilinear, then `gaussian`, as one matrix for each of the two directions."""
    return _spread(grid, size, sigma)


def checked_sigma(sigma: float) -> float:
    """The width of a map's smoothing; ValueError where it is none."""
    if isinstance(sigma, bool) or not isinstance(sigma, Real) or not 0 <= sigma <= LARGEST_SIGMA:
        raise ValueError(f"sigma is {sigma!r:.20}; expected pixels, 0 to {LARGEST_SIGMA:g}")
    return float(sigma)


def gaussian(maps: Tensor, sigma: float) -> Tensor:
    """[B, h, w] smoothed with a gaussian of sigma px, cut at 4 sigma, mirrored border; 0 leaves them as they are."""
    return _spread(maps, (maps.shape[-2], maps.shape[-1]), sigma) if sigma else maps


def _spread(maps: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    down, across = (
        _weights(*lengths, sigma).to(maps.device) for lengths in zip(maps.shape[-2:], size, strict=True)
    )  # [h, rows], [w, columns]
    return down @ maps.detach().float() @ across.T


@lru_cache(64)
def _weights(known: int, length: int, sigma: float) -> Tensor:
    """[length, known]: what each of `known` values in a row adds to each place of a row that is enlarged and smoothed.

    Smoothing and enlarging are linear, so what scipy makes of every unit vector says all of it.
    """
    from scipy import ndimage

    unit = torch.eye(known, dtype=torch.float64)[None]  # [1, known, known]
    larger = F.interpolate(unit, length, mode="linear", align_corners=False)[0].T.numpy()  # [length, known]
    return torch.from_numpy(ndimage.gaussian_filter1d(larger, sigma, axis=0) if sigma else larger).float()


def enlarge(logits: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """[B, K, *size] from logits [B, N, K], bilinear with the corners' centres aligned."""
    grids = logits.mT.contiguous().unflatten(-1, grid)  # torch enlarges what lies channel by channel much faster
    return F.interpolate(grids, size, mode="bilinear", align_corners=True)


def blurred(maps: Tensor, side: int, sigma: float) -> Tensor:
    """[B, h, w] smoothed with a gaussian of sigma px that is cut to `side` px, mirrored border.

    Where a map is too small to be mirrored that far, the gaussian is cut to what it allows. As torchvision and kornia.
    """
    reach = min(side // 2, *(length - 1 for length in maps.shape[-2:]))
    weights = (-0.5 * (torch.arange(-reach, reach + 1, device=maps.device) / sigma).square()).exp()
    kernel = torch.outer(weights, weights) / weights.sum().square()
    padded = F.pad(maps[:, None], (reach,) * 4, mode="reflect")
    return F.conv2d(padded, kernel[None, None].to(maps.dtype))[:, 0]


def top_mean(grid: Tensor, share: float = 0.01, up: bool = False) -> Tensor:
    """[B] mean of the largest `share` of [B, ...] values, at least one; their number is rounded down, or `up`.

    Source: AnomalyDINO (arXiv:2405.14529), which rounds down; VisualAD's code rounds up.
    """
    flat = grid.flatten(1)
    count = flat.shape[1] * share
    return flat.topk(max(1, math.ceil(count) if up else int(count)), dim=1).values.mean(1)


def harmonic_mean(terms: list[Tensor]) -> Tensor:
    """Elementwise harmonic mean of tensors >= 0 that broadcast; 0 where any term is 0."""
    stacked = torch.stack(torch.broadcast_tensors(*terms)).clamp_min(0)
    return len(terms) / (1 / stacked).sum(0)  # 1/0 is inf and n/inf is 0, as it should be
