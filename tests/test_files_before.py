"""Files that version 0.1 wrote (tests/golden/version_0_1) are read: detectors, an adapter, a folder, a report."""

import json
import shutil

import pytest
from conftest import GOLDEN

import vlad
from vlad.files import resource
from vlad.folder.judging import judge_folder
from vlad.folder.page import write_page
from vlad.folder.sheet import write_sheet
from vlad.learning import adapter_file

BEFORE = GOLDEN / "version_0_1"
PARTS = sorted((BEFORE / "parts").glob("*.png"))


@pytest.mark.parametrize("kind", ["memory", "words"])
def test_a_detector_gives_the_scores_it_gave(kind, tiny_encoder):
    detector = vlad.load(BEFORE / f"{kind}.safetensors", encoder=tiny_encoder)
    expected = json.loads((BEFORE / "scores.json").read_text())
    assert [p.score for p in detector.predict(PARTS)] == pytest.approx(expected[kind], abs=1e-5)
    if kind == "memory":
        assert detector.threshold == expected["threshold"] and len(detector.references) == 6
        assert detector.predict(PARTS[1]).verdict == "unsure", "its band was kept in the file"


def test_a_scored_folder_is_shown_and_judged_again(tmp_path):
    shutil.copytree(BEFORE / "results", tmp_path / "out")
    assert "parts/2.png" in write_page(tmp_path / "out").read_text()
    rows = write_sheet(tmp_path / "out").read_text().splitlines()
    assert [row.split(",")[1] for row in rows[1:]] == ["normal", "unsure", "anomalous"]
    assert judge_folder(tmp_path / "out", threshold=0.39) == {"normal": 1, "anomalous": 2}


def test_a_report_is_loaded():
    report = vlad.Report.load(BEFORE / "report")
    assert report.detectors == ["words"] and 0 <= report.value("image_auroc") <= 1
    assert "image AUROC" in str(report) or "image" in report.table()


def test_an_adapter_without_a_checksum_is_read(caplog):
    file = resource("adapters/weights/anomalyclip-tiny.safetensors")
    assert adapter_file.read(file).facts["method"] == "anomalyclip"
