"""Answers of an exam on disk: a killed run goes on, and answers of two settings are never mixed."""

import json

import pytest

from vlad.explain.exam import answers


def asked(seen):
    def ask(item):
        seen.append(item)
        return {"value": item * 2, "error": None if item != 3 else "broken"}

    return ask


def test_a_killed_run_goes_on_and_asks_what_failed_again(tmp_path):
    items, first, second = [(str(n), n) for n in range(6)], [], []
    lines = answers.answered(items[:4], asked(first), {"model": "m"}, tmp_path)
    with (tmp_path / "answers.jsonl").open("ab") as file:
        file.write(b'{"key": "4", "va')  # torn by the kill
    again = answers.answered(items, asked(second), {"model": "m"}, tmp_path)
    assert first == [0, 1, 2, 3] and second == [3, 4, 5]
    assert again[:3] == lines[:3] and [line["value"] for line in again] == [0, 2, 4, 6, 8, 10]
    written = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert written == again


def test_lines_are_on_disk_before_the_next_question_is_asked(tmp_path):
    def ask(item):
        written = (tmp_path / "answers.jsonl").read_text().splitlines()
        assert len(written) == item
        return {"error": None}

    answers.answered([(str(n), n) for n in range(4)], ask, {}, tmp_path)


def test_answers_of_other_settings_are_not_mixed(tmp_path):
    answers.answered([("0", 0)], asked([]), {"model": "m"}, tmp_path)
    with pytest.raises(ValueError, match='other settings \\(model was "m", now "n"\\)'):
        answers.answered([("0", 0)], asked([]), {"model": "n"}, tmp_path)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"no readable settings\.json"):
        answers.answered([("0", 0)], asked([]), {"model": "m"}, tmp_path)


def test_two_exams_do_not_write_into_one_folder(tmp_path):
    def ask(item):
        answers.answered([("0", 0)], asked([]), {}, tmp_path)

    with pytest.raises(RuntimeError, match="another run is writing"):
        answers.answered([("0", 0)], ask, {}, tmp_path)


def test_a_question_that_comes_twice_is_refused():
    with pytest.raises(ValueError, match="same key"):
        answers.answered([("0", 0), ("0", 1)], asked([]), {})
