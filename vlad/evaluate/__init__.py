"""Metrics of one or many detectors on labelled pictures: one walk over the pictures for all that can share it.

`evaluate` is the whole interface, and `vlad.evaluate` is both this module and that function. A category is measured on
its test pictures; few-shot detectors are fitted on normal pictures of its `train` split, drawn as
`RandomState(seed).permutation(sorted files)[:shots]`, the same files for every detector, nested in the shots.
"""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlad.callable_module import make_callable
from vlad.datasets.corrupt import SEVERITIES
from vlad.datasets.samples import Sample
from vlad.evaluate.decided import decided
from vlad.evaluate.guests import Guest
from vlad.evaluate.inputs import Group, Place, Plan, check_plan, grouped, keeps_words, labelled, leaks_of
from vlad.evaluate.measure import Collector, Measures, Value
from vlad.evaluate.over_seeds import part_of, rows_of
from vlad.evaluate.parts import Part, Parts, write_maps
from vlad.evaluate.settings import peak_memory, settings_of_run
from vlad.evaluate.walk import Clock, Condition, Entrant, MetricSize, walk
from vlad.metrics import resampling
from vlad.report import Report, Row

if TYPE_CHECKING:
    from vlad.detector import Detector

logger = logging.getLogger(__name__)

MEMORY = 2 * 2**30  # bytes
CLEAN_ALARMS = 0.05  # share of clean normal pictures above the threshold that corrupted ones are held against

Progress = Callable[[str, int, int], None]
Verdict = dict[str, Any]  # a line of predictions.csv


def evaluate(
    detectors: Any,
    samples: Iterable[Sample],
    *,
    shots: int = 0,
    seeds: int | Sequence[int] = 5,
    metric_size: str | int = "native",
    force: bool = False,
    corrupt: Sequence[str] = (),
    severities: Sequence[int] = SEVERITIES,
    names: Mapping[str, str] | str | None = None,
    bootstrap: int = 1000,
    mask_resize: str = "bilinear",
    empty_mask: str = "normal",
    paper_metrics: bool = False,
    batch_size: int = 8,
    memory: float = MEMORY,
    save_maps: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    ray: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Metrics per category, with intervals, curves, pictures and settings.

    Args:
        detectors: a Detector, a list, or a dict label -> Detector; left unchanged. Those round one Encoder object share
            its passes. Any object with `predict` too, and a CSV of finished scores (`vlad.evaluate.guests`).
        samples: of one or more data sets, as `vlad.datasets` reads them; test pictures are measured.
        shots: normal pictures to fit on; 0 takes the detectors as they are. A category that has none for training gives
            half of its normal test pictures (drawn with seed 0), which the report says.
        seeds: how many draws of these pictures (seeds 0, 1, ...), or the seeds; without shots there is one run.
        metric_size: "native", each picture's own, or the side of a square for maps and masks, as in papers (518, 256).
        force: also evaluate detectors on the data set that they were trained on; the report is stamped.
        corrupt: names of `vlad.datasets.corrupt.CORRUPTIONS`; adds the metrics on pictures changed so, per severity.
        names: category -> words for prompts, or the words for all; None: the data set's, but for a detector that was
            fitted or has a threshold, which keeps its own.
        bootstrap: draws for the intervals; 0 for none.
        mask_resize: with a square metric_size "bilinear" (antialiased, over 0.5) or "nearest".
        empty_mask: anomalous pictures in which nothing is marked count as "normal" pixels, or "skip" them.
        paper_metrics: adds "pixel_aupro_200", AUPRO as many papers' programs have it (`vlad.metrics.papers`).
        batch_size: pictures computed at once; changes no result.
        memory: bytes that maps may take in one category; above it pixel metrics get (narrow) bounds.
        save_maps: folder for maps of clean test pictures, .npy of the method's own size; predictions.csv names them.
        out: folder to write to as results come; a killed run goes on there.
        ray: "local", "auto" or the address of a Ray cluster, of which so many `workers` do a category at a time.
        progress: called with (category, pictures done, pictures in all).

    Raises:
        ValueError: no test picture, one twice, too few normals; a leak without `force`; a NaN; other settings in `out`.
        TypeError: something that is no detector, or cannot be fitted although shots are asked for.
        vlad.ImageError, FileNotFoundError: a picture or mask cannot be read.
        ImportError, ConnectionError: Ray is not installed, or not reached.
    """
    named, groups = labelled(detectors), grouped(samples, names or {}, shots)
    numbers = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    how: dict[str, Any] = {"corrupt": tuple(corrupt), "severities": tuple(severities), "batch_size": batch_size}
    how |= {"memory": memory, "maps": None if save_maps is None else Path(save_maps), "papers": paper_metrics}
    plan = Plan(shots, numbers, metric_size, mask_resize, bootstrap, empty_mask, named=names is not None, **how)
    return _measured(named, groups, plan, force, out, ray=ray, workers=workers, progress=progress)


def _measured(
    named: Mapping[str, Detector | Guest],
    groups: Mapping[Place, Group],
    plan: Plan,
    force: bool,
    out: str | os.PathLike[str] | None,
    **by: Any,
) -> Report:
    """The report, category by category; what `out` has of an earlier run is taken from there. `by`: as for `_parts`."""
    check_plan(plan, named, groups)
    settings = settings_of_run(plan, named, groups, leaks_of(named, groups, force))
    parts = Parts(None if out is None else Path(out), settings)
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    missing = {place: [label for label in named if not parts.has(label, place)] for place in groups}
    for label, place, part in _parts(named, groups, plan, missing, **by):
        parts.add(label, place, part)
    order = {(label, place): index for index, (label, place) in enumerate((a, b) for a in named for b in groups)}
    return parts.report({**settings, "started": started, "peak_memory": peak_memory()}, order)


def _parts(
    named: Mapping[str, Detector | Guest],
    groups: Mapping[Place, Group],
    plan: Plan,
    missing: Mapping[Place, list[str]],
    *,
    ray: str | None,
    workers: int | None,
    progress: Progress | None,
) -> Iterator[tuple[str, Place, Part]]:
    """The parts of each detector on each category that are missing, as each is finished."""
    if ray is None:
        for place, labels in missing.items():
            own = {label: named[label] for label in labels}
            for label, part in _category(own, place, groups[place], plan, progress) if own else ():
                yield label, place, part
        return
    from vlad.scale.on_ray import each

    towers: dict[int, dict[str, Detector | Guest]] = {}
    for label, one in named.items():
        towers.setdefault(id(getattr(one, "encoder", one)), {})[label] = one
    jobs, first = dict[int, tuple[Any, ...]](), dict[int, Any]()
    for own in towers.values():  # one after the other, so that a worker seldom loads one twice
        for place, labels in missing.items():
            if todo := [label for label in own if label in labels]:
                first[len(jobs)], jobs[len(jobs)] = own, (todo, place, groups[place], plan)
    gpus = any(one.encoder.device.type == "cuda" for one in named.values() if not isinstance(one, Guest))
    sizes = {number: len(group.tests) * len(plan.conditions) for number, (_, _, group, _) in jobs.items()}
    done = 0
    for number, found in each(_on_worker, jobs, ray, workers=workers, gpus=gpus, first=first):
        yield from ((label, jobs[number][1], part) for label, part in found)
        done += sizes[number]
        if progress:
            progress("by workers", done, sum(sizes.values()))


def _on_worker(
    named: Mapping[str, Detector | Guest], todo: Sequence[str], place: Place, group: Group, plan: Plan
) -> list[tuple[str, Part]]:
    """What a worker does: one category, with those of the detectors round one encoder that are asked for."""
    return list(_category({label: named[label] for label in todo}, place, group, plan, None))


def _category(
    named: Mapping[str, Detector | Guest], place: Place, group: Group, plan: Plan, progress: Progress | None
) -> Iterator[tuple[str, Part]]:
    """The part of each detector on one category, as each is finished."""
    clock, size = Clock(), MetricSize(plan.metric_size, plan.mask_resize)
    entrants = list(_entrants(named, group, plan, clock))
    tests = [group.tests[i] for i in np.random.RandomState(0).permutation(len(group.tests))]
    total, done = len(tests) * len(plan.conditions), 0
    clean: list[Measures] = []
    thresholds: list[float] = []
    verdicts: list[list[Verdict]] = []
    rows: dict[str, list[Row]] = {label: [] for label in named}
    for condition in plan.conditions:
        collectors = [_collector(plan, len(entrants)) for _ in entrants]
        how: dict[str, Any] = {"metric_size": size, "batch_size": plan.batch_size, "clock": clock}
        for seen, results in walk(entrants, tests, condition=condition, **how):
            with clock("metrics"):
                for collector, found in zip(collectors, results, strict=True):
                    collector.add(seen, *found)
            if plan.maps is not None and condition == Condition():
                write_maps(plan.maps, entrants, place, seen.sample, results)
            done += 1
            if progress:
                progress("/".join(dict.fromkeys(place)), done, total)
        with clock("metrics"):
            first = condition == Condition()
            measures = [one.finish(plan.bootstrap if first else 0, thorough=first) for one in collectors]
            if first:
                clean = measures
                thresholds = [_threshold(r.detector, c) for r, c in zip(entrants, collectors, strict=True)]
                verdicts = [_decide(*one, plan.bootstrap) for one in zip(entrants, collectors, clean, strict=True)]
            if len(plan.conditions) > 1:
                for measure, collector, threshold in zip(measures, collectors, thresholds, strict=True):
                    measure.values["image_fpr_at_clean_threshold"] = _alarms(collector, threshold)
        for label in named:
            own = [m for m, entrant in zip(measures, entrants, strict=True) if entrant.label == label]
            rows[label] += rows_of(label, place, condition, own, group)
    for number, label in enumerate(named):
        pairs = [(m, entrant) for m, entrant in zip(clean, entrants, strict=True) if entrant.label == label]
        with clock("report pictures"):
            part = part_of(rows[label], pairs)
        said = [(one.seed, found) for one, found in zip(entrants, verdicts, strict=True) if one.label == label]
        part["predictions"] = [{**line, "seed": seed} for seed, found in said for line in found]
        part["seconds"] = {label: clock.seconds.pop(label, 0.0), **(clock.seconds if number == len(named) - 1 else {})}
        yield label, part


def _collector(plan: Plan, entrants: int) -> Collector:
    native = plan.metric_size == "native"
    return Collector(plan.memory / entrants, plan.empty_mask, native=native, papers=plan.papers)


def _entrants(named: Mapping[str, Detector | Guest], group: Group, plan: Plan, clock: Clock) -> Iterator[Entrant]:
    for label, given in named.items():
        full = isinstance(given, Guest) and given.full_shot
        for seed in plan.seeds if plan.shots and not full else (None,):
            with clock(label):
                detector = given.copy()  # it learns and is described in the detector's stead
                required = isinstance(detector, Guest) or detector.scorer.words == "required"
                if required and not keeps_words(detector, plan):
                    detector.describe(group.name)
                if seed is None and not full:
                    yield Entrant(label, detector)
                    continue
                order = np.random.RandomState(seed or 0).permutation(len(group.normals))
                normals = [group.normals[i].image for i in (order if full else order[: plan.shots])]
                with warnings.catch_warnings():  # of few normals: no threshold is needed here
                    warnings.simplefilter("ignore", UserWarning)
                    detector.fit(normals)
                yield Entrant(label, detector, seed, ["/".join(file.parts[-3:]) for file in normals])


def _threshold(detector: Detector | Guest, collected: Collector) -> float:
    """The detector's own threshold, else the one that CLEAN_ALARMS of the clean normal pictures reach."""
    if detector.threshold is not None:
        return detector.threshold
    pairs = zip(collected.scores, collected.samples, strict=True)
    scores = [score for score, sample in pairs if not sample.label]
    return float(np.quantile(scores, 1 - CLEAN_ALARMS, method="higher")) if scores else float("nan")


def _decide(entrant: Entrant, collected: Collector, measures: Measures, bootstrap: int) -> list[Verdict]:
    """What the detector says of each picture; with a threshold of its own, `measures` gets how well it decides."""
    threshold = entrant.detector.threshold
    if threshold is not None:
        taken = resampling.stratified(collected.labels(), bootstrap)
        values, draws = decided(collected.scores, collected.labels(), threshold, taken)
        measures.values |= {f"own_{name}": value for name, value in values.items()}
        measures.draws |= {f"own_{name}": drawn for name, drawn in draws.items()} if bootstrap else {}
    lines: list[Verdict] = [
        {
            "source": sample.image.as_posix(),
            "defect": sample.defect,
            "label": sample.label,
            "score": score,
            "threshold": threshold,
            "verdict": None if threshold is None else int(score >= threshold),
        }
        for sample, score in zip(collected.samples, collected.scores, strict=True)
    ]
    return [{**line, "map": file} for line, file in zip(lines, entrant.maps, strict=True)] if entrant.maps else lines


def _alarms(collected: Collector, threshold: float) -> Value:
    rate = _alarm_rate(collected, threshold)
    return Value(rate, "no picture is normal" if np.isnan(rate) else "", None if np.isnan(rate) else threshold)


def _alarm_rate(collected: Collector, threshold: float) -> float:
    """Share of normal pictures at or above the threshold; NaN without any."""
    scores = [score for score, sample in zip(collected.scores, collected.samples, strict=True) if not sample.label]
    return float(np.mean(np.array(scores) >= threshold)) if scores else math.nan


make_callable(evaluate)
