"""A camera as it goes: the newest frame alone, alarms that open and close, a camera that is lost, frozen or dark."""

import threading
import time

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed: pip install 'vlad-ad[video]'")

import clips
from small_sets import brightness

import vlad
from vlad.images import ImageError
from vlad.video import watching
from vlad.video.events import whole_events
from vlad.video.reading import Frame
from vlad.video.scoring import Timing
from vlad.video.watching import watch


def frame(index, grey, per_second=20):
    picture = np.full((32, 32, 3), grey, np.uint8)
    picture[0, 0] = index % 250  # no two frames are the same bytes
    return Frame(index / per_second, index, picture, f"camera#t={index / per_second:.3f}", (32, 32))


class Played:
    """Frames in real time, 20 a second."""

    def __init__(self, greys, per_second=20):
        self.greys, self.per_second = greys, per_second

    def __iter__(self):
        began = time.monotonic()
        for index, grey in enumerate(self.greys):
            time.sleep(max(0, index / self.per_second - (time.monotonic() - began)))
            yield frame(index, grey, self.per_second)


@pytest.fixture
def detector(small_encoder):
    return brightness(small_encoder)


def cut_of(detector):
    dark, bright = detector.predict([frame(0, 60).picture, frame(0, 200).picture])
    return (dark.score + bright.score) / 2


def test_an_alarm_opens_while_it_lasts_and_closes_after(detector):
    greys = [60] * 20 + [200] * 30 + [60] * 40
    timing = Timing(every=0.1, smooth=0, gap=0.5, least=0.3)
    said = list(watch(detector, Played(greys), timing=timing, threshold=cut_of(detector)))
    kinds = [one.kind for one in said if one.kind in ("opened", "closed")]
    assert kinds == ["opened", "closed"]
    opened, closed = (one.line for one in said if one.kind in ("opened", "closed"))
    assert opened["state"] == "open" and closed["state"] == "closed" and opened["event"] == closed["event"] == 1
    assert 0.9 <= closed["start"] <= 1.6 and 2.0 <= closed["end"] <= 2.6
    lines = [one.line for one in said if one.kind == "line"]
    assert said.index(next(one for one in said if one.kind == "opened")) < len(said) - 10, "it is said at once"
    assert {"clock", "latency", "dropped", "time", "smoothed", "event"} <= set(lines[0])


def test_a_scorer_that_is_too_slow_drops_frames_and_is_never_late(detector, monkeypatch):
    original = type(detector).stream

    def slow(self, *args, **options):
        time.sleep(0.2)
        yield from original(self, *args, **options)

    monkeypatch.setattr(type(detector), "stream", slow)
    lines = [one.line for one in watch(detector, Played([60] * 60), timing=Timing(every=0)) if one.kind == "line"]
    assert lines[-1]["dropped"] >= 30
    assert sorted(line["latency"] for line in lines)[len(lines) // 2] < 0.6, "a queue would be seconds behind"
    assert lines[-1]["time"] > 2.0


def test_how_late_lines_were_is_said_at_the_end(detector):
    said = list(watch(detector, Played([60] * 20), timing=Timing(every=0.1)))
    lines, last = [one.line for one in said if one.kind == "line"], said[-1]
    assert last.kind == "watched" and last.line["frames"] == len(lines) and last.line["dropped"] == lines[-1]["dropped"]
    late = [line["latency"] for line in lines]
    assert last.line["slowest"] == max(late) and last.line["latency"] == pytest.approx(np.mean(late), abs=1e-3)


@pytest.mark.slow
def test_a_file_at_its_own_speed_is_judged_within_two_of_its_frames(tiny_encoder, tmp_path):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (270, 480, 3), dtype=np.uint8) for _ in range(40)]
    path = clips.write(tmp_path / "a.mp4", pictures, fps=4)
    belt = vlad.load("patch_memory", encoder=tiny_encoder).fit(pictures[:6])
    took = []
    for picture in pictures[:5]:
        began = time.monotonic()
        belt.predict(picture)
        took.append(time.monotonic() - began)
    late = [one.line["latency"] for one in watch(belt, str(path), timing=Timing(every=0.25)) if one.kind == "line"]
    busy = 1.5 * np.median(took) + 0.25  # what a machine that is busy otherwise must keep at least: no queue grows
    assert len(late) >= 5 and np.median(late) <= max(2 * 0.25, busy)


def test_a_frozen_and_a_dark_camera_are_said_once(detector, monkeypatch):
    monkeypatch.setattr(watching, "FROZEN", 0.5)
    still = np.full((32, 32, 3), 90, np.uint8)

    class Still:
        def __iter__(self):
            for index in range(30):
                time.sleep(0.02)
                yield Frame(index / 20, index, still if index < 20 else still * 0, "camera", (32, 32))

    said = [one.line["camera"] for one in watch(detector, Still(), timing=Timing(every=0)) if one.kind == "camera"]
    assert said == ["frozen", "dark"]


def test_a_camera_that_is_lost_is_opened_again_and_its_event_closed(detector, monkeypatch):
    opened = []

    def reopened(self):
        opened.append(self.name)
        if len(opened) in (2, 3):
            raise ImageError("no answer")
        yield from Played([200] * 20)

    waits = []
    monkeypatch.setattr(watching.Live, "__iter__", reopened)
    timing, said = Timing(every=0.1, smooth=0, least=0), []
    for one in watch(detector, "rtsp://me:secret@cam/1", timing=timing, threshold=cut_of(detector), pause=waits.append):
        said.append(one)
        if len(opened) == 4 and one.kind == "closed":
            break
    assert waits[:3] == [1, 2, 4]
    assert [one.line["reason"] for one in said if one.kind == "closed"] == ["gap", "gap"]
    assert [one.line["event"] for one in said if one.kind == "closed"] == [1, 2]
    assert all("secret" not in str(one.line) for one in said)


def test_it_stops_when_its_time_is_over_and_closes_what_is_open(detector):
    began = time.monotonic()
    said = list(watch(detector, Played([200] * 400), timing=Timing(every=0.1, smooth=0), threshold=1.0, until=1.0))
    assert time.monotonic() - began < 8
    assert said[-2].kind == "closed" and said[-2].line["reason"] == "stopped" and said[-1].kind == "watched"


def test_a_file_is_played_at_its_own_speed(detector, tmp_path):
    path = clips.write(tmp_path / "a.mp4", clips.numbered(20), fps=10)
    began = time.monotonic()
    lines = [one.line for one in watch(detector, str(path), timing=Timing(every=0.2)) if one.kind == "line"]
    assert time.monotonic() - began >= 1.8
    assert 3 <= len(lines) <= 11 and lines[-1]["time"] >= 1.0


def test_a_watch_counts_on_from_the_events_that_are_whole(detector, tmp_path):
    file = tmp_path / "events.jsonl"
    file.write_text('{"event": 1, "state": "closed"}\n{"event": 2, "state": "closed"}\n{"event": 3, "sta')
    assert [line["event"] for line in whole_events(file)] == [1, 2] and not whole_events(tmp_path / "none")
    timing = Timing(every=0.1, smooth=0, least=0)
    said = list(watch(detector, Played([200] * 10), timing=timing, threshold=cut_of(detector), after=2))
    assert {one.line["event"] for one in said if one.kind in ("opened", "closed")} == {3}


def test_a_file_that_is_not_there_is_an_error_and_not_a_wait(detector):
    with pytest.raises(ImageError, match="no such file"):
        list(watch(detector, "no.mp4"))


def test_a_method_that_scores_sets_is_refused(small_encoder):
    with pytest.raises(TypeError, match="watch with another method"):
        next(watch(vlad.load("musc", encoder=small_encoder), "camera:0"))


def test_a_watch_without_any_time_ends_at_once(detector):
    assert not list(watch(detector, Played([60] * 20), until=0.0))


def test_decoding_has_ended_when_the_watch_has(detector):
    # A program that ended while its thread decoded was aborted: "terminate called without an active exception".
    stop, before = threading.Event(), threading.active_count()
    for said in watch(detector, Played([100] * 1000), timing=Timing(every=0), stop=stop):
        if said.kind == "line":
            assert threading.active_count() > before
            stop.set()
    assert threading.active_count() == before
