"""Every method on the same pictures, sharing one encoder.

python examples/compare_methods.py
"""

import time
from pathlib import Path

import vlad

paths = sorted((Path(__file__).parent / "pictures").glob("*.jpg"))
encoder = vlad.Encoder.load("tiny", dtype="float32")
print(f"{'':12}", *(f"{path.stem:>16}" for path in paths))
for method in ("patch_text", "winclip"):
    detector = vlad.load(method, "surface", encoder=encoder)
    start = time.perf_counter()
    predictions = detector.predict(paths)
    milliseconds = (time.perf_counter() - start) / len(paths) * 1000
    print(f"{method:12}", *(f"{p.score:16.3f}" for p in predictions), f"   {milliseconds:.0f} ms a picture")
