"""Rule files: what a line may hold, and which mistakes are named."""

import pytest

from vlad.explain.case import Rule
from vlad.explain.rules import read_rules


def test_rules_are_numbered_by_kind_and_tags_are_taken_out(tmp_path):
    file = tmp_path / "rules.txt"
    file.write_text(
        "# screws\n\nnormal: all screws are there [count: screw == 4]\nAbnormal: rust [region: upper  LEFT]\n"
        "ignore: fingerprints\nabnormal: a dent\ncritical: a crack\n"
    )
    assert (
        read_rules(file)
        == read_rules(str(file))
        == (
            Rule("n1", "normal", "all screws are there", None, ("screw", 4)),
            Rule("a1", "abnormal", "rust", "upper left"),
            Rule("i1", "ignore", "fingerprints"),
            Rule("a2", "abnormal", "a dent"),
            Rule("c1", "critical", "a crack"),
        )
    )


def test_rules_may_be_lines_dicts_or_a_text():
    wanted = (Rule("n1", "normal", "clean"), Rule("a1", "abnormal", "rust", "centre"))
    assert read_rules(["normal: clean", "abnormal: rust [region: center]"]) == wanted
    assert read_rules("normal: clean\nabnormal: rust [region: centre]") == wanted
    assert read_rules([{"kind": "normal", "text": "clean"}, {"kind": "abnormal", "text": "rust", "region": "centre"}])
    assert read_rules(wanted) == wanted and read_rules(None) == ()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no rust", "line 2: a rule begins with normal:, abnormal:, ignore:, critical:"),
        ("forbidden: rust", "got 'forbidden: rust'"),
        ("normal: x [region: north]", "region is 'north'; expected one of upper left"),
        ("normal: x [count: four screws]", "expected such as: screw == 4"),
        ("normal: x [colour: red]", "unknown tag"),
        ("normal:  ", "0 characters"),
        (f"normal: {'x' * 301}", "301 characters"),
        ({"kind": "normal", "txt": "x"}, "unknown key 'txt'.*did you mean 'text'"),
    ],
)
def test_a_wrong_rule_is_named_by_its_line(line, message):
    with pytest.raises(ValueError, match=message):
        read_rules(["normal: fine", line])


def test_a_rule_file_that_is_not_there_is_said():
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_rules("rules.txt")
