"""Files of more than 8 bits a channel that Pillow cuts down to 8: colour PNG, colour PPM."""

import re
from typing import BinaryIO

import numpy as np
from PIL import Image

from vlad.images.depth import FULL, Levels

_PPM = re.compile(rb"P([56])((?:\s+|#[^\n]*\n)+\d+){3}\s", re.DOTALL)
_SBIT = re.compile(rb"\0\0\0[\x01-\x04]sBIT(.)", re.DOTALL)


def is_deep_png(image: Image.Image) -> bool:
    """Whether it is an opened, not yet decoded PNG of colours or alpha with 16 bits a channel."""
    modes = [str(tile[3]) for tile in getattr(image, "tile", ())]
    return image.format == "PNG" and any(mode in ("RGB;16B", "LA;16B", "RGBA;16B") for mode in modes)


def decode_png(file: BinaryIO, clear: tuple[int, ...] | None) -> np.ndarray:
    """uint16 [H, W, 2|3|4]; the colour `clear` becomes white."""
    import torch
    from torchvision.io import ImageReadMode, decode_png

    file.seek(0)
    content = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    values = decode_png(content, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
    if clear is not None:
        values = values[..., :3].copy()
        values[(values == clear).all(axis=2)] = FULL
    return values


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
    values = np.frombuffer(file.read(width * height * channels * 2), ">u2")
    if values.size < width * height * channels:
        raise ValueError(f"it is truncated: {values.size} levels of {width * height * channels}")
    return Levels(values.reshape(height, width, channels), white if white < FULL else None)
