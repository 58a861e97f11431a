"""An evaluation by the workers of a Ray cluster: the rows, and what goes on after a kill."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from ray_workers import at_work, ray, two_cpus
from small_sets import write_category

import vlad
from vlad.datasets import load as samples_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three categories."""
    root = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("bolt", "nut", "ring")):
        write_category(root / name, seed=seed)
    return root


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Of two CPUs."""
    with two_cpus():
        yield


@pytest.fixture(autouse=True)
def one_thread():
    """As workers compute, so that the last bits are the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def detectors():
    encoder = vlad.Encoder.load("tiny", device="cpu", dtype="float32")
    other = vlad.Encoder.load("tiny", device="cpu", dtype="bfloat16")
    return {
        "words": vlad.load("patch_text", "thing", encoder=encoder),
        "memory": vlad.load("patch_memory", encoder=encoder),
        "coarse": vlad.load("patch_memory", encoder=other),
    }


HOW = {"shots": 2, "seeds": 2, "bootstrap": 20}


def measured(report):
    """All that is not time."""
    said = report.to_dict()
    for key in ("seconds", "started", "peak_memory"):
        said["settings"].pop(key)
    return said


def test_rows_of_workers_are_those_of_one_process_in_the_same_folder(data, tmp_path):
    samples = samples_of(f"mvtec_ad:{data}")
    alone = vlad.evaluate(detectors(), samples, out=tmp_path / "alone", **HOW)
    spread = vlad.evaluate(detectors(), samples, out=tmp_path / "spread", ray="auto", **HOW)
    assert len(alone.rows) >= 3 * 3 and repr(spread.rows) == repr(alone.rows)
    assert json.dumps(measured(spread)) == json.dumps(measured(alone))
    for folder in ("alone", "spread"):
        assert len(list((tmp_path / folder / "parts").iterdir())) == 9
    assert (tmp_path / "alone" / "run.json").read_text() == (tmp_path / "spread" / "run.json").read_text()


def test_what_is_measured_already_is_not_measured_again(data, tmp_path):
    samples = samples_of(f"mvtec_ad:{data}")
    first = vlad.evaluate(detectors(), samples, out=tmp_path, ray="auto", **HOW)
    parts = sorted((tmp_path / "parts").iterdir())
    times = {part: part.stat().st_mtime_ns for part in parts}
    parts[4].unlink()
    again = vlad.evaluate(detectors(), samples, out=tmp_path, **HOW)  # by one process: whoever goes on
    assert repr(again.rows) == repr(first.rows)
    assert [part for part in parts if part.stat().st_mtime_ns != times[part]] == [parts[4]]


def test_a_category_at_which_workers_die_ends_the_run_with_a_sentence(data, tmp_path):
    class Deadly:
        def predict(self, pictures):
            os.kill(os.getpid(), signal.SIGKILL)

    samples = samples_of(f"mvtec_ad:{data}")
    with pytest.raises(RuntimeError, match="3 workers died at job 0"):
        vlad.evaluate(Deadly(), samples, out=tmp_path, ray="auto", workers=1)


def test_a_killed_command_and_a_killed_worker_cost_nothing_but_time(data, tmp_path):
    command = [
        *(sys.executable, "-c", "from vlad.cli import main; main()", "eval", "--data", f"mvtec_ad:{data}"),
        *("--method", "patch_text", "--method", "winclip", "--bootstrap", "20", "--json"),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    alone = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    there = [*command, "--out", str(tmp_path / "run"), "--ray", ray.get_runtime_context().gcs_address]
    driver = subprocess.Popen(there, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 100
    while not (found := list(tmp_path.glob("run/parts/*.json"))):
        assert time.monotonic() < end and driver.poll() is None
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    before = len(list(tmp_path.glob("run/parts/*.json")))
    assert 1 <= len(found) <= before < 6
    driver = subprocess.Popen(there, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while driver.poll() is None and not (pids := at_work()):
        time.sleep(0.02)
    for pid in pids[:1]:
        os.kill(pid, signal.SIGKILL)
    said = driver.communicate(timeout=200)[0]
    assert driver.returncode == 0
    assert json.loads(said)["rows"] == json.loads(alone.stdout)["rows"]
