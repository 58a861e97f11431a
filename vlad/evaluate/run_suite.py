"""A suite run: its data sets read, its detectors loaded with encoders shared, each evaluated, one report of all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.datasets import INSTALLABLE, datasets
from vlad.datasets import load as samples_of
from vlad.evaluate import evaluate
from vlad.evaluate.guests import Finished, is_table
from vlad.evaluate.suites import Suite
from vlad.forms import closest
from vlad.report import Report

if TYPE_CHECKING:
    from vlad.detector import Detector
    from vlad.encoders.encoder import Encoder


def run_suite(
    suite: Suite,
    data: Sequence[str] = (),
    *,
    device: str | None = None,
    dtype: str | None = None,
    out: Path | None = None,
    **how: Any,
) -> Report:
    """The report of a suite on those of its data sets that are there.

    Args:
        data: NAME:ROOT of each; the suite's that are missing are left out (`places` names them).
        device, dtype: of every encoder; a detector that states a dtype keeps it.
        out: as in `vlad.evaluate`; detectors that differ between data sets get a folder in it for each run.
        how: keywords of `vlad.evaluate`, instead of the suite's.

    Raises:
        ValueError: a data set that the suite does not have, or none at all; and as `vlad.evaluate`.
    """
    runs: dict[str, tuple[list[dict[str, Any]], list[str]]] = {}
    for name, spec in places(suite, data)[0]:
        detectors = suite.detectors_for(name)
        runs.setdefault(json.dumps(detectors, sort_keys=True, default=str), (detectors, []))[1].append(spec)
    shared = SharedEncoders(device, dtype)
    found = []
    for number, (detectors, specs) in enumerate(runs.values(), 1):
        samples = [sample for spec in specs for sample in samples_of(spec)]
        place = out if out is None or len(runs) == 1 else out / f"run {number}"
        found.append(evaluate(_labelled(detectors, shared), samples, out=place, **{**suite.how, **how}))
    return Report.join(found, suite.title)


def places(suite: Suite, data: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """((data set, NAME:ROOT) of those of the suite that are given or installed, names of the missing ones).

    Raises:
        ValueError: a data set that the suite does not have, or none at all.
    """
    given = {_name(spec): spec for spec in data}
    if len(given) < len(data):  # several roots of one reader
        return [(_name(spec), spec) for spec in data], []
    wanted = {_name(entry): entry for entry in suite.datasets}
    for name in given:
        if name not in wanted:
            raise ValueError(f"--data {given[name]}: the suite has no data set {name!r}; {closest(name, wanted)}")
    found = {name: given.get(name, entry) for name, entry in wanted.items()}
    missing = [name for name, spec in found.items() if spec == name and name not in INSTALLABLE]
    if len(missing) == len(found):
        raise ValueError(f"no data set is given; say where they lie with --data {missing[0]}:ROOT")
    return [(name, spec) for name, spec in found.items() if name not in missing], missing


def _name(spec: str) -> str:
    name = spec.partition(":")[0]
    return name if name in datasets() else "folder"


class SharedEncoders:
    """Loads detectors; those that name the same encoder in the same number format get one encoder."""

    def __init__(self, device: str | None, dtype: str | None) -> None:
        self.device, self.dtype = device, dtype
        self.encoders: dict[tuple[str, str | None], Encoder] = {}

    def load(self, method: str, encoder: str | None = None, dtype: str | None = None, **settings: Any) -> Detector:
        """As `vlad.load`."""
        from vlad.loading import load

        key = self._key(method, encoder, dtype or self.dtype, settings.get("adapter"))
        return load(method, encoder=self.tower(*key), **settings)

    def tower(self, name: str, dtype: str | None = None) -> Encoder:
        """The encoder of that name in that number format, or in the one of all."""
        from vlad.encoders import load as load_encoder

        key = name, dtype or self.dtype
        if key not in self.encoders:
            tower = load_encoder(name, self.device, key[1])
            self.encoders |= {key: tower, (name, str(tower.dtype).removeprefix("torch.")): tower}
        return self.encoders[key]

    def _key(self, method: str, encoder: str | None, dtype: str | None, adapter: Any) -> tuple[str, str | None]:
        """The names of encoder and number format; a saved detector records both."""
        from vlad import detector_file
        from vlad.encoders.authors_file import located
        from vlad.learning.scorer import LearnedScorer, own_encoder
        from vlad.methods import METHODS, method_class

        file = Path(method).expanduser()
        if method not in METHODS and file.is_file():
            header, _ = detector_file.read(file)
            return encoder or header["encoder"], dtype or header["dtype"]
        kind = method_class(method)
        if encoder is None and issubclass(kind, LearnedScorer):
            encoder = own_encoder(kind, located(Path(adapter)) if adapter else None)
        return encoder or "tiny", dtype


def _labelled(detectors: Sequence[Mapping[str, Any]], shared: SharedEncoders) -> dict[str, Detector | Finished]:
    """Label -> Detector; a label that stands there twice gets a number."""
    built: dict[str, Detector | Finished] = {}
    for one in detectors:
        settings = {key: value for key, value in one.items() if key not in ("label", "options")}
        label = one.get("label", one["method"])
        name = label if label not in built else f"{label} {len(built) + 1}"
        built[name] = (
            Finished(one["method"]) if is_table(one["method"]) else shared.load(**settings, **one.get("options", {}))
        )
    return built
