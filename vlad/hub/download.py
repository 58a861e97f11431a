"""One file from an http address, in pieces: it goes on where it stopped and waits where it is told to."""

import contextlib
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

BLOCK = 2**20
TRIES = 5  # in a row without a new byte
PAUSE = 1.0  # seconds before the second try; longer each time
LONGEST_WAIT = 60.0  # seconds that a server may ask for

Progress = Callable[[str, int, int], None]


def size_of(address: str, patience: float) -> int | None:
    """Bytes of the file at the address, None where the server does not say.

    Raises:
        urllib.error.HTTPError, OSError: the server refuses, or does not answer within `patience` seconds.
    """
    with _opened(address, patience, "HEAD") as answer:
        stated = answer.headers.get("Content-Length")
    return int(stated) if stated else None


def download(address: str, part: Path, patience: float, progress: Progress | None = None) -> None:
    """Fetches the file into `part`, which may hold the beginning of it from a run before.

    Raises:
        urllib.error.HTTPError, OSError: as `size_of`, after `TRIES` tries in a row that brought nothing new.
    """
    tries = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _rest(address, part, before, patience, progress)
        except urllib.error.HTTPError as error:
            if error.code == 416 and before:  # all of it is here, or the file has changed: its digest or size will tell
                return None
            if error.code not in (429, 502, 503, 504) or tries >= TRIES:
                raise
            wait = _asked_wait(error)
        except (OSError, HTTPException) as error:
            if getattr(error, "errno", None) is not None and not isinstance(error, ConnectionError | TimeoutError):
                raise  # the disk's, not the line's
            tries = 0 if part.exists() and part.stat().st_size > before else tries
            if tries >= TRIES:
                raise ConnectionError(str(error) or type(error).__name__) from error
            wait = PAUSE * (tries + 1)
        tries += 1
        time.sleep(wait)


def _opened(address: str, patience: float, verb: str, headers: Mapping[str, str] = {}) -> Any:
    """The answer; proxies are those of the environment as it is now."""
    asked = urllib.request.Request(address, method=verb, headers=dict(headers))
    return urllib.request.build_opener().open(asked, timeout=patience)


def _rest(address: str, part: Path, before: int, patience: float, progress: Progress | None) -> None:
    headers = {"Range": f"bytes={before}-"} if before else {}
    with _opened(address, patience, "GET", headers) as answer:
        goes_on = answer.status == 206
        done = before if goes_on else 0
        total = done + int(answer.headers.get("Content-Length") or 0)
        with part.open("ab" if goes_on else "wb") as file:
            while block := answer.read(BLOCK):
                file.write(block)
                done += len(block)
                if progress:
                    progress(part.stem, done, max(total, done))
    if done < total:
        raise ConnectionError(f"it ended after {done} of {total} bytes")


def _asked_wait(error: urllib.error.HTTPError) -> float:
    """Seconds that the answer asks to wait, bounded; a server that names none gets a short pause."""
    with contextlib.suppress(TypeError, ValueError):
        return min(max(float(error.headers.get("Retry-After") or PAUSE), 0.0), LONGEST_WAIT)
    return PAUSE
