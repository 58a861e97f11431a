"""How far scores of the same pictures move with the number of threads: `python tests/bench/bench_threads.py`."""

import numpy as np
import torch
from PIL import Image

import vlad


def pictures(count: int = 24) -> list[np.ndarray]:
    """Soft noise, [150, 150, 3]."""
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)) for _ in range(count)]
    return [np.asarray(one.resize((150, 150), Image.Resampling.BICUBIC)) for one in small]


def scores(method: str, dtype: str, threads: int) -> np.ndarray:
    torch.set_num_threads(threads)
    name = "bolt" if method == "patch_text" else None
    detector = vlad.load(method, name, encoder="tiny", device="cpu", dtype=dtype)
    if method == "patch_memory":
        detector.fit(pictures()[:6])
    return np.array([one.score for one in detector.predict(pictures())])


if __name__ == "__main__":
    for dtype in ("bfloat16", "float32"):
        for method in ("patch_text", "patch_memory"):
            moved = abs(scores(method, dtype, 1) - scores(method, dtype, 2)).max()
            print(f"{dtype:8} {method:12} largest difference of one thread and two {moved:.2g}")
