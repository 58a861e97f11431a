"""What tiles cost beside passes: `python tests/bench/bench_tiles.py`; by hand. Process time of one thread, ratios.

A drawn photo, as a JPEG of 1 and of 24 megapixels, read and scored as it is and in tiles, in turn in one process;
the smallest of several runs. n tiles and the whole are n + 1 passes.
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import vlad


def photo(folder: Path, width: int, height: int) -> Path:
    """Soft noise as a JPEG."""
    coarse = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    path = folder / f"{width}x{height}.jpg"
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="tiny")
    parser.add_argument("--method", default="patch_text")
    parser.add_argument("--tiles", type=int, default=2)
    parser.add_argument("--runs", type=int, default=7)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    encoder = vlad.Encoder.load(asked.encoder, device="cpu", dtype="float32")
    whole, tiled = (vlad.load(asked.method, "plate", encoder=encoder, tiles=tiles) for tiles in (None, asked.tiles))
    with tempfile.TemporaryDirectory() as made:
        small, large = photo(Path(made), 1024, 1024), photo(Path(made), 6000, 4000)
        calls = {
            "1024 x 1024 px as it is": (whole, small),
            f"1024 x 1024 px, tiles={asked.tiles}": (tiled, small),
            "6000 x 4000 px as it is": (whole, large),
            f"6000 x 4000 px, tiles={asked.tiles}": (tiled, large),
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(1 + asked.runs):  # the first of each warms up
            for name, (detector, path) in calls.items():
                start = time.process_time()
                detector.predict(path)
                times[name].append(time.process_time() - start)
    least = {name: min(taken[1:]) for name, taken in times.items()}
    base = next(iter(least.values()))
    for name, taken in least.items():
        print(f"{name:26} {1000 * taken:6.0f} ms, {taken / base:.2f} x the first")


if __name__ == "__main__":
    main()
