"""Files of more than 8 bits a channel that Pillow cuts down to 8: colour PNG, colour PPM."""

import os
import re
import zlib
from collections.abc import Iterable, Iterator
from io import BytesIO
from struct import pack, unpack
from typing import BinaryIO

import numpy as np
from PIL import Image

from vlad.images.depth import FULL, Levels
from vlad.images.sizes import Part, afford, bands

_PPM = re.compile(rb"P([56])((?:\s+|#[^\n]*\n)+\d+){3}\s", re.DOTALL)
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
_SBIT = re.compile(rb"\0\0\0[\x01-\x04]sBIT(.)", re.DOTALL)


def is_deep_png(image: Image.Image) -> bool:
    """Whether it is an opened, not yet decoded PNG of colours or alpha with 16 bits a channel."""
    modes = [str(tile[3]) for tile in getattr(image, "tile", ())]
    return image.format == "PNG" and any(mode in ("RGB;16B", "LA;16B", "RGBA;16B") for mode in modes)


def decode_png(file: BinaryIO, clear: tuple[int, ...] | None, limit: int) -> np.ndarray:
    """uint16 [H, W, 2|3|4]; the colour `clear` becomes white.

    PNG's filters add bytes of the same place in neighbouring pixels, never high ones to low ones: the high bytes are a
    PNG of 8 bits, and so are the low ones, and those Pillow decodes.

    Raises:
        ValueError: rows are missing or a checksum is wrong, or it takes too much memory.
    """
    header, packed = _chunks(file)
    width, height, _, kind, *_, interlaced = unpack(">IIBBBBB", header)
    channels = {2: 3, 4: 2, 6: 4}[kind]
    afford(width * height, 6 * channels + 4, limit)  # the bytes, the levels, one half of them as a PNG and in Pillow
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [(-(-(height - top) // down), -(-(width - left) // right)) for top, left, down, right in passes]
    sizes = [(rows, columns) for rows, columns in sizes if rows > 0 and columns > 0]
    total = sum(rows * (1 + columns * channels * 2) for rows, columns in sizes)
    stream = np.frombuffer(zlib.decompressobj().decompress(packed, total), np.uint8)
    if stream.size < total:
        raise ValueError(f"it is truncated: {stream.size} bytes of {total}")
    values = np.zeros((height, width, channels), np.uint16)
    for half, shift in enumerate((8, 0)):
        content = _plain_png(width, height, kind, interlaced, _halves(stream, sizes, channels, half))
        with Image.open(content, formats=("PNG",)) as image:
            eight = Part(image, image.mode)
            for rows in bands((height, width)):
                values[rows] |= eight[rows].astype(np.uint16) << shift
    if clear is not None:
        values[(values == clear).all(axis=2)] = FULL
    return values


def _halves(stream: np.ndarray, sizes: list[tuple[int, int]], channels: int, half: int) -> Iterator[np.ndarray]:
    """Of the filtered rows of each pass the filter and the high (0) or low (1) bytes, uint8 [rows, 1 + n]."""
    for rows, columns in sizes:
        whole, stream = np.split(stream, [rows * (1 + columns * channels * 2)])
        whole = whole.reshape(rows, -1)
        for some in bands((rows, columns)):
            yield np.concatenate([whole[some, :1], whole[some, 1 + half :: 2]], axis=1)


def _chunks(file: BinaryIO) -> tuple[bytes, bytes]:
    """A PNG's header and its packed rows."""
    file.seek(8)
    header = b""
    rows: list[bytes] = []
    while len(start := file.read(8)) == 8:
        size, kind = unpack(">I4s", start)
        if kind not in (b"IHDR", b"IDAT"):
            file.seek(size + 4, os.SEEK_CUR)
            continue
        data, checksum = file.read(size), file.read(4)
        if zlib.crc32(kind + data).to_bytes(4, "big") != checksum:
            raise ValueError("it is truncated or damaged: a checksum is wrong")
        header, rows = (data, rows) if kind == b"IHDR" else (header, [*rows, data])
    return header, b"".join(rows)


def _plain_png(width: int, height: int, kind: int, interlaced: int, rows: Iterable[np.ndarray]) -> BytesIO:
    """A PNG of filtered rows of 8 bits a channel, not packed."""
    content = BytesIO()

    def chunk(name: bytes, data: bytes) -> None:
        content.write(pack(">I", len(data)) + name)
        content.write(data)
        content.write(pack(">I", zlib.crc32(data, zlib.crc32(name))))

    content.write(_SIGNATURE)
    chunk(b"IHDR", pack(">IIBBBBB", width, height, 8, kind, 0, 0, interlaced))
    packer = zlib.compressobj(0)
    for some in rows:
        chunk(b"IDAT", packer.compress(some.data))
    chunk(b"IDAT", packer.flush())
    chunk(b"IEND", b"")
    content.seek(0)
    return content


def significant_bits(file: BinaryIO) -> str:
    """What a PNG's sBIT chunk says; its levels fill 16 bits all the same, if the writer kept to the rules."""
    file.seek(0)
    found = _SBIT.search(file.read(4096))
    return f"the file says {found[1][0]} significant bits" if found else ""


def decode_pnm(file: BinaryIO, limit: int) -> Levels | None:
    """The levels of a binary PGM or PPM with 16 bits a channel, which states its white; None of any other file.

    Raises:
        ValueError: too few pixels, or a size above the limit.
    """
    file.seek(0)
    head = file.read(4096)
    if not (header := _PPM.match(head)):
        return None
    width, height, white = (int(word) for word in re.findall(rb"\d+", re.sub(rb"#[^\n]*", b"", header[0][2:])))
    if not 255 < white <= FULL or not 0 < width * height <= limit:
        return None  # Pillow reads it, or says what is wrong
    channels = 3 if header[1] == b"6" else 1
    file.seek(header.end())
    size = width * height * channels * 2
    data = file.read(size)
    if len(data) < size:
        raise ValueError(f"it is truncated: {len(data)} bytes of {size}")
    return Levels(np.frombuffer(data, ">u2").reshape(height, width, channels), white if white < FULL else None)
