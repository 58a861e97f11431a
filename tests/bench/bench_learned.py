"""How close AnomalyCLIP comes to the machine's matrix-product rate, and what its value stream costs; by hand:
python tests/bench/bench_learned.py

One picture of 518 px on ViT-L/14 with untrained weights (arithmetic does not depend on them) and untrained sentences,
which are encoded in the first call and kept. Two yardsticks are measured in the same process and in turn: the rate of
bare matrix products of the tower's own shapes, which the counted arithmetic of everything, attention included, is
divided by; and a plain pass through the tower, the method without its value stream.
"""

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from vlad import Encoder
from vlad.methods.anomalyclip import AnomalyClip

SIDE, PATCH, WIDTH, BLOCKS, VALUES, JOINT = 518, 14, 1024, 24, 19, 768
TOKENS = 1 + (SIDE // PATCH) ** 2
PRODUCTS = 2 * TOKENS * 12 * WIDTH**2  # one block: in_proj 3, out_proj 1, mlp 4 + 4 times width^2
ATTENTION = 2 * 2 * TOKENS**2 * WIDTH  # one attention: similarities, then the mean of the values


def flop() -> int:
    """Of one picture, two a multiplication with its addition; all but the convolution and the projection is blocks."""
    first = 2 * TOKENS * 3 * PATCH**2 * WIDTH
    ordinary = (BLOCKS - 1) * (PRODUCTS + ATTENTION) + 2 * TOKENS * 2 * WIDTH**2  # the last: keys and values of all
    values = VALUES * (2 * TOKENS * WIDTH**2 + ATTENTION)  # out_proj; the values themselves are there
    return first + ordinary + values + 2 * TOKENS * WIDTH * JOINT


def products(dtype: torch.dtype) -> Callable[[], object]:
    """The matrix products of four blocks, back to back, each on weights of its own as in the model."""
    rows, hidden = torch.randn(TOKENS, WIDTH).to(dtype), torch.randn(TOKENS, 4 * WIDTH).to(dtype)
    shapes = [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)] * 4
    weights = [torch.randn(shape).to(dtype) for shape in shapes]
    return lambda: [F.linear(hidden if weight.shape[1] > WIDTH else rows, weight) for weight in weights]


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    encoder = Encoder.load("ViT-L-14-336-quickgelu/random:0", device="cpu", dtype=arguments.dtype)
    detector, bare = AnomalyClip(encoder), products(encoder.dtype)
    picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)

    def plain() -> None:
        encoder(encoder.pixels([picture], SIDE), layers=(BLOCKS,))

    calls = {"bare products": bare, "plain pass": plain, "AnomalyCLIP": lambda: detector.predict(picture)}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(arguments.runs + 1):  # in turn, so that a drifting clock hits all; the first warms up
        for name, call in calls.items():
            took = seconds(call)
            times[name] += [took] if run else []
    bare_times, plain_times, ours = (np.array(times[name]) for name in calls)
    rate = 4 * PRODUCTS / bare_times
    share, beside = np.median(ours * rate) / flop(), np.median(ours / plain_times)
    print(f"{encoder.dtype}: AnomalyCLIP {np.median(ours):.2f} s a picture of {SIDE} px")
    print(f"{flop() / 1e12:.2f} TFLOP counted, bare products at {np.median(rate) / 1e9:.0f} GFLOP/s: ratio {share:.3f}")
    print(f"a plain pass {np.median(plain_times):.2f} s: with the value stream {beside:.3f} x as long")


if __name__ == "__main__":
    main()
