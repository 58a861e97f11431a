"""What a pack changes: scores of the user's own pictures with generic words, with the pack's, and with it in context.

The scores are those of the default method without normals, `patch_text`, so that only the words differ. Each good
picture's contextual score is held against the other good pictures: its own would flatter it.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vlad
from vlad.prompts import PromptPack, phrase_prototypes, prototypes
from vlad.prompts.check import embeddings
from vlad.prompts.contextual import contextual_prototype, phrase_statistics

if TYPE_CHECKING:
    from torch import Tensor

    from vlad.encoders.clip import Encoder

GENERIC = "winclip"
LEAST_NORMALS = 3  # two remain to hold the third against


@dataclass(frozen=True)
class Words:
    """The scores that one choice of words gives.

    Attributes:
        words: name of the pack, with "in context" where phrases were weighed for each picture.
        normals, anomalous: picture scores, in the order of the pictures.
    """

    words: str
    normals: tuple[float, ...]
    anomalous: tuple[float, ...]

    @property
    def auroc(self) -> float | None:
        """Of good against anomalous pictures; None without anomalous ones."""
        labels = [0] * len(self.normals) + [1] * len(self.anomalous)
        return vlad.metrics.auroc([*self.normals, *self.anomalous], labels) if self.anomalous else None

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
    """Generic words, the pack's, and the pack's in context, on the same pictures.

    Raises:
        ValueError: fewer than 3 good pictures.
        vlad.ImageError: a picture that cannot be read.
    """
    if len(normals) < LEAST_NORMALS:
        raise ValueError(f"{len(normals)} good pictures given; comparing words takes at least {LEAST_NORMALS}")
    pictures, count = [*normals, *anomalous], len(normals)
    generic = PromptPack.load(GENERIC)
    found = []
    for one in [generic] if pack == generic else [generic, pack]:
        detector = vlad.load(name=name, encoder=encoder, prompts=one)
        found.append((one.name, [prediction.score for prediction in detector.stream(pictures)]))
    states = _contextual_prototypes(pack, generic, name, encoder, embeddings(encoder, pictures), count)
    detector, scores = vlad.load(name=name, encoder=encoder, prompts=pack), []
    for picture, state in zip(pictures, states, strict=True):
        detector.prototypes = state
        scores.append(detector.predict(picture).score)
    found.append((f"{pack.name}, in context", scores))
    return [Words(words, tuple(scores[:count]), tuple(scores[count:])) for words, scores in found]


def _contextual_prototypes(
    pack: PromptPack, generic: PromptPack, name: str, encoder: "Encoder", images: "Tensor", normals: int
) -> "Iterator[Tensor]":
    """[2, D] for each picture; the first `normals` of `images` [n, D] are good ones."""
    import torch

    phrases = phrase_prototypes(encoder, pack, name)[1][len(pack.normal) :]  # [A, D]
    normal, usual = prototypes(encoder, pack, name)[0], prototypes(encoder, generic, name)[1]
    for index, image in enumerate(images):
        others = [i for i in range(normals) if i != index]
        seen = phrase_statistics(images[others], phrases)
        yield torch.stack([normal, contextual_prototype(image, usual, phrases, seen)])
