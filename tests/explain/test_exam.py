"""Explanations measured on small sets in the published formats, drawn here: MMAD, VisA-D&R, a folder like MVTec AD."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vlad import synthetic
from vlad.cli import app
from vlad.explain.exam import evaluate_explanations, mmad, visa_dr
from vlad.explain.exam.answering import Question, by_words, text_rows
from vlad.explain.reasoners.protocol import Answer, Caps, Choice, Usage
from vlad.maps import anomaly_probability
from vlad.prompts import PromptPack, prototypes

DETECT = {"Question": "Is there any defect in the object?", "Options": {"A": "Yes.", "B": "No."}}
WHAT = {"Question": "What is it?", "Options": {"A": "a scratch", "B": "a hole", "C": "a stain", "D": "a dent"}}
SIDE = 96


class Scripted:
    """A reasoner that answers by a function of the question's words; None is an answer that cannot be read."""

    name, caps = "scripted", Caps(option_probs=True)

    def __init__(self, say):
        self.say, self.asked = say, []

    def ask(self, question):
        self.asked.append(question)
        words = " ".join(part for part in question.parts if isinstance(part, str))
        said = self.say(question, words)
        usage = Usage(calls=1, prompt_tokens=10)
        if said is None:
            return Answer("what?", None, usage=usage, error="it names none of the options", code="parse_failed")
        probs = None
        if isinstance(question.answer, Choice):
            rest = 0.1 / (len(question.answer.options) - 1)
            probs = tuple(0.9 if option == said else rest for option in question.answer.options)
        return Answer(said, said, probs, usage=usage)


def draw(path, rng, defective):
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = synthetic.sample(rng, SIDE, defective=defective)
    Image.fromarray(drawn.picture).save(path)
    return drawn


@pytest.fixture(scope="module")
def mmad_root(tmp_path_factory):
    """Two data sets of one category with two good and two bent pictures each, and a template."""
    root, rng, index = tmp_path_factory.mktemp("mmad"), np.random.default_rng(1), {}
    for dataset in ("DS-MVTec", "VisA"):
        template = f"{dataset}/bolt/train/good/0.png"
        draw(root / template, rng, False)
        for kind, number in (("good", 0), ("good", 1), ("bent", 0), ("bent", 1)):
            image = f"{dataset}/bolt/image/{kind}/{number}.png"
            draw(root / image, rng, kind == "bent")
            talk = [{**DETECT, "Answer": "B" if kind == "good" else "A", "type": "Anomaly Detection"}]
            talk.append({**WHAT, "Answer": "C", "type": "Defect Classification"})
            talk.append({**WHAT, "Answer": "D", "type": "Object Structure"})
            index[image] = {"conversation": talk, "similar_templates": [template], "random_templates": [template]}
    (root / "mmad.json").write_text(json.dumps(index))
    return root


@pytest.fixture(scope="module")
def visa_root(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("visa"), np.random.default_rng(2)
    judged, talked = [], []
    for name in ("candle", "pcb2"):
        for bad in (False, True):
            image = f"VisA/{name}/{'Anomaly' if bad else 'Normal'}/0.png"
            draw(root / image, rng, bad)
            judged.append({"image": image, "anomaly": bad})
        questions = ["What is wrong with it?", "Where?"]
        talked.append({"image": image, "questions": questions, "answers": ["a dark scratch", "at the top"]})
    (root / "detection.json").write_text(json.dumps(judged))
    (root / "reasoning.json").write_text(json.dumps(talked))
    return root


def say_what(answer):
    """Says "No." to detection questions and `answer` to the others."""
    return lambda question, words: "No." if "any defect" in words else answer


# ---- MMAD -----------------------------------------------------------------------------------------------------------


def test_a_model_that_calls_everything_normal_gets_half_of_detection(mmad_root, tiny_encoder):
    model = Scripted(say_what("a stain"))
    found = evaluate_explanations(f"mmad:{mmad_root}", reasoner=model, encoder=tiny_encoder)
    (table, trust) = found.tables
    assert table.columns == (
        "data set", "mean", "Anomaly Detection", "Defect Classification", "Object Analysis", "overkill", "miss",
    )  # fmt: skip
    assert table.rows == (
        ("DS-MVTec", 0.5, 0.5, 1.0, 0.0, 0.0, 1.0),
        ("VisA", 0.5, 0.5, 1.0, 0.0, 0.0, 1.0),
        ("mean", 0.5, 0.5, 1.0, 0.0, None, None),
    )
    assert len(model.asked) == found.lines == 24 and found.usage["calls"] == 24 and found.usage["prompt_tokens"] == 240
    assert found.unreadable == found.errors == 0 and found.needs_review is None
    assert dict(zip(trust.columns, trust.rows[0], strict=True))["ece"] == pytest.approx(0.4)  # p = 0.1, half are bad


def test_unreadable_answers_are_wrong(mmad_root, tiny_encoder):
    model = Scripted(lambda question, words: "Yes." if "any defect" in words else None)
    ours = evaluate_explanations(f"mmad:{mmad_root}", reasoner=model, encoder=tiny_encoder)
    assert ours.unreadable == pytest.approx(2 / 3) and ours.tables[0].rows[-1][1:5] == (1 / 6, 0.5, 0.0, 0.0)


def test_a_question_goes_out_alone_with_its_reference_first_and_no_path(mmad_root, tiny_encoder):
    model = Scripted(say_what("a dent"))
    evaluate_explanations(f"mmad:{mmad_root}", reasoner=model, encoder=tiny_encoder)
    first = model.asked[0]
    assert len(first.pictures) == 2 and first.parts[0].startswith("NORMAL") and first.parts[2].startswith("QUERY")
    assert first.answer.options == ("Yes.", "No.") and first.parts[-1] == DETECT["Question"]
    words = " ".join(part for question in model.asked for part in question.parts if isinstance(part, str))
    assert "good/" not in words and "bent" not in words and ".png" not in words
    model.asked.clear()
    evaluate_explanations(f"mmad:{mmad_root}", reasoner=model, encoder=tiny_encoder, references=0)
    assert {len(question.pictures) for question in model.asked} == {1}


def test_the_tier_without_a_language_model_answers_every_question(mmad_root, tiny_encoder):
    found = evaluate_explanations(f"mmad:{mmad_root}", encoder=tiny_encoder)
    assert found.unreadable == found.errors == 0 and found.usage["calls"] == 0
    assert found.tables[1].rows[0][0] == 8  # every detection question has a probability


def test_yes_and_no_are_answered_by_the_words_for_anomalous_and_normal(tiny_encoder):
    pack, picture = PromptPack.load("winclip"), np.full((SIDE, SIDE, 3), 127, np.uint8)
    answer = by_words(tiny_encoder, pack)
    forward = answer(Question("Any defect?", ("Yes.", "No."), picture, "bolt"))
    backward = answer(Question("Any defect?", ("No.", "Yes."), picture, "bolt"))
    assert forward.option_probs == pytest.approx(backward.option_probs[::-1], abs=1e-6)
    assert sum(forward.option_probs) == pytest.approx(1) and forward.parsed in ("Yes.", "No.")
    image = tiny_encoder(tiny_encoder.pixels([picture])).image[0]
    states = prototypes(tiny_encoder, pack, "bolt")
    expected = anomaly_probability(image, states, temperature=0.01)
    assert forward.option_probs[0] == pytest.approx(float(expected), abs=1e-5) and abs(float(expected) - 0.5) > 0.01


@pytest.mark.parametrize("long", ["a scratch " * 200, "\\" * 300])
def test_words_longer_than_the_encoder_reads_are_cut(tiny_encoder, long):
    rows = text_rows(tiny_encoder, [long, ""])
    assert rows.norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_a_killed_exam_goes_on_without_asking_again(mmad_root, tiny_encoder, tmp_path):
    def dies(question, words):
        if len(model.asked) > 5:
            raise KeyboardInterrupt
        return say_what("a stain")(question, words)

    model = Scripted(dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate_explanations(f"mmad:{mmad_root}", reasoner=model, encoder=tiny_encoder, out=tmp_path)
    after = Scripted(say_what("a stain"))
    found = evaluate_explanations(f"mmad:{mmad_root}", reasoner=after, encoder=tiny_encoder, out=tmp_path)
    assert len(after.asked) == 24 - 5 and found.tables[0].rows[0][1] == 0.5
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["tables"][0]["rows"][0][:2] == ["DS-MVTec", 0.5] and report["usage"]["calls"] == 24
    again = evaluate_explanations(f"mmad:{mmad_root}", reasoner=Scripted(None), encoder=tiny_encoder, out=tmp_path)
    assert again.tables[0].rows == found.tables[0].rows  # scored again from the file alone


def test_a_model_that_breaks_is_counted_and_asked_again(mmad_root, tiny_encoder, tmp_path):
    def breaks(question, words):
        raise RuntimeError("out of memory")

    how = {"encoder": tiny_encoder, "out": tmp_path}
    broken = evaluate_explanations(f"mmad:{mmad_root}", reasoner=Scripted(breaks), **how)
    assert broken.errors == 1 and broken.tables[0].rows[-1][1] == 0
    mended = evaluate_explanations(f"mmad:{mmad_root}", reasoner=Scripted(say_what("a stain")), **how)
    assert mended.errors == 0 and mended.tables[0].rows[-1][1] == 0.5


def test_a_missing_picture_is_an_error_line_and_the_rest_goes_on(mmad_root, tmp_path, tiny_encoder):
    index = json.loads((mmad_root / "mmad.json").read_text())
    root = tmp_path / "mmad"
    root.mkdir()
    (root / "mmad.json").write_text(json.dumps(dict([next(iter(index.items()))])))
    found = evaluate_explanations(f"mmad:{root}", reasoner=Scripted(say_what("a dent")), encoder=tiny_encoder)
    assert found.errors == 1 and found.lines == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry.pop("conversation"),
        lambda entry: entry["conversation"][0].pop("Answer"),
        lambda entry: entry["conversation"][0].update(Answer="F"),
        lambda entry: entry["conversation"][0].update(Options=["yes", "no"]),
    ],
)
def test_an_index_of_another_form_names_the_picture(mmad_root, tmp_path, change):
    index = json.loads((mmad_root / "mmad.json").read_text())
    change(index["VisA/bolt/image/bent/1.png"])
    (tmp_path / "mmad.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"mmad\.json: VisA/bolt/image/bent/1\.png: .*expected conversation"):
        mmad.entries(tmp_path)


def test_options_that_repeat_stay_apart(tmp_path):
    asked = {"Question": "Which?", "Options": {"A": "left", "B": "left"}, "Answer": "B", "type": "x"}
    (tmp_path / "mmad.json").write_text(json.dumps({"X/a/good/0.png": {"conversation": [asked]}}))
    (entry,) = mmad.entries(tmp_path)
    assert entry.options == ("left", "left (B)") and entry.answer == "B"


# ---- VisA-D&R -------------------------------------------------------------------------------------------------------


def test_detection_is_counted_by_class_and_the_reasoning_items_are_passed_over(visa_root, tiny_encoder):
    model = Scripted(lambda question, words: "yes" if "candle" in words else "no")
    found = evaluate_explanations(f"visa_dr:{visa_root}", reasoner=model, encoder=tiny_encoder)
    judged, trust = found.tables
    assert judged.columns == ("class", "accuracy", "precision", "recall", "f1")
    assert judged.rows[0] == ("candle", 0.5, 0.5, 1.0, pytest.approx(2 / 3))
    assert judged.rows[1] == ("pcb2", 0.5, None, 0.0, 0.0)
    assert judged.rows[2] == ("mean", 0.5, 0.5, 0.5, pytest.approx(1 / 3))
    assert trust.rows[0][0] == found.lines == len(model.asked) == 4


def test_every_picture_is_judged_without_a_language_model(visa_root, tiny_encoder):
    found = evaluate_explanations(f"visa_dr:{visa_root}", encoder=tiny_encoder)
    assert found.errors == found.unreadable == found.usage["calls"] == 0 and found.lines == 4


def test_lists_without_an_item_to_judge_are_refused(visa_root, tmp_path):
    (tmp_path / "reasoning.json").write_text((visa_root / "reasoning.json").read_text())
    with pytest.raises(ValueError, match="no item to judge"):
        visa_dr.items(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),
        ("{}", "expected a list"),
        ('[{"image": "a"}]', "item 1"),
        ('[{"image": "a", "anomaly": "maybe"}]', "anomaly is 'maybe'"),
        ("[3]", "item 1"),
    ],
)
def test_a_list_of_another_form_is_named(content, said, tmp_path):
    (tmp_path / "detection.json").write_text(content)
    with pytest.raises(ValueError, match=said):
        visa_dr.items(tmp_path)


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [["eval-explain"], ["prompts", "make"], ["prompts", "check"], ["prompts", "rules"]])
def test_the_help_of_every_verb_of_this_layer_has_an_example(verb):
    done = CliRunner().invoke(app, [*verb, "--help"])
    assert done.exit_code == 0 and f"Example: vlad {' '.join(verb)} " in done.stdout


def test_the_command_prints_tables_and_what_went_wrong(mmad_root, tmp_path):
    done = CliRunner().invoke(app, ["eval-explain", "--data", f"mmad:{mmad_root}", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "| DS-MVTec " in done.stdout and "24 answers: 0.0% failed, 0.0% unreadable" in done.stdout
    again = CliRunner().invoke(app, ["eval-explain", "--data", f"mmad:{mmad_root}", "--out", str(tmp_path), "--json"])
    assert json.loads(again.stdout)["lines"] == 24
    other = ["eval-explain", "--data", f"mmad:{mmad_root}", "--out", str(tmp_path), "--references", "0"]
    refused = CliRunner().invoke(app, other)
    assert refused.exit_code == 2 and "references was 1, now 0" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "mmad:nosuch"], "no mmad.json"),
        (["--data", "visa_dr:nosuch"], "no .json file"),
        (["--data", "mvtek:nosuch"], "mvtec"),
        (["--data", "mmad:nosuch", "--reasoner", "gpt"], "openai:MODEL@BASE_URL"),
        (["--data", "mmad:nosuch", "--reasoner", "openai:m@https://example.com/v1"], "example.com"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments, said):
    done = CliRunner().invoke(app, ["eval-explain", *arguments])
    assert done.exit_code == 2 and said in done.stderr and done.stderr.count("\n") == 1
