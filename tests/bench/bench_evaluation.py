"""What an evaluation adds to the methods' own time on `tiny`; by hand: python tests/bench/bench_evaluation.py

Eleven detectors at once on drawn pictures of 224 px, which lie as PNG with masks. Three parts, in turn, process time of
one thread, the smallest of several runs: the methods alone on pictures in memory; the walk (the same, and reading and
decoding pictures and masks, labels, results); the whole of `vlad.evaluate`, metrics, intervals and page pictures too.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from bench_methods import METHODS
from PIL import Image

import vlad
from vlad.datasets.samples import Sample
from vlad.detector.predicting import score_together
from vlad.evaluate.walk import Clock, Condition, Entrant, MetricSize, walk
from vlad.synthetic import sample

LEFT_OUT = ("anovl", "winclip", "musc", "adaclip")  # many passes each, which would hide the rest
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    encoder = vlad.Encoder.load("tiny", device="cpu", dtype="float32")
    names = [name for name in METHODS if name not in LEFT_OUT]
    detectors = {name: vlad.load(name.split(",")[0], "surface", encoder=encoder, **METHODS[name]) for name in names}
    assert len(detectors) == 11, names
    with tempfile.TemporaryDirectory() as folder:
        samples = list(drawn(Path(folder), given.pictures))
        parts: dict[str, Callable[[], float]] = {
            "methods alone": lambda: alone(detectors, samples),
            "walk": lambda: walked(detectors, samples),
            "evaluate, no intervals": lambda: timed(lambda: vlad.evaluate(detectors, samples, bootstrap=0)),
            "evaluate": lambda: timed(lambda: vlad.evaluate(detectors, samples)),
        }
        best = dict.fromkeys(parts, float("inf"))
        for _ in range(given.runs):
            for name, part in parts.items():
                best[name] = min(best[name], part())
    base = best["methods alone"]
    for name, seconds in best.items():
        print(f"{name:24} {1000 * seconds / given.pictures:7.1f} ms a picture, {seconds / base:.3f} x the methods")


def drawn(folder: Path, number: int) -> list[Sample]:
    """Half of them with a defect."""
    samples = []
    for index in range(number):
        one = sample(np.random.default_rng(index), 224, defective=bool(index % 2))
        place, mask = folder / f"{index:03}.png", folder / f"{index:03}_mask.png"
        Image.fromarray(one.picture).save(place)
        Image.fromarray(one.mask.astype(np.uint8) * 255).save(mask)
        label = int(one.mask.any())
        samples.append(Sample(place, mask if label else None, label, "drawn", "spot" if label else "good", "test"))
    return samples


def timed(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def alone(detectors: dict[str, vlad.Detector], samples: list[Sample]) -> float:
    pictures = [np.asarray(Image.open(one.image).convert("RGB")) for one in samples]
    scorers = [one.scorer for one in detectors.values()]
    starts = range(0, len(pictures), BATCH)
    return timed(lambda: [list(score_together(scorers, pictures[start : start + BATCH])) for start in starts])


def walked(detectors: dict[str, vlad.Detector], samples: list[Sample]) -> float:
    entrants = [Entrant(label, one) for label, one in detectors.items()]
    how = {"metric_size": MetricSize(), "condition": Condition(), "batch_size": BATCH, "clock": Clock()}
    return timed(lambda: [None for _ in walk(entrants, samples, **how)])


if __name__ == "__main__":
    main()
