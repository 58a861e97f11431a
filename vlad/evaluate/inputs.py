"""What an evaluation is given, checked: detectors with labels, pictures by category, and how to measure."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlad.datasets import ALIASES
from vlad.datasets.corrupt import check
from vlad.datasets.samples import Sample
from vlad.evaluate.guests import Finished, Guest, is_table
from vlad.evaluate.walk import Condition

if TYPE_CHECKING:
    from vlad.detector import Detector

Place = tuple[str, str]  # data set, category


@dataclass(frozen=True)
class Plan:
    """How to evaluate; the fields are keywords of `evaluate`."""

    shots: int
    seeds: tuple[int, ...]
    metric_size: str | int
    mask_resize: str
    bootstrap: int
    empty_mask: str
    corrupt: tuple[str, ...]
    severities: tuple[int, ...]
    batch_size: int
    memory: float
    named: bool = False  # words for prompts were given
    maps: Path | None = None  # where maps are written
    papers: bool = False  # papers' AUPRO too

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The pictures as they are, then each corruption with each severity."""
        return Condition(), *(Condition(kind, severity) for kind in self.corrupt for severity in self.severities)


def keeps_words(detector: Detector | Guest, plan: Plan) -> bool:
    """Whether a detector is measured with its own words: it was fitted or has a threshold, and none are given."""
    finished = bool(detector.references) or detector.threshold is not None
    return finished and detector.name is not None and not plan.shots and not plan.named


@dataclass(frozen=True)
class Group:
    """The pictures of one category."""

    name: str  # the words for prompts
    tests: list[Sample]
    normals: list[Sample]  # of the train split, sorted by path
    set_aside: int = 0  # of these, how many were normal test pictures


def labelled(detectors: Any) -> dict[str, Detector | Guest]:
    """Label -> detector of what `evaluate` takes; labels of a list are methods, made distinct."""
    from vlad.detector import Detector

    if isinstance(detectors, Detector | Guest) or callable(getattr(detectors, "predict", None)) or is_table(detectors):
        detectors = [detectors]
    if not isinstance(detectors, Mapping | Sequence) or isinstance(detectors, str) or not detectors:
        raise TypeError(
            f"detectors is {detectors!r:.60}; expected a Detector, a list of them, or a dict label -> Detector"
        )
    values = [_seen(one) for one in (detectors.values() if isinstance(detectors, Mapping) else detectors)]
    if isinstance(detectors, Mapping):
        return dict(zip(map(str, detectors), values, strict=True))
    return dict(zip(_labels(values), values, strict=True))


def _seen(one: Any) -> Detector | Guest:
    """A detector as it is, a table of finished scores, or another's object as a guest."""
    from vlad.detector import Detector

    if is_table(one):
        return Finished(one)
    return one if isinstance(one, Detector | Guest) else Guest(one)


def _labels(detectors: Sequence[Detector | Guest]) -> list[str]:
    """The methods' names; where one is there twice, with the prompt pack, the encoder, or a number."""
    tries: list[Callable[[Any], str]] = [
        lambda one: one.method,
        lambda one: f"{one.method}, {one.pack.name}" if one.pack else one.method,
        lambda one: one.method if isinstance(one, Guest) else f"{one.method}, {one.encoder.name}",
    ]
    for label in tries:
        labels = [label(one) for one in detectors]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{one.method} {number}" for number, one in enumerate(detectors, 1)]


def grouped(samples: Iterable[Sample], names: Mapping[str, str] | str, shots: int = 0) -> dict[Place, Group]:
    """(data set, category) -> its pictures, in the order of their first appearance.

    With shots, a category without pictures for training has half of its normal test pictures set aside for it.

    Raises:
        ValueError: no test picture, one file as two samples, or words for a category that is not there.
    """
    seen: dict[str, Sample] = {}
    groups: dict[Place, Group] = {}
    for sample in samples:
        first = seen.setdefault(os.path.abspath(sample.image), sample)
        if first is not sample:
            both = f"{first.category}/{first.split} and {sample.category}/{sample.split}"
            raise ValueError(f"{sample.image} is given twice, in {both}; give each picture once")
        words = names if isinstance(names, str) else names.get(sample.category, sample.name)
        group = groups.setdefault((sample.dataset, sample.category), Group(words, [], []))
        if sample.split == "test":
            group.tests.append(sample)
        elif sample.split == "train" and not sample.label:
            group.normals.append(sample)
    groups = {place: group for place, group in groups.items() if group.tests}
    if not groups:
        raise ValueError(f"{len(seen)} samples came, none of them a test picture; give some with split='test'")
    if not isinstance(names, str) and (unknown := set(names) - {category for _, category in groups}):
        raise ValueError(f"names has words for {min(unknown)!r}; known: {', '.join(c for _, c in groups)}")
    for group in groups.values():
        group.normals.sort(key=lambda sample: sample.image.as_posix())
    return {place: _split(group) if shots else group for place, group in groups.items()}


def _split(group: Group) -> Group:
    """Half of the normal test pictures for training, drawn with seed 0, where there are none of the train split."""
    normals = sorted((one for one in group.tests if not one.label), key=lambda sample: sample.image.as_posix())
    if group.normals or len(normals) < 2:
        return group
    drawn = np.random.RandomState(0).permutation(len(normals))[: len(normals) // 2]
    aside = [normals[index] for index in sorted(drawn)]
    taken = {id(one) for one in aside}
    return Group(group.name, [one for one in group.tests if id(one) not in taken], aside, len(aside))


def check_plan(plan: Plan, named: Mapping[str, Detector | Guest], groups: Mapping[Place, Group]) -> None:
    size = plan.metric_size
    if size != "native" and (not isinstance(size, int) or size < 1):
        raise ValueError(f"metric_size is {size!r}; expected 'native' or the side of a square in pixels, such as 518")
    for key, value, known in (
        ("mask_resize", plan.mask_resize, ("bilinear", "nearest")),
        ("empty_mask", plan.empty_mask, ("normal", "skip")),
    ):
        if value not in known:
            raise ValueError(f"{key} is {value!r}; expected {' or '.join(map(repr, known))}")
    if plan.shots < 0 or not plan.seeds or plan.bootstrap < 0 or plan.batch_size < 1:
        counts = f"shots {plan.shots}, seeds {plan.seeds}, bootstrap {plan.bootstrap}, batch_size {plan.batch_size}"
        raise ValueError(f"{counts}: expected none below 0, and at least one seed and one picture a batch")
    for kind, severity in plan.conditions[1:]:
        check(kind, severity)
    for label, detector in named.items():
        learns = not isinstance(detector, Guest) and detector.scorer.needs_normals
        if not plan.shots and learns and not detector.references:
            raise ValueError(f"{label} needs normal pictures; fit it, or let shots= draw some for every category")
    full = next((label for label, one in named.items() if isinstance(one, Guest) and one.full_shot), None)
    for (dataset, category), group in groups.items():
        if full is not None and not group.normals:
            raise ValueError(f"{full} is trained on normal pictures, but {dataset}/{category} has none for training")
        if len(group.normals) < plan.shots:
            there = f"{dataset}/{category} has {len(group.normals)} normal pictures for training"
            raise ValueError(f"shots is {plan.shots}, but {there}; ask for fewer shots")


def leaks_of(named: Mapping[str, Detector | Guest], groups: Mapping[Place, Group], force: bool) -> dict[str, list[str]]:
    """Label -> the tested data sets that the detector was trained on."""
    found = {}
    for label, detector in named.items():
        if leaks := same_sets(detector.trained_on, {dataset for dataset, _ in groups}):
            found[label] = leaks
    if found and not force:
        label, leaks = next(iter(found.items()))
        raise ValueError(
            f"{label} was trained on {leaks[0]}: its numbers there say nothing about other data; leave that "
            "data set out, or force it (force=True, --force), which the report will say"
        )
    return found


def same_sets(trained_on: Iterable[str], tested: Iterable[str]) -> list[str]:
    """Those of the tested data sets that were trained on, however their names are written."""
    sources = {_key(word) for source in trained_on for word in re.split(r"[+,;]", source)}
    return sorted({dataset for dataset in tested if _key(dataset) in sources})


def _key(dataset: str) -> str:
    """A data set's name as people write it in many ways: "MVTec test", "mvtec_ad", "MVTec-AD"."""
    key = re.sub(r"(test|train|split|set)\b|[^a-z0-9]", "", dataset.casefold())
    return {alias.replace("_", ""): name.replace("_", "") for alias, name in ALIASES.items()}.get(key, key)
