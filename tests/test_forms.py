"""Forms of files: what a mistake is answered with, wherever in the file it stands."""

from dataclasses import dataclass, field

import pytest
from pydantic import with_config

from vlad import forms


@with_config({"extra": "forbid"})
@dataclass(frozen=True)
class Wheel:
    spokes: forms.Whole
    colour: str = "black"


@with_config({"extra": "forbid"})
@dataclass(frozen=True)
class Bicycle:
    title: str
    wheels: tuple[Wheel, ...] = ()
    bell: Wheel | None = None
    weight: forms.Number = 1.0
    parts: dict[str, forms.Whole] = field(default_factory=dict)


def test_values_of_the_right_kinds_fill_the_form_lists_as_tuples():
    raw = {"title": "a", "wheels": [{"spokes": 3}], "weight": 2, "parts": {"nut": 8}}
    assert forms.filled(Bicycle, raw) == Bicycle("a", (Wheel(3),), None, 2.0, {"nut": 8})


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"titel": "a"}, "titel: unknown key; known: title, wheels, bell, weight, parts; did you mean 'title'?"),
        ({}, "title: this key is missing"),
        ({"title": 3}, "title: expected text, got 3"),
        ({"title": "a", "wheels": [{"spokes": 3}, {"spoke": 3}]}, "wheels, entry 2, spoke: unknown key; known: spokes"),
        ({"title": "a", "wheels": [{"spokes": True}]}, "wheels, entry 1, spokes: expected a whole number, got True"),
        ({"title": "a", "wheels": 1}, "wheels: expected a list, got 1"),
        ({"title": "a", "bell": {"spokes": 1, "color": ""}}, "bell.color: unknown key; known: spokes, colour; did you"),
        ({"title": "a", "weight": "much"}, "weight: expected a number, got 'much'"),
        ({"title": "a", "parts": 1}, "parts: expected a table [parts] of lines 'word = ...', got 1"),
        ({"title": "a", "parts": {"nut": 1.5}}, "parts.nut: expected a whole number, got 1.5"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_place_and_what_was_expected(raw, said):
    with pytest.raises(ValueError) as caught:
        forms.filled(Bicycle, raw)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_the_header_of_an_adapter_is_held_against_its_form(tmp_path):
    import torch

    from vlad.learning import adapter_file

    facts = {"method": "x", "encoder": "e", "encoder_digest": "d", "options": {}, "trained_on": ["a"], "recipe": {}}
    adapter_file.write(tmp_path / "whole.safetensors", facts, {"t": torch.zeros(1)})
    assert adapter_file.read(tmp_path / "whole.safetensors").facts["trained_on"] == ["a"]
    adapter_file.write(tmp_path / "odd.safetensors", facts | {"options": 3}, {"t": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"odd\.safetensors is no adapter that can be used: its header, options: "):
        adapter_file.read(tmp_path / "odd.safetensors")
