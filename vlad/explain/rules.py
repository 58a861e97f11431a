"""Rules in plain words: what a good object looks like, what must not be there, what does not matter.

A rule file has one rule a line, after `normal:`, `abnormal:`, `critical:` (abnormal, and it settles the severity) or
`ignore:`. `[region: upper left]` limits a rule to a part of the picture, `[count: screw == 4]` says how many there
must be. Empty lines and lines that begin with # are left out.

    normal: all four screws are there [count: screw == 4]
    critical: a crack that reaches the edge
    ignore: fingerprints
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from vlad.explain.case import Rule, RuleKind
from vlad.forms import closest
from vlad.images.places import PLACES

KINDS: tuple[RuleKind, ...] = get_args(RuleKind)
MOST_CHARACTERS = 300  # of one rule

_TAG = re.compile(r"\[\s*(\w+)\s*:\s*([^\]]*?)\s*\]")
_COUNT = re.compile(r"(.+?)\s*==\s*(\d+)")


def read_rules(given: Any) -> tuple[Rule, ...]:
    """Rules from a file, from lines (a text of them, or a list), from dicts with the keys of `Rule`; None is no rule.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a line without its kind, an unknown tag or place; the message names the line.
        TypeError: something else.
    """
    if given is None:
        return ()
    if isinstance(given, str) and ("\n" in given or given.partition(":")[0].strip().casefold() in KINDS):
        return _numbered(given.splitlines(), "rules")
    if isinstance(given, (str, os.PathLike)):
        path = Path(given)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; rules are a text file, or a list of lines")
        return _numbered(path.read_text(encoding="utf-8").splitlines(), str(path))
    if isinstance(given, Iterable) and not isinstance(given, Mapping):
        return _numbered(list(given), "rules")
    raise TypeError(f"rules are of type {type(given).__name__}; give a text file or a list of lines")


def _numbered(lines: Iterable[Any], where: str) -> tuple[Rule, ...]:
    count: Counter[str] = Counter()
    rules = []
    for number, line in enumerate(lines, start=1):
        try:
            rule = (
                line if isinstance(line, Rule) else _from_dict(line) if isinstance(line, Mapping) else _from_line(line)
            )
        except ValueError as error:
            raise ValueError(f"{where}, line {number}: {error}") from None
        if rule is not None:
            count[rule.kind] += 1
            own = rule.id or f"{rule.kind[0]}{count[rule.kind]}"
            rules.append(Rule(own, rule.kind, rule.text, rule.region, rule.count))
    if len({rule.id for rule in rules}) < len(rules):
        raise ValueError(f"{where}: two rules have the same id; leave ids out, and they are numbered")
    return tuple(rules)


def _from_line(line: Any) -> Rule | None:
    if not isinstance(line, str):
        raise ValueError(f"a rule is of type {type(line).__name__}; expected a line of text")
    line = line.strip().removeprefix("\ufeff")
    if not line or line.startswith("#"):
        return None
    kind, colon, text = line.partition(":")
    kind = kind.strip().casefold()
    if not colon or kind not in KINDS:
        raise ValueError(f"a rule begins with {', '.join(f'{one}:' for one in KINDS)}; got {line[:60]!r}")
    region, count = None, None
    for tag, value in _TAG.findall(text):
        if tag == "region":
            region = _place(value)
        elif tag == "count":
            count = _count(value)
        else:
            raise ValueError(f"unknown tag [{tag}: ...]; known: region, count")
    return _rule("", kind, _TAG.sub("", text), region, count)


def _from_dict(given: Mapping[str, Any]) -> Rule:
    known = ("id", "kind", "text", "region", "count")
    if wrong := [key for key in given if key not in known]:
        raise ValueError(f"unknown key {wrong[0]!r}; {closest(str(wrong[0]), known)}")
    region = None if given.get("region") is None else _place(str(given["region"]))
    count = None if given.get("count") is None else _count(str(given["count"]))
    return _rule(str(given.get("id") or ""), str(given.get("kind")), str(given.get("text") or ""), region, count)


def _rule(own: str, kind: str, text: str, region: str | None, count: tuple[str, int] | None) -> Rule:
    known = next((one for one in KINDS if one == kind), None)
    text = " ".join(text.split())
    if known is None:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}")
    if not text or len(text) > MOST_CHARACTERS:
        raise ValueError(f"a rule has {len(text)} characters of text; expected 1 to {MOST_CHARACTERS}")
    return Rule(own, known, text, region, count)


def _place(value: str) -> str:
    value = " ".join(value.casefold().replace("center", "centre").split())
    if value not in PLACES:
        raise ValueError(f"region is {value!r}; expected one of {', '.join(PLACES)}")
    return value


def _count(value: str) -> tuple[str, int]:
    found = _COUNT.fullmatch(value.strip())
    if found is None:
        raise ValueError(f"count is {value!r}; expected such as: screw == 4")
    return found[1], int(found[2])
