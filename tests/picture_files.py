"""Picture files written by hand, for layouts that no library here writes."""

import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

BYTE, SHORT, LONG, LONG8 = 1, 3, 4, 16


def packed(levels: np.ndarray, bits: int, order: str = "<") -> bytes:
    """Rows [H, n] of levels as TIFF packs them: whole bytes in the file's order, others highest bit first."""
    if bits in (8, 16, 32, 64):
        return levels.astype(f"{order}{levels.dtype.kind}{bits // 8}").tobytes()
    places = np.arange(bits - 1, -1, -1)
    rows = (levels[..., None].astype(np.int64) >> places & 1).astype(np.uint8).reshape(len(levels), -1)
    return np.packbits(rows, axis=1).tobytes()


def tiff(*pages: Mapping[int, object], order: str = "<", big: bool = False) -> bytes:
    """A TIFF of the given pages. A page maps tags to a value or a list of values; two keys are no tags:

    "strips": the bytes of each strip or tile.
    "inner": pages of a SubIFD.
    """
    word, kind = ("Q", LONG8) if big else ("I", LONG)
    size = struct.calcsize(word)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", 43 if big else 42)
    head += struct.pack(f"{order}HH", 8, 0) if big else b""
    body = bytearray()

    def add(data: bytes) -> int:
        body.extend(bytes(len(body) % 2))
        body.extend(data)
        return len(head) + size + len(body) - len(data)

    def directory(page: Mapping, following: int) -> int:
        strips = [add(strip) for strip in page["strips"]]
        tags = {tag: value for tag, value in page.items() if isinstance(tag, int)}
        offsets, counts = (324, 325) if 322 in tags else (273, 279)
        tags |= {offsets: strips, counts: [len(strip) for strip in page["strips"]]}
        if "inner" in page:
            tags[330] = [directory(inner, 0) for inner in page["inner"]]
        entries = b""
        for tag, value in sorted(tags.items()):
            values = list(value) if isinstance(value, Sequence) else [value]
            short = tag not in (offsets, counts, 330) and max(values) < 65536
            data = struct.pack(f"{order}{len(values)}{'H' if short else word}", *values)
            where = data.ljust(size, b"\0") if len(data) <= size else struct.pack(f"{order}{word}", add(data))
            entries += struct.pack(f"{order}HH{word}", tag, SHORT if short else kind, len(values)) + where
        count = struct.pack(f"{order}{'Q' if big else 'H'}", len(entries) // (4 + 2 * size))
        return add(count + entries + struct.pack(f"{order}{word}", following))

    first = 0
    for page in reversed(pages):
        first = directory(page, first)
    return head + struct.pack(f"{order}{word}", first) + bytes(body)


def page(
    samples: np.ndarray, bits: int, photometric: int = 1, order: str = "<", planar: bool = False, **more: object
) -> dict:
    """One page of one strip (of a strip for each plane, if planar) of samples [H, W, S]; `t281=` is a further tag."""
    height, width, channels = samples.shape
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    planes = np.moveaxis(samples, 2, 0)[..., None] if planar else samples[None]
    tags = {
        256: width,
        257: height,
        258: [bits] * channels,
        259: 1,
        262: photometric,
        277: channels,
        278: height,
        284: 2 if planar else 1,
        339: [kind] * channels,
        "strips": [packed(plane.reshape(height, -1), bits, order) for plane in planes],
    }
    return tags | {int(key[1:]): value for key, value in more.items()}


def png16(levels: np.ndarray, before: bytes = b"", filtered: bool = False, interlaced: bool = False) -> bytes:
    """A PNG of 16 bits a channel, [H, W, 1|2|3|4].

    Args:
        levels: 0 to 65535.
        before: whole chunks between the header and the rows.
        filtered: the five filters in turn; else none.
        interlaced: in Adam's seven passes.
    """
    height, width, channels = levels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    steps = ADAM7 if interlaced else [(0, 0, 1, 1)]
    rows = b"".join(_png_rows(levels[top::down, left::right], filtered) for top, left, down, right in steps)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, interlaced)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def _png_rows(levels: np.ndarray, filtered: bool) -> bytes:
    if not levels.size:
        return b""
    rows = np.frombuffer(levels.astype(">u2").tobytes(), np.uint8).reshape(len(levels), -1).astype(int)
    step = 2 * levels.shape[2]
    left = np.pad(rows, ((0, 0), (step, 0)))[:, :-step]
    up = np.pad(rows, ((1, 0), (0, 0)))[:-1]
    corner = np.pad(rows, ((1, 0), (step, 0)))[:-1, :-step]
    guess = left + up - corner
    far = [np.abs(guess - near) for near in (left, up, corner)]
    paeth = np.where((far[0] <= far[1]) & (far[0] <= far[2]), left, np.where(far[1] <= far[2], up, corner))
    options = [np.zeros_like(rows), left, up, (left + up) // 2, paeth]
    kinds = [number % 5 if filtered else 0 for number in range(len(rows))]
    lines = [rows[number] - options[kind][number] for number, kind in enumerate(kinds)]
    return b"".join(bytes([kind]) + line.astype(np.uint8).tobytes() for kind, line in zip(kinds, lines, strict=True))


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
