"""JSON over HTTP to one server, with the standard library alone: who may be reached, how long, how often.

Redirects are not followed and proxies are ignored, so that a picture goes to the named host or nowhere.
"""

import http.client
import ipaddress
import json
import os
import random
import socket
import threading
import time
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlsplit

CONNECT_S = 5.0
BACKOFF_S = 0.5  # before the first retry; doubles
RETRIES = 2
LONGEST_WAIT_S = 30.0  # of what a server may ask for with Retry-After
RETRIED = {408, 409, 425, 429}  # and every 5xx
MAX_REPLY = 8 << 20  # bytes
MAX_FAILURES = 3  # in a row; then the server is left alone


class ServerError(RuntimeError):
    """A question that no answer came to; the message says which host did what. `status` is None without a reply."""

    def __init__(self, message: str, status: int | None = None, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.wait_s = wait_s


class Server:
    """One host that takes JSON.

    Args:
        base_url: such as "http://127.0.0.1:8000/v1".
        privacy: "local" reaches this machine alone; "remote" any host.
        key_env: name of the environment variable that holds the key; the key is never shown.

    Raises:
        ValueError: a URL of another form, a host elsewhere without `privacy="remote"`, an empty variable.
    """

    def __init__(self, base_url: str, *, privacy: Literal["local", "remote"] = "local", key_env: str | None = None):
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError(
                f"the server is {_without_login(base_url)!r}; expected one such as http://127.0.0.1:8000/v1"
            )
        if privacy not in ("local", "remote"):
            raise ValueError(f"privacy is {privacy!r}; expected local or remote")
        if privacy == "local" and not _names_this_machine(parts.hostname):
            raise ValueError(
                f"the server {parts.hostname} is not this machine, and pictures would be sent to it; "
                'say privacy="remote" (--allow-remote) if they may be'
            )
        key = os.environ.get(key_env, "").strip() if key_env else ""
        if key_env and not key:
            raise ValueError(f"the environment variable {key_env} is empty; it should hold the key of {parts.hostname}")
        if not (key.isascii() and key.isprintable()):
            raise ValueError(f"the environment variable {key_env} holds more than printable ASCII; check the key")
        self.host = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
        self._parts, self._privacy, self._key = parts, privacy, key
        self._failures = 0  # in a row

    def post(self, path: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The JSON object that comes back; tried again where that may help, all within `timeout_s`.

        Raises ServerError: no answer, an answer that is no JSON object, or three failures in a row before this call.
        """
        if self._failures >= MAX_FAILURES:
            raise ServerError(f"{self.host} is left alone after {MAX_FAILURES} failures in a row")
        deadline = time.monotonic() + timeout_s
        for attempt in range(RETRIES + 1):
            try:
                reply = self._once(path, json.dumps(body).encode(), deadline)
            except ServerError as error:
                pause = error.wait_s or BACKOFF_S * 2**attempt * random.SystemRandom().uniform(1, 1.25)
                again = error.status is None or error.status in RETRIED or error.status >= 500
                if not again or attempt == RETRIES or time.monotonic() + pause >= deadline:
                    self._failures += 1
                    raise
                time.sleep(pause)
            else:
                self._failures = 0
                return reply
        raise AssertionError("the last attempt returns or raises")

    def _once(self, path: str, body: bytes, deadline: float) -> dict[str, Any]:
        left = deadline - time.monotonic()
        if left <= 0:
            raise ServerError(f"{self.host} did not answer in time")
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=min(CONNECT_S, left))
        guard = threading.Timer(left, lambda: None)
        try:
            connection.connect()
            self._check_peer(connection.sock)
            connection.sock.settimeout(left)
            guard = threading.Timer(left, _cut, [connection.sock])  # a trickle never meets the socket's own time-out
            guard.start()
            connection.request("POST", self._parts.path.rstrip("/") + path, body, self._headers())
            response = connection.getresponse()
            reply = response.read(MAX_REPLY + 1)
            if time.monotonic() >= deadline:
                raise TimeoutError
            return self._read(response, reply)
        except (OSError, http.client.HTTPException) as error:
            late = isinstance(error, TimeoutError) or time.monotonic() >= deadline
            reason = "did not answer in time" if late else f"cannot be asked ({type(error).__name__}: {error})"
            raise ServerError(self._hide(f"{self.host} {reason}")) from error
        finally:
            guard.cancel()
            connection.close()

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        return {**headers, "Authorization": f"Bearer {self._key}"} if self._key else headers

    def _check_peer(self, sock: socket.socket) -> None:
        peer = sock.getpeername()[0]
        if self._privacy == "local" and not ipaddress.ip_address(peer).is_loopback:
            raise OSError(f"{peer} is not this machine")

    def _read(self, response: http.client.HTTPResponse, body: bytes) -> dict[str, Any]:
        status, words = response.status, body[:300].decode(errors="replace").strip()
        if 300 <= status < 400:
            target = urlsplit(response.headers.get("Location") or "").hostname or "another address"
            message = f"{self.host} redirects to {target}, which is not followed; name the final address"
            raise ServerError(self._hide(message), status)
        if status != 200:
            wait_s = _retry_after(response.headers.get("Retry-After"))
            raise ServerError(self._hide(f"{self.host} answers {status}: {words or 'nothing'}"), status, wait_s)
        if len(body) > MAX_REPLY:
            raise ServerError(f"{self.host} answers more than {MAX_REPLY >> 20} MB", status)
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise ServerError(self._hide(f"{self.host} answers no JSON object: {words or 'nothing'}"), status)
        return value

    def _hide(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _cut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has closed by itself


def _names_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"  # where that leads is checked once connected


def _without_login(url: str) -> str:
    return url.rpartition("@")[2] if "@" in url else url


def _retry_after(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value) if value.strip().isdecimal() else parsedate_to_datetime(value).timestamp() - time.time()
    except ValueError:
        return None
    return min(max(seconds, 0.0), LONGEST_WAIT_S)
