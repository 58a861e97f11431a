"""`results.csv` of a scored folder, and the numbers that lie beside its lines."""

import csv
import json

import numpy as np
import pytest
import tifffile
from PIL import Image
from small_sets import brightness

from vlad.folder import LINES, score_folder
from vlad.folder.sheet import write_sheet


def rows_of(folder):
    with write_sheet(folder).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_lines(folder, *lines):
    base = {"verdict": "normal", "score": 0.25, "threshold": 0.5, "p_value": None, "regions": [], "error": None}
    (folder / LINES).write_text("".join(json.dumps({**base, **line}) + "\n" for line in lines))


def test_a_row_has_the_columns_of_the_contract_and_the_largest_region(tmp_path):
    small, large = {"box": [0, 0, 2, 2], "area": 4}, {"box": [5, 6, 9, 9], "area": 12}
    write_lines(
        tmp_path, {"source": "a, b.png", "regions": [small, large]}, {"source": "c", "score": None, "error": "x"}
    )
    header = write_sheet(tmp_path).read_text().splitlines()[0]
    assert header == "source,verdict,score,threshold,p_value,regions,x0,y0,x1,y1,area,error,notes"
    first, second = rows_of(tmp_path)
    assert first["source"] == "a, b.png" and float(first["score"]) == 0.25 and first["regions"] == "2"
    assert [first[key] for key in ("x0", "y0", "x1", "y1", "area")] == ["5", "6", "9", "9", "12"]
    assert second["error"] == "x" and second["score"] == "" and second["x0"] == ""


def test_what_a_reader_should_know_of_a_picture_stands_in_its_row(tmp_path):
    write_lines(tmp_path, {"source": "a.png", "notes": ["of one colour", "=1"]}, {"source": "b.png", "notes": ["=1+1"]})
    assert [row["notes"] for row in rows_of(tmp_path)] == ["of one colour; =1", "'=1+1"]


@pytest.mark.parametrize("name", ["=1+1.png", "+a.png", "-a.png", "@SUM(A1).png", "\ta.png"])
def test_a_name_that_a_spreadsheet_would_compute_is_text(name, tmp_path):
    write_lines(tmp_path, {"source": name})
    assert rows_of(tmp_path)[0]["source"] == "'" + name


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "in" / "a.png"
    path.parent.mkdir()
    array = np.zeros((64, 80, 3), np.uint8)
    array[16:40, 16:40] = 255
    Image.fromarray(array).save(path)
    return path


@pytest.mark.parametrize("kind", ["npy", "tiff"])
def test_maps_are_saved_as_the_numbers_of_the_prediction(kind, picture, small_encoder, tmp_path):
    detector, out = brightness(small_encoder), tmp_path / "out"
    score_folder(detector, [picture], out, save_maps=kind)
    line = json.loads((out / LINES).read_text())
    amap = np.load(out / line["map"]) if kind == "npy" else tifffile.imread(out / line["map"])
    assert amap.dtype == np.float32
    np.testing.assert_allclose(amap, detector.predict(picture).map, atol=1e-5)


def test_a_mask_is_where_the_map_reaches_its_threshold(picture, small_encoder, tmp_path):
    detector, out = brightness(small_encoder), tmp_path / "out"
    amap = detector.predict(picture).map
    detector.map_threshold = float(amap.min() + amap.max()) / 2
    score_folder(detector, [picture], out, masks=True, maps=False)
    line = json.loads((out / LINES).read_text())
    mask = np.asarray(Image.open(out / line["mask"]))
    assert mask.shape == (64, 80) and set(np.unique(mask)) == {0, 255}
    np.testing.assert_array_equal(mask == 255, detector.predict(picture).mask())


def test_another_format_and_maps_without_a_folder_are_refused(picture, small_encoder, tmp_path):
    detector = brightness(small_encoder)
    with pytest.raises(ValueError, match="npy or tiff"):
        score_folder(detector, [picture], tmp_path / "out", save_maps="exr")
    with pytest.raises(ValueError, match="folder"):
        score_folder(detector, [picture], masks=True)
