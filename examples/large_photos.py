"""Whether a small defect of a large photo is the highest place of its map: python examples/large_photos.py --defect 64

Drawn photos (`vlad.synthetic.large`: uneven light, blotches as large as defects), each with good ones of its surface
to learn from; the map of `patch_memory` as it is and with `smallest_defect`. "highest" is the share of photos in which
the map's highest place lies within a patch of the defect; the AUROC of the picture scores is over defective and as many
further good photos.
"""

import argparse
import warnings

import numpy as np

import vlad
from vlad.metrics import auroc
from vlad.synthetic.large import large_photo


def photo(seed: int, shot: int, size: tuple[int, int], defect: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Part number `shot` of surface `seed`."""
    return large_photo(np.random.default_rng(seed), size, defect, np.random.default_rng((seed, shot)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(2000, 2000), metavar=("H", "W"))
    parser.add_argument("--defect", type=int, default=64)
    parser.add_argument("--surfaces", type=int, default=10)
    parser.add_argument("--normals", type=int, default=2)
    given = parser.parse_args()
    size = (given.size[0], given.size[1])
    encoder = vlad.Encoder.load("tiny")
    for way in ({}, {"smallest_defect": given.defect}):
        found, scores = [], []
        for seed in range(given.surfaces):
            normals = [photo(seed, shot, size, None)[0] for shot in range(given.normals)]
            bad, mask = photo(seed, 100, size, given.defect)
            with warnings.catch_warnings(action="ignore"):
                detector = vlad.load("patch_memory", encoder=encoder, **way).fit(normals)
                said = detector.predict([bad, photo(seed, 101, size, None)[0]], batch_size=1)
            full = said[0].full_map()
            highest = np.array(np.unravel_index(full.argmax(), full.shape))
            reach = encoder.patch_size * given.defect / 24  # a patch at work, in pixels of the photo
            found.append(np.abs(np.argwhere(mask) - highest).max(axis=1).min() <= reach)
            scores += [one.score for one in said]
            print(way, f"surface {seed}: {'found' if found[-1] else 'missed'}", flush=True)
        value = auroc(np.array(scores), np.array([1, 0] * given.surfaces))
        print(f"{way or 'as it is'}: highest {np.mean(found):.0%} of {given.surfaces}, image AUROC {100 * value:.0f}")


if __name__ == "__main__":
    main()
