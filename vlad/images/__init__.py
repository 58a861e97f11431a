"""Pictures: every kind read to uint8 RGB. `read` is the face; a file of its own for each kind of trouble."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from vlad.images import pillow, tiff
from vlad.images.arrays import from_array, is_tensor, repeats, to_array
from vlad.images.depth import Levels, PictureWarning, Remarks, to_rgb
from vlad.images.pillow import FORMATS as FORMATS
from vlad.images.pillow import TooManyPixels
from vlad.images.sizes import MAX_PIXELS, WHOLE, Reduction
from vlad.images.sources import Source, is_bytes, path_of, shown, source_of
from vlad.images.strange import HEAD, what_it_is

CHANNELS = ("RGB", "BGR")
PAGES = ("first", "all")

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "ImageError",
    "PictureWarning",
    "Reader",
    "Remarks",
    "count_pages",
    "is_bytes",
    "path_of",
    "read",
    "repeats",
]


class ImageError(ValueError):
    """A picture that cannot be read; the message names it and the reason, `.source` is its path or None."""

    def __init__(self, message: str, source: str | None = None) -> None:
        super().__init__(message)
        self.source = source


@dataclass(frozen=True)
class Reader:
    """How a detector's pictures are read; kept with it and in its file.

    Attributes:
        bits, channels, max_pixels: as in `read`.
        pages: "first" reads page 1 of a file and warns where there are more, "all" takes each page as a picture.
    """

    bits: int | None = None
    channels: str = "RGB"
    pages: str = "first"
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        _check(self.bits, self.channels)
        if self.pages not in PAGES:
            raise ValueError(f"pages is {self.pages!r}; expected 'first' or 'all'")

    def to_dict(self) -> dict[str, Any]:
        """What a detector's file keeps; the limit of pixels is the machine's, not the detector's."""
        return {"bits": self.bits, "channels": self.channels, "pages": self.pages}

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> "Reader":
        """Of what `to_dict` gave; keys that are missing have their defaults, ValueError where others are there."""
        if unknown := set(kept) - {"bits", "channels", "pages"}:
            raise ValueError(f"it reads pictures in a way that is not known: {', '.join(sorted(unknown))}")
        return cls(**kept)

    def read(self, image: Any, remarks: Remarks | None = None) -> np.ndarray:
        """As the function `read` does."""
        return self.read_for(None, image, remarks)[0]

    def read_for(
        self,
        side: int | None,
        image: Any,
        remarks: Remarks | None = None,
        page: int | None = None,
        by: Reduction | None = None,
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """The picture for one who needs `side` px, and the (H, W) that it has.

        One of more than `sizes.LARGE` pixels is made smaller by whole numbers where it is read, each side by its own,
        so that SPARE times the side is left at least: it takes a few megabytes then, not half a gigabyte. Where all of
        it is needed (None), no more than `sizes.WHOLE` pixels are read, unless `max_pixels` says so. One who reduces it
        `by` a whole number at once may say so: of most files it comes so, to the bit as `sizes.reduced` makes it, and
        of the others as it is.
        """
        limit = _pixel_limit(self.max_pixels, WHOLE if side is None else MAX_PIXELS)
        with nullcontext(remarks) if remarks is not None else Remarks() as told:
            label, path, levels = _levels(image, self, page, limit, told, side, by)
            with _reasons(label, path, limit):
                return to_rgb(levels, self.bits, told, label, side), levels.upright_size()

    def pictures(self, images: Iterable[Any]) -> Iterator[Any]:
        """The single pictures of what a caller gave: batches taken apart, and with pages="all" files too.

        An item is asked for only when the pictures of the one before have been taken.
        """
        for image in images:
            if (isinstance(image, np.ndarray) or is_tensor(image)) and image.ndim == 4:
                yield from image
            elif self.pages == "all":
                yield from _each_page(image, self)
            else:
                yield image


def read(
    image: Any,
    *,
    bits: int | None = None,
    channels: str = "RGB",
    page: int | None = None,
    max_pixels: int | None = None,
    remarks: Remarks | None = None,
) -> np.ndarray:
    """One picture as uint8 RGB, [H, W, 3], turned upright, in memory of its own.

    Args:
        image: path (str or Path; "scan.tif#2" is its second page), `file://` address, bytes of a file or a file opened
            as binary, PIL picture of any mode, NumPy [H, W] or [H, W, 1|3|4] (bool, uint8, uint16, or float in [0, 1]),
            or torch tensor [1|3|4, H, W] (the same types). Alpha is composited on white, unless it is 0 everywhere;
            EXIF orientation is applied, colour profiles are not. Addresses are never fetched.
        bits: 8 to 16, depth of pictures of more than 8 bits: white is 2**bits - 1. A TIFF or PGM that states another
            depth than 16 is believed instead; None takes the full range, and warns where an eighth of it is not passed.
        channels: "RGB" or "BGR" (as OpenCV has them), of arrays and tensors; files know their own order.
        page: of a file with several, from 1; None takes the first and warns. A PIL picture is read as it stands.
        max_pixels: largest H * W of a file or PIL picture, checked before its pixels are decoded; None reads the
            environment variable VLAD_MAX_PIXELS, else takes MAX_PIXELS. It replaces Pillow's own limit, both ways.
        remarks: gathers the warnings of a run; None warns at once.

    Raises:
        ImageError: it cannot be read, whatever the reason (missing file and folder included).
        TypeError: not one of the kinds above.
        ValueError: bits, channels or max_pixels are not as said.
    """
    reader = Reader(bits, channels, max_pixels=_pixel_limit(max_pixels))
    return reader.read_for(None, image, remarks, page)[0]


def count_pages(image: Any, max_pixels: int | None = None) -> int:
    """How many pages (or frames) the file behind a path, bytes or an opened file has; errors as in `read`."""
    limit = _pixel_limit(max_pixels)
    source = _source(image)
    with _reasons(source.label, source.given, limit), source.open() as file:
        try:
            return tiff.pages_of(file) if tiff.is_tiff(file) else pillow.pages_of(file, limit)
        except UnidentifiedImageError as error:
            raise _unknown(source) from error


def _levels(
    image: Any,
    reader: Reader,
    page: int | None,
    limit: int,
    remarks: Remarks,
    side: int | None,
    by: Reduction | None,
) -> tuple[str, str | None, Levels]:
    """What to call the picture, its path or None, and its levels."""
    if isinstance(image, Image.Image):
        path = str(getattr(image, "filename", "")) or None
        label = shown(path or f"PIL picture of mode {image.mode} and size {image.size}")
        with _reasons(label, path, limit):
            return label, path, pillow.decode(image, limit)
    if isinstance(image, np.ndarray) or is_tensor(image):
        label = "array" if isinstance(image, np.ndarray) else "tensor"
        with _reasons(label, None, limit):
            array = image if isinstance(image, np.ndarray) else to_array(image)
            return label, None, from_array(array, reader.channels, reader.bits)
    if not (isinstance(image, str | os.PathLike) or is_bytes(image)):
        kind = type(image).__name__
        raise TypeError(f"picture is of type {kind}; give a path, bytes, PIL picture, NumPy array or torch tensor")
    source = _source(image)
    wanted = page or source.page
    with _reasons(source.label, source.given, limit):
        levels, pages = _decoded(source, wanted or 1, limit, side, by)
    if pages > 1 and wanted is None:
        remarks.paged(source.label, pages)
    return source.label, source.given, levels


def _decoded(source: Source, page: int, limit: int, side: int | None, by: Reduction | None) -> tuple[Levels, int]:
    with source.open() as file:
        try:
            if tiff.is_tiff(file):
                return tiff.decode_file(file, page, limit)
            return pillow.decode_file(file, page, limit, side, by)
        except UnidentifiedImageError as error:
            raise _unknown(source) from error


def _unknown(source: Source) -> Exception:
    with source.open() as file:
        what = what_it_is(file.read(HEAD))
    if what is not None:
        return ValueError(f"it is {what}")
    return UnidentifiedImageError(f"unknown format or damaged header (known: {', '.join(FORMATS)})")


def _source(image: Any) -> Source:
    try:
        return source_of(image)
    except ValueError as error:
        given = os.fsdecode(os.fspath(image))
        raise ImageError(f"{shown(given)}: {error}", given) from error


def _each_page(image: Any, reader: Reader) -> Iterator[Any]:
    """The pages of a file as names ("six.tif#2") or, of bytes, as arrays; what has but one page or none, as it is."""
    path = path_of(image)
    if path is None and not is_bytes(image):
        yield image
        return
    try:
        source = _source(image)
        pages = 1 if source.page else count_pages(image, reader.max_pixels)
    except ImageError:  # reading it says so in its turn
        pages = 1
    for page in range(1, pages + 1):
        if pages == 1:
            yield image
        elif path is not None:
            yield f"{path}#{page}"
        else:
            yield read(image, bits=reader.bits, page=page, max_pixels=reader.max_pixels)


def _check(bits: int | None, channels: str) -> None:
    if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int) or not 8 <= bits <= 16):
        raise ValueError(f"bits is {bits!r}; expected a whole number from 8 to 16, the depth of the camera")
    if channels not in CHANNELS:
        raise ValueError(f"channels is {channels!r}; expected 'RGB' or 'BGR'")


def _pixel_limit(max_pixels: int | None, default: int = MAX_PIXELS) -> int:
    given = str(max_pixels if max_pixels is not None else os.environ.get("VLAD_MAX_PIXELS") or default)
    if not given.isdecimal() or int(given) < 1:
        name = "VLAD_MAX_PIXELS" if max_pixels is None else "max_pixels"
        raise ValueError(f"{name} is {given}; expected a positive whole number of pixels, such as {MAX_PIXELS}")
    return int(given)


@contextmanager
def _reasons(label: str, source: str | None, limit: int) -> Iterator[None]:
    """Turns whatever a decoder raises on broken data into an ImageError that names the picture."""
    try:
        yield
    except (*pillow.BOMBS, TooManyPixels) as error:
        hint = "if you trust it, raise max_pixels= or the environment variable VLAD_MAX_PIXELS"
        raise ImageError(f"{label}: it has more than {limit} pixels; {hint}", source) from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{label}: {error}", source) from error
    except Exception as error:
        raise ImageError(f"{label}: cannot be read: {str(error) or type(error).__name__}", source) from error
