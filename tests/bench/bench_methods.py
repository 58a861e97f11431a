"""Milliseconds a picture of every zero-shot method on `tiny`; by hand: python tests/bench/bench_methods.py

Each method alone, pictures in memory, in batches of 8, words cached; the methods in turn, so that a drifting clock hits
all of them. What a method shares with others in `vlad eval` is not taken off.
"""

import argparse
import time
import warnings
from typing import Any

import numpy as np
import torch

import vlad

METHODS: dict[str, dict[str, Any]] = {
    "patch_text": {},
    "clip_surgery": {},
    "clip_ad": {},
    "clip_ad, SDP+": {"adapter": "clip_ad_plus-tiny"},
    "anovl, one view": {"views": 1},
    "anovl": {},
    "april_gan": {},
    "anomalyclip": {},
    "crane": {},
    "sowa": {},
    "vcpclip": {},
    "adaptclip": {},
    "adaclip": {},
    "winclip": {},
    "musc": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    encoder = vlad.Encoder.load("tiny", device="cpu", dtype=arguments.dtype)
    pictures = list(np.random.default_rng(0).integers(0, 256, (arguments.pictures, 224, 224, 3), dtype=np.uint8))
    detectors = {}
    for label, options in METHODS.items():
        method = label.partition(",")[0]
        text = vlad.methods.method_class(method).words != "none"
        detectors[label] = vlad.load(method, "metal bolt" if text else None, encoder=encoder, **options)
        detectors[label].predict(pictures[:8])
    times: dict[str, list[float]] = {label: [] for label in detectors}
    for _ in range(arguments.runs):
        for label, detector in detectors.items():
            start = time.perf_counter()
            detector.predict(pictures)
            times[label].append(time.perf_counter() - start)
    base = float(np.median(times["patch_text"]))
    for label, seconds in times.items():
        each = 1000 * float(np.median(seconds)) / arguments.pictures
        print(f"{label:16} {each:6.1f} ms a picture, {np.median(seconds) / base:.2f} x patch_text")


if __name__ == "__main__":
    main()
