"""What cameras, phones and loaders hand over reaches the score: frames, batches, depths, pages, names."""

import io
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import vlad
from vlad.images import PictureWarning
from vlad.images.depth import is_flat

SIDE = 32


@pytest.fixture(scope="module")
def load(small_encoder):
    """`vlad.load` with the small encoder and a name."""

    def loaded(method: str = "patch_text", **how: object):
        name = None if method in ("patch_memory", "musc") else "plate"
        return vlad.load(method, name, encoder=small_encoder, **how)

    return loaded


def frame(number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


FRAMES = [frame(number) for number in range(6)]


def refilled(kind: str = "array"):
    """The frames in one buffer that is filled anew for each, as cameras and video readers do."""
    buffer = np.empty_like(FRAMES[0])
    shown = torch.from_numpy(buffer).permute(2, 0, 1) if kind == "tensor" else buffer
    for one in FRAMES:
        buffer[:] = one
        yield shown


def scores(predictions) -> list[float]:
    return [one.score for one in predictions]


# ---- buffers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 8])
@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_each_frame_of_a_refilled_buffer_gets_its_own_score(load, kind, batch_size):
    detector = load()
    meant = scores(detector.predict(FRAMES))
    assert len(set(meant)) == len(FRAMES)
    assert scores(detector.stream(refilled(kind), batch_size=batch_size)) == pytest.approx(meant, abs=1e-6)
    assert scores(detector.predict(refilled(kind))) == pytest.approx(meant, abs=1e-6)


def test_kept_pictures_of_a_refilled_buffer_are_the_frames(load):
    for detector in (load(), load("musc")):
        for prediction, one in zip(detector.predict(refilled()), FRAMES, strict=True):
            assert np.array_equal(prediction.picture, one)


def test_frames_of_a_pil_sequence_get_their_own_scores(load, tmp_path):
    pictures = [Image.fromarray(one) for one in FRAMES]
    pictures[0].save(tmp_path / "a.tif", save_all=True, append_images=pictures[1:])
    detector = load()
    with Image.open(tmp_path / "a.tif") as opened:
        found = scores(detector.stream(ImageSequence.Iterator(opened)))
    assert found == pytest.approx(scores(detector.predict(FRAMES)), abs=1e-6)


def test_memory_of_a_refilled_buffer_holds_every_frame(load):
    detector = load("patch_memory").fit(refilled())
    assert len(detector.references) == len(FRAMES)
    assert detector.threshold == pytest.approx(load("patch_memory").fit(FRAMES).threshold, abs=1e-6)


def test_set_from_a_refilled_buffer_is_scored_as_the_frames_are(load):
    detector = load("musc")
    assert scores(detector.predict(refilled())) == pytest.approx(scores(detector.predict(FRAMES)), abs=1e-6)


def test_list_of_one_buffer_is_warned_of(load):
    detector = load()
    for given in (list(refilled()), [Image.fromarray(FRAMES[0])] * 3):
        with pytest.warns(PictureWarning, match=f"stands {len(given)} times"):
            detector.predict(given)
    with pytest.warns(PictureWarning, match="stands 6 times"):
        load("patch_memory").fit(list(refilled()), max_false_positive_rate=None)


def test_without_prefetch_each_result_comes_before_the_next_frame_is_asked_for(load):
    asked = []

    def camera():
        for number, one in enumerate(FRAMES):
            asked.append(number)
            yield one

    stream = load().stream(camera(), prefetch=False)
    for number in range(len(FRAMES)):
        next(stream)
        assert asked == list(range(number + 1))


# ---- batches, bytes, files ---------------------------------------------------------------------------------------


def test_batches_of_a_loader_are_their_pictures(load):
    detector = load()
    batch = torch.stack([torch.from_numpy(one).permute(2, 0, 1) for one in FRAMES]) / 255
    meant = pytest.approx(scores(detector.predict(FRAMES)), abs=1e-6)
    assert scores(detector.predict(batch)) == meant
    assert scores(detector.stream(batch)) == meant
    assert scores(detector.stream(torch.utils.data.DataLoader(batch, batch_size=4))) == meant
    assert scores(detector.predict([batch[:2], batch[2:]])) == meant


def test_bytes_and_opened_files_are_single_pictures(load, tmp_path):
    Image.fromarray(FRAMES[0]).save(tmp_path / "a.png")
    content, detector = (tmp_path / "a.png").read_bytes(), load()
    meant = detector.predict(tmp_path / "a.png")
    with open(tmp_path / "a.png", "rb") as opened:
        for given in (content, bytearray(content), io.BytesIO(content), opened, (tmp_path / "a.png").as_uri()):
            assert detector.predict(given).score == meant.score
    assert detector.predict((tmp_path / "a.png").as_uri()).source == str(tmp_path / "a.png")
    assert detector.predict(content).source is None and detector.predict(content).overlay().size == (SIDE, SIDE)
    assert len(detector.predict([content, io.BytesIO(content)])) == 2
    for given in (content, io.BytesIO(content), str(tmp_path / "a.png")):
        with pytest.raises(TypeError, match="predict scores one"):
            detector.stream(given)
    assert load("patch_memory").fit(content).references == ["0"]


def test_tilde_is_the_home_folder_wherever_a_path_is_given(load, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "good").mkdir()
    for number, one in enumerate(FRAMES):
        Image.fromarray(one).save(tmp_path / "good" / f"{number}.png")
    detector = load("patch_memory").fit("~/good")
    detector.save("~/x.safetensors")
    assert vlad.load("~/x.safetensors", encoder=detector.encoder).references == detector.references
    detector.predict("~/good/0.png").save("~/o.png")
    assert (tmp_path / "o.png").is_file() and (tmp_path / "x.safetensors").is_file()


# ---- depth and channels ------------------------------------------------------------------------------------------


def test_12_bits_score_as_the_same_picture_in_8_does(load, tmp_path):
    low = np.round(FRAMES[0] * (4095 / 255)).astype(np.uint16)
    Image.fromarray(low[..., 0]).save(tmp_path / "a.png")
    meant, detector = load().predict(FRAMES[0]).score, load(bits=12)
    assert detector.predict(low).score == pytest.approx(meant, abs=1e-6)
    grey = detector.predict(tmp_path / "a.png")
    assert grey.score == pytest.approx(load().predict(FRAMES[0][..., 0]).score, abs=1e-6)
    assert np.asarray(grey.overlay()).max() > 150  # not black
    with pytest.warns(PictureWarning, match="bits=12"):
        load().predict(low)


def test_run_of_dark_frames_is_warned_of_once(load):
    dark = [np.round(one * (1023 / 255)).astype(np.uint16) for one in FRAMES]
    for run in (load().predict, lambda given: list(load().stream(given, batch_size=2)), load("musc").predict):
        with pytest.warns(PictureWarning) as told:
            run(dark)
        assert [("bits=10" in str(one.message)) for one in told] == [True]
    with pytest.warns(PictureWarning, match="bits=10"):
        load("patch_memory").fit(dark)


def test_bgr_arrays_score_as_their_rgb(load):
    detector = load(channels="BGR")
    found = detector.predict([one[..., ::-1] for one in FRAMES])
    assert scores(found) == pytest.approx(scores(load().predict(FRAMES)), abs=1e-6)
    assert np.array_equal(found[0].picture, FRAMES[0])
    assert np.array_equal(np.asarray(found[0].overlay()), np.asarray(load().predict(FRAMES[0]).overlay()))
    memory = load("patch_memory", channels="BGR").fit([one[..., ::-1] for one in FRAMES])
    assert memory.threshold == pytest.approx(load("patch_memory").fit(FRAMES).threshold, abs=1e-6)


def test_how_pictures_are_read_is_kept_in_the_file_and_can_be_said_anew(load, tmp_path, small_encoder):
    load("patch_memory", bits=12, channels="BGR", pages="all").fit(FRAMES).save(tmp_path / "a.safetensors")
    again = vlad.load(tmp_path / "a.safetensors", encoder=small_encoder)
    assert again.reader.to_dict() == {"bits": 12, "channels": "BGR", "pages": "all"}
    anew = vlad.load(tmp_path / "a.safetensors", encoder=small_encoder, bits=10, channels="RGB")
    assert anew.reader.to_dict() == {"bits": 10, "channels": "RGB", "pages": "all"}
    assert again.copy().reader == again.reader


@pytest.mark.parametrize("how", [{"bits": 20}, {"channels": "GBR"}, {"pages": 3}])
def test_senseless_ways_of_reading_are_refused(load, how):
    with pytest.raises(ValueError, match="expected"):
        load(**how)


# ---- pages, sizes, left out --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    """A scan of three pages, a photo and two films."""
    place = tmp_path / "in"
    place.mkdir()
    pictures = [Image.fromarray(one) for one in FRAMES]
    pictures[0].save(place / "scan.tif", save_all=True, append_images=pictures[1:3])
    pictures[3].save(place / "photo.png")
    (place / "a.mp4").touch()
    (place / "b.mp4").touch()
    return place


def test_each_page_is_a_picture_where_asked_for_and_the_first_with_a_warning_else(load, folder):
    meant = scores(load().predict(FRAMES[:3]))
    pages = load(pages="all").predict(folder / "scan.tif")
    assert scores(pages) == pytest.approx(meant, abs=1e-6)
    assert [one.source for one in pages] == [f"{folder}/scan.tif#{number}" for number in (1, 2, 3)]
    assert pages[1].overlay().size == (SIDE, SIDE)
    with pytest.warns(PictureWarning, match="3 pages"):
        assert load().predict(folder / "scan.tif").score == pytest.approx(meant[0], abs=1e-6)
    with pytest.warns(UserWarning, match="no threshold"):
        assert len(load("patch_memory", pages="all").fit([folder / "scan.tif"]).references) == 3


def test_photo_that_is_made_much_smaller_is_warned_of_once(load):
    large = Image.fromarray(FRAMES[0]).resize((3000, 2000))
    with pytest.warns(PictureWarning, match="3000 x 2000 pixels and is seen 27 times smaller") as told:
        load().predict([large, large.rotate(180)])
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load().predict(FRAMES[0])


def test_command_gives_a_line_for_each_page_and_says_what_was_left_out(folder, tmp_path):
    command = [sys.executable, "-m", "vlad.cli", "score", str(folder), "--name", "plate", "--pages", "all"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    names = [f"{folder}/photo.png", *(f"{folder}/scan.tif#{number}" for number in (1, 2, 3))]
    assert [line["source"] for line in lines] == [*names, None]
    assert lines[-1]["left_out"] == {".mp4": 2}
    assert "2 files left out: .mp4 2" in done.stderr
    subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, check=True)
    assert (tmp_path / "out" / "maps" / "scan.tif#2.png").is_file()


def test_fit_command_counts_what_was_left_out_and_keeps_the_bits(folder, tmp_path, small_encoder):
    out = tmp_path / "a.safetensors"
    command = [sys.executable, "-m", "vlad.cli", "fit", str(folder), "--method", "patch_memory", "--out", str(out)]
    done = subprocess.run([*command, "--bits", "12", "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["left_out"] == {".mp4": 2}
    assert done.stderr.count("2 files left out: .mp4 2") == 1 and "3 pages" in done.stderr
    assert vlad.load(out).reader.bits == 12


# ---- names, dead cameras, large pictures, other processes --------------------------------------------------------


def scored(inputs: Path, out: Path, detector, **how: object) -> list[dict]:
    from vlad.folder import score_folder

    score_folder(detector, [inputs], out, **how)
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_no_name_ends_a_run(load, tmp_path):
    names = ["a" * 251 + ".png", "ü" * 120 + "é.png", "tab\t and\nline.png", "x.png", "x.png.png/y.png", "z.png"]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(FRAMES[0]).save(tmp_path / "in" / name)
    (tmp_path / "in" / "\udcff.png").symlink_to(tmp_path / "in" / "z.png")
    lines = scored(tmp_path / "in", tmp_path / "out", load())
    assert len(lines) == 7
    failed = [line for line in lines if line["error"]]
    assert (
        len(failed) == 1 and "its name leaves no place for a file" in failed[0]["error"]
    )  # x.png or what is below x.png.png
    assert len(scored(tmp_path / "in", tmp_path / "out", load(), resume=True)) == 7


@pytest.mark.parametrize("colour", ["black", "grey", "white", "blue"])
def test_dead_camera_is_named_and_never_silently_good(load, tmp_path, colour):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (64, 64), colour).save(tmp_path / "in" / "a.png")
    Image.fromarray(FRAMES[0]).save(tmp_path / "in" / "b.png")
    with pytest.warns(PictureWarning, match="without any structure"):
        dead, alive = scored(tmp_path / "in", tmp_path / "out", load())
    assert "without any structure" in dead["notes"][0] and "notes" not in alive
    with pytest.warns(PictureWarning, match="without any structure"):
        assert load("musc").predict([tmp_path / "in" / "a.png", *FRAMES[:2]])[0].notes


def noisy(spread, level, seed=0, size=(120, 160)):
    draw = np.random.default_rng(seed).normal(level, spread, (*size, 3))
    return draw.round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("level", [0, 3, 120, 255])
@pytest.mark.parametrize("spread", [0.5, 1, 2, 3])
def test_a_covered_lens_gives_noise_and_no_structure(spread, level):
    assert all(is_flat(noisy(spread, level, seed)) for seed in range(3))


def marked(row):
    picture = noisy(1, 120)
    picture[60 : 60 + row, 80 : 80 + row] -= 12
    return picture


@pytest.mark.parametrize(
    "picture",
    [
        marked(2),
        marked(20),
        noisy(1, np.linspace(118, 122, 160)[None, :, None]),  # light from one side
        noisy(1, 100 + 6 * (np.arange(160) // 4 % 2)[None, :, None]),  # a weave
        noisy(12, 120),
        noisy(2, 120, size=(30, 30)),
    ],
    ids=["speck", "spot", "light", "weave", "grain", "too small to tell"],
)
def test_what_has_a_little_structure_is_no_noise(picture):
    assert not is_flat(picture)


def test_batch_of_large_pictures_is_smaller_and_scores_the_same(load, monkeypatch):
    meant = scores(load().predict(FRAMES))
    for limit in ("BATCH_PIXELS", "AT_ONCE_PIXELS"):
        monkeypatch.setattr(f"vlad.detector.predicting.{limit}", SIDE * SIDE * 2)
    asked = []

    def camera():
        for number, one in enumerate(FRAMES):
            asked.append(number)
            yield one

    stream = load().stream(camera(), batch_size=6)
    found = [next(stream)]
    assert len(asked) <= 4  # two and two ahead
    assert scores([*found, *stream]) == pytest.approx(meant, abs=1e-6)


def test_detector_travels_to_another_process_with_its_way_of_reading(load):
    import pickle

    detector = load("patch_memory", bits=12).fit(FRAMES)
    content = pickle.dumps(detector)
    again = pickle.loads(content)
    assert len(content) < 2_000_000 and again.reader.bits == 12
    assert again.predict(FRAMES[0]).score == pytest.approx(detector.predict(FRAMES[0]).score, abs=1e-6)


def test_evaluation_reads_as_its_detectors_do(load, tmp_path):
    from vlad.datasets.samples import Sample

    def samples(folder: str, pictures: list[np.ndarray]) -> list[Sample]:
        (tmp_path / folder).mkdir()
        for number, one in enumerate(pictures):
            Image.fromarray(one).save(tmp_path / folder / f"{number}.png")
        files = [tmp_path / folder / f"{number}.png" for number in range(len(pictures))]
        return [Sample(file, None, number % 2, "plate", "x", "test") for number, file in enumerate(files)]

    low = samples("low", [np.round(one[..., 0] * (4095 / 255)).astype(np.uint16) for one in FRAMES])
    plain = samples("plain", [one[..., 0] for one in FRAMES])
    with warnings.catch_warnings():
        warnings.simplefilter("error", PictureWarning)
        found = vlad.evaluate(load(bits=12), low, bootstrap=0)
    meant = vlad.evaluate(load(), plain, bootstrap=0)
    thresholds = [[row.threshold for row in report.rows if row.threshold is not None] for report in (found, meant)]
    assert thresholds[0] and thresholds[0] == pytest.approx(thresholds[1], abs=1e-6)  # one of the scores
    with pytest.raises(ValueError, match="in different ways"):
        vlad.evaluate({"12": load(bits=12), "16": load()}, low)


def test_regions_of_a_very_large_picture_are_those_of_its_full_map_but_for_a_few_pixels(monkeypatch):
    from vlad.prediction import Prediction

    amap = np.zeros((8, 8), np.float32)
    amap[2:4, 5:7] = 1
    meant = Prediction(0.9, amap, (640, 960), threshold=0.5).regions()
    monkeypatch.setattr("vlad.prediction.REGION_PIXELS", 640 * 960 // 9)
    for found in (Prediction(0.9, amap, (640, 960), threshold=0.5), Prediction(0.9, amap, (640, 960))):
        for regions in (found.regions(), found.regions(0.5)):
            assert len(regions) == len(meant) == 1
            assert np.abs(np.subtract(regions[0].box, meant[0].box)).max() <= 3
            assert regions[0].area == pytest.approx(meant[0].area, rel=0.05)
            assert regions[0].center == pytest.approx(meant[0].center, abs=2)
            assert regions[0].location == meant[0].location
