"""What verdicts are worth: found, missed, unsure and false alarms after `fit` on a few normals, over several draws.

python examples/verdicts.py --data folder:ROOT

Two rules on the same scores: the threshold just above all normals, which is the default, and `fit(review=True)`, which
leaves scores from there up to a bound to a person.
"""

import argparse

import numpy as np

import vlad
from vlad import datasets
from vlad.thresholds import above

COLUMNS = ("found", "missed", "false alarms", "found", "unsure", "missed", "false alarms", "good unsure")


def counted(scores: np.ndarray, labels: np.ndarray, low: float, bound: float) -> list[int]:
    """COLUMNS of scores with labels (1: defective): by the threshold `low`, then by `low` and `bound`."""
    bad, good = scores[labels == 1], scores[labels == 0]
    found, sure = int(sum(bad >= low)), int(sum(bad >= bound))
    default = [found, len(bad) - found, int(sum(good >= low))]
    alarms = int(sum(good >= bound))
    return [*default, sure, found - sure, len(bad) - found, alarms, int(sum(good >= low)) - alarms]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Verdicts after fit on a few normals.")
    parser.add_argument("--data", required=True, help="as for vlad eval")
    parser.add_argument("--method", default="patch_text")
    parser.add_argument("--normals", type=int, default=8)
    parser.add_argument("--draws", type=int, default=5)
    asked = parser.parse_args()
    encoder, samples = vlad.Encoder.load("tiny"), datasets.load(asked.data)
    print("| set | defective, good |", " | ".join(COLUMNS), "|")
    print("|" + " --- |" * (len(COLUMNS) + 2))
    sums, rates = np.zeros(len(COLUMNS)), []
    for category in dict.fromkeys(sample.category for sample in samples):
        mine = [sample for sample in samples if sample.category == category]
        normal = [sample.image for sample in mine if sample.split == "train" and not sample.label]
        test = [sample for sample in mine if sample.split == "test"]
        labels, draws = np.array([sample.label for sample in test]), []
        for seed in range(asked.draws):
            picked = np.random.default_rng(seed).choice(len(normal), asked.normals, replace=False)
            detector = vlad.load(asked.method, mine[0].name, encoder=encoder)
            detector.fit([normal[number] for number in picked], review=True)
            scores = np.array([said.score for said in detector.predict([sample.image for sample in test])])
            low, bound = above(detector.calibration.scores[-1]), detector.threshold
            draws.append(counted(scores, labels, low, bound))
        mean, defective = np.mean(draws, 0), int(labels.sum())
        sums, rates = sums + mean, [*rates, mean[2] / (len(labels) - defective)]
        cells = [f"{value:.1f}" for value in mean]
        print("|", " | ".join([category, f"{defective}, {len(labels) - defective}", *cells]), "|", flush=True)
    print("|", " | ".join(["all", "", *(f"{value:.1f}" for value in sums)]), "|")
    print(f"false alarms, mean over the sets: {np.mean(rates):.3f}; promised 1 in {asked.normals + 1}")


if __name__ == "__main__":
    main()
