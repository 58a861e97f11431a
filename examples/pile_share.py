"""How many defective pictures an unlabelled pile may hold: `musc` against `patch_text` on the same pictures.

python examples/pile_share.py --data folder:ROOT
"""

import argparse

import numpy as np

import vlad
from vlad import datasets
from vlad.metrics import auroc


def piles(labels: np.ndarray, share: float, draws: int) -> list[np.ndarray]:
    """Numbers of all good pictures and of random defective ones, `share` of the pile; without repeats of one pile."""
    good, bad = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    count = min(len(bad), max(1, round(len(good) * share / (1 - share))))
    draws = 1 if count == len(bad) else draws
    picks = [np.random.default_rng(seed).choice(bad, count, replace=False) for seed in range(draws)]
    return [np.concatenate([good, pick]) for pick in picks]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="musc against patch_text over the share of defective pictures.")
    parser.add_argument("--data", required=True, help="as for vlad eval")
    parser.add_argument("--encoder", default="tiny")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.2, 0.5, 0.99])
    parser.add_argument("--draws", type=int, default=5)
    asked = parser.parse_args()
    encoder = vlad.Encoder.load(asked.encoder)
    samples = [sample for sample in datasets.load(asked.data) if sample.split == "test"]
    print("| `musc` / `patch_text` |", *(f"at most {100 * share:.0f} % defective |" for share in asked.shares))
    print("| --- |" + " --- |" * len(asked.shares))
    means: list[list[np.ndarray]] = []
    for category in dict.fromkeys(sample.category for sample in samples):
        mine = [sample for sample in samples if sample.category == category]
        images, labels = [sample.image for sample in mine], np.array([sample.label for sample in mine])
        words = vlad.load("patch_text", mine[0].name, encoder=encoder).predict(images)
        by_words, cells = np.array([prediction.score for prediction in words]), []
        means.append([])
        for share in asked.shares:
            found = []
            for pile in piles(labels, share, asked.draws):
                each_other = vlad.load("musc", encoder=encoder).predict([images[number] for number in pile])
                scores = np.array([prediction.score for prediction in each_other])
                found.append((auroc(scores, labels[pile]), auroc(by_words[pile], labels[pile])))
            means[-1].append(100 * np.mean(found, 0))
            cells.append("{:.1f} / {:.1f}".format(*means[-1][-1]) + f" ({labels[pile].sum()} of {len(pile)})")
        print("|", " | ".join([category, *cells]), "|", flush=True)
    print("|", " | ".join(["mean", *("{:.1f} / {:.1f}".format(*both) for both in np.mean(means, 0))]), "|")


if __name__ == "__main__":
    main()
