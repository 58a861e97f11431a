"""`Detector.add` and `vlad fit --add-to`: further normals beside those learnt before, and where that cannot be."""

import json
import threading

import numpy as np
import pytest
from conftest import GOLDEN
from PIL import Image
from typer.testing import CliRunner

import vlad
import vlad.memory.normals
from vlad.cli import app


@pytest.fixture(scope="module")
def pictures(golden_weights):
    return [golden_weights.image(seed) for seed in range(20, 30)]


@pytest.fixture
def detector(small_encoder):
    return vlad.load("patch_text", "bolt", encoder=small_encoder)


def test_what_fit_was_told_holds_for_what_is_added(detector, small_encoder, pictures, tmp_path):
    for how in ({"review": True}, {"max_false_positive_rate": 0.2}):
        detector.fit(pictures[:5], **how).save(tmp_path / "a.safetensors")
        later = vlad.load(tmp_path / "a.safetensors", encoder=small_encoder).add(pictures[5:])
        at_once = vlad.load("patch_text", "bolt", encoder=small_encoder).fit(pictures, **how)
        assert later.calibration == at_once.calibration and later.map_calibration == at_once.map_calibration


def test_adding_twice_and_to_nothing_is_fitting_all(detector, small_encoder, pictures):
    with pytest.warns(UserWarning, match="no threshold from 3 normals"):
        detector.add(pictures[:3])
    detector.add(pictures[3:5]).add(iter(pictures[5:]))
    at_once = vlad.load("patch_text", "bolt", encoder=small_encoder).fit(pictures)
    assert detector.calibration == at_once.calibration and detector.references == at_once.references


def test_a_picture_that_is_there_already_changes_nothing(detector, pictures, caplog):
    judge = detector.fit(pictures[:6]).judge
    detector.add(pictures[2:4])
    assert detector.judge is judge and "left out, as the same picture is there already: 6, 7" in caplog.text


def test_other_words_have_thresholds_again_once_pictures_are_added(detector, small_encoder, pictures):
    detector.fit(pictures[:6]).describe("pipe")
    detector.add(pictures[6:])
    assert detector.calibration == vlad.load("patch_text", "pipe", encoder=small_encoder).fit(pictures).calibration


def test_two_files_of_one_name_keep_two_names(detector, pictures, tmp_path):
    files = [tmp_path / day / "1.png" for day in ("monday", "tuesday")]
    for number, file in enumerate(files):
        file.parent.mkdir()
        Image.fromarray(pictures[number]).save(file)
    with pytest.warns(UserWarning):
        detector.fit(files[0]).add(files[1])
    assert detector.references == ["1.png", str(files[1])]


def test_an_addition_that_fails_leaves_the_detector_as_it_was(detector, pictures, tmp_path):
    judge = detector.fit(pictures[:6]).judge
    (tmp_path / "broken.png").write_text("no picture")
    with pytest.raises(vlad.ImageError, match="broken"):
        detector.add([pictures[6], tmp_path / "broken.png"])
    with pytest.raises(ValueError, match="at least one normal picture"):
        detector.add([])
    assert detector.judge is judge


def test_without_the_earlier_pictures_nothing_is_added_and_it_is_said_why(
    detector, small_encoder, tiny_encoder, pictures, tmp_path, monkeypatch
):
    detector.fit(pictures[:6]).save(tmp_path / "bare.safetensors", pictures=False)
    detector.save(tmp_path / "whole.safetensors")
    assert b"pictures.0" not in (tmp_path / "bare.safetensors").read_bytes()
    bare = vlad.load(tmp_path / "bare.safetensors", encoder=small_encoder)
    assert bare.predict(pictures[7]).to_dict() == detector.predict(pictures[7]).to_dict()
    old = vlad.load(GOLDEN / "version_0_1" / "memory.safetensors", encoder=tiny_encoder)
    labelled = vlad.load("patch_memory", encoder=small_encoder).fit(pictures[:6], anomalous=pictures[7:])
    monkeypatch.setattr(vlad.memory.normals, "MOST_BYTES", 1000)
    many = vlad.load("patch_memory", encoder=small_encoder).fit(pictures[:6])
    for one, why in ((bare, "without good pictures"), (old, "older VLAD"), (labelled, "anomalous"), (many, "MiB")):
        before = one.judge
        with pytest.raises(RuntimeError, match=f"nothing can be added to this detector, as .*{why}.*: fit it anew"):
            one.add(pictures[8:])
        assert one.judge is before


def test_a_detector_copied_before_goes_on_with_its_own_normals(detector, pictures):
    other = detector.fit(pictures[:6]).copy()
    detector.add(pictures[6:])
    assert (other.calibration.n, detector.calibration.n) == (6, 10)
    assert other.add(pictures[6:]).calibration == detector.calibration


def test_meanwhile_another_thread_sees_a_whole_detector(detector, pictures):
    detector.fit(pictures[:6])
    seen, done = set(), threading.Event()

    def look():
        while not done.is_set():
            said = detector.predict(pictures[9])
            seen.add((said.score, said.threshold))

    thread = threading.Thread(target=look)
    thread.start()
    before = detector.predict(pictures[9])
    detector.add(pictures[6:9])
    done.set()
    thread.join()
    after = detector.predict(pictures[9])
    assert seen <= {(one.score, one.threshold) for one in (before, after)}


def test_vlad_fit_adds_to_a_file_and_writes_another(small_folder, pictures, tmp_path):
    for number, picture in enumerate(pictures):
        (folder := tmp_path / ("day1" if number < 6 else "day2")).mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / f"{number}.png")

    def run(*told):
        encoder = ("--encoder", f"local-dir:{small_folder}")
        return CliRunner().invoke(app, [str(one) for one in ("fit", *told, *encoder)])

    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    done = run(tmp_path / "day1", "--name", "bolt", "--out", first)
    assert done.exit_code == 0 and "--no-pictures leaves them out" in done.stdout, done.output
    before = first.read_bytes()
    done = run(tmp_path / "day2", "--add-to", first, "--out", second, "--no-pictures", "--json")
    assert done.exit_code == 0 and first.read_bytes() == before, done.output
    done_at_once = run(
        tmp_path / "day1", tmp_path / "day2", "--name", "bolt", "--out", tmp_path / "c.safetensors", "--json"
    )
    added, at_once = (json.loads(one.stdout) for one in (done, done_at_once))
    assert added["normals"] == 10 and added["threshold"] == pytest.approx(at_once["threshold"], abs=1e-6)
    for told, words in (
        ((second,), "saved without good pictures"),
        ((first, "--review"), "goes on as"),
        ((first, "--method", "musc"), "records its own method"),
    ):
        done = run(tmp_path / "day2", "--out", tmp_path / "d.safetensors", "--add-to", *told)
        assert done.exit_code == 2 and words in done.stderr and not (tmp_path / "d.safetensors").exists()


def test_the_kept_pictures_are_no_larger_than_the_method_sees_them(detector, golden_weights, tmp_path):
    large = [np.kron(golden_weights.image(seed), np.ones((4, 4, 1), np.uint8)) for seed in range(5)]
    detector.fit(large)
    side = detector.resolution
    assert {one.shape for one in detector.judge.normals.pictures} == {(side, side, 3)}


def test_pictures_of_which_a_part_counts_are_kept_whole(small_encoder, golden_weights, tmp_path):
    pictures = [golden_weights.image(seed, 150) for seed in range(7)]
    framed = {"encoder": small_encoder, "roi": (10, 20, 140, 130)}
    vlad.load("patch_memory", **framed).fit(pictures[:5]).save(tmp_path / "a.safetensors")
    later = vlad.load(tmp_path / "a.safetensors", encoder=small_encoder)
    later.ignore = [(30, 30, 60, 60)]
    at_once = vlad.load("patch_memory", **framed, ignore=[(30, 30, 60, 60)]).fit(pictures)
    assert later.add(pictures[5:]).calibration == at_once.calibration


def test_small_pictures_do_not_serve_once_places_are_ignored(small_encoder, pictures):
    detector = vlad.load("patch_memory", encoder=small_encoder).fit(pictures[:5])
    detector.ignore = [(30, 30, 60, 60)]
    with pytest.raises(RuntimeError, match="ignores other places than when it was fitted: fit it anew"):
        detector.add(pictures[5:])
