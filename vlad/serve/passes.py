"""The one way to the encoder: a bounded queue, threads that read pictures, one that computes, threads that draw."""

import io
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

from vlad.detector.predicting import Reading, judged, reading_of
from vlad.images import ImageError, Remarks
from vlad.prediction import Prediction
from vlad.serve.shelf import Held, limited

logger = logging.getLogger(__name__)

READERS = FINISHERS = 2
COMPANY = 0.002  # seconds that a pass on a GPU waits for more pictures

Outcome = tuple[Reading, Prediction | ImageError]
Finish = Callable[[str, IO[bytes], Outcome], Any]  # of a picture's name and opened file: what is to be answered


class Given(NamedTuple):
    """A client's picture; `page` counts from 1, None is the first, with a note where there are more."""

    name: str
    file: IO[bytes]
    page: int | None = None


class Full(RuntimeError):
    """There is no room now; it is worth asking again in a second."""


@dataclass(eq=False)
class Item:
    """A picture on its way."""

    held: Held
    given: Given
    finish: Finish
    answer: "Future[Any]" = field(default_factory=Future)


class Passes:
    """Pictures in, futures out. Encoded pictures wait; decoded ones are never more than a few batches on their way.

    Attributes:
        limit: pictures that may be waiting or in work.
        batch_size: pictures of one detector in one pass.
        observe: told the number of pictures of each pass before it, for metrics.
    """

    def __init__(self, limit: int, batch_size: int, max_pixels: int, observe: Callable[[int], Any]):
        self.limit, self.batch_size, self.max_pixels, self.observe = limit, batch_size, max_pixels, observe
        self.count = 0  # pictures admitted and not answered yet
        self._lock = threading.Lock()
        self._waiting: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._ready: queue.Queue[tuple[Item, Reading] | None] = queue.Queue(2 * batch_size)
        self._seen: queue.Queue[tuple[Item, Outcome] | None] = queue.Queue(2 * batch_size)
        self._readers = [threading.Thread(target=self._read, daemon=True) for _ in range(READERS)]
        self._computer = threading.Thread(target=self._compute, daemon=True)
        self._finishers = [threading.Thread(target=self._finish, daemon=True) for _ in range(FINISHERS)]
        for thread in (*self._readers, self._computer, *self._finishers):
            thread.start()

    def check_room(self, pictures: int) -> None:
        """Raises Full where so many more do not fit."""
        if self.count + pictures > self.limit:
            raise Full(f"{self.count} pictures are waiting and {self.limit} may; send these again in a second")

    def submit(self, held: Held, pictures: Sequence[Given], finish: Finish) -> list["Future[Any]"]:
        """One future for each, all or none admitted; cancelled ones are never computed.

        A future holds what `finish`, called in a thread of its own, makes of the picture; not the pixels, where that
        leaves them out.

        Raises:
            Full: so many more do not fit.
        """
        with self._lock:
            self.check_room(len(pictures))
            self.count += len(pictures)
        items = [Item(held, one, finish) for one in pictures]
        for item in items:
            item.answer.add_done_callback(self._left)
            self._waiting.put(item)
        return [item.answer for item in items]

    def close(self) -> None:
        """Answers what is waiting, then ends its threads."""
        for _ in self._readers:
            self._waiting.put(None)
        for thread in self._readers:
            thread.join()
        self._ready.put(None)
        self._computer.join()
        for _ in self._finishers:
            self._seen.put(None)
        for thread in self._finishers:
            thread.join()

    def _left(self, _: "Future[Any]") -> None:
        with self._lock:
            self.count -= 1

    def _read(self) -> None:
        while (item := self._waiting.get()) is not None:
            if item.answer.cancelled():
                continue
            try:
                reading = _reading(item, self.max_pixels)
            except Exception as error:  # whatever it is, it is one picture's, and the thread goes on
                if item.answer.set_running_or_notify_cancel():
                    _fail([item], error)
            else:
                self._ready.put((item, reading))

    def _compute(self) -> None:
        following: tuple[Item, Reading] | None = None
        while (first := following or self._ready.get()) is not None:
            batch, following = self._batch(first)
            live = [one for one in batch if one[0].answer.set_running_or_notify_cancel()]
            if live:
                self._answer(live)

    def _batch(self, first: tuple[Item, Reading]) -> tuple[list[tuple[Item, Reading]], Any]:
        """What goes through together: pictures of one detector that are ready; and the one that ended it."""
        batch, held = [first], first[0].held
        on_gpu = held.detector.encoder.device.type != "cpu"
        while len(batch) < self.batch_size:
            try:
                one = self._ready.get(timeout=COMPANY) if on_gpu else self._ready.get_nowait()
            except queue.Empty:
                break
            if one is None or one[0].held is not held:
                if one is None:
                    self._ready.put(None)
                return batch, one
            batch.append(one)
        return batch, None

    def _answer(self, batch: list[tuple[Item, Reading]]) -> None:
        items, held = [item for item, _ in batch], batch[0][0].held
        self.observe(len(batch))
        try:
            found = judged(
                held.detector.judge, [reading for _, reading in batch], limited(held.detector, self.max_pixels)
            )
            for item, outcome in zip(items, found, strict=True):
                self._seen.put((item, outcome))
        except Exception as error:  # a pass that fails fails its own pictures, never the loop
            _fail(items, error)

    def _finish(self) -> None:
        while (one := self._seen.get()) is not None:
            item, outcome = one
            try:
                item.answer.set_result(item.finish(item.given.name, item.given.file, outcome))
            except Exception as error:
                _fail([item], error)


def _reading(item: Item, max_pixels: int) -> Reading:
    """The picture read; that it has further pages is a note of its own."""
    detector, remarks, given = item.held.detector, Remarks(), item.given
    picture = named(given.name, given.file.read())
    made = reading_of(picture, limited(detector, max_pixels), remarks, detector.scorer, given.page)
    return made._replace(notes=(*made.notes, *filter(None, [remarks.of_pages()])))


def named(name: str, content: bytes) -> io.BytesIO:
    """Bytes that messages call by this name."""
    file = io.BytesIO(content)
    file.name = name
    return file


def _fail(items: Sequence[Item], error: Exception) -> None:
    logger.error("a pass failed: %s: %s", type(error).__name__, error)
    for item in items:
        if not item.answer.done():
            item.answer.set_exception(error)
