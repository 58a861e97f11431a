"""Suites that repeat papers: nothing begins before all is there, and published values stand beside measured ones."""

import hashlib
import json

import numpy as np
import pytest
from small_sets import save, write_category
from typer.testing import CliRunner

from vlad.cli import app
from vlad.evaluate.run_suite import run_suite
from vlad.evaluate.suites import load
from vlad.forms import shipped
from vlad.report.published import lines, published, why_not

PAPERS = [name for name in shipped("eval/suites") if name.startswith("paper-")]


@pytest.mark.parametrize("name", PAPERS)
def test_a_papers_suite_names_lines_that_are_on_record_for_its_data_sets(name):
    suite = load(name)
    for one in suite.detectors:
        wanted = one["published"]
        shots = suite.how.get("shots")
        key = wanted.method, wanted.setting or (f"{shots}-shot" if shots else "zero-shot")
        own = [line for line in lines() if (line.method, line.setting) == key]
        with_line = {line.dataset for line in own if line.source.startswith(wanted.source)}
        missing = set(suite.datasets) - with_line
        assert with_line and missing <= {"ksdd", "btad", "mpdd", "dtd_synthetic", "real_iad", "endo"}, missing


def test_every_method_with_published_numbers_of_its_own_has_a_suite():
    named = {one["published"].method.split(" (")[0] for name in PAPERS for one in load(name).detectors}
    assert {"WinCLIP", "WinCLIP+", "APRIL-GAN", "AnomalyCLIP", "AdaCLIP", "Crane", "Crane+", "MuSc", "AnoVL"} <= named
    assert {"SOWA", "MetaUAS", "AnomalyVFM", "INP-Former", "AnomalyDINO", "AA-CLIP", "AdaptCLIP-Zero"} <= named


@pytest.fixture
def suite(tmp_path):
    """A suite on HeadCT with the embedded encoder, beside WinCLIP's published values."""

    def written(detector='published = {method = "WinCLIP", source = "zqhang/AnomalyCLIP"}', datasets='["head_ct"]'):
        text = f'datasets = {datasets}\nbootstrap = 0\n[[detectors]]\nlabel = "ours"\nmethod = "winclip"\n'
        (tmp_path / "mine.toml").write_text(f"{text}options = {{scales = [7], resolution = 112}}\n{detector}\n")
        return tmp_path / "mine.toml"

    return written


def head_ct(place, each):
    """As many normal and anomalous pictures, of 16 px."""
    random = np.random.default_rng(0)
    for kind in ("no", "yes"):
        for number in range(each):
            save(random.integers(0, 255, (16, 16)).astype(np.uint8), place / kind / f"{number:03}.png")
    return f"head_ct:{place}"


def run(*words):
    return CliRunner().invoke(app, ["eval", *map(str, words)])


def test_on_a_whole_set_the_published_value_and_the_difference_stand_beside_the_measured_one(suite, tmp_path):
    done = run(suite(), "--data", head_ct(tmp_path / "ct", 100), "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    measured = next(one["value"] for one in told["means"] if one["metric"] == "image_auroc")
    (line,) = [one for one in published("head_ct") if one.method == "WinCLIP" and one.source.startswith("zqhang")]
    table = run("join", tmp_path / "out").stdout
    values = [100 * measured, 100 * line.values["image_auroc"]]
    said = [f"{value:.1f}" for value in values]
    row = next(text for text in table.splitlines() if text.startswith("head_ct, ours") and "image AUROC" in text)
    *both, difference = row.split()[-3:]
    assert both == said and f"published: head_ct, ours: {line.source}" in table
    assert float(difference) == pytest.approx(values[0] - values[1], abs=0.0501)  # a half may be rounded either way
    assert f"<td>{difference}</td>" in (tmp_path / "out" / "report.html").read_text()


def test_a_set_that_is_not_whole_is_refused_first_and_measured_only_where_asked_for(suite, tmp_path, caplog):
    data = head_ct(tmp_path / "ct", 3)
    done = run(suite(), "--data", data)
    assert done.exit_code == 2 and "with 3 normal and 3 anomalous test pictures, the whole one has" in done.stderr
    done = run(suite(), "--data", data, "--subset")
    assert done.exit_code == 0, done.output
    assert "nothing published is put beside it" in caplog.text and "beside published" not in done.stdout


def test_categories_that_lack_pictures_are_named():
    whole = {"01": {"normal": 21, "anomalous": 49}, "02": {"normal": 30, "anomalous": 200}}
    assert why_not("btad", {**whole, "03": {"normal": 400, "anomalous": 41}}) == ""
    assert "(02 29 + 200, not 30 + 200; 03 0 + 0, not 400 + 41)" in why_not(
        "btad", {**whole, "02": {"normal": 29, "anomalous": 200}}
    )


def test_a_missing_or_changed_adapter_is_named_before_anything_is_measured(tmp_path, monkeypatch):
    write_category(tmp_path / "set" / "nut", normals=1, anomalous=1)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.toml"
    text = 'datasets = ["folder"]\n[[detectors]]\nmethod = "april_gan"\nadapter = "april.safetensors"\n'
    file.write_text(text)
    with pytest.raises(FileNotFoundError, match=r"april_gan needs april.safetensors, which is not there"):
        run_suite(load(file), [f"folder:{tmp_path / 'set'}"])
    (tmp_path / "april.pth").write_bytes(b"another")
    digest = hashlib.sha256(b"published").hexdigest()
    file.write_text(f'{text}sha256 = {{"april.pth" = "{digest}"}}\n')
    with pytest.raises(ValueError, match=r"april.pth is not the file that was published"):
        run_suite(load(file), [f"folder:{tmp_path / 'set'}"])


def test_the_papers_aupro_is_added_under_a_name_of_its_own_where_asked_for(tmp_path):
    write_category(tmp_path / "set" / "nut", normals=3, anomalous=3)
    words = ("--data", f"folder:{tmp_path / 'set'}", "--bootstrap", 0, "--json")
    plain, theirs = (json.loads(run(*words, *more).stdout) for more in ((), ("--paper-metrics",)))
    own = {row["metric"]: row["value"] for row in theirs["rows"]}
    assert {row["metric"] for row in plain["rows"]} == set(own) - {"pixel_aupro_200"}
    assert own["pixel_aupro_200"] != own["pixel_aupro"] and theirs["settings"]["paper_metrics"] is True
