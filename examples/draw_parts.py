"""The drawn parts that the tutorials begin with: python examples/draw_parts.py [examples/parts]

One kind of part, of which every picture has grain, spots and light of its own: ten good ones to learn from, six good
and six spoilt ones to judge, masks beside them, laid out as MVTec AD is. Nothing is photographed, so all may be shared.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.random import default_rng
from PIL import Image
from tiny_kinds import Kind

from vlad.synthetic import camera
from vlad.synthetic.defects import spoil
from vlad.synthetic.scenes import draw_scene

SIDE = 256
SEED, LOOSE = 8, 0.02
GOOD, TO_JUDGE, SPOILT = 10, 6, 6
NAME = "part"


def main() -> None:
    """Draws and writes them."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "parts") / NAME
    for number in range(GOOD + TO_JUDGE + SPOILT):
        good = number < GOOD + TO_JUDGE
        split = "train/good" if number < GOOD else "test/good" if good else "test/spoilt"
        picture, mask = draw(number, spoilt=not good)
        place = root / split / f"{number:02}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place, quality=88)
        if not good:
            beside = root / "ground_truth" / "spoilt" / f"{number:02}_mask.png"
            beside.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * 255).save(beside)


def draw(number: int, spoilt: bool) -> tuple[np.ndarray, np.ndarray]:
    """(picture, mask of its defect) of one part."""
    scene = draw_scene(Kind([SEED], number, LOOSE), SIDE)
    rng = default_rng([SEED, number])
    canvas, mask = scene.canvas, np.zeros((SIDE, SIDE), bool)
    if spoilt:
        canvas, mask, _ = spoil(rng, scene)
    return camera(Kind([SEED, 1], number, LOOSE), SIDE)(canvas), mask


if __name__ == "__main__":
    main()
