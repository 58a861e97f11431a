"""How good explanations are: questions with known answers, texts with references, types and places with annotations.

`evaluate_explanations` reads one of three kinds of data: "mmad:ROOT" (multiple choice), "visa_dr:ROOT" (detection and
reasoning), or any data set of `vlad.datasets` (type naming, localisation, calibration). Answers are kept as they come,
so a killed run goes on.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vlad
from vlad.explain.evaluation import agreement, judging, mmad, visa_dr
from vlad.explain.evaluation.answering import Answerer, by_reasoner, by_words, total_usage, usage_line
from vlad.explain.evaluation.records import Line, Progress, answered
from vlad.explain.evaluation.scores import calibration
from vlad.explain.evaluation.tables import Evaluation, Table
from vlad.explain.evaluation.telling import Talk, by_conversation, by_explanation
from vlad.explain.reasoner import Reasoner, make_reasoner
from vlad.files import write_whole
from vlad.prompts import PromptPack
from vlad.version import __version__

if TYPE_CHECKING:
    from vlad.datasets.samples import Sample
    from vlad.encoders.clip import Encoder

REPORT, JUDGE = "report.json", "judge"


@dataclass(frozen=True, eq=False)
class Tier:
    """Who explains: a language model, or, where `model` is None, the words of the encoder."""

    model: Reasoner | None
    encoder: "Encoder"
    pack: PromptPack

    @property
    def answerer(self) -> Answerer:
        """Answers multiple choice."""
        return by_words(self.encoder, self.pack) if self.model is None else by_reasoner(self.model)

    @property
    def talk(self) -> Talk:
        """Answers open questions."""
        return by_explanation(self.encoder, self.pack) if self.model is None else by_conversation(self.model)

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
    official: bool = False,
    judge: Any = None,
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
        official: score MMAD as the published program does; changes no answer.
        judge: a reasoner that scores answers against their references; VisA-D&R only. Its judgements are kept in
            the folder `judge` of `out`, and what it used counts in `usage`.
        out: folder to write `answers.jsonl` and `report.json` to; a killed run goes on there.
        progress: called with (answers there are, answers in all).

    Raises:
        ValueError: wrong data, a wrong reasoner or judge, or a folder that holds a run with other settings.
        FileNotFoundError: the data is not there.
        vlad.explain.reasoner.ReasonerError: a local model that does not load.
    """
    kind, _, root = str(data).partition(":")
    judging_model = _judge(judge, kind)
    model, pack = make_reasoner(reasoner), PromptPack.load("winclip" if prompts is None else prompts)
    tower = encoder if isinstance(encoder, vlad.Encoder) else vlad.Encoder.load(encoder or "tiny")
    tier, place = Tier(model, tower, pack), None if out is None else Path(out)
    settings, judged = {"data": str(data), **tier.settings()}, list[Line]()
    if kind == "mmad":
        run = Run(settings | {"references": references}, place, progress)
        lines, tables = _mmad(Path(root), tier, run, references, official)
        settings = run.settings | {"official": official}
    elif kind == "visa_dr":
        lines, tables, judged = _visa_dr(Path(root), tier, Run(settings, place, progress), judging_model)
        settings |= {} if judging_model is None else {"judge": judging_model.name}
    else:
        settings |= {"shots": shots}
        lines, tables = _annotated(str(data), tier, Run(settings, place, progress), shots)
    found = _evaluation(settings, tables, lines, judged)
    if place is not None:
        write_whole(place / REPORT, json.dumps(found.to_dict(), indent=1, allow_nan=False).encode())
    return found


def _mmad(root: Path, tier: Tier, run: Run, references: int, official: bool) -> tuple[list[Line], list[Table]]:
    answerer = tier.answerer
    questions = [(entry.key, entry) for entry in mmad.entries(root)]
    lines = run.lines(questions, lambda entry: mmad.ask(root, entry, answerer, references))
    found = mmad.score(mmad.marked(lines), official)
    types = tuple(found.types)
    rows = [
        (name, found.datasets[name], *(row[kind] for kind in types), found.overkill[name], found.miss[name])
        for name, row in found.accuracy.items()
    ]
    rows.append(("mean", found.average, *found.types.values(), None, None))
    title = "MMAD, accuracy" + (" as the published program counts it" if official else "; unreadable answers are wrong")
    tables = [Table(title, ("data set", "mean", *types, "overkill", "miss"), tuple(rows))]
    truth = [not one.normal for one in mmad.marked(lines)]
    return lines, tables + _calibration([line["p_anomalous"] for line in lines], truth)


def _judge(which: Any, kind: str) -> Reasoner | None:
    """The judge that is named; a ValueError where it is none or has nothing to judge."""
    if which is None:
        return None
    if kind != "visa_dr":
        raise ValueError(
            f"a judge was given for {kind}; it reads answers in words, so only visa_dr:ROOT has use for it"
        )
    model = make_reasoner(which)
    if model is None:
        raise ValueError(f"judge is {which!r}; expected hf:FOLDER_OR_ID or openai:MODEL@BASE_URL")
    return model


def _visa_dr(root: Path, tier: Tier, run: Run, judge: Reasoner | None) -> tuple[list[Line], list[Table], list[Line]]:
    """Lines, tables, and the lines of the judge."""
    answerer, talk = tier.answerer, tier.talk
    items = [(item.key, item) for item in visa_dr.items(root)]
    if judge is not None and not any(item.answers for _, item in items):
        raise ValueError(f"{root}: no item has reference answers, so a judge has nothing to compare with; leave it out")
    lines = run.lines(items, lambda item: visa_dr.ask(item, answerer, talk))
    tables = []
    if judged := visa_dr.detection(lines):
        columns = tuple(next(iter(judged.values())))
        rows = tuple((name, *(row[column] for column in columns)) for name, row in judged.items())
        tables.append(Table("VisA-D&R, detection", ("class", *columns), rows))
    if any(line["references"] for line in lines):
        texts = visa_dr.reasoning(lines, tier.encoder)
        tables.append(Table("VisA-D&R, reasoning (own protocol)", tuple(texts), (tuple(texts.values()),)))
    pairs, judgements = judging.pairs([item for _, item in items], lines), list[Line]()
    if judge is not None and pairs:
        judgements = _judged(pairs, judge, run)
        tables.append(judging.table(judge, judgements, sum(not pair.candidate for pair in pairs)))
    truth = [line["anomalous"] for line in lines]
    return lines, tables + _calibration([line["p_anomalous"] for line in lines], truth), judgements


def _judged(pairs: Sequence[judging.Pair], judge: Reasoner, run: Run) -> list[Line]:
    """The judgements of all answers that came, kept beside them."""
    place = None if run.out is None else run.out / JUDGE
    answers = [(pair.key, pair) for pair in pairs if pair.candidate]
    return Run(judging.settings(judge), place, run.progress).lines(answers, lambda pair: judging.ask(pair, judge))


def _annotated(data: str, tier: Tier, run: Run, shots: int) -> tuple[list[Line], list[Table]]:
    from vlad.datasets import load

    samples = load(data)
    explain = _Explainer(tier, samples, shots)
    items = [(str(sample.image), sample) for sample in samples if sample.split == "test"]
    if not items:
        raise ValueError(f"{data}: no test picture; explanations are measured on pictures of the split 'test'")
    lines = run.lines(items, explain)
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
            found = vlad.explain(sample.image, prediction, detector=detector, prompts=pack, reasoner=self._who)
        except ValueError as error:  # a picture that cannot be read
            return {"source": str(sample.image), "usage": None, "error": str(error), "unreadable": None}
        return agreement.compare(sample, found, types)

    @property
    def _who(self) -> Any:
        return "clip" if self.tier.model is None else self.tier.model

    def _detector(self, sample: "Sample") -> tuple[Any, PromptPack, int]:
        here = [one for one in self.samples if one.category == sample.category]
        labels = agreement.vocabulary(here)
        detector = vlad.load(name=sample.name, encoder=self.tier.encoder, prompts=self.tier.pack)
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


def _evaluation(
    settings: dict[str, Any], tables: Sequence[Table], lines: Sequence[Line], judged: Sequence[Line]
) -> Evaluation:
    reviews = [line["needs_review"] for line in lines if "needs_review" in line]
    return Evaluation(
        settings,
        tuple(tables),
        len(lines),
        errors=sum(line["error"] is not None for line in lines) / len(lines),
        unreadable=sum(line["unreadable"] is not None for line in lines) / len(lines),
        needs_review=sum(reviews) if reviews else None,
        usage=usage_line(total_usage([*lines, *judged])),
    )
