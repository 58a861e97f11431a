"""A language model beside a clip: asked once an event from three views, of rules now and then, never in the way."""

import json
import time

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed: pip install 'vlad-ad[video]'")

import chat_stub
import clips
from scripted_reasoner import Scripted, last_words
from small_sets import brightness
from typer.testing import CliRunner

from vlad.cli import app
from vlad.explain.reasoners.protocol import Answer, Caps
from vlad.explain.rules import read_rules
from vlad.video.reading import Frame
from vlad.video.scoring import Timing, score_video
from vlad.video.watching import watch
from vlad.video.witness import Around, Witness, sheet

TIMING = Timing(every=0.5, smooth=0, gap=0.5)


def scene(second, lit=(2, 5)):
    """Dark; from 2 to 5 s the upper left is bright, brightest at 3.5 s."""
    picture = np.full((64, 96, 3), 60, np.uint8)
    if lit[0] <= second < lit[1]:
        picture[:32, :48] = 200 + (40 if second == 3.5 else 0)
    return picture


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return clips.write(tmp_path_factory.mktemp("clip") / "belt.mp4", [scene(k / 2) for k in range(16)], fps=2)


@pytest.fixture
def detector(small_encoder):
    return brightness(small_encoder)


def cut_of(detector):
    dark, bright = detector.predict([scene(0), scene(2)])
    return (dark.score + bright.score) / 2


def test_an_event_is_asked_about_once_from_three_views_whose_answers_are_weighted(detector, clip, tmp_path):
    shares = iter((1.0, 0.5, 0.0))
    model = Scripted(lambda question: {"yes": (share := next(shares)), "no": 1 - share})
    how = {"timing": TIMING, "threshold": cut_of(detector), "witness": Witness(model, "belt")}
    done = score_video(detector, clip, tmp_path / "out", **how)
    (event,) = done.events
    assert event.confirmed == pytest.approx(0.6 * 1 + 0.3 * 0.5 + 0.1 * 0)
    whole, position, places = (question.pictures[0] for question in model.asked)
    assert len(model.asked) == 3 and all(last_words(one).startswith("The pictures show: belt") for one in model.asked)
    assert whole[10, 10].mean() > 220, "the loudest frame"
    assert position[10, 10].mean() > 200 and position[60, 90].mean() < 20, "bright where the map is"
    assert places.shape[0] < places.shape[1] and places[5, 5].mean() > 150
    line = json.loads((tmp_path / "out" / "events.jsonl").read_text())
    assert line["confirmed"] == event.confirmed and line["broken"] == []
    assert "confirmed 0.75" in (tmp_path / "out" / "timeline.html").read_text()
    again = score_video(detector, clip, tmp_path / "out", resume=True, **how)
    assert again.events[0].confirmed == event.confirmed and len(model.asked) == 3, "not asked again"


def test_scores_and_events_are_the_same_with_a_reasoner_that_fails(detector, clip, tmp_path):
    broken = Scripted(lambda question: Answer(finish="error", error="it is down", code="reasoner_failed"))
    witness = Witness(broken, rules=read_rules(["normal: it is dark"]), every=1.0)
    how = {"timing": TIMING, "threshold": cut_of(detector)}
    score_video(detector, clip, tmp_path / "alone", **how)
    done = score_video(detector, clip, tmp_path / "asked", witness=witness, **how)
    assert done.events[0].confirmed is None and witness.errors == ["it is down"]
    for name in ("results.jsonl", "events.jsonl"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "asked" / name).read_bytes()


def test_a_reasoner_that_may_see_crops_alone_is_shown_the_place_alone(detector, clip):
    model = Scripted(lambda question: "yes", Caps(option_probs=True, send="crops"))
    done = score_video(detector, clip, timing=TIMING, threshold=cut_of(detector), witness=Witness(model))
    assert len(model.asked) == 1 and "one place at four moments" in model.asked[0].parts[0]
    assert done.events[0].confirmed == pytest.approx(0.9 + 0.1 / 3, abs=0.05)


def test_rules_are_asked_so_often_and_the_majority_of_three_counts(detector, clip, tmp_path):
    model = Scripted(lambda question: "no" if question.pictures[0][10, 10].mean() > 150 else "yes")
    witness = Witness(model, "belt", read_rules(["normal: the belt is empty", "ignore: dust"]), every=1.0)
    lines = []
    score_video(detector, clip, timing=TIMING, witness=witness, progress=lambda line, *_: lines.append(line))
    said = {line["time"]: line["rules"] for line in lines if "rules" in line}
    assert list(said) == [0, 1, 2, 3, 4, 5, 6, 7] and len(model.asked) == 8
    assert [one["broken"] for one in said.values()] == [[], [], ["n1"], ["n1"], ["n1"], [], [], []]
    assert [one["majority"] for one in said.values()] == [False, False, False, True, True, True, False, False]
    assert said[2]["smoothed"] == pytest.approx(1 / (1 + 0.67 + 0.67**2))


def test_the_window_round_the_peak_is_short_thin_and_holds_the_peak():
    def frame(time):
        return Frame(time, 0, np.full((8, 8, 3), int(time * 10) % 250, np.uint8), "", (8, 8))

    around = Around(2.0)
    values = [10 - abs(k / 25 - 10) for k in range(500)]
    for k, value in enumerate(values):
        around(frame(k / 25), value, loudest=k > 100 and value > max(values[100:k], default=0))
        assert len(around.recent) <= 13 and len(around.kept) <= 26
    times = [one.time for one, _ in around.kept]
    assert min(times) >= 9 and max(times) <= 11 and 10.0 in times
    assert len(around.four()) == 4 and any(picture[0, 0, 0] == 100 for picture in around.four())
    short = Around(2.0)
    short(frame(1), 1.0, loudest=True)
    assert len(short.four()) == 4


def test_the_sheet_is_cut_at_the_border_and_from_shrunk_frames():
    pictures = [np.full((50, 100, 3), 40 * k, np.uint8) for k in range(4)]
    made = sheet(pictures, (0, 0, 100, 100), (100, 200))
    assert made.shape[0] < made.shape[1] and [made[5, 5, 0], made[5, -5, 0], made[-5, 5, 0], made[-5, -5, 0]] == [
        0,
        40,
        80,
        120,
    ]
    assert sheet(pictures, (199, 99, 200, 100), (100, 200)).size


def test_a_watch_never_waits_for_the_reasoner_and_says_its_answer_later(detector):
    def slow(question):
        time.sleep(0.4)
        return "yes"

    class Played:
        def __iter__(self):
            for k in range(60):
                time.sleep(0.05)
                picture = scene(0, (0, 1) if 10 <= k < 25 else (9, 9)).copy()
                picture[0, 0] = k
                yield Frame(k / 20, k, picture, f"c#t={k / 20:.3f}", (64, 96))

    timing, witness = Timing(every=0.1, smooth=0, gap=0.2), Witness(Scripted(slow))
    said = list(watch(detector, Played(), timing=timing, threshold=cut_of(detector), witness=witness))
    kinds = [one.kind for one in said if one.kind != "line"]
    assert kinds == ["opened", "closed", "answered", "watched"]
    answered = next(one.line for one in said if one.kind == "answered")
    assert answered["state"] == "answered" and answered["confirmed"] > 0.9 and answered["event"] == 1
    closed = [one.kind for one in said].index("closed")
    assert sum(one.kind == "line" for one in said[closed:]) >= 5, "it went on while the model thought"


def test_the_command_asks_a_server_about_events_and_rules(clip, tmp_path):
    def answer(request):
        seen = chat_stub.seen_quarter(request)
        return chat_stub.reply(chat_stub.said(seen if seen else "A"))

    rules = tmp_path / "rules.txt"
    rules.write_text("normal: nothing lies on it\n")
    with chat_stub.serving(answer) as server:
        words = ["score", str(clip), "--name", "belt", "--threshold", "0", "--out", str(tmp_path / "out")]
        words += ["--explain", "--rules", str(rules), "--rules-every", "4s", "--reasoner"]
        done = CliRunner().invoke(app, [*words, f"openai:stub@{server.url}"])
    assert done.exit_code == 0, done.output
    assert "confirmed 1.00" in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [line["time"] for line in lines if "rules" in line] == [0, 4]


def test_the_command_says_what_is_missing(clip):
    server = ["--reasoner", "openai:m@http://127.0.0.1:9/v1"]
    for words, said in (
        (["--explain", "--json"], "events are explained by a language model: --reasoner"),
        (["--explain", "--json", *server, "--rules-every", "1s"], "give them with"),
        (server, "ask for them with --explain"),
    ):
        done = CliRunner().invoke(app, ["score", str(clip), "--name", "belt", *words])
        assert done.exit_code == 2 and said in done.stderr, done.stderr


def test_rules_are_drawn_from_a_good_clip_and_read_again(clip, tmp_path):
    def answer(request):
        if seen := chat_stub.seen_quarter(request):
            return chat_stub.reply(chat_stub.said(seen))
        rules = json.dumps({"normal": ["the belt is empty"], "abnormal": ["a box lies on it"]})
        return chat_stub.reply(chat_stub.said(rules if "Write rules" in chat_stub.words(request) else "an empty belt"))

    with chat_stub.serving(answer) as server:
        words = ["prompts", "rules", "--name", "belt", "--normals", str(clip), "--out", str(tmp_path / "rules.txt")]
        done = CliRunner().invoke(app, [*words, "--reasoner", f"openai:stub@{server.url}"])
    assert done.exit_code == 0, done.output
    assert [rule.text for rule in read_rules(tmp_path / "rules.txt")] == ["the belt is empty", "a box lies on it"]


def test_a_moment_of_a_clip_is_explained_and_without_a_time_the_loudest(clip):
    done = CliRunner().invoke(app, ["explain", str(clip), "--at", "3.2s", "--name", "belt", "--json"])
    assert done.exit_code == 0, done.stderr
    assert "belt.mp4 at 3.500 s" in done.stderr and json.loads(done.stdout)["image"]["width"] == 96
    done = CliRunner().invoke(app, ["explain", str(clip), "--name", "belt", "--json"])
    assert done.exit_code == 0 and " s\n" in done.stderr
    for words, said in ((["--at", "9s"], "lies behind the end"), (["--at", "soon"], "'soon' is no time")):
        done = CliRunner().invoke(app, ["explain", str(clip), "--name", "belt", *words])
        assert done.exit_code == 2 and said in done.stderr
    done = CliRunner().invoke(app, ["explain", "part.png", "--name", "belt", "--at", "1s"])
    assert done.exit_code == 2 and "--at is a time in a clip" in done.stderr
