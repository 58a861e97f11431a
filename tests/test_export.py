"""Detectors as .onnx files: as torch says it, refused where they are not, and run without torch and VLAD."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vlad
from vlad.encoders.encoder import Encoder

pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
import onnx
import onnxruntime

ROOT = Path(__file__).parents[1]
PICTURES = sorted((ROOT / "examples" / "pictures").glob("*.jpg"))
MANY = ["winclip", "clip_surgery", "clip_ad", "april_gan", "anomalyclip", "adaptclip", "anovl", "patch_memory"]
MANY += ["subspacead", "gaussian"]
OPTIONS = {"anovl": {"views": 1}}


def loaded(method, encoder, **options):
    words = vlad.methods.method_class(method).words != "none"
    return vlad.load(method, "brick" if words else None, encoder=encoder, **OPTIONS.get(method, {}), **options)


def run(file, pictures, side):
    squares = np.stack([np.asarray(Image.open(p).convert("RGB").resize((side, side), 3)) for p in pictures])
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"pictures": squares})


@pytest.fixture(scope="module")
def normals(golden_weights):
    return [golden_weights.image(seed, 224) for seed in range(30, 36)]


@pytest.fixture(scope="module")
def exported(tiny_encoder, normals, tmp_path_factory):
    """The default detector with six normals, and its graph."""
    detector = loaded("patch_text", tiny_encoder).fit(normals)
    file = tmp_path_factory.mktemp("graph") / "brick.onnx"
    return detector, file, detector.export(file, pictures=PICTURES[:3])


def test_the_graph_says_what_the_detector_says_at_any_batch(exported):
    detector, file, report = exported
    expected = detector.predict(PICTURES)
    assert report.pictures == 3 and report.bytes == file.stat().st_size
    for count in (1, 3, 6):
        score, amap = run(file, PICTURES[:count], 224)
        assert np.abs(score - [one.score for one in expected[:count]]).max() <= 1e-6
        assert np.abs(amap - np.stack([one.map for one in expected[:count]])).max() <= 1e-5


def test_the_file_says_what_its_numbers_mean_and_nothing_of_where_it_was_made(exported):
    detector, file, _ = exported
    model = onnx.load(file)
    about = json.loads(model.metadata_props[0].value)
    assert about["threshold"] == detector.threshold and about["side"] == 224 and about["resampling"] == "bicubic"
    assert {node.domain for node in model.graph.node} == {""}
    assert str(ROOT).encode() not in file.read_bytes() and b"site-packages" not in file.read_bytes()


def test_openvino_reads_the_same_file(exported):
    openvino = pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    detector, file, _ = exported
    squares = np.stack([np.asarray(Image.open(p).convert("RGB").resize((224, 224), 3)) for p in PICTURES[:2]])
    how = {"INFERENCE_PRECISION_HINT": "f32"}
    found = openvino.Core().compile_model(str(file), "CPU", how)(squares)
    for score, one in zip(found["score"], detector.predict(PICTURES[:2]), strict=True):
        assert abs(score - one.score) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("method", MANY)
def test_each_method_is_a_graph(method, fitted, tiny_encoder, normals, tmp_path):
    detector = loaded(method, tiny_encoder)
    if fitted and not detector.scorer.memories():
        pytest.skip("it does not learn from normals")
    if fitted or detector.scorer.needs_normals:
        detector.fit(normals)
    report = detector.export(tmp_path / "a.onnx", pictures=PICTURES[:3])
    low, high = detector.scorer.map_range
    assert report.max_score <= 1e-6 and report.max_map <= 1e-5 * (high - low)


def test_a_graph_that_differs_is_refused_and_leaves_the_old_file(exported, tmp_path, monkeypatch):
    detector, _, _ = exported
    file = tmp_path / "a.onnx"
    file.write_bytes(b"the one before")
    with pytest.raises(RuntimeError, match=r"differs from torch by .* more than the tolerance of 0, .* nothing was"):
        detector.export(file, pictures=PICTURES[:1], tolerance=0)
    assert file.read_bytes() == b"the one before" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("anovl", {"adapt": True}, "anovl with adapt=True is no graph: it learns from each picture anew"),
        ("patch_memory", {"mask": True}, "patch_memory with mask=True is no graph: the foreground is found by"),
        ("clip_ad", {"score": "set"}, "scores a set of pictures together"),
        ("musc", {}, "scores a set of pictures together"),
        ("patch_text", {"roi": (0, 0, 9, 9)}, "roi: what is done before a picture is resized is no part of a graph"),
        ("patch_text", {"tiles": 2}, "tiles: what is done before a picture"),
    ],
)
def test_what_no_graph_can_hold_is_refused_by_name(method, options, words, tiny_encoder, normals, tmp_path):
    detector = loaded(method, tiny_encoder, **options)
    if detector.scorer.needs_normals:
        detector.fit(normals)
    with pytest.raises(TypeError, match=words):
        detector.export(tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_other_arithmetic_than_float32_and_other_names_are_refused(tiny_encoder, tmp_path):
    coarse = loaded("patch_text", Encoder.load("tiny", device="cpu", dtype="bfloat16"))
    with pytest.raises(ValueError, match="load it with dtype='float32', device='cpu'"):
        coarse.export(tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=r"written as .onnx; got 'a.pt'"):
        loaded("patch_text", tiny_encoder).export(tmp_path / "a.pt")
    with pytest.raises(RuntimeError, match="has no memory"):
        loaded("patch_memory", tiny_encoder).export(tmp_path / "a.onnx")


def test_a_missing_extra_is_named(tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModuleNotFoundError, match=r"onnxruntime, which is not installed; pip install 'vlad-ad\[export"):
        loaded("patch_text", tiny_encoder).export(tmp_path / "a.onnx")


def test_the_command_writes_a_graph(exported, tmp_path):
    from typer.testing import CliRunner

    from vlad.cli import app

    exported[0].save(tmp_path / "brick.safetensors")
    shown = ["export", str(tmp_path / "brick.safetensors"), "--to", str(tmp_path / "brick.onnx"), "--json"]
    result = CliRunner().invoke(app, [*shown, "--check", str(PICTURES[0].parent)])
    facts = json.loads(result.stdout)
    assert result.exit_code == 0 and facts["pictures"] == 6 and facts["threshold"] == exported[0].threshold


def test_the_example_gives_the_detectors_verdicts_without_torch_and_vlad(exported):
    detector, file, _ = exported
    forbidden = "import sys; sys.modules.update(torch=None, vlad=None); import runpy; sys.argv = sys.argv[1:]; "
    code = forbidden + "runpy.run_path(sys.argv[0], run_name='__main__')"
    same_verdicts(detector, [sys.executable, "-c", code, str(ROOT / "examples" / "run_exported.py"), str(file)])


@pytest.mark.slow
def test_the_example_runs_in_an_environment_of_its_own(exported, tmp_path):
    venv.create(tmp_path / "own", with_pip=True)
    python = str(tmp_path / "own" / "bin" / "python")
    installed = subprocess.run([python, "-m", "pip", "install", "-q", "numpy", "pillow", "onnxruntime"])
    if installed.returncode:
        pytest.skip("no package index is here")
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 1
    same_verdicts(exported[0], [python, str(ROOT / "examples" / "run_exported.py"), str(exported[1])])


def same_verdicts(detector, command):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    shown = subprocess.run([*command, *map(str, PICTURES)], capture_output=True, text=True, env=environment, check=True)
    for line, path, one in zip(shown.stdout.splitlines(), PICTURES, detector.predict(PICTURES), strict=True):
        assert line.startswith(f"{path}  ") and one.verdict in line
        assert abs(float(line.removeprefix(str(path)).split()[0]) - one.score) <= 2e-6


def test_the_example_is_at_most_sixty_lines():
    assert len((ROOT / "examples" / "run_exported.py").read_text().splitlines()) <= 60


def test_nothing_of_an_export_stays_in_torch(exported):
    assert not torch.compiler.is_exporting()
    assert exported[0].predict(PICTURES[0]).score == exported[0].predict(PICTURES[:1])[0].score
