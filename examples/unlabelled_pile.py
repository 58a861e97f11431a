"""Nobody has said which are good: MuSc scores a pile of pictures by each other. The pictures are drawn.

python examples/unlabelled_pile.py
"""

import numpy as np

import vlad
from vlad.synthetic import sample

part = sample(np.random.default_rng(11), 224, defective=True)  # one part, with and without its defect
noise = np.random.default_rng(0)
odd = (3, 8)  # positions in the pile
shots = [part.picture if i in odd else part.clean for i in range(12)]
pile = [np.clip(shot + noise.normal(0, 6, shot.shape), 0, 255).astype(np.uint8) for shot in shots]

predictions = vlad.load("musc", dtype="float32").predict(pile)  # the whole pile at once: that is what it compares with
for position in np.argsort([-prediction.score for prediction in predictions]):
    print(f"{predictions[position].score:.3f}  picture {position}{'  (defective)' if position in odd else ''}")
