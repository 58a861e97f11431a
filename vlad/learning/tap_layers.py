"""What the methods with a linear layer per tapped block share (APRIL-GAN, and SDP+ of CLIP-AD): layers, maps, loss."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vlad.encoders.encoder import Encoder
from vlad.learning.losses import dice, focal
from vlad.maps import CLIP_TEMPERATURE, state_logits, to_size
from vlad.prompts import PromptPack
from vlad.scorer import Scorer


class TapLayers(nn.Module):
    """A linear layer with bias for each tapped block, which brings its raw tokens into the joint space.

    Parameters, under the names of APRIL-GAN's code: `fc`, per tap `weight` [D, C] and `bias` [D].
    """

    def __init__(self, encoder: Encoder, taps: int):
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # follows the global seed, and leaves the global state alone
            self.fc = nn.ModuleList(nn.Linear(encoder.width, encoder.embed_dim) for _ in range(taps))
        self.to(encoder.device)

    def forward(self, taps: Sequence[Tensor]) -> list[Tensor]:
        """Embeddings [B, N, D], not normalised, of the raw patch tokens [B, N, C] of each tap."""
        return [layer(tokens.float()) for layer, tokens in zip(self.fc, taps, strict=True)]


def raw_taps(encoder: Encoder, pixels: Tensor, layers: Sequence[int]) -> tuple[Tensor, ...]:
    """The picture's embedding [B, D], not normalised, and the raw patch tokens [B, N, C] of each layer."""
    taps = {}
    for layer, _, after, _ in encoder.value_walk(pixels, first=encoder.depth + 1):
        if layer in layers:
            taps[layer] = after[:, 1:]
    return encoder.project(after[:, 0]), *(taps[layer] for layer in layers)


def anomalous_pixels(
    embeddings: Tensor,
    states: Tensor,
    grid: tuple[int, int],
    size: tuple[int, int],
    temperature: float | Tensor = CLIP_TEMPERATURE,
) -> Tensor:
    """[B, *size] in [0, 1]: the anomalous probability of patch embeddings [B, N, D] of any length.

    The logits are brought to the size, bilinear with align_corners=True, before their softmax: of two states that needs
    the difference of their logits alone. `states` is [2, D], or [B, 2, D] for states of each picture's own.

    Source: APRIL-GAN (arXiv:2305.17382), as in the official code.
    """
    logits = state_logits(embeddings, states, temperature)  # [B, N, 2]
    difference = (logits[..., 1] - logits[..., 0]).unflatten(1, grid)
    return to_size(difference, size, align_corners=True).sigmoid()


def tap_loss(embeddings: Sequence[Tensor], states: Tensor, masks: Tensor, patch: int) -> Tensor:
    """Sum over the taps of the focal loss and of the dice loss of the anomalous probabilities.

    Args:
        embeddings: one [B, N, D] per tap.
        states: [B, 2, D].
        masks: float [B, H, W], 1 where anomalous.
        patch: side of a patch in pixels.

    Source: APRIL-GAN (arXiv:2305.17382), as in the official code.
    """
    size = masks.shape[-2], masks.shape[-1]
    grid = size[0] // patch, size[1] // patch
    return pixel_loss([anomalous_pixels(one, states, grid, size) for one in embeddings], masks)


def pixel_loss(maps: Sequence[Tensor], masks: Tensor) -> Tensor:
    """Sum over maps [B, H, W] of anomalous probabilities of their focal and dice losses."""
    total = masks.new_zeros(())
    for one in maps:
        total = total + focal(torch.stack([1 - one, one], 1), masks) + dice(one, masks)
    return total


def states_of(scorer: Scorer, names: Sequence[str]) -> Tensor:
    """[B, 2, D] prototypes of B category names, each a pair as `describe` would make it."""
    pack = scorer.pack or PromptPack.load(scorer.default_prompts)
    known = {name: scorer.prototypes_of(pack, name) for name in dict.fromkeys(names)}
    return torch.stack([known[name] for name in names])


def by_name(names: Sequence[str], make: Callable[[list[int], str], Tensor]) -> Tensor:
    """[B, ...] in the order of B names: what `make` gives, all at once, for the rows that share a name."""
    found: dict[int, Tensor] = {}
    for name in dict.fromkeys(names):
        rows = [row for row, other in enumerate(names) if other == name]
        found.update(zip(rows, make(rows, name), strict=True))
    return torch.stack([found[row] for row in range(len(names))])
