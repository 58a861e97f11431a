"""What learning costs beside encoding once; by hand: python tests/bench/bench_training.py

AnomalyCLIP on ViT-L-14-336-quickgelu with untrained weights at 518 px (arithmetic does not depend on them): the time of
encoding drawn pictures, and of 15 epochs on what was kept of them. Both grow with the number of pictures, so few do.
"""

import argparse
import os
import tempfile
import time
import warnings
from pathlib import Path

import torch

from vlad.encoders.encoder import Encoder
from vlad.learning.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--dtype", default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    encoder = Encoder.load("ViT-L-14-336-quickgelu/random:0", device="cpu", dtype=arguments.dtype)
    recipe = {"method": "anomalyclip", "pictures": arguments.pictures, "epochs": 15, "batch_size": 8}
    ends: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VLAD_CACHE"] = folder
        train({**recipe, "pictures": 2, "epochs": 1}, "synthetic", Path(folder, "warm.safetensors"), encoder=encoder)
        start = time.perf_counter()
        told = lambda what, *_: ends.__setitem__(what.partition(" ")[0], time.perf_counter())  # noqa: E731
        train({**recipe, "seed": 1}, "synthetic", Path(folder, "a.safetensors"), encoder=encoder, progress=told)
    encoding, learning = ends["encoding"] - start, ends["epoch"] - ends["encoding"]
    print(
        f"{encoder.dtype}, {arguments.pictures} pictures: encoding {encoding:.1f} s, 15 epochs {learning:.1f} s; "
        f"all in all {(encoding + learning) / encoding:.2f} x the encoding"
    )


if __name__ == "__main__":
    main()
