"""How much of a folder's scoring is spent outside the encoder: `python tests/bench/bench_reading.py`; by hand, alone.

JPEGs of one megapixel, scored as `vlad score` does it, with the two threads of two cores. While the encoder computes,
a pool decodes and resizes what comes next; what is left outside is waiting for it, maps, regions and lines.
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
from vlad.folder import score_folder


def photos(folder: Path, count: int) -> None:
    """Soft noise of 1152 x 864 px with grain, as cameras give it."""
    draw = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        fine = np.asarray(coarse.resize((1152, 864), Image.Resampling.BICUBIC), np.int16)
        grain = draw.integers(-9, 10, (864, 1152, 1), dtype=np.int16)
        Image.fromarray(np.clip(fine + grain, 0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="tiny")
    parser.add_argument("--method", default="patch_text")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--maps", action="store_true", help="draw the overlays too")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    warnings.simplefilter("ignore")
    detector = vlad.load(asked.method, "plate", encoder=asked.encoder, device="cpu")
    kind, inside = type(detector.encoder), [0.0]
    walk = kind.value_walk

    def timed(*given, **named):
        """The same walk through the blocks, each step of it timed."""
        steps = walk(*given, **named)
        while True:
            start = time.perf_counter()
            step = next(steps, None)
            inside[0] += time.perf_counter() - start
            if step is None:
                return
            yield step

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made, "in")
        folder.mkdir()
        photos(folder, asked.pictures)
        detector.predict(folder / "0.jpg")
        kind.value_walk = timed
        start = time.perf_counter()
        score_folder(detector, [folder], Path(made, "out"), maps=asked.maps)
        whole = time.perf_counter() - start
    print(f"{asked.pictures} photos of 1 MP, {asked.method} on {asked.encoder}, {asked.threads} threads:", end=" ")
    print(f"{1000 * whole / asked.pictures:.1f} ms each, {100 * (1 - inside[0] / whole):.0f} % outside the encoder")


if __name__ == "__main__":
    main()
