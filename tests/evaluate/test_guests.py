"""Detectors that are not VLAD's, and finished scores: measured beside ours by the same rules."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from test_evaluate import Brightness, write_category
from typer.testing import CliRunner

import vlad
from vlad.cli import app
from vlad.datasets import folder
from vlad.evaluate import evaluate
from vlad.evaluate.guests import Finished


@pytest.fixture
def tree(tmp_path):
    write_category(tmp_path / "set" / "bolt", seed=1)
    write_category(tmp_path / "set" / "nut", seed=2)
    return tmp_path / "set"


def brightest(pictures):
    return [(float(picture.mean() / 255), picture.mean(-1) / 255) for picture in pictures]


class Mine:
    """Somebody's own detector."""

    def __init__(self, said=brightest):
        self.said, self.fitted = said, []

    def predict(self, pictures):
        return self.said(pictures)


KINDS = {
    "pairs": brightest,
    "objects": lambda pictures: [SimpleNamespace(score=score, map=amap) for score, amap in brightest(pictures)],
    "tensors": lambda pictures: [(np.float32(score), np.asarray(amap)) for score, amap in brightest(pictures)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_with_predict_is_measured_like_ours(kind, tree, small_encoder):
    samples = folder(tree)
    report = evaluate(
        {"mine": Mine(KINDS[kind]), "ours": vlad.Detector(Brightness(small_encoder))}, samples, bootstrap=20
    )
    again = evaluate({"mine": Mine()}, samples, bootstrap=20)
    for metric in ("image_auroc", "pixel_auroc", "pixel_aupro"):
        assert report.value(metric, detector="mine") == pytest.approx(again.value(metric), abs=1e-6)
    assert "mine: zero-shot, Mine" in report.table() and report.compare()


def test_numbers_alone_have_no_pixel_metrics(tree):
    report = evaluate(Mine(lambda pictures: [one.mean() for one in pictures]), folder(tree), bootstrap=0)
    assert 0 <= report.value("image_auroc", detector="Mine") <= 1
    assert np.isnan(report.value("pixel_auroc"))


def test_the_score_and_map_of_predictions_of_ours_are_taken(tree, small_encoder):
    ours = vlad.Detector(Brightness(small_encoder))
    wrapped = evaluate({"a": Mine(ours.predict)}, folder(tree), bootstrap=0)
    own = evaluate({"a": ours}, folder(tree), bootstrap=0)
    assert wrapped.value("pixel_aupro") == pytest.approx(own.value("pixel_aupro"), abs=1e-6)


def test_with_shots_it_is_fitted_on_the_same_files_as_ours_and_left_as_it_was(tree, small_encoder):
    class Learner(Mine):
        threshold = 0.5

        def fit(self, paths):
            self.fitted += paths

    mine = Learner()
    report = evaluate(
        {"mine": mine, "ours": vlad.Detector(Brightness(small_encoder))}, folder(tree), shots=2, seeds=2, bootstrap=0
    )
    assert report.references["mine", "set", "bolt"] == report.references["ours", "set", "bolt"]
    assert mine.fitted == [] and "mine, at its own threshold" in report.table()
    with pytest.raises(TypeError, match=r"Mine has no fit\(paths\), but shots are asked for"):
        evaluate(Mine(), folder(tree), shots=1)


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (lambda pictures: [0.5], ValueError, "Mine gave 1 results for"),
        (lambda pictures: ["high"] * len(pictures), TypeError, "gave a str for a picture; expected a number"),
        (lambda pictures: [(0.5, one) for one in pictures], ValueError, r"map of shape \(.*3\); expected \[h, w\]"),
        (lambda pictures: [float("nan")] * len(pictures), ValueError, "its score is NaN or infinite"),
    ],
)
def test_what_it_gives_is_checked(said, kind, words, tree):
    with pytest.raises(kind, match=words):
        evaluate(Mine(said), folder(tree), bootstrap=0)


def test_an_object_without_predict_is_refused(tree):
    with pytest.raises(TypeError, match=r"holds a object; expected what vlad\.load returns, or an object with predict"):
        evaluate([object()], folder(tree))


@pytest.fixture
def table(tree, tmp_path):
    """Finished scores and maps of the test pictures, by paths below the set's folder."""
    import vlad.images

    lines = ["source,score,label"]
    for one in folder(tree):
        if one.split == "test":
            ((score, amap),) = brightest([vlad.images.read(one.image)])
            source = one.image.relative_to(tree)
            (tmp_path / "maps" / source).parent.mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / "maps" / source.with_suffix(".npy"), amap)
            lines.append(f"{source.as_posix()},{score!r},x")
    (tmp_path / "theirs.csv").write_text("\n".join(lines))
    return tmp_path / "theirs.csv"


def test_finished_scores_and_maps_give_the_numbers_of_the_detector_that_wrote_them(tree, table, tmp_path):
    finished = Finished(table, tmp_path / "maps")
    report = evaluate({"theirs": finished, "live": Mine()}, folder(tree), bootstrap=0)
    for metric in ("image_auroc", "image_ap", "pixel_auroc", "pixel_aupro"):
        assert report.value(metric, detector="theirs") == pytest.approx(report.value(metric, detector="live"), abs=1e-6)


def test_a_table_of_scores_is_a_method_of_the_command_line(tree, table):
    words = ["eval", "--method", str(table), "--data", f"folder:{tree}", "--bootstrap", "0"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "theirs: zero-shot, theirs" in done.stdout


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("source,", "file,"), "the column source is missing; found file, score"),
        (lambda text: text + "\n" + text.splitlines()[1], "stands there twice"),
        (lambda text: text.replace(text.split(",")[3], "high", 1), "score is 'high"),
        (lambda text: "\n".join(text.splitlines()[:3]), "has no row for "),
        (lambda text: "source,score\n", "it has no row"),
    ],
)
def test_a_wrong_table_is_refused_in_a_sentence(change, words, tree, table):
    table.write_text(change(table.read_text()))
    with pytest.raises(ValueError, match=words):
        evaluate({"theirs": table}, folder(tree), bootstrap=0)


def test_a_source_that_fits_two_pictures_is_refused(tree, table):
    names = [line.replace("bolt/", "").replace("nut/", "") for line in table.read_text().splitlines()]
    table.write_text("\n".join(dict.fromkeys([names[0], *{n.split(",")[0]: n for n in names[1:]}.values()])))
    with pytest.raises(ValueError, match="write longer paths"):
        evaluate({"theirs": table}, folder(tree), bootstrap=0)


def test_finished_scores_are_neither_fitted_nor_of_changed_pictures(tree, table):
    with pytest.raises(TypeError, match="they cannot be fitted"):
        evaluate({"theirs": table}, folder(tree), shots=1, bootstrap=0)
    with pytest.raises(ValueError, match="leave corruptions out"):
        evaluate({"theirs": table}, folder(tree), corrupt=["blur"], bootstrap=0)


def test_maps_are_written_where_asked_for_and_read_back_with_the_predictions_as_finished_scores(tree, tmp_path):
    out = tmp_path / "out"
    words = ["eval", "--data", f"folder:{tree}", "--method", "patch_text", "--bootstrap", "0", "--metric-size", "32"]
    done = CliRunner().invoke(app, [*words, "--save-maps", "--out", str(out)])
    assert done.exit_code == 0, done.output
    first = vlad.Report.load(out)
    again = evaluate(out / "predictions.csv", folder(tree), bootstrap=0, metric_size=32)
    for metric in ("image_auroc", "pixel_auroc", "pixel_aupro"):
        assert again.value(metric) == pytest.approx(first.value(metric), abs=1e-6)
    assert len(list((out / "maps").rglob("*.npy"))) == sum(one.split == "test" for one in folder(tree))
    done = CliRunner().invoke(app, [*words, "--save-maps"])
    assert done.exit_code == 2 and "give it with --out" in done.stderr


def test_a_parquet_table_gives_the_numbers_of_the_csv_and_is_refused_like_one(tree, table, tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    from pyarrow import csv, parquet

    file = tmp_path / "theirs.parquet"
    read = csv.read_csv(table)
    parquet.write_table(read, file)
    found, expected = (evaluate(one, folder(tree), bootstrap=0) for one in (file, table))
    assert found.value("image_auroc") == expected.value("image_auroc") and found.detectors == ["theirs"]
    parquet.write_table(read.drop_columns(["score"]), file)
    with pytest.raises(ValueError, match="the column score is missing; found source, label"):
        evaluate(file, folder(tree))
    parquet.write_table(pyarrow.table({"source": ["a", None], "score": [0.5, None]}), file)
    with pytest.raises(ValueError, match="row 2: score is None; expected a number"):
        evaluate(file, folder(tree))
    file.write_bytes(b"PAR1 no table")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        evaluate(file, folder(tree))


def test_without_pyarrow_parquet_is_refused_with_the_extra_to_install(tree, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "theirs.parquet").write_bytes(b"PAR1")
    with pytest.raises(ImportError, match=r"pip install 'vlad-ad\[parquet\]', or give CSV"):
        evaluate(tmp_path / "theirs.parquet", folder(tree))
