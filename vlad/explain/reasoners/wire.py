"""The OpenAI chat protocol as data: what a request holds, and what can be made of any reply."""

import base64
import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from vlad.explain.reasoners.parsing import LETTERS, neutralise
from vlad.explain.reasoners.protocol import Finish
from vlad.explain.reasoners.transport import ServerError

TOP_LOGPROBS = 20  # as many as the protocol allows
LEAST_MASS = 1e-3  # of the first token's probability on letters; below it, the model is not naming a letter
LOGPROBS = {"logprobs": True, "top_logprobs": TOP_LOGPROBS}


def message_part(part: str | np.ndarray) -> dict[str, Any]:
    """Words without control tokens, or a picture as PNG made from its pixels alone."""
    if isinstance(part, str):
        return {"type": "text", "text": neutralise(part)}
    file = io.BytesIO()
    Image.fromarray(part).save(file, format="PNG", compress_level=1)  # most of the time goes here
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"},
    }


def response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The key that asks a server to enforce a JSON schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": dict(schema)}}


def first_choice(reply: Mapping[str, Any], host: str) -> tuple[str, Finish, Mapping[str, Any]]:
    """The text of a reply, how it ended, and the whole choice; ServerError where a reply has none."""
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise ServerError(f"{host} answers without choices: {str(dict(reply))[:200]}", 200)
    refusal = message.get("refusal")
    text = refusal if isinstance(refusal, str) and refusal else _text(message.get("content"))
    if refusal or choice.get("finish_reason") == "content_filter":
        return text, "refused", choice
    return text, "length" if choice.get("finish_reason") == "length" else "stop", choice


def _text(content: Any) -> str:
    if isinstance(content, list):  # some servers answer in parts
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


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
            found[token] = math.exp(logprob)
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
