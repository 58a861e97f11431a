"""What MuSc's mutual scoring costs; by hand: python tests/bench/bench_musc.py

First the scoring alone on random features, against the same computation over ordered pairs with torch.cdist: ratios of
processor time, which other programs on the machine disturb less; memory is the process's resident set, sampled every
few milliseconds, less what it was before. Then `vlad score --method musc` with `tiny` on drawn pictures: time, largest
memory of the whole process for sets of several sizes, and how true the progress bar's estimate is.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vlad import synthetic
from vlad.memory import mutual

MIB = 2**20
PAGE = resource.getpagesize()


def resident() -> int:
    """Bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


def measured(call: Callable[[], Tensor]) -> tuple[Tensor, float, float]:
    """(result, seconds of processor time, MiB that the process grew by at most meanwhile)."""
    before, most, over = resident(), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            most[0] = max(most[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.process_time()
    result = call()
    seconds = time.process_time() - start
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
    z = made_features(N, P, C)
    mutual.mutual_scores(z[:2])
    ours, fast, grown = measured(lambda: mutual.mutual_scores(z))
    theirs, slow, _ = measured(lambda: ordered_pairs(z))
    table, rate = 4 * N * N * P / MIB, N * (N - 1) * P * P * C / fast / 1e9
    print(
        f"{N} pictures, {P} patches of width {C}, float32: {fast:.1f} s; cdist over ordered pairs {slow:.1f} s; ratio "
        f"{fast / slow:.2f}; largest difference {(ours - theirs).abs().max():.1e}; {rate:.0f} GFLOP/s; beyond the "
        f"features it grew by {grown:.0f} MiB, {table:.0f} MiB of it the table of distances"
    )
    native = torch.cpu.get_capabilities().get("avx512_bf16") or torch.cpu.get_capabilities().get("amx_bf16")
    part = z if native else z[:6]
    exact = ours if native else mutual.mutual_scores(part)
    half, seconds, _ = measured(lambda: mutual.mutual_scores(part, arithmetic=torch.bfloat16))
    moves = half - exact
    error = f"scores move by {moves.abs().max():.1e} at most, their standard deviation is {moves.std():.1e}"
    speed = f"{fast / seconds:.2f} x faster" if native else "not native on this processor, speed not measured"
    print(f"bfloat16: {speed}; {error}, where scores span {exact.min():.2f} to {exact.max():.2f}")


def end_to_end(sizes: list[int], dtype: str, side: int) -> None:
    """`vlad score --method musc` with `tiny` on drawn pictures, each size in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        drawn, files, rest, P = np.random.default_rng(0), [], [], (side // 16) ** 2
        for number in range(max(sizes)):
            files.append(f"{place}/{number:04}.png")
            Image.fromarray(synthetic.sample(drawn).picture).save(files[-1])
        for size in sizes:
            seconds, peak, error = score(files[:size], dtype, side)
            features = size * 4 * P * 128 * (4 if dtype == "float32" else 2) / MIB
            table = min(4 * size * size * P, mutual.TABLE_BYTES) / MIB  # past that it lies in a file
            rest.append(peak - features - table)
            print(
                f"{size} pictures of {side} px with tiny, {dtype}: {seconds:.1f} s, largest memory {peak:.0f} MiB: "
                f"features {features:.0f}, table of distances {table:.0f}, all else {rest[-1]:.0f}; after a quarter "
                f"of the pairs the end was told within {error:.0%} of the whole time",
                flush=True,
            )
        print(f"all else, over these sizes: {max(rest) - min(rest):.0f} MiB apart")


WATCHED = """
import sys, time
from vlad.methods.musc import MuSc
told, report = [], MuSc._report
MuSc._report = lambda self, *how: (told.append((*how, time.monotonic())), report(self, *how))
from vlad.cli import main
try:
    main()
finally:
    told = [(done / total, at) for name, done, total, at in told if name == "comparing"]
    (first, start), (_, end) = told[0], told[-1]
    ends = [at + (1 - share) * (at - start) / (share - first) for share, at in told if share > 0.25]
    errors = [abs(one - end) / (end - start) for one in ends]
    print(max(errors), file=sys.stderr)
"""


def score(files: list[str], dtype: str, side: int) -> tuple[float, float, float]:
    """(seconds, largest resident MiB, worst error of the told end as a share of the whole) of one run."""
    told = [sys.executable, "-c", WATCHED, "score", *files, "--method", "musc", "--dtype", dtype, "--json"]
    told += ["--resolution", str(side)]
    start = time.perf_counter()
    child = subprocess.Popen(told, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said = child.stderr.read().splitlines()
    _, code, used = os.wait4(child.pid, 0)
    assert code == 0, said
    return time.perf_counter() - start, used.ru_maxrss * 1024 / MIB, float(said[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=32, help="of the scoring alone; 0 leaves it out")
    parser.add_argument("--sets", type=int, nargs="*", default=[100, 200, 400], help="sizes of the sets for `tiny`")
    parser.add_argument("--dtype", default="float32", help="of these runs")
    parser.add_argument("--side", type=int, default=224, help="of the pictures in these runs; 112 takes a sixteenth")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.pictures:
        scoring(arguments.pictures, 1369, 1024)
    if arguments.sets:
        end_to_end(arguments.sets, arguments.dtype, arguments.side)


if __name__ == "__main__":
    main()
