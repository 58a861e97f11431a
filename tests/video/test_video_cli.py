"""Clips on the command line."""

import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed: pip install 'vlad-ad[video]'")

import clips
from typer.testing import CliRunner

from vlad.cli import app


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    rng = np.random.default_rng(0)
    quiet = [rng.integers(100, 120, (64, 64, 3), dtype=np.uint8) for _ in range(4)]
    odd = [np.where(np.arange(64)[:, None, None] < 30, 250, one).astype(np.uint8) for one in quiet]
    return clips.write(tmp_path_factory.mktemp("clip") / "belt.mp4", quiet + odd + quiet, fps=2)


def test_a_clip_is_scored_and_goes_on(clip, tmp_path):
    words = ["score", clip, "--name", "surface", "--every", "500ms", "--threshold", "0.01", "--out", tmp_path / "out"]
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert "12 frames scored" in done.stdout and "event 1: " in done.stdout
    assert (tmp_path / "out" / "timeline.html").is_file()
    again = run(*words, "--resume")
    assert again.exit_code == 0 and "0 frames scored" in again.stdout


def test_json_lines_have_times(clip):
    done = run("score", clip, "--name", "surface", "--from", "1s", "--to", "00:02", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["time"] for line in lines] == [1.0, 1.5]


def test_a_threshold_by_hand_that_nothing_reaches_is_no_missing_threshold(clip):
    done = run("score", clip, "--name", "surface", "--threshold", "9")
    assert done.exit_code == 0 and ", 0 events" in done.stdout, done.output
    assert "no threshold, so no events" in run("score", clip, "--name", "surface").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["belt.mp4", "part.png"], "clips have times and pictures have none"),
        (["belt.mp4", "--every", "soon"], "'soon' is no time; write 0.5s"),
        (["belt.mp4", "--threshold", "auto"], "--threshold auto is for a pile of pictures"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(words, said):
    done = run("score", *words, "--name", "surface")
    assert done.exit_code == 2 and said in done.stderr


def test_alarms_in_words_need_words(clip):
    done = run("score", clip, "--method", "patch_memory", "--alarm", "a box", "--normals", clip.parent)
    assert done.exit_code == 2
    done = run("score", clip, "--name", "belt", "--alarm", "a white stripe", "--threshold", "0.01", "--json")
    assert done.exit_code == 0 and "a white stripe" in done.stderr


def test_a_watch_says_its_events_as_json_and_ends_with_the_file(clip):
    command = [sys.executable, "-m", "vlad.cli", "watch", str(clip), "--name", "surface", "--json", "--every", "0.2s"]
    done = subprocess.run(
        [*command, "--threshold", "0.01", "--smooth", "0"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["state"] for line in lines if "state" in line][:1] == ["open"]
    assert [line["state"] for line in lines if "state" in line][-1:] == ["closed"]


@pytest.mark.slow
def test_a_watch_that_was_killed_goes_on_with_whole_events_and_further_numbers(clip, tmp_path):
    out = tmp_path / "out"
    flags = ["--name", "surface", "--threshold", "0.01", "--every", "100ms", "--smooth", "0", "--gap", "500ms"]
    words = [sys.executable, "-m", "vlad.cli", "watch", str(clip), *flags, "--min-event", "0s", "--out", str(out)]
    subprocess.run(words, check=True, capture_output=True)
    watching = subprocess.Popen([*words, "--json"], stdout=subprocess.PIPE)
    assert watching.stdout.readline()
    watching.kill()
    watching.wait()
    with (out / "events.jsonl").open("ab") as file:
        file.write(b'{"event": 9, "sta')  # what a kill within a write leaves
    subprocess.run(words, check=True, capture_output=True)
    numbers = [json.loads(line)["event"] for line in (out / "events.jsonl").read_text().splitlines()]
    assert len(numbers) >= 2 and numbers == sorted(set(numbers)) and 9 not in numbers
