"""The script that lays the real subsets out from copies of their sources, on stand-ins with the sources' names."""

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from vlad.datasets import load

SCRIPT = Path(__file__).parents[1] / "examples" / "real_subsets.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("real_subsets", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stand_in(script, name, copy):
    """Small pictures, or large ones with a mark in the middle of their masks, under the names of the source."""
    for line in script.rows(name):
        for part in (line["source"], line["mask"]):
            file = copy / part
            if not part or file.exists():
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            marked = np.zeros((320, 480) if name == "crackforest" else (40, 600), np.uint8)
            marked[marked.shape[0] // 4 : -marked.shape[0] // 4, 100:400] = 1
            if part == line["source"]:
                Image.fromarray(marked * 200).save(file)
            elif file.suffix == ".mat":
                savemat(file, {"groundTruth": {"Segmentation": marked + 1}})
            else:
                colours = np.zeros((*marked.shape, 3), np.uint8)
                colours[marked == 1, 1] = 255
                Image.fromarray(colours).save(file)


@pytest.mark.parametrize("name", ["aws_lookout", "crackforest", "mvtec_ad"])
def test_pictures_and_masks_lie_where_the_reader_of_folders_finds_them(script, name, tmp_path):
    stand_in(script, name, tmp_path / "copy")
    assert script.lay_out(name, tmp_path / "copy", tmp_path / "out") == len(list(script.rows(name)))
    samples = load(f"folder:{tmp_path / 'out' / name}")
    assert Counter(one.label for one in samples)[1] == sum(bool(line["mask"]) for line in script.rows(name))
    assert all((one.mask is not None) == bool(one.label) for one in samples)
    marked = next(one for one in samples if one.label)
    picture, mask = Image.open(marked.image), np.asarray(Image.open(marked.mask))
    assert picture.size == mask.shape[::-1] == ((160, 160) if name == "crackforest" else (512, 34))
    assert set(np.unique(mask)) <= {0, 255} and mask.any()


def test_the_table_has_the_864_pictures_of_the_results_and_no_file_for_two(script):
    lines = [line for name in script.SETS for line in script.rows(name)]
    assert len(lines) == 864 == len({line["file"] for line in lines})
    assert len({(line["file"].split("/")[0], line["source"], line["crop"]) for line in lines}) == 864


def test_a_copy_that_lacks_files_is_refused_before_anything_is_written(script, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"304 of 304 files of elpv are not in your copy, such as .*cell"):
        script.lay_out("elpv", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_laid_out_again_the_cells_are_those_of_the_results_pixel_by_pixel(script, shared, tmp_path):
    package = pytest.importorskip("elpv_dataset", reason="the package of ELPV is not installed")
    script.lay_out("elpv", Path(package.__file__).parent / "data", tmp_path)
    for line in list(script.rows("elpv"))[::16]:
        mine, theirs = (np.asarray(Image.open(root / line["file"])) for root in (tmp_path, shared / "data"))
        assert np.array_equal(mine, theirs), line["file"]
