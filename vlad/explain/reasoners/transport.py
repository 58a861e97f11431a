"""JSON over HTTP to one server, with the standard library alone: who may be reached, how long, how often.

Redirects are not followed and proxies are ignored, so that a picture goes to the named host or nowhere.
"""

import http.client
import json
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlsplit

from vlad.explain.reasoners.address import is_loopback, names_this_machine, read_address
from vlad.explain.reasoners.bodies import json_object, unpacked
from vlad.explain.reasoners.parsing import printable

CONNECT_S = 5.0
BACKOFF_S = 0.5  # before the first retry; doubles
RETRIES = 2
LOADING_S = 2.0  # between two tries while a server says that it loads its model
LONGEST_WAIT_S = 30.0  # of what a server may ask for with Retry-After, within one question
RETRIED = {408, 409, 425, 429}  # and every 5xx
MAX_REPLY = 8 << 20  # bytes
MAX_FAILURES = 3  # in a row; then the server is left alone for a while
PAUSE_S = 30.0
LONGEST_PAUSE_S = 600.0  # of what a server may ask for between two questions
SHOWN, READ = 300, 4000  # characters of a refusal that are shown, and that are looked at


class ServerError(RuntimeError):
    """A question that no answer came to; the message says which host did what.

    Attributes:
        status: of the reply; None without one.
        reply: what the server said, to be looked at and not shown.
        wait_s: seconds for which it asks to be left alone.
    """

    def __init__(self, message: str, status: int | None = None, reply: str = "", wait_s: float | None = None) -> None:
        super().__init__(message)
        self.status, self.reply, self.wait_s = status, reply, wait_s


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
        self._address = read_address(base_url)
        if privacy not in ("local", "remote"):
            raise ValueError(f"privacy is {privacy!r}; expected local or remote")
        if privacy == "local" and not names_this_machine(self._address.host):
            raise ValueError(
                f"the server {self._address.host} is not this machine, and pictures would be sent to it; if they may "
                'be, say --allow-remote, or reasoner=make_reasoner("openai:MODEL@URL", privacy="remote") of '
                "vlad.explain.reasoners"
            )
        key = os.environ.get(key_env, "").strip() if key_env else ""
        if key_env and not key:
            raise ValueError(
                f"the environment variable {key_env} is empty; it should hold the key of {self._address.host}"
            )
        if not (key.isascii() and key.isprintable()):
            raise ValueError(f"the environment variable {key_env} holds more than printable ASCII; check the key")
        self.host = self._address.name
        self._privacy, self._key, self._key_env = privacy, key, key_env
        self._failures = 0  # in a row
        self._free_at = 0.0  # of the monotonic clock: before it the server is left alone

    def post(
        self,
        path: str,
        body: dict[str, Any],
        timeout_s: float,
        final: Callable[[ServerError], bool] = lambda error: False,
    ) -> dict[str, Any]:
        """The JSON object that comes back; tried again where that may help, all within `timeout_s`.

        Args:
            final: whether an error says what is wrong with the request, so that asking again changes nothing; it is
                then no failure of the server.

        Raises ServerError: no answer, an answer that is no JSON object, or a server that is left alone: after three
        failures in a row for `PAUSE_S`, else for as long as it asked.
        """
        begun = time.monotonic()
        if begun < self._free_at:
            raise ServerError(f"{self.host} is left alone for {self._free_at - begun:.0f} s more after it failed")
        deadline, sent, attempt = begun + timeout_s, json.dumps(body).encode(), 0
        while True:
            try:
                reply = self._once(path, sent, deadline, timeout_s)
            except ServerError as error:
                loads = _loads(error)
                pause = LOADING_S if loads else _pause(error, attempt)
                again = error.status is None or error.status in RETRIED or error.status >= 500
                patient = loads or attempt < RETRIES
                if final(error):
                    raise
                if not (again and patient) or time.monotonic() + pause >= deadline:
                    self._failed(error)
                    raise
                time.sleep(pause)
                attempt += 1
            else:
                self._failures, self._free_at = 0, 0.0
                return reply

    def _failed(self, error: ServerError) -> None:
        self._failures += 1
        wait_s = PAUSE_S if self._failures >= MAX_FAILURES else 0.0
        self._free_at = time.monotonic() + max(wait_s, min(error.wait_s or 0.0, LONGEST_PAUSE_S))

    def _once(self, path: str, body: bytes, deadline: float, timeout_s: float) -> dict[str, Any]:
        late = (
            f"{self.host} did not answer in time, within timeout_s={timeout_s:g}; a model that loads first, or thinks, "
        )
        late += "takes longer: give it more (--server timeout_s=300)"
        left = deadline - time.monotonic()
        if left <= 0:
            raise ServerError(late)
        kind = http.client.HTTPSConnection if self._address.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._address.host, self._address.port, timeout=min(CONNECT_S, left))
        guard = threading.Timer(left, lambda: None)
        try:
            connection.connect()
            self._check_peer(connection.sock)
            connection.sock.settimeout(left)
            guard = threading.Timer(left, _cut, [connection.sock])  # a trickle never meets the socket's own time-out
            guard.start()
            connection.request("POST", self._address.path + path, body, self._headers())
            response = connection.getresponse()
            reply = response.read(MAX_REPLY + 1)
            if time.monotonic() >= deadline:
                raise TimeoutError
            return self._read(response, reply)
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            if isinstance(error, TimeoutError) or time.monotonic() >= deadline:
                raise ServerError(late) from error
            hint = "; does it speak http:// and not https://?" if isinstance(error, ssl.SSLError) else ""
            reason = printable(f"{type(error).__name__}: {error}")
            raise ServerError(self._hide(f"{self.host} cannot be asked ({reason}){hint}")) from error
        finally:
            guard.cancel()
            connection.close()

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        return {**headers, "Authorization": f"Bearer {self._key}"} if self._key else headers

    def _check_peer(self, sock: socket.socket) -> None:
        peer = sock.getpeername()[0]
        if self._privacy == "local" and not is_loopback(peer):
            raise OSError(f"{peer} is not this machine")

    def _read(self, response: http.client.HTTPResponse, body: bytes) -> dict[str, Any]:
        status = response.status
        if 300 <= status < 400:
            target = _host(response.headers.get("Location") or "") or "another address"
            message = f"{self.host} redirects to {target}, which is not followed; name the final address"
            raise ServerError(self._hide(message), status)
        try:
            body = unpacked(body, response.headers.get("Content-Encoding") or "", MAX_REPLY + 1)
        except ValueError as error:
            raise ServerError(self._hide(f"{self.host} answers {status}, but {error}"), status) from None
        reply = body[:READ].decode(errors="replace").strip()
        words = printable(reply[:SHOWN]) or "nothing"
        if status != 200:
            wait_s = _retry_after(response.headers.get("Retry-After"))
            message = f"{self.host} answers {status}: {words}{self._advice(status)}"
            raise ServerError(self._hide(message), status, reply, wait_s)
        if len(body) > MAX_REPLY:
            raise ServerError(f"{self.host} answers more than {MAX_REPLY >> 20} MB", status)
        value = json_object(body)
        if value is None:
            message = f"{self.host} answers no JSON object: {words}{self._address.missing_version}"
            raise ServerError(self._hide(message), status)
        if value.get("error") and not value.get("choices"):  # some servers say only here that it went wrong
            status = _stated(value["error"], status)
            raise ServerError(self._hide(f"{self.host} answers {status}: {words}{self._advice(status)}"), status, reply)
        return value

    def _advice(self, status: int) -> str:
        """What may mend an answer of this status."""
        if status in (401, 403):
            known = (
                f"check the key in {self._key_env}" if self._key_env else "it may want a key: key_env (--key-env NAME)"
            )
            return f"; {known}"
        return self._address.missing_version if status in (404, 405) else ""

    def _hide(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _cut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has closed by itself


def _stated(error: Any, status: int) -> int:
    """The status that an error in a body states, else the one of its reply."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else status


def _loads(error: ServerError) -> bool:
    """Whether a server says that its model is not there yet."""
    return error.status == 503 and "loading" in error.reply.casefold()


def _pause(error: ServerError, attempt: int) -> float:
    if error.wait_s:
        return error.wait_s if error.wait_s <= LONGEST_WAIT_S else float("inf")
    return BACKOFF_S * 2**attempt * random.SystemRandom().uniform(1, 1.25)


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _retry_after(value: str | None) -> float | None:
    """Seconds from now, at least 0; None where it is neither a number nor a date."""
    if value is None:
        return None
    try:
        seconds = float(value) if value.strip().isdecimal() else parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return max(seconds, 0.0)
