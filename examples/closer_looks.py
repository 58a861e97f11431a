"""What closer looks change, and what they cost: python examples/closer_looks.py --data folder:../shared/data

Image AUROC, and where there are masks pixel AP and AUPRO, of one method with `tiny`: as it is, with its pictures' shape
kept, with a second look at twice the side, and in tiles. Without and with normal pictures. `--pictures N` takes at most
N good and N defective ones of a set, spread over the kinds of defect, where all would take too long.
"""

import argparse
import math
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import vlad
from vlad.datasets import load as samples_of

WAYS = {
    "as it is": {},
    "keep_aspect": {"keep_aspect": True},
    "looks (1, 2)": {"looks": (1, 2)},
    "tiles 2": {"tiles": 2},
    "tiles 2, keep_aspect": {"tiles": 2, "keep_aspect": True},
}
SHOWN = {"image_auroc": "image", "pixel_ap": "AP", "pixel_aupro": "AUPRO"}


def thinned(samples: Sequence[vlad.Sample], most: int) -> list[vlad.Sample]:
    """At most so many good and so many defective test pictures, evenly over the kinds of defect; all the others."""
    kinds: dict[str, list[vlad.Sample]] = defaultdict(list)
    for sample in samples:
        if sample.split == "test":
            kinds[sample.defect].append(sample)
    bad = sum(1 for kind in kinds.values() if kind[0].label)
    kept = [sample for sample in samples if sample.split != "test"]
    for kind in kinds.values():
        count = min(len(kind), max(1, most // bad) if kind[0].label else most)
        kept += [kind[round(i * len(kind) / count)] for i in range(count)]
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["folder:../shared/data"])
    parser.add_argument("--category", nargs="*", help="of these sets alone")
    parser.add_argument("--method", default="patch_text")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 8])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=10**9)
    parser.add_argument("--out", type=Path, help="folder for the reports; a killed run goes on there")
    given = parser.parse_args()
    samples = [sample for data in given.data for sample in samples_of(data)]
    categories = given.category or list(dict.fromkeys(sample.category for sample in samples))
    encoder = vlad.Encoder.load("tiny")
    detectors = {way: vlad.load(given.method, encoder=encoder, **WAYS[way]) for way in given.ways}
    for category in categories:
        own = thinned([sample for sample in samples if sample.category == category], given.pictures)
        for shots in given.shots:
            started = time.process_time()
            out = given.out and given.out / f"{category} {shots}"
            with warnings.catch_warnings(action="ignore"):
                report = vlad.evaluate(detectors, own, shots=shots, seeds=given.draws, bootstrap=0, out=out)
            for way in detectors:
                rows = [row for row in report.rows if row.detector == way and math.isfinite(row.value)]
                values = {row.metric: 100 * row.value for row in rows}
                cells = " ".join(f"{name} {values[key]:5.1f}" for key, name in SHOWN.items() if key in values)
                print(f"{category:18} {shots} normals  {way:22} {cells}", flush=True)
            print(f"{category:18} {shots} normals  {time.process_time() - started:.0f} s of one core", flush=True)


if __name__ == "__main__":
    main()
