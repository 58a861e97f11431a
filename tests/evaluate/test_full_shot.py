"""Full-shot guests, anomalib's models among them: trained on all normal pictures of a category, beside ours."""

import sys

import numpy as np
import pytest
from small_sets import write_category

from vlad.datasets import folder
from vlad.evaluate import evaluate
from vlad.evaluate.run_suite import run_suite
from vlad.evaluate.suites import load
from vlad.evaluate.with_anomalib import Anomalib


class Counting:
    """Its score is the number of pictures that it was fitted on."""

    full_shot = True

    def fit(self, paths):
        self.number = len(paths)

    def predict(self, pictures):
        return [float(self.number)] * len(pictures)


@pytest.fixture
def tree(tmp_path):
    write_category(tmp_path / "set" / "nut", normals=3, anomalous=3)
    return tmp_path / "set"


@pytest.mark.parametrize("shots", [0, 2])
def test_it_is_fitted_on_all_normal_pictures_whatever_the_shots_of_the_others(tree, shots):
    report = evaluate(Counting(), folder(tree), shots=shots, seeds=3, bootstrap=0)
    (lines,) = report.predictions.values()
    assert {line["score"] for line in lines} == {6.0} and len(lines) == 6
    assert report.settings["detectors"]["Counting"]["setting"] == "full-shot"


def test_a_category_without_pictures_for_training_is_refused_before_anything_runs(tree, tmp_path):
    for file in (tree / "nut" / "train" / "good").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="Counting is trained on normal pictures, but set/nut has none for training"):
        evaluate(Counting(), folder(tree), bootstrap=0)


def test_without_anomalib_its_models_are_refused_with_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "anomalib", None)
    with pytest.raises(ImportError, match=r"anomalib:Padim needs anomalib 2.7; pip install 'vlad-ad\[anomalib\]'"):
        Anomalib("Padim")


def test_anomalibs_models_are_trained_and_measured_by_the_suites_keywords(tree, tmp_path, tiny_encoder):
    pytest.importorskip("anomalib", reason="the extra anomalib is not installed")
    text = 'datasets = ["folder"]\nmetric_size = 64\n[[detectors]]\nmethod = "anomalib:Padim"\n'
    text += 'options = {backbone = "resnet18", n_features = 20, layers = ["layer1"]}\n'
    text += '[[detectors]]\nmethod = "patch_text"\n'
    (tmp_path / "mine.toml").write_text(text)
    report = run_suite(load(tmp_path / "mine.toml"), [f"folder:{tree}"], bootstrap=0)
    label = "anomalib:Padim"
    assert report.settings["detectors"][label]["method"] == "anomalib Padim, backbone resnet18, UNTRAINED"
    assert f"{label}: full-shot, anomalib Padim, backbone resnet18, UNTRAINED" in report.table()
    assert 0 <= report.value("pixel_auroc", detector=label) <= 1
    assert Anomalib("Patchcore").method == "anomalib Patchcore, backbone wide_resnet50_2, UNTRAINED"
    first, again = (Anomalib("Padim", backbone="resnet18", n_features=20, layers=["layer1"]) for _ in range(2))
    normals = sorted((tree / "nut" / "train" / "good").iterdir())
    pictures = [np.full((40, 50, 3), 100, np.uint8)]
    with pytest.raises(RuntimeError, match="is not trained"):
        list(first.predict(pictures))
    for one in (first, again):
        one.fit(normals)
    assert [score for score, _ in first.predict(pictures)] == [score for score, _ in again.predict(pictures)]
    with pytest.raises(ValueError, match="anomalib has no model 'Padimm'"):
        Anomalib("Padimm")
