"""MuSc by the workers of a Ray cluster: scores, maps and lines of one process, whatever dies meanwhile."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from ray_workers import ray, two_cpus

import vlad
from vlad import scale
from vlad.folder import LINES, score_folder

pytestmark = pytest.mark.slow
COUNT = 30


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Of alike noise, some with a spot, two of them broken."""
    root = tmp_path_factory.mktemp("in")
    for number in range(COUNT):
        noise = np.random.default_rng(number).integers(90, 160, (40, 50, 3), dtype=np.uint8)
        if number % 9 == 0:
            noise[8:20, 10:24] = 250
        Image.fromarray(noise).save(root / f"{number}.png")
    (root / "7.png").write_bytes((root / "7.png").read_bytes()[:700])
    (root / "25.png").write_text("no picture")
    return root


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Of two CPUs."""
    with two_cpus():
        yield


def musc(**options):
    return vlad.load("musc", encoder="tiny", device="cpu", dtype="float32", **options)


def check(out, one):
    scale.gather(out)
    ours, theirs = ([json.loads(line) for line in (folder / LINES).open()] for folder in (out, one))
    assert len(ours) == COUNT
    for line, other in zip(ours, theirs, strict=True):
        assert line.pop("score", None) == pytest.approx(other.pop("score", None), abs=1e-6)
        ours_regions, theirs_regions = line.pop("regions"), other.pop("regions")
        assert line == other and len(ours_regions) == len(theirs_regions)
        if line["error"] is None:
            ours_map, theirs_map = (np.load(folder / line["map"]) for folder in (out, one))
            np.testing.assert_allclose(ours_map, theirs_map, atol=1e-6)
    assert not (out / "set").exists() and not (out / "tries").exists()


def test_workers_give_the_scores_and_maps_of_one_process(pictures, tmp_path):
    options = {"layers": (2, 4)}
    how = {"save_maps": "npy", "maps": False}
    score_folder(musc(**options), [pictures], tmp_path / "one", **how)
    done = scale.score(musc(**options), [pictures], tmp_path / "run", ray="auto", shard_size=16, **how)
    assert done.scored == COUNT - 2 and len(done.failed) == 2
    check(tmp_path / "run", tmp_path / "one")
    again = scale.score(musc(**options), [pictures], tmp_path / "run", ray="auto", shard_size=16, resume=True, **how)
    assert (again.scored, again.skipped) == (0, COUNT)


def test_a_killed_command_goes_on_where_it_was(pictures, tmp_path):
    score_folder(musc(), [pictures], tmp_path / "one", save_maps="npy", maps=False)
    command = [
        *(sys.executable, "-c", "from vlad.cli import main; main()", "score", str(pictures), "--method", "musc"),
        *("--device", "cpu", "--dtype", "float32", "--out", str(tmp_path / "run"), "--save-maps", "npy", "--no-maps"),
        *("--shard-size", "8", "--resume", "--ray", ray.get_runtime_context().gcs_address),
    ]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 500
    while len(list(tmp_path.glob("run/set/rows*.safetensors"))) < 2:
        assert time.monotonic() < end and driver.poll() is None
        time.sleep(0.02)
    driver.kill()
    assert driver.wait() != 0
    cut = tmp_path / "run" / "set" / "000001.0.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    (cut.parent / "000001.safetensors").unlink()
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 1 and "pictures scored" in said.stdout, said.stderr  # 1: broken ones
    check(tmp_path / "run", tmp_path / "one")


def test_a_set_that_changed_or_is_too_small_is_refused(pictures, tmp_path):
    small = tmp_path / "in"
    small.mkdir()
    for number in (1, 2, 7):
        (small / f"{number}.png").write_bytes((pictures / f"{number}.png").read_bytes())
    with pytest.raises(ValueError, match="give ray="):
        scale.score(musc(), [small], tmp_path / "run", share=(0, 2), shard_size=8)
    scale.score(musc(), [small], tmp_path / "run", ray="auto", shard_size=8)
    Image.new("RGB", (50, 40)).save(small / "2.png")
    with pytest.raises(ValueError, match="have changed"):
        scale.score(musc(), [small], tmp_path / "run", ray="auto", shard_size=8, resume=True)
    (small / "2.png").write_text("no picture")
    with pytest.raises(ValueError, match="1 of these can be read"):
        scale.score(musc(), [small], tmp_path / "other", ray="auto", shard_size=8)
