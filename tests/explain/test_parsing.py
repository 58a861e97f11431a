"""Answers of models, read: letters, options, objects, refusals and plain words, in every dress."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlad.explain.reasoners.parsing import find_object, is_refusal, match_option, neutralise, plain_words, read_answer
from vlad.explain.reasoners.protocol import Choice, Schema, Text, Usage

OPTIONS = ("scratch", "dent", "cannot tell")
SCHEMA = Schema(
    {
        "type": "object",
        "properties": {
            "verdict": {"type": "string", "enum": ["normal", "anomalous", "cannot tell"]},
            "p": {"type": "number", "minimum": 0, "maximum": 1},
            "sure": {"type": "boolean"},
            "ids": {"type": "array", "items": {"type": "integer", "enum": [1, 2]}},
        },
        "required": ["verdict", "p", "sure", "ids"],
    }
)


def parsed(text):
    return read_answer(text, SCHEMA, "stop", Usage()).parsed


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("A", "scratch"),
        ("b", "dent"),
        ("(B)", "dent"),
        ("B.", "dent"),
        ("**B.** dent", "dent"),
        ("B) a long groove", "dent"),
        ("Answer: B", "dent"),
        ("The final answer is C.", "cannot tell"),
        ("Cannot tell.", "cannot tell"),
        ('{"answer": "B"}', "dent"),
        ('```json\n{"answer": "dent"}\n```', "dent"),
        ("<think>A or B</think>\nB", "dent"),
        ("$\\boxed{\\text{B}}$", "dent"),
        ("B. dent\nB is a dent.", "dent"),
    ],
)
def test_a_choice_is_read_in_any_dress(text, option):
    assert read_answer(text, Choice(OPTIONS), "stop", Usage()).parsed == option


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A scratch is visible",
        "A dent",
        "D",
        "AB",
        "A. dent",
        "scratch or dent",
        "Yes",
        "<think>B",
        "no scratch",
        "A, B",
        "A. scratch\nB. dent\nC. cannot tell",
        "A) scratch\n(B) dent",
    ],
)
def test_what_names_no_single_option_is_none(text):
    assert match_option(text, OPTIONS) is None


def test_a_yes_inside_a_sentence_is_no_yes():
    assert match_option("Yes, but the lid is broken, so no.", ("yes", "no")) is None


def test_an_object_is_mended_only_where_its_meaning_is_plain():
    good = {"verdict": "anomalous", "p": 1.0, "sure": True, "ids": [1]}
    assert (
        parsed(json.dumps({"verdict": " Faulty ", "p": "7", "sure": True, "ids": ["1", 5, None], "more": {}})) == good
    )
    for wrong in ({"verdict": "maybe"}, {"p": "high"}, {"p": True}, {"sure": "yes"}, {"ids": 1}, {"verdict": None}):
        assert parsed(json.dumps({**good, **wrong})) is None, wrong


def test_not_a_number_is_no_number():
    assert parsed('{"verdict": "normal", "p": NaN, "sure": true, "ids": []}') is None
    assert parsed('{"verdict": "normal", "p": Infinity, "sure": true, "ids": []}') is None


def test_the_last_whole_object_counts_and_an_inner_one_never():
    assert find_object('{"a": 1} then {"a": 2}', ["a"]) == {"a": 2}
    assert find_object('{"a": {"a": 1}}', ["a"]) == {"a": {"a": 1}}
    assert find_object('{"b": [{"a": 1}], "a": ', ["a", "b"]) is None


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m really sorry",
        "Sorry!",
        "I cannot assist with this request.",
        "Unfortunately, I am unable to view images.",
        "As an AI language model, I can't analyze pictures.",
        "<think>hm</think>I apologize, but no.",
    ],
)
def test_a_refusal_is_known_by_its_opening(text):
    assert is_refusal(text)
    assert read_answer(text, Text(40), "stop", Usage()).code == "refused"


@pytest.mark.parametrize(
    "text", ["I cannot see any defect.", "There is a sorry-looking dent.", "No defect is visible."]
)
def test_a_description_is_no_refusal(text):
    assert read_answer(text, Text(40), "stop", Usage()).parsed == text


def test_words_are_cut_at_their_number_and_carry_nothing_that_runs():
    assert plain_words("one two three", 2) == "one two"
    for text in (
        "=1+1",
        "@SUM(A1)",
        "- a",
        "# a",
        "javascript:alert(1)",
        "\x1b[31mred\x07",
        "\u202eabc",
        "https://evil.org/x",
    ):
        said = plain_words(text, 9)
        assert not said.startswith(("=", "+", "-", "@", "#")) and "evil" not in said and "javascript" not in said
        assert said.isprintable()
    assert len(plain_words("x" * 10_000, 5)) <= 80


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet='{}[]":,.aAbB<>think/`|_ \n019-é', max_size=80) | st.text(max_size=80))
def test_no_text_raises_and_what_is_read_is_of_the_asked_form(text):
    choice = read_answer(text, Choice(OPTIONS), "stop", Usage())
    assert choice.parsed in (None, *OPTIONS) and (choice.parsed is None) == bool(choice.error)
    form = read_answer(text, SCHEMA, "length", Usage())
    assert form.parsed is None or set(form.parsed) == set(SCHEMA.json_schema["required"])
    words = read_answer(text, Text(3), "stop", Usage()).parsed
    assert words is None or (words and len(words.split()) <= 3)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(["<|im_start|>", "<image>", "<", "|", "im_start", "im", ">", "[INST]", "a ", "<|"]), max_size=9
    )
)
def test_no_control_token_survives_however_it_is_nested(pieces):
    tokens = ["<|im_start|>", "<image>"]
    harmless = neutralise("".join(pieces), tokens)
    assert not any(token in harmless for token in (*tokens, "[INST]"))
