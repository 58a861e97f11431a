"""A stand-in for an OpenAI-compatible server on the loopback: scripted replies, or one function that answers."""

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

CODES = ("Q-TL", "Q-TR", "Q-BL", "Q-BR")
Reply = tuple[int, Any, float, dict[str, str]]  # status, body, seconds before it, headers


def said(text: Any, finish: str = "stop", top: dict[str, float] | None = None, **message: Any) -> dict[str, Any]:
    """A well-formed body that says `text`; `top`: token -> log-probability of the first token."""
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    if top is not None:
        choice["logprobs"] = {"content": [{"top_logprobs": [{"token": t, "logprob": p} for t, p in top.items()]}]}
    return {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 7}}


def reply(body: Any, status: int = 200, delay: float = 0.0, **headers: str) -> Reply:
    return status, body, delay, {key.replace("_", "-"): value for key, value in headers.items()}


def words(request: dict[str, Any]) -> str:
    """All text of a request, system text first."""
    pieces = []
    for message in request["messages"]:
        content = message["content"]
        pieces += [content] if isinstance(content, str) else [p["text"] for p in content if p["type"] == "text"]
    return "\n".join(pieces)


def files(request: dict[str, Any]) -> list[bytes]:
    """The picture files of a request."""
    parts = [part for m in request["messages"] if isinstance(m["content"], list) for part in m["content"]]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [base64.b64decode(url.removeprefix("data:image/png;base64,")) for url in urls]


def pictures(request: dict[str, Any]) -> list[np.ndarray]:
    return [np.array(Image.open(io.BytesIO(file))) for file in files(request)]


def seen_quarter(request: dict[str, Any]) -> str | None:
    """The probe's answer, from the pixels that came; None for another question."""
    if "Which quarter" not in words(request):
        return None
    picture = pictures(request)[0]
    half = picture.shape[0] // 2
    means = [picture[r : r + half, c : c + half].mean() for r in (0, half) for c in (0, half)]
    return CODES[int(np.argmin(means))]


class Stub:
    """`requests` and `headers` are what came in; `answer` turns a request into a reply."""

    def __init__(self, answer: Callable[[dict[str, Any]], Reply]) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""


@contextmanager
def serving(answer: Callable[[dict[str, Any]], Reply] | list[Reply]) -> Iterator[Stub]:
    """A server for the length of a block; of a list, the last reply is given for ever."""
    if isinstance(answer, list):
        script = list(answer)
        stub = Stub(lambda request: script.pop(0) if len(script) > 1 else script[0])
    else:
        stub = Stub(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stub.requests.append(request)
            stub.headers.append(dict(self.headers))
            status, body, delay, headers = stub.answer(request)
            time.sleep(delay)
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            try:
                self.send_response(status)
                for key, value in {"Content-Length": str(len(raw)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(raw)
            except OSError:
                return  # the other side has gone

        def log_message(self, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
