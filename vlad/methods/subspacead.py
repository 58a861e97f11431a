"""subspacead: what of a patch's token the few directions in which normal patches differ cannot rebuild.

Paper: "SubspaceAD: Training-Free Few-Shot Anomaly Detection via Subspace Modeling" (CVPR 2026, arXiv:2602.23013).
Official code: CLendering/SubspaceAD. Needs: normal pictures, one is enough. No text, no training, one picture at a
time; any encoder, made for `dino:facebook/dinov2-with-registers-giant`.

1. A patch's token is the mean of its tokens in some middle layers, as the blocks leave them, without the final norm.
2. `fit` takes the tokens of all normals and of their rotations: their mean, and as many leading eigenvectors of their
   covariance as explain `share` of the variance.
3. The grid is the squared length of what is left of a token, less the mean, when its part in these directions is gone.
4. The map is the grid at the encoder's input size, bilinear (align_corners=False), under a 3 x 3 gaussian of sigma 4,
   almost a box. The score is the mean of the map's largest hundredth.

The memory holds sums alone, in float64: it is small, does not grow with the normals, and any of them can be left out as
if it had never been given.

`measure` and `drop` are in the official code too, and off: `"mahalanobis"` and `"euclidean"` measure how far a token is
from the mean within the directions, `"cosine"` is 1 minus the cosine of token and rebuilt token; `drop` leaves out the
first directions when rebuilding; `saliency` lets the patches that a DINO's registers look at least count as normal.

Known differences: residuals have no upper bound, so that score and map are r / (r + v), v the variance of normal
tokens, which changes no ranking; rotations are even parts of a turn, bilinear with a mirrored border, where the authors
draw 30 angles and fill the corners with black, which their subspace then takes for normal; they draw the angles of mean
and covariance apart. `saliency` is for scoring alone. Their tiles and kernel PCA, off in the paper, are not here.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vlad.encoders.dino import DinoEncoder
from vlad.encoders.encoder import Encoder
from vlad.encoders.views import rotated_tokens
from vlad.maps import checked_sigma, gaussian, to_size, top_mean
from vlad.memory import checked_layers
from vlad.memory.statistics import Moments, Statistics
from vlad.scorer import Scorer, Scores

MEASURES = ("residual", "mahalanobis", "euclidean", "cosine")
LOOKING = 7  # the layer, from 1, in which `saliency` asks what the registers look at
LAYERS: Mapping[int, tuple[int, ...]] = {12: (8, 9), 24: tuple(range(14, 19)), 40: tuple(range(23, 30))}  # the authors'


class Subspace(NamedTuple):
    """Of normal tokens: their mean [C], the directions [C, k] and variances [k] kept, the variance in all of them."""

    mean: Tensor
    basis: Tensor
    variances: Tensor
    total: Tensor


def paper_layers(depth: int) -> tuple[int, ...]:
    """The authors' layers, from 1, of 12, 24 and 40 blocks; of other numbers those after 57 to 75 % of them."""
    between = tuple(layer for layer in range(1, depth + 1) if 0.57 < layer / depth <= 0.75)
    return LAYERS.get(depth) or between or (max(1, depth // 2),)


def subspace(moments: Moments, share: float) -> Subspace:
    """The fewest leading directions that explain `share` of the variance, computed in float64, kept in float32."""
    variances, basis = torch.linalg.eigh(moments.covariance * (moments.samples / max(1, moments.samples - 1)))
    variances, basis = variances.flip(0).clamp_min(0), basis.flip(1)
    total = variances.sum()
    count = int((variances.cumsum(0) < share * total).sum()) + 1 if total > 0 else 0
    return Subspace(moments.mean.float(), basis[:, :count].float(), variances[:count].float(), total.float())


def measured(tokens: Tensor, space: Subspace, measure: str = "residual", drop: int = 0) -> Tensor:
    """[..., N] distances of tokens [..., N, C] from the normal ones, 0 or more; see the module.

    Source: SubspaceAD (arXiv:2602.23013). The residual is taken literally: as a difference of squared lengths it would
    keep few digits of float32.
    """
    centred = tokens - space.mean
    along = centred @ space.basis  # [N, k]
    if measure == "mahalanobis":
        return (along.square() / (space.variances + 1e-6)).sum(-1)
    if measure == "euclidean":
        return along.square().sum(-1)
    rebuilt = along[:, drop:] @ space.basis[:, drop:].T
    if measure == "cosine":
        return (1 - F.cosine_similarity(tokens, rebuilt + space.mean, dim=-1)).clamp_min(0)
    return (centred - rebuilt).square().sum(-1)


def near_box(maps: Tensor) -> Tensor:
    """[B, h, w] under a 3 x 3 gaussian of sigma 4, mirrored without its edge: OpenCV's blur of that kernel size."""
    weights = torch.exp(-maps.new_tensor([1.0, 0.0, 1.0]) / 32)
    kernel = torch.outer(weights, weights) / weights.sum() ** 2
    return F.conv2d(F.pad(maps[:, None], (1, 1, 1, 1), mode="reflect"), kernel[None, None])[:, 0]


class SubspaceAD(Scorer):
    """See the module.

    Args:
        layers: whose tokens are averaged, from 1; None takes `paper_layers`.
        share: of the variance that the subspace explains, above 0 and below 1.
        rotations: turns of each normal that are learnt from, itself the first.
        measure, drop: how far a token is from the subspace.
        sigma: of a wider smoothing of the map, in pixels of the encoder's input; None is the authors' 3 x 3.
        saliency: share of a picture's patches that count as normal because a DINO's registers look at them least, 0 or
            more and below 1; the authors' mask, off in the paper, takes 0.15.
    """

    words = "none"
    needs_normals: ClassVar[bool] = True
    paper_resolution: ClassVar[Mapping[int, int]] = {448: 672}  # DINOv2's

    def __init__(
        self,
        encoder: Encoder,
        *,
        resolution: int | None = None,
        layers: Sequence[int] | None = None,
        share: float = 0.99,
        rotations: int = 8,
        measure: str = "residual",
        drop: int = 0,
        sigma: float | None = None,
        saliency: float = 0.0,
    ):
        super().__init__(encoder, resolution=resolution)
        self.layers = checked_layers(paper_layers(encoder.depth) if layers is None else layers, encoder.depth)
        if not 0 < share < 1:
            raise ValueError(f"share is {share!r}; expected a part of the variance above 0 and below 1")
        if measure not in MEASURES:
            raise ValueError(f"measure is {measure!r}; expected one of {', '.join(MEASURES)}")
        for key, value, low in (("rotations", rotations, 1), ("drop", drop, 0)):
            if not isinstance(value, int) or value < low:
                raise ValueError(f"{key} is {value!r}; expected a whole number, {low} or more")
        if not 0 <= saliency < 1:
            raise ValueError(f"saliency is {saliency!r}; expected a share of the patches, 0 or more and below 1")
        if saliency and not (isinstance(encoder, DinoEncoder) and encoder.skipped > 1 and encoder.depth >= LOOKING):
            raise TypeError(f"saliency asks a DINO with registers, {encoder.name!r} is none: 'dino:base-registers' is")
        sigma = None if sigma is None else checked_sigma(sigma)
        self.share, self.rotations, self.measure, self.drop, self.sigma = share, rotations, measure, drop, sigma
        self.options.update(layers=list(self.layers), share=share, rotations=rotations)
        self.saliency = float(saliency)
        self.options.update(measure=measure, drop=drop, sigma=sigma, saliency=self.saliency)
        self.memory = Statistics(encoder.width)

    def forward(self, pixels: Tensor) -> Scores:
        with self.encoder.sharing():
            tokens, seen = self.tokens(pixels), self.seen(pixels)
        distances, unit = self.memory.seen(self.space_of, tokens, self._measured)  # [B, N], [B]
        grid = (distances * seen).unflatten(1, self.encoder.grid(pixels))
        maps = to_size(grid, (pixels.shape[-2], pixels.shape[-1]))
        maps = near_box(maps) if self.sigma is None else gaussian(maps, self.sigma)
        score = top_mean(maps)
        return Scores(score / (score + unit), maps / (maps + unit[:, None, None]))

    def _measured(self, tokens: Tensor, space: Subspace) -> tuple[Tensor, Tensor]:
        """[B, N] distances, and [B] the one that becomes 0.5."""
        return measured(tokens, space, self.measure, self.drop), self._unit(space).expand(tokens.shape[0])

    def tokens(self, pixels: Tensor) -> Tensor:
        """[B, N, C], the mean over the layers."""
        return torch.stack(self.encoder.block_patches(pixels, self.layers)).float().mean(0)

    def seen(self, pixels: Tensor) -> Tensor:
        """[B, N] or one number: 1, and 0 where `saliency` lets a patch count as normal."""
        if not (self.saliency and isinstance(self.encoder, DinoEncoder)):
            return pixels.new_ones(())
        attention = self.encoder.registers_see(pixels, LOOKING)
        return (attention >= attention.quantile(self.saliency, dim=1, keepdim=True)).to(attention.dtype)

    def space_of(self, rows: Tensor) -> Subspace:
        """What `subspace` gives of sums [M, ...]."""
        return subspace(self.memory.moments(rows), self.share)

    def _unit(self, space: Subspace) -> Tensor:
        """The distance that becomes 0.5, above 0."""
        one = space.total.new_tensor(1.0)
        unit = {"mahalanobis": one * space.basis.shape[1], "cosine": one}.get(self.measure, space.total)
        return unit.clamp_min(torch.finfo(unit.dtype).tiny)

    def remember(self, batches: Iterable[Tensor]) -> None:
        for pixels in batches:
            # the rotations of a picture are that picture's own tokens
            self.memory.add(rotated_tokens(self.encoder, pixels, self.rotations, self.tokens))
