"""What int8 costs in AUROC: `python tests/bench/bench_int8_quality.py --data folder:../shared/data`; by hand.

Each method with `tiny` in float32 and in another arithmetic on the same pictures of every category: the change of the
image AUROC, its mean and its worst, and the largest change of a score. Methods with normals learn from the first eight
of the training split, without a threshold. Prints a Markdown table.
"""

import argparse
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import vlad
from vlad import datasets
from vlad.evaluate.inputs import grouped
from vlad.images import read
from vlad.metrics import auroc
from vlad.scorer import Scorer

WORDS = ("patch_text", "winclip", "clip_surgery", "clip_ad", "anovl", "april_gan", "anomalyclip", "adaptclip")
WORDS += ("adaclip", "crane", "sowa", "aaclip", "vcpclip")
NORMALS = ("patch_text", "patch_memory", "clip_surgery", "adaptclip", "subspacead", "gaussian", "laft")
OPTIONS: dict[str, dict[str, Any]] = {"subspacead": {"rotations": 1}, "anovl": {"views": 1}}
ROWS: dict[str, tuple[str, bool]] = {method: (method, False) for method in WORDS}
ROWS |= {"musc": ("musc", False), **{f"{method}, 8 normals": (method, True) for method in NORMALS}}
MEAN, WORST = 0.005, 0.015  # a method that loses more does not compute in int8
Batches = Sequence[torch.Tensor]


def scorers(encoder: vlad.Encoder, words: str, normals: torch.Tensor) -> dict[str, Scorer]:
    made: dict[str, Scorer] = {}
    for label, (method, fitted) in ROWS.items():
        text = vlad.methods.method_class(method).words != "none"
        made[label] = vlad.load(method, words if text else None, encoder=encoder, **OPTIONS.get(method, {})).scorer
        if fitted:
            made[label].remember([normals])
            for memory in made[label].memories().values():
                memory.ids = [str(number) for number in range(len(normals))]
                memory.condense()
    return made


def scored(encoder: vlad.Encoder, words: str, normals: torch.Tensor, tests: Batches) -> dict[str, np.ndarray]:
    """Scores of every row."""
    made, found = scorers(encoder, words, normals), {}
    together = {label: scorer.score_set(iter(tests)) for label, scorer in made.items() if scorer.score_set is not None}
    for label, sets in together.items():
        found[label] = [one.score for one in sets]
    for pixels in tests:
        with encoder.sharing():
            for label in made.keys() - together.keys():
                found.setdefault(label, []).append(made[label](pixels).score)
    return {label: torch.cat(parts).numpy() for label, parts in found.items()}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--runtime", default="torch", help="openvino takes its int8 ranges from the normals")
    parser.add_argument("--categories", nargs="*")
    parser.add_argument("--rows", nargs="*", help="of the table; all unless given")
    arguments = parser.parse_args()
    for label in [label for label in ROWS if arguments.rows and label not in arguments.rows]:
        del ROWS[label]
    warnings.simplefilter("ignore")
    changes: dict[str, list[tuple[float, float]]] = {label: [] for label in ROWS}
    before: dict[str, list[float]] = {label: [] for label in ROWS}
    exact = vlad.Encoder.load("tiny", device="cpu", dtype="float32")
    for (_, category), group in grouped(datasets.load(arguments.data), {}).items():
        if arguments.categories and category not in arguments.categories:
            continue
        good, tests = [read(one.image) for one in group.normals], group.tests
        labels = np.array([one.label for one in tests])
        other = vlad.Encoder.load("tiny", device="cpu", dtype=arguments.dtype, runtime=arguments.runtime)
        other.calibrate(good)
        batches = [exact.pixels([read(one.image) for one in tests[at : at + 8]]) for at in range(0, len(tests), 8)]
        normals, words = exact.pixels(good[:8]), group.name
        ours, theirs = (scored(encoder, words, normals, batches) for encoder in (exact, other))
        for label in ROWS:
            base = auroc(ours[label], labels)
            before[label].append(base)
            changes[label].append((auroc(theirs[label], labels) - base, float(abs(theirs[label] - ours[label]).max())))
        print(f"{category}: {len(tests)} pictures", flush=True)
    print("| method | AUROC in float32 | change, mean | worst | largest change of a score | within |")
    print("| --- | --- | --- | --- | --- | --- |")
    for label, found in changes.items():
        change, moved = np.array(found).T
        fine = "yes" if change.mean() >= -MEAN and change.min() >= -WORST else "no"
        row = f"{np.mean(before[label]):.4f} | {change.mean():+.4f} | {change.min():+.4f} | {moved.max():.3f} | {fine}"
        print(f"| {label} | {row} |")


if __name__ == "__main__":
    main()
