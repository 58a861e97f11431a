"""A run that goes on: a folder of JSON lines, the settings they were made with, and a lock.

What was recorded before a kill stays: a line is whole or absent, settings that differ are refused, and a second process
is kept out. Scored folders, evaluations and exams of language models all stand on this.
"""

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlad.files import write_whole

log = logging.getLogger(__name__)

Line = dict[str, Any]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a second process out of the folder (where the system has such locks) until the block ends or dies.

    Raises:
        RuntimeError: another process is writing there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW  # a link in its place is not followed, and nothing is emptied
    with os.fdopen(os.open(folder / ".lock", flags, 0o644), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another run is writing {folder}; wait for it, or choose another folder") from None
        except OSError as error:  # a network drive without locks: better unguarded than not at all
            log.warning("%s cannot be locked (%s); do not score into it twice at once", folder, error)
        yield


def keep_settings(file: Path, settings: Mapping[str, Any], *, begun: bool) -> None:
    """Writes what the numbers of a run depend on; where it has `begun`, only if it is what the file says.

    Raises:
        ValueError: the file says otherwise, or cannot be read.
    """
    content = settings_bytes(settings)
    if begun:
        try:
            old = file.read_bytes()
        except OSError:
            old = b""
        compare_settings(old, content, f"{file.parent}", file.name)
    write_whole(file, content, sync=True)


def settings_bytes(settings: Mapping[str, Any]) -> bytes:
    """What the file says."""
    return json.dumps(settings, indent=1, default=str).encode()


def compare_settings(old: bytes, new: bytes, folder: str, name: str) -> None:
    """ValueError where a file of settings in `folder` says otherwise than the `new` one would, or cannot be read."""
    try:
        before = dict(json.loads(old))
    except (TypeError, ValueError):
        problem = f"{folder} holds results but no readable {name} to compare with; choose another folder"
        raise ValueError(problem) from None
    if differing := list(_differences(before, json.loads(new))):  # both as files: tuples have become lists
        said = "; ".join(f"{key} was {_short(first)}, now {_short(now)}" for key, first, now in differing[:4])
        raise ValueError(f"{folder} was written with other settings ({said}); give those, or another folder")


def append(lines: Iterable[Line], path: Path, batch: int = 1) -> Iterator[Line]:
    """Passes lines on once they are in the file: flushed each, forced to disk once a batch."""
    with path.open("ab") as file:
        for count, line in enumerate(lines, start=1):
            file.write(to_bytes(line))
            file.flush()
            if count % batch == 0:
                os.fsync(file.fileno())
            yield line
        os.fsync(file.fileno())


def read(path: Path) -> Iterator[Line]:
    """The whole lines of a file, none where there is no file; torn and foreign ones are left out."""
    if path.exists():
        with path.open("rb") as file:
            yield from filter(None, map(parsed, file))


def keep(path: Path, wanted: Iterable[Line]) -> None:
    """The file again with these lines, which may be read from it meanwhile; it is replaced as a whole."""
    write_whole(path, map(to_bytes, wanted), sync=True)


def to_bytes(line: Line) -> bytes:
    """One line of the file."""
    # ASCII: file names that are no valid Unicode (lone surrogates) survive, and every terminal can show the line
    return json.dumps(line, allow_nan=False).encode("ascii") + b"\n"


def parsed(raw: bytes) -> Line | None:
    """A whole line, or None for a torn or foreign one."""
    try:
        line = json.loads(raw) if raw.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and "error" in line else None


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, before, now) of what differs, keys of tables in tables joined by dots."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield key, old, new


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
