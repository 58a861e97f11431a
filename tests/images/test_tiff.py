"""TIFF in all its layouts gives the pixels that were meant, or says what it is."""

import io
from itertools import product

import numpy as np
import pytest
import tifffile
from picture_files import page, tiff
from PIL import Image

from vlad.images import ImageError, count_pages, read

HEIGHT, WIDTH = 13, 21
GREY = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1)
COLOURS = np.concatenate([GREY, GREY[::-1], GREY[:, ::-1]], axis=2)
TOPS = {"u1": 255, "u2": 65535, "u4": 2**32 - 1, "u8": 2**64 - 1, "i1": 127, "i2": 32767, "f2": 1, "f4": 1, "f8": 1}


def shows(content: object, meant: np.ndarray, tolerance: float = 1.01) -> None:
    """The picture is `meant`, levels in [0, 1], but for rounding."""
    expected = np.broadcast_to(meant * 255, (*meant.shape[:2], 3))
    assert read(content).shape == expected.shape
    assert np.abs(read(content) - expected).max() <= tolerance


def levels(meant: np.ndarray, kind: str) -> np.ndarray:
    if kind[0] == "f":
        return meant.astype(kind)
    top = TOPS[kind]
    return np.array([int(value * 2**53) * top >> 53 for value in meant.flat], dtype=kind).reshape(meant.shape)


def written(samples: np.ndarray, **how: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, samples, **how)
    return file.getvalue()


@pytest.mark.parametrize("kind", TOPS)
def test_every_sample_type_has_its_white_in_both_byte_orders_tiles_and_compressions(kind):
    tolerance = 2.5 if kind == "i1" else 1.01  # 7 bits
    for order, tile, compression in product("<>", (None, (16, 16)), (None, "zlib")):
        how = {"byteorder": order, "tile": tile, "compression": compression}
        grey = levels(GREY[..., 0], kind)
        shows(written(grey, photometric="minisblack", **how), GREY, tolerance)
        shows(written(grey, photometric="miniswhite", **how), 1 - GREY, tolerance)
        shows(written(grey, photometric="minisblack", bigtiff=True, **how), GREY, tolerance)
        colours = levels(COLOURS, kind)
        shows(written(colours, photometric="rgb", **how), COLOURS, tolerance)
        planes = np.ascontiguousarray(np.moveaxis(colours, 2, 0))
        shows(written(planes, photometric="rgb", planarconfig="separate", **how), COLOURS, tolerance)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 9, 10, 12, 14, 15, 16])
def test_stated_depth_is_believed_whatever_it_is(bits):
    grey, colours = (np.round(meant * (2**bits - 1)).astype("u2") for meant in (GREY, COLOURS))
    for order in "<>":
        shows(tiff(page(grey, bits, 1, order), order=order), grey / (2**bits - 1))
        shows(tiff(page(grey, bits, 0, order), order=order), 1 - grey / (2**bits - 1))
        for planar in (False, True):
            shows(tiff(page(colours, bits, 2, order, planar), order=order), colours / (2**bits - 1))


def test_12_bits_of_white_are_white():
    assert read(tiff(page(np.full((16, 16, 1), 4095, "u2"), 12))).min() == 255


def test_largest_sample_value_counts_where_it_names_a_depth():
    grey = np.round(GREY * 4095).astype("u2")
    shows(tiff(page(grey, 16, t281=4095)), GREY)
    shows(tiff(page(np.round(COLOURS * 1023).astype("u2"), 16, 2, t281=[1023] * 3)), COLOURS)
    shows(tiff(page(np.round(GREY * 65535).astype("u2"), 16, t281=4095)), GREY)  # it lies
    with pytest.warns(UserWarning, match="bits=12"):  # the brightest pixel of the scene, not white
        read(tiff(page(np.round(GREY * 3000).astype("u2"), 16, t281=3000)))


@pytest.mark.parametrize("compression", ["tiff_lzw", "zstd", "lzma", "tiff_adobe_deflate", "packbits"])
def test_compressed_16_bits_and_floats_are_read_without_another_package(compression):
    for grey in (levels(GREY[..., 0], "u2"), levels(GREY[..., 0], "f4")):
        file = io.BytesIO()
        Image.fromarray(grey).save(file, "TIFF", compression=compression)
        content = bytearray(file.getvalue())
        shows(bytes(content), GREY)
        with tifffile.TiffFile(io.BytesIO(content)) as tif:
            place = tif.pages[0].tags[262].valueoffset
        content[place] = 0  # white is zero
        shows(bytes(content), 1 - GREY)


def test_lzw_strip_longer_than_a_row_of_libtiff_is_read():
    rows = np.random.default_rng(0).integers(0, 65536, (700, 150), dtype=np.uint16)
    file = io.BytesIO()
    Image.fromarray(rows).save(file, "TIFF", compression="tiff_lzw", tiffinfo={278: 700})
    assert np.array_equal(read(file.getvalue())[..., 0], np.round(rows / 257).astype(np.uint8))


@pytest.mark.parametrize("kind", ["u2", "f4"])
def test_alpha_is_alpha_only_where_the_file_says_so(kind):
    top = TOPS[kind]
    half = np.full_like(GREY, 0.5)
    for extra, meant in ((2, COLOURS / 2 + 0.5), (1, COLOURS / 2 + 0.5), (0, COLOURS)):
        colours = COLOURS / 2 if extra == 1 else COLOURS
        samples = (np.concatenate([colours, half], axis=2) * top).astype(kind)
        shows(tiff(page(samples, 8 * int(kind[1]), 2, t338=extra)), meant, 1.5)
    samples = (np.concatenate([GREY, half], axis=2) * top).astype(kind)
    shows(tiff(page(samples, 8 * int(kind[1]), 1, t338=2)), GREY / 2 + 0.5, 1.5)
    shows(tiff(page(samples, 8 * int(kind[1]), 1, t338=0)), GREY)


def test_alpha_that_is_zero_everywhere_hides_nothing():
    samples = (np.concatenate([COLOURS, GREY * 0], axis=2) * 65535).astype("u2")
    with pytest.warns(UserWarning, match="alpha is 0 everywhere"):
        assert np.abs(read(tiff(page(samples, 16, 2, t338=2))) - COLOURS * 255).max() <= 1


def test_bands_beyond_the_colours_are_left_out_and_bands_without_colours_refused():
    bands = np.concatenate([COLOURS, GREY * 0, GREY], axis=2)
    shows(tiff(page(np.round(bands * 255).astype("u1"), 8, 2, t338=[0, 0])), COLOURS)
    shows(tiff(page(np.round(COLOURS * 255).astype("u1"), 8, 1, t338=[0, 0])), COLOURS)
    with pytest.raises(ImageError, match="5 x uint8, 5 bands of no stated colour"):
        read(tiff(page(np.round(bands * 255).astype("u1"), 8, 1, t338=[0] * 4)))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_palettes_of_16_and_of_8_bits_give_their_colours(bits):
    index = (np.arange(HEIGHT * WIDTH) % 2**bits).reshape(HEIGHT, WIDTH, 1).astype("u2")
    palette = np.random.default_rng(0).integers(0, 65536, (3, 2**bits))
    shows(tiff(page(index, bits, 3, t320=palette.ravel().tolist())), palette.T[index[..., 0]] / 65535)
    shows(tiff(page(index, bits, 3, t320=(palette >> 8).ravel().tolist())), (palette >> 8).T[index[..., 0]] / 255)


@pytest.mark.parametrize(("kind", "bits"), [("u1", 8), ("u2", 16)])
def test_inks_become_light(kind, bits):
    ink = np.concatenate([COLOURS, GREY * 0.3], axis=2)
    for planar in (False, True):
        content = tiff(page(np.round(ink * TOPS[kind]).astype(kind), bits, 5, planar=planar))
        shows(content, (1 - COLOURS) * (1 - GREY * 0.3), 2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bits_are_turned_upright_as_8_bits_are(orientation):
    deep, plain = (page(np.round(COLOURS * top).astype(kind), bits, 2, t274=orientation) for top, kind, bits in SAME)
    assert np.abs(read(tiff(deep)).astype(int) - read(tiff(plain))).max() <= 1


SAME = ((65535, "u2", 16), (255, "u1", 8))


def test_bits_in_reverse_are_turned_round():
    turned = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
    made = page(np.round(GREY * 4095).astype("u2"), 12, t266=2)
    shows(tiff({**made, "strips": [strip.translate(turned) for strip in made["strips"]]}), GREY)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_picture_is_taken_and_not_its_thumbnail_mask_or_smaller_steps(bits):
    whole = page(np.round(GREY * (2**bits - 1)).astype("u2" if bits == 16 else "u1"), bits)
    thumbnail = page(np.zeros((4, 4, 1), "u1"), 8, t254=1)
    mask = page(np.zeros((HEIGHT, WIDTH, 1), "u1"), 1, 4, t254=4)
    layouts = [
        tiff(thumbnail, whole),
        tiff(mask, whole),
        tiff(whole, thumbnail, mask),
        tiff({**thumbnail, "inner": [whole]}),
        tiff({**whole, "inner": [thumbnail, thumbnail]}),
        tiff({**thumbnail, "inner": [whole]}, big=True),
    ]
    for content in layouts:
        shows(content, GREY)
        assert count_pages(content) == 1


def test_pages_are_counted_and_read_one_by_one():
    shades = [page(np.full((4, 5, 1), shade, "u2"), 16) for shade in (0, 257 * 100, 65535)]
    content = tiff(*shades)
    assert count_pages(content) == 3
    assert [read(content, page=number)[0, 0, 0] for number in (1, 2, 3)] == [0, 100, 255]
    with pytest.raises(ImageError, match="no page 4; it has 3"):
        read(content, page=4)


def test_pages_that_pillow_decodes_are_read_one_by_one(tmp_path):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:], compression="jpeg")
    shown = [read(tmp_path / "a.tif", page=number)[0, 0].argmax() for number in (1, 2, 3)]
    assert shown == [0, 1, 2]


@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
def test_what_is_cut_off_is_no_picture(kind):
    for compression in (None, "zlib"):
        content = written(levels(COLOURS, kind), photometric="rgb", compression=compression, tile=(16, 16))
        with pytest.raises(ImageError):
            read(content[: len(content) * 2 // 3])


def test_signed_levels_below_zero_are_refused_with_a_way_out():
    with pytest.raises(ImageError, match=r"signed levels reach from -5 to 100.*uint16"):
        read(written(np.array([[-5, 100]], np.int16), photometric="minisblack"))


def test_floats_beyond_one_are_told_by_what_to_divide():
    with pytest.raises(ImageError, match="divide by the white level: 4095 or 16383"):
        read(written(np.array([[0, 4000]], np.float32), photometric="minisblack"))


def test_what_nothing_here_reads_is_named():
    mixed = {**page(np.zeros((4, 4, 3), "u1"), 8, 2), 258: [5, 6, 5]}
    with pytest.raises(ImageError, match=r"TIFF of 3 x uint\(5, 6, 5\)"):
        read(tiff(mixed))
    for code, name in ((34887, "LERC"), (34712, "JPEG2000"), (50002, "JPEGXL")):
        content = tiff({**page(np.zeros((4, 4, 1), "u2"), 16), 259: code})
        with pytest.raises(ImageError, match=f"1 x uint16 compressed with {name}.*imagecodecs|cannot be read"):
            read(content)
    with pytest.raises(ImageError, match="raw mosaic"):
        read(tiff(page(np.zeros((4, 4, 1), "u2"), 16, 32803)))


def test_codecs_of_imagecodecs_are_used_where_it_is_installed():
    pytest.importorskip("imagecodecs")
    for compression in ("jpegxl", "lerc", "jpeg2000"):
        shows(written(levels(COLOURS, "u2"), photometric="rgb", compression=compression), COLOURS)


def test_pixel_limit_holds_for_tiff():
    with pytest.raises(ImageError, match="more than 199 pixels"):
        read(tiff(page(np.zeros((10, 20, 1), "u2"), 16)), max_pixels=199)


def test_circle_of_pages_ends():
    content = bytearray(tiff(page(np.zeros((4, 4, 1), "u2"), 16)))
    first = int.from_bytes(content[4:8], "little")
    end = first + 2 + 12 * int.from_bytes(content[first : first + 2], "little")
    content[end : end + 4] = content[4:8]
    assert count_pages(bytes(content)) == 1


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_one_long_uncompressed_strip_is_read_in_parts_and_found_to_be_cut(planar):
    samples = np.random.default_rng(0).integers(0, 65535, (2100, 2000, 3), np.uint16)  # more than is read at once
    stored = samples if planar == "contig" else samples.transpose(2, 0, 1)
    content = written(stored, photometric="rgb", planarconfig=planar, rowsperstrip=len(samples))
    assert np.array_equal(read(content), np.round(samples / np.float32(257)).astype(np.uint8))
    with pytest.raises(ImageError, match="truncated"):
        read(content[:-100_000])
