"""What subspacead and gaussian cost; by hand: python tests/bench/bench_subspace.py

Scoring against the encoder's own pass, `fit` of 8 normals against encoding them and their rotations, and the file that
is saved: with `tiny`, and with a DINOv2-B of random weights (times and sizes do not depend on them) at 112 px, because
672 take minutes on a CPU. Each time is the smallest of some runs that take turns, of the processor and not of the wall.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

import vlad
from vlad import synthetic
from vlad.encoders.views import rotated

NORMALS = 8
SIDES = {"tiny": 224, "dino:base/random:0": 112}


def drawn(count: int, size: int) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [synthetic.sample(draw, size, defective=False).picture for _ in range(count)]


def seconds(runs: int, *jobs: Callable[[], object]) -> Iterator[float]:
    """The smallest of each job's times, the jobs taking turns."""
    times: list[list[float]] = [[] for _ in jobs]
    for _ in range(runs):
        for job, spent in zip(jobs, times, strict=True):
            start = time.process_time()
            job()
            spent.append(time.process_time() - start)
    return map(min, times)


@torch.no_grad()
def cost(method: str, encoder: vlad.Encoder, resolution: int, runs: int) -> str:
    detector = vlad.load(method, encoder=encoder, resolution=resolution)
    normals = drawn(NORMALS, resolution)
    scorer, layers = detector.scorer, detector.options["layers"]
    turns = detector.options.get("rotations", 1)

    def encoded() -> None:
        pixels = encoder.pixels(normals, resolution)
        for turn in rotated(pixels, turns):
            encoder.block_patches(turn, tuple(layers))

    encode, fit = seconds(max(1, runs // 5), encoded, lambda: detector.fit(normals))
    pixels = encoder.pixels(normals[:1], resolution)
    scorer = detector.scorer
    alone, scored = seconds(runs, lambda: encoder.block_patches(pixels, tuple(layers)), lambda: scorer(pixels))
    with tempfile.TemporaryDirectory() as folder:
        detector.save(Path(folder) / "part.safetensors")
        size = (Path(folder) / "part.safetensors").stat().st_size
    return (
        f"{method}, {encoder.name}, {resolution} px: scoring {1000 * scored:.1f} ms, the pass {1000 * alone:.1f} "
        f"({scored / alone:.2f} x); fit {fit:.2f} s, encoding {NORMALS} normals x {turns} {encode:.2f} "
        f"({fit / encode:.2f} x); file {size / 1e6:.2f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--encoder", nargs="+", default=list(SIDES), choices=SIDES)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    warnings.simplefilter("ignore", UserWarning)
    for name in asked.encoder:
        encoder = vlad.Encoder.load(name, device="cpu", dtype="float32")
        for method in ("subspacead", "gaussian"):
            print(cost(method, encoder, SIDES[name], asked.runs), flush=True)


if __name__ == "__main__":
    main()
