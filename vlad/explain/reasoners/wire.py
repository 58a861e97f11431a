"""The OpenAI chat protocol as data: what a request holds, and what can be made of any reply."""

import base64
import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vlad.explain.reasoners import parsing
from vlad.explain.reasoners.parsing import LETTERS, neutralise, spoken, thinks
from vlad.explain.reasoners.protocol import Finish
from vlad.explain.reasoners.transport import ServerError

TOP_LOGPROBS = 20  # as many as the protocol allows
LEAST_SIDE = 28  # px; vision encoders refuse smaller pictures
LEAST_MASS = 1e-3  # of the first token's probability on letters; below it, the model is not naming a letter
LOGPROBS = {"logprobs": True, "top_logprobs": TOP_LOGPROBS}


def message_part(part: str | np.ndarray) -> dict[str, Any]:
    """Words without control tokens, or a picture as PNG made from its pixels alone."""
    if isinstance(part, str):
        return {"type": "text", "text": neutralise(part)}
    height, width = (max(0, LEAST_SIDE - side) for side in part.shape[:2])
    if height or width:
        part = np.pad(part, ((0, height), (0, width), (0, 0)), constant_values=255)
    file = io.BytesIO()
    Image.fromarray(part).save(file, format="PNG", compress_level=1)  # most of the time goes here
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"},
    }


def response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The key that asks a server to enforce a JSON schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": dict(schema)}}


@dataclass(frozen=True)
class Said:
    """What a reply says.

    Attributes:
        text: the words meant to be read, thoughts that stand among them included.
        instead: what came where words should be, such as "it thought until its limit"; None where there are words.
        thought: whether the model thought first, so that its first token is no part of the answer.
        choice: all that the server says of it.
    """

    text: str
    finish: Finish
    instead: str | None
    thought: bool
    choice: Mapping[str, Any]


def first_choice(reply: Mapping[str, Any], host: str, max_tokens: int | None = None) -> Said:
    """What the first choice of a reply says; ServerError where a reply has none.

    Args:
        max_tokens: as many were allowed; some servers do not say that an answer was cut there.
    """
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = _message(choice) if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or message is None:
        raise ServerError(f"{host} answers without choices: {_shown(reply)}", 200)
    refusal = message.get("refusal")
    text = refusal if isinstance(refusal, str) and refusal else _text(message.get("content"))
    ended = choice.get("finish_reason")
    finish = "refused" if refusal else _FINISHES.get(ended.casefold() if isinstance(ended, str) else "", "stop")
    if finish == "stop" and max_tokens is not None and token_counts(reply)[1] >= max_tokens:
        finish = "length"
    thought = _thoughts(message) or thinks(text)
    return Said(text, finish, None if spoken(text) else _instead(message, thought, finish), thought, choice)


_FINISHES: dict[str, Finish] = {
    "length": "length", "max_tokens": "length", "model_length": "length", "max_output_tokens": "length",
    "content_filter": "refused", "safety": "refused", "refusal": "refused",
}  # fmt: skip


def _message(choice: Mapping[str, Any]) -> Mapping[str, Any] | None:
    message = choice.get("message")
    if isinstance(message, dict):
        return message
    return {"content": choice["text"]} if isinstance(choice.get("text"), str) else None


def _thoughts(message: Mapping[str, Any]) -> bool:
    """Whether thoughts came in a place of their own."""
    content = message.get("content")
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    apart = [message.get(key) for key in ("reasoning_content", "reasoning", "reasoning_details", "thinking")]
    kinds = [part["type"] for part in parts if isinstance(part.get("type"), str)]
    return any(one.strip() if isinstance(one, str) else one for one in apart) or any(map(_THOUGHT.search, kinds))


def _instead(message: Mapping[str, Any], thought: bool, finish: Finish) -> str | None:
    if thought:
        return "it thought until its limit" if finish == "length" else "it only thought"
    if message.get("tool_calls") or message.get("function_call"):
        return "it calls tools"
    return None if isinstance(message.get("content"), (str, type(None))) else "its content has no text"


_THOUGHT = re.compile("think|thought|reason", re.IGNORECASE)
_SPOKEN = ("text", "output_text", "refusal", None)  # types of parts that are no thoughts


def _text(content: Any) -> str:
    if isinstance(content, list):  # some servers answer in parts
        return "".join(_text(part) for part in content if not isinstance(part, list))
    if isinstance(content, dict):
        found = content.get("text", content.get("refusal"))
        if content.get("type") not in _SPOKEN:
            return ""
        if found is None and "type" not in content and content:
            return _shown(content, parsing.MAX_ANSWER)  # an object where its text was asked for
        found = found.get("value") if isinstance(found, dict) else found
        return found if isinstance(found, str) else ""
    return content if isinstance(content, str) else ""


def _shown(value: Any, most: int = 200) -> str:
    """An object of a reply as JSON, cut."""
    try:
        return json.dumps(value)[:most]
    except RecursionError:
        return "an object too deep to show"


def token_counts(reply: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens read and written as the server counts them; 0 where it does not say."""
    usage = reply.get("usage")
    counts = [usage.get(key) if isinstance(usage, dict) else 0 for key in ("prompt_tokens", "completion_tokens")]
    read, written = (count if isinstance(count, int) and count > 0 else 0 for count in counts)
    return read, written


def first_token(choice: Mapping[str, Any]) -> dict[str, float] | None:
    """The likeliest first tokens with their probabilities; None where the server gives none."""
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    top = (
        content[0].get("top_logprobs")
        if isinstance(content, list) and content and isinstance(content[0], dict)
        else None
    )
    found: dict[str, float] = {}
    for one in top if isinstance(top, list) else []:
        token, logprob = (one.get("token"), one.get("logprob")) if isinstance(one, dict) else (None, None)
        if isinstance(token, str) and isinstance(logprob, (int, float)) and logprob <= 1e-6:
            found[token] = math.exp(max(logprob, -1e3))
    return found or None


def letter_probs(choice: Mapping[str, Any], options: int) -> np.ndarray | None:
    """Probabilities [options] of the first letters as the first token, summing to 1; None where it is no letter."""
    tokens = first_token(choice) or {}
    probs = np.zeros(options)
    for token, prob in tokens.items():
        index = LETTERS.find(token.strip()) if token.strip() else -1
        if len(token.strip()) == 1 and 0 <= index < options:
            probs[index] += prob
    return probs / probs.sum() if probs.sum() >= LEAST_MASS else None
