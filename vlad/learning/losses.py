"""The losses that the learned methods share, on probabilities of two states: 0 normal, 1 anomalous.

A mask of NaN means that nobody has marked the picture: the losses over pixels leave it out, and are 0 where no other is
left, so that what is learned of it comes from the losses over pictures.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

GAMMA = 2  # of the focal loss
EDGE = 1e-5  # keeps the focal loss's one-hot away from 0 and 1, and its logarithm finite


def marked(mask: Tensor) -> Tensor:
    """bool [B]: the pictures of masks [B, ...] in which somebody has marked what is anomalous."""
    return ~mask.reshape(len(mask), -1)[:, 0].isnan()


def _known(maps: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Those of the pictures that are marked."""
    seen = marked(mask)
    return (maps, mask) if seen.all() else (maps[seen], mask[seen])


def focal(probabilities: Tensor, mask: Tensor) -> Tensor:
    """Mean over pixels of -(1 - q)^2 ln q, q the probability of a pixel's true state.

    Args:
        probabilities: [B, 2, ...], a softmax over the two states.
        mask: [B, ...], 1 where anomalous.

    Source: focal loss (arXiv:1708.02002) as in the official code of APRIL-GAN and its successors.
    """
    probabilities, mask = _known(probabilities, mask)
    if not len(mask):
        return probabilities.sum()  # 0, and backward finds its way
    truth = torch.stack([1 - mask, mask], 1).clamp(EDGE, 1 - EDGE)
    q = (truth * probabilities).sum(1) + EDGE
    return (-((1 - q) ** GAMMA) * q.log()).mean()


def dice(probability: Tensor, mask: Tensor, rows: bool = False) -> Tensor:
    """1 - the mean over pictures of their smoothed overlap (2 sum(a y) + 1) / (sum a + sum y + 1).

    Args:
        probability, mask: [B, H, W].
        rows: take every row of a picture for a picture, as official code does where the batch is one picture.
    """
    probability, mask = _known(probability, mask)
    if not len(mask):
        return probability.sum()
    a, y = (x.flatten(0, 1) if rows else x.flatten(1) for x in (probability, mask))
    return 1 - ((2 * (a * y).sum(1) + 1) / (a.sum(1) + y.sum(1) + 1)).mean()


def balanced_focal(anomalous: Tensor, masks: Tensor) -> Tensor:
    """The focal losses of anomalous and of normal pixels of [B, H, W], each a mean over all such pixels, added."""
    anomalous, masks = _known(anomalous, masks)
    total = anomalous.new_zeros(())
    for probability, where in ((anomalous, masks), (1 - anomalous, 1 - masks)):
        each = -(1 - probability).square() * (probability + 1e-8).log()
        total = total + (each * where).sum() / (where.sum() + 1e-8)
    return total


def whole_dice(anomalous: Tensor, masks: Tensor) -> Tensor:
    """The dice loss of all pictures [B, H, W] as if they were one."""
    anomalous, masks = _known(anomalous, masks)
    overlap = 2 * (anomalous * masks).sum() + 1e-5
    return 1 - overlap / (anomalous.sum() + masks.sum() + 1e-5)


def segmentation(probabilities: Tensor, mask: Tensor, rows: bool = False) -> Tensor:
    """Focal loss plus the dice losses of both states, of [B, 2, H, W] against [B, H, W]."""
    anomalous, normal = dice(probabilities[:, 1], mask, rows), dice(probabilities[:, 0], 1 - mask, rows)
    return focal(probabilities, mask) + anomalous + normal


def whole_picture(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of [B, 2] logits against labels [B]."""
    return F.cross_entropy(logits, labels.long())
