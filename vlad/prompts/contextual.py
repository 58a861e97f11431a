"""Contextual scoring: of a pack's anomalous phrases, those count that fit this very picture unusually well.

A phrase whose cosine with a picture is high for every good picture too says nothing; so its cosine is measured in
deviations from its mean over good pictures, and the phrases that stand out are mixed into the anomalous prototype.
Adapting words to each picture raises the scores of good ones as well: thresholds must be learned with it on. No method
does it by itself; `vlad prompts check` measures what it would bring.

Source: ours, in the spirit of ALFA (arXiv:2404.09654).
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

TOP = 5  # phrases that are mixed
LEAST_DEVIATION = 1e-3  # of cosines; below it a phrase does not react to pictures


@dataclass(frozen=True, eq=False)
class PhraseStatistics:
    """How each anomalous phrase fits good pictures; what a single picture is held against.

    Attributes:
        mean, std: [A] of the cosines.
        pictures: number of pictures that they were measured on.
    """

    mean: Tensor
    std: Tensor
    pictures: int


def phrase_statistics(images: Tensor, phrases: Tensor) -> PhraseStatistics:
    """Means and deviations of the cosines of [A, D] phrases over [n, D] embeddings of good pictures, any length.

    Raises:
        ValueError: fewer than 2 pictures.
    """
    if len(images) < 2:
        raise ValueError(f"{len(images)} good pictures given; the spread of a phrase's fit takes at least 2")
    cosines = F.normalize(images.float(), dim=-1) @ F.normalize(phrases.float(), dim=-1).T  # [n, A]
    return PhraseStatistics(cosines.mean(0), cosines.std(0).clamp_min(LEAST_DEVIATION), len(images))


def contextual_weights(cosines: Tensor, statistics: PhraseStatistics, top: int = TOP) -> Tensor:
    """[A] weights that sum to 1: softmax of how many deviations above its mean each of the `top` phrases is, else 0.

    Args:
        cosines: [A] of one picture with the phrases.

    With mean 0.2 and std 0.1 throughout, cosines (0.3, 0.2, 0.1) and top 2: z = (1, 0), weights (0.731, 0.269, 0).
    """
    z = (cosines - statistics.mean) / statistics.std
    highest = z.topk(min(top, len(z)))
    return cosines.new_zeros(len(z)).scatter(0, highest.indices, highest.values.softmax(0))


def contextual_prototype(image: Tensor, generic: Tensor, phrases: Tensor, statistics: PhraseStatistics) -> Tensor:
    """[D] unit: half the generic anomalous direction, half the phrases that stand out for this picture.

    Args:
        image: [D] embedding of the picture.
        generic: [D] mean of the generic anomalous phrases.
        phrases: [A, D] unit embeddings of the pack's anomalous phrases.
        statistics: of these phrases over good pictures.
    """
    weights = contextual_weights(phrases @ F.normalize(image.float(), dim=-1), statistics)
    return F.normalize(0.5 * F.normalize(generic.float(), dim=-1) + 0.5 * (weights @ phrases), dim=-1)
