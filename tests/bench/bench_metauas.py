"""What MetaUAS costs beside the passes of its tower; by hand: python tests/bench/bench_metauas.py

Untrained weights (arithmetic does not depend on them), one picture at a time, the prompt remembered. Two passes of the
tower are what a pair costs without its head; of runs that take turns the smallest time of the processor.
"""

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
import timm
import torch

import vlad
from vlad.encoders.efficientnet import EfficientNet
from vlad.methods.metauas import MetaUas


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, nargs="*", default=[256])
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    encoder = EfficientNet(timm.create_model("tf_efficientnet_b4", num_classes=0), "untrained", 256, "cpu")
    for side in arguments.side:
        pictures = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
        scorer = vlad.Detector(MetaUas(encoder, resolution=side)).fit(pictures[:1]).scorer
        pixels = encoder.pixels(pictures[1:], side)
        calls = lambda: encoder.levels(pixels), lambda: scorer(pixels)  # noqa: B023
        times = np.array([[seconds(call) for call in calls] for _ in range(arguments.runs + 1)])[1:]
        tower, scored = times.min(0)
        print(f"{side} px: tower {tower:.3f} s, picture {scored:.3f} s, {scored / tower / 2:.2f} of two tower passes")


if __name__ == "__main__":
    main()
