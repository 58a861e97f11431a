"""Damaged and hostile bytes of every format end in a picture or in one sentence: soon, and in little memory."""

import io
import multiprocessing
import time
import warnings

import numpy as np
import pytest
import tifffile
from mutations import mutated, peak_memory
from picture_files import page, png16, tiff
from PIL import Image

from vlad.images import ImageError, count_pages, read

SECONDS, GIGABYTES = 5, 2
SIDE = 24


def originals() -> dict[str, bytes]:
    """Small pictures of every format, layout and depth."""
    rng = np.random.default_rng(0)
    rgb = np.asarray(Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((SIDE, SIDE), 3))
    picture = Image.fromarray(rgb)
    grey16, float32 = rgb[..., 0].astype(np.uint16) * 257, (rgb / 255).astype(np.float32)
    made = {}
    for kind in ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "JPEG2000", "AVIF", "TGA", "PCX", "ICO", "DIB"):
        made[kind] = saved(picture, kind)
    for kind in ("GIF", "WEBP", "PNG", "TIFF", "MPO"):
        made[f"{kind} of three"] = saved(picture, kind, save_all=True, append_images=[picture.rotate(90)] * 2)
    for compression in ("raw", "jpeg", "tiff_lzw", "packbits", "tiff_adobe_deflate", "zstd"):
        made[f"TIFF {compression}"] = saved(picture, "TIFF", compression=compression)
    made["TIFF group4"] = saved(picture.convert("1"), "TIFF", compression="group4")
    made["TIFF lzw 16"] = saved(Image.fromarray(grey16), "TIFF", compression="tiff_lzw")
    for name, samples, how in (
        ("float tiles", float32, {"tile": (16, 16), "photometric": "rgb"}),
        ("deflated planes", np.moveaxis(grey16[..., None].repeat(3, 2), 2, 0), {"photometric": "rgb"}),
        ("big", grey16, {"bigtiff": True, "photometric": "miniswhite"}),
    ):
        file = io.BytesIO()
        planes = {"planarconfig": "separate", "compression": "zlib"} if "planes" in name else {}
        tifffile.imwrite(file, np.ascontiguousarray(samples), **how, **planes)
        made[f"TIFF {name}"] = file.getvalue()
    thumbnail = page(np.zeros((4, 4, 1), np.uint8), 8, t254=1)
    made["TIFF 12"] = tiff(page(grey16[..., None] >> 4, 12), order=">")
    made["TIFF inner"] = tiff({**thumbnail, "inner": [page(rgb, 8, 2)]})
    made["PNG 16"] = png16(rgb.astype(int) * 257, filtered=True)
    made["PNG palette"] = saved(picture.convert("P"), "PNG", transparency=3)
    made["PGM 12"] = b"P5\n24 24\n4095\n" + (grey16 >> 4).astype(">u2").tobytes()
    return made


def saved(picture: Image.Image, kind: str, **how: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


def tried(first: int, last: int) -> tuple[list[str], float, float]:
    """What went wrong with the mutations of these numbers, the longest time in seconds, the peak in gigabytes."""
    warnings.simplefilter("ignore")
    wrong, slowest = [], 0.0
    files = list(originals().items())
    for number in range(first, last):
        name, content = files[number % len(files)]
        content = mutated(content, np.random.default_rng(number))
        for what in (read, count_pages):
            started = time.monotonic()
            try:
                what(content)
            except ImageError as error:
                if "\n" in str(error) or len(str(error)) > 500:
                    wrong.append(f"{number} {name}: {str(error)[:600]!r}")
            except BaseException as error:
                wrong.append(f"{number} {name}: {type(error).__name__}: {error}")
            taken = time.monotonic() - started
            if taken > SECONDS:
                wrong.append(f"{number} {name}: {taken:.1f} s in {what.__name__}")
            slowest = max(slowest, taken)
    return wrong, slowest, peak_memory()


def holds(first: int, last: int) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process of its own, for the peak
        wrong, _, peak = pool.apply(tried, (first, last))
    assert wrong == []
    assert peak < GIGABYTES


def test_all_the_originals_are_read():
    for name, content in originals().items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert read(content).shape == (SIDE, SIDE, 3), name


def test_four_hundred_mutations_end_in_a_picture_or_a_sentence():
    holds(0, 400)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
def test_ten_thousand_mutations_end_in_a_picture_or_a_sentence(part):
    holds(400 + 2000 * part, 400 + 2000 * (part + 1))
