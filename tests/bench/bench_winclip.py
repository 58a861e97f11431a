"""How close WinCLIP comes to the machine's matrix-product rate; by hand: python tests/bench/bench_winclip.py

One picture on ViT-B-16-plus-240 with untrained weights (arithmetic does not depend on them). The yardstick is measured
in the same process: the time of the method's matrix products alone, all window tokens in all twelve blocks.
"""

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

import vlad

TOKENS = 226 + 196 * 5 + 169 * 10  # the picture, 2 x 2 windows, 3 x 3 windows
WIDTH, BLOCKS = 896, 12
FLOP = 2 * TOKENS * 12 * WIDTH**2 * BLOCKS  # in_proj 3, out_proj 1, mlp 4 + 4 times width^2


def seconds(call: Callable[[], object], runs: int) -> list[float]:
    call()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def products(dtype: torch.dtype) -> Callable[[], None]:
    """All matrix products of one picture, back to back, each on weights of its own as in the model."""
    rows, hidden = torch.randn(TOKENS, WIDTH).to(dtype), torch.randn(TOKENS, 4 * WIDTH).to(dtype)
    shapes = [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)]
    weights = [[torch.randn(shape).to(dtype) for shape in shapes] for _ in range(BLOCKS)]

    def call() -> None:
        for block in weights:
            for weight in block:
                F.linear(hidden if weight.shape[1] > WIDTH else rows, weight)

    return call


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    picture = np.random.default_rng(0).integers(0, 256, (240, 240, 3), dtype=np.uint8)
    maps, times = {}, {}
    native = torch.cpu.get_capabilities().get("avx512_bf16") or torch.cpu.get_capabilities().get("amx_bf16")
    for dtype in ["float32", "bfloat16"] if native else ["float32"]:
        detector = vlad.load("winclip", "metal bolt", encoder="ViT-B-16-plus-240/random:0", dtype=dtype, device="cpu")
        yard, ours = [], []
        for _ in range(arguments.runs):  # in turn, so that a drifting clock hits both
            yard += seconds(products(getattr(torch, dtype)), 1)
            ours += seconds(lambda: detector.predict(picture), 1)  # noqa: B023
        times[dtype] = float(np.median(ours))
        maps[dtype] = detector.predict(picture).map
        ratio = np.median(np.array(ours) / np.array(yard))
        print(
            f"{dtype}: {times[dtype]:.2f} s a picture; bare products at {FLOP / np.median(yard) / 1e9:.0f} GFLOP/s; "
            f"ratio {ratio:.3f}"
        )
    if native:
        change = np.abs(maps["float32"] - maps["bfloat16"]).max()
        print(
            f"bfloat16 is {times['float32'] / times['bfloat16']:.2f} x faster; largest change of the map {change:.4f}"
        )
    else:
        print("no native bfloat16 on this processor: not measured")


if __name__ == "__main__":
    main()
