"""Arrays that may be larger than the memory: up to a budget they lie in it, beyond that in a file without a name.

The file is in VLAD's cache folder (`VLAD_CACHE` moves it) and is gone when its owner is, however the process ends. It
is read and written, not mapped: keeping its content in memory or not is the system's business and not ours.
"""

import math
import tempfile
from collections.abc import Sequence
from typing import IO

import torch
from torch import Tensor

from vlad.files import cache_dir, reserve

SPILLED = "what does not fit in memory"
BLOCK_BYTES = 16 * 2**20


def unnamed_file(size: int, what: str) -> IO[bytes]:
    """An open file for `size` bytes.

    Raises:
        OSError: the disk has less room than that.
    """
    file = tempfile.TemporaryFile(dir=cache_dir())  # noqa: SIM115  # its owner closes it
    reserve(file, size, what)
    return file


def _read(file: IO[bytes], start: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    file.seek(start)
    content = bytearray(file.read(math.prod(shape) * dtype.itemsize))
    return torch.frombuffer(content, dtype=dtype).view(shape)


def _write(file: IO[bytes], start: int, values: Tensor) -> None:
    file.seek(start)
    file.write(values.contiguous().view(-1).view(torch.uint8).numpy().data)


class Records:
    """Equal tensors, appended one by one and read by their numbers; those past the budget lie in a file.

    Within the budget they lie in blocks of BLOCK_BYTES: thousands of small tensors, kept between large short-lived
    ones, would leave the heap full of holes.
    """

    def __init__(self, budget: int):
        self.budget = budget
        self.blocks: list[Tensor] = []
        self.outside: IO[bytes] | None = None
        self.count = self.inside = 0  # records, and how many of them lie in memory

    def __len__(self) -> int:
        return self.count

    def append(self, record: Tensor) -> None:
        """Keeps [parts, ...]; all records have the first one's shape and dtype, and lie in main memory."""
        if not self.count:
            self.shape, self.dtype = record.shape, record.dtype
            self.together = max(1, min(BLOCK_BYTES, self.budget) // record.nbytes)
        if (self.inside + 1) * record.nbytes <= self.budget:
            block, place = divmod(self.inside, self.together)
            if block == len(self.blocks):
                self.blocks.append(torch.empty((self.together, *self.shape), dtype=self.dtype))
            self.blocks[block][place] = record
            self.inside += 1
        else:
            start = (self.count - self.inside) * record.nbytes
            self.outside = self.outside or unnamed_file(record.nbytes, SPILLED)
            reserve(self.outside, start + record.nbytes, SPILLED)
            _write(self.outside, start, record.cpu())
        self.count += 1

    def read(self, numbers: Sequence[int], part: int) -> Tensor:
        """[numbers, ...] that part of those records."""
        return torch.stack([self._one(number, part) for number in numbers])

    def _one(self, number: int, part: int) -> Tensor:
        if number < self.inside:
            block, place = divmod(number, self.together)
            return self.blocks[block][place, part]
        assert self.outside is not None
        parts, *shape = self.shape
        place = (number - self.inside) * parts + part
        return _read(self.outside, place * math.prod(shape) * self.dtype.itemsize, tuple(shape), self.dtype)


class PairTable:
    """float32 [n, n, width]: blocks are written anywhere, rows are read; past the budget it lies in a file."""

    def __init__(self, n: int, width: int, budget: int):
        self.n, self.width = n, width
        self.inside = torch.empty(n, n, width) if 4 * n * n * width <= budget else None
        self.outside = None if self.inside is not None else unnamed_file(4 * n * n * width, "the table of distances")

    def write(self, row: int, column: int, values: Tensor) -> None:
        """Puts [a, b, width] where rows and columns from (row, column) on meet."""
        if self.inside is not None:
            self.inside[row : row + values.shape[0], column : column + values.shape[1]] = values
            return
        assert self.outside is not None
        for offset, line in enumerate(values.float().cpu()):
            _write(self.outside, 4 * self.width * ((row + offset) * self.n + column), line)

    def row(self, number: int) -> Tensor:
        """[n, width]."""
        if self.inside is not None:
            return self.inside[number]
        assert self.outside is not None
        return _read(self.outside, 4 * self.width * number * self.n, (self.n, self.width), torch.float32)
