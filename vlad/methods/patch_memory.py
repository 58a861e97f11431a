"""patch_memory: the distance of each patch to the closest patch of a few normal pictures.

Papers: PatchCore (arXiv:2106.08265, code amazon-science/patchcore-inspection) and AnomalyDINO (arXiv:2405.14529, code
dammsi/AnomalyDINO). Needs: normal pictures. No text, no training, one picture at a time; any encoder, also `dino:...`.

1. A patch's row: its tokens in some layers, averaged over squares of its neighbours, each of length 1, side by side.
2. `fit` keeps the rows of all normals (and of their rotations), or a greedy coreset of them.
3. The grid is half the distance to the closest row (the mean over the k closest), in [0, 1]; the map is the grid at the
   encoder's input size, bilinear (align_corners=False), smoothed with a gaussian.
4. The score is the grid's maximum, that maximum re-weighted by how lonely the row it is closest to is, or the mean of
   its largest hundredth. `score="texture"` (ours) compares the mean row of the picture with those of the normals: it
   finds what no single place shows, such as a whole cloth of another grain, and overlooks what is small; joined with
   other scores it loses on drawn kinds (eval/results/tiny-few-normals.md).

`preset` sets all of it at once: "few" (ours, two middle layers, patches alone and over 3 x 3, every row kept),
"patchcore" (a coreset of a tenth, re-weighted maximum) or "anomaly_dino" (last layer after its norm, cosine distances,
eight rotations).

Known differences: distances are halved, and not squared as PatchCore's code has them; a transformer's layers share one
grid, so nothing is resized; pictures are squeezed into a square where AnomalyDINO keeps their shape; its mask is
dilated in both directions, not along rows only.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlad.encoders.encoder import Encoder
from vlad.encoders.views import rotated_tokens
from vlad.maps import checked_sigma, smooth_map, top_mean
from vlad.memory import Memory, checked_layers, layer_tokens
from vlad.memory.nearest import reweighted
from vlad.scorer import Scorer, Scores

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "few": dict(neighbours=(1, 3), metric="euclidean", score="max", coreset=1.0, rotations=1),
    "patchcore": dict(neighbours=(3,), metric="euclidean", score="reweighted", coreset=0.1, rotations=1),
    "anomaly_dino": dict(neighbours=(1,), metric="cosine", score="top", coreset=1.0, rotations=8),
}
RULES: Mapping[str, Callable[[Tensor], Tensor]] = {"max": lambda values: values.amax(1), "top": top_mean}
SCORES = ("max", "reweighted", "top", "texture")
DINO_LEVEL = 10.0  # of the first principal component of DINOv2's tokens, above which a patch is foreground


def foreground(tokens: Tensor, grid: tuple[int, int], level: float | None = None) -> Tensor:
    """[N] bool: where the object is, from the first principal component of one picture's patch tokens [N, C].

    Args:
        tokens: of the last layer, not normalised.
        grid: (rows, columns).
        level: of the component; None takes Otsu's split, for encoders whose tokens have other lengths than DINOv2's.

    The sign is that under which more than 35 % of the picture's middle is foreground, the component as it comes first.
    Source: AnomalyDINO (arXiv:2405.14529), dilated and closed in two dimensions.
    """
    from scipy import ndimage
    from skimage.filters import threshold_otsu

    x = (tokens - tokens.mean(0)).double()
    direction = torch.linalg.svd(x, full_matrices=False)[2][0]
    direction = direction * direction[direction.abs().argmax()].sign()
    component = (x @ direction).cpu().numpy().reshape(grid)
    level = float(threshold_otsu(component)) if level is None else level
    above, below = component > level, -component > level
    if level != DINO_LEVEL:
        below = ~above
    middle = tuple(slice(int(side * 0.2), int(side * 0.8)) for side in grid)
    mask = above if above[middle].mean() > 0.35 else below
    square = np.ones((3, 3), dtype=bool)
    mask = ndimage.binary_dilation(mask, square)
    mask = ndimage.binary_erosion(ndimage.binary_dilation(mask, square), square, border_value=1)
    return torch.from_numpy(mask.ravel()).to(tokens.device)


class PatchMemory(Scorer):
    """See the module. Keywords left out are those of the preset.

    `layers` are the encoder's blocks, from 1 (None: the middle ones, for "anomaly_dino" the last); `neighbours` is the
    odd side of the square that is averaged, or several sides that join in a row; `k` the rows a distance is averaged
    over; `coreset` the share of the rows kept; `rotations` the turns of each normal that are remembered; `mask` leaves
    the background out; `sigma` smooths the map, in pixels of the encoder's input; `search="faiss"` searches large
    memories approximately (extra `faiss`).
    """

    words = "none"
    needs_normals: ClassVar[bool] = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        resolution: int | None = None,
        preset: str = "few",
        layers: Sequence[int] | None = None,
        neighbours: int | Sequence[int] | None = None,
        metric: str | None = None,
        k: int = 1,
        score: str | None = None,
        coreset: float | None = None,
        rotations: int | None = None,
        mask: bool = False,
        sigma: float = 4.0,
        search: str = "exact",
    ):
        super().__init__(encoder, resolution=resolution)
        if preset not in PRESETS:
            raise ValueError(f"preset is {preset!r}; expected one of {', '.join(PRESETS)}")
        if isinstance(neighbours, int):
            neighbours = (neighbours,)
        given: dict[str, Any] = dict(
            neighbours=neighbours, metric=metric, score=score, coreset=coreset, rotations=rotations
        )
        chosen = {**PRESETS[preset], **{key: value for key, value in given.items() if value is not None}}
        if layers is None and preset == "anomaly_dino":
            layers = (encoder.depth,)
        chosen |= dict(
            layers=list(checked_layers(layers, encoder.depth)), k=k, mask=bool(mask), sigma=checked_sigma(sigma)
        )
        chosen |= dict(search=search, neighbours=list(chosen["neighbours"]))
        _check(chosen)
        self.settings = chosen
        self.options.update(preset=preset, **chosen)
        how: dict[str, Any] = dict(share=chosen["coreset"], metric=chosen["metric"], search=search)
        width = len(chosen["layers"]) * len(chosen["neighbours"]) * encoder.width
        self.memory = Memory(width, exact=encoder.dtype == torch.float32, **how)
        if chosen["score"] == "texture":
            self.means = Memory(width, metric=chosen["metric"])  # of each normal and each of its turns

    def forward(self, pixels: Tensor) -> Scores:
        tokens, grid = self.tokens(pixels), self.encoder.grid(pixels)
        distance = self.memory.distance(tokens, self.settings["k"])  # [B, N]
        if self.settings["mask"]:
            distance = distance * self._masks(pixels)
        rule = RULES.get(self.settings["score"])
        score = (rule(distance) if rule else self._image_score(distance, tokens)).clamp(0, 2) / 2
        shaped = (distance.clamp_max(2) / 2).unflatten(1, grid)
        amap = smooth_map(shaped, (pixels.shape[-2], pixels.shape[-1]), self.settings["sigma"])
        return Scores(score, amap, rule=rule)

    def tokens(self, pixels: Tensor) -> Tensor:
        """[B, N, C] the rows of a picture's patches, of length 1."""
        rows = layer_tokens(self.encoder, pixels, tuple(self.settings["layers"]), self.settings["neighbours"])
        return F.normalize(rows, dim=-1)

    def _image_score(self, distance: Tensor, tokens: Tensor) -> Tensor:
        if self.settings["score"] == "texture":
            return self.means.distance(tokens.mean(1, keepdim=True))[:, 0]
        parts = zip(distance, tokens, strict=True)
        return torch.stack([reweighted(d, t, self.memory.rows_for(i)) for i, (d, t) in enumerate(parts)])

    def _masks(self, pixels: Tensor) -> Tensor:
        """[B, N] 1 where the object is."""
        last = self.encoder(pixels, layers=(self.encoder.depth,))
        level = None if self.encoder.reads_text else DINO_LEVEL
        return torch.stack([foreground(tokens, last.grid, level) for tokens in last.patches[0]]).to(pixels.dtype)

    def remember(self, batches: Iterable[Tensor]) -> None:
        for pixels in batches:
            # the rotations of a picture are that picture's own rows
            rows = rotated_tokens(self.encoder, pixels, self.settings["rotations"], self.tokens)
            self.memory.add(rows)
            if self.settings["score"] == "texture":
                self.means.add(rows.unflatten(1, (self.settings["rotations"], -1)).mean(2))


def _check(chosen: Mapping[str, Any]) -> None:
    """Raises ValueError at a setting that cannot be used; the memory checks share and metric itself."""
    if chosen["score"] not in SCORES:
        raise ValueError(f"score is {chosen['score']!r}; expected one of {', '.join(SCORES)}")
    if chosen["metric"] not in ("cosine", "euclidean"):
        raise ValueError(f"metric is {chosen['metric']!r}; expected 'cosine' or 'euclidean'")
    for key, low in (("k", 1), ("rotations", 1)):
        if chosen[key] < low:
            raise ValueError(f"{key} is {chosen[key]}; expected {low} or more")
    sides = chosen["neighbours"]
    if not sides or not all(isinstance(side, int) and side >= 1 and side % 2 for side in sides):
        raise ValueError(f"neighbours is {sides}; expected odd sides such as 3 or (1, 3), with the patch in the middle")
