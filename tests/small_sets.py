"""What several tests evaluate and learn from: categories of small drawn pictures, and a method without words."""

import numpy as np
import torch
from PIL import Image

from vlad.detector import Detector
from vlad.memory import Memory
from vlad.scorer import Scorer, Scores


class Brightness(Scorer):
    """Bright pixels are anomalous; the mean brightness of the normals is subtracted."""

    words = "none"
    map_range = (-300.0, 300.0)

    def __init__(self, encoder, *, resolution=None, shrink=8):
        super().__init__(encoder, resolution=resolution)
        self.shrink, self.seen = shrink, 0
        self.memory = Memory(1, metric="euclidean")

    def forward(self, pixels):
        self.seen += len(pixels)
        grid = torch.nn.functional.avg_pool2d(pixels.mean(1, keepdim=True), self.shrink)[:, 0]
        if len(self.memory):
            grid = grid - self.memory.rows.mean()
        return Scores(grid.amax((1, 2)), grid)

    def remember(self, batches):
        for pixels in batches:
            self.memory.add(pixels.mean((1, 2, 3)).view(-1, 1, 1))


def brightness(encoder, kind=Brightness, **options):
    """A detector of such a scorer."""
    return Detector(kind(encoder, **options))


def write_category(place, seed=0, normals=6, anomalous=5, masks=True, size=(48, 64)):
    """Grey noise; anomalous pictures have a bright square, not always brighter than the noise elsewhere."""
    random = np.random.default_rng(seed)
    for split, kind, number in (("train", "good", 6), ("test", "good", normals), ("test", "spot", anomalous)):
        for index in range(number):
            picture = random.integers(60, 150, (*size, 3)).astype(np.uint8)
            mask = np.zeros(size, np.uint8)
            if kind == "spot":
                y, x = random.integers(4, 28), random.integers(4, 40)
                picture[y : y + 12, x : x + 14] += np.uint8(random.integers(5, 60))
                mask[y : y + 12, x : x + 14] = 255
            save(picture, place / split / kind / f"{index:03}.png")
            if kind == "spot" and masks:
                save(mask, place / "ground_truth" / kind / f"{index:03}_mask.png")
    return place


def save(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
