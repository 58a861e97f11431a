"""Reading, checking and writing the TOML files that people edit: prompt packs, names of categories, recipes, suites.

The checks take and return plain dicts. Their errors begin with the key and say what was expected and, for an unknown
word, the closest known one; the door that read the file puts its path in front.
"""

import difflib
import json
import re
import reprlib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

PACK_KEYS = ("title", "templates", "normal", "anomalous", "defects", "severity", "source")
SEVERITIES = ("cosmetic", "minor", "major", "critical")
_NAME_KEYS = ("title", "names")
# Difflib would answer "normal" to "abnormal".
_MEANT = {"abnormal": "anomalous", "defective": "anomalous", "good": "normal"}


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


def closest(word: object, known: Iterable[str]) -> str:
    """The end of an error about an unknown word: the known ones, and the closest where one is near."""
    known = list(known)
    near = [_MEANT.get(str(word), "")] if _MEANT.get(str(word)) in known else []
    near = near or difflib.get_close_matches(str(word), known, 1, 0.4)
    return f"known: {', '.join(known) or 'none'}" + (f"; did you mean '{near[0]}'?" if near else "")


def checked_pack(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a prompt pack: lists as tuples, a single phrase of a defect as a tuple of one.

    Raises:
        ValueError: a key is unknown or missing, or a value is of the wrong kind, empty, repeated or malformed.
    """
    _no_other_keys(raw, PACK_KEYS)
    title = raw.get("title", "")
    if not isinstance(title, str):
        raise ValueError(f"title: expected text, got {reprlib.repr(title)}")
    for key in ("normal", "anomalous"):
        if key not in raw:
            if isinstance(raw.get("defects"), Mapping) and key in raw["defects"]:
                raise ValueError(f"{key}: this key belongs to the pack; put it above the line [defects]")
            raise ValueError(f"{key}: this key is missing; give a list of phrases with {{}} for the name")
    templates = _texts("templates", raw.get("templates", ("{}",)))
    states = {key: _distinct(key, _texts(key, raw[key])) for key in ("normal", "anomalous")}
    if shared := set(map(_as_read, states["normal"])) & set(map(_as_read, states["anomalous"])):
        raise ValueError(f"anomalous: '{min(shared)}' is also in normal; a phrase can stand for one state only")
    defects = _defects(raw.get("defects", {}))
    severity, source = _severity(raw.get("severity", {}), defects), _source(raw.get("source", {}))
    return {
        "title": title,
        "templates": templates,
        **states,
        "defects": defects,
        "severity": severity,
        "source": source,
    }


def checked_names(raw: Mapping[str, Any]) -> dict[str, str]:
    """Category folder -> words, from the table `names`.

    Raises:
        ValueError: an unknown key, no table, or words that are not a text that fits into prompts.
    """
    _no_other_keys(raw, _NAME_KEYS)
    table = _table("names", raw.get("names", {}))
    if not table:
        raise ValueError('names: expected at least one line such as metal_nut = "metal nut"')
    for category, words in table.items():
        if problem := name_problem(words):
            raise ValueError(f"names.{category}: {problem}")
    return table


def name_problem(name: object) -> str | None:
    """What keeps `name` from being put into prompts; None where nothing does."""
    expected = "expected words for an object, such as 'metal bolt', without braces or line breaks"
    if isinstance(name, str) and name.strip() and not any(mark in name for mark in "{}\n\r"):
        return None
    return f"{expected}, got {reprlib.repr(name)}"


def _no_other_keys(raw: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in raw:
        if key not in known:
            raise ValueError(f"{key}: unknown key; {closest(key, known)}")


def _table(key: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{key}: expected a table [{key}] of lines 'label = ...', got {reprlib.repr(value)}")
    for label in value:
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"{key}: expected a word as label, got {reprlib.repr(label)}")
    return dict(value)


def _texts(key: str, value: object) -> tuple[str, ...]:
    """A list of texts that each hold `{}` and no other brace."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f'{key}: expected a list of texts ["...", "..."], got {reprlib.repr(value)}')
    if not value:
        raise ValueError(f"{key}: the list is empty; expected at least one text with {{}}")
    for number, text in enumerate(value, 1):
        if problem := _text_problem(text):
            raise ValueError(f"{key}, entry {number}: {problem}")
    return tuple(value)


def _text_problem(text: object) -> str | None:
    if not isinstance(text, str):
        return f"expected text, got {reprlib.repr(text)}"
    if not text.strip():
        return "the text is empty; expected a text with {}, such as '{} with a scratch'"
    rest = text.replace("{}", "")
    if "{" in rest or "}" in rest:
        return f"{text!r} has a brace that is not part of {{}}; expected {{}} alone as the place for the name"
    return None if "{}" in text else f"{text!r} lacks {{}}; expected {{}} where the name (in templates the phrase) goes"


def _as_read(text: str) -> str:
    """A text as tokenizers see it: case and the amount of white space do not count."""
    return " ".join(text.split()).casefold()


def _distinct(key: str, texts: tuple[str, ...]) -> tuple[str, ...]:
    seen: dict[str, int] = {}
    for number, text in enumerate(texts, 1):
        first = seen.setdefault(_as_read(text), number)
        if first != number:
            raise ValueError(f"{key}, entry {number}: {text!r} repeats entry {first}; expected each phrase once")
    return texts


def _defects(value: object) -> dict[str, tuple[str, ...]]:
    defects = {}
    for label, phrases in _table("defects", value).items():
        key = f"defects.{label}"
        if label in PACK_KEYS:  # in TOML every line after [defects] belongs to it
            raise ValueError(f"{key}: '{label}' is a key of the pack; put it above the line [defects]")
        defects[label] = _distinct(key, _texts(key, [phrases] if isinstance(phrases, str) else phrases))
    return defects


def _severity(value: object, defects: Mapping[str, Any]) -> dict[str, str]:
    severity = _table("severity", value)
    for label, level in severity.items():
        if label not in defects:
            raise ValueError(f"severity.{label}: expected a label of [defects]; {closest(label, defects)}")
        if level not in SEVERITIES:
            found = reprlib.repr(level)
            raise ValueError(f"severity.{label}: unknown level {found}; {closest(level, SEVERITIES)}")
    return severity


def _source(value: object) -> dict[str, Any]:
    """Where a pack comes from; any keys, since nothing but people read them."""
    source = _table("source", value)
    for key, entry in source.items():
        texts = list(entry) if isinstance(entry, list | tuple) else [entry]
        plain = all(isinstance(text, str) for text in texts) or (type(entry) is int and abs(entry) < 2**63)
        if not plain:
            raise ValueError(
                f"source.{key}: expected a text, a whole number or a list of texts, got {reprlib.repr(entry)}"
            )
        source[key] = tuple(texts) if isinstance(entry, list | tuple) else entry
    return source
