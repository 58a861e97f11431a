"""Clips that tests write: good parts on a belt, and faulty ones, at known times."""

from fractions import Fraction

import av
import numpy as np


def write(path, pictures, times=None, fps=10, codec="libx264", pixels="yuv420p", options=None):
    """A clip of uint8 pictures [H, W, 3]; `times` in seconds, else regular ones."""
    times = [k / fps for k in range(len(pictures))] if times is None else times
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=fps, options=options or ({"crf": "4"} if codec == "libx264" else {}))
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], pixels
        stream.codec_context.time_base = Fraction(1, 1000)
        for picture, time in zip(pictures, times, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def numbered(count, size=(64, 96)):
    """Pictures whose grey says their number: 20 + 5 k."""
    return [np.full((*size, 3), 20 + 5 * k, np.uint8) for k in range(count)]


def number_of(picture):
    return round((float(picture.mean()) - 20) / 5)


def sound(path):
    """A file with audio alone."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def turned(path, turn, to):
    """The same file with a word in its header that it is to be shown turned by 90, 180 or 270 degrees clockwise."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 4 + 20 + 16  # the matrix of the track's header, version 0
    matrix = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[turn]
    for place, value in zip((0, 4, 12, 16), matrix, strict=True):
        content[at + place : at + place + 4] = (value * 65536).to_bytes(4, "big", signed=True)
    to.write_bytes(content)
    return to
