"""`vlad.frames`: a clip, a sequence of pictures, a camera or an address as frames with times, in constant memory.

PyAV (the extra "video") decodes; times are presentation times, never counted from a rate, so clips of a variable rate
are right too. A damaged packet is skipped and counted; a clip that breaks off ends with an error after what was read.
"""

import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from vlad.images import ImageError, read
from vlad.images.listing import list_images

VIDEO = frozenset(
    [".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm", ".mpg", ".mpeg", ".ts", ".m2ts", ".wmv", ".flv"]
)  # GIF stays a picture
ADDRESSES = ("rtsp://", "rtsps://", "http://", "https://")
CAMERA = "camera:"
EPSILON = 1e-6  # seconds
LONGEST = 4 * 512  # px: no scorer looks at more; larger frames are shrunk while they are converted
PATIENCE = 10  # seconds for the answer of an address


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a source.

    Attributes:
        time: seconds since the first frame of the source.
        index: its position in decoding order; damaged ones are not counted.
        picture: uint8 RGB [H, W, 3], upright, its longest side at most `LONGEST`.
        source: "clip.mp4#t=12.500".
        size: (H, W) as in the file, upright.
    """

    time: float
    index: int
    picture: np.ndarray
    source: str
    size: tuple[int, int]


@dataclass
class Damage:
    """What was not read of a source: packets in all, and damaged ones among them."""

    packets: int = 0
    damaged: int = 0
    notes: list[str] = field(default_factory=list)


def is_video(source: str | os.PathLike[str]) -> bool:
    """Whether a source is one by its name: a video's suffix, a camera or an address."""
    name = os.fspath(source)
    return name.startswith((CAMERA, *ADDRESSES)) or Path(name).suffix.lower() in VIDEO


def frames(
    source: str | os.PathLike[str],
    *,
    every: float = 0.5,
    start: float = 0.0,
    end: float | None = None,
    source_fps: float | None = None,
    damage: Damage | None = None,
) -> Iterator[Frame]:
    """The frames of a source, at most one for each stretch of `every` seconds: the first at or after its beginning.

    Args:
        source: a video file; a folder or glob of pictures, in the order of the numbers in their names; "camera:0";
            an rtsp:// or http(s):// address.
        every: seconds; 0 gives all frames.
        start, end: seconds of the source; `end` is exclusive.
        source_fps: pictures a second of a folder or glob, which has no times of its own.
        damage: filled with what could not be read.

    Raises:
        ValueError: a time that is none, a folder without `source_fps`, or `start` behind the end.
        vlad.ImageError: no such file, no video in it, or it broke off; with the sentence of which.
        ModuleNotFoundError: PyAV is not installed.
    """
    if not math.isfinite(every) or every < 0:
        raise ValueError(f"every is {every}; expected seconds, such as 0.5, or 0 for all frames")
    if start < 0 or (end is not None and end <= start):
        raise ValueError(
            f"from {start:g} to {end:g} s holds nothing; the beginning comes first" if end else f"start is {start}"
        )
    name = os.fspath(source)
    all_frames = _decoded(name, start, damage or Damage()) if is_video(name) else _pictures(name, source_fps)
    return _due(all_frames, name, every, start, end)


def _due(found: Iterator[Frame], name: str, every: float, start: float, end: float | None) -> Iterator[Frame]:
    """Those that are due; a frame is one from the due time on, and the next is due on the next multiple of `every`."""
    due, last = start, -1.0
    for frame in found:
        last = frame.time
        if end is not None and frame.time >= end - EPSILON:
            return
        if frame.time < due - EPSILON:
            continue
        if every:
            due = (math.floor((frame.time + EPSILON) / every) + 1) * every
        yield frame
    if last < start - EPSILON:
        raise ValueError(f"--from {clock(start)} lies behind the end of {name} ({clock(max(last, 0.0))})")


def spread(sources: Sequence[str], count: int, apart: float = 10.0) -> list[np.ndarray]:
    """Up to `count` pictures of clips, as many of each and `apart` seconds or more from each other; errors as `frames`.

    How long a clip is shows at its end, so up to twice as many are held, and then every second one.
    """
    found: list[np.ndarray] = []
    for number, source in enumerate(sources):
        most, step, kept = -(-(count - len(found)) // (len(sources) - number)), 1, list[np.ndarray]()
        for place, frame in enumerate(frames(source, every=apart)):
            if place % step == 0:
                kept.append(frame.picture)
            if len(kept) == 2 * most:
                kept, step = kept[::2], 2 * step
        found += [kept[k] for k in np.linspace(0, len(kept) - 1, min(most, len(kept))).round().astype(int)]
    return found


def count_frames(source: str | os.PathLike[str]) -> int:
    """How many frames a video file holds, without decoding them; errors as `frames`."""
    with opened(os.fspath(source)) as container:
        return sum(1 for packet in container.demux(video=0) if packet.size)


def clock(seconds: float) -> str:
    """12.5 -> "00:00:12", 3723 -> "01:02:03"."""
    whole = int(seconds)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"


def seconds(text: str) -> float:
    """Seconds of "0.5", "0.5s", "500ms", "2m", "1h", "00:10" or "1:02:03.5"; ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|m|h)?", text.strip())
    if found:
        return float(found[1]) * {"ms": 0.001, "m": 60.0, "h": 3600.0}.get(found[2] or "s", 1.0)
    parts = text.strip().split(":")
    if 2 <= len(parts) <= 3 and all(re.fullmatch(r"\d+(?:\.\d+)?", part) for part in parts):
        return sum(float(part) * 60**power for power, part in enumerate(reversed(parts)))
    raise ValueError(f"{text!r} is no time; write 0.5s, 500ms, 2m or 1:02:03.5")


def _pictures(name: str, source_fps: float | None) -> Iterator[Frame]:
    """A folder or glob as a sequence."""
    if source_fps is None or not source_fps > 0:
        raise ValueError(f"{name}: pictures have no times; say how many a second with --source-fps")
    paths = sorted((found.path for found in list_images([name])), key=_by_number)
    for index, path in enumerate(paths):
        picture = read(path)
        yield Frame(index / source_fps, index, picture, _named(name, index / source_fps), picture.shape[:2])


def _by_number(path: Any) -> tuple[Any, ...]:
    """By the numbers in a name, then the name: frame_9 comes before frame_10."""
    text = os.fspath(path)
    return ([int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)], text)


def _named(name: str, time: float) -> str:
    return f"{safe(name)}#t={time:.3f}"


def safe(address: str) -> str:
    """An address without its password."""
    parts = urlsplit(address) if "://" in address else None
    return address.replace(f":{parts.password}@", ":***@") if parts and parts.password else address


def _decoded(name: str, start: float, damage: Damage) -> Iterator[Frame]:
    with opened(name) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        first = _first_time(container, stream, name) if start else None
        if start:
            container.seek(int((start + (first or 0.0)) / stream.time_base), stream=stream, backward=True)
        yield from _frames_of(container, stream, name, damage, first)


def _first_time(container: Any, stream: Any, name: str) -> float:
    """The presentation time of the first frame, from which all times count."""
    if stream.start_time is not None:
        return float(stream.start_time * stream.time_base)
    for frame in container.decode(stream):
        container.seek(0, stream=stream, backward=True)
        return float((frame.pts or 0) * stream.time_base)
    raise ImageError(f"{name}: empty or no video file", name)


def _frames_of(container: Any, stream: Any, name: str, damage: Damage, first: float | None) -> Iterator[Frame]:
    """Packet by packet: one damaged packet ends the plain loop of frames, but costs only its own frames here."""
    av = module()
    step = 1.0 / float(stream.average_rate or 25)
    offset, last, index = 0.0, None, 0
    for packet in _packets(container, stream, name, damage, av):
        damage.packets += packet.size > 0
        try:
            decoded = packet.decode()
        except av.error.FFmpegError:
            damage.damaged += 1
            continue
        for frame in decoded:
            own = None if frame.pts is None else float(frame.pts * frame.time_base)
            first = own if first is None else first
            time = (last + step) if own is None and last is not None else (own or 0.0) - (first or 0.0) + offset
            if last is not None and time < last - EPSILON:  # a spliced stream begins anew
                offset += last + step - time
                time = last + step
            last = time
            yield _frame(frame, time, index, name)
            index += 1
    if damage.damaged * 2 > damage.packets or index == 0:
        told = (
            f"{damage.damaged} of {damage.packets} packets are damaged" if damage.damaged else "empty or no video file"
        )
        raise ImageError(f"{name}: {told}", name)
    if damage.damaged:
        damage.notes.append(f"{name}: {damage.damaged} of {damage.packets} packets damaged, the rest was scored")


def _packets(container: Any, stream: Any, name: str, damage: Damage, av: ModuleType) -> Iterator[Any]:
    """The packets, and the sentence where the file breaks off."""
    packets, last = container.demux(stream), 0.0
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError as error:
            said = f"broke off after {clock(last)} ({damage.packets} packets read)"
            raise ImageError(f"{safe(name)}: {said}", safe(name)) from error
        last = float(packet.pts * packet.time_base) if packet.pts is not None else last
        yield packet


def _frame(frame: Any, time: float, index: int, name: str) -> Frame:
    turns = round((frame.rotation or 0) / 90)
    longest, size = max(frame.width, frame.height), (frame.height, frame.width)
    if longest > LONGEST:
        small = [max(1, round(side * LONGEST / longest)) for side in (frame.width, frame.height)]
        frame = frame.reformat(*small, format="rgb24", interpolation="AREA")
    picture = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
    return Frame(time, index, picture, _named(name, time), size[::-1] if turns % 2 else size)


@contextmanager
def opened(name: str) -> Iterator[Any]:
    """The container of a file, camera or address, closed again; vlad.ImageError with a sentence where there is none."""
    av = module()
    shown = safe(name)
    if not name.startswith((CAMERA, *ADDRESSES)):
        if not Path(name).is_file():
            raise ImageError(f"{shown}: no such file; check the path", shown)
        if Path(name).stat().st_size == 0:
            raise ImageError(f"{shown}: empty or no video file", shown)
    try:
        container = av.open(**_how(name), metadata_errors="replace")
    except (av.error.FFmpegError, OSError) as error:
        raise ImageError(f"{shown}: {_why(name, error)}", shown) from error
    with container:
        if not container.streams.video:
            raise ImageError(f"{shown}: holds no video, only audio", shown)
        yield container


def _how(name: str) -> dict[str, Any]:
    if name.startswith(CAMERA):
        return {"file": f"/dev/video{name.removeprefix(CAMERA)}", "format": "v4l2"}
    if name.startswith("rtsp"):
        return {"file": name, "options": {"rtsp_transport": "tcp"}, "timeout": PATIENCE}
    return {"file": name, "timeout": PATIENCE} if name.startswith(ADDRESSES) else {"file": name}


def _why(name: str, error: Exception) -> str:
    if name.startswith(CAMERA):
        here = [path.name.removeprefix("video") for path in sorted(Path("/dev").glob("video[0-9]*"))]
        return f"cannot be opened ({error.strerror or error}); cameras here: {', '.join(here) or 'none'}"  # type: ignore[attr-defined]
    if name.startswith(ADDRESSES):
        return f"no answer within {PATIENCE} s ({type(error).__name__})"
    with open(name, "rb") as file:
        begins = file.read(8)
    if begins[4:8] == b"ftyp":
        return "cannot be read: its index is missing (a recording that was cut off?)"
    return "empty or no video file"


def module() -> ModuleType:
    """PyAV; ModuleNotFoundError says how to install it."""
    try:
        import av
        import av.error
    except ImportError as error:
        raise ModuleNotFoundError('video needs PyAV: pip install "vlad-ad[video]"') from error
    # no log level is set: with one, decoding threads wait for Python while a file that is left early waits for them
    return av
