"""How good explanations are: questions with known answers, types and places with annotations.

`evaluate_explanations` reads one of three kinds of data: "mmad:ROOT" (multiple choice), "visa_dr:ROOT" (yes or no), or
any data set of `vlad.datasets` (type naming, localisation, calibration). Answers are kept as they come, so a killed run
goes on.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.datasets import load as read_samples
from vlad.detector.loading import load
from vlad.encoders import load as load_encoder
from vlad.encoders.encoder import Encoder
from vlad.explain import explain
from vlad.explain.exam import agreement, mmad, visa_dr
from vlad.explain.exam.answering import Answerer, by_reasoner, by_words, total_usage, usage_line
from vlad.explain.exam.answers import Progress, answered
from vlad.explain.exam.scores import calibration
from vlad.explain.exam.tables import Evaluation, Table
from vlad.explain.reasoners import make_reasoner
from vlad.explain.reasoners.protocol import Reasoner
from vlad.files import write_whole
from vlad.prompts import PromptPack
from vlad.records import Line
from vlad.version import __version__

if TYPE_CHECKING:
    from vlad.datasets.samples import Sample

REPORT = "report.json"


@dataclass(frozen=True, eq=False)
class Tier:
    """Who explains: a language model, or, where `model` is None, the words of the encoder."""

    model: Reasoner | None
    encoder: Encoder
    pack: PromptPack

    @property
    def answerer(self) -> Answerer:
        """Answers multiple choice."""
        return by_words(self.encoder, self.pack) if self.model is None else by_reasoner(self.model)

    def settings(self) -> dict[str, Any]:
        """What its answers depend on."""
        words = {"encoder": self.encoder.name, "digest": self.encoder.digest, "prompts": self.pack.to_dict()}
        return {"vlad": __version__, "reasoner": "clip" if self.model is None else self.model.name, **words}


@dataclass(frozen=True, eq=False)
class Run:
    """Where answers are kept, and who is told how many there are."""

    settings: dict[str, Any]
    out: Path | None = None
    progress: Progress | None = None

    def lines(self, items: Sequence[tuple[str, Any]], answer: Callable[[Any], Line]) -> list[Line]:
        """The line of every item, those of an earlier run as they are."""
        return answered(items, answer, self.settings, self.out, self.progress)


def evaluate_explanations(
    data: str,
    *,
    reasoner: Any = "clip",
    encoder: Any = None,
    prompts: Any = None,
    shots: int = 0,
    references: int = 1,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Numbers for one tier on one set.

    Args:
        data: "mmad:ROOT", "visa_dr:ROOT", or what `vlad.datasets.load` takes.
        reasoner: as in `vlad.explain`; "clip" answers by the encoder's words alone.
        encoder: a name or an `Encoder`; None is "tiny".
        prompts: the words of detectors and of "clip"; None is the default pack.
        shots: normal pictures that each category's detector is fitted on first; data sets only.
        references: good pictures shown beside each question; MMAD only.
        out: folder to write `answers.jsonl` and `report.json` to; a killed run goes on there.
        progress: called with (answers there are, answers in all).

    Raises:
        ValueError: wrong data, a wrong reasoner, or a folder that holds a run with other settings.
        FileNotFoundError: the data is not there.
        vlad.explain.reasoners.protocol.ReasonerError: a local model that does not load.
    """
    kind, _, root = str(data).partition(":")
    model, pack = make_reasoner(reasoner), PromptPack.load("winclip" if prompts is None else prompts)
    tower = load_encoder(encoder)
    tier, place = Tier(model, tower, pack), None if out is None else Path(out)
    settings = {"data": str(data), **tier.settings()}
    if kind == "mmad":
        settings |= {"references": references}
        lines, tables = _mmad(Path(root), tier, Run(settings, place, progress), references)
    elif kind == "visa_dr":
        lines, tables = _visa_dr(Path(root), tier, Run(settings, place, progress))
    else:
        settings |= {"shots": shots}
        lines, tables = _annotated(str(data), tier, Run(settings, place, progress), shots)
    found = _evaluation(settings, tables, lines)
    if place is not None:
        write_whole(place / REPORT, json.dumps(found.to_dict(), indent=1, allow_nan=False).encode())
    return found


def _mmad(root: Path, tier: Tier, run: Run, references: int) -> tuple[list[Line], list[Table]]:
    answerer = tier.answerer
    questions = [(entry.key, entry) for entry in mmad.entries(root)]
    lines = run.lines(questions, lambda entry: mmad.ask(root, entry, answerer, references))
    found = mmad.score(mmad.marked(lines))
    types = tuple(found.types)
    rows = [
        (name, found.datasets[name], *(row[kind] for kind in types), found.overkill[name], found.miss[name])
        for name, row in found.accuracy.items()
    ]
    rows.append(("mean", found.average, *found.types.values(), None, None))
    tables = [
        Table(
            "MMAD, accuracy; unreadable answers are wrong",
            ("data set", "mean", *types, "overkill", "miss"),
            tuple(rows),
        )
    ]
    truth = [not one.normal for one in mmad.marked(lines)]
    return lines, tables + _calibration([line["p_anomalous"] for line in lines], truth)


def _visa_dr(root: Path, tier: Tier, run: Run) -> tuple[list[Line], list[Table]]:
    items = [(item.key, item) for item in visa_dr.items(root)]
    lines = run.lines(items, lambda item: visa_dr.ask(item, tier.answerer))
    judged = visa_dr.detection(lines)
    columns = tuple(next(iter(judged.values())))
    rows = tuple((name, *(row[column] for column in columns)) for name, row in judged.items())
    table = Table("VisA-D&R, detection", ("class", *columns), rows)
    return lines, [table, *_calibration([line["p_anomalous"] for line in lines], [line["anomalous"] for line in lines])]


def _annotated(data: str, tier: Tier, run: Run, shots: int) -> tuple[list[Line], list[Table]]:
    samples = read_samples(data)
    explained = _Explainer(tier, samples, shots)
    items = [(str(sample.image), sample) for sample in samples if sample.split == "test"]
    if not items:
        raise ValueError(f"{data}: no test picture; explanations are measured on pictures of the split 'test'")
    lines = run.lines(items, explained)
    known = [line for line in lines if line["error"] is None]
    return lines, [*agreement.tables(known), *_calibration(*agreement.probabilities(known))]


@dataclass(eq=False)
class _Explainer:
    """Explains annotated pictures; the detector of a category is built when its first picture comes."""

    tier: Tier
    samples: Sequence["Sample"]
    shots: int
    built: dict[str, tuple[Any, PromptPack, int]] = field(default_factory=dict)

    def __call__(self, sample: "Sample") -> Line:
        if sample.category not in self.built:
            self.built = {sample.category: self._detector(sample)}  # one at a time: they may hold memories
        detector, pack, types = self.built[sample.category]
        try:
            prediction = detector.predict(sample.image)
            found = explain(sample.image, prediction, detector=detector, prompts=pack, reasoner=self._who)
        except ValueError as error:  # a picture that cannot be read
            return {"source": str(sample.image), "usage": None, "error": str(error), "unreadable": None}
        return agreement.compare(sample, found, types)

    @property
    def _who(self) -> Any:
        return "clip" if self.tier.model is None else self.tier.model

    def _detector(self, sample: "Sample") -> tuple[Any, PromptPack, int]:
        here = [one for one in self.samples if one.category == sample.category]
        labels = agreement.vocabulary(here)
        detector = load(name=sample.name, encoder=self.tier.encoder, prompts=self.tier.pack)
        if self.shots:
            detector.fit(agreement.normal_shots(here, self.shots))
        return detector, agreement.with_vocabulary(self.tier.pack, labels), len(labels)


def _calibration(probabilities: Sequence[float | None], truth: Sequence[bool | None]) -> list[Table]:
    """The table of those that have a probability and a truth; [] without any."""
    pairs = [(p, bool(y)) for p, y in zip(probabilities, truth, strict=True) if p is not None and y is not None]
    if not pairs:
        return []
    numbers = calibration([p for p, _ in pairs], [y for _, y in pairs])
    return [Table("Calibration of p(anomalous)", tuple(numbers), (tuple(numbers.values()),))]


def _evaluation(settings: dict[str, Any], tables: Sequence[Table], lines: Sequence[Line]) -> Evaluation:
    reviews = [line["needs_review"] for line in lines if "needs_review" in line]
    return Evaluation(
        settings,
        tuple(tables),
        len(lines),
        errors=sum(line["error"] is not None for line in lines) / len(lines),
        unreadable=sum(line["unreadable"] is not None for line in lines) / len(lines),
        needs_review=sum(reviews) if reviews else None,
        usage=usage_line(total_usage(lines)),
    )
