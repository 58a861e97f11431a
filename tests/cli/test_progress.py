"""Progress of long runs where standard error is no terminal: lines, not too many, with what is left."""

import pytest

from vlad.cli import progress
from vlad.cli.progress import ProgressBar


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def lines(capsys):
    out, err = capsys.readouterr()
    assert out == "", "standard output belongs to the results"
    return err.splitlines()


def test_a_line_comes_every_half_minute_with_the_time_left_at_the_pace_of_the_stage(clock, capsys):
    with ProgressBar("pictures") as show:
        for done in range(1, 101):
            clock[0] += 1
            show("", done, 100)
    assert lines(capsys) == [
        "31 of 100 pictures, 69 s left",
        "62 of 100 pictures, 38 s left",
        "93 of 100 pictures, 7 s left",
    ]


def test_what_a_run_did_before_does_not_count_for_its_pace(clock, capsys):
    with ProgressBar("pictures") as show:
        for done in range(901, 1001):
            clock[0] += 40
            show("", done, 1000)
            break
        clock[0] += 40
        show("", 902, 1000)
    assert lines(capsys)[-1] == "902 of 1000 pictures, 3920 s left"


def test_a_stage_of_its_own_is_timed_for_itself_and_ends_with_a_line_where_asked(clock, capsys):
    with ProgressBar("pictures", stages=True) as show:
        clock[0] += 5
        show("bolt", 1, 1)
        clock[0] += 1
        show("nut", 1, 2)
        clock[0] += 1
        show("nut", 2, 2)
    assert lines(capsys) == ["bolt: 1 of 1, 0 s left", "nut: 2 of 2, 0 s left"]


def test_a_total_that_is_not_known_is_left_out_and_quiet_says_nothing(clock, capsys):
    for quiet in (False, True):
        with ProgressBar("pictures", quiet=quiet) as show:
            clock[0] += 31
            show("pairs", 7, 0)
    assert lines(capsys) == ["pairs: 7"]
