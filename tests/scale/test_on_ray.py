"""Shards on a local Ray cluster: workers, nodes and drivers that die, pictures that kill, and what nodes may lack."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import vlad
from vlad import scale
from vlad.folder import LINES, SETTINGS, score_folder

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray", reason="needs the extra ray")
COUNT = 240


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Of noise, one in a hundred broken."""
    import numpy as np

    root = tmp_path_factory.mktemp("in")
    for number in range(COUNT):
        noise = np.random.default_rng(number).integers(0, 256, (40, 50 + number % 7, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / f"{number}.png")
        if number % 100 == 50:
            (root / f"{number}.png").write_bytes((root / f"{number}.png").read_bytes()[:900])
    return root


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A saved one."""
    file = tmp_path_factory.mktemp("detector") / "noise.safetensors"
    vlad.load("patch_text", "metal bolt", device="cpu", dtype="float32").save(file)
    return file


@pytest.fixture(scope="module")
def one(detector, pictures, tmp_path_factory):
    """The folder of one process."""
    out = tmp_path_factory.mktemp("one")
    score_folder(vlad.load(detector), [pictures], out, maps=False)
    return out


@pytest.fixture(scope="module")
def cluster():
    """Of two nodes with a CPU each."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made, second
    ray.shutdown()
    made.shutdown()


def command(detector, pictures, out, address):
    return [
        *(sys.executable, "-c", "from vlad.cli import main; main()", "score", str(pictures), "--detector"),
        *(str(detector), "--out", str(out), "--ray", address, "--shard-size", "16", "--no-maps", "--resume"),
    ]


def start(*args):
    return subprocess.Popen(command(*args), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_parts(out, count):
    end = time.monotonic() + 200
    while len(list(out.glob("parts/*.gz"))) < count:
        assert time.monotonic() < end
        time.sleep(0.05)


def shard_workers():
    """Processes of Ray that score."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if b"ray::on_node" in (place / "cmdline").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue
    return found


def lines(out):
    return [json.loads(line) for line in (out / LINES).open()]


def check(out, one):
    """None missing, none doubled, lines equal, no litter. Scores to 1e-6: a worker adds up in one thread."""
    assert scale.missing(out) == []
    scale.gather(out)
    got, wanted = lines(out), lines(one)
    for line, other in zip(got, wanted, strict=True):
        assert line.pop("score", None) == pytest.approx(other.pop("score", None), abs=1e-6)
    assert got == wanted
    assert (out / SETTINGS).read_text() != ""
    allowed = {LINES, SETTINGS, "parts", "plan.json", "detector.safetensors"}
    assert {file.name for file in out.iterdir()} == allowed


def test_a_killed_worker_and_a_killed_driver_lose_and_double_nothing(cluster, detector, pictures, one, tmp_path):
    out, address = tmp_path / "run", cluster[0].address
    driver = start(detector, pictures, out, address)
    wait_for_parts(out, 1)
    for pid in shard_workers()[:1]:
        os.kill(pid, signal.SIGKILL)
    wait_for_parts(out, 4)
    driver.kill()
    driver.wait()
    done = len(list(out.glob("parts/*.gz")))
    assert 4 <= done < 15
    said = subprocess.run(command(detector, pictures, out, address), capture_output=True, text=True)
    assert said.returncode in (0, 1) and "pictures scored" in said.stdout, said.stderr  # 1: broken ones were left
    check(out, one)


def test_a_node_that_is_taken_away_loses_and_doubles_nothing(cluster, detector, pictures, one, tmp_path):
    out = tmp_path / "run"
    driver = start(detector, pictures, out, cluster[0].address)
    wait_for_parts(out, 2)
    cluster[0].remove_node(cluster[1], allow_graceful=False)
    said = driver.communicate(timeout=200)[0]
    assert driver.returncode == 1 and "238 pictures scored" in said, said
    check(out, one)


def test_an_address_where_no_cluster_is_is_one_sentence(detector, pictures, tmp_path):
    said = subprocess.run(command(detector, pictures, tmp_path, "127.0.0.1:1"), capture_output=True, text=True)
    assert said.returncode == 2 and "error: no Ray cluster at '127.0.0.1:1'" in said.stderr
