"""VisA-D&R: does it see that something is wrong, and does it say what (arXiv:2502.07601).

Every .json file of a folder is a list of items: detection items {"image", "anomaly": true | false}, and reasoning items
{"image", "questions": [...]} whose questions are asked as one conversation. Paths are relative to the file, or to the
folder above it, and begin <class>/ or VisA/<class>/. As published, reasoning leaves pcb2 and pcb4 out.

Detection: one fixed yes-no question; accuracy, precision, recall and F1 per class, then their means. Reasoning: texts
are compared with reference answers where an item has them ("answers", one for each question), by ROUGE-L and by the
cosine of the encoder's sentence embeddings, which is no SBERT score and is not called one. Only the program that
generates answers is public, so these numbers are a protocol of our own and not comparable with the paper's.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from vlad.explain.evaluation.answering import Answerer, Question, outcome, text_rows, usage_line
from vlad.explain.evaluation.records import Line
from vlad.explain.evaluation.scores import decisions, rouge_l
from vlad.explain.evaluation.telling import Talk
from vlad.explain.votes import Vote, mean
from vlad.images import read
from vlad.prompts import category_name

if TYPE_CHECKING:
    from vlad.encoders.clip import Encoder

YES, NO = "yes", "no"
LEFT_OUT = ("pcb2", "pcb4")  # of reasoning


@dataclass(frozen=True)
class Item:
    """One picture: to be judged where `questions` is empty, else to be talked about."""

    image: str
    path: Path
    anomalous: bool | None
    questions: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()  # reference answers, as many as questions, or none

    @property
    def key(self) -> str:
        """Tells it from all others."""
        return f"{self.image}#{'reasoning' if self.questions else 'detection'}"

    @property
    def category(self) -> str:
        """The class: first folder of the path below VisA."""
        parts = PurePosixPath(self.image).parts
        return parts[1] if parts[0].casefold() == "visa" and len(parts) > 1 else parts[0]


def items(root: Path) -> list[Item]:
    """Detection and reasoning items of all .json files of a folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file that is no such list, or an item of another form.
    """
    files = sorted(root.glob("*.json"))
    if not files:
        raise FileNotFoundError(f"{root}: no .json file here; give the folder with the lists of VisA-D&R")
    found = []
    for file in files:
        try:
            raw = json.loads(file.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"{file}: not valid JSON: {error}") from None
        if not isinstance(raw, list):
            raise ValueError(f"{file}: expected a list of items, got {type(raw).__name__}")
        for number, entry in enumerate(raw, 1):
            try:
                found.append(_item(file.parent, entry))
            except (KeyError, TypeError, ValueError) as error:
                needed = '{"image", "anomaly": true | false} or {"image", "questions": [...]}'
                raise ValueError(f"{file}, item {number}: {error!r}; expected {needed}") from None
    return [item for item in found if not (item.questions and item.category in LEFT_OUT)]


def _item(folder: Path, entry: Any) -> Item:
    image = str(entry["image"])
    path = next((p for p in (folder / image, folder.parent / image) if p.is_file()), folder / image)
    if "questions" not in entry:
        if entry["anomaly"] not in (True, False, 0, 1):
            raise ValueError(f"anomaly is {entry['anomaly']!r}")
        return Item(image, path, bool(entry["anomaly"]))
    questions, answers = tuple(map(str, entry["questions"])), tuple(map(str, entry.get("answers", ())))
    if not questions or (answers and len(answers) != len(questions)):
        raise ValueError(f"{len(questions)} questions came with {len(answers)} answers")
    return Item(image, path, None, questions, answers)


def ask(item: Item, answerer: Answerer, talk: Talk) -> Line:
    """One item judged or talked about; a picture that cannot be read is the line's error."""
    truth = {"image": item.image, "class": item.category, "anomalous": item.anomalous, "references": list(item.answers)}
    nothing: Line = {"said": None, "p_anomalous": None, "texts": [], "usage": None, "error": None, "unreadable": None}
    name = category_name("visa", item.category)
    try:
        picture = read(item.path)
    except ValueError as error:
        return {**truth, **nothing, "error": str(error)}
    if item.questions:
        texts, usage, problem = talk(picture, name, item.questions)
        failed = problem is not None and all(text is None for text in texts)
        line = {"texts": texts, "usage": usage_line(usage), "error" if failed else "unreadable": problem}
        return {**truth, **nothing, **line}
    got = answerer(Question(f"Is there any defect on this {name}?", (YES, NO), picture, name))
    vote = Vote.of(got, (YES, NO))
    p = vote.share([YES], [NO]) if vote is not None and vote.probs is not None else None
    said = None if got.parsed is None else got.parsed == YES
    return {**truth, **nothing, "said": said, "p_anomalous": p, **outcome(got)}


def detection(lines: Sequence[Line]) -> dict[str, dict[str, float | None]]:
    """Class -> accuracy, precision, recall, f1; "mean" over the classes. Empty without detection items."""
    judged = [line for line in lines if line["anomalous"] is not None]
    found: dict[str, dict[str, float | None]] = {}
    for name in dict.fromkeys(line["class"] for line in judged):
        here = [line for line in judged if line["class"] == name]
        found[name] = vars(decisions([line["said"] for line in here], [line["anomalous"] for line in here]))
    if found:
        keys = next(iter(found.values()))
        found["mean"] = {key: mean(row[key] for row in found.values()) for key in keys}
    return found


def reasoning(lines: Sequence[Line], encoder: "Encoder") -> dict[str, float | int | None]:
    """Means over answers that have a reference; an answer that did not come counts 0.

    "rouge_l", and "clip_text_cosine" of the encoder's sentence embeddings (clamped at 0), which only compares models:
    it is never near 0, with `tiny` even noise gets about 0.6.
    """
    pairs = [
        (text or "", reference)
        for line in lines
        for text, reference in zip(line["texts"], line["references"], strict=False)
    ]
    return {
        "answers": len(pairs),
        "rouge_l": mean(rouge_l(text, reference) for text, reference in pairs),
        "clip_text_cosine": mean(_cosine(encoder, text, reference) for text, reference in pairs),
    }


def _cosine(encoder: "Encoder", text: str, reference: str) -> float:
    if not text.split():
        return 0.0
    one, other = text_rows(encoder, [text, reference])
    return max(0.0, float(one @ other))
