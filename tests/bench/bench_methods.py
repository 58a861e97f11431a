"""Milliseconds a picture of every zero-shot method on `tiny`; by hand: python tests/bench/bench_methods.py

Each method alone, pictures in memory, in batches of 8, words cached; the methods in turn, so that a drifting clock hits
all of them. Then all that score each picture alone together, sharing passes as in `vlad eval`, against the dearest of
them. Untrained weights where no adapter ships: arithmetic does not depend on them. Seconds are the process's own, the
least of several runs.
"""

import argparse
import functools
import math
import time
import warnings
from typing import Any

import numpy as np
import torch

import vlad
from vlad.detector import Detector
from vlad.detector.predicting import score_together
from vlad.methods import method_class

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
UNTRAINED = ("aaclip", "bayes_pfl", "faprompt", "filo", "visualad")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--leave-out", nargs="+", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    encoder = vlad.Encoder.load("tiny", device="cpu", dtype=arguments.dtype)
    pictures = list(np.random.default_rng(0).integers(0, 256, (arguments.pictures, 224, 224, 3), dtype=np.uint8))
    detectors = {}
    for label, options in METHODS.items():
        method = label.partition(",")[0]
        text = method_class(method).words != "none"
        detectors[label] = vlad.load(method, "metal bolt" if text else None, encoder=encoder, **options)
    for method in UNTRAINED:
        detectors[method] = Detector(method_class(method)(encoder))
        if method_class(method).words == "required":
            detectors[method].describe("metal bolt")
    detectors = {label: one for label, one in detectors.items() if label not in arguments.leave_out}
    for detector in detectors.values():
        detector.predict(pictures[:8])
    alone = {label: one.scorer for label, one in detectors.items() if one.scorer.score_set is None}

    def together() -> None:
        for start in range(0, len(pictures), 8):
            for _ in score_together(list(alone.values()), pictures[start : start + 8]):
                pass

    calls = {label: functools.partial(one.predict, pictures) for label, one in detectors.items()}
    calls["together"] = together
    least = dict.fromkeys(calls, math.inf)
    for _ in range(arguments.runs):
        for label, call in calls.items():
            start = time.process_time()
            call()
            least[label] = min(least[label], time.process_time() - start)
    for label, seconds in least.items():
        each = 1000 * seconds / arguments.pictures
        print(f"{label:16} {each:6.1f} ms a picture, {seconds / least['patch_text']:.2f} x patch_text")
    dearest = max(alone, key=lambda label: least[label])
    print(f"{len(alone)} together: {least['together'] / least[dearest]:.2f} x {dearest}, the dearest of them,")
    print(f"    and {least['together'] / sum(least[label] for label in alone):.2f} x their sum")


if __name__ == "__main__":
    main()
