"""Shards on a local Ray cluster: workers, nodes and drivers that die, pictures that kill, and what nodes may lack."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ray_workers import at_work, ray

import vlad
from vlad import scale
from vlad.folder import LINES, SETTINGS, score_folder

pytestmark = pytest.mark.slow
COUNT, SHARD = 2000, 50
POISON = {733: "poison-a.png", 1601: "poison-b.png"}  # number -> name of a file at whose opening a worker dies
KILLER = """
import os, sys
sys.addaudithook(lambda event, args: os.kill(os.getpid(), 9) if event == "open" and "poison" in str(args[0]) else None)
"""
VLAD = [sys.executable, "-c", "from vlad.cli import main; main()"]
HOME = str(Path(vlad.__file__).resolve().parents[1])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Of noise, one in a hundred broken."""
    root = tmp_path_factory.mktemp("in")
    draw = np.random.default_rng(0)
    for number in range(COUNT):
        file = root / f"{number // 500}" / POISON.get(number, f"{number}.png")
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (20, 26 + number % 7, 3), dtype=np.uint8)).save(file)
        if number % 100 == 50:
            file.write_bytes(file.read_bytes()[:400])
    return root


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A saved one that sees little of a picture."""
    file = tmp_path_factory.mktemp("detector") / "noise.safetensors"
    vlad.load("patch_text", "metal bolt", device="cpu", dtype="float32", resolution=64).save(file)
    return file


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head, and a node whose processes die when they open poison; a CPU each. With the folder of the node's own."""
    from ray.cluster_utils import Cluster

    killer = tmp_path_factory.mktemp("killer")
    (killer / "sitecustomize.py").write_text(KILLER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(killer), HOME]))
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        second = made.add_node(num_cpus=1)
        made.wait_for_nodes()
    yield made, second
    ray.shutdown()
    made.shutdown()


def command(detector, pictures, out, address, *more):
    given = ["score", str(pictures), "--detector", str(detector), "--out", str(out), "--ray", address, *more]
    return [*VLAD, *given, "--shard-size", str(SHARD), "--batch-size", "10", "--resume"]


def wait_for_parts(out, count, driver):
    end = time.monotonic() + 500
    while len(list(out.glob("parts/*.gz"))) < count:
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.02)


def lines(out):
    return [json.loads(line) for line in (out / LINES).open()]


def test_nothing_is_lost_or_doubled_whatever_dies(cluster, detector, pictures, tmp_path):
    out, made, second = tmp_path / "run", *cluster
    call = command(detector, pictures, out, made.address, "--no-maps")
    driver = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for_parts(out, 2, driver)
    for pid in at_work()[:1]:
        os.kill(pid, signal.SIGKILL)
    wait_for_parts(out, 8, driver)
    driver.kill()
    driver.wait()
    done = len(list(out.glob("parts/*.gz")))
    assert 8 <= done < COUNT // SHARD
    driver = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_parts(out, done + 8, driver)
    made.remove_node(second, allow_graceful=False)
    said, errors = driver.communicate(timeout=900)
    assert driver.returncode == 1 and "pictures scored" in said, errors  # 1: broken ones

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as workers have: regions too are then cut at the same values
    score_folder(vlad.load(detector), [pictures], tmp_path / "one", batch_size=10, maps=False)
    torch.set_num_threads(threads)
    assert scale.missing(out) == []
    summary = scale.gather(out)
    assert (summary.scored, len(summary.failed)) == (COUNT - 22, 22)
    got, wanted = lines(out), lines(tmp_path / "one")
    for line, other in zip(got, wanted, strict=True):
        if "poison" in line["source"]:
            assert "died 2 times at this picture" in line["error"] and other["error"] is None
            continue
        assert line.pop("score", None) == pytest.approx(other.pop("score", None), abs=1e-6)
        for region, like in zip(line["regions"], other["regions"], strict=True):
            assert [region.pop(key) for key in ("peak", "mean")] == pytest.approx(
                [like.pop(key) for key in ("peak", "mean")], abs=1e-5
            )
        assert line == other
    assert (out / SETTINGS).read_text() != ""
    assert {file.name for file in out.iterdir()} == {LINES, SETTINGS, "parts", "plan.json", "detector.safetensors"}


# ---- what a cluster or a node may lack, each met -------------------------------------------------------------------


@pytest.fixture(scope="module")
def few(pictures, tmp_path_factory):
    """Five of the pictures."""
    root = tmp_path_factory.mktemp("few")
    for number in range(5):
        (root / f"{number}.png").write_bytes((pictures / "0" / f"{number}.png").read_bytes())
    return root


def refused(detector, pictures, out, address, cwd):
    env = {**os.environ, "PYTHONPATH": HOME}
    call = command(detector, pictures, out, address)
    done = subprocess.run(call, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stdout + done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


def test_an_address_where_no_cluster_is_any_more_is_one_sentence(detector, few, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        stale = f"127.0.0.1:{gone.getsockname()[1]}"
    (said,) = refused(detector, few, tmp_path / "run", stale, tmp_path)
    assert f"no Ray cluster at '{stale}'" in said and "give local, auto or HOST:PORT" in said


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("raise ModuleNotFoundError(\"No module named 'vlad'\")", "has no VLAD; install vlad-ad"),
        ("", "has VLAD 0.0.1, the driver "),
    ],
)
def test_a_node_without_vlad_or_with_another_version_is_one_sentence(package, words, detector, few, tmp_path):
    from ray.cluster_utils import Cluster

    there = tmp_path / "there" / "vlad"
    there.mkdir(parents=True)
    (there / "__init__.py").write_text(package)
    (there / "version.py").write_text('__version__ = "0.0.1"')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(there.parent))
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        (said,) = refused(detector, few, tmp_path / "run", made.address, tmp_path)
    finally:
        made.shutdown()
    assert "the node " in said and words in said


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_with_room(cluster, detector, few, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk can be mounted by root alone")
    try:
        pages = -(-detector.stat().st_size // 4096) + 4  # detector, plan, note, and room for two overlays
        (disk / "ballast").write_bytes(bytes(700 * 1024 - 4096 * pages))
        (said,) = refused(detector, few, disk / "run", cluster[0].address, tmp_path)
        assert "on the node " in said and "No space left on device" in said, said
        assert scale.missing(disk / "run") == [0]
        (disk / "ballast").unlink()
        done = subprocess.run(
            command(detector, few, disk / "run", cluster[0].address), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0 and "5 pictures scored" in done.stdout, done.stderr
        assert scale.gather(disk / "run").scored == 5
    finally:
        subprocess.run(["umount", str(disk)], check=True)
