"""Clips that are written: frames at their own times, and scored ones with what was found drawn in."""

from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image, ImageDraw

from vlad.prediction import Prediction
from vlad.video.events import Rule
from vlad.video.reading import Frame, clock, module

TICKS = 1000  # a second: times are kept to the millisecond
CODECS = ("libx264", "mpeg4")  # the first that is there
BAR = 8  # px: height of the score's bar
RED, BLUE, WHITE = (198, 40, 40), (11, 99, 197), (255, 255, 255)


class ClipWriter:
    """Writes a clip frame by frame; all frames have one size, and an odd side repeats its last row or column.

    `rate` is what the file says of itself; times are those given.
    """

    def __init__(self, path: str | Path, rate: int = 25) -> None:
        self.av = module()
        codec = next(name for name in CODECS if name in self.av.codecs_available)
        self.out = self.av.open(str(path), "w")
        self.stream = self.out.add_stream(
            codec, rate=rate, options={"preset": "veryfast"} if codec == "libx264" else {}
        )
        self.stream.pix_fmt = "yuv420p"
        self.begun = False

    def add(self, seconds: float, picture: np.ndarray) -> None:
        """The next frame, uint8 RGB [H, W, 3]."""
        even = np.pad(picture, [(0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)], mode="edge")
        if not self.begun:
            self.begun = True
            self.stream.height, self.stream.width = even.shape[:2]
            self.stream.codec_context.time_base = Fraction(1, TICKS)
        frame = self.av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        frame.pts, frame.time_base = round(seconds * TICKS), Fraction(1, TICKS)
        self.out.mux(self.stream.encode(frame))

    def __enter__(self) -> "ClipWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.begun:
            self.out.mux(self.stream.encode())
        self.out.close()


def write(path: str | Path, frames: Iterable[tuple[float, np.ndarray]], *, rate: int = 25) -> None:
    """Writes a clip of (seconds, uint8 RGB [H, W, 3])."""
    with ClipWriter(path, rate) as clip:
        for seconds, picture in frames:
            clip.add(seconds, picture)


def annotated(frame: Frame, prediction: Prediction, even: float, rule: Rule | None, alarmed: bool) -> np.ndarray:
    """uint8 RGB [H, W, 3]: the overlay, the time, a bar of the smoothed score, and a red rim within an event.

    The bar is full at twice the threshold, which a line marks; without a threshold at 1.
    """
    picture = frame.picture
    if prediction.map is not None:
        picture = np.asarray(replace(prediction, size=picture.shape[:2]).overlay(picture).convert("RGB"))
    shown = Image.fromarray(picture)
    wide, high = shown.size
    pen, full = ImageDraw.Draw(shown), 2 * rule.on if rule and rule.on > 0 else 1.0
    pen.rectangle((0, high - BAR, int(wide * min(max(even / full, 0), 1)), high), fill=RED if alarmed else BLUE)
    if rule:
        pen.line((wide // 2, high - BAR, wide // 2, high), fill=WHITE)
    pen.text((BAR, BAR), f"{clock(frame.time)}  {even:.3f}", fill=WHITE, stroke_width=2, stroke_fill=(0, 0, 0))
    if alarmed:
        pen.rectangle((0, 0, wide - 1, high - 1), outline=RED, width=4)
    return np.asarray(shown)
