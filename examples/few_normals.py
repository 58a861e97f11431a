"""Which method makes most of 1, 2, 4 or 8 good pictures, alone or with another: python examples/few_normals.py

Image AUROC of `patch_text`, `patch_memory` and `subspacead` with `tiny`, of a subspace of the rows that `patch_memory`
keeps, and of some of them joined: the largest value of a weighted geometric mean of their maps, which needs no common
scale. Without `--data` on drawn parts of one kind (tiny_kinds.py), by which settings are chosen; with
`--data folder:PICTURES` on photos, which are only reported. Fitting here sets no thresholds.
"""

import argparse
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from tiny_kinds import LABEL, draw_kind
from torch import Tensor

import vlad
from vlad import datasets
from vlad.evaluate.inputs import grouped
from vlad.images import read
from vlad.maps import to_size
from vlad.memory import layer_tokens, middle_layers
from vlad.memory.layers import SIZES
from vlad.memory.statistics import Statistics
from vlad.methods.subspacead import SubspaceAD
from vlad.metrics import auroc
from vlad.scorer import Scorer

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "words": ("patch_text", {}),  # never fitted
    "patch_text": ("patch_text", {}),
    "patch_memory": ("patch_memory", {}),
    "subspacead": ("subspacead", {}),
    "subspacead .95, no rotations": ("subspacead", {"share": 0.95, "rotations": 1}),
    "rows .95": ("rows", {"share": 0.95, "rotations": 1}),
}
FLAT = "subspacead .95, no rotations"
JOINED: dict[str, dict[str, int]] = {
    "patch_memory x 2, subspacead": {"patch_memory": 2, "subspacead": 1},
    "patch_memory x 2, subspacead .95": {"patch_memory": 2, FLAT: 1},
    "patch_memory x 2, rows .95": {"patch_memory": 2, "rows .95": 1},
    "patch_memory, rows .95": {"patch_memory": 1, "rows .95": 1},
    "patch_text x 5, subspacead x 2": {"patch_text": 5, "subspacead": 2},
    "patch_text x 5, subspacead .95 x 2": {"patch_text": 5, FLAT: 2},
    "patch_text x 5, rows .95 x 1": {"patch_text": 5, "rows .95": 1},
    "patch_text x 5, rows .95 x 2": {"patch_text": 5, "rows .95": 2},
    "patch_text x 5, rows .95 x 4": {"patch_text": 5, "rows .95": 4},
    "words, subspacead .95 x 4": {"words": 1, FLAT: 4},
    "words, rows .95 x 1": {"words": 1, "rows .95": 1},
    "words, rows .95 x 2": {"words": 1, "rows .95": 2},
    "words, rows .95 x 4": {"words": 1, "rows .95": 4},
}


class Rows(SubspaceAD):
    """A subspace of what `patch_memory` keeps: two middle layers, patches alone and over 3 x 3, each of length 1."""

    def __init__(self, encoder: vlad.Encoder, **options: Any) -> None:
        super().__init__(encoder, layers=middle_layers(encoder.depth), **options)
        self.memory = Statistics(len(self.layers) * len(SIZES) * encoder.width)

    def tokens(self, pixels: Tensor) -> Tensor:
        """[B, N, C]."""
        return layer_tokens(self.encoder, pixels, self.layers, SIZES)


def made(encoder: vlad.Encoder, method: str, words: str, options: dict[str, Any]) -> Scorer:
    """The scorer of a row of METHODS."""
    if method == "rows":
        return Rows(encoder, **options)
    return vlad.load(method, words if method == "patch_text" else None, encoder=encoder, **options).scorer


@torch.no_grad()
def measure(
    encoder: vlad.Encoder, words: str, normals: Tensor, tests: Sequence[Tensor], labels: np.ndarray
) -> dict[str, float]:
    """Image AUROC in percent of every row that learnt from the normals [n, 3, S, S]."""
    scorers, scores, maps = {}, {}, {}
    for label, (method, options) in METHODS.items():
        scorers[label] = made(encoder, method, words, options)
        if label != "words":
            scorers[label].remember([normals])
    for label, scorer in scorers.items():
        found = [scorer(pixels) for pixels in tests]
        scores[label] = torch.cat([one.score for one in found])
        maps[label] = torch.cat([to_size(one.map, (56, 56)) for one in found])
    for label, weights in JOINED.items():
        mean = sum(weight * maps[one].clamp_min(1e-9).log() for one, weight in weights.items())
        scores[label] = mean.amax((1, 2))
    return {label: 100 * auroc(score.numpy(), labels) for label, score in scores.items()}


def drawn(encoder: vlad.Encoder, count: int) -> Iterator[tuple[str, str, Tensor, list[Tensor], np.ndarray]]:
    """(group, words, normals, batches of tests, labels) of drawn kinds."""
    for number in range(count):
        parts = draw_kind(encoder, [number], held_out=number % 2 == 0)
        yield "drawn kinds", "object", encoder.pixels(parts.normals), [parts.ranked], LABEL


def photographed(
    encoder: vlad.Encoder, data: str, draws: int, most: int
) -> Iterator[tuple[str, str, Tensor, list[Tensor], np.ndarray]]:
    """The same of a data set's categories, with the normals that `vlad eval` draws."""
    for (_, category), group in grouped(datasets.load(data), {}).items():
        pictures = [read(sample.image) for sample in group.tests]
        tests = [encoder.pixels(pictures[start : start + 16]) for start in range(0, len(pictures), 16)]
        labels = np.array([sample.label for sample in group.tests])
        for seed in range(draws):
            order = np.random.RandomState(seed).permutation(len(group.normals))[:most]
            normals = encoder.pixels([read(group.normals[number].image) for number in order])
            yield category, group.name, normals, tests, labels


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="What a few good pictures give, by method.")
    parser.add_argument("--data", help="a data set as `vlad eval` takes it; without it kinds are drawn")
    parser.add_argument("--kinds", type=int, default=80)
    parser.add_argument("--draws", type=int, default=5, help="of the normal pictures of a data set")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8])
    asked = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    encoder = vlad.Encoder.load("tiny")
    most = max(asked.shots)
    cases = photographed(encoder, asked.data, asked.draws, most) if asked.data else drawn(encoder, asked.kinds)
    found: dict[str, dict[str, list[list[float]]]] = {}
    for group, words, normals, tests, labels in cases:
        with encoder.sharing():
            rows = [measure(encoder, words, normals[:shots].clone(), tests, labels) for shots in asked.shots]
        for label in rows[0]:
            found.setdefault(label, {}).setdefault(group, []).append([row[label] for row in rows])
    print("| method | " + " | ".join(f"{shots} normals" for shots in asked.shots) + " |")
    print("| --- |" + " --- |" * len(asked.shots))
    for label, groups in found.items():
        mean = np.mean([np.mean(cases, axis=0) for cases in groups.values()], axis=0)
        print(f"| {label} | " + " | ".join(f"{value:.1f}" for value in mean) + " |")


if __name__ == "__main__":
    main()
