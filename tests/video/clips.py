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
