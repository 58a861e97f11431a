"""A suite run: its data sets read, its detectors loaded with encoders shared, each evaluated, one report of all."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.datasets import INSTALLABLE, datasets, own_name
from vlad.datasets import load as samples_of
from vlad.datasets.samples import Sample
from vlad.encoders.authors_file import SUFFIXES
from vlad.evaluate import evaluate
from vlad.evaluate.guests import Finished, Guest, is_table
from vlad.evaluate.suites import Suite
from vlad.evaluate.with_anomalib import PREFIX, Anomalib
from vlad.forms import closest
from vlad.report import Report
from vlad.report.published import NOT_WHOLE, why_not

if TYPE_CHECKING:
    from vlad.detector import Detector
    from vlad.encoders.encoder import Encoder

logger = logging.getLogger(__name__)

NOT_LOADED = ("label", "options", "published", "sha256")  # of a detector's table, what vlad.load does not take


def run_suite(
    suite: Suite,
    data: Sequence[str] = (),
    *,
    device: str | None = None,
    dtype: str | None = None,
    out: Path | None = None,
    subset: bool = False,
    **how: Any,
) -> Report:
    """The report of a suite on those of its data sets that are there.

    Args:
        data: NAME:ROOT of each; the suite's that are missing are left out (`places` names them).
        device, dtype: of every encoder; a detector that states a dtype keeps it.
        out: as in `vlad.evaluate`; detectors that differ between data sets get a folder in it for each run.
        subset: also where a suite repeats published values and a data set is not whole.
        how: keywords of `vlad.evaluate`, instead of the suite's.

    Raises:
        FileNotFoundError: an adapter's file is not there; nothing is measured before all are.
        ValueError: a data set that the suite does not have, or none at all; one that is not whole beside published
            values; an adapter that is not the published one; and as `vlad.evaluate`.
    """
    runs: dict[str, tuple[list[dict[str, Any]], list[str]]] = {}
    for name, spec in places(suite, data)[0]:
        detectors = suite.detectors_for(name)
        runs.setdefault(json.dumps(detectors, sort_keys=True, default=str), (detectors, []))[1].append(spec)
    read = {spec: samples_of(spec) for _, specs in runs.values() for spec in specs}
    if any(one.get("published") for detectors, _ in runs.values() for one in detectors):
        _check_whole(read, subset)
    complete = [([_with_adapter(one) for one in detectors], specs) for detectors, specs in runs.values()]
    shared = SharedEncoders(device, dtype)
    ready = [(_labelled(detectors, shared), specs) for detectors, specs in complete]  # before anything is measured
    how = {**suite.how, **how}
    found = []
    for number, (named, specs) in enumerate(ready, 1):
        place = out if out is None or len(ready) == 1 else out / f"run {number}"
        found.append(evaluate(named, [sample for spec in specs for sample in read[spec]], out=place, **how))
    report = Report.join(found, suite.title)
    for detectors, _ in runs.values():
        for label, one in _labels(detectors).items():
            if wanted := one.get("published"):
                setting = wanted.setting or (f"{how['shots']}-shot" if how.get("shots") else "zero-shot")
                line = {"method": wanted.method, "setting": setting, "source": wanted.source}
                report.settings["detectors"][label]["published"] = line
    return report


def _check_whole(read: Mapping[str, Sequence[Sample]], subset: bool) -> None:
    """Refuses data sets that lack pictures, as published values are of whole ones."""
    for spec, samples in read.items():
        counts: dict[str, dict[str, dict[str, int]]] = {}
        for one in (one for one in samples if one.split == "test"):
            count = counts.setdefault(one.dataset, {}).setdefault(one.category, {"normal": 0, "anomalous": 0})
            count["anomalous" if one.label else "normal"] += 1
        for dataset, categories in counts.items():
            reason = why_not(dataset, categories)
            if reason.startswith(NOT_WHOLE) and not subset:
                raise ValueError(f"{spec}: {reason}; complete it, or measure what is there with --subset")
            if reason:
                logger.warning("%s: %s; nothing published is put beside it", dataset, reason)


def _with_adapter(one: Mapping[str, Any]) -> dict[str, Any]:
    """The table with its adapter as it lies there; authors' files may have the name with their own suffix.

    Raises:
        FileNotFoundError: it names a file, and there is none.
        ValueError: the file is not the published one.
    """
    named = str(one.get("adapter", ""))
    file = Path(named).expanduser()
    if not file.suffix or ":" in named:  # none, a shipped name, or one of the hub
        return dict(one)
    there = [file, *(file.with_suffix(suffix) for suffix in SUFFIXES)]
    found = next((place for place in there if place.exists()), None)
    if found is None:
        method = one["method"]
        raise FileNotFoundError(
            f"{method} needs {file}, which is not there; `vlad fetch {method}` says where it is published"
        )
    known = (one.get("sha256") or {}).get(found.name)
    if known and hashlib.sha256(found.read_bytes()).hexdigest() != known:
        raise ValueError(f"{found} is not the file that was published, its SHA-256 is another; copy it anew")
    return {**one, "adapter": str(found)}


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
    name, _, root = spec.partition(":")
    name = own_name(name) if root else name
    return name if name in datasets() or (root and not Path(spec).expanduser().is_dir()) else "folder"


class SharedEncoders:
    """Loads detectors; those that name the same encoder in the same number format get one encoder."""

    def __init__(self, device: str | None, dtype: str | None) -> None:
        self.device, self.dtype = device, dtype
        self.encoders: dict[tuple[str, str | None], Encoder] = {}

    def load(self, method: str, encoder: str | None = None, dtype: str | None = None, **settings: Any) -> Detector:
        """As `vlad.load`."""
        from vlad.detector.loading import load

        key = self._key(method, encoder, dtype or self.dtype, settings.get("adapter"))
        return load(method, encoder=self.tower(*key), **settings)

    def tower(self, name: str, dtype: str | None = None) -> Encoder:
        """The encoder of that name in that number format, or in the one of all."""
        from vlad.encoders import load as load_encoder

        key = name, dtype or self.dtype
        if key not in self.encoders:
            tower = load_encoder(name, self.device, key[1])
            self.encoders |= {key: tower, (name, tower.precision): tower}
        return self.encoders[key]

    def _key(self, method: str, encoder: str | None, dtype: str | None, adapter: Any) -> tuple[str, str | None]:
        """The names of encoder and number format; a saved detector records both."""
        from vlad.detector import saving
        from vlad.encoders.authors_file import located
        from vlad.learning.scorer import LearnedScorer, own_encoder
        from vlad.methods import METHODS, method_class

        file = Path(method).expanduser()
        if method not in METHODS and file.is_file():
            header, _ = saving.read(file)
            return encoder or header["encoder"], dtype or header["dtype"]
        kind = method_class(method)
        if encoder is None and issubclass(kind, LearnedScorer):
            encoder = own_encoder(kind, located(Path(adapter)) if adapter else None)
        return encoder or "tiny", dtype


def _labelled(detectors: Sequence[Mapping[str, Any]], shared: SharedEncoders) -> dict[str, Detector | Guest]:
    """Label -> Detector."""
    built: dict[str, Detector | Guest] = {}
    for label, one in _labels(detectors).items():
        settings = {key: value for key, value in one.items() if key not in NOT_LOADED}
        options, method = one.get("options", {}), one["method"]
        if is_table(method):
            built[label] = Finished(method)
        elif method.startswith(PREFIX):
            built[label] = Guest(Anomalib(method.removeprefix(PREFIX), **options))
        else:
            built[label] = shared.load(**settings, **options)
    return built


def _labels(detectors: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Label -> its table; a label that stands there twice gets a number."""
    found: dict[str, Mapping[str, Any]] = {}
    for one in detectors:
        label = one.get("label", one["method"])
        found[label if label not in found else f"{label} {len(found) + 1}"] = one
    return found
