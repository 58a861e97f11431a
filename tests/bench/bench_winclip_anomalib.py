"""WinCLIP beside anomalib's, in one process: `python tests/bench/bench_winclip_anomalib.py`; by hand.

In an environment of its own: pip install "vlad-ad[anomalib,openvino]". Both on an untrained ViT-B-16-plus-240, one
picture, zero-shot, in turn; the smallest of several runs. anomalib gets ready pixels, ours a picture to resize.
"""

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from anomalib.models.image.winclip import torch_model

import vlad

ENCODER = "ViT-B-16-plus-240/random:0"


def theirs() -> Callable[[], object]:
    """A call of anomalib's model, in float32."""
    torch_model.PRETRAINED = None  # no weights are fetched
    model, pixels = torch_model.WinClipModel("metal bolt").eval(), torch.rand(1, 3, 240, 240)
    return lambda: model(pixels)


def ours(runtime: str, dtype: str) -> Callable[[], object]:
    """A call of our detector."""
    rng = np.random.default_rng(0)
    encoder = vlad.Encoder.load(ENCODER, device="cpu", dtype=dtype, runtime=runtime)
    encoder.calibrate(list(rng.integers(0, 256, (16, 240, 240, 3), dtype=np.uint8)))
    detector = vlad.load("winclip", "metal bolt", encoder=encoder)
    picture = rng.integers(0, 256, (240, 240, 3), dtype=np.uint8)
    return lambda: detector.predict(picture)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cpu", action="store_true", help="process time, which says more beside other work")
    parser.add_argument("--ours", nargs="+", default=["torch float32", "torch int8", "openvino int8"])
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    warnings.simplefilter("ignore")
    calls = {"anomalib float32": theirs()}
    for kind in asked.ours:
        runtime, dtype = kind.split()
        calls[kind] = ours(runtime, dtype)
    clock = time.process_time if asked.cpu else time.perf_counter
    times: dict[str, list[float]] = {kind: [] for kind in calls}
    for _ in range(1 + asked.runs):  # the first of each warms up
        for kind, call in calls.items():
            start = clock()
            call()
            times[kind].append(clock() - start)
    base = min(times["anomalib float32"][1:])
    for kind, taken in times.items():
        print(f"{kind:18} {min(taken[1:]):6.2f} s a picture, {base / min(taken[1:]):.2f} x anomalib")


if __name__ == "__main__":
    main()
