"""Shards as tasks of a Ray cluster. Ray says who does which; tries are counted in the run's own notes (`work`).

No pixels, maps or detectors go through Ray: a worker loads the detector's file that the driver put into the run. Ray's
own retries are off, as they would hide a picture that kills its worker.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.folder.lines import Wanted
from vlad.images.listing import Found
from vlad.loading import load
from vlad.scale.plan import Plan
from vlad.scale.work import Work
from vlad.version import __version__

if TYPE_CHECKING:
    from vlad.detector import Detector

DETECTOR = "detector.safetensors"
STILLBORN = 3  # workers in a row that may die before they begin a shard
DONE, DIED, NODE = "done", "died", "node"
WAIT = 5.0  # seconds after which the cluster is asked again what it has


def drive(
    model: Detector,
    work: Work,
    todo: Mapping[int, Sequence[Found]],
    address: str,
    workers: int | None,
    device: str | None,
) -> Iterator[int]:
    """Numbers of the shards, each as it is done.

    Args:
        todo: number -> pictures of the shard.
        address: "local", "auto" or a cluster's.
        workers: shards in work at once; None: a worker for each GPU, or CPU where there is none.
        device: of the workers; None: the best that each has.

    Raises:
        ImportError, ConnectionError: Ray is not installed, or not reached.
        RuntimeError: a node lacks VLAD, has another version or does not see the run; workers die as they start.
    """
    file = work.plan.out / DETECTOR
    model.save(file, pictures=False)
    how = asdict(work.wanted) | {"folder": str(work.plan.out.absolute())}
    place = {"file": str(file.absolute()), "encoder": model.encoder.name, "device": device, "cwd": os.getcwd()}
    job = {"wanted": how, "batch_size": work.batch_size, "threshold": work.threshold, "plan": work.plan.digest, **place}
    with _connected(address) as ray:
        task = _task(ray)
        waiting, flying, stillborn = deque(todo), dict[Any, int](), 0
        while waiting or flying:
            slots, gpus = _slots(ray)
            while waiting and len(flying) < (workers or 2 * slots):
                number = waiting.popleft()
                pictures = [(one.source, str(one.path), str(one.relative)) for one in todo[number]]
                placed = task.options(num_cpus=1, num_gpus=1 if gpus else 0)
                flying[placed.remote(__version__, job, number, pictures)] = number
            for ended in ray.wait(list(flying), num_returns=1, timeout=WAIT)[0]:
                number = flying.pop(ended)
                if (outcome := _outcome(ray, ended)) == DONE:
                    stillborn = 0
                    yield number
                    continue
                note = work.note(number).path
                stillborn = 0 if outcome == NODE or note.exists() else stillborn + 1
                if outcome == NODE:
                    note.unlink(missing_ok=True)  # not the fault of any picture
                if stillborn > STILLBORN:
                    raise RuntimeError(f"{stillborn} workers died as they loaded the detector; is there enough memory?")
                waiting.append(number)


def _outcome(ray: Any, ended: Any) -> str:
    """DONE, DIED where the worker did, NODE where its whole node did; else raises what went wrong."""
    try:
        problem = ray.get(ended)
    except ray.exceptions.NodeDiedError:
        return NODE
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
        return DIED
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    if problem:
        raise RuntimeError(problem)
    return DONE


def _task(ray: Any) -> Any:
    @ray.remote(max_retries=0, max_calls=0)  # GPU workers would else end after each task
    def on_node(version: str, job: Any, number: int, pictures: Any) -> str:
        # Ray sends this function itself, not its module's name: a node without VLAD can say so.
        import socket

        try:
            from vlad.version import __version__ as here
        except ImportError:
            return f"the node {socket.gethostname()} has no VLAD; install vlad-ad {version} there"
        if here != version:
            return f"the node {socket.gethostname()} has VLAD {here}, the driver {version}; bring the same there"
        from vlad.scale.on_ray import score_shard

        return score_shard(job, number, pictures)

    return on_node


def score_shard(job: Mapping[str, Any], number: int, pictures: Sequence[tuple[str, str, str]]) -> str:
    """What a worker does; a sentence where its node cannot.

    Raises:
        OSError: it cannot write; the message names the node.
    """
    out, node = Path(job["wanted"]["folder"]), socket.gethostname()
    try:
        os.chdir(job["cwd"])  # pictures may be named from there
        plan = Plan.read(out)
    except (OSError, ValueError):
        return f"the node {node} does not see {out} or {job['cwd']}; Ray needs folders that all nodes share"
    wanted = Wanted(**job["wanted"] | {"folder": out})
    found = [Found(source, Path(path), Path(relative)) for source, path, relative in pictures]
    detector = _detector(job["file"], job["encoder"], job["device"], job["plan"])
    try:
        Work(plan, wanted, job["batch_size"], job["threshold"]).score(detector, number, found)
    except OSError as error:
        raise OSError(f"the node {node} cannot do shard {number} of {out}: {error}") from error
    return ""


@lru_cache(maxsize=1)
def _detector(file: str, encoder: str, device: str | None, plan: str) -> Detector:
    """Loaded once by each worker; `plan` tells a run from one that had another detector in the same place."""
    return load(file, encoder=encoder, device=device)


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, with a cluster of this machine's own for "local"; one that the caller has joined stays."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before the import
    try:
        import ray
    except ImportError:
        raise ImportError("--ray needs Ray: pip install 'vlad-ad[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        if ":" in address:  # Ray itself would wait for minutes
            host, _, port = address.rpartition("/")[2].rpartition(":")
            socket.create_connection((host, int(port)), timeout=WAIT).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **own)
    except (OSError, RuntimeError, ValueError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConnectionError(f"no Ray cluster at {address!r} ({said}); give local, auto or HOST:PORT") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _slots(ray: Any) -> tuple[int, int]:
    """(workers that fit now, GPUs of the cluster); nodes may come and go."""
    found = ray.cluster_resources()
    gpus = int(found.get("GPU", 0))
    return max(1, gpus or int(found.get("CPU", 1))), gpus
