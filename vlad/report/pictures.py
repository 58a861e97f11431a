"""The small pictures of a report: the photo with what is marked in it outlined, and beside it the map in colour."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vlad.datasets.samples import Sample
from vlad.images.drawing import draw_overlay, outlined

SIDE = 184  # px of the longer side


class Shown(NamedTuple):
    """A picture that says something about a detector."""

    kind: str  # "found", "missed" or "false alarm"
    score: float
    sample: Sample
    picture: np.ndarray  # uint8 [H, W, 3], as it was measured
    truth: np.ndarray | None  # bool, what is marked in it
    amap: np.ndarray | None  # float [h, w]


def thumbnails(shown: Sequence[Shown], colours: tuple[float, float]) -> list[dict[str, Any]]:
    """What a report keeps of each picture: kind, score, defect, name, and two JPEG pictures as base64 text.

    Args:
        colours: the map values that are drawn cold and hot, the same for all.
    """
    kept = []
    for one in shown:
        photo = _small(one.picture)
        size = photo.shape[:2]
        entry: dict[str, Any] = {"kind": one.kind, "score": round(one.score, 6), "defect": one.sample.defect}
        entry["name"] = "/".join(one.sample.image.parts[-3:])
        entry["photo"] = _jpeg(outlined(photo, one.truth))
        if one.amap is not None:
            amap = np.asarray(Image.fromarray(one.amap).resize((size[1], size[0]), Image.Resampling.BILINEAR))
            overlay = draw_overlay(photo, amap, low=colours[0], high=colours[1], alpha=0.8)
            entry["map"] = _jpeg(np.asarray(overlay))
        kept.append(entry)
    return kept


def _small(picture: np.ndarray) -> np.ndarray:
    image = Image.fromarray(picture)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _jpeg(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=80, optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")
