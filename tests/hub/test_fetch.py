"""`vlad fetch` against a hub on the loopback address that cuts, lies and refuses."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
from hub_stub import HubStub
from huggingface_hub import constants, file_download

import vlad
from vlad.hub import download, needed, sources
from vlad.hub import fetch as hub_fetch

REPO = "stub/small-clip"


@pytest.fixture
def stub(small_folder):
    """A hub that has a small CLIP, and one file more."""
    files = {file.name: file.read_bytes() for file in small_folder.iterdir()}
    weights = next(name for name in files if name.endswith((".safetensors", ".bin", ".pt")))
    files["open_clip_model.safetensors"] = files.pop(weights)
    server = HubStub({REPO: files})
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def asks(stub, tmp_path, monkeypatch):
    """This process asks the stub, and keeps what it gets in a folder of the test."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", stub.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", stub.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(download, "PAUSE", 0.01)
    return stub


def brought(name=f"hf-hub:{REPO}", **options):
    return hub_fetch.fetch(hub_fetch.plan(name, **options))


def test_an_encoder_is_fetched_loaded_and_tried_by_one_command(stub, tmp_path):
    environment = {**os.environ, "HF_ENDPOINT": stub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "vlad.cli", "fetch", f"hf-hub:{REPO}", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {one["licence"] for one in told["files"]} == {"mit"}
    assert all(one["bytes"] == len(stub.files[REPO][one["file"]]) for one in told["files"])
    assert told["use"].endswith(f"--encoder hf-hub:{REPO}")
    asked = stub.asked.total()
    again = subprocess.run([*command, "--dry-run"], env=environment, capture_output=True, text=True, timeout=300)
    assert all(one["place"].startswith("here: ") for one in json.loads(again.stdout)["files"])
    assert stub.asked.total() == asked, "what is here is not asked for again"


def test_a_cut_download_goes_on_where_it_stopped(asks, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 20_000)  # the client keeps whole chunks alone
    asks.cut_after, asks.cuts = 100_000, 3
    places = brought()
    weights = next(path for path in places.values() if path.name.endswith(".safetensors"))
    assert weights.read_bytes() == asks.files[REPO]["open_clip_model.safetensors"]
    assert max(asks.ranges) >= 100_000, "the rest was asked for, not all of it again"


def test_a_file_with_another_digest_is_refused_and_deleted(asks, tmp_path):
    asks.lie = True
    with pytest.raises(vlad.WeightsError, match=r"is not what was published: its sha256 is \w{12}"):
        brought()
    held = [file for file in (tmp_path / "hub").rglob("*") if file.is_file() and file.stat().st_size > 10_000]
    assert not held


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((404, {"X-Error-Code": "RepoNotFound"}), r"is not there \(404\)"),
        ((401, {"X-Error-Code": "GatedRepo"}), "set HF_TOKEN"),
        ((403, {}), "set HF_TOKEN"),
        ((429, {"Retry-After": "70"}), r"too many questions \(429\): wait 70 s"),
        ((500, {}), "answered 500: say it again later"),
    ],
)
def test_a_refusal_is_one_sentence_with_its_remedy(asks, answer, said):
    asks.refuse = answer
    with pytest.raises(vlad.WeightsError, match=said) as met:
        brought()
    assert "\n" not in str(met.value)


def test_a_proxy_that_is_not_there_is_named(asks, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    crane = needed.Needed("", ("epoch_5.pth",), "http://10.255.255.1/epoch_5.pth")
    with pytest.raises(vlad.WeightsError, match=r"through the proxy that (http_proxy|HTTP_PROXY) names"):
        sources.find(crane)


def test_without_room_nothing_is_begun(asks, tmp_path):
    asks.stated["open_clip_model.safetensors"] = 10**17
    with pytest.raises(OSError, match=r"needs 93,?\d+\.\d GiB in .* are free; make room there, or set HF_HOME") as met:
        brought()
    assert met.value.errno == errno.ENOSPC
    assert not [one for one in asks.asked if one[1].endswith(".safetensors") and one[0] == "GET"]


def test_what_no_source_has_is_named(asks):
    del asks.files[REPO]["open_clip_config.json"]
    with pytest.raises(vlad.WeightsError, match=r"stub/small-clip has no open_clip_config.json"):
        brought()


@pytest.mark.parametrize("kind", ["folder", "server"])
def test_a_mirror_gives_what_no_network_can(asks, tmp_path, kind):
    mirror = tmp_path / "mirror"
    for name, content in asks.files[REPO].items():
        (mirror / REPO).mkdir(parents=True, exist_ok=True)
        (mirror / REPO / name).write_bytes(content)
    where = str(mirror) if kind == "folder" else asks.address
    brought(mirror=where)
    assert not [one for one in asks.asked if "api" in one[1] or "resolve" in one[1]], "the hub was asked"
    before = asks.asked.total()
    tower = vlad.Encoder.load(f"hf-hub:{REPO}", device="cpu")
    assert tower.depth == 24 and asks.asked.total() == before


def test_a_mirror_that_lacks_a_file_says_which_path_it_should_have(asks, tmp_path):
    with pytest.raises(vlad.WeightsError, match=r"has no stub/small-clip/open_clip_config\.json$"):
        brought(mirror=str(tmp_path))


def published_at(address, content, method="crane"):
    digest = hashlib.sha256(content).hexdigest()
    return needed.Published(method, "mvtec_ad", "", f"{address}/stub/files/resolve/main/epoch_5.pth", "MIT", digest)


def test_an_authors_file_at_an_address_is_kept_and_goes_on_after_a_cut(asks):
    content = bytes(range(256)) * 4000
    asks.files["stub/files"] = {"epoch_5.pth": content}
    asks.cut_after, asks.cuts = 300_000, 2
    file = published_at(asks.address, content).file()
    place = sources.bring(sources.find(file))
    assert place.read_bytes() == content and place == file.kept and 300_000 in asks.ranges
    assert not list(place.parent.glob("*.part"))
    asked = asks.asked.total()
    assert sources.bring(sources.find(file)) == place and asks.asked.total() == asked


def test_an_authors_file_that_was_changed_is_not_kept(asks):
    asks.files["stub/files"] = {"epoch_5.pth": b"changed"}
    file = published_at(asks.address, b"what was published").file()
    with pytest.raises(vlad.WeightsError, match="is not what was published"):
        sources.bring(sources.find(file))
    assert not file.kept.exists()


def test_a_server_that_always_cuts_is_given_up_with_what_came_kept(asks):
    content = bytes(1000)
    asks.files["stub/files"] = {"epoch_5.pth": content}
    asks.cut_after, asks.cuts = 0, 1000
    file = published_at(asks.address, content).file()
    with pytest.raises(vlad.WeightsError, match="the connection broke"):
        sources.bring(sources.find(file))


def test_a_method_with_several_files_asks_which_and_one_without_any_says_so():
    with pytest.raises(ValueError, match="trained on 'mvtec_ad', 'visa': say which with --trained-on"):
        hub_fetch.plan("crane")
    with pytest.raises(ValueError, match="winclip needs no file of its authors"):
        hub_fetch.plan("winclip")
    with pytest.raises(ValueError, match="cannot be fetched by a program; it is in the Google Drive linked from"):
        hub_fetch.plan("vcpclip", "visa")


@pytest.mark.parametrize("name", ["ViT-B-32/opnai", "winclib", "local:file.pt", "../../etc/passwd"])
def test_a_name_that_is_none_is_refused_before_anything_is_asked(asks, name):
    with pytest.raises(ValueError, match=r"unknown encoder or method|names a file of yours") as met:
        hub_fetch.plan(name)
    assert len(str(met.value)) < 200
    assert not asks.asked


def test_every_published_file_names_a_method_and_an_encoder_that_are_here():
    known = set(vlad.methods())
    for one in needed.published():
        assert one.method in known
        assert one.encoder == "" or needed.of_encoder(one.encoder)
        assert one.licence and one.place.startswith(("hub:", "https://", "by hand: "))


def test_the_real_crane_file_comes_out_of_a_mirror(asks, tmp_path):
    from conftest import SHARED

    real = SHARED / "published" / "crane_trained_on_mvtec_epoch_5.pth"
    if not real.is_file():
        pytest.skip(f"{real.name} is not beside the repository")
    file = needed.of_method("crane", "mvtec_ad").file()
    there = tmp_path / file.address.removeprefix("https://")
    there.parent.mkdir(parents=True)
    shutil.copy(real, there)
    place = sources.bring(sources.find(file, str(tmp_path)), str(tmp_path))
    assert place.read_bytes() == real.read_bytes()


def test_the_client_of_the_hub_is_one_whose_cache_we_write_as_it_does():
    assert file_download.repo_folder_name(repo_id=REPO, repo_type="model") == "models--stub--small-clip"
