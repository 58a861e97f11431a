"""Detectors on the shelf: exchanged as a whole, whole on disk, and never of an encoder that a client chose."""

import json
import pickle
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from serve_pictures import drawn, upload

import vlad
from vlad.detector import saving
from vlad.serve.shelf import Conflict, Shelf, Unknown


@pytest.fixture
def no_net(monkeypatch):
    """Any connection is an error."""

    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def changed(path, **facts):
    """The bytes of a detector's file with another header, its checksums right."""
    header, tensors = saving.read(path)
    target = path.with_name("changed.safetensors")
    for key in ("format", "sha256", "header_sha256"):
        header.pop(key)
    saving.write(target, {**header, **facts}, tensors)
    content = target.read_bytes()
    target.unlink()
    return content


def test_a_new_server_finds_the_newest_version_and_three_are_kept(shelf, tiny_encoder):
    for value in (0.1, 0.2, 0.3, 0.4):
        shelf.change("grain", lambda detector, value=value: setattr(detector, "threshold", value))
    assert sorted(path.name for path in shelf.folder.iterdir()) == [f"grain.v{n}.safetensors" for n in (3, 4, 5)]
    again = Shelf(shelf.folder, tiny_encoder).get("grain")
    assert (again.version, again.detector.threshold) == (5, 0.4)


def test_a_damaged_newest_version_is_left_out_and_its_number_never_used_again(shelf, tiny_encoder, caplog):
    (shelf.folder / "grain.v2.safetensors").write_bytes(b"torn")
    again = Shelf(shelf.folder, tiny_encoder)
    assert again.get("grain").version == 1 and "left out" in caplog.text
    assert again.change("grain", lambda detector: None).version == 3


def test_a_change_is_a_new_detector_and_the_old_one_goes_on_as_it_was(shelf):
    before = shelf.get("grain")
    threshold = before.detector.threshold
    shelf.change("grain", lambda detector: setattr(detector, "threshold", 9.0))
    assert before.detector.threshold == threshold and shelf.get("grain").detector.threshold == 9.0


def test_what_was_changed_meanwhile_is_not_overwritten_unseen(shelf, fitted):
    with pytest.raises(Conflict, match="is at version 1 and not 3"):
        shelf.put("grain", fitted, expected=3)
    with pytest.raises(Conflict, match="is at version 0 and not 1"):
        shelf.put("new", fitted, expected=1)
    shelf.remove("grain", expected=1)
    with pytest.raises(Unknown, match="there are: none"):
        shelf.get("grain")
    assert not list(shelf.folder.iterdir())


def test_another_process_that_shares_the_folder_takes_new_versions_up(shelf, tiny_encoder):
    other = Shelf(shelf.folder, tiny_encoder)
    shelf.change("grain", lambda detector: setattr(detector, "threshold", 9.0))
    shelf.put("more", shelf.get("grain").detector)
    other.refresh()
    assert (other.get("grain").version, other.get("more").version) == (2, 1)
    shelf.remove("more")
    other.refresh()
    assert [held.name for held in other.all()] == ["grain"]


def test_an_operators_file_is_put_on_the_shelf_once(shelf, fitted, tmp_path):
    fitted.save(tmp_path / "M4 Bolt.safetensors")
    assert [shelf.adopt(tmp_path / "M4 Bolt.safetensors").version for _ in range(2)] == [1, 1]
    assert shelf.get("m4-bolt").detector.threshold == fitted.threshold


def test_a_file_is_served_in_its_own_arithmetic_with_its_threshold(client, shelf, tiny_encoder, tmp_path):
    coarse = vlad.load(name="grain", dtype="int8").fit([drawn(seed) for seed in range(5)])
    coarse.save(tmp_path / "coarse.safetensors")
    sent = client().put("/v1/detectors/sent", content=(tmp_path / "coarse.safetensors").read_bytes())
    assert sent.json()["threshold"] == shelf.adopt(tmp_path / "coarse.safetensors").detector.threshold
    assert sent.json()["threshold"] == coarse.threshold is not None
    held = [shelf.get(name).detector for name in ("sent", "coarse", "grain")]
    assert held[0].encoder is held[1].encoder is not tiny_encoder is held[2].encoder
    assert held[0].predict(drawn(7)).score == coarse.predict(drawn(7)).score
    again = Shelf(shelf.folder, tiny_encoder).get("sent").detector
    assert (again.encoder.precision, again.threshold) == ("int8", coarse.threshold)


LEFT = """
import os, signal, sys
from pathlib import Path
from vlad.serve.shelf import Shelf
with Shelf(Path(sys.argv[1])).uploads() as folder:
    (folder / "good.png").write_bytes(b"a client's")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_server_was_sent_is_deleted_at_the_next_start_and_no_sooner(tmp_path, tiny_encoder):
    command = [sys.executable, "-c", LEFT, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        folder = Path(process.stdout.readline().strip())
        Shelf(tmp_path, tiny_encoder)
        assert (folder / "good.png").exists(), "the one that works on it still runs"
        process.kill()
    assert folder.parent == tmp_path and (folder / "good.png").exists()
    Shelf(tmp_path, tiny_encoder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "kind",
    ["pickle", "torn", "empty", "foreign hub", "foreign folder", "foreign digest", "huge resolution", "unfit", "set"],
)
def test_a_file_of_an_attacker_is_a_sentence_and_opens_nothing(client, shelf, tiny_encoder, no_net, tmp_path, kind):
    whole = shelf.get("grain").path
    if kind == "unfit":
        vlad.load("patch_memory", encoder=tiny_encoder).save(tmp_path / "a.safetensors")
    if kind == "set":
        vlad.load("musc", encoder=tiny_encoder).save(tmp_path / "a.safetensors")
    content = {
        "pickle": lambda: pickle.dumps({"a": 1}),
        "torn": lambda: whole.read_bytes()[:-100],
        "empty": lambda: b"",
        "foreign hub": lambda: changed(whole, encoder="hf-hub:evil/repo", encoder_digest="0" * 64),
        "foreign folder": lambda: changed(whole, encoder="local-dir:/etc", encoder_digest="0" * 64),
        "foreign digest": lambda: changed(whole, encoder="ViT-B-32/openai", encoder_digest="0" * 64),
        "huge resolution": lambda: changed(whole, options={"resolution": 1 << 40}),
    }.get(kind, lambda: (tmp_path / "a.safetensors").read_bytes())()
    answer = client().put("/v1/detectors/new", content=content)
    assert answer.status_code == 422 and str(tmp_path) not in answer.text and "/tmp" not in answer.text
    assert len(answer.json()["error"].splitlines()) == 1
    assert [held.name for held in shelf.all()] == ["grain"]


def test_a_foreign_name_in_a_header_is_never_opened_where_the_weights_are_ours(client, shelf, no_net):
    content = changed(shelf.get("grain").path, encoder="hf-hub:evil/repo")
    answer = client().put("/v1/detectors/new", content=content)
    assert (answer.status_code, answer.json()["encoder"]) == (200, "tiny")


def test_while_it_is_fitted_again_and_again_every_answer_is_of_one_version(client, shelf):
    app, stop, answers = client(), threading.Event(), []

    def asking():
        while not stop.is_set():
            said = app.post("/v1/score", data={"detector": "grain"}, files=upload(drawn(50))).json()
            answers.append((said["version"], said["results"][0]["score"], said["results"][0]["threshold"]))

    threads = [threading.Thread(target=asking) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(3):
        made = app.post("/v1/detectors/grain/fit", files=upload(*(drawn(100 * turn + n) for n in range(5))))
        assert made.json()["version"] == turn + 2
    stop.set()
    for thread in threads:
        thread.join()
    versions = {version for version, *_ in answers}
    assert len(versions) > 2 and len(set(answers)) == len(versions), json.dumps(sorted(set(answers)))
