"""Answers in words to open questions: a language model's, in one conversation, or what an explanation says."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

import vlad
from vlad.explain.asking import Asker
from vlad.explain.evaluation.answering import MAX_SECONDS, shown
from vlad.explain.reasoner import Ask, Reasoner, Text, Usage
from vlad.prompts import PromptPack

if TYPE_CHECKING:
    from vlad.encoders.clip import Encoder

Talk = Callable[[np.ndarray, str, Sequence[str]], tuple[list[str | None], Usage, str | None]]

MAX_WORDS = 80
NOTHING = "No defect stands out."


def by_conversation(reasoner: Reasoner) -> Talk:
    """Asks a language model one question after the other, each with all that was said before."""

    def talk(picture: np.ndarray, name: str, questions: Sequence[str]) -> tuple[list[str | None], Usage, str | None]:
        asker, said, answers = Asker(reasoner, MAX_SECONDS), "", list[str | None]()
        for question in questions:
            words = f"{said}Question: {question}\nAnswer:"
            parts = (f"QUERY, a picture of a {name}:", shown(picture), words)
            got = asker.ask(Ask(parts, Text(MAX_WORDS)))
            answers.append(got.parsed)
            said = f"{words} {got.parsed or '(no answer)'}\n"
        return answers, asker.usage, asker.errors[0] if asker.errors else None

    return talk


def by_explanation(encoder: "Encoder", pack: PromptPack) -> Talk:
    """Says the descriptions of the explanation without a language model, whatever the question was."""

    def talk(picture: np.ndarray, name: str, questions: Sequence[str]) -> tuple[list[str | None], Usage, str | None]:
        detector = vlad.load(name=name, encoder=encoder, prompts=pack)
        found = vlad.explain(picture, detector.predict(picture), detector=detector)
        words = " ".join(defect.description for defect in found.defects) or NOTHING
        return [words] * len(questions), Usage(), None

    return talk
