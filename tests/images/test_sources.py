"""Pictures come from paths, addresses of files, bytes and opened files; what is none of them is named."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlad.images import ImageError, PictureWarning, Reader, count_pages, path_of, read

PIXELS = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)


def encoded(kind: str = "PNG", **how: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, **how)
    return file.getvalue()


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "a b#1 ü.png"
    path.write_bytes(encoded())
    return path


def reason(given: object) -> str:
    with pytest.raises(ImageError) as caught:
        read(given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bytes_and_opened_files_of_every_kind_are_read(file, tmp_path):
    content = file.read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", content)
    for given in (content, bytearray(content), memoryview(content), io.BytesIO(content)):
        assert np.array_equal(read(given), PIXELS)
    with open(file, "rb") as opened, zipfile.ZipFile(tmp_path / "a.zip").open("a.png") as member:
        for given in (opened, member, opened, member):  # read from the start each time
            assert np.array_equal(read(given), PIXELS)
        assert not opened.closed


def test_stream_that_cannot_seek_is_read_from_where_it_stands(file):
    receiving, sending = os.pipe()
    with os.fdopen(sending, "wb") as pipe:
        pipe.write(encoded())
    with os.fdopen(receiving, "rb") as pipe:
        assert np.array_equal(read(pipe), PIXELS)


def test_file_addresses_are_paths(file):
    assert np.array_equal(read(file.as_uri()), PIXELS)
    assert np.array_equal(read(f"file://localhost{file.as_uri().removeprefix('file://')}"), PIXELS)
    assert path_of(file.as_uri()) == str(file)
    assert "another machine" in reason("file://server/share/a.png")


def test_home_folder_may_be_written_as_a_tilde(file, monkeypatch):
    monkeypatch.setenv("HOME", str(file.parent))
    assert np.array_equal(read(f"~/{file.name}"), PIXELS)


def test_file_opened_as_text_is_a_type_error(file):
    with open(file) as opened, pytest.raises(TypeError, match='"rb"'):
        read(opened)
    with pytest.raises(TypeError, match='"rb"'):
        read(io.StringIO("text"))


@pytest.mark.parametrize(
    "given", ["https://a.org/a.png", "s3://bucket/a.png", Path("http://a.org/a.png"), "HTTP://a/b"]
)
def test_addresses_are_not_fetched_and_the_message_says_so(given):
    assert "addresses are not fetched" in reason(given)


def test_names_in_messages_are_short_and_on_one_line():
    text = reason("data:image/png;base64," + "A" * 400_000)
    assert len(text) < 500 and "base64" in text
    assert len(reason("x" * 100_000)) < 500
    assert "\x1b" not in reason("a\x1b[31m\nb.png")
    assert "no file can have such a name" in reason("a\0b.png")


def test_what_is_no_file_is_said(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert "is a pipe" in reason(tmp_path / "pipe.png")
    assert "is a device" in reason("/dev/null")
    assert "link that leads nowhere" in reason(tmp_path / "gone.png")
    assert "link that leads nowhere" in reason(tmp_path / "loop.png")
    assert "is a folder" in reason(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty (0 bytes)"),
        (bytes(5000), "nothing but zero bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "a web page"),
        (b'{"error": "not found"}', "JSON"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"%PDF-1.7\n", "a PDF"),
        (bytes(128) + b"DICM" + bytes(90), "pydicom"),
        (b"\0\0\0\x18ftypqt  " + bytes(40), "a video"),
        (b"\0\0\0\x18ftypisom" + bytes(40), "a video"),
        (b"RIFF\0\0\0\0AVI LIST", "a video"),
        (b"\xff\x0a\xfa\x7f" + bytes(40), "JPEG XL"),
        (b"PK\x03\x04" + bytes(40), "zip archive"),
        (b"\x1f\x8b\x08" + bytes(40), "gzip"),
        (b"8BPS\0\x01" + bytes(40), "Photoshop"),
        (b"\x93NUMPY\x01\0" + bytes(40), "numpy.load"),
        (b"PF\n2 2\n-1.0\n" + bytes(48), "PFM of three colours"),
        (b"source,score\na.png,0.1\n", "it is text"),
        (b"\x01\x02\x03\x04" * 20, "unknown format"),
    ],
)
def test_file_that_is_no_picture_is_named_for_what_it_is(tmp_path, content, words):
    (tmp_path / "a.png").write_bytes(content)
    assert words in reason(tmp_path / "a.png")
    assert words in reason(content)


def test_jpeg_of_12_bits_is_named():
    content = bytearray(encoded("JPEG"))
    content[content.index(b"\xff\xc0") + 4] = 12
    assert "JPEG of 12 bits" in reason(bytes(content))


def test_heic_is_read_or_the_package_that_reads_it_is_named():
    head = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
    try:
        import pillow_heif
    except ImportError:
        assert "pip install pillow-heif" in reason(head)
        return
    photo = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 64), "red")).save(photo)
    assert read(photo.getvalue())[0, 0].argmax() == 0


def test_suffix_does_not_matter(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded())
    assert np.array_equal(read(tmp_path / "a.jpg"), PIXELS)


# ---- pages -------------------------------------------------------------------------------------------------------


def frames(kind: str, count: int = 3) -> bytes:
    shades = [Image.new("RGB", (16, 16), (60 * number, 0, 0)) for number in range(1, count + 1)]
    file = io.BytesIO()
    more = {"lossless": True} if kind == "WEBP" else {}
    shades[0].save(file, kind, save_all=True, append_images=shades[1:], **more)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG", "AVIF"])
def test_first_of_several_is_read_with_a_warning_and_each_by_its_number(tmp_path, kind):
    path = tmp_path / "six.x"
    path.write_bytes(frames(kind))
    assert count_pages(path) == 3
    with pytest.warns(PictureWarning, match=r"3 pages.*pages=\"all\""):
        first = read(path)
    shades = [int(read(given)[0, 0, 0]) for given in (f"{path}#1", f"{path}#2", f"{path}#3")]
    assert np.abs(np.array(shades) - [60, 120, 180]).max() <= 4
    assert abs(int(first[0, 0, 0]) - 60) <= 4
    assert "no page 4; it has 3" in reason(f"{path}#4")


def test_gain_map_beside_a_phones_photo_is_no_page_and_a_second_view_is_one():
    content = frames("MPO", 2)
    assert count_pages(content) == 1  # of undefined kind, as phones write them
    base = content.index(b"MPF\0") + 4
    entry = content.index(b"\x02\xb0\x07\0", base) + 8  # where the tag of all pictures says that they are listed
    second = base + int.from_bytes(content[entry : entry + 4], "little") + 16
    stereo = content[:second] + bytes([2, 0, 2, 0]) + content[second + 4 :]
    assert count_pages(stereo) == 2


def test_all_pages_become_pictures_of_their_own(tmp_path):
    (tmp_path / "six.tif").write_bytes(frames("TIFF", 6))
    (tmp_path / "one.png").write_bytes(encoded())
    reader = Reader(pages="all")
    given = [tmp_path / "six.tif", tmp_path / "one.png", PIXELS, tmp_path / "gone.png", io.BytesIO(frames("GIF", 2))]
    pictures = list(reader.pictures(given))
    assert pictures[:6] == [f"{tmp_path}/six.tif#{number}" for number in range(1, 7)]
    assert pictures[6] == tmp_path / "one.png" and pictures[7] is PIXELS and pictures[8] == tmp_path / "gone.png"
    assert [int(reader.read(picture)[0, 0, 0]) for picture in pictures[9:]] == [60, 120]
    assert list(Reader().pictures(given)) == given


def test_batches_are_taken_apart_one_by_one():
    torch = pytest.importorskip("torch")
    asked = []

    def batches():
        for number in range(2):
            asked.append(number)
            yield torch.full((2, 3, 4, 5), number / 2)

    pictures = Reader().pictures(batches())
    shapes = [tuple(next(pictures).shape) for _ in range(2)]
    assert shapes == [(3, 4, 5)] * 2 and asked == [0]
    assert len(list(Reader().pictures([np.zeros((3, 8, 8, 3), np.uint8), PIXELS]))) == 4


def test_senseless_pages_are_refused():
    with pytest.raises(ValueError, match="'first' or 'all'"):
        Reader(pages="every")
