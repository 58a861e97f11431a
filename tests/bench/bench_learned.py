"""How close learned methods come to the machine's matrix-product rate; by hand:
python tests/bench/bench_learned.py [--method crane ...]

One picture on ViT-L/14, with the activation that the authors' weights were learned with, untrained weights (arithmetic
does not depend on them) and untrained prompts; sentences that do not depend on the picture are encoded in the first
call and kept. Two yardsticks are measured in the same process and in turn: the rate of bare matrix products of the
tower's own shapes, which the counted arithmetic of everything, attention included, is divided by; and a plain pass.
Seconds are the process's own, the least of several runs.
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from vlad import Encoder
from vlad.detector import Detector
from vlad.methods import method_class

PATCH, WIDTH, BLOCKS, VALUES, JOINT = 14, 1024, 24, 19, 768
SIDES = {"anomalyclip": 518, "crane": 518, "faprompt": 518, "sowa": 336}
SIDES |= dict.fromkeys(("aaclip", "bayes_pfl", "filo", "vcpclip"), 518)
NAME = "bolt"  # of what the methods that read a name look for
READ = {"vcpclip": (2, 10), "bayes_pfl": (60, 13), "filo": (106, 20.7), "faprompt": (10, 12)}  # sentences, mean tokens
ATTENTIONS = {"anomalyclip": 1, "crane": 3, "faprompt": 1, "sowa": 0}  # of a block beside its own
TAPS, WINDOW = 4, 12  # of SOWA


def tokens(side: int) -> int:
    return 1 + (side // PATCH) ** 2


def products(T: int) -> int:
    """Of one block: in_proj 3, out_proj 1, mlp 4 + 4 times width^2."""
    return 2 * T * 12 * WIDTH**2


def attention(T: int) -> int:
    """Similarities, then the mean of the values."""
    return 2 * 2 * T**2 * WIDTH


def flop(method: str, side: int) -> float:
    """Of one picture, two a multiplication with its addition."""
    T, beside = tokens(side), ATTENTIONS.get(method, 0)
    first, projection = 2 * T * 3 * PATCH**2 * WIDTH, 2 * T * WIDTH * JOINT
    counted = first + (BLOCKS - 1) * (products(T) + attention(T)) + projection
    counted += math.prod((12, 2, 12 * JOINT**2, *READ.get(method, (0,))))  # sentences that depend on the picture
    if method in ("aaclip", "bayes_pfl", "filo", "vcpclip"):
        return counted + products(T) + attention(T) + beside_the_tower(method, T)
    if method == "sowa":  # all of the last block; of each tap values, output, linear layer, projection and windows
        tap = 2 * T * (3 * WIDTH**2 + WIDTH * JOINT) + 2 * 2 * T * WINDOW**2 * WIDTH
        return counted + products(T) + attention(T) + TAPS * tap
    counted += 2 * T * 2 * WIDTH**2  # of the last block keys and values of all
    return counted + VALUES * (2 * T * WIDTH**2 + beside * attention(T))  # out_proj; the values themselves are there


def beside_the_tower(method: str, T: int) -> int:
    """Of the methods with learned layers on four taps: those layers, and what they make of all patches."""
    heads, square = TAPS * 2 * T * WIDTH * JOINT, 2 * T * WIDTH**2
    if method == "aaclip":  # residual layers behind six blocks, and the picture's own head
        return heads + 6 * square + 2 * T * WIDTH * JOINT
    if method == "vcpclip":  # keys and values of each tap
        return heads + TAPS * 2 * square
    if method == "bayes_pfl":  # the weighting of all taps; 60 sentences that attend, and their cosines
        return heads + 2 * T * TAPS * WIDTH * WIDTH // 2 + TAPS * 3 * 2 * T * 60 * JOINT
    middles = 2 * (4 * square + attention(T))  # the attention of two blocks once more
    return heads + (BLOCKS - 6) * (square + attention(T)) + middles + 3 * 49 * 2 * T * WIDTH * JOINT


def bare(T: int, dtype: torch.dtype) -> Callable[[], object]:
    """The matrix products of four blocks, back to back, each on weights of its own as in the model."""
    rows, hidden = torch.randn(T, WIDTH).to(dtype), torch.randn(T, 4 * WIDTH).to(dtype)
    shapes = [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)] * 4
    weights = [torch.randn(shape).to(dtype) for shape in shapes]
    return lambda: [F.linear(hidden if weight.shape[1] > WIDTH else rows, weight) for weight in weights]


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()  # of all threads: on a busy machine others' work is not counted
    call()
    return time.process_time() - start


@torch.no_grad()
def measure(method: str, encoder: Encoder, side: int, runs: int) -> None:
    detector = Detector(method_class(method)(encoder, resolution=side))
    if detector.scorer.words == "required":
        detector.describe(NAME)
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)

    def plain() -> None:
        encoder(encoder.pixels([picture], side), layers=(BLOCKS,))

    calls = {"bare": bare(tokens(side), encoder.dtype), "plain": plain, method: lambda: detector.predict(picture)}
    least = dict.fromkeys(calls, math.inf)
    for run in range(runs + 1):  # in turn, so that a drifting clock hits all; the first warms up
        for name, call in calls.items():
            took = seconds(call)
            least[name] = min(least[name], took) if run else math.inf
    rate, counted = 4 * products(tokens(side)) / least["bare"], flop(method, side)
    share, beside = least[method] * rate / counted, least[method] / least["plain"]
    print(f"{method}, {encoder.dtype}: {least[method]:.2f} s a picture of {side} px, {beside:.3f} x a plain pass;")
    print(f"    {counted / 1e12:.2f} TFLOP counted, bare products at {rate / 1e9:.0f} GFLOP/s: ratio {share:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--side", type=int, help="of the picture, in the place of the paper's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    for method in arguments.method:
        official: Any = method_class(method)
        name = f"{official.official_encoder.partition('/')[0]}/random:0"
        encoder = Encoder.load(name, device="cpu", dtype=arguments.dtype)
        measure(method, encoder, arguments.side or SIDES[method], arguments.runs)


if __name__ == "__main__":
    main()
