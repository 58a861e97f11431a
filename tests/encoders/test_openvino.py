"""The blocks in OpenVINO: float32 as torch's, coarser ones near, one graph kept whole, and never torch in its place."""

import logging
import pickle
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import vlad
from vlad.encoders.encoder import Encoder
from vlad.files import cache_dir

openvino = pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
pytest.importorskip("nncf", reason="the extra `openvino` is not installed")

METHODS = ("patch_text", "winclip", "clip_surgery", "clip_ad", "april_gan", "anomalyclip", "adaptclip")
NEEDS = "int8 with runtime='openvino' needs pictures to take its ranges from"


@pytest.fixture(scope="module")
def engine():
    return Encoder.load("tiny", device="cpu", dtype="float32", runtime="openvino")


@pytest.fixture(scope="module")
def pictures(golden_weights):
    return [golden_weights.image(seed, size) for seed, size in enumerate((224, 200, 150, 224, 96, 224, 224, 300))]


@pytest.fixture(scope="module")
def int8(golden_weights):
    encoder = Encoder.load("tiny", device="cpu", dtype="int8", runtime="openvino")
    encoder.calibrate(golden_weights.image(seed, 224) for seed in range(40, 56))
    return encoder


def loaded(method, encoder):
    words = vlad.methods.method_class(method).words != "none"
    return vlad.load(method, "metal bolt" if words else None, encoder=encoder)


@pytest.mark.parametrize("method", METHODS)
def test_float32_gives_torchs_scores(method, engine, tiny_encoder, pictures):
    ours, exact = (loaded(method, encoder).predict(pictures[:3]) for encoder in (engine, tiny_encoder))
    width = exact[0].scale[1] - exact[0].scale[0]
    for one, other in zip(ours, exact, strict=True):
        assert abs(one.score - other.score) <= 1e-5 * max(1, width)
        assert np.abs(one.map - other.map).max() <= 1e-5 * max(1, width)


def test_normals_and_words_take_one_run(engine, pictures, monkeypatch):
    detector, counted = loaded("patch_text", engine).fit(pictures[:6]), []
    run = engine.engine.run
    monkeypatch.setattr(engine.engine, "run", lambda *given: counted.append(given) or run(*given))
    detector.predict(pictures[0])
    assert len(counted) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_coarser_arithmetic_stays_near(dtype, int8, tiny_encoder, pictures):
    encoder = int8 if dtype == "int8" else Encoder.load("tiny", device="cpu", dtype=dtype, runtime="openvino")
    pixels, layers = tiny_encoder.pixels(pictures), tuple(range(1, tiny_encoder.depth + 1))
    least = {"bfloat16": 0.9999, "int8": 0.99}[dtype]  # noise is farther from what ranges were taken from than photos
    with torch.no_grad():
        for ours, exact in zip(encoder(pixels, layers).patches, tiny_encoder(pixels, layers).patches, strict=True):
            assert F.cosine_similarity(ours, exact, dim=-1).mean() >= least


@pytest.mark.parametrize("method", ["patch_text", "winclip"])
def test_a_batch_of_eight_gives_the_scores_of_single_pictures_in_int8(method, int8, pictures):
    detector = loaded(method, int8)
    together, alone = detector.predict(pictures), [detector.predict(one) for one in pictures]
    assert max(abs(one.score - other.score) for one, other in zip(together, alone, strict=True)) <= 1e-3


@pytest.mark.parametrize("units", [True, False])
def test_weights_have_7_bits_where_sums_of_two_products_would_overflow(units, golden_weights, monkeypatch, tmp_path):
    monkeypatch.setenv("VLAD_CACHE", str(tmp_path))
    monkeypatch.setattr("vlad.encoders.openvino.has_int8_units", lambda: units)
    encoder = Encoder.load("tiny", device="cpu", dtype="int8", runtime="openvino")
    encoder.calibrate([golden_weights.image(40, 64)])
    (file,) = tmp_path.rglob("blocks.xml")
    constants = [node for node in openvino.Core().read_model(file).get_ops() if node.get_type_name() == "Constant"]
    weights = [node.get_data() for node in constants if node.get_element_type() == openvino.Type.i8]
    largest = max(int(np.abs(one.astype(int)).max()) for one in weights)
    assert 100 < largest <= 128 if units else 32 < largest <= 64


def test_ranges_that_detectors_rely_on_are_not_exchanged(int8, pictures):
    with pytest.raises(ValueError, match="has taken int8's ranges from other pictures; load it anew"):
        vlad.load("patch_text", "metal bolt", encoder=int8, calibration=pictures)


def test_int8_without_pictures_is_refused_until_fit_brings_them(pictures, golden_weights):
    encoder = Encoder.load("tiny", device="cpu", dtype="int8", runtime="openvino")
    with pytest.raises(ValueError, match=NEEDS):
        loaded("patch_text", encoder).predict(pictures[0])
    detector = loaded("patch_text", encoder).fit([golden_weights.image(seed, 224) for seed in range(60, 66)])
    assert encoder.calibrated and detector.encoder.arithmetic.startswith("int8 on openvino, calibrated on ")


def test_a_file_takes_its_ranges_out_of_the_cache_and_keeps_its_threshold(int8, golden_weights, tmp_path, caplog):
    detector = loaded("patch_memory", int8).fit([golden_weights.image(seed, 224) for seed in range(60, 66)])
    detector.save(tmp_path / "bolt.safetensors")
    again = vlad.load(tmp_path / "bolt.safetensors", device="cpu")
    assert again.encoder.runtime == "openvino" and again.threshold == detector.threshold is not None
    with caplog.at_level(logging.WARNING):
        other = vlad.load(tmp_path / "bolt.safetensors", device="cpu", dtype="float32", runtime="torch")
    assert other.threshold is None and "dropped, fit again in float32" in caplog.text


def test_float32_is_one_precision_on_every_runtime(engine, golden_weights, tmp_path):
    detector = vlad.load("patch_memory", encoder=engine).fit([golden_weights.image(s, 224) for s in range(60, 66)])
    detector.save(tmp_path / "bolt.safetensors")
    assert vlad.load(tmp_path / "bolt.safetensors", runtime="torch").threshold == detector.threshold is not None


def test_the_graph_is_made_once_and_made_anew_where_it_is_cut(engine, pictures, monkeypatch, tmp_path):
    monkeypatch.setenv("VLAD_CACHE", str(tmp_path))
    expected = loaded("patch_text", engine).predict(pictures[0]).score

    def scored():
        encoder = Encoder.load("tiny", device="cpu", dtype="float32", runtime="openvino")
        assert abs(loaded("patch_text", encoder).predict(pictures[0]).score - expected) <= 1e-6
        (folder,) = (cache_dir() / "engines").iterdir()
        return folder / "blocks.bin"

    made = scored().stat().st_mtime_ns
    file = scored()
    assert file.stat().st_mtime_ns == made
    file.write_bytes(file.read_bytes()[:100])
    assert scored().stat().st_size > 100
    (file.parent / "about.json").write_text("{")
    assert scored().stat().st_size > 100


def test_what_edits_tokens_runs_on_torch_and_says_so(engine, tiny_encoder, pictures, caplog):
    ours, exact = (loaded("adaclip", encoder).predict(pictures[0]) for encoder in (engine, tiny_encoder))
    assert ours.score == pytest.approx(exact.score, rel=1e-5) and "runs on torch, in float32" in caplog.text


def test_gradients_come_from_torch(engine):
    pixels = torch.zeros(1, 3, 224, 224, requires_grad=True)
    engine(pixels).image.sum().backward()
    assert pixels.grad is not None


def test_an_encoder_pickles_with_its_runtime(engine, int8):
    assert pickle.loads(pickle.dumps(engine)).runtime == "openvino"
    assert pickle.loads(pickle.dumps(int8)).calibrated == int8.calibrated


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"runtime": "tensorrt"}, ValueError, "runtime is 'tensorrt'; expected one of torch, openvino"),
        ({"runtime": "openvino", "dtype": "float16"}, ValueError, "computes in float32, bfloat16, int8; dtype is"),
        ({"runtime": "openvino", "name": "dino:small/random:0"}, TypeError, "computes the blocks of CLIPs, and"),
    ],
)
def test_wrong_runtimes_are_refused_in_a_sentence(given, error, words):
    with pytest.raises(error, match=words):
        Encoder.load(given.pop("name", "tiny"), device="cpu", **given)


@pytest.mark.parametrize("name", ["openvino", "nncf"])
def test_a_missing_package_is_named_with_its_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {name}, which is not installed; pip install 'vlad-ad\[open"):
        Encoder.load("tiny", device="cpu", dtype="int8", runtime="openvino")
