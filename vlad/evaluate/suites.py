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

[sources]                            # optional: data set -> the one that "{source}" in an adapter stands for
mvtec_ad = "visa"
default = "mvtec_ad"
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlad.datasets.corrupt import CORRUPTIONS
from vlad.files import resource
from vlad.forms import closest, read_toml

DETECTOR_KEYS = ("label", "method", "encoder", "prompts", "adapter", "resolution", "dtype", "options")
_KINDS: dict[str, tuple[type, ...]] = {
    "title": (str,),
    "datasets": (list,),
    "shots": (int,),
    "seeds": (int, list),
    "metric_size": (str, int),
    "mask_resize": (str,),
    "empty_mask": (str,),
    "corrupt": (list,),
    "names": (dict,),
    "detectors": (list,),
    "sources": (dict,),
}
KEYS = tuple(_KINDS)
_CALLED = {str: "text", int: "a whole number", list: "a list", dict: "a table"}


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


def suites() -> list[str]:
    """Names of the suites that ship with VLAD."""
    return sorted(path.stem for path in resource("eval/suites").glob("*.toml"))


def load(name_or_file: str | os.PathLike[str]) -> Suite:
    """A shipped suite by its name, or a .toml file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no suite of this name, or wrong content: names the file, the key, what was expected and the closest.
    """
    given = os.fspath(name_or_file)
    if given.endswith(".toml") or os.sep in given:
        path = Path(given).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"there is no suite file {path}")
    elif given not in suites():
        raise ValueError(f"unknown suite {given!r}; {closest(given, suites())}, or give a .toml file")
    else:
        path = resource(f"eval/suites/{given}.toml")
    try:
        return _checked(read_toml(path), path.stem)
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith(str(path)) else f"{path}: {message}") from None


def _checked(raw: Mapping[str, Any], name: str) -> Suite:
    for key, value in raw.items():
        if key not in KEYS:
            raise ValueError(f"{key}: unknown key; {closest(key, KEYS)}")
        _kind(key, value, _KINDS[key])
    datasets = tuple(raw.get("datasets", ()))
    if not datasets:
        raise ValueError('datasets: expected a list of at least one name, such as ["mvtec_ad"]')
    for number, one in enumerate(datasets, 1):
        _dataset(f"datasets, entry {number}", one)
    detectors = raw.get("detectors") or [{"method": "patch_text"}]
    for number, one in enumerate(detectors, 1):
        _detector(f"detectors, entry {number}", one)
    for key, value in raw.get("sources", {}).items():
        _kind(f"sources.{key}", value, (str,))
        if key != "default":
            _dataset(f"sources.{key}", key)
    for number, kind in enumerate(raw.get("corrupt", ()), 1):
        if kind not in CORRUPTIONS:
            raise ValueError(f"corrupt, entry {number}: unknown {reprlib.repr(kind)}; {closest(kind, CORRUPTIONS)}")
    how = {key: raw[key] for key in raw if key not in ("title", "datasets", "detectors", "sources")}
    return Suite(name, raw.get("title", name), datasets, tuple(detectors), raw.get("sources", {}), how)


def _dataset(key: str, value: Any) -> None:
    from vlad.datasets import datasets as known  # readers only, no torch

    _kind(key, value, (str,))
    name = value.partition(":")[0]
    if name not in known():
        raise ValueError(f"{key}: unknown data set {name!r}; {closest(name, known())}")


def _detector(where: str, one: Any) -> None:
    _kind(where, one, (dict,))
    for key, value in one.items():
        if key not in DETECTOR_KEYS:
            raise ValueError(f"{where}, {key}: unknown key; {closest(key, DETECTOR_KEYS)}")
        kinds: tuple[type, ...] = (str,)
        if key in ("resolution", "options"):
            kinds = (int,) if key == "resolution" else (dict,)
        _kind(f"{where}, {key}", value, kinds)
    if "method" not in one:
        raise ValueError(f'{where}: method is missing; expected method = "winclip" or another name')


def _kind(key: str, value: Any, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(_CALLED[kind] for kind in kinds)
        raise ValueError(f"{key}: expected {expected}, got {reprlib.repr(value)}")
