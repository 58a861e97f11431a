"""Depths of 10, 12 and 14 bits in 16 are read as the camera meant them, or the user is told once."""

import io
import itertools
import warnings

import numpy as np
import pytest
from picture_files import chunk, page, png16, tiff
from PIL import Image

from vlad.images import ImageError, PictureWarning, Reader, Remarks, read
from vlad.images.deep import decode_png

GREY = np.linspace(0, 1, 40).reshape(5, 8)
COLOURS = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=2)


def pgm(levels: np.ndarray, white: int) -> bytes:
    kind = b"P6" if levels.ndim == 3 else b"P5"
    size = b"%d %d" % levels.shape[1::-1]
    return (
        kind + b"\n# a comment\n" + size + b"\n%d\n" % white + levels.astype(">u2" if white > 255 else "u1").tobytes()
    )


def deep(bits: int) -> dict[str, object]:
    """The same colours in the low bits of 16, as cameras' programs hand them on."""
    levels = np.round(COLOURS * (2**bits - 1)).astype(np.uint16)
    grey = Image.fromarray(levels[..., 0])
    file = io.BytesIO()
    grey.save(file, "PNG")
    return {
        "array": levels,
        "grey array": levels[..., 0],
        "big-endian array": levels.astype(">u2"),
        "every second column": np.repeat(levels, 2, axis=1)[:, ::2],
        "int16 array": levels.astype(np.int16) if bits < 16 else levels,
        "int32 array": levels.astype(np.int32),
        "PIL": grey,
        "grey PNG": file.getvalue(),
        "colour PNG": png16(levels),
        "TIFF": tiff(page(levels, 16, 2)),
        "PGM that states 16": pgm(levels[..., 0], 65535),
        "PPM that states 16": pgm(levels, 65535),
    }


@pytest.mark.parametrize("bits", [9, 10, 12, 14, 16])
@pytest.mark.parametrize("given", deep(12))
def test_given_bits_make_white_of_the_cameras_white(given, bits):
    got, meant = read(deep(bits)[given], bits=bits), np.round(COLOURS * 255)
    expected = meant if got.max(axis=2).tolist() != got.min(axis=2).tolist() else meant[..., :1]
    assert np.abs(got - expected).max() <= 1


@pytest.mark.parametrize("given", ["array", "grey PNG", "colour PNG", "TIFF", "PPM that states 16", "PIL"])
def test_dark_16_bits_are_warned_of_with_the_bits_to_give(given):
    for bits, words in ((10, "bits=10"), (12, "bits=12")):
        with pytest.warns(PictureWarning, match=f"level {2**bits - 1} of 65535.*{words}"):
            read(deep(bits)[given])


@pytest.mark.parametrize("given", deep(12))
def test_16_bits_that_pass_an_eighth_are_read_without_a_word(given):
    if given in ("int16 array", "int32 array"):
        pytest.skip("arrays of signed integers are taken with bits= alone")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(deep(16)[given]).max() == 255
        assert read(np.array([[0, 8192]], np.uint16)).max() == 32


def test_a_run_is_warned_once_and_only_if_none_of_its_pictures_is_bright():
    dark, bright, black = (np.full((4, 4), level, np.uint16) for level in (1000, 60000, 0))
    with pytest.warns(PictureWarning) as told, Remarks() as remarks:
        for _ in range(40):
            Reader().read(dark, remarks)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Remarks() as remarks:
            for picture in (dark, dark, bright, dark):
                Reader().read(picture, remarks)
        with Remarks() as remarks:
            Reader().read(black, remarks)
        with Remarks() as remarks:
            Reader(bits=12).read(dark, remarks)


def test_a_run_without_end_is_warned_after_sixteen_dark_pictures():
    remarks = Remarks()
    with pytest.warns(PictureWarning, match="bits=10"):
        for _ in range(16):
            Reader().read(np.full((4, 4), 1000, np.uint16), remarks)


def test_levels_beyond_the_given_bits_are_refused():
    with pytest.raises(ImageError, match="level 5000 and 12 bits end at 4095; give bits=13"):
        read(np.array([[0, 5000]], np.uint16), bits=12)


@pytest.mark.parametrize("bits", [7, 17, 12.0, "12", True])
def test_senseless_bits_are_refused(bits):
    with pytest.raises(ValueError, match="8 to 16"):
        read(np.zeros((4, 4), np.uint16), bits=bits)
    with pytest.raises(ValueError, match="8 to 16"):
        Reader(bits=bits)


def test_bits_leave_pictures_of_8_bits_and_floats_alone():
    for plain in (np.full((2, 2), 200, np.uint8), np.full((2, 2), 200 / 255), Image.new("L", (2, 2), 200)):
        assert read(plain, bits=12).max() == 200


@pytest.mark.parametrize("white", [1, 15, 100, 255, 256, 1023, 4095, 40000, 65535])
def test_stated_white_of_pgm_and_ppm_is_believed_even_beside_given_bits(white):
    for meant in (GREY, COLOURS):
        levels = np.round(meant * white)
        expected = np.round(levels / white * 255)
        for bits in (None, 12) if white < 65535 else (None,):
            got = read(pgm(levels, white), bits=bits)
            assert np.abs(got - (expected if expected.ndim == 3 else expected[..., None])).max() <= 1


def test_stated_depth_of_a_tiff_wins_over_given_bits():
    content = tiff(page(np.full((4, 4, 1), 1023, "u2"), 10))
    assert read(content, bits=12).min() == 255


def test_cut_off_pgm_is_refused():
    with pytest.raises(ImageError, match="truncated"):
        read(pgm(np.zeros((5, 8, 3)), 4095)[:-3])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_of_every_kind_keeps_all_its_levels(channels):
    colours = COLOURS[..., : 3 if channels > 2 else 1]
    alpha = np.full((*GREY.shape, 1), 0.5)
    meant = np.concatenate([colours, alpha], axis=2) if channels in (2, 4) else colours
    expected = colours / 2 + 0.5 if channels in (2, 4) else colours
    assert np.abs(read(png16(np.round(meant * 65535))) - expected * 255).max() <= 1.5
    assert np.abs(read(png16(np.round(meant * 4095)), bits=12) - expected * 255).max() <= 1.5


def test_16_bit_png_is_read_whatever_its_filters_and_interlacing():
    for channels, interlaced in itertools.product((2, 3, 4), (False, True)):
        levels = np.random.default_rng(0).integers(0, 65536, (23, 17, channels)).astype(np.uint16)
        content = png16(levels, filtered=True, interlaced=interlaced)
        with Image.open(io.BytesIO(content)) as image:  # Pillow takes the high bytes
            high = np.asarray(image.convert({2: "LA", 3: "RGB", 4: "RGBA"}[channels]))
        assert np.array_equal(high, levels >> 8)
        assert np.array_equal(decode_png(io.BytesIO(content), None, 10**6), levels)


@pytest.mark.parametrize("kept", [0.4, 0.9, 0.99])
def test_cut_off_or_damaged_16_bit_png_is_refused(kept):
    content = png16(np.random.default_rng(0).integers(0, 65536, (23, 17, 3)))
    with pytest.raises(ImageError):
        read(content[: int(len(content) * kept)])
    with pytest.raises(ImageError, match="checksum"):
        read(content[:200] + bytes([content[200] ^ 1]) + content[201:])


def test_clear_colour_of_a_16_bit_png_becomes_white():
    levels = np.array([[[0, 257, 514], [0, 257, 515]]])
    content = png16(levels, chunk(b"tRNS", np.array([0, 257, 514], ">u2").tobytes()))
    assert read(content, bits=16)[0].tolist() == [[255, 255, 255], [0, 1, 2]]


def test_16_bit_png_is_turned_as_its_exif_says():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = png16(np.round(COLOURS * 65535), chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    assert np.array_equal(read(turned), np.rot90(read(png16(np.round(COLOURS * 65535))), -1))


def test_significant_bits_of_a_png_are_told_and_its_levels_read_by_their_full_range():
    scaled = png16(np.round(COLOURS * 65535), chunk(b"sBIT", bytes([12, 12, 12])))
    assert np.abs(read(scaled) - COLOURS * 255).max() <= 1
    with pytest.warns(PictureWarning, match="12 significant bits.*bits=12"):
        read(png16(np.round(COLOURS * 4095), chunk(b"sBIT", bytes([12, 12, 12]))))


def test_alpha_that_nobody_filled_hides_nothing():
    colours = np.round(COLOURS * 255).astype(np.uint8)
    empty = np.dstack([colours, np.zeros(GREY.shape, np.uint8)])
    for given in (empty, Image.fromarray(empty), empty / 255, png16(empty.astype(int) * 257)):
        with pytest.warns(PictureWarning, match="alpha is 0 everywhere"):
            assert np.array_equal(read(given), colours)


@pytest.mark.parametrize(
    ("white", "words"), [(4095, "4095 or 16383"), (65535, "65535"), (900, "1023 or 4095"), (255, "divide by 255")]
)
def test_floats_of_a_cameras_levels_are_told_by_what_to_divide(white, words):
    with pytest.raises(ImageError, match=words):
        read(GREY * white)


@pytest.mark.parametrize(
    ("values", "words"),
    [([0, 255], "uint8"), ([0, 4095], "uint16"), ([-5, 9], "shift them"), ([0, 70000], "divide them")],
)
def test_integers_of_another_type_are_told_which_type_to_take(values, words):
    for kind in (np.int32, np.int64):
        with pytest.raises(ImageError, match=words):
            read(np.array([values], kind))


def test_bgr_turns_the_channels_of_arrays_and_tensors_and_not_of_files():
    torch = pytest.importorskip("torch")
    rgb = np.round(COLOURS * 255).astype(np.uint8)
    alpha = np.full(GREY.shape, 255, np.uint8)
    for given in (rgb[..., ::-1], np.dstack([rgb[..., ::-1], alpha]), rgb[..., ::-1] / 255):
        assert np.array_equal(read(given, channels="BGR"), rgb)
    assert np.array_equal(read(torch.from_numpy(rgb[..., ::-1].copy()).permute(2, 0, 1), channels="BGR"), rgb)
    assert np.array_equal(read(Image.fromarray(rgb), channels="BGR"), rgb)
    assert np.array_equal(read(GREY, channels="BGR"), read(GREY))
    with pytest.raises(ValueError, match="'RGB' or 'BGR'"):
        read(rgb, channels="bgr")


def test_arrays_are_read_whatever_their_strides():
    rgb = np.round(COLOURS * 255).astype(np.uint8)
    for view in (rgb[::-1, ::-1], rgb.transpose(1, 0, 2), np.repeat(rgb, 3, axis=0)[::3], rgb[..., ::-1]):
        assert np.array_equal(read(view), view.copy())
        assert read(view).flags.c_contiguous and not np.shares_memory(read(view), view)


def test_masked_arrays_are_refused_where_something_is_masked():
    values = np.ma.array(np.full((2, 2), 9, np.uint8), mask=[[0, 1], [0, 0]])
    with pytest.raises(ImageError, match="filled"):
        read(values)
    assert read(np.ma.array(values.data)).max() == 9
