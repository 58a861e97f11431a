"""TIFF in all its layouts: pages, strips and tiles, odd depths, white as zero.

Pillow decodes what is 8 bits deep and plain. Of the rest tifffile reads the tags, and the samples are unpacked here,
with libtiff's decompressors (through Pillow). What neither can decompress needs the package imagecodecs.
"""

import importlib.util
import logging
import math
import zlib
from collections.abc import Iterator
from io import BytesIO
from itertools import product
from struct import pack
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from vlad.images import pillow
from vlad.images.depth import FULL, Levels
from vlad.images.pillow import ORIENTATION, TooManyPixels
from vlad.images.sizes import BAND, afford

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it says has no file name; errors are raised

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAX_SAMPLE_VALUE, _SUBSAMPLING = 281, 530  # tags
_NONE, _PACKED_LZW, _DEFLATE, _OLD_DEFLATE, _PACKBITS, _ZSTD, _LZMA = 1, 5, 8, 32946, 32773, 50000, 34925
_UNPACKED_HERE = (_NONE, _PACKED_LZW, _DEFLATE, _OLD_DEFLATE, _PACKBITS, _ZSTD, _LZMA)
_LEFT_TO_PILLOW = (2, 3, 4, 6, 7, 50001)  # fax, JPEG, WebP
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _MASK, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 4, 5, 6, 8
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _MASK: 1, _CMYK: 4}
_NAMES = {_YCBCR: "YCbCr", _LAB: "CIE Lab", 9: "ICC Lab", 10: "ITU Lab", 32803: "a raw mosaic", 34892: "linear raw"}
_ALPHA = (1, 2)  # ExtraSamples: premultiplied, straight; 0 is anything
_MOST_SAMPLES = 16


def is_tiff(file: BinaryIO) -> bool:
    """Whether a file that can seek begins as TIFF or BigTIFF does."""
    file.seek(0)
    return file.read(4) in _MAGIC


def pages_of(file: BinaryIO) -> int:
    """How many pages there are, without thumbnails, masks and the smaller steps of a pyramid."""
    with _opened(file) as tif:
        return len(_pages(tif))


def decode_file(file: BinaryIO, number: int, limit: int) -> tuple[Levels, int]:
    """The levels of a page (from 1), and how many pages there are.

    Raises:
        TooManyPixels: H * W is above `limit`; the pixels were not touched.
        ValueError: what it holds cannot be read; the message says what it is.
        Exception: whatever a decoder raises on damaged data.
    """
    with _opened(file) as tif:
        pages = _pages(tif)
        if number > len(pages):
            raise ValueError(f"it has no page {number}; it has {len(pages)}")
        page = pages[number - 1]
        if page.imagewidth * page.imagelength > limit:
            raise TooManyPixels
        if not page.imagewidth * page.imagelength:
            raise ValueError("it has no pixels")
        if _is_plain(page) or page.compression in _LEFT_TO_PILLOW:
            return _by_pillow(file, page, limit), len(pages)
        return _levels(page, _samples(page, file, limit)), len(pages)


def _opened(file: BinaryIO) -> Any:
    from tifffile import TiffFile

    file.seek(0)
    return TiffFile(file)


def _pages(tif: Any) -> list[Any]:
    """The pictures of a file; where the first is a mere thumbnail, its main picture may lie in a SubIFD."""
    pages = [tif.pages[number] for number in range(len(tif.pages))]
    inner = [] if not pages or not _is_small(pages[0]) else list(pages[0].pages or ())
    whole = [page for page in (*inner, *pages) if not _is_small(page)]
    if not (whole or pages):
        raise ValueError("it is a TIFF without a page; it is cut off or damaged")
    return whole or pages


def _is_small(page: Any) -> bool:
    """Whether it is a thumbnail, a mask or a step of a pyramid."""
    return bool(page.subfiletype & 0b101)


def _is_plain(page: Any) -> bool:
    """Whether Pillow decodes it as it is meant."""
    extras, samples = tuple(page.extrasamples), page.samplesperpixel
    if page.parent.is_bigtiff or page.compression not in _UNPACKED_HERE:
        return False
    if page.bitspersample == 1:
        return samples == 1 and page.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
    if (page.bitspersample, page.sampleformat) != (8, 1):
        return False
    plain = ((_WHITE_IS_ZERO, 1), (_BLACK_IS_ZERO, 1), (_RGB, 3), (_CMYK, 4), (_YCBCR, 3), (_LAB, 3))
    if page.photometric == _YCBCR and tuple(page.tags.valueof(_SUBSAMPLING, (2, 2))) != (1, 1):
        return False
    return not extras and (page.photometric, samples) in plain and page.planarconfig == 1


def _by_pillow(file: BinaryIO, page: Any, limit: int) -> Levels:
    """The page as Pillow decodes it: of a copy of the file whose first page it is."""
    if page.offset == page.parent.pages.first.offset:
        return pillow.decode_first(file, limit)
    file.seek(0)
    content = bytearray(file.read())
    order, big = page.parent.byteorder, page.parent.is_bigtiff
    content[8 if big else 4 : 16 if big else 8] = pack(f"{order}{'Q' if big else 'I'}", page.offset)
    return pillow.decode_first(BytesIO(content), limit)


def _what(page: Any) -> str:
    """Such as "TIFF of 3 x float32"."""
    kind = {1: "uint", 2: "int", 3: "float"}.get(page.sampleformat, "")
    return f"TIFF of {page.samplesperpixel} x {kind}{page.bitspersample}"


# ---- what the samples mean ---------------------------------------------------------------------------------------


def _levels(page: Any, samples: np.ndarray) -> Levels:
    """Levels, upright, of the samples [H, W, S] of a page."""
    photometric, extras = page.photometric, page.extrasamples
    colours = _COLOURS.get(photometric, 0)
    if photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) and page.samplesperpixel == 3 and not set(extras) & set(_ALPHA):
        colours, extras = 3, ()  # colours whose writer did not call them so
    if not colours or page.samplesperpixel < colours:
        what = _NAMES.get(photometric, f"a photometric interpretation {int(photometric)}")
        raise ValueError(f"it is a {_what(page)} in {what}; convert it to RGB or grey")
    if len(extras) > 1 and photometric != _RGB and not set(extras) & set(_ALPHA):
        raise ValueError(f"it is a {_what(page)}, {page.samplesperpixel} bands of no stated colour; give three as RGB")
    alpha = [colours] if extras and extras[0] in _ALPHA else []
    values = samples[..., [*range(colours), *alpha]] if samples.shape[2] != colours + len(alpha) else samples
    white = _stated_white(page)
    if photometric == _PALETTE:
        values, white = _through(page.colormap, values), FULL
    if photometric == _CMYK:
        values, white = _without_ink(values, white or np.iinfo(values.dtype).max), 1.0
    tag = page.tags.get(ORIENTATION)
    turn = int(tag.value) if tag else 1
    return Levels(values, white, bool(alpha) and extras[0] == 1, photometric == _WHITE_IS_ZERO, turn=turn)


def _stated_white(page: Any) -> float | None:
    """White of a page whose depth is not its type's; MaxSampleValue counts where it names a depth."""
    if page.sampleformat != 1:
        return None
    if page.bitspersample not in (8, 16, 32, 64):
        return 2**page.bitspersample - 1
    tag = page.tags.get(_MAX_SAMPLE_VALUE)
    top = max(tag.value) if tag and isinstance(tag.value, tuple) else tag.value if tag else 0
    return top if page.bitspersample > 8 and top in {2**bits - 1 for bits in range(8, 16)} else None


def _through(palette: np.ndarray | None, index: np.ndarray) -> np.ndarray:
    """uint16 colours of the indices [H, W, 1 + alpha]; some writers fill the palette with 8 bits only."""
    if palette is None or int(index[..., 0].max()) >= palette.shape[1]:
        raise ValueError("its palette is missing or too short")
    colours = palette.T if palette.max() > 255 else palette.T * np.uint16(257)
    return colours[index[..., 0]]


def _without_ink(inks: np.ndarray, full: float) -> np.ndarray:
    """float32 RGB (and alpha) in [0, 1] of CMYK, as if inks were filters."""
    light = 1 - inks[..., :4] / np.float32(full)
    return np.concatenate([light[..., :3] * light[..., 3:], inks[..., 4:] / np.float32(full)], axis=2)


# ---- samples -----------------------------------------------------------------------------------------------------


def _samples(page: Any, file: BinaryIO, limit: int) -> np.ndarray:
    """[H, W, S] of unsigned or signed integers or floats, in the machine's byte order."""
    bits, kinds = page.bitspersample, {1: "u", 2: "i", 3: "f"}
    whole = {"u": (*range(1, 17), 32, 64), "i": (8, 16, 32, 64), "f": (16, 32, 64)}
    kind = kinds.get(page.sampleformat)
    if not isinstance(bits, int) or kind is None or bits not in whole[kind]:
        raise ValueError(f"it is a {_what(page)}, which nothing here reads; save it as 8 or 16 bits")
    if page.samplesperpixel > _MOST_SAMPLES:
        raise ValueError(f"it is a {_what(page)}, more bands than a picture has; give three as RGB")
    if page.compression not in _UNPACKED_HERE:
        return _by_imagecodecs(page)
    size = 1 if bits <= 8 else 2 if bits <= 16 else bits // 8
    parts = list(_parts(page))
    channels = 1 if page.planarconfig == 2 else page.samplesperpixel
    largest = max(part.rows * part.columns for part in parts) * channels * size
    pixels, beside = page.imagelength * page.imagewidth, 3 if bits in (8, 16, 32, 64) else 8  # copies of a part
    afford(pixels, size * page.samplesperpixel + beside * largest / pixels, limit)
    samples = np.zeros((page.imagelength, page.imagewidth, page.samplesperpixel), f"{kind}{size}")
    for part in parts:
        data = _unpacked_part(page, file, part, channels)
        place = samples[part.top :, part.left :, part.plane : part.plane + channels][: part.rows, : part.columns]
        place[...] = data[: place.shape[0], : place.shape[1]]
    return samples


class _Part(NamedTuple):
    """A strip or tile, or some rows of an uncompressed strip."""

    number: int  # of the strip or tile
    skipped: int  # rows of it
    top: int  # where it lies in the page
    left: int
    plane: int
    rows: int
    columns: int


def _parts(page: Any) -> Iterator[_Part]:
    """In the order of the file."""
    height, width = page.imagelength, page.imagewidth
    tiled = page.is_tiled
    rows = page.tilelength if tiled else min(page.rowsperstrip or height, height)
    columns = page.tilewidth if tiled else width
    places = product(range(page.samplesperpixel if page.planarconfig == 2 else 1), range(0, height, rows))
    for index, ((plane, top), left) in enumerate(product(places, range(0, width, columns))):
        whole = rows if tiled else min(rows, height - top)
        at_once = whole if tiled or page.compression != _NONE else max(1, BAND // width)
        for skipped in range(0, whole, at_once):
            yield _Part(index, skipped, top + skipped, left, plane, min(at_once, whole - skipped), columns)


def _unpacked_part(page: Any, file: BinaryIO, part: _Part, samples: int) -> np.ndarray:
    """[rows, columns, samples] of it."""
    rows, columns = part.rows, part.columns
    bits, order = page.bitspersample, page.parent.byteorder
    row = math.ceil(columns * samples * bits / 8)
    data = np.frombuffer(_bytes(page, file, part.number, part.skipped * row, rows * row), np.uint8).reshape(rows, row)
    if page.predictor == 3:
        return _undo_float_predictor(data, columns, samples, bits // 8)
    if bits not in (8, 16, 32, 64):
        return _unpacked(data, columns * samples, bits).reshape(rows, columns, samples)
    kind = {1: "u", 2: "i", 3: "f"}[page.sampleformat]
    values = data.view(f"{order}{kind}{bits // 8}").reshape(rows, columns, samples)
    if page.predictor == 2:
        whole = values.view(f"{order}u{bits // 8}").astype(f"u{bits // 8}")
        return np.cumsum(whole, axis=1, dtype=whole.dtype).view(f"{kind}{bits // 8}")
    if page.predictor not in (0, 1):
        raise ValueError(f"it is a {_what(page)} with an unknown predictor {int(page.predictor)}")
    return values


def _bytes(page: Any, file: BinaryIO, index: int, start: int, size: int) -> bytes:
    """The `size` bytes of a strip or tile, unpacked, from `start` on, which is 0 where it is compressed."""
    if index >= min(len(page.dataoffsets), len(page.databytecounts)):
        raise ValueError("it is truncated: strips or tiles are missing")
    file.seek(page.dataoffsets[index] + start)
    count = page.databytecounts[index]
    data = file.read(max(0, min(count - start, size)) if page.compression == _NONE else count)
    if page.fillorder == 2:
        data = np.packbits(np.unpackbits(np.frombuffer(data, np.uint8)), bitorder="little").tobytes()
    if page.compression in (_DEFLATE, _OLD_DEFLATE):
        data = zlib.decompressobj().decompress(data, size)
    elif page.compression != _NONE:
        data = _decompressed(data, page.compression, size)
    if len(data) < size:
        raise ValueError(f"it is truncated: strip or tile {index} has {len(data)} bytes of {size}")
    return data[:size]


def _decompressed(data: bytes, compression: int, size: int) -> bytes:
    """What libtiff makes of the bytes, handed to it as one strip of a grey picture of one row."""
    tags = {256: size, 257: 1, 258: 8, 259: compression, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(data)}
    entries = b"".join(pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = 8 + len(data) + len(data) % 2
    head = b"II*\0" + pack("<I", start)
    content = head + data.ljust(start - 8, b"\0") + pack("<H", len(tags)) + entries + bytes(4)
    with Image.open(BytesIO(content), formats=("TIFF",)) as image:
        return image.tobytes()


def _unpacked(data: np.ndarray, count: int, bits: int) -> np.ndarray:
    """[rows, count] of rows of bytes [rows, n] with `count` samples of 1 to 15 bits, highest bit first."""
    padded = np.pad(data, ((0, 0), (0, 2)))
    first = np.arange(count) * bits
    byte, shift = first // 8, (24 - bits - first % 8).astype(np.uint32)
    values = padded[:, byte].astype(np.uint32) << 16
    values |= padded[:, byte + 1].astype(np.uint32) << 8
    values |= padded[:, byte + 2]
    values >>= shift
    values &= 2**bits - 1
    return values.astype(np.uint8 if bits <= 8 else np.uint16)


def _undo_float_predictor(data: np.ndarray, columns: int, samples: int, size: int) -> np.ndarray:
    """Floats of rows whose bytes lie apart, the highest first, as differences (Adobe's TIFF technical note 3)."""
    rows = len(data)
    whole = np.cumsum(data.reshape(rows, -1, samples), axis=1, dtype=np.uint8).reshape(rows, size, -1)
    return np.ascontiguousarray(whole.transpose(0, 2, 1)).view(f">f{size}").reshape(rows, columns, samples)


def _by_imagecodecs(page: Any) -> np.ndarray:
    name = str(getattr(page.compression, "name", page.compression)).replace("_", " ")
    if not importlib.util.find_spec("imagecodecs"):
        raise ValueError(
            f"it is a {_what(page)} compressed with {name}, which needs a package: pip install imagecodecs "
            "(or save it with LZW or without compression)"
        )
    planes, _, height, width, samples = page.shaped[-5:]
    return page.asarray().reshape(planes, height, width, samples).transpose(1, 2, 0, 3).reshape(height, width, -1)
