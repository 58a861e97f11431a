"""What Pillow decodes, with its own opinions on depth, transparency, frames and size set right."""

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, BinaryIO, TypeVar

import numpy as np
from PIL import Image

from vlad.images.deep import decode_png, decode_pnm, is_deep_png, significant_bits
from vlad.images.depth import FULL, Levels
from vlad.images.sizes import PLAIN_BYTES, SPARE, Part, Reduction, afford, factors
from vlad.images.strange import HEAD, is_heic

logger = logging.getLogger(__name__)

# No EPS: it starts Ghostscript, whatever the file is called.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF", "DIB", "TGA", "PCX", "ICO")
ADDED = ("HEIF", "JXL")  # read where a package has registered them with Pillow
COSTLY = {"WEBP": 16, "AVIF": 12, "HEIF": 16, "JXL": 16, "JPEG2000": 20}  # bytes for a pixel while it is decoded
PROGRESSIVE = 6  # bytes for a pixel that a JPEG in several passes takes besides
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_PILLOW_LIMIT = threading.Lock()
ORIENTATION = 0x0112  # EXIF and TIFF tag
_PHOTOMETRIC = 262  # TIFF tag; 0: white is zero

# glibc gives the system back what was taken in blocks of more than 32 MiB, and keeps Pillow's own 16 MiB for ever.
Image.core.set_block_size(64 * 2**20)

T = TypeVar("T")


class TooManyPixels(ValueError):
    """A picture is larger than the caller allows."""


def decode_file(
    file: BinaryIO, page: int, limit: int, side: int | None = None, by: Reduction | None = None
) -> tuple[Levels, int]:
    """The levels of a page (from 1) and the number of pages of a file that can seek.

    Of a JPEG whose reader needs `side` px alone, no more is decoded than `sizes.factors` leaves. What may be reduced
    `by` a whole number is so once it is decoded, if that gives the same as of its upright RGB pixels, to the bit.

    Raises:
        TooManyPixels: H * W is above `limit`; the pixels were not touched.
        PIL.UnidentifiedImageError: Pillow does not know the format.
        Exception: whatever a decoder raises on damaged data.
    """
    if page == 1 and (levels := decode_pnm(file, limit)) is not None:
        return levels, 1

    def work(image: Image.Image) -> tuple[Levels, int]:
        pages = count_frames(image)
        if page > pages:
            raise ValueError(f"it has no page {page}; it has {pages}")
        if page > 1:
            image.seek(page - 1)
        if page == 1 and is_deep_png(image):
            values = decode_png(file, image.info.get("transparency"), limit)
            return Levels(values, turn=_orientation(image), hint=significant_bits(file)), pages
        found = decode(image, limit, side, by)
        hint = significant_bits(file) if image.format == "PNG" and found.values.dtype == np.uint16 else ""
        return replace(found, hint=hint), pages

    return _opened(file, work, limit)


def decode_first(file: BinaryIO, limit: int) -> Levels:
    """The levels of the first page alone, whatever the others are; errors as in `decode_file`."""
    return _opened(file, lambda image: decode(image, limit), limit)


def pages_of(file: BinaryIO, limit: int) -> int:
    """The number of pages of a file that can seek; errors as in `decode_file`."""
    return _opened(file, count_frames, limit)


def decode(image: Image.Image, limit: int, side: int | None = None, by: Reduction | None = None) -> Levels:
    """The levels of an opened picture, as it stands; all else as in `decode_file`. With a `side` it may be changed."""
    _refuse(image, limit)
    size = image.height, image.width
    if side is not None and factors(size, side) != (1, 1):
        image.draft(None, (side * SPARE, side * SPARE))
    costs = COSTLY.get(image.format or "", PLAIN_BYTES) + PROGRESSIVE * bool(image.info.get("progressive"))
    afford(image.height * image.width, costs, limit)
    inverted = _white_is_zero(image)
    image.load()
    turn = _orientation(image)
    upright = size[::-1] if turn > 4 else size
    if by is not None:
        image = _reduced(image, by(upright), turn)
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode == "F":
        values: Any = np.array(image)[..., None]
    elif image.mode.startswith("I"):
        values = _grey_levels(image)[..., None]
    else:
        values = Part(image, "RGBA" if image.has_transparency_data else "RGB")
    return Levels(values, inverted=inverted, turn=turn, size=upright)


def _reduced(image: Image.Image, by: int, turn: int) -> Image.Image:
    """Smaller by means of squares of `by` px, if these are whole ones of its pixels as they are turned upright."""
    plain = image.mode in ("L", "RGB") and not image.has_transparency_data
    stands = turn not in range(2, 9) or not (image.width % by or image.height % by)
    return image.reduce(by) if by > 1 and plain and stands else image


def count_frames(image: Image.Image) -> int:
    """How many pictures it holds; a phone's gain map or a thumbnail beside the photo is none."""
    if image.format == "MPO":
        kinds = [entry["Attribute"]["MPType"] for entry in image.mpinfo[0xB002]]  # type: ignore[attr-defined]
        return 1 + sum(kind.startswith("Multi-Frame") for kind in kinds[1:])
    return int(getattr(image, "n_frames", 1))


def _opened(file: BinaryIO, work: Callable[[Image.Image], T], limit: int) -> T:
    def attempt() -> T:
        file.seek(0)
        with Image.open(file, formats=formats) as image:
            _refuse(image, limit)
            return work(image)

    file.seek(0)
    if is_heic(file.read(HEAD)):
        _register_heic()
    formats = [*FORMATS, *(name for name in ADDED if name in Image.OPEN)]
    try:
        return attempt()
    except BOMBS:  # Pillow has one limit for the whole process: moved for this picture only, one thread at a time
        with _PILLOW_LIMIT:
            before = Image.MAX_IMAGE_PIXELS
            Image.MAX_IMAGE_PIXELS = max(before or 0, limit)  # never stricter: others read meanwhile
            try:
                return attempt()
            finally:
                Image.MAX_IMAGE_PIXELS = before


def _refuse(image: Image.Image, limit: int) -> None:
    """The header is checked before the pixels are touched."""
    if image.width * image.height > limit:
        raise TooManyPixels
    if not all(image.size):
        raise ValueError("it has no pixels")


def _register_heic() -> None:
    with suppress(ImportError):
        import pillow_heif

        if "HEIF" not in Image.OPEN:
            pillow_heif.register_heif_opener()


def _white_is_zero(image: Image.Image) -> bool:
    """Whether Pillow leaves it to us to turn grey levels round: it does so itself for 8 bits only."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(_PHOTOMETRIC) == 0 and (image.mode == "F" or image.mode.startswith("I"))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception as error:  # the pixels are whole: a damaged EXIF block is no reason to lose the picture
        logger.warning("%s: damaged EXIF data, orientation not applied: %s", getattr(image, "filename", ""), error)
        return 1


def _grey_levels(image: Image.Image) -> np.ndarray:
    """uint16 [H, W] of a picture of mode I;16* or I; the transparent level of a PNG becomes white."""
    levels = np.array(image)
    if levels.min() < 0 or levels.max() > FULL:
        raise ValueError(f"grey levels reach from {levels.min()} to {levels.max()}; expected 16 bits, 0 to {FULL}")
    levels = levels.astype(np.uint16, copy=False)
    if isinstance(clear := image.info.get("transparency"), int):
        levels[levels == clear] = FULL
    return levels
