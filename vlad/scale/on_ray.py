"""Jobs as tasks of a Ray cluster: Ray says who does which, and nothing else.

A job is a call of a function of VLAD's. Its worker keeps what it has loaded for the next one, which is all an actor
would do. Ray's own retries are off, as they would hide a picture that kills its worker.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vlad.version import __version__

PAUSE = 1.0  # seconds after a death, before the job is given out again
WAIT = 5.0  # seconds after which the cluster is asked again what it has
APART = 10.0  # seconds; of workers that die closer together one counts: a node lost or short of memory ends many
DEATHS = 3  # of the workers at one job, after which it is given up
WORKER, NODE = "worker", "node"  # what may die

Died = Callable[[int, str, int], None]  # number of the job, WORKER or NODE, how many deaths of workers at it count


def give_up(number: int, what: str, deaths: int) -> None:
    """What happens by default to a job whose worker has died: DEATHS tries; the end of a node does not count.

    Raises:
        RuntimeError: it has had them.
    """
    if deaths >= DEATHS:
        raise RuntimeError(f"{deaths} workers died at job {number}, each time; is there enough memory on the nodes?")


def each(
    function: Callable[..., Any],
    jobs: Mapping[int, tuple[Any, ...]],
    address: str,
    *,
    workers: int | None = None,
    gpus: bool | None = None,
    first: Mapping[int, Any] | None = None,
    died: Died = give_up,
) -> Iterator[tuple[int, Any]]:
    """(number, what the function gave) of each job, as they are done.

    Args:
        function: written at the top of a module that all nodes have.
        jobs: number -> arguments.
        address: "local", "auto" or a cluster's.
        workers: jobs in work at once; None: a worker for each GPU, or CPU where there is none.
        gpus: whether a job needs a GPU; None: where the cluster has any.
        first: number -> the function's first argument, where many jobs share few large ones: each is sent once.
        died: told of every death that counts (APART), so that it may count or raise; then the job is done again.

    Raises:
        ImportError, ConnectionError: Ray is not installed, or not reached.
        RuntimeError: a node lacks VLAD or has another version; a job whose workers die. What the function raised.
    """
    with _connected(address) as ray:
        task = _task(ray)
        waiting, flying, deaths, put = deque(jobs), dict[Any, int](), dict[int, int](), dict[int, Any]()
        last = -APART
        while waiting or flying:
            slots, placed = _slots(ray, gpus)
            while waiting and len(flying) < (workers or 2 * slots):
                number = waiting.popleft()
                common = first and first[number]
                if first and id(common) not in put:
                    put[id(common)] = ray.put(ray.cloudpickle.dumps(common))
                call = ray.cloudpickle.dumps((function, jobs[number]))
                flying[task.options(**placed).remote(__version__, os.getcwd(), put.get(id(common)), call)] = number
            for ended in ray.wait(list(flying), num_returns=1, timeout=WAIT)[0]:
                number = flying.pop(ended)
                what, result = _outcome(ray, ended)
                if what is None:
                    yield number, result
                    continue
                waiting.append(number)
                if what == WORKER:
                    time.sleep(PAUSE)
                    if time.monotonic() - last < APART:
                        continue
                    last, deaths[number] = time.monotonic(), deaths.get(number, 0) + 1
                died(number, what, deaths.get(number, 0))


def _outcome(ray: Any, ended: Any) -> tuple[str | None, Any]:
    """(None, the result), or what has died; else raises what went wrong."""
    try:
        return None, ray.get(ended)
    except (ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError):
        return NODE, None
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
        return WORKER, None
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _task(ray: Any) -> Any:
    @ray.remote(max_retries=0, max_calls=0)  # GPU workers would else end after each task
    def on_node(version: str, folder: str, common: bytes | None, call: bytes) -> Any:
        # Ray sends this function itself, not its module's name: a node without VLAD can say so.
        import os
        import pickle
        import socket

        node = socket.gethostname()
        try:
            from vlad.version import __version__ as here
        except ImportError:
            raise RuntimeError(f"the node {node} has no VLAD; install vlad-ad {version} there") from None
        if here != version:
            raise RuntimeError(f"the node {node} has VLAD {here}, the driver {version}; bring the same there")
        try:
            os.chdir(folder)  # pictures may be named from there
        except OSError:
            raise RuntimeError(f"the node {node} does not see {folder}; Ray needs folders that all share") from None
        from vlad.scale.on_ray import call_here

        return call_here(common, call, pickle.loads)

    return on_node


_common: list[Any] = [None, None]  # the bytes of what jobs share, as Ray gave them, and what they hold


def call_here(common: bytes | None, call: bytes, loads: Callable[[bytes], Any]) -> Any:
    """What a worker does; what jobs share is unpickled by the first of them.

    Raises:
        OSError: it cannot read or write; the message names the node.
    """
    function, given = loads(call)
    if common is not None:
        if _common[0] != common:
            _common[:] = [None, None]  # before the next is made: two may not fit
            _common[:] = [common, loads(common)]
        given = (_common[1], *given)
    try:
        return function(*given)
    except OSError as error:
        raise OSError(f"on the node {socket.gethostname()}: {error}") from error


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


def _slots(ray: Any, gpus: bool | None) -> tuple[int, dict[str, int]]:
    """(workers that fit now, what each is given); nodes may come and go."""
    found = ray.cluster_resources()
    there = int(found.get("GPU", 0)) if gpus is not False else 0
    return max(1, there or int(found.get("CPU", 1))), {"num_cpus": 1, "num_gpus": 1 if there or gpus else 0}
