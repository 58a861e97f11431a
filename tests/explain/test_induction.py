"""Rules proposed from good pictures: drawn one by one, put to a vote, written as a file that people edit."""

import doctest
import json

import numpy as np
import pytest
from chat_stub import pictures as sent
from chat_stub import reply, said, seen_quarter, serving, words
from PIL import Image
from typer.testing import CliRunner

from vlad.cli import app
from vlad.explain.interview import induction
from vlad.explain.interview.induction import propose_rules, recurring, rouge_l
from vlad.explain.reasoners.protocol import Answer, Caps, Text


class Looker:
    """Describes the picture by its mean grey and draws the given rules from each description."""

    name, caps = "scripted", Caps()

    def __init__(self, rules):
        self.rules, self.seen = rules, []

    def ask(self, question):
        if isinstance(question.answer, Text):
            self.seen.append(int(question.pictures[0].mean()))
            return Answer("", f"grey {self.seen[-1]}")
        assert not question.pictures
        grey = int(question.parts[0].partition("looks like this: grey ")[2].split()[0])
        found = self.rules(grey)
        return Answer("", found, error=None if found else "no object", code=None if found else "parse_failed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("good")
    for index in range(12):
        Image.fromarray(np.full((40, 40, 3), index, np.uint8)).save(root / f"{index}.png")
    return root


@pytest.fixture
def files(folder):
    return sorted(folder.iterdir(), key=lambda file: int(file.stem))


def test_the_example_in_the_docstring_holds():
    assert doctest.testmod(induction).failed == 0


def test_a_normal_rule_must_come_back_and_every_abnormal_one_stays(files):
    def rules(grey):
        wording = "the thread is clean" if grey % 2 else "the thread is very clean"
        normal = [wording] if grey < 3 else ["the head is round"] if grey < 5 else []
        return {"normal": normal, "abnormal": ["the tip is bent"] if grey == 7 else []}

    model = Looker(rules)
    found = propose_rules(files, "screw", model)
    assert model.seen == list(range(10))  # no more than 10 are looked at
    assert found.normal == (("the thread is very clean", 3),)  # "the head is round" holds of 2 of 10
    assert found.abnormal == (("the tip is bent", 1),) and found.pictures == 10


def test_of_few_pictures_the_same_share_is_asked(files):
    both = {"normal": ["it is round"], "abnormal": []}
    once = propose_rules(files[:3], "nut", Looker(lambda grey: both if grey == 0 else {"normal": [], "abnormal": []}))
    assert once.normal == (("it is round", 1),)  # 1 of 3 is 3 of 10
    four = Looker(lambda grey: both if grey == 0 else {"normal": ["it has a hole"], "abnormal": []})
    assert propose_rules(files[:4], "nut", four).normal == (("it has a hole", 3),)


def test_one_picture_counts_once_for_a_rule_however_often_it_says_it():
    assert recurring([["a b c", "a b c"], ["x y"]]) == [("a b c", 1), ("x y", 1)]


def test_a_picture_without_an_answer_is_left_out_and_said(files):
    model = Looker(lambda grey: None if grey == 1 else {"normal": ["it is round"], "abnormal": []})
    found = propose_rules(files[:3], "nut", model)
    assert found.pictures == 2 and found.normal == (("it is round", 2),) and found.errors == ("no object",)
    with pytest.raises(RuntimeError, match=r"scripted gave no usable rule \(no object\)"):
        propose_rules(files[:3], "nut", Looker(lambda grey: None))
    with pytest.raises(ValueError, match="no good picture"):
        propose_rules([], "nut", model)


def server(request):
    if quarter := seen_quarter(request):
        return reply(said(json.dumps({"quadrant": quarter})))
    if sent(request):
        return reply(said("A round nut with six sides."))
    rules = {"normal": ["normal: it has [six] sides # always\nabnormal: none"], "abnormal": ["abnormal: a broken side"]}
    return reply(said(json.dumps(rules)))


def test_the_command_writes_a_file_of_one_rule_a_line(folder, tmp_path):
    with serving(server) as stub:
        how = ["--reasoner", f"openai:m@{stub.url}", "--normals", folder, "--out", tmp_path / "nut.txt"]
        done = CliRunner().invoke(app, ["prompts", "rules", "--name", "metal nut", *map(str, how)])
    assert done.exit_code == 0, done.output
    lines = (tmp_path / "nut.txt").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules == ["normal: it has six sides always abnormal: none", "abnormal: a broken side"]
    assert "# from 10 of 10" in lines and lines[0].startswith(f"# Proposed by openai:m@{stub.url}"[:20])
    assert all("metal nut" in words(request) for request in stub.requests if not seen_quarter(request))


@pytest.mark.parametrize(
    ("candidate", "reference", "value"),
    [
        ("the police kill the gunman", "police killed the gunman", 2 * 3 / 9),  # "police the gunman"
        ("A crack.", "a CRACK", 1.0),
        ("b a", "a b", 0.5),
        ("", "a crack", 0.0),
        ("?!", "a crack", 0.0),
        ("no word shared", "a crack", 0.0),
    ],
)
def test_rouge_l_is_the_f_of_the_longest_common_subsequence(candidate, reference, value):
    assert rouge_l(candidate, reference) == pytest.approx(value)
    assert rouge_l(reference, candidate) == pytest.approx(value)
