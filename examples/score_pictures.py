"""Scores the example pictures, prints what was found, and puts the overlays side by side.

python examples/score_pictures.py [overlays.png]
"""

import sys
from pathlib import Path

from PIL import Image

import vlad

PICTURES = Path(__file__).parent / "pictures"
SIDE = 240

detector = vlad.load(name="surface", dtype="float32")
paths = sorted(PICTURES.glob("*.jpg"))
sheet = Image.new("RGB", (SIDE * len(paths), SIDE), "white")
for column, prediction in enumerate(detector.stream(paths)):
    print(f"{prediction.score:.3f}  {Path(prediction.source).name}")
    for region in prediction.regions(min_area=50)[:3]:
        print(f"         {region.location}: box {region.box}, {region.area} px, peak {region.peak:.2f}")
    sheet.paste(prediction.overlay().resize((SIDE - 4, SIDE - 4)), (SIDE * column, 2))
if len(sys.argv) > 1:
    sheet.save(sys.argv[1])
