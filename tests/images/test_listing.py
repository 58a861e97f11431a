"""Listing never loses or doubles a picture, and says what it left out."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlad.images import read
from vlad.images.listing import left_out_line, list_images


@pytest.fixture
def parts(tmp_path, monkeypatch) -> Path:
    """A working folder with `parts` in it, in the layout of a data set."""
    names = ["10.png", "2.PNG", "b/1.jpg", "a/1.jpg", "ground_truth/crack/1.png", "a/ground_truth/1.png"]
    for name in [*names, "notes.txt", ".hidden.png", ".cache/1.png"]:
        (tmp_path / "parts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "parts" / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sources(*inputs: str | Path) -> list[str]:
    return [found.source for found in list_images(inputs)]


def relatives(*inputs: str | Path) -> list[str]:
    return [found.relative.as_posix() for found in list_images(inputs)]


def test_folder_gives_its_pictures_in_natural_order_without_masks_and_hidden_ones(parts):
    assert sources("parts") == ["parts/2.PNG", "parts/10.png", "parts/a/1.jpg", "parts/b/1.jpg"]
    assert relatives("parts") == ["2.PNG", "10.png", "a/1.jpg", "b/1.jpg"]


def test_source_is_spelt_as_the_input_was(parts):
    assert sources("./parts/a") == ["./parts/a/1.jpg"]
    assert sources("parts/a/") == ["parts/a/1.jpg"]
    assert sources("./parts/10.png") == ["./parts/10.png"]
    assert sources(parts / "parts" / "b") == [f"{parts.as_posix()}/parts/b/1.jpg"]
    assert sources("./parts/*/*.jpg") == ["./parts/a/1.jpg", "./parts/b/1.jpg"]


def test_glob_is_recursive_and_relative_to_its_fixed_part(parts):
    assert sources("parts/**/*.jpg") == ["parts/a/1.jpg", "parts/b/1.jpg"]
    assert relatives("parts/**/*.jpg") == ["a/1.jpg", "b/1.jpg"]
    assert relatives("par*/a/*.jpg") == ["parts/a/1.jpg"]


def test_glob_leaves_masks_out_unless_it_names_them(parts):
    assert sources("parts/**/*.png") == ["parts/10.png"]
    assert sources("parts/ground_truth/**/*.png") == ["parts/ground_truth/crack/1.png"]
    assert sources("**/ground_truth/*.png") == ["parts/a/ground_truth/1.png"]


def test_glob_takes_other_suffixes_only_by_name_and_searches_matched_folders(parts):
    assert sources("parts/*") == sources("parts") == sources("parts/**")
    assert sources("parts/*.txt") == ["parts/notes.txt"]


def test_file_is_taken_as_given_even_when_missing_or_oddly_named(parts):
    assert sources("parts/notes.txt", "parts/gone.png") == ["parts/notes.txt", "parts/gone.png"]
    assert relatives("parts/notes.txt", "parts/gone.png") == ["notes.txt", "gone.png"]


def test_existing_file_with_brackets_is_no_glob(parts):
    (parts / "a[1].png").touch()
    assert sources("a[1].png") == ["a[1].png"]


def test_folder_inside_ground_truth_is_searched_when_it_is_the_input(parts):
    assert sources("parts/ground_truth") == ["parts/ground_truth/crack/1.png"]


@pytest.mark.parametrize("given", ["parts/empty", "parts/*.bmp", "nothing/**/*.png"])
def test_input_without_a_picture_is_refused_by_name(parts, given):
    (parts / "parts" / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no picture") as caught:
        list_images([given])
    assert given in str(caught.value)


def test_picture_named_twice_is_listed_once_where_it_came_first(parts):
    assert sources("parts/b/1.jpg", "parts", "./parts/10.png") == [
        "parts/b/1.jpg",
        "parts/2.PNG",
        "parts/10.png",
        "parts/a/1.jpg",
    ]


def test_single_string_is_one_input_and_not_its_letters(parts):
    assert [found.source for found in list_images("parts/a")] == ["parts/a/1.jpg"]


def test_two_inputs_never_share_an_output_name(parts):
    assert relatives("parts/a", "parts/b") == ["parts/a/1.jpg", "parts/b/1.jpg"]
    assert relatives("parts/a/1.jpg", "../" + parts.name + "/parts/b/1.jpg")[1] == f"{parts.name}/parts/b/1.jpg"


def test_output_names_that_collide_again_differ_and_stay_inside(parts):
    for name in ("x/1.png", "deep/x/1.png", "deep/y/1.PNG", "deep/x/x/1.png"):
        (parts / name).parent.mkdir(parents=True, exist_ok=True)
        (parts / name).touch()
    os.chdir(parts / "deep")
    found = list_images(["x", "../x", "y", "x/x/1.png"])  # x/1.png and ../x/1.png are x/1.png once tidied, too
    names = [item.relative.as_posix() for item in found]
    assert [item.source for item in found] == ["x/1.png", "x/x/1.png", "../x/1.png", "y/1.PNG"]
    assert len({name.casefold() for name in names}) == 4
    assert all(".." not in Path(name).parts and not Path(name).is_absolute() for name in names)


def test_output_name_of_a_collision_depends_only_on_its_own_source(parts):
    two = {found.source: found.relative for found in list_images(["parts/a", "parts/b"])}
    (parts / "parts" / "c").mkdir()
    (parts / "parts" / "c" / "1.jpg").touch()
    three = {found.source: found.relative for found in list_images(["parts/c", "parts/b", "parts/a"])}
    assert two == {source: three[source] for source in two}


def test_links_are_followed_and_a_circle_of_them_ends(parts):
    try:
        (parts / "parts" / "a" / "up").symlink_to(parts / "parts", target_is_directory=True)
        (parts / "linked").symlink_to(parts / "parts" / "b", target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no symbolic links")
    assert sources("linked") == ["linked/1.jpg"]
    assert len(sources("parts")) == 4


def test_found_path_reads_the_picture(parts):
    pixels = np.arange(60, dtype=np.uint8).reshape(5, 4, 3)
    Image.fromarray(pixels).save(parts / "parts" / "real.png")
    found = next(item for item in list_images(["parts"]) if item.relative.name == "real.png")
    assert np.array_equal(read(found.path), pixels)


def test_link_to_a_folder_above_is_not_followed_and_one_to_elsewhere_is_said(parts, caplog):
    (parts / "elsewhere").mkdir()
    (parts / "elsewhere" / "9.png").touch()
    (parts / "parts" / "up").symlink_to(parts, target_is_directory=True)
    assert len(sources("parts")) == 4 and not caplog.text
    (parts / "parts" / "out").symlink_to(parts / "elsewhere", target_is_directory=True)
    assert "parts/out/9.png" in sources("parts")
    assert "links lead out of it" in caplog.text and "parts/out" in caplog.text


def left_out(*inputs: str) -> str | None:
    counts: Counter[str] = Counter()
    list_images(inputs, counts)
    return left_out_line(counts)


def test_files_left_out_are_counted_by_suffix(parts):
    names = ["a.heic", "b.JXL", "c.jxl", "d.dcm", "e.mp4", "f.mpo", "g.ico", "README", "h.x\x1b[31m", "10.PNG"]
    for name in names:
        (parts / "parts" / "a" / name).touch()
    said = left_out("parts/a")
    assert (
        "7 files left out: .jxl 2, .dcm 1, " in said or "6 files left out: .jxl 2, .dcm 1, " in said
    )  # with pillow-heif
    assert ".mp4 1" in said and "without suffix 1" in said and "\x1b" not in said
    assert ".mpo" not in said and ".ico" not in said
    assert {"parts/a/f.mpo", "parts/a/g.ico", "parts/a/10.PNG"} <= set(sources("parts/a"))


def test_many_suffixes_are_summed_up():
    said = left_out_line({f".{letter}": 1 for letter in "abcdefghijklmnop"} | {".csv": 30})
    assert said.startswith("46 files left out: .csv 30, .a 1") and said.endswith("others 9")
    assert left_out_line({}) is None
    assert left_out_line({".txt": 1}) == "1 file left out: .txt 1"


def test_heic_that_cannot_be_read_is_left_out_with_the_package_that_reads_it():
    assert "pip install pillow-heif" in left_out_line({".heic": 3})


def test_folder_that_holds_only_other_files_is_refused_with_their_counts(parts):
    (parts / "parts" / "films").mkdir()
    for name in ("a.mp4", "b.mp4", "c.heic2"):
        (parts / "parts" / "films" / name).touch()
    with pytest.raises(FileNotFoundError, match=r"3 files left out: \.mp4 2, \.heic2 1"):
        list_images(["parts/films"])


def test_home_folder_may_be_written_as_a_tilde(parts, monkeypatch):
    monkeypatch.setenv("HOME", str(parts))
    assert len(sources("~/parts")) == len(sources("~/parts/**/*")) == 4
    assert relatives("~/parts/10.png") == ["10.png"]


def test_all_pages_are_listed_one_by_one_where_asked_for(parts):
    frames = [Image.new("L", (4, 4), shade) for shade in (10, 20, 30)]
    frames[0].save(parts / "parts" / "b" / "six.tif", save_all=True, append_images=frames[1:])
    Image.new("L", (4, 4)).save(parts / "parts" / "b" / "1.jpg")
    found = list_images(["parts/b", "parts/gone.png"], pages="all")
    pages = [f"parts/b/six.tif#{number}" for number in (1, 2, 3)]
    assert [one.source for one in found] == ["parts/b/1.jpg", *pages, "parts/gone.png"]
    assert [one.relative.name for one in found[1:4]] == ["six.tif#1", "six.tif#2", "six.tif#3"]
    assert [read(one.path)[0, 0, 0] for one in found[1:4]] == [10, 20, 30]
    assert sources("parts/b") == ["parts/b/1.jpg", "parts/b/six.tif"]
