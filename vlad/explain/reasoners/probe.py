"""What a server can do, found out by asking: HTTP 200 means neither that it saw a picture nor that it kept a schema."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from vlad.explain.reasoners.parsing import find_object, how_to_answer, spoken
from vlad.explain.reasoners.protocol import Ask, Schema
from vlad.explain.reasoners.transport import ServerError
from vlad.explain.reasoners.wire import LOGPROBS, Said, first_token, response_format

SIDE = 128  # px
QUARTERS = ("top left", "top right", "bottom left", "bottom right")
CODES = ("Q-TL", "Q-TR", "Q-BL", "Q-BR")  # words that no model would choose by itself
MAX_TOKENS = 512
SCHEMA = {
    "type": "object",
    "properties": {"quadrant": {"type": "string", "enum": list(CODES)}},
    "required": ["quadrant"],
    "additionalProperties": False,
}

Post = Callable[[Ask, str, dict[str, Any]], Said]  # question, its ending, further keys


class WordlessError(RuntimeError):
    """A server that answers, but never with words."""


def probe(post: Post) -> tuple[bool, bool, bool]:
    """Whether a server sees pictures, enforces a JSON schema, and gives log-probabilities.

    Two white pictures, each with another quarter black: one that always says the same fails. The schema's words are
    not in the question, so only a server that enforces it can answer with them. Raises ServerError
    without an answer, WordlessError where none has words.
    """
    found = [_once(post, quarter) for quarter in random.SystemRandom().sample(range(4), 2)]
    sees, schema, probs = (all(one[index] for one in found) for index in range(3))
    return sees, schema, probs


def _once(post: Post, quarter: int) -> tuple[bool, bool, bool]:
    question = Ask((_drawn(quarter), f"Which quarter of the picture is black: {', '.join(QUARTERS)}?"), Schema(SCHEMA))
    keys = {"response_format": response_format(SCHEMA), **LOGPROBS}
    try:
        said = post(question, "Answer with a JSON object that has the key quadrant.", keys)
    except ServerError as error:
        if error.status not in (400, 422):  # what servers answer to keys that they do not know
            raise
        return _names(_words(post(question, how_to_answer(question.answer), {})), quarter), False, False
    text = _words(said)
    found = find_object(text, ["quadrant"]) or {}
    probs = not said.thought and first_token(said.choice) is not None
    return _names(text, quarter), found.get("quadrant") in CODES, probs


def _words(said: Said) -> str:
    if said.instead is not None:
        raise WordlessError(
            f"answers without words ({said.instead}); a model that thinks may stop it with "
            'extra_body={"chat_template_kwargs": {"enable_thinking": false}} or {"reasoning_effort": "low"}'
        )
    return spoken(said.text)


def _drawn(quarter: int) -> np.ndarray:
    picture = np.full((SIDE, SIDE, 3), 255, np.uint8)
    half, (row, column) = SIDE // 2, divmod(quarter, 2)
    picture[row * half : (row + 1) * half, column * half : (column + 1) * half] = 0
    return picture


def _names(text: str, quarter: int) -> bool:
    """Whether a text names this quarter and no other."""
    plain = text.casefold().replace("-", " ").replace("_", " ").replace("upper", "top").replace("lower", "bottom")
    named = {i for i in range(4) if QUARTERS[i] in plain or CODES[i].casefold().replace("-", " ") in plain}
    return named == {quarter}
