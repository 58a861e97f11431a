"""How long a graph of `tiny` takes in onnxruntime beside torch: `python tests/bench/bench_export.py`; by hand.

Process time of one thread, in turn, the smallest of several runs; one picture, and eight at once.
"""

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

import vlad

RUNS = 20


def milliseconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return 1000 * (time.process_time() - start)


def main() -> None:
    torch.set_num_threads(1)
    detector = vlad.load("patch_text", "metal bolt", device="cpu", dtype="float32")
    how = onnxruntime.SessionOptions()
    how.intra_op_num_threads = how.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bolt.onnx"
        detector.export(file)
        graph = onnxruntime.InferenceSession(str(file), how, providers=["CPUExecutionProvider"])
    for count in (1, 8):
        pictures = np.random.default_rng(0).integers(0, 256, (count, 224, 224, 3), dtype=np.uint8)
        ours, theirs = math.inf, math.inf
        for _ in range(RUNS):
            ours = min(ours, milliseconds(lambda: detector.predict(list(pictures))))  # noqa: B023
            theirs = min(theirs, milliseconds(lambda: graph.run(None, {"pictures": pictures})))  # noqa: B023
        each = f"torch {ours / count:.1f}, onnxruntime {theirs / count:.1f} ms a picture"
        print(f"{count} pictures: {each}, ratio {theirs / ours:.2f}")


if __name__ == "__main__":
    main()
