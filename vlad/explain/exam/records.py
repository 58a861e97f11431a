"""Answers kept as they come, one JSON line each, so that a killed run goes on where it was.

    out/answers.jsonl   one line a question or picture
    out/settings.json   what the answers depend on; going on with other settings is refused

A question whose line holds an error is asked again.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from vlad.files import write_whole

ANSWERS, SETTINGS = "answers.jsonl", "settings.json"

Line = dict[str, Any]
Item = TypeVar("Item")
Progress = Callable[[int, int], None]


def answered(
    items: Sequence[tuple[str, Item]],
    answer: Callable[[Item], Line],
    settings: Mapping[str, Any],
    out: Path | None = None,
    progress: Progress | None = None,
) -> list[Line]:
    """The line of every item, in order: those in `out` as they are, the others asked for and appended there.

    Args:
        items: (key, item); the key tells the lines apart and goes into them.
        answer: an item's line; its "error" is None where all went well.
        settings: recorded beside the lines and compared when a run goes on.
        out: folder to write; None keeps nothing.
        progress: called with (lines there are, items in all).

    Raises:
        ValueError: `out` holds answers made with other settings, or two items have one key.
    """
    if len({key for key, _ in items}) < len(items):
        raise ValueError("two items have the same key; expected each picture and question once")
    kept = {} if out is None else _kept(out, settings)
    found = {key: kept[key] for key, _ in items if key in kept}
    for line in _new(((key, item) for key, item in items if key not in found), answer, out):
        found[line["key"]] = line
        if progress is not None:
            progress(len(found), len(items))
    lines = [found[key] for key, _ in items]
    if out is not None:
        write_whole(out / ANSWERS, b"".join(map(_bytes, lines)))
    return lines


def _new(items: Iterable[tuple[str, Item]], answer: Callable[[Item], Line], out: Path | None) -> Iterator[Line]:
    """Lines as they are made, each in the file before the next is begun."""
    if out is None:
        yield from ({"key": key, **answer(item)} for key, item in items)
        return
    with (out / ANSWERS).open("ab") as file:
        for key, item in items:
            line = {"key": key, **answer(item)}
            file.write(_bytes(line))
            file.flush()
            yield line


def _kept(out: Path, settings: Mapping[str, Any]) -> dict[str, Line]:
    """Key -> line without an error of an earlier run; the settings are written where there was none."""
    now = json.loads(json.dumps(settings))
    if (out / ANSWERS).is_file():
        try:
            before = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ValueError(f"{out} holds answers but no readable {SETTINGS}; choose another folder") from None
        if differing := [key for key in {**before, **now} if before.get(key) != now.get(key)]:
            said = "; ".join(f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in differing)
            raise ValueError(f"{out} was written with other settings ({said}); give those, or another folder")
    write_whole(out / SETTINGS, json.dumps(now, indent=1).encode())
    lines = (_parsed(raw) for raw in (out / ANSWERS).read_bytes().splitlines()) if (out / ANSWERS).is_file() else ()
    kept = {line["key"]: line for line in lines if line is not None and line.get("error") is None}
    if (out / ANSWERS).is_file():  # a torn last line must not run into the next one
        write_whole(out / ANSWERS, b"".join(map(_bytes, kept.values())))
    return kept


def _bytes(line: Line) -> bytes:
    return json.dumps(line, allow_nan=False).encode("ascii") + b"\n"


def _parsed(raw: bytes) -> Line | None:
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("key"), str) else None
