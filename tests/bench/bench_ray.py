"""Two workers of a Ray cluster with a core each against one process with two threads, after both have started.

    python tests/bench/bench_ray.py --pictures 1000 --runs 3

A run is timed from the end of its first shards to the end of its last; before that is start-up. Runs take turns. The
CPU time a picture, of all processes of a run, hardly depends on what else the machine does; the ratio of speeds does.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import vlad
from vlad import scale
from vlad.folder import score_folder

SHARD = 32
TICK = os.sysconf("SC_CLK_TCK")


def cpu():
    """Seconds that this process and those it has started, and they, have computed."""
    found = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            facts = place.read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        found[int(place.parent.name)] = int(facts[1]), (int(facts[11]) + int(facts[12])) / TICK
    own, grown = {os.getpid()}, True
    while grown:
        more = {pid for pid, (parent, _) in found.items() if parent in own} - own
        own, grown = own | more, bool(more)
    return sum(found[pid][1] for pid in own if pid in found)


def timed(run, first):
    """(s until `first` pictures were done, pictures/s from then on, CPU s a picture) of a run that takes a progress."""
    started, marks = time.perf_counter(), []

    def told(_, done, total):
        if done in (first, total):
            marks.append((time.perf_counter(), cpu(), done))

    run(told)
    (begun, before, some), (ended, after, total) = marks
    return begun - started, (total - some) / (ended - begun), (after - before) / (total - some)


def main():
    given = argparse.ArgumentParser()
    given.add_argument("--pictures", type=int, default=1000)
    given.add_argument("--runs", type=int, default=3)
    given.add_argument("--side", type=int, default=400, help="px of each picture")
    how = given.parse_args()
    import torch

    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as made:
        folder, found = Path(made, "in"), {"one process": [], "workers": []}
        folder.mkdir()
        draw = np.random.default_rng(0)
        for number in range(how.pictures):
            noise = draw.integers(0, 256, (how.side, how.side, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{number}.jpg")
        model = vlad.load("patch_text", "bolt", device="cpu", dtype="float32")
        fixed = {"maps": False, "batch_size": 8}
        ray = {"ray": "local", "workers": 2, "shard_size": SHARD}

        def alone(told):
            score_folder(model, [folder], Path(tempfile.mkdtemp(dir=made)), progress=told, **fixed)

        def by_workers(told):
            scale.score(model, [folder], tempfile.mkdtemp(dir=made), progress=told, **ray, **fixed)

        for _ in range(how.runs):
            found["one process"].append(timed(alone, SHARD))
            found["workers"].append(timed(by_workers, 2 * SHARD))
    for name, runs in found.items():
        print(f"{name}: start-up {statistics.median(one[0] for one in runs):.1f} s, then", end="")
        print("".join(f" {rate:.1f}" for _, rate, _ in runs), "pictures/s, CPU", end="")
        print("".join(f" {1000 * used:.1f}" for _, _, used in runs), "ms a picture")
    pairs = list(zip(found["workers"], found["one process"], strict=True))
    print("speed, workers / one process:", " ".join(f"{ours[1] / theirs[1]:.2f}" for ours, theirs in pairs))
    print("CPU, one process / workers:", " ".join(f"{theirs[2] / ours[2]:.2f}" for ours, theirs in pairs))


if __name__ == "__main__":
    main()
