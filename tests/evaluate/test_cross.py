"""Learned on one data set, tested on others: one command, one report; leaks are refused, a killed run goes on."""

import json
import shutil

import pytest
from small_sets import write_category
from typer.testing import CliRunner

from vlad.cli import app
from vlad.evaluate.cross import cross
from vlad.report import Report


@pytest.fixture
def sets(tmp_path):
    """Three data sets of one category each, as specs."""
    for seed, name in enumerate(("nuts", "bolts", "pins")):
        write_category(tmp_path / name / name[:-1], seed, normals=3, anomalous=4)
    return {name: f"folder:{tmp_path / name}" for name in ("nuts", "bolts", "pins")}


@pytest.fixture
def recipe(tmp_path, small_folder):
    file = tmp_path / "quick.toml"
    encoder = f'encoder = "local-dir:{small_folder}"'
    file.write_text(f'method = "april_gan"\n{encoder}\nepochs = 1\nbatch_size = 4\noptions = {{layers = [6, 12]}}\n')
    return str(file)


HOW = {"bootstrap": 0, "metric_size": 32, "dtype": "float32", "device": "cpu"}


def test_what_is_learned_on_some_sets_is_measured_on_the_others_beside_what_learns_nothing(sets, recipe, tmp_path):
    learn, tests = [sets["nuts"], sets["bolts"]], [sets["pins"]]
    report = cross([recipe], learn, tests, tmp_path / "out", methods=["patch_text"], **HOW)
    assert report.detectors == ["patch_text", "quick, learned on nuts+bolts"]
    assert {row.dataset for row in report.rows} == {"pins"}
    assert report.settings["detectors"]["quick, learned on nuts+bolts"]["trained_on"] == ["nuts", "bolts"]
    assert (tmp_path / "out" / "learned" / "quick, nuts+bolts.safetensors").is_file()
    table = report.by_dataset(["image_auroc"]).splitlines()
    assert table[0].split() == ["image", "AUROC", "pins"] and len(table) == 3


def test_in_pairs_each_set_is_learned_alone_and_tested_on_all_others_in_one_table(sets, recipe, tmp_path):
    report = cross([recipe], list(sets.values()), [], tmp_path / "out", pairs=True, **HOW)
    where = {(row.detector.rpartition(" ")[2], row.dataset) for row in report.rows}
    assert where == {(one, other) for one in sets for other in sets if one != other}
    lines = [line.split()[-3:] for line in report.by_dataset(["image_auroc"]).splitlines()]
    assert lines[0] == ["bolts", "pins", "nuts"] and [line.count("-") for line in lines[1:]] == [1, 1, 1]


def test_a_killed_run_keeps_what_was_learned_and_ends_with_the_same_numbers(sets, recipe, tmp_path):
    def stopped(what, done, total):
        if what.startswith("nuts/") or what.startswith("pins/"):
            raise KeyboardInterrupt

    arguments = [recipe], [sets["bolts"]], [sets["nuts"], sets["pins"]], tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        cross(*arguments, progress=stopped, **HOW)
    file = tmp_path / "out" / "learned" / "quick, bolts.safetensors"
    before = file.stat().st_mtime_ns
    again = cross(*arguments, **HOW)
    assert file.stat().st_mtime_ns == before
    fresh = cross(*arguments[:3], tmp_path / "other", **HOW)
    assert [row.value for row in again.rows] == pytest.approx([row.value for row in fresh.rows], nan_ok=True)
    with pytest.raises(ValueError, match="was written with other settings"):
        cross([recipe], [sets["nuts"]], [sets["pins"]], tmp_path / "out", **HOW)


def test_leaks_are_refused_by_name_and_by_the_very_pictures_before_anything_is_learned(sets, recipe, tmp_path):
    with pytest.raises(ValueError, match="nuts would be learned from and tested on"):
        cross([recipe], [sets["nuts"]], [sets["pins"], sets["nuts"]], tmp_path / "out", **HOW)
    shutil.copytree(tmp_path / "nuts", tmp_path / "other_name")
    with pytest.raises(ValueError, match=r"would be learned from, and is tested on as .*other_name"):
        cross([recipe], [sets["nuts"]], [f"folder:{tmp_path / 'other_name'}"], tmp_path / "out", **HOW)
    assert not (tmp_path / "out").exists()


def test_the_commands_learn_measure_and_join(sets, recipe, tmp_path):
    def run(*words):
        return CliRunner().invoke(app, ["eval", *map(str, words)])

    out = tmp_path / "out"
    flags = ("--bootstrap", 0, "--metric-size", 32, "--dtype", "float32", "--table", "markdown")
    done = run("cross", "--recipe", recipe, "--learn", sets["nuts"], "--test", sets["pins"], "--out", out, *flags)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("| image AUROC | pins |") and (out / "report.html").is_file()
    other = tmp_path / "plain"
    plain = run("--data", sets["pins"], "--method", "patch_text", "--bootstrap", 0, "--metric-size", 32, "--out", other)
    assert plain.exit_code == 0, plain.output
    joined = run("join", out, other, "--out", tmp_path / "joined", "--json")
    assert joined.exit_code == 0 and set(json.loads(joined.stdout)["settings"]["detectors"]) == {
        "quick, learned on nuts",
        "patch_text",
    }
    assert Report.load(tmp_path / "joined").detectors == ["quick, learned on nuts", "patch_text"]
    assert run("join", out, out).exit_code == 2
    assert f"there is no report {tmp_path / 'nowhere'}" in run("join", out, tmp_path / "nowhere").stderr
    nothing = run("cross", "--recipe", recipe, "--learn", sets["nuts"], "--out", tmp_path / "new")
    assert nothing.exit_code == 2 and "give both, or all sets with pairs" in nothing.stderr
