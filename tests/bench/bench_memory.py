"""What a memory costs; by hand: python tests/bench/bench_memory.py

First the file of a detector that learnt from 8 pictures with ViT-B-16-plus-240 (untrained weights; sizes do not depend
on them) in float32, and how long it takes to read without the encoder; a coarser dtype halves it. Then, where faiss is
installed, the exact search against the approximate one on tokens of drawn pictures, for memories of several sizes,
beside the encoder's own time.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import vlad
from vlad import synthetic
from vlad.detector import saving
from vlad.memory import layer_tokens, middle_layers
from vlad.memory.nearest import Cells, faiss_module, nearest, recall


def drawn(count: int, size: int) -> Iterator[np.ndarray]:
    draw = np.random.default_rng(0)
    return (synthetic.sample(draw, size, defective=False).picture for _ in range(count))


def file_of(shots: int) -> None:
    detector = vlad.load("winclip", "part", encoder="ViT-B-16-plus-240/random:0", dtype="float32", device="cpu")
    detector.fit(list(drawn(shots, 240)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.safetensors"
        detector.save(path)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            saving.read(path)
            times.append(time.perf_counter() - start)
        print(f"winclip, {shots} shots: {path.stat().st_size / 1e6:.1f} MB, read in {np.median(times):.3f} s")


@torch.no_grad()
def tokens(count: int) -> tuple[Tensor, float]:
    """Rows [R, C] of drawn pictures with `tiny`, at least `count`, and the seconds that one picture's encoding took."""
    encoder = vlad.Encoder.load("tiny", device="cpu", dtype="float32")
    pictures, parts, spent = drawn(-(-count // 196), 224), [], 0.0
    while batch := [picture for picture, _ in zip(pictures, range(16), strict=False)]:
        start = time.perf_counter()
        parts.append(layer_tokens(encoder, encoder.pixels(batch), middle_layers(encoder.depth), (1, 3)))
        spent += time.perf_counter() - start
    rows = torch.cat(parts)
    return F.normalize(rows, dim=-1).flatten(0, 1), spent / len(rows)


def search(sizes: list[int]) -> None:
    asked = 8 * 196
    rows, encoding = tokens(asked + max(sizes))
    queries, rows = rows[:asked], rows[asked:]
    print(f"{rows.shape[1]} wide; the encoder takes {encoding:.3f} s a picture of 196 rows")
    for size in sizes:
        start = time.perf_counter()
        exact = nearest(queries, rows[:size], metric="euclidean")[0]
        slow = time.perf_counter() - start
        start = time.perf_counter()
        cells = Cells(rows[:size], "euclidean")
        built = time.perf_counter() - start
        cells.nearest(queries[:1])  # it measures its recall at the first call
        start = time.perf_counter()
        found = cells.nearest(queries)[0]
        fast = time.perf_counter() - start
        print(
            f"{size} rows: exact {slow / 8:.3f} s a picture, faiss {fast / 8:.3f} s after {built:.1f} s for its cells; "
            f"recall {recall(found, exact):.3f}, distances {100 * float((found / exact).mean() - 1):.2f} % longer"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--rows", type=int, nargs="*", default=[12_500, 25_000, 50_000, 100_000])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    file_of(arguments.shots)
    try:
        faiss_module()
    except ModuleNotFoundError as error:
        print(error)
    else:
        search(arguments.rows)


if __name__ == "__main__":
    main()
