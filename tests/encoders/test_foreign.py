"""Files of strangers: no code of theirs runs, and what a detector's file names is opened only if its user says so."""

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

import vlad
from vlad.detector import saving
from vlad.encoders.families import may_be_named

EVIL = """
import pathlib
pathlib.Path(__file__).with_name("RAN").touch()
from transformers import PreTrainedTokenizer
class EvilTokenizer(PreTrainedTokenizer): pass
"""


@pytest.fixture
def evil(small_folder, tmp_path):
    """A whole encoder's folder whose tokenizer is code of its own, which leaves a file RAN when it runs."""
    folder = shutil.copytree(small_folder, tmp_path / "evil")
    described = json.loads((folder / "open_clip_config.json").read_text())
    text = described["model_cfg"]["text_cfg"]
    text["hf_tokenizer_name"], text["tokenizer_kwargs"] = "some/tokenizer", {"trust_remote_code": True}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    own = {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    (folder / "evil.py").write_text(EVIL)
    return folder


class _Hub(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.server.asked.append(self.path)
        self.send_error(404)

    do_GET = do_HEAD

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    """A hub on this machine that answers anything with 404, and what it was asked."""
    server = HTTPServer(("127.0.0.1", 0), _Hub)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def run(hub, code, cache):
    at = f"http://127.0.0.1:{hub.server_port}"
    environment = {**os.environ, "HF_ENDPOINT": at, "HF_HUB_OFFLINE": "0", "HF_HOME": str(cache)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


def test_code_in_an_encoders_folder_never_runs(evil, hub, tmp_path):
    done = run(hub, f"import vlad; vlad.Encoder.load('local-dir:{evil}', device='cpu')", tmp_path / "cache")
    assert not list(evil.rglob("RAN")) and not list((tmp_path / "cache").rglob("RAN"))
    assert done.returncode != 0 and "EvilTokenizer" not in done.stdout
    assert "ValueError: encoder 'local-dir:" in done.stderr and "code of its own" in done.stderr.splitlines()[-1]
    assert not hub.asked, "a folder is read; nothing is fetched for it"


@pytest.fixture
def detector(tmp_path, tiny_encoder):
    """A function: a saved detector whose header names another encoder."""
    vlad.load("patch_text", "bolt", encoder=tiny_encoder).save(tmp_path / "own.safetensors")

    def naming(encoder):
        header, tensors = saving.read(tmp_path / "own.safetensors")
        saving.write(tmp_path / "foreign.safetensors", {**header, "encoder": encoder}, tensors)
        return tmp_path / "foreign.safetensors"

    return naming


@pytest.mark.parametrize(
    "name",
    [
        "ViT-B-32:/etc/passwd",
        "hf-hub:evil/repo",
        "dino:evil/repo",
        "dino:/etc",
        "dino:small/../evil",
        "efficientnet:/etc/passwd",
        "local-dir:.",
        "ViT-B-32/../../x",
        "tiny/random:0\n",
    ],
)
def test_what_a_detector_names_is_opened_only_if_its_user_names_it(detector, name, monkeypatch):
    def load(*given, **options):
        raise AssertionError(f"an encoder is loaded: {given}")

    monkeypatch.setattr(vlad.Encoder, "load", load)
    with pytest.raises(ValueError, match="asks for the encoder") as caught:
        vlad.load(detector(name))
    assert repr(name) in str(caught.value) and "encoder=" in str(caught.value)


def test_a_detector_runs_no_code_of_the_folder_that_it_names(detector, evil, hub, tmp_path):
    done = run(hub, f"import vlad; vlad.load({str(detector(f'local-dir:{evil}'))!r})", tmp_path / "cache")
    assert not list(evil.rglob("RAN")) and not hub.asked
    assert "asks for the encoder" in done.stderr.splitlines()[-1]


def test_a_detector_that_names_a_folder_works_with_the_encoder_that_its_user_gives(small_folder, tmp_path):
    name = f"local-dir:{small_folder}"
    made = vlad.load("patch_text", "bolt", encoder=name, device="cpu", dtype="float32")
    made.save(tmp_path / "own.safetensors")
    assert vlad.load(tmp_path / "own.safetensors", encoder=name).encoder.digest == made.encoder.digest


@pytest.mark.parametrize(
    "name", ["tiny", "ViT-L-14-336/openai", "ViT-B-16-plus-240/laion400m_e32", "ViT-B-32/random:0", "dino:small"]
)
def test_tags_and_sizes_may_be_named_by_a_file(name):
    assert may_be_named(name)


def test_every_listed_encoder_may_be_named_by_a_file():
    assert [name for name in vlad.encoders() if not may_be_named(name)] == []


def test_code_beside_a_dino_never_runs_and_nothing_is_asked(hub, tmp_path):
    folder = tmp_path / "dino"
    folder.mkdir()
    (folder / "evil.py").write_text(EVIL.replace("PreTrainedTokenizer", "PreTrainedModel"))
    auto = {"AutoConfig": "evil.EvilTokenizer", "AutoModel": "evil.EvilTokenizer"}
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto}))
    done = run(hub, f"import vlad; vlad.Encoder.load('dino:{folder}', device='cpu')", tmp_path / "cache")
    assert not list(folder.rglob("RAN")) and not list((tmp_path / "cache").rglob("RAN")) and not hub.asked
    assert "expected a DINOv2" in done.stderr.splitlines()[-1]


def test_a_header_that_was_changed_is_refused(detector, tmp_path):
    detector("tiny")
    with safe_open(tmp_path / "own.safetensors", framework="pt") as file:
        content = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["vlad"])
    changed = {**header, "name": "nut"}
    save_file(content, tmp_path / "changed.safetensors", {"vlad": json.dumps(changed)})
    with pytest.raises(ValueError, match="its header is not the one that was written"):
        vlad.load(tmp_path / "changed.safetensors")
    older = {key: value for key, value in header.items() if key != "header_sha256"}
    save_file(content, tmp_path / "older.safetensors", {"vlad": json.dumps(older)})
    assert vlad.load(tmp_path / "older.safetensors").name == "bolt"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1" + "0" * 400, "1e999"])
@pytest.mark.parametrize("key", ["threshold", "map_threshold"])
def test_a_threshold_that_is_no_number_is_refused(detector, tmp_path, key, number):
    detector("tiny")
    with safe_open(tmp_path / "own.safetensors", framework="pt") as file:
        content = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["vlad"])
    header.pop("header_sha256", None)
    text = json.dumps({**header, key: "HERE"}).replace('"HERE"', number)
    save_file(content, tmp_path / "changed.safetensors", {"vlad": text})
    with pytest.raises(ValueError, match=r"no number|not finite"):
        vlad.load(tmp_path / "changed.safetensors")
