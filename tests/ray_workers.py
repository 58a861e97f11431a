"""What tests on a local Ray cluster share: the cluster, and its processes with a job in work."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest

os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")  # else Ray ends workers when memory is short
ray = pytest.importorskip("ray", reason="needs the extra ray")


@contextmanager
def two_cpus():
    """A cluster of one node, until the block ends."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def at_work():
    """Process numbers of the workers with a job in work."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if b"ray::on_node" in (place / "cmdline").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue
    return found
