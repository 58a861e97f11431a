"""What value paths cost beside a plain encoder pass, and five methods beside one; by hand:
python tests/bench/bench_value_path.py

Untrained weights (arithmetic does not depend on them), pictures at the resolution of the papers. First each method
against a plain pass over the same picture, both from pixels; then the methods together, as `vlad.evaluate` runs them on
one batch, against patch_text alone. All are measured in turn in one process, so that a drifting clock hits all.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from vlad import Encoder
from vlad.detector import Detector
from vlad.methods import method_class

ENCODERS = {"ViT-B-16-plus-240/random:0": 240, "ViT-L-14-336/random:0": 518}
OPTIONS: Mapping[str, Mapping[str, object]] = {
    "patch_text": {},
    "clip_surgery": {},
    "clip_ad": {},
    "anovl": {"views": 1},
    "april_gan": {},
}


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def together(encoder: Encoder, detectors: Mapping[str, Detector], pixels: Tensor) -> None:
    with encoder.sharing():
        for detector in detectors.values():
            detector(pixels)


def measured(encoder: Encoder, side: int, runs: int) -> dict[str, np.ndarray]:
    """Seconds of each run, by what was run."""
    detectors: dict[str, Detector] = {}
    for method, options in OPTIONS.items():
        detectors[method] = method_class(method)(encoder, resolution=side, **options)
        detectors[method].describe("metal bolt", "winclip")
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    pixels = encoder.pixels([picture], side)
    calls: dict[str, Callable[[], object]] = {"plain pass": lambda: encoder(pixels, layers=(encoder.depth,))}
    calls |= {method: (lambda d=detector: d(pixels)) for method, detector in detectors.items()}
    calls["all together"] = lambda: together(encoder, detectors, pixels)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(runs + 1):  # the first warms up
        for name, call in calls.items():
            took = seconds(call)
            times[name] += [took] if run else []
    return {name: np.array(one) for name, one in times.items()}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--encoder", choices=ENCODERS, action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    for name in arguments.encoder or ENCODERS:
        encoder = Encoder.load(name, device="cpu", dtype=arguments.dtype)
        times = measured(encoder, ENCODERS[name], arguments.runs)
        plain = times.pop("plain pass")
        print(f"{name} at {ENCODERS[name]} px, {encoder.dtype}: a plain pass takes {np.median(plain):.3f} s")
        for label, took in times.items():
            print(f"  {label:13} {np.median(took):.3f} s, {np.median(took / plain):.2f} x the plain pass")
        print(f"  all together are {np.median(times['all together'] / times['patch_text']):.2f} x patch_text alone")


if __name__ == "__main__":
    main()
