"""The `vlad` command as a user sees it: exit codes, standard output, files, and being killed."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import vlad
from vlad import folder
from vlad.cli import app
from vlad.cli.lists import KINDS
from vlad.encoders.text import strange_words

NAME = ["--name", "metal bolt"]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def spawn(*arguments, **how):
    command = [sys.executable, "-m", "vlad.cli", *map(str, arguments)]
    return subprocess.Popen(command, text=True, **how)


def photo(path, seed=0, size=(48, 40)):
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def parsed(text):
    return [json.loads(line) for line in text.splitlines()]


def results(out):
    return parsed((out / "results.jsonl").read_text(encoding="ascii"))


@pytest.fixture(scope="module")
def score(small_folder):
    """`vlad score` with the small encoder, as far as the inputs."""
    return ["score", "--encoder", f"local-dir:{small_folder}", "--dtype", "float32"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A data-set like folder of three pictures and a mask, which is none."""
    root = tmp_path_factory.mktemp("photos")
    for index, place in enumerate(["good/1.png", "scratch/2.jpg", "scratch/3.png", "ground_truth/scratch/3.png"]):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        photo(root / place, index)
    return root


@pytest.fixture(scope="module")
def with_broken(photos, tmp_path_factory):
    """Two good pictures, a JPEG cut in half, and a text file that calls itself PNG."""
    root = tmp_path_factory.mktemp("broken")
    photo(root / "a.png")
    whole = (photos / "scratch" / "2.jpg").read_bytes()
    (root / "b_truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "c_text.png").write_text("no picture at all")
    photo(root / "d.png", 1)
    return root


# ---- light verbs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["score", "--help"], ["list", "methods"], ["prompts", "show"]])
def test_light_verbs_leave_torch_alone(arguments):
    code = (
        "import sys\nfrom vlad.cli import main\nsys.argv = ['vlad', *sys.argv[1:]]\ntry:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end\n"
        "assert not {'torch', 'open_clip', 'transformers', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout, done.stderr


@pytest.mark.parametrize("verb", [[], ["score"], ["list"], ["prompts", "show"]])
def test_every_help_has_an_example(verb):
    done = run(*verb, "--help")
    assert done.exit_code == 0 and "Example: vlad " in done.stdout


def test_the_version_is_the_packages():
    assert run("--version").stdout == f"vlad {vlad.__version__}\n"


@pytest.mark.parametrize("kind", KINDS)
def test_list_prints_names(kind):
    plain, machine = run("list", kind), run("list", kind, "--json")
    assert plain.exit_code == machine.exit_code == 0
    assert json.loads(machine.stdout) == plain.stdout.splitlines()
    assert plain.stdout


def test_prompts_show_fills_the_name_in():
    plain, filled = run("prompts", "show", "winclip"), run("prompts", "show", "winclip", *NAME)
    assert "damaged {}" in plain.stdout and "damaged metal bolt" in filled.stdout


def test_prompts_show_and_eval_write_escape_codes_out(tmp_path, tiny_encoder):
    pack = 'title = "\\u001b[31mred"\nnormal = ["a\\u001b]0;x {}"]\nanomalous = ["bad {}"]\ntemplates = ["{}\\u0007"]\n'
    (tmp_path / "own.toml").write_text(pack)
    shown = run("prompts", "show", tmp_path / "own.toml")
    assert shown.exit_code == 0 and not set("\x1b\x07") & set(shown.stdout) and "\\x1b[31mred" in shown.stdout
    table = ["image,label,category"]
    for number in range(4):
        Image.new("RGB", (40, 40), (9 * number, 40, 90)).save(tmp_path / f"{number}.png")
        table.append(f"{number}.png,{number % 2},\x1b[31mred")
    (tmp_path / "set.csv").write_text("\n".join(table) + "\n")
    data = ("--data", f"csv:{tmp_path / 'set.csv'}", "--bootstrap", "0", "--resolution", "48")
    measured = run("eval", *data, "--method", "patch_text", "--device", "cpu")
    assert measured.exit_code == 0, measured.output
    assert "\x1b" not in measured.output and "\\x1b[31mred" in measured.stdout


def test_prompts_show_scores_every_phrase_on_a_picture(photos, small_folder):
    picture = photos / "good" / "1.png"
    done = run("prompts", "show", *NAME, "--picture", picture, "--encoder", f"local-dir:{small_folder}", "--json")
    shown = json.loads(done.stdout)
    assert set(shown["cosines"]) == {*shown["normal"], *shown["anomalous"]}
    assert all(-1 <= cosine <= 1 for cosine in shown["cosines"].values())


def test_the_embedded_default_needs_but_a_name(photos):
    done = run("score", photos, *NAME, "--json")
    assert done.exit_code == 0 and all(0 < line["score"] < 1 for line in parsed(done.stdout)), done.stderr


# ---- score ----------------------------------------------------------------------------------------------------------


def test_score_prints_a_readable_table(score, photos):
    done = run(*score, photos, *NAME)
    assert done.exit_code == 0, done.stderr
    heading, *rows = done.stdout.splitlines()
    assert heading.split() == ["source", "score", "verdict", "where"]
    assert len(rows) == 3 and all(" uncalibrated" in row for row in rows)


def test_a_threshold_gives_verdicts(score, photos):
    assert run(*score, photos, *NAME, "--threshold", "0").stdout.count(" anomalous") == 3
    assert run(*score, photos, *NAME, "--threshold", "9").stdout.count(" normal") == 3


def test_json_goes_to_standard_output_and_failures_to_standard_error(score, with_broken):
    done = run(*score, with_broken, *NAME, "--json")
    assert done.exit_code == 1
    lines = parsed(done.stdout)
    assert [Path(line["source"]).name for line in lines] == ["a.png", "b_truncated.jpg", "c_text.png", "d.png"]
    assert [line["error"] is None for line in lines] == [True, False, False, True]
    assert [line["score"] is None for line in lines] == [False, True, True, False]
    failures = done.stderr.splitlines()
    assert len(failures) == 2 and "b_truncated.jpg" in failures[0] and "c_text.png" in failures[1]


def test_out_holds_lines_and_overlays(score, with_broken, tmp_path):
    done = run(*score, with_broken, *NAME, "--out", tmp_path)
    assert done.exit_code == 1 and "2 pictures scored" in done.stdout
    assert len(results(tmp_path)) == 4
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {"a.png.png", "d.png.png"}


def test_globs_and_files_are_inputs_and_masks_are_none(score, photos, tmp_path):
    done = run(*score, photos / "**" / "*.png", photos / "scratch" / "2.jpg", *NAME, "--out", tmp_path, "--no-maps")
    assert done.exit_code == 0, done.stderr
    assert [Path(line["source"]).name for line in results(tmp_path)] == ["1.png", "3.png", "2.jpg"]
    assert not (tmp_path / "maps").exists()


def test_a_saved_detector_scores_as_the_one_that_was_saved(score, photos, small_encoder, tmp_path):
    detector = vlad.load(name="metal bolt", encoder=small_encoder)
    detector.save(tmp_path / "bolt.safetensors")
    picture = photos / "good" / "1.png"
    done = run(*score, picture, "--detector", tmp_path / "bolt.safetensors", "--json")
    assert parsed(done.stdout)[0]["score"] == pytest.approx(detector.predict(picture).score, abs=1e-6), done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--name"),
        ([*NAME, "--method", "winclipp"], "winclip"),
        ([*NAME, "--encoder", "tinny"], "tinny"),  # the last --encoder counts
        ([*NAME, "--prompts", "winclipp"], "winclip"),
        ([*NAME, "--dtype", "float31"], "float31"),
        ([*NAME, "--resume"], "--out"),
        ([*NAME, "--threshold", "nan"], "finite"),
        ([*NAME, "--detector", "nosuch.safetensors"], "nosuch.safetensors"),
        ([*NAME, "--method", "winclip", "--detector", "nosuch.safetensors"], "--method"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(arguments, said, photos, score):
    done = run(*score, photos, *arguments)
    assert done.exit_code == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and said in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("missing", ["nosuch", "nosuch/*.png", "nosuch.png"])
def test_missing_inputs_are_said_before_anything_is_written(missing, tmp_path):
    done = run("score", tmp_path / missing, *NAME, "--out", tmp_path / "out")
    assert done.exit_code == 2 and "nosuch" in done.stderr and not (tmp_path / "out").exists()


def test_exit_code_is_2_when_not_one_picture_could_be_scored(score, with_broken, tmp_path):
    done = run(*score, with_broken / "c_text.png", *NAME, "--out", tmp_path)
    assert done.exit_code == 2 and "c_text.png" in done.stderr and len(results(tmp_path)) == 1


def test_existing_results_need_resume_and_the_same_settings(score, photos, tmp_path):
    arguments = [*score, photos, *NAME, "--out", tmp_path, "--no-maps"]
    assert run(*arguments).exit_code == 0
    before = (tmp_path / "results.jsonl").read_bytes()
    again, other = run(*arguments), run(*arguments, "--resume", "--threshold", "0.5")
    assert again.exit_code == other.exit_code == 2
    assert "--resume" in again.stderr and "threshold was null, now 0.5" in other.stderr
    same = run(*arguments, "--resume")
    assert same.exit_code == 0 and "3 recorded before" in same.stdout
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_an_interrupt_says_how_to_go_on(score, photos, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "score_folder", interrupted)
    done = run(*score, photos, *NAME, "--out", tmp_path)
    assert done.exit_code == 130 and "--resume" in done.stderr


# ---- as a process ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    root = tmp_path_factory.mktemp("many")
    for index in range(24):
        photo(root / f"{index}.png", index)
    return root


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo terminals")
def test_a_killed_run_resumes_to_the_results_of_an_undisturbed_one(score, many, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    arguments = [*score, many, *NAME, "--batch-size", "2"]
    terminal, screen = os.openpty()
    with (tmp_path / "stdout").open("w") as stdout:
        process = spawn(*arguments, "--json", "--out", killed, stdout=stdout, stderr=screen)
        recorded = killed / "results.jsonl"
        while process.poll() is None and not (recorded.exists() and recorded.read_bytes().count(b"\n") >= 5):
            time.sleep(0.01)
        process.kill()
    assert process.wait() == -9, "the run ended before it could be killed"
    os.close(screen)
    assert os.read(terminal, 100), "no bar on the terminal"
    os.close(terminal)
    seen = parsed((tmp_path / "stdout").read_text())
    assert [line["source"] for line in seen] == [line["source"] for line in results(killed)][: len(seen)]

    assert run(*arguments, "--out", killed, "--resume").exit_code == 0
    assert run(*arguments, "--out", whole, "--batch-size", "7").exit_code == 0
    ours, theirs = results(killed), results(whole)
    assert [line["source"] for line in ours] == [line["source"] for line in theirs]
    assert len({line["source"] for line in ours}) == 24
    assert max(abs(our["score"] - their["score"]) for our, their in zip(ours, theirs, strict=True)) < 1e-6
    assert len(list((killed / "maps").rglob("*"))) == 24


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGPIPE")
def test_a_reader_that_leaves_early_causes_no_traceback(score, many):
    process = spawn(*score, many, *NAME, "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert json.loads(process.stdout.readline())["error"] is None
    process.stdout.close()
    assert process.wait() == 141
    assert process.stderr.read() == ""


# ---- good pictures --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("good")
    for index in range(6):
        photo(root / f"{index}.png", 100 + index)
    return root


def test_a_fitted_detector_gives_verdicts_from_its_file(score, good, photos, tmp_path):
    saved = tmp_path / "bolt.safetensors"
    done = run("fit", good, *NAME, *score[1:], "--out", saved, "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["normals"] == 6 and facts["threshold"] is not None
    asked = run("score", photos, "--detector", saved, "--json")
    assert asked.exit_code == 2 and "is opened only if you name it" in asked.stderr, "a file's folder is its own word"
    done = run(*score, photos, "--detector", saved, "--json")
    assert done.exit_code == 0, done.output
    lines = parsed(done.stdout)
    assert {line["threshold"] for line in lines} == {facts["threshold"]}
    assert all(line["name"] == "metal bolt" for line in lines)
    direct = parsed(run(*score, photos, *NAME, "--normals", good, "--json").stdout)
    assert [line["score"] for line in direct] == pytest.approx([line["score"] for line in lines], abs=1e-6)


def test_going_on_with_other_normals_is_refused(score, good, photos, tmp_path):
    out = tmp_path / "out"
    assert run(*score, photos, *NAME, "--normals", good, "--out", out).exit_code == 0
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for index in range(5):
        photo(fewer / f"{index}.png", 200 + index)
    refused = run(*score, photos, *NAME, "--normals", fewer, "--out", out, "--resume")
    assert refused.exit_code == 2 and "references" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "patch_memory"], "--normals FOLDER"),
        ([*NAME, "--max-false-positive-rate", "0.1"], "give them with --normals"),
        ([*NAME, "--normals", "absent"], "absent"),
    ],
)
def test_what_is_missing_of_good_pictures_is_said(score, photos, arguments, words):
    done = run(*score, photos, *arguments)
    assert done.exit_code == 2 and words in done.stderr


def test_fit_needs_a_file_to_write(score, good, tmp_path):
    done = run("fit", good, *NAME, *score[1:], "--out", tmp_path / "bolt.pt")
    assert done.exit_code == 2 and ".safetensors" in done.stderr


def test_a_method_that_compares_the_set_scores_a_folder(score, photos, tmp_path):
    done = run(*score, photos, "--method", "musc", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert len(results(tmp_path / "out")) == 3


def test_another_method_without_words_takes_the_same_command_line(score, photos):
    done = run(*score, photos, *NAME, "--prompts", "winclip", "--method", "musc", "--json")
    assert done.exit_code == 0, done.output
    assert "musc looks at pictures alone; --name and --prompts say nothing to it" in done.stderr


@pytest.mark.parametrize(
    ("name", "strange"),
    [("qwertzuiop blah", '"qwertzuiop"'), ("Metallschraube", '"Metallschraube"'), ("винт", '"винт"'), NAME[1:] * 2],
)
def test_a_name_that_is_no_plain_english_is_remarked_on(score, photos, name, strange):
    said = run(*score, photos, "--name", name, "--json").stderr
    assert (f"note: {strange} may say nothing to" in said) == (name != NAME[1]) and said.count("plain English") <= 1


def test_words_of_a_trade_are_known():
    encoder = vlad.Encoder.load("tiny")
    trade = "grommet sprocket photovoltaic cell fiberglass transistor hazelnut pcb magnetic tile leadframe"
    assert strange_words(encoder, trade) == [] and strange_words(encoder, f"{trade} Lötstelle") == ["Lötstelle"]


def test_what_comes_before_the_first_line_of_a_set_is_told_with_its_end_in_sight(score, photos, monkeypatch):
    ticks = itertools.count(0, 31)
    monkeypatch.setattr("vlad.cli.progress.time", SimpleNamespace(monotonic=lambda: next(ticks)))
    said = run(*score, photos, "--method", "musc", "--batch-size", "1", "--json").stderr
    assert "reading: 2 of 3, 31 s left" in said, "two pictures in two ticks"
    assert "comparing: 36 of 36, 0 s left" in said, "4 layers x 3 degrees x 3 pairs"
