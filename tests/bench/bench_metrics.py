"""Speed and memory of the metrics against what is commonly run, in one process on one thread; run by hand:

python tests/bench/bench_metrics.py [--device cuda]

Prints each ratio and how far the two sides differ. Needs scikit-learn and scikit-image.
"""

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import argparse
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
from skimage.measure import label, regionprops
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

sys.path.insert(0, str(Path(__file__).parents[2]))
from vlad import metrics
from vlad.metrics import stream as metrics_stream
from vlad.metrics import tally as metrics_tally


def draw_picture(generator, size, anomalous):
    """A smooth map with noise, and a mask of three blocks where it is higher, if anomalous."""
    coarse = generator.normal(size=(size // 32 + 1, size // 32 + 1)).astype(np.float32)
    amap = np.kron(coarse, np.ones((32, 32), np.float32))[:size, :size]
    amap += generator.standard_normal((size, size), np.float32)
    mask = np.zeros((size, size), bool)
    for _ in range(3 if anomalous else 0):
        top, left, height, width = generator.integers(size // 16, size // 5, 4) * np.array([3, 3, 1, 1])
        mask[top : top + height, left : left + width] = True
    return amap + mask * np.float32(generator.uniform(1, 6)), mask


def draw_set(number, size, normals):
    generator = np.random.default_rng(0)
    pictures = [draw_picture(generator, size, index >= normals) for index in range(number)]
    return tuple(np.stack(part) for part in zip(*pictures, strict=True))


def seconds(function, repeats=1):
    """(the shortest of the repeats, the result)."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return min(times), result


def common_metrics(maps, masks, limit=0.3, steps=200):
    """scikit-learn's three calls, and the loop over thresholds with region properties of most published code."""
    truth, scores = masks.ravel(), maps.ravel()
    precision, recall, _ = precision_recall_curve(truth, scores)
    f1 = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
    overlaps, rates = [], []
    for threshold in np.arange(maps.min(), maps.max(), (maps.max() - maps.min()) / steps):
        found = maps > threshold
        shares = []
        for one, mask in zip(found, masks, strict=True):
            for region in regionprops(label(mask)):
                shares.append(one[region.coords[:, 0], region.coords[:, 1]].sum() / region.area)
        overlaps.append(np.mean(shares))
        rates.append(found[~masks].mean())
    rates, overlaps = np.array(rates), np.array(overlaps)
    kept = rates < limit
    rates = (rates[kept] - rates[kept].min()) / np.ptp(rates[kept])
    aupro = -np.trapezoid(overlaps[kept], rates)
    area, steps_area = roc_auc_score(truth, scores), average_precision_score(truth, scores)
    return {"auroc": area, "ap": steps_area, "f1_max": f1, "aupro_0.3": aupro}


def reference_aupimo(maps, masks, bounds=(1e-5, 1e-4), steps=300_000):
    """The published rule: shares at `steps` evenly spaced thresholds, integrated between the nearest attained rates.

    It sorts each picture once, as the published code does; counting at every threshold anew would take minutes.
    """
    thresholds = np.linspace(maps.min(), maps.max(), steps)
    normal = [not mask.any() for mask in masks]

    def shares(values):
        return 1 - np.searchsorted(np.sort(values), thresholds) / values.size

    rates = np.mean([shares(amap.ravel()) for amap, good in zip(maps, normal, strict=True) if good], axis=0)
    inside = np.argmin(abs(rates - bounds[1])), np.argmin(abs(rates - bounds[0])) + 1
    x = np.log(rates[inside[0] : inside[1]])
    values = np.full(len(maps), np.nan)
    for index, (amap, mask) in enumerate(zip(maps, masks, strict=True)):
        shares(amap.ravel())  # the reference computes the false positive rates of every picture
        if mask.any():
            values[index] = -np.trapezoid(shares(amap[mask])[inside[0] : inside[1]], x) / np.log(bounds[1] / bounds[0])
    return values


def bench_pixel_metrics(device):
    maps, masks = draw_set(24, 256, 12)
    moved = maps if device == "cpu" else on_device(maps, device)
    metrics_tally._labelled.cache_clear()
    first, _ = seconds(lambda: metrics.pixel_metrics(moved, masks))
    ours, found = seconds(lambda: metrics.pixel_metrics(moved, masks), 5)
    theirs, common = seconds(lambda: common_metrics(maps, masks))
    print(f"AUROC + AP + F1-max + AUPRO, 24 maps of 256 x 256, on {device}:")
    print(f"  {first * 1e3:.0f} ms (again {ours * 1e3:.0f}) against {theirs * 1e3:.0f}: {theirs / first:.0f} x faster")
    print("  ours - theirs:", {name: f"{found.values[name] - value:+.1e}" for name, value in common.items()})


def bench_aupimo():
    maps, masks = draw_set(24, 256, 12)
    ours, found = seconds(lambda: metrics.aupimo(maps, masks), 5)
    theirs, reference = seconds(lambda: reference_aupimo(maps, masks))
    print(f"AUPIMO: {ours * 1e3:.1f} ms against {theirs * 1e3:.0f}: {theirs / ours:.0f} x faster")
    print(f"  mean {np.nanmean(found):.4f} exact, {np.nanmean(reference):.4f} by the reference's nearest rates")


def bench_stream(number, size=518):
    """Maps are drawn from a pool while they stream, so that only the metrics' own memory grows."""
    maps, masks = draw_set(12, size, 6)
    generator = np.random.default_rng(1)
    scaled = ((maps[i % 12] * np.float32(generator.uniform(0.9, 1.1))) for i in range(number))
    edges = metrics_stream.choose_edges(maps[:6])
    tracemalloc.start()  # NumPy reports its arrays to it
    took, counted = seconds(lambda: metrics_stream.histogram(scaled, (masks[i % 12] for i in range(number)), edges))
    extra = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    area, overlap = metrics_stream.auroc(counted), metrics_stream.aupro(counted)
    print(f"{number} streamed maps of {size} x {size}: {took:.1f} s, {took / number * 1e3:.1f} ms each")
    print(f"  {extra:.0f} MB at most beside the maps")
    print(f"  AUROC {area.value:.6f} in [{area.low:.6f}, {area.high:.6f}]")
    print(f"  AUPRO {overlap.value:.6f} in [{overlap.low:.6f}, {overlap.high:.6f}]")


def on_device(array, device):
    import torch

    torch.set_num_threads(1)
    return torch.from_numpy(array).to(device)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="where the maps of the first comparison are")
    parser.add_argument("--stream", type=int, default=2000, help="maps of the streaming run")
    arguments = parser.parse_args()
    bench_pixel_metrics(arguments.device)
    bench_aupimo()
    bench_stream(arguments.stream)
