"""A detector from six good pictures, saved to a file and used from there. The pictures are drawn.

python examples/few_shot.py
"""

import tempfile
from pathlib import Path

import numpy as np

import vlad
from vlad.synthetic import sample

part = sample(np.random.default_rng(11), 224, defective=True)  # one part, with and without its defect
noise = np.random.default_rng(0)
good = [np.clip(part.clean + noise.normal(0, 6, part.clean.shape), 0, 255).astype(np.uint8) for _ in range(7)]

detector = vlad.load("patch_memory", dtype="float32").fit(good[:6])
print(detector.calibration.note)
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "part.safetensors"
    detector.save(file)
    detector = vlad.load(file)
for title, picture in (("good, not seen before", good[6]), (f"with {part.defects[0]}", part.picture)):
    prediction = detector.predict(picture)
    print(f"{prediction.score:.4f}  anomalous: {prediction.is_anomalous}  p = {prediction.p_value:.2f}  {title}")
