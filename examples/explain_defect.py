"""A scratch in words: a detector learns from nine cut-outs of a good wall and explains one of a scratched wall.

python examples/explain_defect.py              # in words
python examples/explain_defect.py scratch.html # and as a page with crops
"""

import sys
from pathlib import Path

import vlad
from vlad.images import read

pictures = Path(__file__).parent / "pictures"
good, scratched = (read(pictures / f"brick_{state}.jpg") for state in ("good", "scratched"))  # 384 px
good = [good[y : y + 192, x : x + 192] for y in (0, 96, 192) for x in (0, 96, 192)]
part = scratched[192:, 192:]

detector = vlad.load(name="bricks", dtype="float32").fit(good)
prediction = detector.predict(part)
explanation = vlad.explain(
    part,
    prediction,
    detector=detector,
    references=good[-1:],
    rules=["ignore: dust", "normal: every joint is filled"],  # words like those of a rule file
)
print(explanation.to_markdown())
if len(sys.argv) > 1:
    Path(sys.argv[1]).write_text(explanation.to_html(), encoding="utf-8")
