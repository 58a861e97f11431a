"""What `fit` costs as the good pictures become many: python tests/bench/bench_fit.py --method patch_memory

Process time and the peak of memory of a process of its own for each number of drawn pictures of 224 px, in files.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import vlad
from vlad.methods import method_class


def written(folder: Path, count: int) -> None:
    """So many pictures of one kind of surface, each with grain and light of its own."""
    generator = np.random.default_rng(0)
    base = np.array(Image.fromarray(generator.integers(0, 256, (28, 28, 3), np.uint8)).resize((224, 224)), float)
    for number in range(count):
        light = 1 + 0.1 * generator.standard_normal()
        picture = np.roll(base, int(generator.integers(9)), 0) * light + 6 * generator.standard_normal(base.shape)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05}.jpg")


def measured(method: str, folder: Path, count: int) -> None:
    """Prints what one fit took."""
    detector = vlad.load(method, "surface" if method_class(method).words == "required" else None)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    detector.fit(sorted(folder.iterdir())[:count])
    seconds = time.process_time() - start
    rows = sum(len(memory) for memory in detector.scorer.memories().values())
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    each = 1000 * seconds / count
    print(f"{method} {count}: {seconds:.1f} s of one core, {each:.0f} ms a picture, {more:.0f} MB more, {rows} rows")
    print(f"  {detector.calibration.note}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", default="patch_memory")
    parser.add_argument("--counts", type=int, nargs="+", default=[60, 250, 1000, 2000])
    parser.add_argument("--of", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.of:
        measured(asked.method, asked.of, asked.counts[0])
        sys.exit()
    with tempfile.TemporaryDirectory() as folder:
        written(Path(folder), max(asked.counts))
        for count in asked.counts:
            subprocess.run(
                [sys.executable, __file__, "--method", asked.method, "--counts", str(count), "--of", folder], check=True
            )
