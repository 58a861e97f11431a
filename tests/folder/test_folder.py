"""`score_folder`: what it writes, and what a killed run may go on with."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_sets import brightness

import vlad
from vlad.folder import LINES, list_pictures, score_folder
from vlad.folder.lines import Wanted

KEYS = {
    *("source", "verdict", "score", "threshold", "p_value", "is_anomalous", "name", "size", "regions", "error"),
}


@pytest.fixture(scope="module")
def detector(small_encoder):
    return vlad.load(name="metal bolt", encoder=small_encoder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Seven pictures in two folders, one of them broken."""
    root = tmp_path_factory.mktemp("photos")
    for index, place in enumerate(["a/1.png", "a/2.jpg", "a/3.png", "b/1.png", "b/2.png", "c.png"]):
        path = root / place
        path.parent.mkdir(exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 256, (40, 50 + index, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    (root / "b" / "broken.png").write_text("not a picture")
    return root


def lines(out):
    return [json.loads(line) for line in (out / LINES).read_text(encoding="ascii").splitlines()]


def stop_after(count):
    def progress(line, done, total):
        if done == count:
            raise KeyboardInterrupt

    return progress


def same(ours, theirs):
    """Equal but for the last digits of float32, which may depend on where a batch was cut."""
    assert [line["source"] for line in ours] == [line["source"] for line in theirs]
    for our, their in zip(ours, theirs, strict=True):
        assert our["error"] == their["error"]
        assert our["score"] == pytest.approx(their["score"], abs=1e-6)
        assert len(our["regions"]) == len(their["regions"])


@pytest.fixture(scope="module")
def undisturbed(detector, photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    return out, score_folder(detector, [photos], out, batch_size=2)


def test_a_run_writes_one_line_a_picture_in_order(undisturbed, photos):
    out, summary = undisturbed
    places = ["a/1.png", "a/2.jpg", "a/3.png", "b/1.png", "b/2.png", "b/broken.png", "c.png"]
    assert sorted(line["source"] for line in lines(out)) == [str(photos / place) for place in places]
    assert [line["source"] for line in lines(out)] == [str(found.path) for found in list_pictures([photos])]
    assert all(line.keys() == KEYS | {"overlay", "file"} for line in lines(out) if not line["error"])
    assert all(line.keys() == KEYS for line in lines(out) if line["error"])
    assert (summary.scored, summary.skipped, len(summary.failed)) == (6, 0, 1)


def test_the_encoder_goes_on_while_overlays_are_drawn(small_encoder, photos, tmp_path, monkeypatch):
    detector, behind, written = brightness(small_encoder), [], Wanted.written

    def slowly(wanted, *given):
        end = time.monotonic() + 5
        while detector.scorer.seen <= 2 + len(behind) and detector.scorer.seen < 6 and time.monotonic() < end:
            time.sleep(0.01)
        behind.append(detector.scorer.seen - len(behind))
        return written(wanted, *given)

    monkeypatch.setattr(Wanted, "written", slowly)
    score_folder(detector, [photos], tmp_path / "out", batch_size=2)
    assert behind[0] > 2, "the second batch was scored before the first was drawn"
    assert [line["source"] for line in lines(tmp_path / "out")] == [
        str(found.path) for found in list_pictures([photos])
    ]


def test_of_large_pictures_none_waits_for_its_overlay(small_encoder, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("vlad.folder.lines.LARGE", 1)
    detector, waited, written = brightness(small_encoder), [], Wanted.written

    def counted(wanted, *given):
        time.sleep(0.05)
        waited.append(detector.scorer.seen - len(waited))
        return written(wanted, *given)

    monkeypatch.setattr(Wanted, "written", counted)
    score_folder(detector, [photos], tmp_path / "out", batch_size=1)
    assert max(waited) == 1


def test_a_broken_picture_is_an_error_line_and_the_rest_goes_on(undisturbed, photos):
    out, summary = undisturbed
    (broken,) = [line for line in lines(out) if line["error"]]
    assert broken["source"] == str(photos / "b" / "broken.png") and broken["score"] is None
    assert "broken.png" in broken["error"]
    assert summary.failed == ((broken["source"], broken["error"]),)


def test_overlays_have_the_size_of_their_picture_and_keep_its_suffix(undisturbed, photos):
    out, _ = undisturbed
    maps = sorted(str(path.relative_to(out / "maps")) for path in (out / "maps").rglob("*.png"))
    assert maps == [
        str(Path(p)) for p in ("a/1.png.png", "a/2.jpg.png", "a/3.png.png", "b/1.png.png", "b/2.png.png", "c.png.png")
    ]
    assert Image.open(out / "maps" / "a" / "2.jpg.png").size[0] >= 51


def test_scores_are_those_of_predict(undisturbed, detector, photos):
    out, _ = undisturbed
    scores = {line["source"]: line["score"] for line in lines(out)}
    assert scores[str(photos / "c.png")] == pytest.approx(detector.predict(photos / "c.png").score, abs=1e-6)


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_an_interrupted_run_goes_on_to_the_same_lines(stop, undisturbed, detector, photos, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        score_folder(detector, [photos], tmp_path, batch_size=2, progress=stop_after(stop))
    assert len(lines(tmp_path)) == stop
    summary = score_folder(detector, [photos], tmp_path, batch_size=3, resume=True)
    same(lines(tmp_path), lines(undisturbed[0]))
    assert summary.scored + summary.skipped == 6


def test_a_torn_last_line_is_scored_again(undisturbed, detector, photos, tmp_path):
    score_folder(detector, [photos], tmp_path, maps=False)
    whole = (tmp_path / LINES).read_bytes()
    (tmp_path / LINES).write_bytes(whole[:-30])
    summary = score_folder(detector, [photos], tmp_path, maps=False, resume=True)
    assert summary.scored == 1
    same(lines(tmp_path), lines(undisturbed[0]))


def test_a_mended_picture_takes_the_place_of_its_error_line(detector, photos, tmp_path):
    copies = tmp_path / "copies"
    copies.mkdir()
    for name in ("1.png", "3.png"):
        (copies / name).write_bytes((photos / "a" / name).read_bytes())
    (copies / "2.png").write_bytes((photos / "a" / "1.png").read_bytes()[:60])
    assert len(score_folder(detector, [copies], tmp_path / "out").failed) == 1
    (copies / "2.png").write_bytes((photos / "b" / "2.png").read_bytes())
    summary = score_folder(detector, [copies], tmp_path / "out", resume=True)
    assert (summary.scored, summary.skipped, summary.failed) == (1, 2, ())
    assert [Path(line["source"]).name for line in lines(tmp_path / "out")] == ["1.png", "2.png", "3.png"]


def test_pictures_added_later_are_scored_on_resume(detector, photos, tmp_path):
    score_folder(detector, [photos / "b"], tmp_path, maps=False)
    score_folder(detector, [photos / "a", photos / "b"], tmp_path, maps=False, resume=True)
    assert [Path(line["source"]).parent.name for line in lines(tmp_path)] == ["a"] * 3 + ["b"] * 3


def test_existing_results_are_never_overwritten(detector, photos, tmp_path):
    score_folder(detector, [photos / "c.png"], tmp_path)
    with pytest.raises(FileExistsError, match="resume"):
        score_folder(detector, [photos / "c.png"], tmp_path)
    assert len(lines(tmp_path)) == 1


def test_other_settings_are_refused_and_named(detector, photos, tmp_path):
    score_folder(detector, [photos / "c.png"], tmp_path, threshold=0.25)
    with pytest.raises(ValueError, match=r"threshold was 0\.25, now 0\.5"):
        score_folder(detector, [photos], tmp_path, threshold=0.5, resume=True)
    other = vlad.load(name="wooden spoon", encoder=detector.encoder)
    with pytest.raises(ValueError, match='name was "metal bolt", now "wooden spoon"'):
        score_folder(other, [photos], tmp_path, threshold=0.25, resume=True)
    assert len(lines(tmp_path)) == 1


def test_results_of_unknown_settings_are_refused(detector, photos, tmp_path):
    (tmp_path / LINES).write_text("")
    with pytest.raises(ValueError, match=r"settings\.json"):
        score_folder(detector, [photos], tmp_path, resume=True)


def test_the_settings_say_what_the_numbers_depend_on(undisturbed, detector):
    settings = json.loads((undisturbed[0] / "settings.json").read_text())
    assert settings["encoder"] == detector.encoder.name and settings["digest"] == detector.encoder.digest
    assert settings["method"] == "patch_text" and settings["dtype"] == "float32" and settings["name"] == "metal bolt"
    assert settings["prompts"]["normal"] == list(detector.pack.normal)


@pytest.mark.skipif(sys.platform == "win32", reason="no fcntl")
def test_two_runs_at_once_are_refused(detector, photos, tmp_path):
    def again(line, done, total):
        with pytest.raises(RuntimeError, match="another run"):
            score_folder(detector, [photos], tmp_path, resume=True)

    assert score_folder(detector, [photos / "c.png"], tmp_path, progress=again).scored == 1


def test_a_threshold_decides_without_changing_the_detector(detector, photos, tmp_path):
    summary = score_folder(detector, [photos / "c.png"], tmp_path, threshold=0.0)
    assert summary.anomalous == 1 and lines(tmp_path)[0]["is_anomalous"] is True
    assert lines(tmp_path)[0]["threshold"] == 0.0 and detector.threshold is None


def test_pictures_of_the_same_name_keep_separate_overlays(detector, photos, tmp_path):
    score_folder(detector, [photos / "a", photos / "b"], tmp_path)
    maps = [path for path in (tmp_path / "maps").rglob("*.png")]
    assert len(maps) == 5 and (tmp_path / "maps" / "3.png.png").exists()


def test_a_picture_given_twice_is_scored_once(detector, photos, tmp_path):
    picture = photos / "a" / "1.png"
    assert score_folder(detector, [picture, photos / "a", picture], tmp_path, maps=False).scored == 3
    assert [Path(line["source"]).name for line in lines(tmp_path)] == ["1.png", "2.jpg", "3.png"]


def test_overlays_of_an_earlier_run_are_no_input(detector, photos, tmp_path):
    (tmp_path / "1.png").write_bytes((photos / "a" / "1.png").read_bytes())
    score_folder(detector, [tmp_path], tmp_path)
    assert score_folder(detector, [tmp_path], tmp_path, resume=True).scored == 0


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_odd_file_names_survive(detector, photos, tmp_path):
    folder = tmp_path / "odd [names]"
    folder.mkdir()
    for name in ("line\nbreak.png", "größe ☂.png", os.fsdecode(b"latin-\xe9.png"), "[x]*.png"):
        (folder / name).write_bytes((photos / "c.png").read_bytes())
    summary = score_folder(detector, [folder], tmp_path / "out")
    assert summary.scored == 4 and len((tmp_path / "out" / LINES).read_bytes().splitlines()) == 4
    assert all(Path(line["source"]).exists() for line in lines(tmp_path / "out"))
    assert score_folder(detector, [folder], tmp_path / "out", resume=True).skipped == 4


def test_without_a_folder_nothing_is_written(detector, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    summary = score_folder(detector, [photos], progress=lambda line, done, total: seen.append((done, total)))
    assert summary.scored == 6 and seen == [(count, 7) for count in range(1, 8)] and not list(tmp_path.iterdir())
