"""MMAD: multiple choice questions on industrial pictures (arXiv:2410.09453, github.com/jam-cc/MMAD).

`mmad.json` is {picture: {"conversation": [{"Question", "Options": {"A": ...}, "Answer", "type"}], "similar_templates":
[...], "random_templates": [...], ...}}, with paths below its folder that begin <data set>/<category>/. One question is
one call. A picture is normal where a folder of its path is called "good".

Scores: accuracy per data set and type; "Object Structure" and "Object Details" count as "Object Analysis"; "Anomaly
Detection" is the mean of the accuracies on normal and on anomalous pictures; means over types, then over data sets. An
answer that could not be read is wrong. The published program (its evaluation/helper/summary.py) leaves such answers
out, and with each the one that follows it, so its figures can be higher.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from vlad.datasets.layouts import read_json
from vlad.explain.exam.answering import Answerer, Question, outcome
from vlad.explain.interview.votes import Vote, mean
from vlad.explain.reasoners.parsing import LETTERS
from vlad.images import read
from vlad.prompts import category_name
from vlad.records import Line

DETECTION, ANALYSIS = "Anomaly Detection", "Object Analysis"
MERGED = {"Object Structure": ANALYSIS, "Object Details": ANALYSIS}
NORMAL_FOLDER = "good"


@dataclass(frozen=True)
class Entry:
    """One question of `mmad.json`; paths are relative to its folder."""

    image: str
    number: int  # of the question, from 0
    text: str
    options: tuple[str, ...]
    answer: str  # a letter
    type: str
    templates: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Tells it from all others."""
        return f"{self.image}#{self.number}"


@dataclass(frozen=True)
class Marked:
    """One answer beside the truth: letters, `said` None where the answer could not be read."""

    image: str
    type: str
    said: str | None
    answer: str

    @property
    def dataset(self) -> str:
        """First folder of the path."""
        return PurePosixPath(self.image).parts[0]

    @property
    def normal(self) -> bool:
        """Whether the picture shows a good object."""
        return NORMAL_FOLDER in PurePosixPath(self.image).parts

    @property
    def merged(self) -> str:
        """The type that it is counted as."""
        return MERGED.get(self.type, self.type)


@dataclass(frozen=True)
class Score:
    """Accuracies in [0, 1], None where there is no question.

    Attributes:
        accuracy: data set -> type -> accuracy.
        types: type -> mean over the data sets.
        datasets: data set -> mean over the types.
        average: mean over the data sets.
        overkill, miss: data set -> share of normal, of anomalous pictures whose detection question went wrong.
        invalid_rate: share of answers that could not be read.
    """

    accuracy: dict[str, dict[str, float | None]] = field(default_factory=dict)
    types: dict[str, float | None] = field(default_factory=dict)
    datasets: dict[str, float | None] = field(default_factory=dict)
    average: float | None = None
    overkill: dict[str, float | None] = field(default_factory=dict)
    miss: dict[str, float | None] = field(default_factory=dict)
    invalid_rate: float = 0.0


def entries(root: Path) -> list[Entry]:
    """All questions of `mmad.json` in a folder, in its order.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: an entry of another form, named by its picture.
    """
    path = root / "mmad.json"
    if not path.is_file():
        raise FileNotFoundError(f"{root}: no mmad.json here; give the folder that holds it and the pictures")
    found = []
    for image, entry in read_json(path).items():
        try:
            talk = next(value for key, value in entry.items() if key.startswith("conversation"))
            templates = tuple(entry.get("similar_templates") or ())
            found += [_entry(image, number, asked, templates) for number, asked in enumerate(talk)]
        except (AttributeError, KeyError, TypeError, ValueError, StopIteration) as error:
            needed = "conversation: [{Question, Options, Answer, type}]"
            raise ValueError(f"{path}: {image}: {error or 'no conversation'}; expected {needed}") from None
    return found


def _entry(image: str, number: int, asked: dict[str, Any], templates: tuple[str, ...]) -> Entry:
    options = list(asked["Options"].items())
    answer = LETTERS[[letter for letter, _ in options].index(asked["Answer"])]
    texts = [str(text) for _, text in options]
    distinct = tuple(text if text not in texts[:i] else f"{text} ({LETTERS[i]})" for i, text in enumerate(texts))
    return Entry(image, number, str(asked["Question"]), distinct, answer, str(asked["type"]), templates)


def ask(root: Path, entry: Entry, answerer: Answerer, references: int) -> Line:
    """One question asked; a picture that cannot be read is the line's error."""
    category = PurePosixPath(entry.image).parts[1] if len(PurePosixPath(entry.image).parts) > 1 else entry.image
    truth = {"image": entry.image, "type": entry.type, "answer": entry.answer}
    try:
        shown = tuple(read(root / path) for path in entry.templates[:references])
        question = Question(entry.text, entry.options, read(root / entry.image), category_name(None, category), shown)
    except ValueError as error:
        return {**truth, "said": None, "p_anomalous": None, "usage": None, "error": str(error), "unreadable": None}
    got = answerer(question)
    said = None if got.parsed is None else LETTERS[entry.options.index(got.parsed)]
    return {**truth, "said": said, "p_anomalous": _p_anomalous(entry, Vote.of(got, entry.options)), **outcome(got)}


def _p_anomalous(entry: Entry, vote: Vote | None) -> float | None:
    """The share of "yes" against "no" in a detection question whose answer has probabilities."""
    if entry.type != DETECTION or vote is None or vote.probs is None:
        return None
    yes = [option for option in entry.options if option.strip(" .").casefold().startswith("yes")]
    no = [option for option in entry.options if option.strip(" .").casefold().startswith("no")]
    return vote.share(yes, no) if yes and no else None


def marked(lines: Iterable[Line]) -> list[Marked]:
    """The answers of lines."""
    return [Marked(line["image"], line["type"], line["said"], line["answer"]) for line in lines]


def score(answers: Sequence[Marked]) -> Score:
    """The numbers of the module's docstring.

    Four detection answers on one data set, two normal pictures both right, two anomalous ones of which one could not be
    read: (2/2 + 1/2) / 2 = 0.75.

    Raises:
        ValueError: no answers.
    """
    if not answers:
        raise ValueError("no answers to score")
    types = sorted({one.merged for one in answers})
    accuracy: dict[str, dict[str, float | None]] = {}
    wrong: dict[bool, dict[str, float | None]] = {True: {}, False: {}}  # by whether the picture is normal
    for dataset in dict.fromkeys(one.dataset for one in answers):
        here = [one for one in answers if one.dataset == dataset]
        accuracy[dataset] = {kind: _accuracy([one for one in here if one.merged == kind]) for kind in types}
        for normal in (True, False):
            asked = [one for one in here if one.merged == DETECTION and one.normal is normal]
            right = _share(asked)
            wrong[normal][dataset] = None if right is None else 1 - right
    datasets = {dataset: mean(row.values()) for dataset, row in accuracy.items()}
    return Score(
        accuracy,
        {kind: mean(row[kind] for row in accuracy.values()) for kind in types},
        datasets,
        mean(datasets.values()),
        overkill=wrong[True],
        miss=wrong[False],
        invalid_rate=sum(one.said is None for one in answers) / len(answers),
    )


def _accuracy(asked: Sequence[Marked]) -> float | None:
    if not any(one.merged == DETECTION for one in asked):
        return _share(asked)
    sides = [[one for one in asked if one.normal is normal] for normal in (True, False)]
    return mean(_share(side) for side in sides)


def _share(asked: Sequence[Marked]) -> float | None:
    return sum(one.said == one.answer for one in asked) / len(asked) if asked else None
