"""Questions asked with patience: one more try where it may help, then the reason; a sum of what it all cost."""

import time
from dataclasses import replace

import numpy as np

from vlad.explain.reasoners.parsing import conform, plain_words, printable
from vlad.explain.reasoners.protocol import Answer, Ask, Reasoner, Schema, Text, Usage

PLAIN_SYSTEM = "You describe photographs of industrial parts for their maker's own records. Answer the question."
REPEATED = 2000  # characters of a wrong answer that are shown again


class Asker:
    """One reasoner for the length of one interview.

    The first question without an answer ends it: the model broke, the server stayed down, the budget or `max_seconds`
    is spent. All later questions then fail at once.

    Attributes:
        usage: the sum over all questions.
        errors: one sentence for each question that got no usable answer.
        codes: limit code -> the sentence that says when it happened.
    """

    def __init__(self, reasoner: Reasoner, max_seconds: float) -> None:
        self.reasoner = reasoner
        self.usage = Usage()
        self.errors: list[str] = []
        self.codes: dict[str, str] = {}
        self._max_seconds = max_seconds
        self._end = time.monotonic() + max_seconds
        self._over: Answer | None = None

    def ask(self, question: Ask) -> Answer:
        """The answer; `parsed` is None where a second try did not help either. Never raises."""
        if self._over is not None:
            return self._over
        answer = self._once(question)
        again = _second_try(question, answer)
        if again is not None:
            answer = self._once(again)
        if answer.error is not None:
            answer = replace(answer, error=printable(answer.error))
        if answer.code is not None:
            self.codes.setdefault(answer.code, answer.error or "an answer was cut off at its limit")
        if answer.error is not None and answer.error not in self.errors:
            self.errors.append(answer.error)
        if answer.code in ("reasoner_failed", "budget"):
            self._over = answer
        return answer

    def _once(self, question: Ask) -> Answer:
        left = self._end - time.monotonic()
        if left <= 0:
            return Answer(
                finish="error", error=f"the questions took longer than {self._max_seconds:g} s", code="budget"
            )
        try:
            answer = self.reasoner.ask(replace(question, timeout_s=min(question.timeout_s, left)))
            answer = _checked(answer, question)
        except Exception as error:  # a reasoner of the user's own may raise anything; detection goes on
            message = f"{getattr(self.reasoner, 'name', 'the reasoner')} raised {type(error).__name__}: {error}"
            return Answer(finish="error", error=message[:300], code="reasoner_failed")
        self.usage += answer.usage
        return answer


def _second_try(question: Ask, answer: Answer) -> Ask | None:
    """The question to ask after a useless answer; None where another try would not help."""
    if answer.parsed is not None:
        return None
    if answer.code == "truncated_answer":
        return replace(question, max_tokens=2 * question.max_tokens)  # never mend a text that was cut off
    if answer.code == "refused":
        return replace(question, system=PLAIN_SYSTEM)
    if answer.code == "parse_failed" and answer.text.strip():
        words = f"Your last answer was:\n{answer.text[:REPEATED]}\nIt cannot be used: {answer.error}. "
        return replace(question, parts=(words + "Give the same answer again in the form asked for, and nothing else.",))
    return None


def _checked(answer: Answer, question: Ask) -> Answer:
    """An answer that keeps what `Answer` promises; raises ValueError or TypeError for one of a wrong kind."""
    if not isinstance(answer, Answer):
        raise TypeError(f"its answer is of type {type(answer).__name__}, not Answer")
    if answer.parsed is None:
        code = answer.code or {"refused": "refused", "length": "truncated_answer"}.get(answer.finish, "reasoner_failed")
        return replace(answer, code=code, error=answer.error or "no usable answer came")
    if isinstance(question.answer, Text):
        return replace(answer, parsed=plain_words(str(answer.parsed), question.answer.max_words))
    if isinstance(question.answer, Schema):
        problems: list[str] = []
        mended = conform(answer.parsed, question.answer.json_schema, problems)
        if mended is None or any(not problem.endswith("(left out)") for problem in problems):
            raise ValueError(f"its object is not of the schema: {'; '.join(problems)}")
        return replace(answer, parsed=mended)
    if answer.parsed not in question.answer.options:
        raise ValueError(f"it chose {str(answer.parsed)[:40]!r}, which is none of the options")
    if answer.option_probs is not None:
        values = np.asarray(answer.option_probs, dtype=float)
        fair = values.shape == (len(question.answer.options),) and bool((values >= 0).all())
        if not fair or not abs(float(values.sum()) - 1) < 1e-3:
            raise ValueError(f"its option probabilities are {answer.option_probs}, not one an option with the sum 1")
    return answer
