"""Learned on one data set, tested on others: the whole experiment, from recipes and data to one report.

    out/learned/<recipe>, <source>.safetensors    what was learned, kept
    out/<source>/                                 the evaluation of all that was learned there
    out/settings.json                             going on with others is refused

A killed run goes on: what was learned is taken as it is, a training goes on from its checkpoint, an evaluation from its
parts.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.datasets import load as samples_of
from vlad.datasets.samples import Sample
from vlad.evaluate import Progress, evaluate
from vlad.evaluate.inputs import same_sets
from vlad.evaluate.run_suite import SharedEncoders
from vlad.learning import recipes as recipe_files
from vlad.learning.recipes import Recipe
from vlad.learning.train import train
from vlad.records import keep_settings, locked
from vlad.report import Report

if TYPE_CHECKING:
    from vlad.encoders.encoder import Encoder


@dataclass(frozen=True)
class Source:
    """What is learned from together, and what that is tested on.

    Attributes:
        name: of its data sets, joined by "+".
        learn, tests: NAME:ROOT of each.
    """

    name: str
    learn: tuple[str, ...]
    tests: tuple[str, ...]


def cross(
    recipes: Sequence[str],
    learn: Sequence[str],
    tests: Sequence[str],
    out: Path,
    *,
    pairs: bool = False,
    methods: Sequence[str] = (),
    encoder: str | None = None,
    split: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: Progress | None = None,
    **how: Any,
) -> Report:
    """One report of what each recipe has learned on each source, tested on other data.

    Args:
        recipes: shipped names, or .toml files; their own data is not used.
        learn: NAME:ROOT of what is learned from, all together.
        tests: NAME:ROOT of what it is tested on.
        out: folder; see above.
        pairs: learn from each of all these data sets alone, and test on all the others.
        methods: are measured beside, without any training.
        encoder, split, device, dtype: as in `vlad.train`; the encoder is that of `methods` too.
        how: keywords of `vlad.evaluate`.

    Raises:
        ValueError: something is learned from and tested on at once; as `vlad.train` and `vlad.evaluate`.
    """
    plans = {Path(recipe).stem: recipe_files.load(recipe) for recipe in recipes}
    if len(plans) < len(recipes) or not plans:
        raise ValueError(f"recipes are {', '.join(recipes) or 'none'}; give at least one, each of another name")
    read = {spec: samples_of(spec) for spec in dict.fromkeys([*learn, *tests])}
    found = sources(read, learn, tests, pairs)
    for source in found:
        refuse_leaks(source, read)
    learning = {"encoder": encoder, "split": split}
    shared = SharedEncoders(device, dtype)
    how["progress"] = progress
    reports = []
    with locked(out):
        begun = (out / "settings.json").exists()
        keep_settings(out / "settings.json", {**_facts(plans, found, read), **learning}, begun=begun)
        if methods:
            beside = {Path(name).stem: shared.load(name, encoder) for name in methods}
            tests = list(dict.fromkeys(spec for source in found for spec in source.tests))
            reports.append(evaluate(beside, _samples(tests, read), out=out / "nothing learned", **how))
        for source in found:
            made = {}
            for name, plan in plans.items():
                file = out / "learned" / f"{name}, {source.name}.safetensors"
                tower = encoder or plan.encoder
                if not file.exists():
                    _learn(plan, source, file, shared.tower(tower), split, progress)
                made[f"{name}, learned on {source.name}"] = shared.load(plan.method, tower, adapter=file)
            reports.append(evaluate(made, _samples(source.tests, read), out=out / source.name, **how))
    return Report.join(reports, "Learned on one data set, tested on others")


def _facts(plans: Mapping[str, Recipe], found: Sequence[Source], read: Mapping[str, list[Sample]]) -> dict[str, Any]:
    """What the numbers depend on."""
    files = {spec: b"\n".join(os.fsencode(one.image) for one in samples) for spec, samples in read.items()}
    return {
        "recipes": {name: plan.to_dict() for name, plan in plans.items()},
        "sources": {one.name: [one.learn, one.tests] for one in found},
        "data": {spec: hashlib.sha256(names).hexdigest() for spec, names in files.items()},
    }


def _samples(specs: Sequence[str], read: Mapping[str, list[Sample]]) -> list[Sample]:
    return [sample for spec in specs for sample in read[spec]]


def _learn(
    plan: Recipe, source: Source, file: Path, tower: Encoder, split: str | None, progress: Progress | None
) -> None:
    file.parent.mkdir(exist_ok=True)
    said = None if progress is None else lambda what, done, total: progress(f"{file.stem}: {what}", done, total)
    train(replace(plan, data=()), source.learn, file, split=split, encoder=tower, progress=said)


def sources(read: dict[str, list[Sample]], learn: Sequence[str], tests: Sequence[str], pairs: bool) -> list[Source]:
    """What is learned from, each with its tests."""
    if pairs:
        return [Source(_name(read[one]), (one,), tuple(other for other in read if other != one)) for one in read]
    if not learn or not tests:
        raise ValueError(f"learn is {list(learn)} and tests {list(tests)}; give both, or all sets with pairs (--pairs)")
    return [Source(_name(_samples(learn, read)), tuple(learn), tuple(tests))]


def _name(samples: Iterable[Sample]) -> str:
    return "+".join(dict.fromkeys(one.dataset for one in samples))


def refuse_leaks(source: Source, read: dict[str, list[Sample]]) -> None:
    """ValueError where a data set, or the very same file under any name, is learned from and tested on."""
    learned, tested = (_samples(specs, read) for specs in (source.learn, source.tests))
    if same := same_sets({one.dataset for one in learned}, {one.dataset for one in tested}):
        raise ValueError(f"{same[0]} would be learned from and tested on; leave it out of one of both")
    by_size: defaultdict[int, list[Path]] = defaultdict(list)
    for one in learned:
        by_size[one.image.stat().st_size].append(one.image)
    for one in tested:
        if not one.image.is_file():
            continue  # the evaluation names it
        for file in by_size.get(one.image.stat().st_size, ()):
            if os.path.samefile(file, one.image) or file.read_bytes() == one.image.read_bytes():
                raise ValueError(f"{file} would be learned from, and is tested on as {one.image}; leave it out of one")
