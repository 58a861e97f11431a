"""WinCLIP: windows of patches against the words, at several scales; WinCLIP+ once it has seen normal pictures.

Paper: "WinCLIP: Zero-/Few-Shot Anomaly Classification and Segmentation" (arXiv:2303.14814). No official code; the
arithmetic follows the two open reproductions that agree (open-edge-platform/anomalib, zqhang/Accurate-WinCLIP-pytorch).
Needs: text. Normal pictures if there are any, no training, one picture at a time.

1. The whole picture's class embedding against the prototypes gives the image score.
2. Every 2 x 2 and 3 x 3 window of patches, with the class token in front, runs through the tower as a short sequence of
   its own; its class embedding gives the window's probability.
3. Per scale, a patch gets the harmonic mean over the windows that cover it.
4. The map is the harmonic mean of the image score and the scales, bilinear to the picture's square.
After `fit` (WinCLIP+), with a(x) = half the cosine distance of x to the closest vector of the normal pictures:

5. Patch tokens of the last block (after the last layer norm, not projected) and the windows of each scale are compared
   with those of the normals; per scale again the harmonic mean over covering windows; then the mean over the levels.
6. The map is the mean of both maps, the score the mean of the image score and the largest value of the second map.

Known differences: the paper's 22 templates by default, where both reproductions have 21 and one of them twice
(prompts="winclip-anomalib"); words go into the prompts as given, with spaces where those have underscores.
All windows of all scales share each matrix product and the last block computes class tokens alone: exact, only faster.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.encoders.encoder import Encoder
from vlad.maps import anomaly_probability, harmonic_mean, to_size
from vlad.memory import Memory
from vlad.scorer import Scorer, Scores


def covering_mean(scores: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """[B, rows, columns]: per patch, the harmonic mean of the windows that cover it; 0 where one of them is 0.

    Args:
        scores: [B, windows] in row-major order of the windows' first patches, >= 0.

    The sums over covering windows are box sums of the zero-padded array, for the scores' reciprocals and for ones; a
    score of 0 has the reciprocal inf, which makes the mean 0 as it should.
    """
    reciprocals = (1 / scores.float().clamp_min(0)).view(-1, 1, grid[0] - size + 1, grid[1] - size + 1)
    padded = F.pad(torch.cat([torch.ones_like(reciprocals[:1]), reciprocals]), [size - 1] * 4)
    sums = F.avg_pool2d(padded, size, stride=1)[:, 0]  # the 1 / size^2 cancels in the ratio
    return sums[:1] / sums[1:]


class WinClip(Scorer):
    """See the module. `scales` are the windows' sides in patches, `temperature` divides the cosines."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        resolution: int | None = None,
        scales: tuple[int, ...] = (2, 3),
        temperature: float = 0.07,
    ):
        super().__init__(encoder, resolution=resolution)
        side = self.resolution // encoder.patch_size
        if (
            not isinstance(scales, tuple | list)
            or not scales
            or not all(type(k) is int and 1 <= k <= side for k in scales)
        ):
            raise ValueError(
                f"scales is {scales!r}; expected window sides from 1 to {side}, the patches along one side"
            )
        if not isinstance(temperature, int | float) or not temperature > 0:
            raise ValueError(f"temperature is {temperature!r}; expected a number above 0")
        self.scales, self.temperature = tuple(scales), temperature
        self.options.update(scales=list(scales), temperature=temperature)
        exact = encoder.dtype == torch.float32  # coarser storage than arithmetic would blur the maps
        self.patches = Memory(encoder.width, exact=exact)
        self.windows = nn.ModuleList(Memory(encoder.embed_dim, exact=exact) for _ in scales)

    def forward(self, pixels: Tensor) -> Scores:
        image, *windows = self.encoder.windows(pixels, self.scales)  # [B, D], then [B, windows, D] per scale
        score, grid = self.zero_shot(image, windows, self.encoder.grid(pixels))
        if len(self.patches):
            seen = self.association(self._patch_tokens(pixels), windows, self.encoder.grid(pixels))
            score, grid = (score + seen.amax((1, 2))) / 2, (grid + seen) / 2
        return Scores(score, to_size(grid, (pixels.shape[-2], pixels.shape[-1])), image)

    def _patch_tokens(self, pixels: Tensor) -> Tensor:
        """[B, N, C]: a pass of its own, as the windows' pass computes class tokens alone in the last block."""
        return self.encoder.norm(self.encoder(pixels, layers=(self.encoder.depth,)).patches[0])

    def remember(self, batches: Iterable[Tensor]) -> None:
        for pixels in batches:
            _, *windows = self.encoder.windows(pixels, self.scales)
            for memory, rows in zip(self._levels(), [self._patch_tokens(pixels), *windows], strict=True):
                memory.add(rows)

    def _levels(self) -> list[Memory]:
        return [self.patches, *self.windows]

    def association(self, patches: Tensor, windows: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """[B, rows, columns] in [0, 1]: how unlike the normals each place is, at the level of patches and of windows.

        Source: WinCLIP (arXiv:2303.14814), eq. 4 and 5.
        """
        levels = [
            covering_mean((memory.distance(tokens) / 2).clamp_max(1), grid, size)
            for memory, tokens, size in zip(self._levels(), [patches, *windows], (1, *self.scales), strict=True)
        ]
        return torch.stack(levels).mean(0)

    def zero_shot(self, image: Tensor, windows: list[Tensor], grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(image score [B], map on the grid [B, rows, columns]) of embeddings [B, D] and [B, windows, D] per scale."""
        score = anomaly_probability(image, self.prototypes, self.temperature)
        scales = [
            covering_mean(anomaly_probability(w, self.prototypes, self.temperature), grid, k)
            for w, k in zip(windows, self.scales, strict=True)
        ]
        return score, harmonic_mean([score[:, None, None], *scales])
