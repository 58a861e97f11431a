"""gaussian: how many standard deviations a picture is from the normal ones, by one gaussian for each of a few layers.

Paper: "Modeling the Distribution of Normal Data in Pre-Trained Deep Features for Anomaly Detection" (arXiv:2005.14140).
Written from its equations alone. Needs: normal pictures, 10 or more to be worth it, 20 to be strong. No text, no
training, one picture at a time, any encoder.

1. A picture's feature in a layer is the mean of its patch tokens, as the block leaves them; of an EfficientNet-B4
   (`encoder="efficientnet:FILE"`), the paper's tower, the mean over places of each of its nine levels.
2. `fit` takes the mean of the normals' features and their covariance, shrunk towards a multiple of the identity as far
   as so few pictures ask for (Ledoit and Wolf).
3. The score is the sum over the layers of the Mahalanobis distances; the map the same of every patch token, with one
   gaussian a layer of all the normals' patches, bilinear (align_corners=False; levels of several sizes first go to the
   finest one's) and smoothed with a gaussian of 4 px.

`negative` (the paper's NPCA, its best) keeps of each layer's principal components the last, from the one on with which
`negative` of the variance is explained: what all normals agree on tells more than that in which they differ. It sees
nothing outside the directions in which normals differ at all, and is for more normals than a layer is wide.

Score and map are d / (d + b): 0.5 is at b, the sum over the layers of the distance below which 99.73 % of a gaussian's
samples lie (chi-square). With fewer than ten times as many normals as a layer is wide that bound is too low: `fit` sets
thresholds from each normal's distance under the others.

Known differences: any encoder beside the paper's; B4 pads as it was trained, also at 380 px; the map is ours; of NPCA's
components those that do not vary among the normals are left out, where the official code keeps one, of no meaning. With
one or two normals, whose covariance says nothing, all directions vary alike.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, ClassVar, NamedTuple

import torch
from scipy.stats import chi2
from torch import Tensor, nn

from vlad.encoders.encoder import Encoder
from vlad.maps import checked_sigma, smooth_map, to_size
from vlad.memory import Memory, checked_layers, quarters
from vlad.memory.statistics import Moments, Statistics
from vlad.scorer import Scorer, Scores

BOUND = 0.9973  # of a gaussian lie within three standard deviations
FEW = 3  # samples below which a covariance says nothing
LEAST = 1e-6  # part of the identity in a covariance, so that it can be inverted whatever the samples
VARIES = 1e-10  # of the largest variance: below it, what is left of a direction is rounding


class Gaussian(NamedTuple):
    """A mean [C] and directions [C, k], each over its standard deviation: |(x - mean) @ directions| is the distance."""

    mean: Tensor
    directions: Tensor

    def distance(self, x: Tensor) -> Tensor:
        """[...] Mahalanobis distances, square root taken, of [..., C]."""
        return ((x - self.mean.to(x)) @ self.directions.to(x)).norm(dim=-1)

    def bound(self) -> float:
        """The distance that a share of BOUND of its samples stay below."""
        return bound_of(self.directions.shape[1])

    def single(self) -> "Gaussian":
        """The same in float32, for features of that."""
        return Gaussian(self.mean.float(), self.directions.float())


@cache
def bound_of(freedom: int) -> float:
    """The root of chi-square's quantile at BOUND, with so many degrees of freedom."""
    return float(chi2.ppf(BOUND, freedom) ** 0.5)


def shrinkage(moments: Moments) -> Tensor:
    """In [0, 1]: the part that a multiple of the identity has in the covariance.

    Source: O. Ledoit and M. Wolf, "A well-conditioned estimator for large-dimensional covariance matrices" (2004).
    """
    S, C = moments.covariance, len(moments.mean)
    apart = (S.square().sum() - S.trace() ** 2 / C) / C  # squared distance of S from that multiple
    spread = (moments.fourth - S.square().sum()) / (moments.samples * C)  # squared, of S around the true covariance
    return (spread.clamp_min(0) / apart).clamp_max(1) if apart > 0 else apart.new_zeros(())


def gaussian(moments: Moments) -> Gaussian:
    """The gaussian of the shrunk covariance, float64; where there is none to speak of, one that is round.

    Of one or two samples, or of equal ones, the covariance says nothing: the standard deviation is then the root mean
    square of the mean's values, in every direction.
    """
    C, trace = len(moments.mean), moments.covariance.trace()
    even = torch.eye(C, dtype=torch.float64, device=trace.device)
    if moments.samples < FEW or trace <= 0:
        return Gaussian(moments.mean, even / (moments.mean.square().mean().sqrt().clamp_min(LEAST)))
    part = shrinkage(moments).clamp_min(LEAST)
    triangle = torch.linalg.cholesky((1 - part) * moments.covariance + part * trace / C * even)
    return Gaussian(moments.mean, torch.linalg.inv(triangle).T)


def negative_gaussian(features: Tensor, share: float) -> Gaussian:
    """The gaussian of features [n, C] in their last principal components: from the one before that with which more than
    `share` of the variance is explained, to the last that varies.

    Source: Rippel et al. (arXiv:2005.14140), NPCA.
    """
    moments = Moments.of(features)
    variances, basis = torch.linalg.eigh(moments.covariance)
    variances, basis = variances.flip(0).clamp_min(0), basis.flip(1)
    first = max(0, int((variances.cumsum(0) <= share * variances.sum()).sum()) - 1)
    last = int((variances > VARIES * variances[0]).sum())  # the others are 0 but for rounding
    basis = basis[:, max(0, min(first, last - 1)) : max(1, last)]
    inside = gaussian(Moments.of((features.double() - moments.mean) @ basis))
    return Gaussian(moments.mean, basis @ inside.directions)


class GaussianAD(Scorer):
    """See the module.

    Args:
        layers: of the encoder, from 1; None is each quarter's last block, of an EfficientNet all nine levels.
        negative: share of the variance for NPCA, above 0 and below 1; None takes all components.
        sigma: of the map's smoothing, in input pixels.
    """

    words = "none"
    needs_normals: ClassVar[bool] = True

    places: Any  # a Statistics a layer

    def __init__(
        self,
        encoder: Encoder,
        *,
        resolution: int | None = None,
        layers: Sequence[int] | None = None,
        negative: float | None = None,
        sigma: float = 4.0,
    ):
        super().__init__(encoder, resolution=resolution)
        widths = encoder.level_widths
        usual = quarters(len(widths)) if len(set(widths)) == 1 else tuple(range(1, len(widths) + 1))
        self.layers = checked_layers(usual if layers is None else layers, len(widths))
        if negative is not None and not 0 < negative < 1:
            raise ValueError(f"negative is {negative!r}; expected a share of the variance above 0 and below 1, or None")
        self.negative, self.sigma = negative, checked_sigma(sigma)
        self.options.update(layers=list(self.layers), negative=negative, sigma=self.sigma)
        self.widths = [widths[layer - 1] for layer in self.layers]
        self.memory = Memory(sum(self.widths), metric="euclidean")
        self.places = nn.ModuleList(Statistics(width) for width in self.widths)

    def forward(self, pixels: Tensor) -> Scores:
        levels = self.encoder.level_maps(pixels, self.layers)  # [B, C, h, w] each
        pooled = torch.cat([level.mean((2, 3)) for level in levels], 1)  # [B, the sum of all C]
        (score,) = self.memory.seen(self._of_pictures, pooled, _far)
        grids = [_distances(memory, level) for memory, level in zip(self.places, levels, strict=True)]
        finest = max((grid.shape[1], grid.shape[2]) for grid in grids)
        grid = torch.stack([one if one.shape[1:] == finest else to_size(one, finest) for one in grids]).sum(0)
        grid = grid / (grid + sum(map(bound_of, self.widths)))
        return Scores(score, smooth_map(grid, (pixels.shape[-2], pixels.shape[-1]), self.sigma))

    def _of_pictures(self, rows: Tensor) -> list[Gaussian]:
        """A gaussian a layer, of the normals' features [n, the sum of all C]."""
        layers = rows.double().split(self.widths, 1)
        if self.negative is None or len(rows) < FEW:
            return [gaussian(Moments.of(features)).single() for features in layers]
        return [negative_gaussian(features, self.negative).single() for features in layers]

    def remember(self, batches: Iterable[Tensor]) -> None:
        for pixels in batches:
            levels = self.encoder.level_maps(pixels, self.layers)
            self.memory.add(torch.cat([level.mean((2, 3)) for level in levels], -1)[:, None])  # [B, 1, all C]
            for memory, level in zip(self.places, levels, strict=True):
                memory.add(level.flatten(2).mT)


def _of_patches(memory: Statistics) -> Callable[[Tensor], Gaussian]:
    return lambda rows: gaussian(memory.moments(rows)).single()


def _distances(memory: Statistics, level: Tensor) -> Tensor:
    """[B, h, w] of features [B, C, h, w], each under the gaussian of the patches that it may see."""
    patches = level.flatten(2).mT  # [B, N, C]
    (found,) = memory.seen(_of_patches(memory), patches, lambda tokens, own: (own.distance(tokens),))
    return found.unflatten(1, level.shape[2:])


def _far(features: Tensor, gaussians: Sequence[Gaussian]) -> tuple[Tensor]:
    """[B] in [0, 1] of pictures' features [B, the sum of all C]; 0.5 where their distances sum up to the bounds."""
    layers = features.split([len(own.mean) for own in gaussians], 1)
    distance = torch.stack([own.distance(x) for own, x in zip(gaussians, layers, strict=True)]).sum(0)
    return (distance / (distance + sum(own.bound() for own in gaussians)),)
