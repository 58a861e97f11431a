"""AnyAnomaly's arithmetic (arXiv 2503.04504, WACV 2026): frame choice, position and temporal views, fusion.

For those who repeat the paper's numbers with an encoder and a language model of their own; `vlad score --alarm` has the
same idea without its segments. What is given is given as functions, so nothing here depends on a model:

    embed_pictures: [B, 3, H, W] in [0, 1], not normalised -> [B, D] raw embeddings
    embed_texts: list of B sentences -> [B, D] raw embeddings

The published run chooses sigma and weights on the labels of the test set; that search is not here. Fixed ones are.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import fold, interpolate, normalize, unfold

SIDE, SHOWN = 240, 224  # px: what windows are cut from, what a model sees
AVENUE, SHANGHAITECH = (48, 80, 240), (48, 80, 120)  # px: the windows' sides
WEIGHTS, SIGMA = (0.6, 0.3, 0.1), 15.0  # of whole picture, position view and sheet; frames
TEMPLATES = (
    *("a cropped photo of the {}.", "a close-up photo of a {}.", "a close-up photo of the {}."),
    *("a bright photo of a {}.", "a bright photo of the {}.", "a dark photo of the {}.", "a dark photo of a {}."),
    *("a jpeg corrupted photo of the {}.",) * 2,  # twice, as published
    *("a blurry photo of the {}.", "a blurry photo of a {}.", "a photo of a {}.", "a photo of the {}."),
    *("a photo of a small {}.", "a photo of the small {}.", "a photo of a large {}.", "a photo of the large {}."),
    *("a photo of the {} for visual inspection.", "a photo of a {} for visual inspection."),
    *("a photo of the {} for anomaly detection.", "a photo of a {} for anomaly detection."),
)

Embed = Callable[[Tensor], Tensor]
EmbedTexts = Callable[[Sequence[str]], Tensor]


class Chosen(NamedTuple):
    """The frame that fits a keyword best, and four over the segment."""

    best: int
    four: tuple[int, int, int, int]


class Sheet(NamedTuple):
    """The temporal view."""

    cosines: np.ndarray  # [windows] the largest over the four frames: smallest windows first, row by row
    window: int  # the first of the largest
    picture: np.ndarray  # uint8 [224, 224, 3]: this window in the four frames, 2 x 2, row by row in time


def key_frames(similarity: np.ndarray, option: int = 4) -> Chosen:
    """Which frames stand for a segment.

    Args:
        similarity: [frames] cosines with the bare keyword.
        option: 4, the published one, takes the same place in each quarter as the best has in its own; 3 the best of
            each quarter; 2 the best four.
    """
    best, quarter = int(np.argmax(similarity)), len(similarity) // 4
    if option == 4:
        four = [start + best % quarter for start in range(0, 4 * quarter, quarter)]
    elif option == 3:
        four = [start + int(np.argmax(similarity[start : start + quarter])) for start in range(0, 4 * quarter, quarter)]
    elif option == 2:
        four = sorted(np.argsort(-similarity, kind="stable")[:4].tolist())
    else:
        raise ValueError(f"option is {option}; expected 2, 3 or 4")
    return Chosen(best, (four[0], four[1], four[2], four[3]))


def windows(frame: np.ndarray, side: int) -> Tensor:
    """[n, 3, 224, 224] in [0, 1]: the frame, uint8 [240, 240, 3], cut into squares without overlap, row by row."""
    pixels = torch.from_numpy(frame.astype(np.float32) / 255).permute(2, 0, 1)[None]
    cut = unfold(pixels, side, stride=side)[0].T.reshape(-1, 3, side, side)
    return interpolate(cut, (SHOWN, SHOWN), mode="bilinear", align_corners=False)


def keyword_texts(embed_texts: EmbedTexts, keywords: Sequence[str]) -> Tensor:
    """[C, D]: each keyword's mean of the raw embeddings of its 21 sentences."""
    return torch.cat([embed_texts([one.format(word) for one in TEMPLATES]).mean(0, keepdim=True) for word in keywords])


def position_map(frame: np.ndarray, texts: Tensor, row: int, embed_pictures: Embed, sides: Sequence[int]) -> np.ndarray:
    """float32 [224, 224]: where the keyword `row` fits, the mean over windows of three sizes.

    Args:
        frame: uint8 [240, 240, 3].
        texts: [C, D] of `keyword_texts`; of several, a softmax over them without a temperature says which fits.
    """
    total = torch.zeros(SHOWN, SHOWN)
    for side in reversed(sides):
        pictures = normalize(embed_pictures(windows(frame, side)).float(), dim=-1)
        fits = normalize(texts.float(), dim=-1) @ pictures.T
        share = fits.softmax(0)[row] if len(texts) > 1 else fits[0]
        grid = share.reshape(1, 1, SIDE // side, SIDE // side)
        total += interpolate(grid, (SHOWN, SHOWN), mode="bilinear", align_corners=False)[0, 0]
    return (total / len(sides)).numpy()


def shrunk(frame: np.ndarray) -> np.ndarray:
    """uint8 [224, 224, 3]: the frame, bilinear without antialiasing."""
    pixels = torch.from_numpy(frame.astype(np.float32)).permute(2, 0, 1)[None]
    small = interpolate(pixels, (SHOWN, SHOWN), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    return small.round().clamp(0, 255).to(torch.uint8).numpy()


def attended(picture: np.ndarray, fits: np.ndarray) -> np.ndarray:
    """uint8 [224, 224, 3]: the position view, a `shrunk` frame that is bright where the map says so.

    A flat map, by whose range the published code divides, leaves the picture as it is.
    """
    low, high = fits.min(), fits.max()
    if low == high:
        return picture
    return (picture * ((fits - low) / (high - low))[..., None]).astype(np.uint8)


def sheet(frames: Sequence[np.ndarray], keyword: Tensor, embed_pictures: Embed, sides: Sequence[int] = AVENUE) -> Sheet:
    """The window that fits the bare keyword's embedding [1, D] best, in the four frames, uint8 [240, 240, 3] each."""
    cut = torch.stack([torch.cat([windows(frame, side) for side in sides]) for frame in frames])  # [4, n, 3, 224, 224]
    pictures = normalize(embed_pictures(cut.flatten(0, 1)).float(), dim=-1)
    cosines = (pictures @ normalize(keyword.float(), dim=-1)[0]).reshape(len(frames), -1).amax(0)
    window = int(np.argmax(cosines.numpy()))
    cells = interpolate(cut[:, window], (SHOWN // 2, SHOWN // 2), mode="bilinear", align_corners=False)
    whole = fold(cells.flatten(1).T[None], (SHOWN, SHOWN), SHOWN // 2, stride=SHOWN // 2)[0]
    return Sheet(cosines.numpy().astype(np.float64), window, (whole * 255).permute(1, 2, 0).numpy().astype(np.uint8))


def answered(text: str) -> float:
    """The number in an answer: its first digits with a fraction, else 0. Not clipped, so "1/10" is 1, as published."""
    found = re.search(r"\d+(\.\d+)?", text)
    return float(found[0]) if found else 0.0


def fused(
    whole: np.ndarray,
    position: np.ndarray,
    sheets: np.ndarray,
    weights: Sequence[float] = WEIGHTS,
    sigma: float = SIGMA,
) -> np.ndarray:
    """[frames] scores of all videos joined: weighted, smoothed across their borders, brought to [0, 1] over all."""
    mixed = weights[0] * whole + weights[1] * position + weights[2] * sheets
    smooth = ndimage.gaussian_filter1d(mixed, sigma)
    return (smooth - smooth.min()) / (smooth.max() - smooth.min() + 1e-8)
