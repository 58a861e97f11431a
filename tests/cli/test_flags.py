"""Flags that several verbs share."""

import inspect
from dataclasses import dataclass, fields

import pytest
from typer.main import get_command

from vlad.cli import app
from vlad.cli.shared import DetectorFlags, spelled_out

VERBS = ("score", "fit", "explain", "watch")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_that_makes_a_detector_has_all_its_flags(verb):
    own = {parameter.name for parameter in get_command(app).commands[verb].params}
    assert own >= {one.name for one in fields(DetectorFlags)}


@dataclass(frozen=True)
class Pair:
    first: int = 1
    second: str = "b"


def test_a_group_is_spelled_out_flag_by_flag_and_given_as_one():
    seen = []

    @spelled_out
    def verb(inputs: list[str], pair: Pair, loud: bool = False) -> None:
        seen.append((inputs, pair, loud))

    assert list(inspect.signature(verb).parameters) == ["inputs", "first", "second", "loud"]
    verb(inputs=["x"], first=2, second="c", loud=True)
    assert seen == [(["x"], Pair(2, "c"), True)]
