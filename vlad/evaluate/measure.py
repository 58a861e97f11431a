"""From what a detector said of a category's pictures to numbers, curves and the pictures that show them.

Maps are kept as long as memory allows, and measured exactly; beyond that they are counted into histograms as they come
and the numbers get bounds (`metrics.stream`). Nothing else grows with the number of pictures.
"""

from __future__ import annotations

import heapq
import math
import warnings
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from vlad import metrics
from vlad.datasets.samples import Sample, read_defects
from vlad.evaluate.walk import TestPicture, resized
from vlad.images.sizes import fitted
from vlad.metrics import resampling
from vlad.metrics import stream as metrics_stream
from vlad.metrics.inputs import Measured
from vlad.metrics.papers import aupro_200
from vlad.metrics.stream import Bounded, Histogram
from vlad.report.pictures import Shown

LIMITS = {"aupro": 0.3, "aupro_0.05": 0.05}
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1_max", *(f"pixel_{name}" for name in LIMITS), "aupimo")
SAMPLED = 2**18  # normal pixels from which histogram edges are chosen
SHOWN = 4  # pictures of each kind in a report
KEPT_SIDE = 1024  # px of their longer side that are kept for it
CURVE_POINTS = 120


class Value(NamedTuple):
    """One metric of one detector on one category."""

    value: float  # NaN where undefined
    reason: str = ""  # why it is
    threshold: float | None = None  # of F1, an oracle's
    error: float = 0.0  # how far the value may be from the exact one
    interval: tuple[float, float] | None = None  # where one is known that is better than a bootstrap's


@dataclass
class Measures:
    """All that a report needs of one detector on one category."""

    values: dict[str, Value]
    draws: dict[str, np.ndarray]  # metric -> [draws]
    curves: dict[str, list[list[float]]]  # "image_roc", "pixel_roc", "pro" -> points (false positive rate, height)
    shown: list[Shown]
    colours: tuple[float, float]  # the map values that the report draws cold and hot
    counts: dict[str, int] = field(default_factory=dict)


class Collector:
    """Takes one detector's results picture by picture.

    Args:
        memory: bytes that maps and what is computed from them may take; then histograms take over.
        empty_mask: "normal" or "skip", for anomalous pictures in which nothing is marked.
        native: whether pictures are measured at their own size, as sPRO needs it.
        papers: whether to add AUPRO as papers' programs have it.
    """

    def __init__(self, memory: float, empty_mask: str = "normal", native: bool = True, papers: bool = False) -> None:
        self.memory, self.empty_mask, self.native, self.papers = memory, empty_mask, native, papers
        self.samples: list[Sample] = []
        self.scores: list[float] = []
        self.kept: list[tuple[np.ndarray, np.ndarray | None, tuple[int, int], int]] = []  # map, truth, size, place
        self.pimo = np.zeros(0)
        self.histograms: list[Histogram] = []  # of the pictures in `counted`
        self.counted: list[int] = []
        self.exact, self.edges, self.bytes = True, np.zeros(0), 0
        self.without_map = self.empty = 0
        self.best: dict[str, list[tuple[float, int, Shown]]] = {"found": [], "missed": [], "false alarm": []}

    def add(self, seen: TestPicture, score: float, amap: np.ndarray | None) -> None:
        """One picture's score and map."""
        index = len(self.samples)
        self.samples.append(seen.sample)
        self.scores.append(score)
        self._show(seen, score, amap, index)
        marked = seen.truth is not None and bool(seen.truth.any())
        self.empty += seen.sample.label == 1 and not marked
        if amap is None:
            self.without_map += 1
            return
        if seen.sample.label == 1 and not marked and self.empty_mask == "skip":
            return
        pixels = seen.size[0] * seen.size[1]
        stored = resized(amap, seen.size) if amap.size > pixels else amap
        self.kept.append((stored, seen.truth if marked else None, seen.size, index))
        self.bytes += stored.nbytes + 9 * pixels  # the map at full size and its sorted copy, and the mask
        if not self.exact or self.bytes > self.memory:
            self._count()

    def _show(self, seen: TestPicture, score: float, amap: np.ndarray | None, index: int) -> None:
        kinds = (("found", score), ("missed", -score)) if seen.sample.label else (("false alarm", score),)
        for kind, rank in kinds:
            heap = self.best[kind]
            if len(heap) < SHOWN or (rank, -index) > heap[0][:2]:
                small = fitted(seen.picture, KEPT_SIDE)
                heapq.heappush(heap, (rank, -index, Shown(kind, score, seen.sample, small, seen.truth, amap)))
                if len(heap) > SHOWN:
                    heapq.heappop(heap)

    def _count(self) -> None:
        """Counts the kept maps into histograms and forgets them; the first call chooses the edges from them."""
        self._enlarge()
        if self.exact:
            self.exact, self.edges = False, metrics_stream.choose_edges(self._sample())
        self._histogram_kept()
        self.kept, self.bytes = [], 0

    def _enlarge(self) -> None:
        """The kept maps at the size at which they are measured."""
        self.kept = [(resized(amap, size), truth, size, index) for amap, truth, size, index in self.kept]

    def _histogram_kept(self) -> None:
        """One histogram for each kept map."""
        for amap, truth, _, index in self.kept:
            self.histograms.append(metrics_stream.histogram([amap], [truth], self.edges))
            self.counted.append(index)

    def _sample(self) -> np.ndarray:
        """Some normal scores of every kept map; all of them where they are few."""
        share = max(1, SAMPLED // len(self.kept))
        found = []
        for amap, truth, _, _ in self.kept:
            normal = amap.ravel() if truth is None else amap[~truth]
            found.append(normal[:: max(1, len(normal) // share)])
        return np.concatenate(found)

    def labels(self) -> list[int]:
        """Of all pictures."""
        return [sample.label for sample in self.samples]

    def finish(self, bootstrap: int, seed: int = 0, thorough: bool = True) -> Measures:
        """The measures of all pictures so far; `thorough` False leaves out intervals, curves and pictures."""
        self._enlarge()
        with warnings.catch_warnings():  # what is undefined is said in the values' reasons
            warnings.simplefilter("ignore", metrics.UndefinedMetricWarning)
            values = {**self._images(), **self._pixels(), **self._specimens()}
            draws: dict[str, np.ndarray] = {}
            curves: dict[str, list[list[float]]] = {}
            colours = (0.0, 1.0)
            if thorough:
                values |= self._saturated()
                if self.kept:
                    self.edges = metrics_stream.choose_edges(self._sample(), bins=256)
                    self._histogram_kept()
                draws = self._draws(values, bootstrap, seed) if bootstrap else {}
                curves, colours = self._curves(), self._colours()
        self.kept = []
        shown = [one for kind in self.best.values() for _, _, one in sorted(kind, key=lambda row: row[:2])[::-1]]
        return Measures(values, draws, curves, shown, colours, {"empty_masks": self.empty})

    def _images(self) -> dict[str, Value]:
        return _values("image", metrics.score_metrics(np.array(self.scores), np.array(self.labels())))

    def _specimens(self) -> dict[str, Value]:
        """Metrics of whole objects where a set has several views of each."""
        if not any(sample.specimen for sample in self.samples):
            return {}
        ids = [sample.specimen or str(sample.image) for sample in self.samples]
        scores, labels = metrics.per_sample(np.array(self.scores), np.array(self.labels()), ids)
        return _values("specimen", metrics.score_metrics(scores, labels))

    def _pixels(self) -> dict[str, Value]:
        if reason := self._why_no_pixels():
            return {name: Value(math.nan, reason) for name in PIXEL_METRICS}
        return self._exact_pixels() if self.exact else self._counted_pixels()

    def _why_no_pixels(self) -> str:
        if self.without_map:
            return "the method scores whole pictures and gives no map"
        marked = any(truth is not None for _, truth, _, _ in self.kept) or any(one.regions for one in self.histograms)
        return "" if marked else "no picture of this category has a mask with anomalous pixels"

    def _exact_pixels(self) -> dict[str, Value]:
        maps = [amap for amap, _, _, _ in self.kept]
        truths = [truth for _, truth, _, _ in self.kept]
        labels = [self.samples[index].label for _, _, _, index in self.kept]
        measured = metrics.pixel_metrics(maps, truths, limits=tuple(LIMITS.values()))
        values = _values("pixel", measured)
        if self.papers:
            values["pixel_aupro_200"] = _papers_aupro(maps, truths)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", metrics.UndefinedMetricWarning)
            self.pimo = metrics.aupimo(maps, truths, labels=labels)
        mean = metrics.aupimo_summary(self.pimo)["aupimo"]
        reason = str(said[0].message).partition(": ")[2] if said else ""
        return {**values, "aupimo": Value(mean, reason if math.isnan(mean) else "")}

    def _saturated(self) -> dict[str, Value]:
        """sPRO of MVTec LOCO, whose defects count as found once enough of them is."""
        measured = [self.samples[index] for _, _, _, index in self.kept]
        if not measured or any(sample.dataset != "mvtec_loco" for sample in measured) or not self.native:
            return {}
        try:
            defects = [
                read_defects(sample, size) or [] for sample, (_, _, size, _) in zip(measured, self.kept, strict=True)
            ]
        except FileNotFoundError as error:
            return {"spro_0.05": Value(math.nan, str(error))}
        value = metrics.spro([amap for amap, _, _, _ in self.kept], defects, 0.05)
        return {"spro_0.05": Value(value, "nothing is anomalous, or nothing normal" if math.isnan(value) else "")}

    def _counted_pixels(self) -> dict[str, Value]:
        counted = metrics_stream.merge(self.histograms)
        best, threshold = metrics_stream.f1_max(counted)
        bounded = {"auroc": metrics_stream.auroc(counted), "ap": metrics_stream.average_precision(counted)}
        bounded |= {"f1_max": best}
        bounded |= {name: metrics_stream.aupro(counted, limit) for name, limit in LIMITS.items()}
        values = {
            f"pixel_{name}": _bounded(one, threshold if name == "f1_max" else None) for name, one in bounded.items()
        }
        reason = "it needs the maps themselves, and they take more than the memory allowed; raise memory="
        return {**values, "aupimo": Value(math.nan, reason)}

    def _draws(self, values: dict[str, Value], draws: int, seed: int) -> dict[str, np.ndarray]:
        taken = resampling.stratified(self.labels(), draws, seed)
        found: dict[str, np.ndarray] = {}
        if not math.isnan(values["image_auroc"].value):
            drawn = resampling.score_draws(self.scores, self.labels(), taken)
            found |= {f"image_{name}": column for name, column in drawn.items()}
        if not math.isnan(values["pixel_auroc"].value):
            drawn = resampling.pixel_draws(self.histograms, taken[:, self.counted], LIMITS)
            found |= {f"pixel_{name}": column for name, column in drawn.items()}
        if not math.isnan(values["aupimo"].value):
            places = [index for _, _, _, index in self.kept]
            found["aupimo"] = resampling.mean_draws(self.pimo, taken[:, places])
        return found

    def _curves(self) -> dict[str, list[list[float]]]:
        curves = {}
        image = metrics.curve(np.array(self.scores), np.array(self.labels()))
        if len(image.false_positive_rate):
            curves["image_roc"] = _points(image.false_positive_rate, image.true_positive_rate)
        if self.histograms and not self._why_no_pixels():
            counted = metrics_stream.merge(self.histograms)
            false, true, overlap = (_shares(column) for column in (counted.normal, counted.anomalous, counted.weight))
            curves["pixel_roc"], curves["pro"] = _points(false, true), _points(false, overlap)
        return curves

    def _colours(self) -> tuple[float, float]:
        """80 % and 99.9 % quantile of the category's pixels: one scale for all its pictures."""
        if not self.histograms:
            return 0.0, 1.0
        counted = metrics_stream.merge(self.histograms)
        pixels = counted.normal + counted.anomalous
        places = np.searchsorted(np.cumsum(pixels)[:-1] / pixels.sum(), [0.8, 0.999]).clip(max=len(counted.edges) - 1)
        low, high = counted.edges[places].tolist()
        return (low, high) if high > low else (low, low + 1.0)


def _values(prefix: str, measured: Measured) -> dict[str, Value]:
    """The values by the names that reports use, "aupro_0.3" as "aupro"."""
    names = {key: key for key in ("auroc", "ap", "f1_max")}
    names |= {f"aupro_{limit:g}": name for name, limit in LIMITS.items() if f"aupro_{limit:g}" in measured.values}
    found = {}
    for key, name in names.items():
        threshold = measured.values["f1_max_threshold"] if key == "f1_max" else math.nan
        kept = None if math.isnan(threshold) else threshold
        found[f"{prefix}_{name}"] = Value(measured.values[key], measured.reasons.get(key, ""), kept)
    return found


def _papers_aupro(maps: list[np.ndarray], truths: list[np.ndarray | None]) -> Value:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", metrics.UndefinedMetricWarning)
        value = aupro_200(maps, truths)
    return Value(value, str(said[0].message).partition(": ")[2] if said else "")


def _bounded(bounded: Bounded, threshold: float | None) -> Value:
    reason = "no pixel is normal, or none is anomalous" if math.isnan(bounded.value) else ""
    kept = threshold if threshold is not None and math.isfinite(threshold) else None
    return Value(bounded.value, reason, kept, 0.0 if reason else resampling.half_width(bounded))


def _shares(column: np.ndarray) -> np.ndarray:
    """The part at or above each bin, highest bin first, from 0 to 1."""
    return np.concatenate([[0.0], np.cumsum(column[::-1]) / max(column.sum(), 1e-12)])


def _points(false: np.ndarray, height: np.ndarray) -> list[list[float]]:
    """At most CURVE_POINTS points where there are many, half of them evenly in the rate, half over the points."""
    if len(false) <= 4 * CURVE_POINTS:  # of pictures: every step shows
        return [[round(float(x), 5), round(float(y), 5)] for x, y in zip(false, height, strict=True)]
    even = np.searchsorted(false, np.linspace(0, 1, CURVE_POINTS // 2)).clip(max=len(false) - 1)
    chosen = np.union1d(even, np.linspace(0, len(false) - 1, CURVE_POINTS // 2).astype(int))
    return [[round(float(false[i]), 5), round(float(height[i]), 5)] for i in chosen]
