"""What a server sends back, made one JSON object: compressed, as a stream of events, after lines that keep it alive."""

import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

GZIP = b"\x1f\x8b"
WORDS = ("content", "reasoning_content", "reasoning", "refusal")  # keys of a message whose pieces are put together


def unpacked(body: bytes, encoding: str, most: int) -> bytes:
    """The body without its compression, at most `most` bytes of it; ValueError where it is none that is read here."""
    kind = encoding.strip().casefold()
    if kind in ("gzip", "x-gzip", "deflate") or (kind in ("", "identity") and body.startswith(GZIP)):
        for window in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):  # with a header of gzip or zlib, then without any
            try:
                return zlib.decompressobj(window).decompress(body, most)
            except zlib.error:
                continue
        raise ValueError(f"its body is not {kind or 'gzip'}, though it says so")
    if kind not in ("", "identity"):
        raise ValueError(f"its body is in {kind}, which is not read here")
    return body


def json_object(body: bytes) -> dict[str, Any] | None:
    """The JSON object in a body, or the one that a stream of events adds up to; None for anything else."""
    whole = _loaded(body)
    if isinstance(whole, dict):
        return whole
    text = body.decode("utf-8-sig", errors="replace")
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith((":", "event:", "id:", "retry:"))]
    kept = _loaded("\n".join(lines))
    if isinstance(kept, dict):
        return kept
    chunks = [_loaded(line.removeprefix("data:")) for line in lines if line.removeprefix("data:").strip() != "[DONE]"]
    found = [chunk for chunk in chunks if isinstance(chunk, dict)]
    return _joined(found) if found and len(found) == len(chunks) else None


def _loaded(text: bytes | str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _joined(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The reply that pieces of a stream add up to; an error among them is the reply."""
    for chunk in chunks:
        if chunk.get("error"):
            return {"error": chunk["error"]}
    message: dict[str, Any] = {}
    choice: dict[str, Any] = {"message": message}
    tokens: list[Any] = []
    for piece in _pieces(chunks):
        choice["finish_reason"] = piece.get("finish_reason") or choice.get("finish_reason")
        logprobs = piece.get("logprobs")
        if isinstance(logprobs, dict) and isinstance(logprobs.get("content"), list):
            tokens += logprobs["content"]
        delta = piece.get("delta") or piece.get("message")
        for key, value in delta.items() if isinstance(delta, dict) else ():
            both_words = key in WORDS and isinstance(value, str) and isinstance(message.get(key), str)
            message[key] = message[key] + value if both_words else value if value else message.get(key, value)
    if tokens:
        choice["logprobs"] = {"content": tokens}
    usage = [chunk["usage"] for chunk in chunks if isinstance(chunk.get("usage"), dict)]
    return {"choices": [choice] if choice.keys() > {"message"} else [], **({"usage": usage[-1]} if usage else {})}


def _pieces(chunks: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The first choice of each piece."""
    for chunk in chunks:
        choices = chunk.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            yield choices[0]
