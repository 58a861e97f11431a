"""Answers judged against references by a scripted judge, on a small set in the form of VisA-D&R."""

import json
import re

import numpy as np
import pytest
from chat_stub import files, reply, said, seen_quarter, serving, words
from PIL import Image
from typer.testing import CliRunner

from vlad.cli import app
from vlad.explain.evaluation import evaluate_explanations, judging
from vlad.explain.evaluation.scores import ASPECTS, judge_score
from vlad.explain.parsing import read_answer
from vlad.explain.reasoner import Answer, Caps, Text, Usage

REFERENCES = ("a dark scratch", "at the top", "it is long", "from a tool")
ANSWERS = {"What?": "a dark scratch", "Where?": "at the bottom", "How long?": "it is long", "Why?": "a fall"}


class Talker:
    """Says the answer to the last question; None is an answer that does not come."""

    name, caps = "talker", Caps()

    def __init__(self, answers=None):
        self.answers, self.asked = answers or ANSWERS, []

    def ask(self, question):
        self.asked.append(question)
        said = self.answers[re.findall(r"Question: (.*)", question.parts[-1])[-1]]
        if said is None:
            return Answer("", None, finish="refused", error="it declined", code="refused")
        return read_answer(said, question.answer, "stop", Usage(calls=1))


class Judge:
    """Writes what a function of the two texts says, which is then read as a model's words are."""

    name, caps = "strict judge", Caps()

    def __init__(self, write):
        self.write, self.asked = write, []

    def ask(self, question):
        self.asked.append(question)
        words = question.parts[0]
        one, other = re.findall(r"Text [12]: (.*)", words) or ("", "")  # a second try shows the first answer alone
        return read_answer(self.write(words, one, other), question.answer, "stop", Usage(calls=1))


def points(*values):
    return json.dumps(dict(zip(ASPECTS, values, strict=True)))


def reads(words, one, other):
    """Two points where the texts are the same, else one for the place alone."""
    return points(2, 2, 2, 2) if one == other else points(0, 1, 0, 0)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    Image.fromarray(np.full((64, 64, 3), 99, np.uint8)).save(folder / "0.png")
    item = {"image": "0.png", "questions": list(ANSWERS), "answers": list(REFERENCES)}
    (folder / "reasoning.json").write_text(json.dumps([item]))
    return folder


def judged(root, encoder, judge, talker=None, **how):
    data = f"visa_dr:{root}"
    found = evaluate_explanations(data, reasoner=talker or Talker(), encoder=encoder, judge=judge, **how)
    (table,) = [table for table in found.tables if "judge score" in table.title]
    return found, dict(zip(table.columns, table.rows[0], strict=True))


def test_points_are_means_of_the_judgements_that_could_be_read():
    found = judge_score([(2, 2, 1, 2), (0, 1, 1, 2), None, None])
    assert [found[aspect] for aspect in ASPECTS] == [1.0, 1.5, 1.0, 2.0]
    assert found["sum"] == 5.5 and found["unreadable"] == 0.5
    nothing = judge_score([None])
    assert nothing["unreadable"] == 1 and nothing["sum"] is None and nothing["type_right"] is None
    with pytest.raises(ValueError, match="no judgements"):
        judge_score([])


def test_each_answer_is_judged_once_and_the_means_stand_beside_the_judges_name(root, tiny_encoder):
    judge = Judge(reads)
    found, row = judged(root, tiny_encoder, judge)
    assert row == {
        "judge": "strict judge", "answers": 4, "type right": 1.0, "place right": 1.5, "appearance right": 1.0,
        "nothing invented": 1.0, "sum": 4.5, "unanswered": 0.0, "unreadable": 0.0,
    }  # fmt: skip
    assert len(judge.asked) == 4 and found.usage["calls"] == 8 and found.settings["judge"] == "strict judge"
    assert re.search(r"\| strict judge \| +4 \| +1\.00 \| +1\.50 \| .* 4\.50 \| +0\.0 \|", found.text())
    assert json.loads(json.dumps(found.to_dict()))["tables"][-1]["rows"][0][6] == 4.5


def test_the_judge_sees_words_alone_and_not_which_text_is_the_reference(root, tiny_encoder):
    judge = Judge(reads)
    judged(root, tiny_encoder, judge)
    for asked in judge.asked:
        assert not asked.pictures and not isinstance(asked.answer, Text)
        assert not re.search("reference|candidate|talker", f"{asked.system} {asked.parts}", re.IGNORECASE)
        assert all(aspect in asked.parts[0] for aspect in ASPECTS)


def test_the_order_is_drawn_and_changes_nothing_for_a_judge_that_reads():
    pairs = [judging.Pair("a", number, "Where?", "at the top", "below") for number in range(40)]
    shown = [judging.ask(pair, Judge(reads)) for pair in pairs]
    assert 8 < sum(line["candidate_first"] for line in shown) < 32
    assert [line["candidate_first"] for line in shown] == [
        judging.ask(pair, Judge(reads))["candidate_first"] for pair in pairs
    ]
    swapped = [judging.ask(pair, Judge(reads), seed=1) for pair in pairs]
    turned = [
        one for one, other in zip(shown, swapped, strict=True) if one["candidate_first"] != other["candidate_first"]
    ]
    assert turned and [line["points"] for line in shown] == [line["points"] for line in swapped]
    first = Judge(lambda asked, one, other: points(2, 2, 2, 2) if one == "below" else points(0, 0, 0, 0))
    assert {
        (line["candidate_first"], line["points"]["type_right"]) for line in (judging.ask(p, first) for p in pairs)
    } == {
        (True, 2),
        (False, 0),
    }


@pytest.mark.parametrize(
    "written",
    ["Both are fine.", "", points(2, 2, 2, 3), points(2, -1, 2, 2), points(1.5, 2, 2, 2), points(True, 2, 2, 2),
     points("good", 2, 2, 2), '{"type_right": 2}', points(2, 2, 2, 2)[:-1]],
)  # fmt: skip
def test_a_judgement_that_cannot_be_read_is_counted_and_never_scored(root, tiny_encoder, tmp_path, written):
    judge = Judge(
        lambda asked, one, other: written if "Where?" in asked or "Your last" in asked else points(2, 2, 1, 1)
    )
    found, row = judged(root, tiny_encoder, judge, out=tmp_path / "out")
    assert row["unreadable"] == 0.25 and row["sum"] == 6 and row["appearance right"] == 1 and row["answers"] == 4
    assert found.unreadable == found.errors == 0  # those of the answers
    assert found.usage["calls"] == 4 + len(judge.asked)  # second tries too
    again = Judge(reads)
    assert judged(root, tiny_encoder, again, out=tmp_path / "out")[1] == row and not again.asked


def test_an_answer_that_did_not_come_has_no_points_and_is_not_judged(root, tiny_encoder):
    judge = Judge(lambda asked, one, other: points(2, 2, 2, 2))
    _, row = judged(root, tiny_encoder, judge, Talker(ANSWERS | {"Why?": None}))
    assert len(judge.asked) == 3
    assert row["sum"] == 6 and row["nothing invented"] == 1.5 and row["unanswered"] == 0.25 and row["answers"] == 4


def test_a_killed_judge_goes_on_and_a_finished_one_is_asked_nothing(root, tiny_encoder, tmp_path):
    def dies(words, one, other):
        if len(judge.asked) > 2:
            raise KeyboardInterrupt
        return reads(words, one, other)

    judge, out = Judge(dies), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        judged(root, tiny_encoder, judge, out=out)
    after, talker = Judge(reads), Talker()
    _, row = judged(root, tiny_encoder, after, talker, out=out)
    assert len(after.asked) == 2 and not talker.asked and row["sum"] == 4.5
    finished = Judge(reads)
    assert judged(root, tiny_encoder, finished, talker, out=out)[1] == row and not finished.asked
    finished.name = "another"
    with pytest.raises(ValueError, match="judge was 'strict judge', now 'another'"):
        judged(root, tiny_encoder, finished, out=out)


def test_a_judge_that_breaks_is_left_out_and_asked_again(root, tiny_encoder, tmp_path):
    _, row = judged(root, tiny_encoder, Judge(lambda *given: 1 / 0), out=tmp_path / "out")
    assert row["unreadable"] == 1 and row["sum"] is None
    mended = Judge(reads)
    assert judged(root, tiny_encoder, mended, out=tmp_path / "out")[1]["sum"] == 4.5 and len(mended.asked) == 4


def test_another_wording_of_an_answer_is_judged_anew(root, tiny_encoder, tmp_path):
    judged(root, tiny_encoder, Judge(reads), out=tmp_path / "out")
    (tmp_path / "out" / "answers.jsonl").unlink()
    judge = Judge(reads)
    talker = Talker(ANSWERS | {"Why?": "from a tool"})
    assert judged(root, tiny_encoder, judge, talker, out=tmp_path / "out")[1]["sum"] == 6.25 and len(judge.asked) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--data", "mmad:nosuch", "--judge", "openai:m@http://localhost:1/v1"], "only visa_dr:ROOT"),
        (["--data", "visa_dr:nosuch", "--judge", "clip"], "judge is 'clip'"),
        (["--data", "visa_dr:nosuch", "--judge", "gpt"], "openai:MODEL@BASE_URL"),
        (["--data", "visa_dr:nosuch", "--judge", "openai:m@https://example.com/v1"], "example.com"),
        (["--data", "visa_dr:nosuch", "--judge-key-env", "KEY"], "--judge-key-env is for a server"),
        (["--data", "visa_dr:nosuch", "--judge", "openai:m@https://example.com/v1", "--allow-remote"], "no .json file"),
    ],
)
def test_wrong_use_of_a_judge_is_one_sentence(arguments, sentence):
    done = CliRunner().invoke(app, ["eval-explain", *arguments])
    assert done.exit_code == 2 and sentence in done.stderr and done.stderr.count("\n") == 1


def test_a_set_without_references_is_refused_before_anything_is_asked(root, tiny_encoder):
    item = {"image": "0.png", "questions": list(ANSWERS)}
    (root / "reasoning.json").write_text(json.dumps([item]))
    talker = Talker()
    with pytest.raises(ValueError, match="no item has reference answers"):
        judged(root, tiny_encoder, Judge(reads), talker)
    assert not talker.asked


def test_a_server_judges_with_a_key_of_its_own_and_is_sent_no_picture_of_the_set(root, monkeypatch):
    def answer(request):
        return reply(said(json.dumps({"code": seen_quarter(request)}) if files(request) else points(1, 1, 0, 2)))

    monkeypatch.setenv("JUDGE_KEY", "k3y")
    with serving(answer) as stub:
        judge = ["--judge", f"openai:m@{stub.url}", "--judge-key-env", "JUDGE_KEY"]
        done = CliRunner().invoke(app, ["eval-explain", "--data", f"visa_dr:{root}", *judge, "--json"])
    assert done.exit_code == 0, done.output
    row = json.loads(done.stdout)["tables"][-1]["rows"][0]
    assert row[0].startswith("openai:m@") and row[1:7] == [4, 1.0, 1.0, 0.0, 2.0, 4.0]
    judging_requests = [request for request in stub.requests if "Text 2:" in words(request)]
    assert len(judging_requests) == 4 and not any(map(files, judging_requests))
    assert {headers["Authorization"] for headers in stub.headers} == {"Bearer k3y"}
