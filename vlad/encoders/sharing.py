"""Passes over one batch that several methods need, computed once."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import wraps
from typing import Any, TypeVar, cast

from torch import Tensor

Pass = TypeVar("Pass", bound=Callable[..., Any])


class Passes(threading.local):
    """What one thread has computed while it shares; each thread shares with itself alone.

    Attributes:
        results: batch of pixels -> call -> what it gave; None where nothing is shared. A tensor is a key by identity
            and is held as long as its results, so that no other tensor can be taken for it.
        walked: the batch whose block loop is recorded, and what is recorded of it; see `ClipEncoder.value_walk`.
    """

    results: dict[Tensor, dict[Any, Any]] | None = None
    walked: tuple[Tensor, dict[str, list[Any]]] | None = None

    @property
    def bytes(self) -> int:
        """What the results that are kept take, with their batches."""
        return _bytes(self.results)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Until the block ends, results are kept; within another such block it changes nothing."""
        if self.results is not None:
            yield
            return
        self.results = {}
        try:
            yield
        finally:
            self.results = self.walked = None

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Until the block ends, nothing is kept and nothing that is kept is seen."""
        kept = self.results, self.walked
        self.results = self.walked = None
        try:
            yield
        finally:
            self.results, self.walked = kept


def _bytes(found: Any) -> int:
    if isinstance(found, Tensor):
        return found.numel() * found.element_size()
    if isinstance(found, dict):
        return sum(_bytes(key) + _bytes(value) for key, value in found.items())
    parts = found if isinstance(found, tuple | list) else vars(found).values() if is_dataclass(found) else ()
    return sum(map(_bytes, parts))


def once(method: Pass) -> Pass:
    """A pass over pixels that, while passes are kept, is computed once for the same batch and arguments."""

    @wraps(method)
    def shared(self: Any, pixels: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.passes.results is None:
            return method(self, pixels, *args, **kwargs)
        results, call = self.passes.results.setdefault(pixels, {}), (method.__name__, repr(args), repr(kwargs))
        if call not in results:
            results[call] = method(self, pixels, *args, **kwargs)
        return results[call]

    return cast(Pass, shared)
