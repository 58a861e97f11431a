"""Pictures: every kind read to uint8 RGB, and the ones behind files, folders and globs."""

import glob
import hashlib
import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

logger = logging.getLogger(__name__)

MAX_PIXELS = 178_956_970  # H * W; what Pillow itself accepts before it raises: about 540 MB as RGB
# No EPS: it starts Ghostscript, whatever the file is called.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF", "DIB", "TGA", "PCX", "ICO")
_SUFFIXES = "apng avif bmp dib gif j2k jfif jp2 jpe jpeg jpg jpx pbm pcx pfm pgm png pnm ppm tga tif tiff webp"
SUFFIXES = frozenset(f".{name}" for name in _SUFFIXES.split())  # what a folder is searched for, in any case
MASK_FOLDER = "ground_truth"
FLOAT_SLACK = 1e-3  # resizing and float16 step this far over [0, 1]; clipped
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_PILLOW_LIMIT = threading.Lock()


class ImageError(ValueError):
    """A picture that cannot be read; the message names it and the reason, `.source` is its path or None."""

    def __init__(self, message: str, source: str | None = None) -> None:
        super().__init__(message)
        self.source = source


def read(image: Any, *, max_pixels: int | None = None) -> np.ndarray:
    """One picture as uint8 RGB, [H, W, 3], turned upright, in memory of its own.

    Args:
        image: path (str or Path), PIL picture of any mode, NumPy [H, W] or [H, W, 1|3|4] (bool, uint8, uint16, or float
            in [0, 1]), or torch tensor [1|3|4, H, W] (float in [0, 1], or uint8). Alpha is composited on white, 16-bit
            is scaled by its full range (65535), EXIF orientation is applied, colour profiles are not. Of several
            frames: the first one of a file, the current one of a PIL picture.
        max_pixels: largest H * W of a file or PIL picture, checked before its pixels are decoded; None reads the
            environment variable VLAD_MAX_PIXELS, else takes MAX_PIXELS. It replaces Pillow's own limit, both ways.

    Raises:
        ImageError: it cannot be read, whatever the reason (missing file and folder included).
        TypeError: not one of the kinds above.
    """
    limit = _pixel_limit(max_pixels)
    if isinstance(image, (str, os.PathLike)):
        return _read_file(os.fspath(image), limit)
    if isinstance(image, Image.Image):
        source = str(getattr(image, "filename", "")) or None
        with _reasons(source or f"PIL picture of mode {image.mode} and size {image.size}", source, limit):
            return _decode(image, limit)
    if any(kind.__module__ == "torch" and kind.__name__ == "Tensor" for kind in type(image).__mro__):
        with _reasons("tensor", None, limit):
            return _from_array(_tensor_to_array(image))
    if isinstance(image, np.ndarray):
        with _reasons("array", None, limit):
            return _from_array(image)
    kind = type(image).__name__
    raise TypeError(f"picture is of type {kind}; give a path, PIL picture, NumPy array or torch tensor")


def _pixel_limit(max_pixels: int | None) -> int:
    given = str(max_pixels if max_pixels is not None else os.environ.get("VLAD_MAX_PIXELS") or MAX_PIXELS)
    if not given.isdecimal() or int(given) < 1:
        name = "VLAD_MAX_PIXELS" if max_pixels is None else "max_pixels"
        raise ValueError(f"{name} is {given}; expected a positive whole number of pixels, such as {MAX_PIXELS}")
    return int(given)


def _read_file(source: str, limit: int) -> np.ndarray:
    if not os.path.isfile(source):
        reason = "is a folder; give the pictures inside it" if os.path.isdir(source) else "no such file; check the path"
        raise ImageError(f"{source}: {reason}", source)

    def decode() -> np.ndarray:
        with open(source, "rb") as file, Image.open(file, formats=FORMATS) as image:
            return _decode(image, limit)

    with _reasons(source, source, limit):
        try:
            return decode()
        except _BOMBS:  # Pillow has one limit for the whole process: moved for this picture only, one thread at a time
            with _PILLOW_LIMIT:
                before = Image.MAX_IMAGE_PIXELS
                Image.MAX_IMAGE_PIXELS = max(before or 0, limit)  # never stricter: others read meanwhile
                try:
                    return decode()
                finally:
                    Image.MAX_IMAGE_PIXELS = before


@contextmanager
def _reasons(label: str, source: str | None, limit: int) -> Iterator[None]:
    """Turns whatever a decoder raises on broken data into an ImageError that names the picture."""
    try:
        yield
    except _BOMBS as error:
        hint = "if you trust it, raise max_pixels= or the environment variable VLAD_MAX_PIXELS"
        raise ImageError(f"{label}: it has more than {limit} pixels; {hint}", source) from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{label}: unknown format or damaged header (known: {', '.join(FORMATS)})", source) from error
    except Exception as error:
        raise ImageError(f"{label}: cannot be read: {str(error) or type(error).__name__}", source) from error


def _decode(image: Image.Image, limit: int) -> np.ndarray:
    """[H, W, 3] of an opened picture; the header is checked before the pixels are touched."""
    if image.width * image.height > limit:
        raise Image.DecompressionBombError
    if not all(image.size):
        raise ValueError("it has no pixels")
    image.load()
    image = _upright(image)
    if image.mode == "F":
        return _from_array(np.asarray(image))
    if image.mode.startswith("I"):
        return _from_array(_grey_levels(image))
    if image.has_transparency_data:
        return _on_white(image.convert("LA") if image.mode == "La" else image)
    return np.array(image.convert("RGB"))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # the pixels are whole: a damaged EXIF block is no reason to lose the picture
        logger.warning("%s: damaged EXIF data, orientation not applied: %s", getattr(image, "filename", ""), error)
        return image


def _grey_levels(image: Image.Image) -> np.ndarray:
    """uint16 [H, W] of a picture of mode I;16* or I; the transparent level of a PNG becomes white."""
    levels = np.asarray(image)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError(f"grey levels reach from {levels.min()} to {levels.max()}; expected 16 bits, 0 to 65535")
    levels = levels.astype(np.uint16)
    if isinstance(clear := image.info.get("transparency"), int):
        levels[levels == clear] = 65535
    return levels


def _on_white(image: Image.Image) -> np.ndarray:
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return np.array(white)


def _tensor_to_array(tensor: Any) -> np.ndarray:
    """[H, W, channels] of a tensor [channels, H, W]."""
    shape = tuple(tensor.shape)
    if len(shape) != 3 or shape[0] not in (1, 3, 4):
        hint = "give one picture at a time, or list(tensor)" if len(shape) == 4 else "permute(2, 0, 1) moves channels"
        raise ValueError(f"tensor has shape {shape}; expected [3, H, W] in [0, 1] ({hint})")
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()  # NumPy has no bfloat16
    return tensor.permute(1, 2, 0).numpy()


def _from_array(array: np.ndarray) -> np.ndarray:
    """uint8 RGB [H, W, 3], a copy, of [H, W] or [H, W, 1|3|4]."""
    shape = array.shape
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        first = len(shape) == 3 and shape[0] in (1, 3, 4)
        hint = "channels come last: transpose(1, 2, 0)" if first else "one picture at a time, channels last"
        raise ValueError(f"shape {shape}; expected [H, W] or [H, W, 3|4] ({hint})")
    if not array.size:
        raise ValueError(f"shape {shape} holds no pixels; expected H and W of at least 1")
    levels = _to_uint8(array)
    if levels.shape[2] == 4:
        return _on_white(Image.fromarray(np.ascontiguousarray(levels)))
    return np.array(np.broadcast_to(levels, (*levels.shape[:2], 3)), order="C")


def _to_uint8(array: np.ndarray) -> np.ndarray:
    kind = array.dtype.newbyteorder("=")
    if kind == np.uint8:
        return array
    if kind == np.bool_:
        return array * np.uint8(255)
    if kind == np.uint16:
        return np.round(array / np.float32(257)).astype(np.uint8)
    if not np.issubdtype(kind, np.floating):
        raise ValueError(f"dtype {kind}; expected uint8, uint16, or float in [0, 1] (astype('uint8') for 0 to 255)")
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("it holds NaN or infinite values; expected numbers in [0, 1] (numpy.nan_to_num replaces them)")
    if low < -FLOAT_SLACK or high > 1 + FLOAT_SLACK:
        hint = "divide by 255" if low >= 0 and high <= 255 else "undo the normalisation first"
        raise ValueError(f"float values reach from {low:.4g} to {high:.4g}; expected [0, 1] ({hint})")
    return np.round(np.clip(array, 0, 1) * np.float32(255)).astype(np.uint8)


@dataclass(frozen=True)
class Found:
    """One input picture."""

    source: str  # as the user would write it, "/" between folders
    path: Path
    relative: Path  # its place below the input folder; no other picture of the same list has it


def list_images(inputs: Iterable[str | os.PathLike[str]]) -> list[Found]:
    """The pictures behind files, folders and globs, each once, in natural order ("2.png" before "10.png") per input.

    A file is taken as given, even a missing one (reading it gives the error). A folder is searched recursively for
    SUFFIXES. A glob may hold `**`; folders it matches are searched too. Hidden names are left out, and so are folders
    named `ground_truth` unless the pattern names them. Pictures with the same place below their inputs get the whole
    path for `relative`, and a digest of it if that is taken too: both depend on the own source only, so a resumed run
    with more inputs never takes a name that is in use. Raises FileNotFoundError for a folder or glob without pictures.
    """
    found: dict[str, Found] = {}
    for given in [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs:
        for item in _list_one(os.fspath(given)):
            found.setdefault(os.path.abspath(item.path), item)
    return _unique(list(found.values()))


def _list_one(given: str) -> list[Found]:
    if os.path.isdir(given):
        inside = sorted(_walk(given), key=_natural)
        if not inside:
            raise FileNotFoundError(f"folder {given} holds no picture; known suffixes: {', '.join(sorted(SUFFIXES))}")
        return [_found(os.path.join(given, name), below=name) for name in inside]
    if os.path.lexists(given) or not any(mark in given for mark in "*?["):
        return [_found(given, below=os.path.basename(given))]
    return _list_glob(given)


def _list_glob(pattern: str) -> list[Found]:
    parts = PurePath(pattern).parts
    fixed = next(index for index, part in enumerate(parts) if any(mark in part for mark in "*?["))
    wanted = SUFFIXES | {PurePath(pattern).suffix.lower()}  # "*.dat" asks for .dat
    matches: set[str] = set()
    for match in glob.iglob(pattern, recursive=True):
        if os.path.isdir(match):
            matches |= {os.path.join(match, name) for name in _walk(match)}
        elif PurePath(match).suffix.lower() in wanted:
            matches.add(match)
    if not any(MASK_FOLDER in part for part in parts[fixed:]):
        matches = {match for match in matches if MASK_FOLDER not in PurePath(match).parts[fixed:-1]}
    if not matches:
        raise FileNotFoundError(f"no picture matches {pattern}; quote it, and write ** to search folders below")
    ordered = sorted(matches, key=_natural)
    return [_found(match, below=os.path.join(*PurePath(match).parts[fixed:])) for match in ordered]


def _walk(folder: str) -> Iterator[str]:
    """Paths below `folder` of the pictures in it; links are followed, each real folder once."""
    seen = {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != MASK_FOLDER)
        real = {name: os.path.realpath(os.path.join(place, name)) for name in folders}
        folders[:] = [name for name in folders if real[name] not in seen]
        seen.update(real.values())
        for name in names:
            if not name.startswith(".") and PurePath(name).suffix.lower() in SUFFIXES:
                yield os.path.relpath(os.path.join(place, name), folder)


def _natural(path: str) -> tuple[Any, ...]:
    pieces = re.split(r"(\d+)", path.casefold())
    return [int(piece) if index % 2 else piece for index, piece in enumerate(pieces)], path


def _found(source: str, below: str) -> Found:
    return Found(source.replace(os.sep, "/"), Path(source), _inside(below))


def _inside(path: str) -> Path:
    """`path` without root, drive, "." and "..": a place below any output folder."""
    pure = PurePath(path)
    return Path(*(part for part in pure.parts if part not in (pure.anchor, "..")))


def _unique(found: list[Found]) -> list[Found]:
    for rename in (_inside, _marked):
        count = Counter(str(item.relative).casefold() for item in found)  # some file systems ignore case
        for index, item in enumerate(found):
            if count[str(item.relative).casefold()] > 1:
                found[index] = replace(item, relative=rename(item.source))
    return found


def _marked(source: str) -> Path:
    digest = hashlib.sha256(source.encode(errors="surrogateescape")).hexdigest()[:8]
    return _inside(source).with_stem(f"{PurePath(source).stem}-{digest}")
