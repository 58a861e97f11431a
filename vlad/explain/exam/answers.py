"""Answers kept as they come, one JSON line each, so that a killed run goes on where it was.

    out/answers.jsonl   one line a question or picture
    out/settings.json   what the answers depend on; going on with other settings is refused

A question whose line holds an error is asked again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

from vlad import records
from vlad.records import Line

ANSWERS, SETTINGS = "answers.jsonl", "settings.json"

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
        RuntimeError: another process is writing there.
    """
    if len({key for key, _ in items}) < len(items):
        raise ValueError("two items have the same key; expected each picture and question once")
    with nullcontext() if out is None else records.locked(out):
        kept = {} if out is None else _kept(out, settings)
        found = {key: kept[key] for key, _ in items if key in kept}
        for line in _new(((key, item) for key, item in items if key not in found), answer, out):
            found[line["key"]] = line
            if progress is not None:
                progress(len(found), len(items))
        lines = [found[key] for key, _ in items]
        if out is not None:
            records.keep(out / ANSWERS, lines)
    return lines


def _new(items: Iterable[tuple[str, Item]], answer: Callable[[Item], Line], out: Path | None) -> Iterator[Line]:
    """Lines as they are made, each in the file before the next is begun."""
    lines = ({"key": key, **answer(item)} for key, item in items)
    return lines if out is None else records.append(lines, out / ANSWERS)


def _kept(out: Path, settings: Mapping[str, Any]) -> dict[str, Line]:
    """Key -> line without an error of an earlier run; the settings are written where there was none."""
    file = out / ANSWERS
    records.keep_settings(out / SETTINGS, settings, begun=file.exists())
    kept = {line["key"]: line for line in records.read(file) if isinstance(line.get("key"), str) and not line["error"]}
    if file.exists():  # a torn last line must not run into the next one
        records.keep(file, kept.values())
    return kept
