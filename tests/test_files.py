"""Files written whole, what killed writers leave, and cells of tables."""

import os
import subprocess
import sys

import pytest

from vlad.files import cell, write_whole


def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_killed_writers_of_this_file_left_is_deleted_and_nothing_else(tmp_path):
    dead = gone()
    left = [f".a.txt.{dead}-0123abcd", f".a.txt.{dead}-ffffffff"]
    others = [f".b.txt.{dead}-0123abcd", f".a.txt.{os.getpid()}-0123abcd", f".a.txt.{dead}", f"a.txt.{dead}-0123abcd"]
    for name in (*left, *others):
        (tmp_path / name).write_text("half")
    write_whole(tmp_path / "a.txt", b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "a.txt"])


def test_a_file_that_a_writer_of_another_machine_holds_stays(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    held = tmp_path / f".a.txt.{gone()}-0123abcd"
    with held.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write_whole(tmp_path / "a.txt", b"whole")
        assert held.exists()
    write_whole(tmp_path / "a.txt", b"whole")
    assert not held.exists()


def test_a_link_that_is_called_like_a_leftover_is_not_followed(tmp_path):
    (tmp_path / "own.txt").write_text("kept")
    (tmp_path / f".a.txt.{gone()}-0123abcd").symlink_to(tmp_path / "own.txt")
    write_whole(tmp_path / "a.txt", b"whole")
    assert (tmp_path / "own.txt").read_text() == "kept"


@pytest.mark.parametrize("value", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1"])
def test_a_text_that_a_spreadsheet_would_compute_gets_an_apostrophe(value):
    assert cell(value) == f"'{value}"


@pytest.mark.parametrize("value", [-1.5, None, "a=1", "", 3])
def test_other_values_stay_as_they_are(value):
    assert cell(value) is value
