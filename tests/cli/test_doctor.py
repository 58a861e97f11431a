"""`vlad doctor` says what a machine has and lacks, and asks nobody."""

import json
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vlad.cli import app, doctor


def told(*flags):
    done = CliRunner().invoke(app, ["doctor", "--json", *flags])
    return done.exit_code, {one["what"]: one for one in json.loads(done.stdout)}


def test_a_machine_that_can_score_is_well_and_every_line_has_its_remedy():
    code, found = told()
    assert code == 0
    assert {"vlad", "python", "torch", "bfloat16", "threads", "cache", "weights", "encoders"} <= set(found)
    assert all(one["remedy"] for one in found.values() if one["state"] != "ok")


def test_a_cache_that_cannot_be_written_is_wrong_and_says_which_variable_moves_it(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("VLAD_CACHE", str(tmp_path / "file" / "below"))
    code, found = told()
    assert code == 1 and found["cache"]["state"] == "wrong" and "VLAD_CACHE" in found["cache"]["remedy"]


def test_a_missing_extra_is_a_note_with_its_command(monkeypatch):
    monkeypatch.setattr(doctor.util, "find_spec", lambda module: None)
    code, found = told()
    assert code == 0 and found["faiss"]["state"] == "note"
    assert found["faiss"]["says"].startswith("faiss-cpu not installed; adds")
    assert found["faiss"]["remedy"] == "pip install 'vlad-ad[faiss]'"


def test_only_with_network_the_hub_is_asked(monkeypatch):
    from vlad.hub import sources

    def nobody(*_):
        raise OSError("no route")

    monkeypatch.setattr(sources, "size_of", nobody)
    assert "hub" not in told()[1]
    code, found = told("--network")
    assert code == 1 and "cannot be reached" in found["hub"]["says"]


def test_every_extra_that_is_not_for_developers_is_explained():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) - {"test", "dev", "docs", "serving"} == set(doctor.ADDS)


def test_what_an_extra_asks_for_is_read_from_the_package():
    try:
        assert doctor._packages("data") == ["conformal-clip-data", "elpv-dataset"]
    except metadata.PackageNotFoundError:
        pytest.skip("the package is not installed here, so it has no metadata")


def test_a_zero_shot_run_with_tiny_says_once_what_a_clip_would_add(tmp_path):
    picture = str(Path(__file__).parents[2] / "examples" / "pictures" / "brick_good.jpg")
    words = ["score", picture, "--name", "brick", "--out", str(tmp_path / "a")]
    assert "vlad fetch ViT-B-16-plus-240/laion400m_e32" in CliRunner().invoke(app, words).stderr
    assert "vlad fetch" not in CliRunner().invoke(app, [*words, "--resume"]).stderr
    quiet = [*words[:-1], str(tmp_path / "b"), "--quiet"]
    assert "vlad fetch" not in CliRunner().invoke(app, quiet).stderr
