"""Files that people edit, read and checked in one way: prompt packs, tables of names, recipes, suites, file headers.

What a file may hold is a dataclass, its form: the annotations say which values are allowed, pydantic holds a file's
tables against them, and what it finds becomes one sentence with the key, what was expected and, for an unknown word,
the closest known one.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import reprlib
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from pydantic import AfterValidator, Strict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from vlad.files import resource

Form = TypeVar("Form")

Whole = Annotated[int, Strict()]  # neither true nor 3.0
Number = Annotated[float, Strict()]  # 3 too

# Difflib would answer "normal" to "abnormal".
_MEANT = {"abnormal": "anomalous", "defective": "anomalous", "good": "normal"}
_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "tuple_type": "a list",
    "dict_type": "a table",
    "dataclass_type": "a table",
    "greater_than_equal": "{ge} or more",
    "greater_than": "a number above {gt:g}",
}
_ADAPTERS: dict[type, TypeAdapter[Any]] = {}
_UNKNOWN_KEY, _MISSING = "unexpected_keyword_argument", "missing"


# Values


def one_of(known: Callable[[], Iterable[str]], what: str = "") -> AfterValidator:
    """For an annotation: the value is one of these words; `known` is asked when a file is checked."""

    def check(value: str) -> str:
        if value not in (words := list(known())):
            raise ValueError(f"unknown {what}{reprlib.repr(value)}; {closest(value, words)}")
        return value

    return AfterValidator(check)


def closest(word: object, known: Iterable[str]) -> str:
    """The end of an error about an unknown word: the known ones, and the closest where one is near."""
    known = list(known)
    near = [_MEANT.get(str(word), "")] if _MEANT.get(str(word)) in known else []
    near = near or difflib.get_close_matches(str(word), known, 1, 0.4)
    return f"known: {', '.join(known) or 'none'}" + (f"; did you mean '{near[0]}'?" if near else "")


def filled(form: type[Form], raw: Mapping[str, Any]) -> Form:
    """The form with the values of `raw`: lists become tuples, tables in it the forms that stand there.

    Raises:
        ValueError: one sentence that begins with the key; the door that read the file puts its path in front.
    """
    try:
        return _adapter(form)(dict(raw))
    except ValidationError as error:
        found = error.errors(include_url=False)
    # A misspelt key explains why another one is missing.
    order = {_UNKNOWN_KEY: 0, _MISSING: 2}
    raise ValueError(_sentence(form, min(found, key=lambda one: order.get(one["type"], 1)))) from None


def _adapter(form: type[Form]) -> Callable[[dict[str, Any]], Form]:
    """What checks tables against a form; made once, which takes longer than any check."""
    if form not in _ADAPTERS:
        _ADAPTERS[form] = TypeAdapter(form)
    return _ADAPTERS[form].validate_python


def _sentence(form: type, error: ErrorDetails) -> str:
    kind, facts, key = error["type"], error.get("ctx", {}), _key(error["loc"])
    got = reprlib.repr(error["input"])
    if kind == _UNKNOWN_KEY:
        what = f"unknown key; {closest(error['loc'][-1], _keys(form, error['loc'][:-1]))}"
    elif kind == _MISSING:
        what = "this key is missing"
    elif kind == "value_error":
        what = str(facts["error"])
    elif kind == "dict_type" and len(error["loc"]) == 1:
        what = f"expected a table [{key}] of lines 'word = ...', got {got}"
    elif kind in _EXPECTED:
        what = f"expected {_EXPECTED[kind].format(**facts)}, got {got}"
    else:
        what = f"{error['msg']}, got {got}"
    return f"{key}: {what}" if key else what


def _key(steps: Sequence[str | int]) -> str:
    """How a place is called: "optimizer.rate", "detectors, entry 1, method"."""
    words = ""
    for step in steps:
        if isinstance(step, int):
            words += f", entry {step + 1}"
        elif step not in ("", "[key]"):  # an empty label; what pydantic calls a label itself
            words += f"{'' if not words else ', ' if ', entry' in words else '.'}{step}"
    return words


def _keys(form: Any, steps: Sequence[str | int]) -> list[str]:
    """The keys that are allowed at a place of the form."""
    for step in steps:
        form = get_type_hints(form)[step] if isinstance(step, str) else form
        while not is_dataclass(form):
            form = get_args(form)[0]
    return [one.name for one in fields(form)]


# Files


def shipped(folder: str) -> list[str]:
    """The names of VLAD's own files in a folder of its data, sorted."""
    return sorted(path.stem for path in resource(folder).glob("*.toml"))


def file_of(given: str | os.PathLike[str], kind: str, folder: str) -> Path:
    """The file of a shipped name, or the given file.

    Args:
        kind: what it is, for errors.
        folder: where the shipped ones lie.

    Raises:
        FileNotFoundError: no such file.
        ValueError: nothing that ships has this name.
    """
    if isinstance(given, str) and given in (known := shipped(folder)):
        return resource(f"{folder}/{given}.toml")
    path, known = Path(given).expanduser(), shipped(folder)
    if path.is_file():
        return path
    if path.suffix == ".toml" or path.name != given:
        near = closest(path.stem, known)
        raise FileNotFoundError(f"{path}: no such file; give a .toml file or a shipped {kind}; {near}")
    raise ValueError(f"unknown {kind} {given!r}; {closest(given, known)} (a file of your own ends in .toml)")


def read(form: type[Form], path: Path) -> Form:
    """The form that a TOML file fills; ValueError names the file and the key."""
    raw = read_toml(path)
    try:
        return filled(form, raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ValueError: not UTF-8 or not TOML, with the file and the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors put a byte order mark in front
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text; save the file as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from None


def to_toml(tables: Mapping[str, Any]) -> str:
    """TOML text of a dict of texts, whole numbers and lists of texts, and of dicts of those, which come last."""
    lines: list[str] = []
    for key, value in tables.items():
        if not isinstance(value, Mapping):
            lines.append(f"{_toml_key(key)} = {_toml_value(value)}")
        elif value:
            lines += ["", f"[{_toml_key(key)}]", *(f"{_toml_key(k)} = {_toml_value(v)}" for k, v in value.items())]
    return "\n".join(lines) + "\n"


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: str | int | Sequence[str]) -> str:
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):  # JSON text is a TOML basic string, but for the one control character JSON leaves raw
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return "[" + "".join(f"\n  {_toml_value(text)}," for text in value) + "\n]"
