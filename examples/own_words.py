"""The words are yours: another pack of phrases changes what a detector looks for, without loading anything again.

python examples/own_words.py
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import vlad

picture = Path(__file__).parent / "pictures" / "gravel_stained.jpg"
detector = vlad.load(name="gravel", dtype="float32")
print(f"shipped words: {detector.predict(picture).score:.3f}")

detector.describe("gravel", prompts={"normal": ["clean {}", "dry {}"], "anomalous": ["{} with a stain", "oily {}"]})
prediction = detector.predict(picture)
print(f"own words:     {prediction.score:.3f}")
for phrase, cosine in sorted(prediction.phrases.items(), key=lambda pair: -pair[1]):
    print(f"  {cosine:+.3f}  {phrase}")
with TemporaryDirectory() as folder:
    file = Path(folder) / "gravel.safetensors"
    detector.save(file)  # words and settings; the encoder is named in it, not contained
    print(vlad.load(file))
