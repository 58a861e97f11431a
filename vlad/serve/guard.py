"""What stands before every route: who may ask, how much, for how long; and what stands in every answer and in the log.

Plain ASGI, so that a route still sees a client that goes away.
"""

import asyncio
import json
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlad.serve.metrics import Metrics
from vlad.serve.passes import Full
from vlad.serve.settings import Settings

logger = logging.getLogger(__name__)

HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
SAFE = ("GET", "HEAD", "OPTIONS")
WITH_KEY = ("/v1/", "/metrics")
READING = ("/v1/score", "/v1/score/json", "/v1/explain")  # what a read-only server still takes
AT_ONCE = 12  # bodies of the largest size that may be on their way
LONGEST_NUMBER = 20  # digits
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Refusal(HTTPException):
    """An answer in place of a route's: code, sentence, and headers."""

    def __init__(self, code: int, sentence: str, **headers: str):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        super().__init__(code, sentence, {"connection": "close", **named} if code in (400, 411, 413) else named)


class Guard:
    """The application behind its checks."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, check_room: Callable[[int], None]):
        self.app, self.settings, self.metrics, self.check_room = app, settings, metrics, check_room
        self.on_its_way = 0  # bytes of bodies
        self.failures: deque[float] = deque(maxlen=10_000)  # times, to say how many there were in the last minute

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(send)
        length = 0
        try:
            length = self._admitted(scope)
            self.on_its_way += length
            async with asyncio.timeout(self.settings.timeout):
                await self.app(scope, _counted(receive, self.settings.max_body), answer.send)
        except Refusal as refusal:
            await answer.refuse(refusal)
        except TimeoutError:
            await answer.refuse(Refusal(504, f"there is no answer within {self.settings.timeout:g} s; send less"))
        except Exception:
            logger.exception("request %s failed", answer.id)
            await answer.refuse(Refusal(500, f"the server failed; its log says why (request {answer.id})"))
        finally:
            self.on_its_way -= length
            self._tell(scope, answer)

    def _admitted(self, scope: Scope) -> int:
        """The length of the body of a request that may come in; Refusal of any other."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path, method = scope["path"], scope["method"]
        if path.startswith(WITH_KEY) or method not in SAFE:
            self._check_client(headers, scope["scheme"], method)
        if self.settings.read_only and method not in SAFE and path not in READING:
            raise Refusal(403, "this server is read-only; its detectors are changed where they are made")
        if method in SAFE:
            return 0
        if path in READING:
            try:
                self.check_room(1)  # before the body is read
            except Full as full:
                raise Refusal(503, str(full), retry_after="1") from None
        return self._length(headers)

    def _check_client(self, headers: dict[str, str], scheme: str, method: str) -> None:
        host, key = headers.get("host", ""), self.settings.key
        if key is not None:
            said = headers.get("authorization", "").encode("latin-1")
            if not secrets.compare_digest(said, f"Bearer {key}".encode()):
                raise Refusal(401, "this server wants its key: Authorization: Bearer KEY", www_authenticate="Bearer")
        elif _name_of(host) not in LOOPBACK:  # a foreign name that leads here: somebody's page, not this one
            raise Refusal(421, f"this server answers at localhost, not at {host!r:.80}; a key opens it to other names")
        origin = headers.get("origin")
        if method not in SAFE and origin not in (None, f"{scheme}://{host}", *self.settings.origins):
            raise Refusal(403, f"a page of {origin!r:.80} may not use this server; --cors names those that may")

    def _length(self, headers: dict[str, str]) -> int:
        given, limit = headers.get("content-length"), self.settings.max_body
        if given is None:
            if "transfer-encoding" in headers:
                raise Refusal(411, "the request does not say how long it is: send Content-Length, not chunks")
            return 0
        if not (given.isascii() and given.isdecimal() and len(given) < LONGEST_NUMBER):
            raise Refusal(400, "Content-Length is no number of bytes")
        if int(given) > limit:
            raise Refusal(413, f"the request has {given} bytes and {limit} are allowed; send fewer pictures at once")
        if self.on_its_way + int(given) > AT_ONCE * limit:
            raise Refusal(503, "too many pictures are on their way; send these again in a second", retry_after="1")
        return int(given)

    def _tell(self, scope: Scope, answer: "_Answer") -> None:
        """Counts the request and logs it in one line: no body, no name that a client gave."""
        took = time.monotonic() - answer.start
        route = getattr(scope.get("route"), "path", "none")
        self.metrics.requests.labels(route, answer.code).inc()
        self.metrics.seconds.labels(route).observe(took)
        facts: dict[str, Any] = {"id": answer.id, "route": route, "code": answer.code, "ms": round(took * 1000)}
        if answer.code < 400:
            logger.info(json.dumps(facts))
            return
        now = time.monotonic()
        self.failures.append(now)
        recent = sum(now - one < 60 for one in self.failures)
        client = (scope.get("client") or ["unknown"])[0]
        logger.warning(json.dumps({**facts, "client": client, "failures_in_the_last_minute": recent}))


class _Answer:
    """Sends an answer with the headers that all have, and remembers its code."""

    def __init__(self, send: Send):
        self._send = send
        self.id, self.start = secrets.token_hex(8), time.monotonic()
        self.code = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.code = message["status"]
            own = {**HEADERS, "x-request-id": self.id}
            given = [(name, value) for name, value in message["headers"] if name.decode("latin-1").lower() not in own]
            message = {**message, "headers": [*given, *((name.encode(), own[name].encode()) for name in own)]}
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Sends it, unless an answer has begun."""
        if self.code:
            return
        body = json.dumps({"error": refusal.detail}).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **(refusal.headers or {})}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refusal.status_code, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})


def _counted(receive: Receive, limit: int) -> Receive:
    """The body, counted while it comes: a header may lie."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise Refusal(413, f"the request has more than {limit} bytes; send fewer pictures at once")
        return message

    return counted


def _name_of(host: str) -> str:
    """Of "localhost:8000" or "[::1]:8000"."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host
