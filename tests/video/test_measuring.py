"""Figures of labelled videos: counted by hand, held scores, and a drawn belt measured through the command."""

import itertools
import json
import math

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("av", reason="PyAV is not installed: pip install 'vlad-ad[video]'")

import clips
from sklearn.metrics import roc_auc_score
from small_sets import brightness
from typer.testing import CliRunner

import vlad
from vlad.cli import app
from vlad.synthetic.defects import spoil
from vlad.video import belt
from vlad.video.measuring import Watched, figures, held, intervals, overlap, table, watched
from vlad.video.reading import frames
from vlad.video.scoring import Timing, score_video


def video(name, scores, labels, alarms=(), step=1.0):
    scores = np.asarray(scores, float)
    return Watched(name, scores, np.asarray(labels, bool), np.arange(len(scores)) * step, tuple(alarms))


def test_a_frame_has_the_score_of_the_last_scored_one_and_before_the_first_its():
    assert held([2, 5], [0.1, 0.9], 8).tolist() == [0.1, 0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9]


def test_micro_is_over_all_frames_and_macro_over_the_videos_that_hold_both():
    rng = np.random.default_rng(0)
    videos = [video(str(k), rng.normal(k, 1, 50), rng.random(50) < 0.3) for k in range(3)]
    videos.append(video("good", rng.normal(0, 1, 50), np.zeros(50)))
    found = figures(videos)
    scores, labels = (np.concatenate([getattr(one, key) for one in videos]) for key in ("scores", "labels"))
    assert found.micro == pytest.approx(roc_auc_score(labels, scores))
    assert found.macro == pytest.approx(np.mean([roc_auc_score(one.labels, one.scores) for one in videos[:3]]))
    assert found.both == 3 and found.frames == 200


def test_events_and_alarms_are_counted_as_by_hand():
    labels = np.zeros(100, bool)
    labels[10:20] = labels[50:60] = labels[90:95] = True
    found = figures([video("a", labels * 1.0, labels, alarms=[(12, 22), (30, 33), (50, 59)])])
    assert (found.events, found.found, found.alarms, found.right) == (3, 2, 3, 2)
    assert overlap((10, 20), (12, 22)) == pytest.approx(8 / 12)
    assert found.overlapping == pytest.approx((2 / 3, 2 / 3))
    assert found.delay == pytest.approx(1.0), "2 s and 0 s"
    assert found.per_hour == pytest.approx(3600 / (99 * 0.75))
    assert found.in_alarm == pytest.approx((3 + 4) / 75)


def test_what_cannot_be_measured_is_said():
    found = figures([video("good", np.arange(10), np.zeros(10))])
    assert math.isnan(found.micro) and math.isnan(found.delay) and found.per_hour == 0
    assert "| good | 10 | n/a | n/a (0) | n/a | 0 of 0 | n/a / n/a | 0 of 0 | 0.0 | 0.0 % | n/a |" in table(
        {"good": found}
    )


def test_intervals_are_over_videos_and_wider_where_videos_differ_more():
    rng = np.random.default_rng(0)
    labels = [rng.random(200) < 0.3 for _ in range(8)]
    alike = [video(str(k), one + rng.normal(0, 1, 200), one) for k, one in enumerate(labels)]
    unlike = [video(str(k), (4 * (k % 2)) * one + rng.normal(0, 1, 200), one) for k, one in enumerate(labels)]
    near, far = (intervals(videos, draws=200) for videos in (alike, unlike))
    assert near["micro"][0] <= figures(alike).micro <= near["micro"][1]
    assert far["macro"][1] - far["macro"][0] > 5 * (near["macro"][1] - near["macro"][0])
    assert intervals([video("good", np.arange(5), np.zeros(5))], draws=20)["micro"] is None


@pytest.fixture
def short(monkeypatch):
    plans = {"fit-1": belt.Plan(12, 1), "fit-2": belt.Plan(12, 2), "faults": belt.Plan(16, 4, faults=8)}
    plans |= {"fast": belt.Plan(6, 7, fast=(2, 4)), "light": belt.Plan(2, 5, light=0.15, shake=3)}
    monkeypatch.setattr(belt, "PLANS", plans)


def test_a_drawn_belt_has_its_faults_where_its_labels_say(short, small_encoder, tmp_path):
    faults, fast = belt.clips(tmp_path, ["faults", "fast"])
    assert faults.labels.any() and not faults.labels[:5].any() and len(faults.labels) == 16 * belt.RATE
    assert fast.labels.tolist() == [2 <= k / belt.RATE < 4 for k in range(6 * belt.RATE)]
    seen = watched(brightness(small_encoder), faults, Timing(every=1.0), threshold=1e9)
    assert (
        len(seen.scores) == 16 * belt.RATE
        and seen.times[-1] == pytest.approx(16 - 1 / belt.RATE, abs=0.05)
        and not seen.alarms
    )
    assert all(end > start for start, end in seen.events)


def test_a_fault_of_the_belt_is_large_enough_to_be_seen(monkeypatch):
    tries = []

    def noted(rng, scene):
        found = spoil(rng, scene)
        tries.append(int(found[1].sum()))
        return found

    monkeypatch.setattr(belt, "spoil", noted)
    scene, again = belt.product(3), 0
    for number in range(8):
        tries.clear()
        belt._part(np.random.default_rng(number), scene, faulty=True)
        assert tries[-1] >= belt.SEEN > max(tries[:-1], default=0)
        again += len(tries) > 1
    assert again, "no fault was drawn too small, so nothing was tried"


def test_the_belt_scores_the_same_in_every_kind_of_file(short, tiny_encoder, tmp_path):
    (drawn,) = belt.clips(tmp_path, ["faults"])
    shown = [(one.time, one.picture) for one in frames(drawn.source, every=0, end=6.0)]
    times, pictures = [time for time, _ in shown], [picture for _, picture in shown]
    uneven = [0.0, *(time + 0.05 * (k % 3 - 1) for k, time in enumerate(times[1:], 1))]
    sideways = clips.write(tmp_path / "side.mp4", [np.rot90(one) for one in pictures], fps=belt.RATE)
    lossless = {"codec": "ffv1", "fps": belt.RATE}
    files = {
        "plain": clips.write(tmp_path / "plain.mp4", pictures, fps=belt.RATE),
        "uneven": clips.write(tmp_path / "uneven.mp4", pictures, times=uneven, fps=belt.RATE),
        "turned": clips.turned(sideways, 90, tmp_path / "turned.mp4"),
        "ten bits": clips.write(tmp_path / "ten.mkv", pictures, pixels="yuv420p10le", **lossless),
        "damaged": clips.write(tmp_path / "hurt.mkv", pictures, options={"slicecrc": "1", "g": "1"}, **lossless),
    }
    content = bytearray(files["damaged"].read_bytes())
    content[len(content) // 2] ^= 0xFF
    files["damaged"].write_bytes(content)
    for k, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"frame_{k}.png")
    detector = vlad.load("patch_memory", encoder=tiny_encoder).fit(pictures[2::7])  # none of those that are scored
    found = {}
    for name, file in {**files, "pictures": str(tmp_path / "frame_*.png")}.items():
        lines = []
        timing = Timing(every=1.0, smooth=0, source_fps=belt.RATE if name == "pictures" else None)
        score_video(detector, file, timing=timing, progress=lambda line, *_, lines=lines: lines.append(line))
        # by its time; where times are others, by the number of the frame, which a lost one moves
        found[name] = {
            line["frame"] / belt.RATE if name == "uneven" else round(line["time"], 2): line["score"] for line in lines
        }
    assert len(found["plain"]) == 6
    for name, scores in found.items():
        shared = scores.keys() & found["plain"].keys()
        assert len(shared) >= (2 if name in ("uneven", "damaged") else 6), name
        others = [k for k in shared if abs(scores[k] - found["plain"][k]) >= 0.02]
        assert len(others) <= (name == "damaged"), (name, others)  # the damaged frame itself may be shown as it is


def test_a_belt_that_stops_and_one_with_short_events_are_labelled_where_it_happens(monkeypatch, tmp_path):
    plans = {"stops": belt.Plan(12, 8, still=(4, 6), missing=True)}
    plans |= {"short": belt.Plan(8, 9, marks=((0, 1), (3, 3.2), (7, 8)))}
    monkeypatch.setattr(belt, "PLANS", plans)
    stops, marks = belt.clips(tmp_path, ["stops", "short"])
    assert stops.labels.any() and not stops.labels.all()
    shown = [one.picture.astype(int) for one in frames(stops.source, every=0)]
    moved = [np.abs(a - b).mean() for a, b in itertools.pairwise(shown)]
    assert max(moved[21:28]) < 1 < min(moved[:18]), "it stands from 4 to 6 s"
    assert np.flatnonzero(marks.labels).tolist() == [0, 1, 2, 3, 4, 15, 35, 36, 37, 38, 39]
    red = [one.picture[belt.HEIGHT // 2 + 18, belt.WIDTH // 2 + 18] for one in frames(marks.source, every=0)]
    assert [bool(int(one[0]) - int(one[1]) > 100) for one in red] == marks.labels.tolist()


def test_the_command_learns_from_good_clips_and_gives_a_table_and_json(short, tmp_path):
    out = tmp_path / "belt.md"
    done = CliRunner().invoke(app, ["eval", "video", "belt", "--every", "3s", "--json", "--out", str(out)])
    assert done.exit_code == 0, done.output
    rows = out.read_text().splitlines()[2:]
    told = json.loads(done.stdout, parse_constant=pytest.fail)
    assert [row.split("|")[1].strip() for row in rows] == list(told) == ["faults", "fast", "light", "all"]
    assert told["all"]["frames"] == 24 * belt.RATE and told["light"]["micro"] is None
    assert "blocks of 10 s of 2 clips" in done.stderr


def test_the_command_refuses_what_it_cannot_do(tmp_path):
    for given, said in (
        (["belt", "--detector", "a.safetensors"], "give --method instead of --detector"),
        (["ped3:x"], "ped3 is no data set of videos; known: avenue"),
    ):
        failed = CliRunner().invoke(app, ["eval", "video", *given, "--name", "street"])
        assert failed.exit_code == 2 and said in failed.stderr, (failed.stdout, failed.stderr)
