"""Files are decoded a few at a time: in order, large ones alone, and what is no file when it is pulled."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vlad.detector.predicting import DECODERS, Reading, batch_of


class Slow:
    """Reads pictures of one size, the first of every three slowly, and counts how many at once."""

    def __init__(self, side):
        self.side, self.now, self.most, self.lock = side, 0, 0, threading.Lock()

    def __call__(self, image):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.02 if str(image).endswith("0") else 0.002)
        with self.lock:
            self.now -= 1
        return Reading(image, None, (self.side, self.side))


def read(images, slow):
    with ThreadPoolExecutor(DECODERS) as pool:
        return [one.given for one in batch_of(iter(images), len(images), slow, pool)]


@pytest.mark.parametrize(("side", "alone"), [(100, False), (3000, True)])
def test_files_come_in_order_and_large_ones_are_decoded_alone(side, alone):
    names, slow = [f"{number}.png" if number % 3 else f"{number}.png0" for number in range(12)], Slow(side)
    assert read(names, slow) == names
    assert slow.most <= DECODERS and (slow.most == 1) == alone


def test_what_is_no_file_is_read_before_the_next_is_pulled():
    buffer, seen = np.zeros((4, 4, 3), np.uint8), []

    def camera():
        for frame in range(6):
            buffer[:] = frame
            yield buffer

    def copied(image):
        time.sleep(0.002)
        return Reading(None, image.copy())

    with ThreadPoolExecutor(DECODERS) as pool:
        seen = [int(one.picture[0, 0, 0]) for one in batch_of(camera(), 8, copied, pool)]
    assert seen == list(range(6))


def test_an_error_that_is_none_of_a_picture_ends_it():
    def failing(image):
        if image == "2.png":
            raise OSError("gone")
        return Reading(image, None)

    with ThreadPoolExecutor(DECODERS) as pool, pytest.raises(OSError, match="gone"):
        batch_of((f"{number}.png" for number in range(5)), 8, failing, pool)


def test_nothing_is_pulled_beyond_the_batch():
    names = iter([f"{number}.png" for number in range(9)])
    with ThreadPoolExecutor(DECODERS) as pool:
        assert len(batch_of(names, 6, Slow(10), pool)) == 6
    assert list(names) == ["6.png", "7.png", "8.png"]
