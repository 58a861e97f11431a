"""Every kind of picture is read, and every bad one is named."""

import os
import pickle
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlad.images import FORMATS, ImageError, PictureWarning, read


def colours(height: int = 6, width: int = 4) -> np.ndarray:
    """uint8 [H, W, 3] where every pixel differs, so that a turn or a mixed-up channel shows."""
    return np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)


def png(width: int, height: int, body: bytes = b"") -> bytes:
    """A grey 8-bit PNG with that header, and `body` as its compressed rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def fails(image: object, *words: str, **keywords: int) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read(image, **keywords)
    for word in words:
        assert word in str(caught.value)
    return caught.value


# ---- files -------------------------------------------------------------------------------------------------------


def test_path_and_string_of_a_png_give_its_very_pixels(tmp_path):
    Image.fromarray(colours()).save(tmp_path / "a.png")
    for given in (tmp_path / "a.png", str(tmp_path / "a.png")):
        assert np.array_equal(read(given), colours())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_shows_the_photo_upright(tmp_path, orientation):
    upright = colours()
    stored = {  # how a camera stores an upright picture under each tag, from the EXIF definition of row 0 and column 0
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read(tmp_path / "turned.png"), upright)


def test_phone_jpeg_with_orientation_6_swaps_height_and_width(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30), "red").save(tmp_path / "phone.jpg", exif=exif)
    assert read(tmp_path / "phone.jpg").shape == (40, 30, 3)


def test_damaged_exif_costs_the_turn_but_not_the_picture(tmp_path, caplog):
    Image.fromarray(colours()).save(tmp_path / "a.png", exif=b"Exif\0\0no exif at all")
    assert np.array_equal(read(tmp_path / "a.png"), colours())
    assert "damaged EXIF" in caplog.text


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "big_endian.tif"])
def test_16_bit_files_are_scaled_by_their_full_range(tmp_path, name):
    levels = np.array([[0, 257, 32768], [65535, 257 * 7, 128]], dtype=np.uint16)
    if name == "big_endian.tif":
        Image.frombytes("I;16B", (3, 2), levels.astype(">u2").tobytes()).save(tmp_path / name)
    else:
        Image.fromarray(levels).save(tmp_path / name)
    expected = np.array([[0, 1, 128], [255, 7, 0]], dtype=np.uint8)
    assert np.array_equal(read(tmp_path / name), np.stack([expected] * 3, axis=2))


def test_transparent_level_of_a_16_bit_png_becomes_white(tmp_path):
    Image.fromarray(np.array([[0, 514]], dtype=np.uint16)).save(tmp_path / "a.png", transparency=514)
    assert read(tmp_path / "a.png")[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_32_bit_grey_within_16_bits_is_scaled_and_beyond_is_refused():
    levels = np.array([[0, 65535]], dtype=np.int32)
    assert read(Image.fromarray(levels))[0].tolist() == [[0] * 3, [255] * 3]
    fails(Image.fromarray(levels + 1), "65536", "16 bits")
    fails(Image.fromarray(levels - 1), "-1", "16 bits")


def test_float_tiff_in_0_1_is_read_and_beyond_is_refused(tmp_path):
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)).save(tmp_path / "a.tif")
    assert read(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 128, 255]
    Image.fromarray(np.array([[0.0, 300.0]], dtype=np.float32)).save(tmp_path / "b.tif")
    fails(tmp_path / "b.tif", "b.tif", "300", "[0, 1]")


def test_cmyk_jpeg_keeps_its_colours(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=100)
    assert np.abs(read(tmp_path / "print.jpg").astype(int) - [255, 0, 0]).max() <= 3  # JPEG rounding


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_alpha_is_composited_on_white(mode):
    alpha = Image.fromarray(np.array([[0, 255, 128]], dtype=np.uint8))
    black = Image.new("L", (3, 1), 0)
    picture = Image.merge("LA", (black, alpha)) if "L" in mode else Image.merge("RGBA", (black, black, black, alpha))
    if mode not in ("LA", "RGBA"):
        picture = picture.convert(mode)
    assert read(picture)[0].tolist() == [[255] * 3, [0] * 3, [127] * 3]


def test_palette_with_transparency_is_white_where_clear(tmp_path):
    picture = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.save(tmp_path / "a.png", transparency=1)
    assert read(tmp_path / "a.png")[0].tolist() == [[255, 0, 0], [255, 255, 255], [0, 0, 255]]


def test_one_bit_picture_is_black_and_white(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png")[0].tolist() == [[255] * 3, [0] * 3]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "F"])
def test_white_stays_white_in_every_mode(mode):
    white = {"I": 65535, "I;16": 65535, "F": 1.0, "HSV": (0, 0, 255), "LAB": (255, 128, 128)}
    picture = Image.new("RGB", (2, 3), "white").convert(mode) if mode not in white else None
    pixels = read(picture or Image.new(mode, (2, 3), white[mode]))
    assert pixels.shape == (3, 2, 3) and pixels.dtype == np.uint8
    assert pixels.min() >= 254  # LAB rounds


def test_first_frame_of_an_animation_is_taken(tmp_path):
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(PictureWarning, match="2 pages"):
        assert read(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


def test_picture_of_one_pixel_is_read(tmp_path):
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png").tolist() == [[[1, 2, 3]]]


# ---- broken files ------------------------------------------------------------------------------------------------


def broken(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.{'jpg' if kind == 'truncated' else 'png'}"
    if kind == "truncated":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:-900])
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes({"text": b"no picture\n", "empty": b"", "bomb": png(100_000, 100_000)}[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("truncated", "truncated"),
        ("text", "it is text"),
        ("empty", "0 bytes"),
        ("bomb", "VLAD_MAX_PIXELS"),
        ("folder", "is a folder"),
        ("missing", "no such file"),
    ],
)
def test_unreadable_file_is_named_with_its_reason_and_left_closed(tmp_path, kind, reason):
    path = broken(tmp_path, kind)
    before = len(os.listdir("/dev/fd")) if os.path.isdir("/dev/fd") else 0
    error = fails(path, str(path), reason)
    assert error.source == str(path)
    assert "\n" not in str(error)
    assert before == (len(os.listdir("/dev/fd")) if os.path.isdir("/dev/fd") else 0)


def test_postscript_renamed_to_png_never_reaches_its_interpreter(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    fails(tmp_path / "a.png", "never run here")
    assert "EPS" not in FORMATS


def test_image_error_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(ImageError("a.png: broken", "a.png")))
    assert (str(error), error.source) == ("a.png: broken", "a.png")


def test_truncated_file_opened_by_the_user_is_an_image_error_with_its_path(tmp_path):
    picture = Image.open(broken(tmp_path, "truncated"))
    assert fails(picture, "truncated.jpg", "truncated").source == str(tmp_path / "truncated.jpg")


# ---- size guard --------------------------------------------------------------------------------------------------


def test_pixel_limit_counts_exactly_and_can_be_raised(tmp_path, monkeypatch):
    Image.new("L", (20, 10)).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png", max_pixels=200).shape == (10, 20, 3)
    fails(tmp_path / "a.png", "199", "max_pixels", max_pixels=199)
    fails(Image.new("L", (20, 10)), "199", max_pixels=199)
    monkeypatch.setenv("VLAD_MAX_PIXELS", "199")
    fails(tmp_path / "a.png", "199")
    assert read(tmp_path / "a.png", max_pixels=200).shape == (10, 20, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_own_limit_wins_over_pillows_and_leaves_it_as_it_was(tmp_path, monkeypatch):
    Image.new("L", (20, 10)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # refuses above 100: stands for a picture above the real limit
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "a.png")
    assert read(tmp_path / "a.png").shape == (10, 20, 3)
    assert Image.MAX_IMAGE_PIXELS == 50
    fails(tmp_path / "a.png", "150", max_pixels=150)
    assert Image.MAX_IMAGE_PIXELS == 50


def test_threads_that_move_pillows_limit_put_it_back(tmp_path, monkeypatch):
    Image.new("L", (20, 10)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    shapes: list[tuple[int, ...]] = []
    threads = [
        threading.Thread(target=lambda: shapes.extend(read(tmp_path / "a.png").shape for _ in range(20)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shapes == [(10, 20, 3)] * 80
    assert Image.MAX_IMAGE_PIXELS == 50


@pytest.mark.parametrize("value", ["many", "0", "-5", "1.5"])
def test_senseless_limit_in_the_environment_is_named(monkeypatch, value):
    monkeypatch.setenv("VLAD_MAX_PIXELS", value)
    with pytest.raises(ValueError, match=f"VLAD_MAX_PIXELS is {value}"):
        read(Image.new("L", (2, 2)))


# ---- arrays and tensors ------------------------------------------------------------------------------------------


def test_arrays_of_one_picture_agree_whatever_their_type():
    rgb = colours()
    same = [
        rgb,
        rgb.astype(np.uint16) * 257,
        (rgb.astype(np.uint16) * 257).astype(">u2"),
        rgb / 255,
        (rgb / 255).astype(np.float32),
        (rgb / 255).astype(np.float16),
        np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)]),
        np.asfortranarray(rgb),
    ]
    for array in same:
        assert np.array_equal(read(array), rgb), array.dtype
        assert read(array).flags.c_contiguous


def test_grey_arrays_repeat_their_channel():
    grey = np.array([[0, 90], [180, 255]], dtype=np.uint8)
    expected = np.stack([grey] * 3, axis=2)
    assert np.array_equal(read(grey), expected)
    assert np.array_equal(read(grey[..., None]), expected)
    assert np.array_equal(read(grey > 100), np.where(expected > 100, 255, 0))


def test_float_array_with_alpha_is_composited_on_white():
    assert read(np.array([[[0.0, 0.0, 0.0, 0.5]]]))[0, 0].tolist() == [127] * 3


def test_reading_never_shares_memory_with_the_input():
    array, picture = colours(), Image.fromarray(colours())
    read(array)[:] = 0
    read(picture)[:] = 0
    assert np.array_equal(array, colours()) and np.array_equal(np.asarray(picture), colours())


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 224, 224), np.uint8), ["(3, 224, 224)", "[H, W, 3|4]", "transpose(1, 2, 0)"]),
        (np.zeros((2, 8, 8, 3), np.uint8), ["(2, 8, 8, 3)", "one picture at a time"]),
        (np.zeros((8, 8, 2), np.uint8), ["(8, 8, 2)"]),
        (np.zeros(8, np.uint8), ["(8,)"]),
        (np.zeros((0, 8, 3), np.uint8), ["(0, 8, 3)", "no pixels"]),
        (np.zeros((8, 8), np.int64), ["int64", "uint8"]),
        (np.full((8, 8), 200.0), ["200", "[0, 1]", "divide by 255"]),
        (np.full((8, 8), -2.1), ["-2.1", "normalisation"]),
        (np.full((8, 8), np.nan), ["NaN"]),
        (np.full((8, 8), np.inf), ["infinite"]),
    ],
)
def test_wrong_array_is_told_what_it_is_and_what_is_expected(array, words):
    assert fails(array, *words).source is None


def test_float_overshoot_of_resizing_is_clipped():
    assert read(np.array([[-1e-4, 1 + 1e-4]]))[0, :, 0].tolist() == [0, 255]


def test_tensor_is_read_as_its_array_whatever_its_type():
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(colours()).permute(2, 0, 1)
    for same in (tensor, tensor / 255, (tensor / 255).requires_grad_(), torch.nn.Parameter(tensor / 255)):
        assert np.array_equal(read(same), colours())
    assert np.abs(read((tensor / 255).bfloat16()).astype(int) - colours()).max() <= 1  # 8 bits of mantissa
    assert read(torch.ones(1, 2, 3)).tolist() == np.full((2, 3, 3), 255).tolist()


def test_wrong_tensor_is_told_how_to_mend_it():
    torch = pytest.importorskip("torch")
    fails(torch.zeros(8, 9, 3), "(8, 9, 3)", "permute(2, 0, 1)")
    fails(torch.zeros(2, 3, 8, 9), "(2, 3, 8, 9)", "list(tensor)")
    fails(torch.full((3, 8, 9), 7.0), "7", "[0, 1]")


@pytest.mark.parametrize("thing", [None, 3, [[0, 1]]])
def test_what_is_no_picture_at_all_is_a_type_error(thing):
    with pytest.raises(TypeError, match=type(thing).__name__):
        read(thing)


def test_importing_pictures_and_predictions_leaves_torch_and_scipy_alone():
    code = "import vlad.images, vlad.prediction, sys; print({'torch', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
