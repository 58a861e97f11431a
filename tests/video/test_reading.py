"""Frames come at their true times, upright and in eight bits, and what cannot be read is said in one sentence."""

import importlib.util
import itertools
import random
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed: pip install 'vlad-ad[video]'")

import clips
from PIL import Image

from vlad.images import ImageError
from vlad.video import reading
from vlad.video.reading import Damage, frames, spread


def times(source, **options):
    return [round(frame.time, 3) for frame in frames(source, **options)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """40 frames at 10 a second."""
    return clips.write(tmp_path_factory.mktemp("clip") / "a.mp4", clips.numbered(40))


def test_one_frame_is_taken_for_each_stretch(clip):
    found = list(frames(clip, every=0.5))
    assert [round(one.time, 3) for one in found] == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]
    assert [clips.number_of(one.picture) for one in found] == [0, 5, 10, 15, 20, 25, 30, 35]
    assert found[1].source == f"{clip}#t=0.500" and found[1].size == (64, 96) and found[1].index == 5


def test_zero_takes_all_frames_and_bounds_hold(clip):
    assert len(times(clip, every=0)) == 40
    assert times(clip, every=0, start=1.05, end=1.4) == [1.1, 1.2, 1.3]
    assert [clips.number_of(one.picture) for one in frames(clip, every=0, start=2.55, end=2.7)] == [26]


def test_a_variable_rate_is_read_by_its_times(tmp_path):
    at = [0, 0.04, 0.08, 0.9, 0.95, 2.3, 2.31, 2.4]
    path = clips.write(tmp_path / "v.mp4", clips.numbered(8), times=at)
    assert times(path, every=0) == pytest.approx(at, abs=2e-3)
    assert times(path, every=0.5) == pytest.approx([0, 0.9, 2.3], abs=2e-3)


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_rotated_clip_is_upright(tmp_path, turn):
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:32, :48] = 255  # bright at the upper left
    path = clips.write(tmp_path / "plain.mp4", [picture] * 3)
    first = next(frames(clips.turned(path, turn, tmp_path / "turned.mp4")))
    expected = np.rot90(picture, -turn // 90)
    assert first.picture.shape == expected.shape and first.size == expected.shape[:2]
    assert np.abs(first.picture.astype(int) - expected).mean() < 8


def test_ten_bits_become_eight(tmp_path):
    pictures = clips.numbered(4)
    path = clips.write(tmp_path / "ten.mkv", pictures, codec="ffv1", pixels="yuv420p10le")
    found = list(frames(path, every=0))
    assert found[0].picture.dtype == np.uint8
    assert [clips.number_of(one.picture) for one in found] == [0, 1, 2, 3]


def test_a_frame_larger_than_anything_looks_at_is_shrunk_and_keeps_its_size(tmp_path):
    path = clips.write(tmp_path / "4k.mp4", [np.full((2160, 3840, 3), 90, np.uint8)] * 2)
    first = next(frames(path))
    assert first.size == (2160, 3840) and max(first.picture.shape) == reading.LONGEST


def test_a_damaged_packet_costs_its_own_frames_alone(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (64, 96, 3), dtype=np.uint8) for _ in range(100)]
    path = clips.write(tmp_path / "d.mkv", pictures, codec="ffv1", options={"slicecrc": "1"})
    content, flips = bytearray(path.read_bytes()), random.Random(1)
    for _ in range(5):
        content[flips.randrange(len(content) // 10, len(content) * 9 // 10)] ^= 0xFF
    path.write_bytes(content)
    damage = Damage()
    found = list(frames(path, every=0, damage=damage))
    assert len(found) >= 80
    assert all(a.time < b.time for a, b in itertools.pairwise(found))
    assert bool(damage.notes) == (damage.damaged > 0)


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("no.mp4", lambda path: None, r"no\.mp4: no such file; check the path"),
        ("empty.mp4", lambda path: path.write_bytes(b""), r"empty\.mp4: empty or no video file"),
        ("text.avi", lambda path: path.write_text("hello" * 100), r"text\.avi: empty or no video file"),
        ("sound.mp4", clips.sound, r"sound\.mp4: holds no video, only audio"),
    ],
)
def test_what_is_no_video_is_named(tmp_path, name, make, said):
    make(tmp_path / name)
    with pytest.raises(ImageError, match=said):
        list(frames(tmp_path / name))


def test_a_recording_that_was_cut_off_is_named(clip, tmp_path):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    with pytest.raises(ImageError, match=r"its index is missing \(a recording that was cut off\?\)"):
        list(frames(cut))


def test_pictures_are_a_sequence_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 1, 2):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / f"frame_{number}.png")
    found = list(frames(tmp_path, every=0, source_fps=4))
    assert [int(one.picture.mean()) for one in found] == [1, 2, 9, 10]
    assert [one.time for one in found] == [0, 0.25, 0.5, 0.75]
    with pytest.raises(ValueError, match="pictures have no times; say how many a second with --source-fps"):
        list(frames(tmp_path))


def test_times_that_are_none_are_refused(clip):
    with pytest.raises(ValueError, match="every is -1"):
        frames(clip, every=-1)
    with pytest.raises(ValueError, match=r"--from 00:01:00 lies behind the end of .*a\.mp4 \(00:00:03\)"):
        list(frames(clip, start=60))
    with pytest.raises(ValueError, match="holds nothing"):
        frames(clip, start=2, end=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0.5s", 0.5), (".25s", 0.25), ("500ms", 0.5), ("2", 2), ("2m", 120), ("1:02:03.5", 3723.5), ("00:10", 10)],
)
def test_a_time_is_read_as_people_write_it(text, expected):
    assert reading.seconds(text) == expected


@pytest.mark.parametrize("text", ["", "-1s", "half", "1:2:3:4", "1s2"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match="is no time"):
        reading.seconds(text)


def test_a_password_is_not_shown():
    assert reading.safe("rtsp://user:secret@cam/1") == "rtsp://user:***@cam/1"


def test_a_camera_that_is_not_there_is_named():
    with pytest.raises(ImageError, match=r"camera:77: cannot be opened .*; cameras here: "):
        next(frames("camera:77"))


def test_without_pyav_the_extra_is_named():
    code = (
        "import sys; sys.modules['av'] = None\n"
        "from vlad.video.reading import frames\n"
        "try: next(iter(frames('a.mp4')))\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == 'video needs PyAV: pip install "vlad-ad[video]"'


@pytest.mark.skipif(importlib.util.find_spec("resource") is None, reason="this system does not say what it holds")
def test_a_long_clip_is_read_in_constant_memory(tmp_path):
    path = clips.write(tmp_path / "long.mp4", clips.numbered(40, (180, 320)) * 75, fps=25)
    code = (
        "import resource, sys\nfrom vlad.video.reading import frames\n"
        "held = []\n"
        "for frame in frames(sys.argv[1], every=0):\n"
        "    if frame.index in (300, 2900): held.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        "print(held[1] - held[0])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120)
    assert int(done.stdout) < 8_000, done.stderr  # kB


def test_frames_for_rules_are_spread_over_all_clips_and_far_apart(tmp_path):
    a = clips.write(tmp_path / "a.mp4", clips.numbered(40), times=[k for k in range(40)], fps=1)
    b = clips.write(tmp_path / "b.mp4", clips.numbered(12), times=[k for k in range(12)], fps=1)
    assert [clips.number_of(one) for one in spread([str(a)], 3)] == [0, 20, 30]
    assert [clips.number_of(one) for one in spread([str(a)], 10)] == [0, 10, 20, 30]
    assert [clips.number_of(one) for one in spread([str(a), str(b)], 4)] == [0, 20, 0, 10]


def test_a_clip_that_is_left_early_does_not_hang(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (270, 480, 3), dtype=np.uint8) for _ in range(40)]
    path = clips.write(tmp_path / "a.mp4", pictures)
    script = f"from vlad.video.reading import frames\nfor k in range(15): next(frames({str(path)!r}, every=0))"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
