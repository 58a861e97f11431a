"""Suites as files: checked when read, filled in, and run from the command line."""

import json

import pytest
from small_sets import write_category
from typer.testing import CliRunner

from vlad.cli import app
from vlad.datasets import datasets
from vlad.evaluate import suites
from vlad.evaluate.run_suite import SharedEncoders, run_suite
from vlad.forms import shipped


def written(tmp_path, text):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    return file


def test_every_shipped_suite_reads_and_names_known_data_sets():
    assert {"real-smoke", "zero-shot-industrial", "few-shot-industrial"} <= set(shipped("eval/suites"))
    for name in shipped("eval/suites"):
        suite = suites.load(name)
        assert suite.title and set(suite.datasets) <= set(datasets())
        for dataset in suite.datasets:
            assert all("{source}" not in one.get("adapter", "") for one in suite.detectors_for(dataset))


def test_the_tables_of_the_papers_never_train_on_the_tested_set():
    for name in ("paper-anomalyclip", "paper-adaptclip", "paper-adaclip"):
        suite = suites.load(name)
        for dataset in suite.datasets:
            adapter = suite.detectors_for(dataset)[0]["adapter"]
            assert dataset not in adapter
            assert ("visa" in adapter) == (dataset == "mvtec_ad")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('datasets = ["folder"]\nshot = 4', r"mine\.toml: shot: unknown key; known: .*; did you mean 'shots'\?"),
        ('datasets = "folder"', r"mine\.toml: datasets: expected a list, got 'folder'"),
        ('datasets = ["mvtec"]', r"datasets, entry 1: unknown data set 'mvtec'; .*did you mean 'mvtec_"),
        ('title = "x"', "datasets: this key is missing"),
        ("datasets = []", "datasets: expected a list of at least one name"),
        ('datasets = ["folder"]\nseeds = "all"', "seeds: expected a whole number or a list of them, got 'all'"),
        ('datasets = ["folder"]\nmetric_size = [1]', "metric_size: expected a whole number or the text"),
        ('datasets = ["folder"]\ndetectors = [1]', "detectors, entry 1: expected a table, got 1"),
        ('datasets = ["folder"]\nshots = "four"', "shots: expected a whole number, got 'four'"),
        ('datasets = ["folder"]\nshots = true', "shots: expected a whole number, got True"),
        (
            'datasets = ["folder"]\n[[detectors]]\nmethd = "winclip"',
            "detectors, entry 1, methd: .*did you mean 'method'",
        ),
        ('datasets = ["folder"]\n[[detectors]]\nlabel = "a"', "detectors, entry 1, method: this key is missing"),
        ('datasets = ["folder"]\ncorrupt = ["blurr"]', "corrupt, entry 1: unknown 'blurr'; .*did you mean 'blur'"),
        ('datasets = ["folder"]\n[sources]\nfoldr = "visa"', "sources.foldr: .*did you mean 'folder'"),
        ("datasets = [", r"mine\.toml: not valid TOML"),
    ],
)
def test_a_mistake_is_reported_with_file_key_and_what_was_expected(tmp_path, text, said):
    with pytest.raises(ValueError, match=said):
        suites.load(written(tmp_path, text))


def test_an_unknown_suite_names_the_closest():
    with pytest.raises(ValueError, match=r"unknown suite 'real-smok'.*did you mean 'real-smoke'"):
        suites.load("real-smok")
    with pytest.raises(FileNotFoundError, match=r"nothing\.toml: no such file; give a \.toml file or a shipped suite"):
        suites.load("nothing.toml")


def test_a_source_without_a_line_is_an_error(tmp_path):
    text = 'datasets = ["visa"]\n[[detectors]]\nmethod = "winclip"\nadapter = "a-{source}.safetensors"'
    suite = suites.load(written(tmp_path, text))
    with pytest.raises(ValueError, match="sources: no data set for visa"):
        suite.detectors_for("visa")


@pytest.fixture
def command():
    return lambda *words: CliRunner().invoke(app, ["eval", *map(str, words)])


@pytest.fixture
def tree(tmp_path):
    write_category(tmp_path / "set" / "bolt", seed=1)
    return tmp_path / "set"


def test_the_command_writes_the_report_and_goes_on_where_it_stopped(command, tree, tmp_path, small_folder):
    words = ("--data", f"folder:{tree}", "--encoder", f"local-dir:{small_folder}", "--out", tmp_path / "out")
    words += ("--method", "patch_text", "--bootstrap", 0, "--dtype", "float32", "--json")
    first = command(*words)
    assert first.exit_code == 0, first.output
    rows = json.loads(first.stdout)["rows"]
    assert {row["category"] for row in rows} == {"bolt"} and all(row["detector"] == "patch_text" for row in rows)
    kept = {"predictions.csv", "report.details.json", "report.draws.safetensors", "run.json", "parts"}
    assert kept | {"report.html", "report.json", "report.csv"} == {path.name for path in (tmp_path / "out").iterdir()}
    again = command(*words)
    assert json.loads(again.stdout)["rows"] == rows


def test_the_command_runs_a_suite_and_leaves_out_what_is_not_given(command, tree, tmp_path, small_folder):
    file = written(
        tmp_path,
        'title = "mine"\ndatasets = ["folder", "visa"]\nmetric_size = 32\n'
        f'[[detectors]]\nlabel = "ours"\nmethod = "patch_text"\nencoder = "local-dir:{small_folder}"\n',
    )
    found = command(file, "--data", f"folder:{tree}", "--bootstrap", 0)
    assert found.exit_code == 0, found.output
    assert "ours: zero-shot" in found.stdout and "metrics at 32 size" in found.stdout
    assert "left out, not given with --data: visa" in found.stderr
    tex = command(file, "--data", f"folder:{tree}", "--bootstrap", 0, "--table", "latex")
    assert tex.stdout.startswith("\\begin{tabular}") and "ours & " in tex.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "nothing to evaluate on; give a suite, or --data"),
        (("real-smoke",), "no data set is given; say where they lie with --data folder:ROOT"),
        (("real-smoke", "--data", "visa:x"), "the suite has no data set 'visa'"),
        (("paper-winclip", "--data", "mvtek:x"), "no data set 'mvtek'; known: mvtec_ad, "),
        (("real-smoke", "--method", "winclip"), "a suite names its own detectors; leave out --method"),
        (("--data", "mvtecad:x"), "unknown data set 'mvtecad'"),
        (("--data", "folder:.", "--table", "html"), "--table is 'html'; known: text, markdown, latex"),
        (("--data", "folder:.", "--metric-size", "big"), '--metric-size is big; expected "native"'),
    ],
)
def test_wrong_usage_is_one_sentence_and_code_2(command, words, said):
    found = command(*words)
    assert found.exit_code == 2 and found.stderr.startswith("error: ") and said in found.stderr


def test_detectors_of_one_encoder_share_it_also_with_a_saved_one(tree, tmp_path, small_folder):
    from vlad import load

    saved = load("patch_memory", encoder=f"local-dir:{small_folder}", dtype="float32", device="cpu")
    saved.fit(sorted((tree / "bolt" / "train" / "good").iterdir())[:2])
    saved.save(tmp_path / "saved.safetensors")
    shared = SharedEncoders("cpu", "float32")
    first = shared.load("patch_text", encoder=f"local-dir:{small_folder}")
    assert shared.load("winclip", encoder=f"local-dir:{small_folder}").encoder is first.encoder
    again = shared.load(str(tmp_path / "saved.safetensors"))
    assert again.encoder is first.encoder and len(again.references) == 2


def test_a_suite_may_say_how_many_draws_and_its_keywords_give_way_to_those_of_the_call(tree, tmp_path, small_folder):
    text = 'datasets = ["folder"]\nbootstrap = 7\n[[detectors]]\nmethod = "patch_text"\n'
    text += f'encoder = "local-dir:{small_folder}"'
    suite = suites.load(written(tmp_path, text))
    assert suite.how == {"bootstrap": 7}
    assert run_suite(suite, [f"folder:{tree}"]).settings["bootstrap"] == 7
    assert run_suite(suite, [f"folder:{tree}"], bootstrap=0).settings["bootstrap"] == 0
