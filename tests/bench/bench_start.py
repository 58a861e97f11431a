"""How long VLAD takes until the first score; by hand: python tests/bench/bench_start.py

Each command is a process of its own, run in turn with `python -c "import open_clip"`, and the medians are compared.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

RUNS = 5
WINCLIP = """
import warnings; warnings.simplefilter("ignore")
import vlad
vlad.load("winclip", "metal bolt", encoder="ViT-B-16-plus-240/random:0", dtype="float32", device="cpu")
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "part.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(picture)
        vlad = [sys.executable, "-m", "vlad.cli"]
        commands = {
            "import open_clip": [sys.executable, "-c", "import open_clip"],
            "import vlad": [sys.executable, "-c", "import vlad"],
            "python alone": [sys.executable, "-c", "pass"],
            "vlad --help": [*vlad, "--help"],
            "vlad score, one picture, tiny": [*vlad, "score", str(picture), "--name", "part"],
            "load winclip on ViT-B-16-plus-240, prompts from the cache": [sys.executable, "-c", WINCLIP],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for run in range(RUNS + 1):
            for name, command in commands.items():
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                if run:  # the first round fills the file system's cache and VLAD's
                    times[name].append(time.perf_counter() - start)
    base = statistics.median(times["import open_clip"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{median:6.2f} s  ({median - base:+.2f} s against import open_clip)  {name}")


if __name__ == "__main__":
    main()
