"""How much faster other arithmetic and runtimes are than torch float32: `python tests/bench/bench_int8.py`; by hand.

One detector for each arithmetic, in turn in one process, the smallest of several runs; ratios of wall time, or with
`--cpu` of process time, which says more beside other work. Then how far tokens and scores are from float32's. Untrained
weights do: speed does not depend on them. What int8 does to real ones, `vlad check` says on one's own pictures.
"""

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import vlad

KINDS = ("torch float32", "torch bfloat16", "torch int8", "openvino float32", "openvino bfloat16", "openvino int8")


def photos(count: int, seed: int) -> list[np.ndarray]:
    """Soft noise, [240, 240, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)
    return [np.asarray(Image.fromarray(one).resize((240, 240), Image.Resampling.BICUBIC)) for one in coarse]


def seconds(call: Callable[[], object], cpu: bool) -> float:
    clock = time.process_time if cpu else time.perf_counter
    start = clock()
    call()
    return clock() - start


@torch.no_grad()
def nearness(exact: vlad.Encoder, other: vlad.Encoder, pictures: list[np.ndarray]) -> float:
    """The smallest cosine of a token after the last block with float32's."""
    pixels, last = exact.pixels(pictures), (exact.depth,)
    ours, theirs = exact(pixels, last).patches[0], other(pixels, last).patches[0]
    return float(F.cosine_similarity(ours, theirs, dim=-1).min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="ViT-B-16-plus-240/random:0")
    parser.add_argument("--method", default="patch_text")
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--pictures", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cpu", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    warnings.simplefilter("ignore")
    pictures, detectors = photos(asked.pictures, 0), {}
    for kind in asked.kinds:
        runtime, dtype = kind.split()
        encoder = vlad.Encoder.load(asked.encoder, device="cpu", dtype=dtype, runtime=runtime)
        encoder.calibrate(photos(16, 1))
        detectors[kind] = vlad.load(asked.method, "metal bolt", encoder=encoder)
    scores = {kind: np.array([p.score for p in one.predict(pictures)]) for kind, one in detectors.items()}
    times: dict[str, list[float]] = {kind: [] for kind in detectors}
    for _ in range(asked.runs):
        for kind, detector in detectors.items():
            times[kind].append(seconds(lambda: detector.predict(pictures), asked.cpu))  # noqa: B023
    first = next(iter(detectors))
    clock = "process time" if asked.cpu else "wall time"
    print(f"{asked.method} on {asked.encoder}, {asked.pictures} pictures, {asked.threads} threads, {clock}")
    for kind, taken in times.items():
        near = nearness(detectors[first].encoder, detectors[kind].encoder, pictures)
        moved = np.abs(scores[kind] - scores[first]).max()
        each = 1000 * min(taken) / asked.pictures
        print(
            f"{kind:18} {each:8.0f} ms a picture, {min(times[first]) / min(taken):.2f} x; token cosine {near:.5f}, "
            f"score moved by {moved:.2g}"
        )


if __name__ == "__main__":
    main()
