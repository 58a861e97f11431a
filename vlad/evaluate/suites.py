"""Evaluation suites: which detectors on which data sets, as TOML files in `eval/suites/` or of your own.

title = "two prompt packs"
datasets = ["mvtec_ad", "visa"]      # where they lie is said by --data mvtec_ad:ROOT; "folder:pictures" says both
shots = 0                            # normal pictures to fit on
seeds = 5                            # draws of them
metric_size = "native"               # or the side of a square

[[detectors]]                        # keywords of vlad.load, and a label
method = "winclip"
encoder = "tiny"
options = {scales = [2, 3]}

published = {method = "WinCLIP"}     # optional: what to put beside, of eval/published.csv

[sources]                            # optional: data set -> the one that "{source}" in an adapter stands for
mvtec_ad = "visa"
default = "mvtec_ad"
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, with_config

from vlad.datasets.corrupt import CORRUPTIONS
from vlad.forms import Whole, closest, file_of, one_of, read
from vlad.report.published import lines


def _dataset(spec: str) -> str:
    from vlad.datasets import datasets as known  # readers only, no torch

    if (name := spec.partition(":")[0]) not in known():
        raise ValueError(f"unknown data set {name!r}; {closest(name, known())}")
    return spec


def _source(dataset: str) -> str:
    return dataset if dataset == "default" else _dataset(dataset)


def _some(datasets: tuple[str, ...]) -> tuple[str, ...]:
    if not datasets:
        raise ValueError('expected a list of at least one name, such as ["mvtec_ad"]')
    return datasets


def _or(other: type, words: str) -> BeforeValidator:
    """A whole number, or a value of another kind."""

    def check(value: object) -> object:
        if type(value) not in (int, other):
            raise ValueError(f"expected a whole number or {words}, got {reprlib.repr(value)}")
        return value

    return BeforeValidator(check)


_Data = Annotated[str, AfterValidator(_dataset)]


@with_config({"extra": "forbid"})
@dataclass(frozen=True)
class PublishedTable:
    """Which lines of eval/published.csv a detector repeats.

    Attributes:
        method: as it stands there.
        setting: as it stands there; left out, "zero-shot", or "4-shot" and the like by the shots of the run.
        source: how the source of the lines begins; of several that fit, the first one counts.
    """

    method: Annotated[str, one_of(lambda: {line.method for line in lines()})]
    setting: str | None = None
    source: str = ""


@with_config({"extra": "forbid"})
@dataclass(frozen=True)
class DetectorTable:
    """One of `[[detectors]]`: keywords of `vlad.load`, and what it is called."""

    method: str
    label: str | None = None
    encoder: str | None = None
    prompts: str | None = None
    adapter: str | None = None
    resolution: Whole | None = None
    dtype: str | None = None
    options: dict[str, Any] | None = None
    published: PublishedTable | None = None
    sha256: dict[str, str] | None = None  # name of an adapter's file -> its digest, where it is known


@with_config({"extra": "forbid"})
@dataclass(frozen=True)
class SuiteFile:
    """The keys of a suite's file; those of HOW are keywords of `vlad.evaluate`."""

    datasets: Annotated[tuple[_Data, ...], AfterValidator(_some)]
    title: str | None = None
    shots: Whole | None = None
    seeds: Annotated[int | tuple[Whole, ...] | None, _or(list, "a list of them")] = None
    metric_size: Annotated[int | str | None, _or(str, 'the text "native"')] = None
    mask_resize: str | None = None
    empty_mask: str | None = None
    bootstrap: Whole | None = None
    paper_metrics: bool | None = None
    corrupt: tuple[Annotated[str, one_of(lambda: CORRUPTIONS)], ...] | None = None
    names: dict[str, str] | None = None
    detectors: tuple[DetectorTable, ...] = (DetectorTable("patch_text"),)
    sources: dict[Annotated[str, AfterValidator(_source)], str] = field(default_factory=dict)


HOW = ("shots", "seeds", "metric_size", "mask_resize", "empty_mask", "paper_metrics", "bootstrap", "corrupt", "names")


@dataclass(frozen=True)
class Suite:
    """A checked suite.

    Attributes:
        name: stem of its file.
        datasets: names, or NAME:ROOT.
        detectors: keywords of `vlad.load` ("options" among them) and "label", each.
        sources: data set -> the one that an adapter was trained on for it; "default" for the others.
        how: keywords of `vlad.evaluate` that the file sets.
    """

    name: str
    title: str
    datasets: tuple[str, ...]
    detectors: tuple[Mapping[str, Any], ...]
    sources: Mapping[str, str] = field(default_factory=dict)
    how: Mapping[str, Any] = field(default_factory=dict)

    def detectors_for(self, dataset: str) -> list[dict[str, Any]]:
        """The detectors with `{source}` in their adapters filled in for this data set."""
        source = self.sources.get(dataset, self.sources.get("default", ""))
        filled = []
        for one in self.detectors:
            adapter = str(one.get("adapter", ""))
            if "{source}" in adapter and not source:
                raise ValueError(f"{self.name}: sources: no data set for {dataset}; add a line, or one for default")
            filled.append({**one, "adapter": adapter.replace("{source}", source)} if adapter else dict(one))
        return filled


def load(name_or_file: str | os.PathLike[str]) -> Suite:
    """A shipped suite by its name, or a .toml file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no suite of this name, or wrong content: names the file, the key, what was expected and the closest.
    """
    path = file_of(name_or_file, "suite", "eval/suites")
    file = read(SuiteFile, path)
    how = {key: value for key in HOW if (value := getattr(file, key)) is not None}
    detectors = tuple({key: value for key, value in vars(one).items() if value is not None} for one in file.detectors)
    return Suite(path.stem, file.title or path.stem, file.datasets, detectors, file.sources, how)


def crossed(
    methods: Sequence[str] = (),
    encoders: Sequence[str] = (),
    prompts: Sequence[str] = (),
    datasets: Sequence[str] = (),
    **settings: Any,
) -> Suite:
    """A suite of every method with every encoder and prompt pack; `settings` are keywords of `vlad.load` for all."""
    detectors = []
    for method, encoder, pack in product(methods or ("patch_text",), encoders or (None,), prompts or (None,)):
        words = [Path(method).stem, encoder if len(encoders) > 1 else None, pack if len(prompts) > 1 else None]
        one = {"label": ", ".join(filter(None, words)), "method": method, "encoder": encoder, "prompts": pack}
        detectors.append({key: value for key, value in {**one, **settings}.items() if value is not None})
    return Suite("flags", "", tuple(datasets), tuple(detectors))
