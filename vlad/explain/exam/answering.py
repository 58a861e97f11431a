"""Who answers the questions of a benchmark: a language model, or the words of the encoder alone.

The second is the tier that is always there: a picture and each option are compared as CLIP compares them. It knows
nothing of places, counts or causes; what it gets right of those is chance.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vlad.explain.reasoners.asking import Asker
from vlad.explain.reasoners.protocol import REFERENCE, Answer, Ask, Choice, Reasoner, Usage
from vlad.explain.views import VIEW_SIDE
from vlad.images.sizes import fitted
from vlad.prompts import PromptPack, check_name, prototypes

if TYPE_CHECKING:
    from torch import Tensor

    from vlad.encoders.encoder import Encoder

MAX_SECONDS = 300.0  # for one question
SCALE = 100.0  # of the softmax over cosines, CLIP's own
YES, NO = ("yes", "anomalous", "abnormal", "defective"), ("no", "normal", "not defective")


@dataclass(frozen=True)
class Question:
    """A multiple choice question on one picture.

    Attributes:
        name: what the picture shows, in words.
        options: different texts, in their order.
        references: good pictures shown beside it, uint8 [H, W, 3].
    """

    text: str
    options: tuple[str, ...]
    picture: np.ndarray
    name: str
    references: tuple[np.ndarray, ...] = ()


Answerer = Callable[[Question], Answer]


def by_reasoner(reasoner: Reasoner) -> Answerer:
    """Asks a language model, one question a call."""

    def answer(question: Question) -> Answer:
        asker = Asker(reasoner, MAX_SECONDS)
        got = asker.ask(Ask(parts_of(question), Choice(question.options)))
        return Answer(got.text, got.parsed, got.option_probs, got.finish, asker.usage, got.error, got.code)

    return answer


def by_words(encoder: "Encoder", pack: PromptPack) -> Answerer:
    """Compares the picture with the options; yes and no stand for the anomalous and the normal words of the pack."""

    def answer(question: Question) -> Answer:
        import torch

        with torch.no_grad():
            image = encoder(encoder.pixels([question.picture])).image[0]  # [D]
            rows = _option_rows(encoder, pack, question)  # [O, D]
            probs = (SCALE * (rows @ image)).softmax(0).tolist()
        best = question.options[int(np.argmax(probs))]
        return Answer(best, best, tuple(probs), usage=Usage())

    return answer


def parts_of(question: Question) -> tuple[str | np.ndarray, ...]:
    """The question as a language model reads it: good pictures first, then the one in question, then the words."""
    parts: list[str | np.ndarray] = []
    for reference in question.references:
        parts += [f"{REFERENCE}, a good one:", fitted(reference, VIEW_SIDE)]
    return (*parts, "QUERY, the picture in question:", fitted(question.picture, VIEW_SIDE), question.text)


def usage_line(usage: Usage) -> dict[str, Any]:
    """A usage as plain values."""
    return asdict(usage)


def outcome(answer: Answer) -> dict[str, Any]:
    """The end of a line: usage, and what went wrong. "error" is asked again when a run goes on, "unreadable" is not."""
    failed = answer.code in ("reasoner_failed", "budget")
    problem = answer.error if answer.parsed is None else None
    line = {"error": problem if failed else None, "unreadable": None if failed else problem}
    return {"usage": usage_line(answer.usage), **line}


def total_usage(lines: Sequence[dict[str, Any]]) -> Usage:
    """The sum over the "usage" of lines."""
    return sum((Usage(**line["usage"]) for line in lines if line.get("usage")), Usage())


def text_rows(encoder: "Encoder", sentences: Sequence[str]) -> "Tensor":
    """[T, D] unit embeddings; what is too long for the encoder is cut, at a word where it has any."""
    import torch
    import torch.nn.functional as F

    return F.normalize(torch.cat([_fitted_text(encoder, sentence) for sentence in sentences]), dim=-1)


def _fitted_text(encoder: "Encoder", sentence: str) -> "Tensor":
    words = " ".join(sentence.split()) or "nothing"
    while True:
        try:
            return encoder.text([words])
        except (
            ValueError
        ):  # it fills the context; encoders count in tokens of their own, so it is shortened until it fits
            if len(words) < 2:
                raise
            words = words[: len(words) * 3 // 4]
            words = words.rpartition(" ")[0] or words


def _option_rows(encoder: "Encoder", pack: PromptPack, question: Question) -> "Tensor":
    import torch
    import torch.nn.functional as F

    plain = [option.strip(" .").casefold() for option in question.options]
    if all(option in YES + NO for option in plain):
        states = F.normalize(prototypes(encoder, pack, check_name(question.name)), dim=-1)
        return torch.stack([states[int(option in YES)] for option in plain])
    return text_rows(encoder, [f"a photo of a {question.name}: {option.strip(' .')}" for option in question.options])
