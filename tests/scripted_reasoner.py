"""Reasoners for tests: one that answers as a function says, and one that truly looks at the pixels it is shown."""

from collections.abc import Callable
from typing import Any

import numpy as np

from vlad.explain.reasoners.protocol import Answer, Ask, Caps, Choice, Schema, Usage

DARK = 60  # grey level; the pictures of these tests are bright, their defects dark


class Scripted:
    """Answers with `reply(question)`: an option or its probabilities for a choice, words, a dict, or an Answer."""

    name = "scripted"

    def __init__(self, reply: Callable[[Ask], Any], caps: Caps | None = None) -> None:
        self.reply = reply
        self.caps = caps or Caps(option_probs=True)
        self.asked: list[Ask] = []

    def ask(self, question: Ask) -> Answer:
        self.asked.append(question)
        said = self.reply(question)
        usage = Usage(calls=1, images_sent=len(question.pictures))
        if isinstance(said, Answer):
            return said
        if isinstance(said, dict) and isinstance(question.answer, Choice):
            probs = tuple(said.get(option, 0.0) for option in question.answer.options)
            return Answer(parsed=question.answer.options[int(np.argmax(probs))], option_probs=probs, usage=usage)
        if isinstance(question.answer, Choice) and self.caps.option_probs:
            sure = tuple(
                0.9 * (option == said) + 0.1 / len(question.answer.options) for option in question.answer.options
            )
            return Answer(parsed=said, option_probs=sure, usage=usage)
        return Answer(text=str(said), parsed=said, usage=usage)


def last_words(question: Ask) -> str:
    """The question itself, without what was said before it."""
    return str(question.parts[-1])


def all_words(question: Ask) -> str:
    return "\n".join(part for part in question.parts if isinstance(part, str))


def labelled(question: Ask) -> dict[str, np.ndarray]:
    """The pictures of a question by the label before each."""
    parts = question.parts
    return {str(parts[i - 1]): part for i, part in enumerate(parts) if isinstance(part, np.ndarray)}


def looks(question: Ask) -> Any:
    """What someone would say who knows only that good plates are bright: dark pixels in a crop are a scratch."""
    words, views = last_words(question), labelled(question)
    if isinstance(question.answer, Schema):
        return _form(question, views)
    if words.startswith("What does area") or words.startswith("Area"):
        (sheet,) = [picture for label, picture in views.items() if label.startswith("Area")]
        bad = is_dark(query_half(sheet) if "first the NORMAL reference" in " ".join(views) else sheet)
        if words.startswith("Area"):
            return "none of these" if bad else "texture of the material"
        return "scratch" if bad else "normal variation"
    if words.startswith("Describe"):
        (sheet,) = [picture for label, picture in views.items() if label.startswith("Area")] or [views["QUERY"]]
        return f"a dark mark, {int((sheet.mean(axis=2) < DARK).sum())} px"
    if "normal or anomalous" in words:
        return "anomalous" if is_dark(views["QUERY"]) else "normal"
    if words.startswith("What does QUERY"):
        return "scratch" if is_dark(views["QUERY"]) else "normal variation"
    if words.startswith("In which part"):
        rows, columns = np.nonzero(views["QUERY"].mean(axis=2) < DARK)
        cells = question.answer.options
        height, width = views["QUERY"].shape[:2]
        return cells[3 * int(3 * rows.mean() / height) + int(3 * columns.mean() / width)] if len(rows) else cells[-1]
    if "writing" in words:
        return "no" if isinstance(question.answer, Choice) else ""
    if isinstance(question.answer, Choice):
        return "cannot tell" if "cannot tell" in question.answer.options else question.answer.options[-1]
    return "it is a plate"


def _form(question: Ask, views: dict[str, np.ndarray]) -> dict[str, Any]:
    sheets = {int(label.split()[1]): picture for label, picture in views.items() if label.startswith("Area")}
    areas = [
        {"region": number, "type": "scratch" if is_dark(sheet) else "normal variation", "description": f"area {number}"}
        for number, sheet in sheets.items()
    ]
    verdict = "anomalous" if is_dark(views["QUERY"]) else "normal"
    form = {"verdict": verdict, "regions": areas, "elsewhere": "nowhere else", "writing": ""}
    return {key: form[key] for key in question.answer.json_schema["required"]}


def query_half(sheet: np.ndarray) -> np.ndarray:
    """The part of a crop sheet that shows the query, where a reference stands before it."""
    height, width = sheet.shape[:2]
    return sheet[:, width // 2 + 16 :] if width > height else sheet[height // 2 + 16 :]


def is_dark(picture: np.ndarray) -> bool:
    return bool((picture.mean(axis=2) < DARK).mean() > 1e-4)
