"""What MuSc's mutual scoring costs; by hand: python tests/bench/bench_musc.py

First the scoring alone on random features, against the same computation over ordered pairs with torch.cdist. Then the
whole method with `tiny` on made pictures: time and largest memory for sets of several sizes, each in a process of its
own. Memory is the process's resident set, sampled every few milliseconds, less what it was before.
"""

import argparse
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MIB = 2**20
PAGE = resource.getpagesize()


def resident() -> int:
    """Bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


def measured(call: Callable[[], Tensor]) -> tuple[Tensor, float, float]:
    """(result, seconds, MiB that the process grew by at most meanwhile)."""
    before, most, over = resident(), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            most[0] = max(most[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    over.set()
    watcher.join()
    return result, seconds, (max(most[0], before) - before) / MIB


def made_features(N: int, P: int, C: int) -> Tensor:
    noise = torch.randn(N, P, C, generator=torch.Generator().manual_seed(0))
    return F.normalize(noise.add_(torch.randn(1, P, C, generator=torch.Generator().manual_seed(1))), dim=-1)


def ordered_pairs(z: Tensor) -> Tensor:
    """The scores [N, P] by one cdist for each ordered pair."""
    N = len(z)
    scores = []
    for i in range(N):
        closest = torch.stack([torch.cdist(z[i], z[j]).amin(1) for j in range(N) if j != i])  # [N - 1, P]
        scores.append(closest.topk(max(1, int(0.3 * (N - 1))), dim=0, largest=False).values.mean(0))
    return torch.stack(scores)


def scoring(N: int, P: int, C: int) -> None:
    from vlad.mutual import mutual_scores

    z = made_features(N, P, C)
    mutual_scores(z[:2])
    ours, fast, grown = measured(lambda: mutual_scores(z))
    theirs, slow, _ = measured(lambda: ordered_pairs(z))
    table, rate = 4 * N * N * P / MIB, N * (N - 1) * P * P * C / fast / 1e9
    print(
        f"{N} pictures, {P} patches of width {C}, float32: {fast:.1f} s; cdist over ordered pairs {slow:.1f} s; ratio "
        f"{fast / slow:.2f}; largest difference {(ours - theirs).abs().max():.1e}; {rate:.0f} GFLOP/s; beyond the "
        f"features it grew by {grown:.0f} MiB, {table:.0f} MiB of it the table of distances"
    )
    native = torch.cpu.get_capabilities().get("avx512_bf16") or torch.cpu.get_capabilities().get("amx_bf16")
    part = z if native else z[:6]
    exact = ours if native else mutual_scores(part)
    half, seconds, _ = measured(lambda: mutual_scores(part, arithmetic=torch.bfloat16))
    moves = half - exact
    error = f"scores move by {moves.abs().max():.1e} at most, their standard deviation is {moves.std():.1e}"
    speed = f"{fast / seconds:.2f} x faster" if native else "not native on this processor, speed not measured"
    print(f"bfloat16: {speed}; {error}, where scores span {exact.min():.2f} to {exact.max():.2f}")


def whole(N: int) -> None:
    """One set with `tiny`, and what it takes; printed by a process of its own."""
    from vlad import Encoder, mutual
    from vlad.methods.musc import MuSc

    encoder = Encoder.load("tiny", device="cpu", dtype="float32")
    draw = np.random.default_rng(0)
    common = draw.integers(0, 256, (28, 28, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)

    def batches(count: int):
        for _ in range(0, count, 8):
            yield encoder.pixels([common ^ draw.integers(0, 32, common.shape, dtype=np.uint8) for _ in range(8)])

    def call(count: int) -> Tensor:
        with torch.no_grad():  # results are let go as they come, as `vlad score` does
            return torch.tensor([float(score.sum()) for score, _, _ in MuSc(encoder).score(batches(count))])

    call(16)
    _, seconds, grown = measured(lambda: call(N))
    P, C, L = 196, encoder.width, encoder.depth
    tokens = N * L * P * C * 4 / MIB
    table = min(4 * N * N * P, mutual.TABLE_BYTES) / MIB  # past that it lies in a file
    print(
        f"{N} pictures with tiny: {seconds:.1f} s, grew by {grown:.0f} MiB: tokens {tokens:.0f} MiB, table {table:.0f} "
        f"MiB, all else, the encoder's pass over 8 pictures among it, {grown - tokens - table:.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=32, help="of the scoring alone")
    parser.add_argument("--sets", type=int, nargs="*", default=[100, 200, 400], help="sizes of the sets for `tiny`")
    parser.add_argument("--whole", type=int, help="one such set, in this process")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.whole:
        whole(arguments.whole)
        return
    scoring(arguments.pictures, 1369, 1024)
    for size in arguments.sets:
        again = [sys.executable, __file__, "--threads", str(arguments.threads), "--whole", str(size)]
        subprocess.run(again, check=True)


if __name__ == "__main__":
    main()
