"""Clips that are written: frames at their own times, and scored ones with what was found drawn in."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np

from vlad.video.reading import module

TICKS = 1000  # a second: times are kept to the millisecond
CODECS = ("libx264", "mpeg4")  # the first that is there


def write(path: str | Path, frames: Iterable[tuple[float, np.ndarray]], *, rate: int = 25) -> None:
    """Writes a clip of (seconds, uint8 RGB [H, W, 3]) of one size; an odd side repeats its last row or column.

    Args:
        rate: what the file says of itself; times are those given.
    """
    av = module()
    codec = next(name for name in CODECS if name in av.codecs_available)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, options={"preset": "veryfast"} if codec == "libx264" else {})
        stream.pix_fmt = "yuv420p"
        for seconds, picture in frames:
            even = np.pad(picture, [(0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)], mode="edge")
            if not stream.codec_context.is_open:
                stream.height, stream.width = even.shape[:2]
                stream.codec_context.time_base = Fraction(1, TICKS)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
            frame.pts, frame.time_base = round(seconds * TICKS), Fraction(1, TICKS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
