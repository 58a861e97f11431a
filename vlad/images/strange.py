"""What a file is that is no picture we can read, told by its first bytes, and the way out."""

import re

HEAD = 512  # bytes that tell

_BEGINNINGS = (
    (b"version https://git-lfs", "a Git LFS pointer and not the picture itself; `git lfs pull` fetches that"),
    (b"%PDF", "a PDF; export its pages as PNG"),
    (b"%!PS", "PostScript, which is a program and never run here; export it as PNG"),
    (b"\xff\x0a", "JPEG XL; convert it to PNG"),
    (b"\0\0\0\x0cJXL ", "JPEG XL; convert it to PNG"),
    (b"8BPS", "a Photoshop document; export it as PNG or TIFF"),
    (b"\x76\x2f\x31\x01", "OpenEXR; convert it to TIFF"),
    (b"\x93NUMPY", "a NumPy array; give numpy.load(path) instead of the path"),
    (b"\x89HDF", "HDF5; read the array and give that"),
    (b"SIMPLE  =", "FITS; read it with astropy and give the array"),
    (b"PF", "a PFM of three colours; save it as TIFF of float32"),
    (b"PK\x03\x04", "a zip archive; unpack it, or give an opened member"),
    (b"\x1f\x8b", "compressed with gzip; unpack it"),
    (b"7z\xbc\xaf", "a 7-Zip archive; unpack it"),
    (b"Rar!", "a RAR archive; unpack it"),
    (b"\x1aE\xdf\xa3", "a video (Matroska); give its frames"),
    (b"\0\0\x01\xba", "a video (MPEG); give its frames"),
    (b"Exif\0", "the EXIF part of a photo without the photo"),
)
_BRANDS = (  # of ISO media files: four letters after "ftyp"
    (rb"hei[cxms]|hev[cx]|mif1|msf1", "HEIC"),
    (rb"jxl ", "JPEG XL; convert it to PNG"),
    (rb"crx ", "a camera's raw file; develop it to TIFF or PNG"),
    (rb"qt  |mp4.|isom|iso\d|M4V.|avc1|3gp.|MSNV", "a video; give its frames"),
)
HEIC = "HEIC, which needs a package: pip install pillow-heif (or export the photo as JPEG)"
_FRAMES = range(0xC0, 0xD0)  # JPEG's frame headers, but for three others in between


def is_heic(head: bytes) -> bool:
    """Whether it is a photo as iPhones save them."""
    return _brand(head) == "HEIC"


def what_it_is(head: bytes) -> str | None:
    """A phrase after "it is", of the first HEAD bytes; None where they say nothing."""
    if not head:
        return "empty (0 bytes)"
    if not head.strip(b"\0"):
        return "nothing but zero bytes; copy or download it again"
    for beginning, what in _BEGINNINGS:
        if head.startswith(beginning):
            return what
    if head[128:132] == b"DICM":
        return "DICOM; read it with pydicom and give its pixel_array, with bits= as its BitsStored says"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "a video (AVI); give its frames"
    if (brand := _brand(head)) is not None:
        return HEIC if brand == "HEIC" else brand
    return _of_jpeg(head) if head[:2] == b"\xff\xd8" else _of_text(head)


def _brand(head: bytes) -> str | None:
    if head[4:8] != b"ftyp":
        return None
    return next((what for brand, what in _BRANDS if re.match(brand, head[8:12])), None)


def _of_jpeg(head: bytes) -> str | None:
    place = 2
    while place + 9 < len(head) and head[place] == 0xFF:
        kind, size = head[place + 1], int.from_bytes(head[place + 2 : place + 4], "big")
        if kind in _FRAMES and kind not in (0xC4, 0xC8, 0xCC):
            bits = head[place + 4]
            if bits != 8:
                return f"a JPEG of {bits} bits a sample; convert it to 16-bit PNG or TIFF"
            return "a lossless JPEG; convert it to PNG or TIFF" if kind in (0xC3, 0xC7, 0xCB, 0xCF) else None
        place += 2 + size
    return None


def _of_text(head: bytes) -> str | None:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in text:
        return "an SVG drawing; export it as PNG"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<script")) or b"<html" in text:
        return "a web page saved under this name; download the picture itself"
    if text.startswith((b"<?xml", b"<error")):
        return "XML, perhaps a server's refusal; download the picture itself"
    if text.startswith((b'{"', b"[{")):
        return "JSON, perhaps a server's refusal; download the picture itself"
    if text.startswith(b"data:"):
        return "a data: address in a file; decode what follows the comma with base64"
    printable = sum(31 < byte < 127 or byte in b"\t\r\n" for byte in head)
    return "text" if printable == len(head) else None
