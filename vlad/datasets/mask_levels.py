"""From the levels of a mask file to what is marked in it: files that were compressed, resized or inverted on the way.

Nonzero is anomalous in a clean mask, be it 0/1, 0/255 or one level for each kind of defect. A mask that went through
JPEG, was resized with smoothing, or whose ground is not 0, would mark noise, edges or everything; it shows by levels
that no clean mask has.
"""

import functools
import logging
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)

KINDS = 8  # distinct levels that a clean mask may have, one for each kind of defect
EDGE = 3  # px from both modes within which a level between them is the edge of a smoothed mask


def marked(levels: np.ndarray, file: Path) -> np.ndarray:
    """bool [H, W]: where a mask [H, W] marks something; a warning names the file where that was not plain.

    Args:
        levels: as stored, 0 or more.
    """
    # counting is ten times quicker than sorting, and nearly every mask has 8 bits
    found = np.flatnonzero(np.bincount(levels.ravel())) if levels.dtype == np.uint8 else np.unique(levels)
    if len(found) > 1 and (found[0] > 0 or len(found) > KINDS or (len(found) > 2 and _smoothed(levels))):
        cut = (float(found[0]) + float(found[-1])) / 2
        clean = levels > cut
        why = f"its ground is {found[0]:g}" if found[0] > 0 else "it has levels between normal and anomalous"
        _warn_once(f"{file}: {why}, as after JPEG or a resize; taken as anomalous above {cut:g}")
    else:
        clean = levels != 0
    if clean.mean() > 0.5:
        _warn_once(
            f"{file}: {clean.mean():.0%} of the picture is marked; is the mask inverted? anomalous must not be 0"
        )
    return clean


def _smoothed(levels: np.ndarray) -> bool:
    """Whether the levels between the lowest and the highest lie along edges alone, as a smooth resize leaves them."""
    low, high = levels == levels.min(), levels == levels.max()
    if levels.max() < 32:  # small numbers are indices of kinds
        return False
    from scipy import ndimage

    size = 2 * EDGE + 1
    near = ndimage.maximum_filter(low, size) & ndimage.maximum_filter(high, size)
    return bool(near[~low & ~high].mean() > 0.9)


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)
