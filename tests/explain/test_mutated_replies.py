"""Replies of a server with bytes flipped, cut, doubled or put in: each ends in a result or in one sentence, soon."""

import gzip
import json
import random
import socketserver
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from chat_stub import said
from test_reasoner_endpoint import GOOD, SCHEMA, TYPES

from vlad.explain.reasoners import transport
from vlad.explain.reasoners.asking import Asker
from vlad.explain.reasoners.endpoint import EndpointReasoner
from vlad.explain.reasoners.protocol import Ask, Text

PICTURE = np.full((8, 8, 3), 200, np.uint8)
LONGEST_S = 5.0


def http(body, status="200 OK", **headers):
    lines = [f"HTTP/1.1 {status}", *(f"{key.replace('_', '-')}: {value}" for key, value in headers.items())]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def as_json(*args, **options):
    return json.dumps(said(*args, **options)).encode()


STREAM = b"".join(
    f'data: {{"choices": [{{"delta": {{"content": "{piece}"}}}}]}}\n\n'.encode()
    for piece in ("", "<think>a</think>", "B")
)
REPLIES = [
    http(as_json(json.dumps(GOOD))),
    http(as_json("B", top={"B": -0.1, "A": -3.0})),
    http(as_json([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "B"}], reasoning_content="A")),
    http(as_json("", "length", reasoning="so")),
    http(STREAM + b"data: [DONE]\n\n", Content_Type="text/event-stream"),
    http(gzip.compress(as_json("a scratch <|channel|>final<|message|>B")), Content_Encoding="gzip"),
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(
        f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in (b": keep-alive\n\n", as_json("A"), b"")
    ),
    http(b'{"error": {"message": "\'seed\' is not supported", "param": "seed"}}', "400 Bad Request"),
    http(b'{"detail": "At most 1 image(s), max_tokens is at most 20"}', "422 Unprocessable"),
    http(b"busy", "429 Too Many Requests", Retry_After="1"),
    http(b"", "302 Found", Location="http://[::1]:9/v1"),
    http(b"Loading model", "503 Service Unavailable"),
]  # fmt: skip


def mutated(rng, reply):
    """One to three changes, each at a random place."""
    for _ in range(rng.randint(1, 3)):
        start, end = sorted(rng.randrange(len(reply) + 1) for _ in range(2))
        piece, kind = reply[start:end], rng.choice(["flip", "cut", "double", "drop", "insert", "many"])
        if kind == "flip" and start < len(reply):
            reply = reply[:start] + bytes([reply[start] ^ 1 << rng.randrange(8)]) + reply[start + 1 :]
        elif kind == "cut":
            reply = reply[:start]
        elif kind == "double":
            reply = reply[:end] + piece + reply[end:]
        elif kind == "drop":
            reply = reply[:start] + reply[end:]
        elif kind == "insert":
            reply = reply[:start] + rng.randbytes(rng.randint(1, 8)) + reply[start:]
        else:
            reply = reply[:start] + rng.choice([b"[", b"{", b'"', b"<", b"9"]) * rng.randint(1, 3000) + reply[start:]
    return reply


ODD = [
    None,
    True,
    -1,
    1e300,
    10**400,
    "",
    "\ud800",
    "\x1b[2J\n",
    "length",
    [],
    {},
    [[]],
    [None],
    {"text": []},
    {"a": 1},
]
ODD.append(json.loads("[" * 400 + "]" * 400))


def with_odd_value(rng, value):
    """The JSON value with one of its places, chosen at random, holding something that nobody expects there."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.15:
        return rng.choice(ODD)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = rng.choice(keys)
    changed = value.copy()
    changed[key] = with_odd_value(rng, value[key])
    return changed


@contextmanager
def answering():
    """A server that sends the bytes in the list it gives, the same ones to everybody, and hangs up."""
    sent = [b""]

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            length = 0
            while (line := self.rfile.readline().strip()) != b"":
                length = int(line.partition(b":")[2]) if line.lower().startswith(b"content-length") else length
            self.rfile.read(length)
            try:
                self.wfile.write(sent[0])
            except OSError:
                return

    class Running(socketserver.ThreadingTCPServer):
        daemon_threads, request_queue_size = True, 64

    with Running(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", sent
        server.shutdown()


def check(url, sent, seed, odd=False):
    rng = random.Random(seed)
    body = rng.choice([said("B", top={"B": -0.1}, reasoning=""), said(None, refusal=""), said([{"text": "B"}])])
    sent[0] = http(json.dumps(with_odd_value(rng, body)).encode()) if odd else mutated(rng, rng.choice(REPLIES))
    reasoner = EndpointReasoner("m", url, probe=rng.random() < 0.3, timeout_s=0.3)
    asker = Asker(reasoner, 60)  # without a case around `ask`: what it raises itself would be named as raised
    for answer in (TYPES, SCHEMA, Text(9)):
        start = time.monotonic()
        found = asker.ask(Ask(("NORMAL reference", PICTURE, "QUERY", PICTURE, "which?"), answer))
        assert time.monotonic() - start < LONGEST_S, (seed, sent[0])
        assert (found.parsed is None) == bool(found.error) or found.code, (seed, found)
        assert "raised" not in (found.error or ""), (seed, found.error)
        words = json.dumps([found.parsed, found.option_probs, found.error], allow_nan=False, ensure_ascii=False)
        assert words.encode() and "\n" not in (found.error or "") and (found.error or "").isprintable(), (seed, found)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(transport, "BACKOFF_S", 0.001)
    monkeypatch.setattr(transport, "LOADING_S", 0.1)


def test_a_damaged_reply_is_a_result_or_one_sentence():
    with answering() as (url, sent):
        for seed in range(300):
            check(url, sent, seed)


def test_a_value_that_nobody_expects_anywhere_in_a_reply_is_a_result_or_one_sentence():
    with answering() as (url, sent):
        for seed in range(400):
            check(url, sent, seed, odd=True)


@pytest.mark.slow
def test_two_thousand_damaged_replies_are_results_or_one_sentence():
    with answering() as (url, sent):
        for seed in range(1000, 3000):
            check(url, sent, seed)
