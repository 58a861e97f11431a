"""`vlad fit` killed while it overwrites a detector: the old file or the new one is there, never half of one."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import vlad

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks one run per moment, to import torch only once")

MOMENTS = ("opened", "half", "written", "synced", "renamed")
DELAYS = (0.3, 0.8, 0.95)  # of the time that a run takes

# Each run of `vlad fit` is a fork. At a moment it kills itself; after a delay the parent kills it.
RUNS = """
import json, os, pathlib, shutil, signal, sys, time
import torch, torch.utils._pytree
import vlad.cli, vlad.detector.saving, vlad.detector.loading, vlad.methods.patch_memory, open_clip, safetensors.torch
torch.set_num_threads(1)

def die(*ignored, **named):
    os.kill(os.getpid(), signal.SIGKILL)

class Dying:
    def __init__(self, file, moment):
        self.file, self.moment = file, moment
    def __enter__(self):
        return self
    def __exit__(self, *error):
        self.file.close()
    def __getattr__(self, name):
        return getattr(self.file, name)
    def write(self, content):
        if self.moment == "opened":
            die()
        self.file.write(content[: len(content) // 2] if self.moment == "half" else content)
        if self.moment == "half":
            self.file.flush()
            die()

def arm(moment):
    if moment in ("opened", "half"):
        opened = pathlib.Path.open
        def open_(self, mode="r", *args, **named):
            file = opened(self, mode, *args, **named)
            return Dying(file, moment) if mode == "wb" and "bolt.safetensors" in self.name else file
        pathlib.Path.open = open_
    elif moment in ("written", "synced"):
        sync = os.fsync
        os.fsync = lambda file: (moment == "synced" and sync(file), die())
    elif moment == "renamed":
        replace = os.replace
        os.replace = lambda old, new: (replace(old, new), str(new).endswith("bolt.safetensors") and die())

def run(folder, moment=None, delay=None):
    start = time.monotonic()
    child = os.fork()
    if not child:
        arm(moment)
        sys.argv = ["vlad", "fit", *arguments, "--out", folder + "/bolt.safetensors"]
        try:
            vlad.cli.main()
        except SystemExit as end:
            os._exit(end.code or 0)
        os._exit(99)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), time.monotonic() - start

arguments, root, moments, delays = json.loads(sys.argv[1])
codes = {}
codes["whole"], took = run(root + "/whole")
for moment in moments:
    codes[moment], _ = run(root + "/" + moment, moment)
for delay in delays:
    codes[f"after {delay}"], _ = run(f"{root}/after {delay}", delay=delay * took)
shutil.copytree(root + "/half", root + "/again")
codes["again"], _ = run(root + "/again")
sys.stderr.flush()
os.write(1, ("\\n" + json.dumps(codes)).encode())
"""


def folder_of(path, count):
    path.mkdir()
    draw = np.random.default_rng(count)
    for number in range(count):
        Image.fromarray(draw.integers(0, 256, (112, 112, 3), dtype=np.uint8)).save(path / f"{number}.png")
    return path


@pytest.fixture(scope="module")
def killed(tmp_path_factory, small_folder, small_encoder):
    """(folder of all runs, exit code of each, the old file's digest)."""
    root = tmp_path_factory.mktemp("killed")
    old = vlad.load("patch_memory", encoder=small_encoder)
    with pytest.warns(UserWarning, match="no threshold from 1 normals"):
        old.fit(folder_of(root / "old pictures", 1))
    old.save(root / "old.safetensors")
    for run in ("whole", *MOMENTS, *(f"after {delay}" for delay in DELAYS)):
        (root / run).mkdir()
        shutil.copy(root / "old.safetensors", root / run / "bolt.safetensors")
    new = folder_of(root / "new pictures", 2)
    told = [str(new), "--method", "patch_memory", "--encoder", f"local-dir:{small_folder}", "--device", "cpu"]
    told += ["--dtype", "float32"]
    done = subprocess.run(
        [sys.executable, "-c", RUNS, json.dumps([told, str(root), MOMENTS, DELAYS])],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return root, json.loads(done.stdout.splitlines()[-1]), digest(root / "old.safetensors")


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_while_writing_it_leaves_the_old_file_or_the_new_one(killed, small_encoder, moment):
    root, codes, old = killed
    assert codes["whole"] == 0 and codes[moment] == -signal.SIGKILL
    file = root / moment / "bolt.safetensors"
    if moment == "renamed":
        assert len(vlad.load(file, encoder=small_encoder).references) == 2
    else:
        assert digest(file) == old


@pytest.mark.parametrize("delay", DELAYS)
def test_killed_from_outside_it_leaves_a_file_that_loads(killed, small_encoder, delay):
    root, codes, old = killed
    file = root / f"after {delay}" / "bolt.safetensors"
    assert codes[f"after {delay}"] in (0, -signal.SIGKILL), "0 where this run was quicker than the first"
    assert digest(file) == old or len(vlad.load(file, encoder=small_encoder).references) == 2


def test_what_a_killed_run_left_neither_stops_the_next_nor_stays(killed, small_encoder):
    root, codes, _ = killed
    assert codes["again"] == 0
    assert [path.name for path in (root / "again").iterdir()] == ["bolt.safetensors"], "the next writer clears up"
    assert len(vlad.load(root / "again" / "bolt.safetensors", encoder=small_encoder).references) == 2
