"""A scored clip: lines with times, events with peaks to look at, and the same after a kill."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed: pip install 'vlad-ad[video]'")

import clips
from small_sets import brightness

from vlad.thresholds import Calibration
from vlad.video import scoring
from vlad.video.scoring import Timing, score_video

TIMING = Timing(every=0.5, smooth=0, gap=0.5)


def scene(second):
    """Dark, but bright from 2 to 4 s and from 6.0 to 6.4 s."""
    lit = 2 <= second < 4 or 6 <= second < 6.4
    picture = np.full((64, 96, 3), 60, np.uint8)
    if lit:
        picture[:32, :48] = 200
    return picture


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    pictures = [scene(k / 10) for k in range(80)]
    return clips.write(tmp_path_factory.mktemp("clip") / "belt.mp4", pictures)


@pytest.fixture
def detector(small_encoder):
    return brightness(small_encoder)


def lines(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def bounds(detector, clip):
    """A threshold between dark and bright frames."""
    scores = []
    score_video(detector, clip, timing=TIMING, progress=lambda line, *_: scores.append(line["score"]))
    return (min(scores) + max(scores)) / 2


def test_an_event_ends_half_way_down_to_what_was_calm_where_the_threshold_is_the_detectors_own():
    made = Calibration(0.8, "conformal", 3, scores=(0.1, 0.2, 0.3))
    detector = SimpleNamespace(threshold=0.8, calibration=made)
    assert TIMING.rule(detector, 0.8).off == pytest.approx(0.5)
    assert TIMING.rule(detector, 0.6).off == pytest.approx(0.3), "another threshold: half of it"
    assert TIMING.rule(SimpleNamespace(threshold=0.8, calibration=None), 0.8).off == pytest.approx(0.4)
    assert TIMING.rule(detector, None) is None


def test_lines_have_times_and_the_event_is_where_it_was_drawn(detector, clip, tmp_path):
    cut = bounds(detector, clip)
    done = score_video(detector, clip, tmp_path / "out", timing=TIMING, threshold=cut)
    found = lines(tmp_path / "out")
    assert [line["time"] for line in found] == pytest.approx([k / 2 for k in range(16)], abs=1e-6)
    assert found[1]["source"] == f"{clip}#t=0.500" and found[1]["frame"] == 5
    assert [(one.start, one.end) for one in done.events] == [(2.0, 3.5)], "the flash at 6 s is too short"
    assert [line["event"] for line in found] == [None] * 4 + [1] * 4 + [None] * 8
    told = json.loads((tmp_path / "out" / "events.jsonl").read_text())
    assert told["event"] == 1 and told["source"] == str(clip)
    x0, y0, x1, y1 = told["region"]["box"]
    assert (x0, y0) == (0, 0) and 30 <= x1 <= 66 and 20 <= y1 <= 48
    assert (tmp_path / "out" / "events" / "0001.png").is_file()
    page = (tmp_path / "out" / "timeline.html").read_text()
    assert "<h1>1 event</h1>" in page and "<script" not in page and page.count("data:image/jpeg") == 1


def test_a_short_event_counts_where_it_was_asked_for(detector, clip):
    short = Timing(every=0.5, smooth=0, gap=0.5, least=0)
    done = score_video(detector, clip, timing=short, threshold=bounds(detector, clip))
    assert [(one.start, one.end, one.id) for one in done.events] == [(2.0, 3.5, 1), (6.0, 6.0, 2)]


def test_without_a_threshold_there_are_lines_and_no_events(detector, clip, tmp_path):
    done = score_video(detector, clip, tmp_path / "out", timing=TIMING)
    assert done.frames == 16 and not done.events
    assert {line["verdict"] for line in lines(tmp_path / "out")} == {"uncalibrated"}
    assert "There is no threshold" in (tmp_path / "out" / "timeline.html").read_text()


def test_a_run_that_was_killed_ends_as_one_that_was_not(detector, clip, tmp_path):
    cut, even = bounds(detector, clip), Timing(every=0.5, smooth=1, gap=0.5)
    score_video(detector, clip, tmp_path / "whole", timing=even, threshold=cut)

    class Killed(Exception):
        pass

    def kill(line, done, total):
        if done == 6:
            raise Killed

    with pytest.raises(Killed):
        score_video(detector, clip, tmp_path / "cut", timing=even, threshold=cut, progress=kill)
    assert len(lines(tmp_path / "cut")) == 6
    scored = []
    done = score_video(
        detector, clip, tmp_path / "cut", timing=even, threshold=cut, resume=True, progress=lambda *a: scored.append(a)
    )
    assert done.frames == len(scored) == 10 and done.skipped == 6
    for name in ("results.jsonl", "events.jsonl", "timeline.html", "events/0001.png"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_other_settings_are_refused_when_going_on(detector, clip, tmp_path):
    score_video(detector, clip, tmp_path / "out", timing=TIMING)
    with pytest.raises(ValueError, match=r"video\.every was 0\.5, now 1"):
        score_video(detector, clip, tmp_path / "out", timing=Timing(every=1.0, smooth=0, gap=0.5), resume=True)
    with pytest.raises(FileExistsError, match="--resume"):
        score_video(detector, clip, tmp_path / "out", timing=TIMING)


def test_several_clips_count_their_events_on_and_a_broken_one_costs_itself_alone(detector, clip, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    sources = [clip, tmp_path / "broken.mp4", clips.write(tmp_path / "b.mp4", [scene(2 + k / 10) for k in range(20)])]
    done = score_video(detector, sources, tmp_path / "out", timing=TIMING, threshold=bounds(detector, clip))
    assert [(one.id, one.source.endswith("b.mp4")) for one in done.events] == [(1, False), (2, True)]
    assert [source for source, _ in done.failed] == [str(tmp_path / "broken.mp4")]
    assert [line["error"] is None for line in lines(tmp_path / "out")].count(False) == 1


def test_boxes_are_in_pixels_of_the_file_also_where_frames_were_shrunk(detector, tmp_path, monkeypatch):
    from vlad.video import reading

    picture = np.full((128, 192, 3), 60, np.uint8)
    picture[64:, 96:] = 200
    path = clips.write(tmp_path / "large.mp4", [picture] * 10)
    monkeypatch.setattr(reading, "LONGEST", 96)
    found = []
    score_video(detector, path, timing=TIMING, progress=lambda line, *_: found.append(line))
    assert found[0]["size"] == [128, 192] or found[0]["size"] == (128, 192)
    box = found[0]["regions"][0]["box"]
    assert box[2] == 192 and box[3] == 128 and box[0] > 48


def test_an_annotated_clip_has_the_scored_frames_at_their_times_and_a_red_rim_in_events(detector, clip, tmp_path):
    from vlad.video.reading import frames

    out = tmp_path / "out"
    score_video(detector, [clip, clip], out, timing=TIMING, threshold=bounds(detector, clip), video=True)
    drawn = list(frames(out / "annotated.mp4", every=0))
    assert [frame.time for frame in drawn] == pytest.approx([k / 2 for k in range(16)], abs=2e-3)
    red = [frame.picture[30, 94, 0] > frame.picture[30, 94, 2] + 60 for frame in drawn]
    assert [k for k, on in enumerate(red) if on] == [4, 5, 6, 7, 12], "the flash at 6 s was open while it lasted"
    assert (out / "annotated-2.mp4").is_file()
    with pytest.raises(ValueError, match="in a run that does not go on"):
        score_video(detector, clip, out, timing=TIMING, resume=True, video=True)


def test_a_method_that_scores_sets_is_refused(small_encoder, clip):
    import vlad

    with pytest.raises(TypeError, match="musc scores a set of pictures against each other"):
        score_video(vlad.load("musc", encoder=small_encoder), clip)


def test_lines_of_hours_of_an_open_event_are_not_held_back(detector, tmp_path):
    path = clips.write(tmp_path / "lit.mp4", [scene(3)] * 60)
    held, most = [], 0
    original = scoring.settled

    def watched(waiting, *rest):
        nonlocal most
        yield from original(waiting, *rest)
        most = max(most, len(waiting))

    scoring.settled = watched
    try:
        score_video(detector, path, timing=TIMING, threshold=1.0, progress=lambda line, *_: held.append(line))
    finally:
        scoring.settled = original
    assert len(held) == 12 and most <= 2
