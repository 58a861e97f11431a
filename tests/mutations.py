"""Damage done to bytes, by a seed, and how much memory it took to read them."""

import re
import resource
from pathlib import Path

import numpy as np


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """One to six changes, most of them near the start, where the headers are."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 7)):
        place = int(rng.integers(0, min(len(data), 2 ** int(rng.integers(4, 16)))))
        match rng.integers(0, 7):
            case 0:
                data[place] ^= 1 << int(rng.integers(0, 8))
            case 1:
                data[place] = int(rng.integers(0, 256))
            case 2:
                data[place : place + 4] = rng.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\0\0\xff\xff"])
            case 3:
                del data[place:]
            case 4:
                del data[place : place + int(rng.integers(1, 9))]
            case 5:
                data[place:place] = rng.bytes(int(rng.integers(1, 9)))
            case 6:
                start = int(rng.integers(0, len(data)))
                data[place : place + 8] = data[start : start + 8]
        if not data:
            break
    return bytes(data)


def peak_memory() -> float:
    """Gigabytes that this process has held; `ru_maxrss` would count what its parent had before."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
