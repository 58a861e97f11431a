"""What a pack changes: scores of the user's own pictures with generic words and with the pack's.

The scores are those of the default method without normals, `patch_text`, so that only the words differ.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad import metrics
from vlad.detector import loading
from vlad.prompts import PromptPack

if TYPE_CHECKING:
    from vlad.encoders.encoder import Encoder

GENERIC = "winclip"
LEAST_NORMALS = 2  # a deviation of their scores takes two


@dataclass(frozen=True)
class Words:
    """The scores that one choice of words gives.

    Attributes:
        words: name of the pack.
        normals, anomalous: picture scores, in the order of the pictures.
    """

    words: str
    normals: tuple[float, ...]
    anomalous: tuple[float, ...]

    @property
    def auroc(self) -> float | None:
        """Of good against anomalous pictures; None without anomalous ones."""
        labels = [0] * len(self.normals) + [1] * len(self.anomalous)
        return metrics.auroc([*self.normals, *self.anomalous], labels) if self.anomalous else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: how many, mean and deviation over the good pictures, and AUROC."""
        return {
            "words": self.words,
            "pictures": [len(self.normals), len(self.anomalous)],
            "normal_mean": statistics.fmean(self.normals),
            "normal_std": statistics.stdev(self.normals),
            "anomalous_mean": statistics.fmean(self.anomalous) if self.anomalous else None,
            "auroc": self.auroc,
        }


def compare_words(
    pack: PromptPack,
    name: str,
    encoder: "Encoder",
    normals: Sequence[str | Path],
    anomalous: Sequence[str | Path] = (),
) -> list[Words]:
    """Generic words and the pack's, on the same pictures; the generic pack alone is not compared with itself.

    Raises:
        ValueError: fewer than 2 good pictures.
        vlad.ImageError: a picture that cannot be read.
    """
    if len(normals) < LEAST_NORMALS:
        raise ValueError(f"{len(normals)} good pictures given; comparing words takes at least {LEAST_NORMALS}")
    generic, count, found = PromptPack.load(GENERIC), len(normals), []
    for one in [generic] if pack == generic else [generic, pack]:
        detector = loading.load(name=name, encoder=encoder, prompts=one)
        scores = tuple(prediction.score for prediction in detector.stream([*normals, *anomalous]))
        found.append(Words(one.name, scores[:count], scores[count:]))
    return found
