"""`vlad explain` and `vlad score --explain` as a user sees them."""

import json
from pathlib import Path

import jsonschema
import pytest
from chat_stub import reply as chat_reply
from chat_stub import said, serving
from PIL import Image
from test_cli import parsed, results, run

from vlad import explain as tiers

PICTURES = Path(__file__).resolve().parents[2] / "examples" / "pictures"
STAINED, GOOD = PICTURES / "gravel_stained.jpg", PICTURES / "gravel_good.jpg"
SCHEMA = json.loads((Path(tiers.__file__).parent / "schema.json").read_text())
BASE = [STAINED, "--name", "gravel", "--dtype", "float32"]
NOBODY = "openai:nobody@http://127.0.0.1:9/v1"  # the port that discards: nothing listens there


def test_explain_prints_defects_limits_and_why_to_review():
    ran = run("explain", *BASE, "--reference", GOOD)
    assert ran.exit_code == 0, ran.stderr
    assert ran.stdout.startswith("gravel: uncalibrated\n")
    assert "needs review: the detector has no threshold" in ran.stdout
    assert "1. " in ran.stdout and "centre: covers 18 % of the picture; darker by 26 L*" in ran.stdout
    assert "(map_uncalibrated)" in ran.stdout


def test_explain_prints_json_that_keeps_to_its_schema():
    ran = run("explain", *BASE, "--json", "--question", "how deep is it?")
    plain = json.loads(ran.stdout)
    jsonschema.validate(plain, SCHEMA)
    assert plain["defects"][0]["location"] == "centre" and plain["name"] == "gravel"


def test_explain_writes_pages(tmp_path):
    ran = run("explain", *BASE, "--markdown", "--html", tmp_path / "page.html")
    assert ran.stdout.startswith("# gravel: uncalibrated\n")
    page = (tmp_path / "page.html").read_text()
    assert page.startswith("<!doctype html>") and "data:image/jpeg" in page


def test_a_rule_that_only_a_language_model_can_check_is_a_limit(tmp_path):
    (tmp_path / "rules.txt").write_text("ignore: a dark stain\nnormal: grey stones\n")
    ran = run("explain", *BASE, "--rules", tmp_path / "rules.txt", "--json")
    plain = json.loads(ran.stdout)
    assert [one["text"] for one in plain["limits"] if one["code"] == "rule_not_checked"] == [
        "rule n1 cannot be checked without a language model"
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--reasoner", "gpt"], "error: reasoner is 'gpt'; expected clip, hf:"),
        (["--rules", "nowhere.txt"], "error: nowhere.txt: no such file"),
        (["--json", "--markdown"], "give one of them"),
        (["--allow-remote"], "are for a server"),
        (["--server", "timeout_s=3"], "are for a server"),
        (["--reasoner", NOBODY, "--server", "timeout=3"], "did you mean 'timeout_s'"),
        (["--reasoner", NOBODY, "--server", "timeout_s=soon"], "timeout_s is 'soon'"),
        (["--reasoner", NOBODY, "--server", "extra_body=3"], "extra_body is 3"),
        (["--reasoner", "openai:m@http://example.com/v1"], "example.com is not this machine"),
    ],
)
def test_wrong_usage_of_explain_is_one_sentence(arguments, said):
    ran = run("explain", *BASE, *arguments)
    assert ran.exit_code == 2 and said in ran.stderr and ran.stderr.count("\n") == 1


def test_a_reasoner_that_is_not_there_leaves_the_words_of_the_first_tier():
    alone, ran = (json.loads(run("explain", *BASE, "--json", *extra).stdout) for extra in ([], ["--reasoner", NOBODY]))
    jsonschema.validate(ran, SCHEMA)
    assert ran["defects"] == alone["defects"] and ran["reasoner"]["tier"] == "clip" and ran["errors"]
    assert "reasoner_failed" in [one["code"] for one in ran["limits"]]


def test_keys_of_requests_are_stated_on_the_command_line():
    with serving([chat_reply(said("A"))]) as stub:
        where = ["--reasoner", f"openai:m@{stub.url}", "--server", 'extra_body={"seed": null, "top_k": 1}']
        run("explain", *BASE, *where, "--server", "longest_side=100")
    assert all("seed" not in request and request["top_k"] == 1 for request in stub.requests) and stub.requests


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("gravel")
    for name, picture in (("a.jpg", STAINED), ("c.jpg", GOOD)):
        Image.open(picture).resize((160, 160)).save(root / name)
    (root / "b.png").write_text("no picture")
    return root


def score(folder, *extra):
    return run("score", folder, "--name", "gravel", "--dtype", "float32", *extra)


def test_score_with_explain_adds_to_every_line_and_changes_no_score(folder, tmp_path):
    plain = parsed(score(folder, "--json").stdout)
    ran = score(folder, "--explain", "--out", tmp_path / "out", "--no-maps")
    lines = results(tmp_path / "out")
    assert ran.exit_code == 1 and [line["source"] for line in lines] == [line["source"] for line in plain]
    for line, before in zip(lines, plain, strict=True):
        told = line.pop("explanation", None)
        assert line == before and (told is None) is (line["error"] is not None)
        if told is not None:
            jsonschema.validate(told, SCHEMA)
            assert told["detector"]["score"] == line["score"]


@pytest.mark.parametrize("who", [NOBODY, "hf:no/such/folder"])
def test_a_failing_reasoner_does_not_stop_scoring_and_says_so_in_every_line(folder, who):
    ran = score(folder, "--explain", "--reasoner", who, "--json")
    lines = [line for line in parsed(ran.stdout) if line["error"] is None]
    assert len(lines) == 2 and ran.exit_code == 1
    for line in lines:
        jsonschema.validate(line["explanation"], SCHEMA)
        assert line["explanation"]["errors"] and line["explanation"]["reasoner"]["tier"] == "clip"
        assert "reasoner_failed" in [one["code"] for one in line["explanation"]["limits"]]


def test_a_run_with_explanations_is_not_gone_on_with_by_another_reasoner(folder, tmp_path):
    out = tmp_path / "out"
    assert score(folder, "--explain", "--out", out, "--no-maps").exit_code == 1
    assert "was written with other settings (explain" in score(folder, "--out", out, "--no-maps", "--resume").stderr
    assert score(folder, "--explain", "--out", out, "--no-maps", "--resume").exit_code == 1


@pytest.mark.parametrize(
    ("extra", "said"),
    [(["--explain"], "adds to JSON lines"), (["--rules", "r.txt"], "ask for them with --explain")],
)
def test_explanations_of_a_table_are_refused(folder, extra, said):
    ran = score(folder, *extra)
    assert ran.exit_code == 2 and said in ran.stderr
