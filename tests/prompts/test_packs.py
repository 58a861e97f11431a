"""Packs written by a language model and checked without one: filters, file, per-phrase checks, words compared."""

import dataclasses
import datetime
import json

import numpy as np
import pytest
import torch
from chat_stub import reply, said, seen_quarter, serving, words
from PIL import Image
from typer.testing import CliRunner

from vlad import synthetic
from vlad.cli import app
from vlad.explain.reasoners.protocol import Answer, Caps, Choice, Usage
from vlad.prompts import PromptPack, check
from vlad.prompts.check import check_pack
from vlad.prompts.comparison import Words, compare_words
from vlad.prompts.writing import KINDS, make_pack, why_not, with_scenes

PACK = PromptPack.load(
    {
        "title": "nut",
        "templates": ["a photo of a {}."],
        "normal": ["{}", "flawless {}", "{} with clean threads"],
        "anomalous": ["damaged {}", "{} with damage", "{} with a scratch", "perfectly flawless {}"],
    }
)


class Writer:
    """A reasoner that lists given states, and says which a photo can show; it remembers what it was asked."""

    name, caps = "scripted", Caps(max_images=0)

    def __init__(self, good=("clean threads",), bad=("a bent edge",), unseen=()):
        self.good, self.bad, self.unseen, self.asked = good, bad, unseen, []

    def ask(self, question):
        text = " ".join(question.parts)
        self.asked.append(text)
        if isinstance(question.answer, Choice):
            said = "no" if any(f'"{state}"' in text for state in self.unseen) else "yes"
            return Answer(said, said, usage=Usage(calls=1))
        listed = self.good if text.startswith("A good") else self.bad
        parsed = None if listed is None else {"states": list(listed)}
        return Answer("", parsed, usage=Usage(calls=1), error="no object", code="parse_failed")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# ---- made by a language model ---------------------------------------------------------------------------------------


def test_every_kind_is_asked_for_by_the_objects_name_and_no_picture_is_sent():
    writer = Writer()
    made = make_pack("metal nut", writer)
    lists = [text for text in writer.asked if "Complete" in text]
    assert len(lists) == len(KINDS) + 1 and all("a metal nut" in text for text in lists)
    assert made.calls == len(writer.asked)


def test_what_the_model_thought_of_joins_the_generic_states_and_becomes_labels():
    made = make_pack("metal nut", Writer(bad=("a bent edge", "With deep scratches.")), datetime.date(2026, 1, 2)).pack
    generic = PromptPack.load("winclip")
    assert made.normal == (*generic.normal, "{} with clean threads")
    assert made.anomalous == (*generic.anomalous, "{} with a bent edge", "{} with deep scratches")
    assert made.defects == {"bent edge": ("{} with a bent edge",), "deep scratches": ("{} with deep scratches",)}
    source = {"model": "scripted", "date": "2026-01-02", "prompt_version": 1, "not_visual_dropped": ()}
    assert dict(made.source) == source


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ("a sour smell", "no photo shows it"),
        ("soft spots", "no photo shows it"),
        ("an odour of burnt oil", "no photo shows it"),
        ("no thread", "it is a negation"),
        ("a head that isn't round", "it is a negation"),
        ("a", None),
        ("a scratch that runs from the head down to the very tip", "it has more than 8 words"),
        ("a {} shape", "it is empty or has a brace"),
        ("severity", "its name has another meaning in a pack"),
        ("hardware missing", None),
        ("a hole in the notch", None),
    ],
)
def test_words_that_no_camera_can_check_are_dropped_with_their_reason(state, why):
    assert why_not(state) == why
    if why:
        made = make_pack("nut", Writer(bad=(state, "a dent")))
        assert made.dropped == {state: why} and "{} with a dent" in made.pack.anomalous
        assert made.pack.source["not_visual_dropped"] == ((state,) if why == "no photo shows it" else ())


def test_the_model_itself_takes_out_what_it_says_no_photo_shows():
    made = make_pack("nut", Writer(bad=("low conductivity", "a dent"), unseen=("low conductivity",)))
    assert made.dropped == {"low conductivity": "no photo shows it"}
    assert made.pack.source["not_visual_dropped"] == ("low conductivity",)


class Teller(Writer):
    """A reasoner that also tells scenes: three a question, new ones while it has any, and one that it repeats."""

    def __init__(self, normal=30, wrong=30):
        super().__init__()
        self.left = {"wrong": wrong, "normal": normal}

    def ask(self, question):
        text = " ".join(question.parts)
        if "A camera watches" not in text:
            return super().ask(question)
        self.asked.append(text)
        side = "wrong" if "gone wrong" in text else "normal"
        numbers = range(self.left[side], max(0, self.left[side] - 3), -1)
        self.left[side] -= len(numbers)
        told = [f"{side} scene {number}" for number in numbers]
        return Answer(
            "", {"states": [*told, "A {} that is empty", *(["an empty belt"] if told else [])]}, usage=Usage(1)
        )


def test_scenes_are_told_until_there_are_enough_and_none_stands_twice():
    teller = Teller()
    made = with_scenes(make_pack("belt", teller), "belt", teller, 6)
    scenes = made.pack.scenes
    assert len(scenes["normal"]) == len(scenes["anomalous"]) == 6
    assert scenes["normal"][:4] == ("normal scene 30", "normal scene 29", "normal scene 28", "an empty belt")
    assert "an empty belt" not in scenes["anomalous"] and made.calls == len(teller.asked)
    told = [text for text in teller.asked if "A camera watches a belt" in text]
    assert "Others than these: normal scene 30; normal scene 29" in told[1] and "Others" not in told[0]


def test_a_model_that_runs_out_of_scenes_gives_fewer_and_none_at_all_is_an_error():
    teller = Teller(normal=2)
    made = with_scenes(make_pack("belt", teller), "belt", teller, 50)
    assert made.pack.scenes["normal"] == ("normal scene 2", "normal scene 1", "an empty belt")
    assert len([text for text in teller.asked if "nothing wrong" in text]) == 10
    with pytest.raises(RuntimeError, match="scripted gave no usable caption"):
        with_scenes(make_pack("belt", teller), "belt", Teller(normal=0), 5)
    with pytest.raises(ValueError, match="--scenes is 0"):
        with_scenes(made, "belt", teller, 0)


def test_a_state_is_never_in_both_lists():
    made = make_pack("nut", Writer(good=("a dark ring",), bad=("a dark ring", "a dent"))).pack
    assert "{} with a dark ring" in made.normal and "{} with a dark ring" not in made.anomalous


def test_a_model_without_a_usable_state_is_an_error_with_its_reasons():
    with pytest.raises(RuntimeError, match=r"scripted gave no usable state of a nut \(.*a strange smell.*no photo"):
        make_pack("nut", Writer(bad=("a strange smell",)))
    with pytest.raises(RuntimeError, match="gave no usable state"):
        make_pack("nut", Writer(bad=None))


def test_a_pack_keeps_its_source_through_the_file_and_scores_do_not_hear_of_it(tmp_path, tiny_encoder):
    made = make_pack("nut", Writer(unseen=("a bent edge",), bad=("a dent", "a bent edge"))).pack
    made.save(tmp_path / "nut.toml")
    again = PromptPack.load(tmp_path / "nut.toml")
    assert again == made and again.source["not_visual_dropped"] == ("a bent edge",)
    without = dataclasses.replace(made, source={})
    assert without != made and without.sentences("nut") == made.sentences("nut")


@pytest.mark.parametrize("value", [1.5, True, [1], {"a": "b"}, 2**64])
def test_a_source_of_another_kind_is_reported_by_its_key(value):
    with pytest.raises(ValueError, match=r"source\.when: expected a text, a whole number or a list of texts"):
        PromptPack.load({"normal": ["{}"], "anomalous": ["bad {}"], "source": {"when": value}})


def writing_server(request):
    """A blind server that writes lists, in words that also try to leave the file's syntax."""
    text = words(request)
    if seen_quarter(request):
        return reply(said("I see no picture."))
    if "Can an ordinary photo" in text:
        return reply(said("A"))
    if "A good" in text:
        return reply(said(json.dumps({"states": ["even colour"]})))
    return reply(said('Sure: {"states": ["a \\"bent\\" edge", "a chip]\\n[defects]"]}'))


def test_make_writes_a_pack_from_a_server_that_sees_no_pictures(tmp_path):
    out = tmp_path / "nut.toml"
    with serving(writing_server) as stub:
        done = run("prompts", "make", "--name", "metal nut", "--reasoner", f"openai:m@{stub.url}", "--out", out)
    assert done.exit_code == 0, done.output
    pack = PromptPack.load(out)
    assert '{} with a "bent" edge' in pack.anomalous and "{} with a chip] [defects" in pack.anomalous
    assert pack.source["model"] == f"openai:m@{stub.url}"
    sent = [message for request in stub.requests for message in request["messages"] if message["role"] == "user"]
    asked = [m for m in sent if "quarter" not in json.dumps(m)]
    assert asked and "image_url" not in json.dumps(asked)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--reasoner", "clip", "--out", "x.toml", "--name", "nut"], "language model"),
        (["--reasoner", "gpt", "--out", "x.toml", "--name", "nut"], "openai:MODEL@BASE_URL"),
        (["--reasoner", "openai:m@https://example.com/v1", "--out", "x.toml", "--name", "nut"], "example.com"),
        (["--reasoner", "openai:m@http://127.0.0.1:9/v1", "--out", "x.yaml", "--name", "nut"], ".toml"),
        (["--reasoner", "openai:m@http://127.0.0.1:9/v1", "--out", "x.toml"], "--name"),
    ],
)
def test_make_says_in_one_sentence_what_is_wrong(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("prompts", "make", *arguments)
    assert done.exit_code == 2 and said in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


# ---- checked without one --------------------------------------------------------------------------------------------


class Words2D:
    """Stands in for an encoder: phrases and pictures lie where the test puts them, in the plane."""

    name, embed_dim, device = "plane", 2, torch.device("cpu")

    def __init__(self, degrees, pictures=()):
        self.digest = str(sorted(degrees.items()))
        self.degrees, self.pictures = degrees, list(pictures)

    def text(self, sentences):
        return torch.stack([_at(self.degrees[sentence]) for sentence in sentences])

    def pixels(self, pictures):
        return [self.pictures.pop(0) for _ in pictures]

    def __call__(self, degrees):
        return type("Features", (), {"image": torch.stack([_at(one) for one in degrees])})


def _at(degrees):
    return torch.tensor([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], dtype=torch.float32)


PLAIN = {"normal": ["good {}", "clean {}", "new {}"], "anomalous": ["bent {}", "bowed {}", "old {}"]}
DEGREES = {"good x": 0, "clean x": 20, "new x": 40, "bent x": 100, "bowed x": 110, "old x": 41}


def test_doubles_and_words_that_cannot_separate_are_named():
    found = check_pack(PromptPack.load(PLAIN), "x", Words2D(DEGREES))
    # normal pairs are 20, 20 and 40 degrees apart: the 95 % quantile of (cos 40, cos 20, cos 20) is cos 20
    assert found.limit == pytest.approx(np.cos(np.radians(20)), abs=1e-6)
    assert {one.phrase: one.problems for one in found.phrases if one.problems} == {
        "bowed x": ("says the same as 'bent x'",),
        "old x": ("too close to a normal phrase to separate",),
    }
    assert found.problems == 2 and found.pictures == 0
    old = found.phrases[-1]
    assert old.closest_normal == pytest.approx(np.cos(np.radians(1)), abs=1e-6) and old.false_alarms is None


def test_a_phrase_that_fits_good_pictures_better_than_the_normal_ones_is_named():
    pictures = [np.zeros((4, 4, 3), np.uint8)] * 4
    encoder = Words2D(DEGREES, [0, 10, 20, 75])  # only the last is closer to "bent" (25) than to the normal mean
    found = {one.phrase: one for one in check_pack(PromptPack.load(PLAIN), "x", encoder, pictures).phrases}
    assert found["bent x"].false_alarms == 0.25 and "fits 25% of the good pictures" in found["bent x"].problems[0]
    fits = np.cos(np.radians([100, 90, 80, 25]))
    assert found["bent x"].mean == pytest.approx(fits.mean(), abs=1e-6)
    assert found["bent x"].std == pytest.approx(fits.std(ddof=1), abs=1e-6)
    assert found["good x"].false_alarms is None and found["good x"].mean is not None


def test_a_single_normal_phrase_sets_no_limit():
    pack = PromptPack.load({"normal": ["good {}"], "anomalous": ["old {}"]})
    found = check_pack(pack, "x", Words2D(DEGREES))
    assert found.limit is None and found.phrases[0].closest_normal is None and not found.problems


def test_false_alarms_count_pictures_not_phrases():
    fits = torch.tensor([0.3, 0.1, 0.5])
    assert check.false_alarms(fits, torch.tensor([[0.2, 0.2], [0.2, 0.2], [0.9, 0.0]])) == pytest.approx(2 / 3)


# ---- words compared --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Folders of four good and three bad drawn pictures."""
    root, rng = tmp_path_factory.mktemp("drawn"), np.random.default_rng(5)
    for kind, count in (("good", 4), ("bad", 3)):
        (root / kind).mkdir()
        for index in range(count):
            picture = synthetic.sample(rng, 96, defective=kind == "bad").picture
            Image.fromarray(picture).save(root / kind / f"{index}.png")
    return root


def test_generic_words_and_the_packs_are_compared_on_the_same_pictures(drawn, tiny_encoder):
    good, bad = (sorted((drawn / kind).iterdir()) for kind in ("good", "bad"))
    generic, own = compare_words(PACK, "nut", tiny_encoder, good, bad)
    assert [one.words for one in (generic, own)] == ["winclip", "custom"]
    assert all(len(one.normals) == 4 and len(one.anomalous) == 3 for one in (generic, own))
    assert own.normals != generic.normals
    assert len(compare_words(PromptPack.load("winclip"), "nut", tiny_encoder, good)) == 1
    with pytest.raises(ValueError, match="comparing words takes at least 2"):
        compare_words(PACK, "nut", tiny_encoder, good[:1])


def test_the_difference_in_auroc_is_of_good_against_anomalous():
    assert Words("a", (0.1, 0.2, 0.6), (0.5, 0.9)).auroc == pytest.approx(5 / 6)
    assert Words("a", (0.1, 0.2), ()).auroc is None


def test_check_prints_a_table_a_count_and_the_comparison(drawn, tmp_path):
    PACK.save(tmp_path / "nut.toml")
    arguments = ["prompts", "check", tmp_path / "nut.toml", "--name", "nut", "--normals", drawn / "good"]
    done = run(*arguments, "--anomalous", drawn / "bad")
    assert done.exit_code == 0, done.output
    assert "nut with damage  <- says the same as 'damaged nut'" in done.stdout
    assert "\nnut  " in done.stdout and "AUROC" in done.stdout
    facts = json.loads(run(*arguments, "--json").stdout)
    assert {one["phrase"] for one in facts["phrases"]} == {*PACK.phrases("nut")[0], *PACK.phrases("nut")[1]}
    assert [one["auroc"] for one in facts["comparison"]] == [None] * 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["winclip"], "--name"),
        (["winclipp", "--name", "nut"], "winclip"),
        (["winclip", "--name", "nut", "--anomalous", "."], "--normals"),
        (["winclip", "--name", "nut", "--normals", "nosuch"], "nosuch"),
    ],
)
def test_check_says_in_one_sentence_what_is_wrong(arguments, said):
    done = run("prompts", "check", *arguments)
    assert done.exit_code == 2 and said in done.stderr and done.stderr.count("\n") == 1
