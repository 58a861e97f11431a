"""Seconds a picture with `tiny`, and memory over a long stream; by hand: python tests/bench/bench_tiny.py"""

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import vlad


def resident() -> float:
    """Megabytes of this process in memory now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def pictures(count: int) -> Iterator[np.ndarray]:
    """Different noise pictures of different sizes, one at a time."""
    draw = np.random.default_rng(0)
    for _ in range(count):
        yield draw.integers(0, 256, (*draw.integers(200, 400, 2), 3), dtype=np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stream", type=int, default=2000, help="pictures in the memory test")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    encoder = vlad.Encoder.load("tiny", device="cpu", dtype="float32")
    for method in ("patch_text", "winclip"):
        detector = vlad.load(method, "metal bolt", encoder=encoder)
        for batch_size in (1, 8):
            sample = list(pictures(32))
            detector.predict(sample[:8], batch_size=batch_size)
            times = []
            for _ in range(5):
                start = time.perf_counter()
                detector.predict(sample, batch_size=batch_size)
                times.append((time.perf_counter() - start) / len(sample))
            print(f"{method}, batches of {batch_size}: {statistics.median(times) * 1000:.1f} ms a picture")
    detector = vlad.load("patch_text", "metal bolt", encoder=encoder)
    memory = []
    for number, _ in enumerate(detector.stream(pictures(arguments.stream)), start=1):
        if number in (arguments.stream // 10, arguments.stream // 2, arguments.stream):
            memory.append(f"{resident():.0f} MB after {number}")
    print(f"resident memory of one stream: {', '.join(memory)}")


if __name__ == "__main__":
    main()
