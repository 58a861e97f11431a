"""What may stand in a prompt pack and in a table of names: the forms of these files."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, with_config

from vlad.forms import closest, filled, one_of

PACK_KEYS = ("title", "templates", "normal", "anomalous", "defects", "severity", "scenes", "source")
STATES = ("normal", "anomalous")
SEVERITIES = ("cosmetic", "minor", "major", "critical")


def name_problem(name: object) -> str | None:
    """What keeps `name` from being put into prompts; None where nothing does."""
    expected = "expected words for an object, such as 'metal bolt', without braces or line breaks"
    if isinstance(name, str) and name.strip() and not any(mark in name for mark in "{}\n\r"):
        return None
    return f"{expected}, got {reprlib.repr(name)}"


def _name(name: object) -> object:
    if problem := name_problem(name):
        raise ValueError(problem)
    return name


def _phrase(text: str) -> str:
    """A text that holds `{}` and no other brace."""
    if not text.strip():
        raise ValueError("the text is empty; expected a text with {}, such as '{} with a scratch'")
    rest = text.replace("{}", "")
    if "{" in rest or "}" in rest:
        raise ValueError(
            f"{text!r} has a brace that is not part of {{}}; expected {{}} alone as the place for the name"
        )
    if "{}" not in text:
        raise ValueError(f"{text!r} lacks {{}}; expected {{}} where the name (in templates the phrase) goes")
    return text


def _list(value: object) -> object:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f'expected a list of texts ["...", "..."], got {reprlib.repr(value)}')
    if not value:
        raise ValueError("the list is empty; expected at least one text with {}")
    return value


def _as_read(text: str) -> str:
    """A text as tokenizers see it: case and the amount of white space do not count."""
    return " ".join(text.split()).casefold()


def _distinct(texts: tuple[str, ...]) -> tuple[str, ...]:
    seen: dict[str, int] = {}
    for number, text in enumerate(texts, 1):
        first = seen.setdefault(_as_read(text), number)
        if first != number:
            raise ValueError(f"entry {number}, {text!r}, repeats entry {first}; expected each phrase once")
    return texts


def _caption(text: str) -> str:
    if not text.strip():
        raise ValueError("the caption is empty; expected a sentence that says what a scene shows")
    return text


def _label(label: str) -> str:
    if label in PACK_KEYS:  # in TOML every line after [defects] belongs to it
        raise ValueError(f"'{label}' is a key of the pack; put it above the line [defects]")
    if not label.strip():
        raise ValueError(f"expected a word as label, got {label!r}")
    return label


def _fact(value: object) -> object:
    """Anything that people may want to know of where a pack comes from, and that TOML can hold on one line."""
    texts = list(value) if isinstance(value, list | tuple) else [value]
    if not all(isinstance(text, str) for text in texts) and not (type(value) is int and abs(value) < 2**63):
        raise ValueError(f"expected a text, a whole number or a list of texts, got {reprlib.repr(value)}")
    return tuple(value) if isinstance(value, list) else value


def _named(table: dict[str, str]) -> dict[str, str]:
    if not table:
        raise ValueError('expected at least one line such as metal_nut = "metal nut"')
    return table


Templates = Annotated[tuple[Annotated[str, AfterValidator(_phrase)], ...], BeforeValidator(_list)]
Phrases = Annotated[Templates, AfterValidator(_distinct)]
_Defect = Annotated[Phrases, BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
_Captions = Annotated[
    tuple[Annotated[str, AfterValidator(_caption)], ...], BeforeValidator(_list), AfterValidator(_distinct)
]
_State = Annotated[str, one_of(lambda: STATES, "state ")]
_Severity = Annotated[str, one_of(lambda: SEVERITIES, "level ")]
_Label = Annotated[str, AfterValidator(_label)]


@with_config({"extra": "forbid"})
@dataclass(frozen=True)
class PackFile:
    """The keys of a pack's file; `PromptPack` says what they mean."""

    title: str
    templates: Templates
    normal: Phrases
    anomalous: Phrases
    defects: dict[_Label, _Defect] = field(default_factory=dict, hash=False)
    severity: dict[str, _Severity] = field(default_factory=dict, hash=False)
    scenes: dict[_State, _Captions] = field(default_factory=dict, hash=False)
    source: dict[str, Annotated[Any, AfterValidator(_fact)]] = field(default_factory=dict, hash=False)


@with_config({"extra": "forbid"})
@dataclass(frozen=True)
class NamesFile:
    """Category folder -> words for prompts."""

    names: Annotated[dict[str, Annotated[Any, AfterValidator(_name)]], AfterValidator(_named)]
    title: str = ""


def checked_pack(raw: Mapping[str, Any]) -> PackFile:
    """The fields of a pack, each checked and all of them together.

    Raises:
        ValueError: a key is unknown or missing, or a value is of the wrong kind, empty, repeated or malformed.
    """
    pack = filled(PackFile, raw)
    if shared := set(map(_as_read, pack.normal)) & set(map(_as_read, pack.anomalous)):
        raise ValueError(f"anomalous: '{min(shared)}' is also in normal; a phrase can stand for one state only")
    if pack.scenes and len(pack.scenes) < len(STATES):
        raise ValueError("scenes: expected captions of both states, normal = [...] and anomalous = [...]")
    captions = [set(map(_as_read, pack.scenes.get(state, ()))) for state in STATES]
    if shared := captions[0] & captions[1]:
        raise ValueError(f"scenes.anomalous: '{min(shared)}' is also in normal; a caption can stand for one state only")
    for label in pack.severity:
        if label not in pack.defects:
            raise ValueError(f"severity.{label}: expected a label of [defects]; {closest(label, pack.defects)}")
    return pack
