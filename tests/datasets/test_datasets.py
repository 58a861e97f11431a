"""Every reader on a small tree that the test writes; and the door `load`."""

import importlib.machinery
import json
import logging
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vlad.datasets as sets
from vlad.datasets.samples import Sample, read_mask
from vlad.prompts import named_datasets

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def grow(root: Path, *files: str) -> Path:
    """Writes a tree: pictures 4 x 6, black, or with one white pixel where the name is that of a mask."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((4, 6), np.uint8)
        if any(word in file.lower() for word in ("mask", "truth", "label", "_gt", "segmentation")):
            pixels[1, 2] = 255
        Image.fromarray(pixels).save(path)
    return root


def rows(samples: list[Sample], root: Path) -> list[tuple[str, str | None, int, str, str, str]]:
    def below(path: Path | None) -> str | None:
        return path.relative_to(root).as_posix() if path else None

    return [(below(s.image), below(s.mask), s.label, s.category, s.defect, s.split) for s in samples]


MVTEC = (
    "nut/train/good/000.png",
    "nut/train/good/001.png",
    "nut/test/bent/000.png",
    "nut/test/good/000.png",
    "nut/ground_truth/bent/000_mask.png",
)
MVTEC_ROWS = [
    ("nut/train/good/000.png", None, 0, "nut", "good", "train"),
    ("nut/train/good/001.png", None, 0, "nut", "good", "train"),
    ("nut/test/bent/000.png", "nut/ground_truth/bent/000_mask.png", 1, "nut", "bent", "test"),
    ("nut/test/good/000.png", None, 0, "nut", "good", "test"),
]


# ---------------------------------------------------------------- the registry and its door


def test_the_module_answers_the_public_call():
    assert sets() == sets.datasets() == sorted(sets.DATASETS)


def test_every_reader_has_the_name_it_is_registered_under_and_a_docstring():
    for name, reader in sets.DATASETS.items():
        assert reader.__name__ == name and reader.__doc__


def test_tables_of_names_belong_to_readers_save_those_of_the_shared_pictures():
    assert set(named_datasets()) - set(sets.datasets()) <= {"aws_lookout", "crackforest"}


def test_importing_the_readers_does_not_import_torch():
    code = "import sys, vlad.datasets, vlad.datasets.samples; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_load_reads_name_and_root(tmp_path):
    grow(tmp_path, *MVTEC)
    assert rows(sets.load(f"mvtec_ad:{tmp_path}"), tmp_path) == MVTEC_ROWS


def test_load_takes_a_bare_folder_as_own_pictures(tmp_path):
    grow(tmp_path, *MVTEC)
    assert sets.load(tmp_path) == sets.load(str(tmp_path)) == sets.folder(tmp_path)


def test_names_that_people_use_lead_to_the_same_reader(tmp_path):
    grow(tmp_path, *MVTEC)
    meant = sets.load(f"mvtec_ad:{tmp_path}")
    assert meant and meant == sets.load(f"mvtec:{tmp_path}") == sets.load(f"MVTec-AD:{tmp_path}")
    assert set(sets.ALIASES.values()) <= set(sets.datasets()) and not set(sets.ALIASES) & set(sets.datasets())


def test_load_splits_at_the_first_colon_so_that_drive_letters_survive(monkeypatch):
    seen = []
    monkeypatch.setitem(sets.DATASETS, "folder", lambda root: seen.append(root) or [])
    sets.load(r"folder:C:\data\bolts")
    assert seen == [r"C:\data\bolts"]


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        ("mvtech_ad:x", ValueError, "unknown data set 'mvtech_ad'.*did you mean 'mvtec_ad'"),
        ("mvtec_ad", ValueError, "data set 'mvtec_ad' lacks its folder; write mvtec_ad:ROOT"),
        ("visa:", ValueError, "data set 'visa:' lacks its folder; write visa:ROOT"),
        ("nowhere", ValueError, "'nowhere' is neither a folder nor NAME:ROOT"),
        ("visa:nowhere", FileNotFoundError, "nowhere: no such folder"),
        ("csv:nowhere.csv", FileNotFoundError, r"nowhere\.csv: no such file"),
    ],
)
def test_load_says_what_is_wrong_with_a_spec(spec, kind, words):
    with pytest.raises(kind, match=words):
        sets.load(spec)


@pytest.mark.parametrize("name", sorted(set(sets.DATASETS) - {"csv"}))
def test_a_wrong_root_shows_what_was_expected_and_what_was_found(name, tmp_path):
    (tmp_path / "holiday").mkdir()
    (tmp_path / "beach.txt").write_text("sun")
    with pytest.raises(ValueError, match=rf"is not laid out as {name}: expected .+; found beach\.txt, holiday/$"):
        sets.DATASETS[name](tmp_path)


@pytest.mark.parametrize("name", sorted(set(sets.DATASETS) - {"csv", "meta"}))
def test_a_root_that_is_a_file_is_refused(name, tmp_path):
    (tmp_path / "archive.tar").write_text("")
    with pytest.raises(FileNotFoundError, match=r"archive\.tar: is a file; give the folder"):
        sets.DATASETS[name](tmp_path / "archive.tar")


def test_an_empty_root_is_called_empty(tmp_path):
    with pytest.raises(ValueError, match="found an empty folder"):
        sets.mvtec_ad(tmp_path)


# ---------------------------------------------------------------- the MVTec layout


@pytest.mark.parametrize("name", ["mvtec_ad", "mvtec_loco", "visa", "btad", "mpdd", "dtd_synthetic", "ksdd", "folder"])
def test_the_mvtec_layout_is_read_by_every_reader_of_its_family(name, tmp_path):
    grow(tmp_path, *MVTEC)
    samples = sets.load(f"{name}:{tmp_path}")
    assert rows(samples, tmp_path) == MVTEC_ROWS
    assert {s.dataset for s in samples} == {tmp_path.name if name == "folder" else name}


def test_the_root_may_be_one_category(tmp_path):
    grow(tmp_path, *MVTEC)
    assert sets.mvtec_ad(tmp_path / "nut") == sets.mvtec_ad(tmp_path)


def test_files_beside_the_categories_and_hidden_ones_are_ignored(tmp_path):
    grow(tmp_path, *MVTEC, "nut/test/bent/._000.png", "overview.png", ".cache/train/good/0.png")
    (tmp_path / "nut" / "test" / "good" / "Thumbs.db").write_text("")
    assert rows(sets.mvtec_ad(tmp_path), tmp_path) == MVTEC_ROWS


def test_masks_are_paired_by_name_not_by_position(tmp_path, caplog):
    grow(tmp_path, *MVTEC, "nut/test/bent/001.jpg", "nut/test/bent/002.png", "nut/ground_truth/bent/002_mask.png")
    with caplog.at_level(logging.WARNING):
        masks = {s.image.stem: s.mask and s.mask.name for s in sets.mvtec_ad(tmp_path) if s.label}
    assert masks == {"000": "000_mask.png", "001": None, "002": "002_mask.png"}
    assert "1 of 3 anomalous pictures have no mask" in caplog.text and "001.jpg" in caplog.text


def test_masks_may_have_the_plain_name_and_another_suffix(tmp_path):
    grow(tmp_path, "01/train/ok/0.bmp", "01/test/ko/7.bmp", "01/test/ok/1.bmp", "01/ground_truth/ko/7.png")
    assert rows(sets.btad(tmp_path), tmp_path) == [
        ("01/train/ok/0.bmp", None, 0, "01", "good", "train"),
        ("01/test/ko/7.bmp", "01/ground_truth/ko/7.png", 1, "01", "ko", "test"),
        ("01/test/ok/1.bmp", None, 0, "01", "good", "test"),
    ]


def test_masks_belong_to_the_test_pictures_of_their_name(tmp_path):
    grow(tmp_path, *MVTEC, "nut/train/bent/000.png")
    assert [(s.split, s.label, s.mask is None) for s in sets.mvtec_ad(tmp_path) if s.label] == [
        ("train", 1, True),
        ("test", 1, False),
    ]


def test_masks_without_any_partner_are_refused(tmp_path):
    grow(tmp_path, "nut/test/bent/000.png", "nut/ground_truth/bent/defect_a.png")
    with pytest.raises(
        ValueError, match=r"no mask is named like a picture; expected names as 000_mask\.png, found defect"
    ):
        sets.mvtec_ad(tmp_path)


def test_two_pictures_that_differ_in_suffix_only_are_refused(tmp_path):
    grow(tmp_path, *MVTEC, "nut/test/bent/000.jpg")
    with pytest.raises(ValueError, match="differ only in their suffix"):
        sets.mvtec_ad(tmp_path)


def test_a_category_without_masks_has_labels_only(tmp_path):
    grow(tmp_path, *(file for file in MVTEC if "truth" not in file))
    samples = sets.mvtec_ad(tmp_path)
    assert [s.mask for s in samples] == [None] * 4 and [s.label for s in samples] == [0, 0, 1, 0]


def test_the_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    grow(tmp_path, *MVTEC, "ant/test/good/b.png", "ant/test/good/a.png")
    expected = sets.folder(tmp_path)
    assert [s.category for s in expected] == ["ant"] * 2 + ["nut"] * 4

    class Backwards(list):
        __enter__, __exit__ = list.copy, lambda *_: None

    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda place: Backwards(sorted(real(place), key=lambda e: e.name, reverse=True)))
    assert sets.folder(tmp_path) == expected


def test_loco_masks_are_folders_and_validation_is_a_split(tmp_path):
    kind = "logical_anomalies"
    grow(tmp_path, "bag/train/good/000.png", "bag/validation/good/000.png", f"bag/test/{kind}/000.png")
    grow(tmp_path, f"bag/ground_truth/{kind}/000/000.png", f"bag/ground_truth/{kind}/000/001.png")
    assert rows(sets.mvtec_loco(tmp_path), tmp_path)[1:] == [
        ("bag/validation/good/000.png", None, 0, "bag", "good", "validation"),
        (f"bag/test/{kind}/000.png", f"bag/ground_truth/{kind}/000", 1, "bag", kind, "test"),
    ]
    assert read_mask(sets.mvtec_loco(tmp_path)[-1]).sum() == 1


def test_mvtec_ad_2_reads_the_public_test_and_leaves_the_private_one(tmp_path):
    mask = "can/test_public/ground_truth/bad/003_regular_mask.png"
    grow(
        tmp_path,
        "can/train/good/000_regular.png",
        "can/validation/good/001_regular.png",
        "can/test_public/good/002_overexposed.png",
        "can/test_public/bad/003_regular.png",
        mask,
        "can/test_private/004_regular.png",
        "can/test_private_mixed/004_mixed.png",
    )
    assert rows(sets.mvtec_ad_2(tmp_path), tmp_path) == [
        ("can/train/good/000_regular.png", None, 0, "can", "good", "train"),
        ("can/validation/good/001_regular.png", None, 0, "can", "good", "validation"),
        ("can/test_public/good/002_overexposed.png", None, 0, "can", "good", "test"),
        ("can/test_public/bad/003_regular.png", mask, 1, "can", "bad", "test"),
    ]


# ---------------------------------------------------------------- industrial sets with layouts of their own


def visa_tree(root: Path, *lines: str) -> Path:
    grow(root, "pcb1/Data/Images/Normal/0.JPG", "pcb1/Data/Images/Normal/1.JPG", "pcb1/Data/Images/Anomaly/0.JPG")
    grow(root, "pcb1/Data/Masks/Anomaly/0.png")
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(["object,split,label,image,mask", *lines]) + "\n")
    return root


VISA = (
    "pcb1,train,normal,pcb1/Data/Images/Normal/0.JPG,",
    "pcb1,test,normal,pcb1/Data/Images/Normal/1.JPG,",
    "pcb1,test,anomaly,pcb1/Data/Images/Anomaly/0.JPG,pcb1/Data/Masks/Anomaly/0.png",
)


def test_visa_is_read_by_its_table(tmp_path):
    samples = sets.visa(visa_tree(tmp_path, *VISA))
    assert rows(samples, tmp_path) == [
        ("pcb1/Data/Images/Normal/0.JPG", None, 0, "pcb1", "good", "train"),
        ("pcb1/Data/Images/Normal/1.JPG", None, 0, "pcb1", "good", "test"),
        ("pcb1/Data/Images/Anomaly/0.JPG", "pcb1/Data/Masks/Anomaly/0.png", 1, "pcb1", "anomaly", "test"),
    ]
    assert samples[0].name == "printed circuit board"


def test_visa_reorganised_lies_in_a_folder_1cls(tmp_path):
    grow(tmp_path / "1cls", "pcb1/test/bad/000.JPG", "pcb1/ground_truth/bad/000.png", "pcb1/train/good/0.JPG")
    assert [(s.label, s.split) for s in sets.visa(tmp_path)] == [(0, "train"), (1, "test")]


def test_a_source_that_is_listed_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"0\.JPG is listed twice, as pcb1/train and as pcb1/test; keep one"):
        sets.visa(visa_tree(tmp_path, *VISA, VISA[0].replace("train", "test").replace("Normal/", "../Images/Normal/")))


def test_a_listed_file_that_is_missing_is_an_error_with_its_name(tmp_path):
    visa_tree(tmp_path, *VISA)
    (tmp_path / "pcb1/Data/Masks/Anomaly/0.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 4 files are not there, the first is .*Masks.Anomaly.0\.png"):
        sets.visa(tmp_path)


def test_dagm_has_its_own_split_and_takes_label_files_for_masks(tmp_path):
    grow(tmp_path, "Class1/Train/0001.PNG", "Class1/Train/0002.PNG", "Class1/Train/Label/0002_label.PNG")
    grow(tmp_path, "Class1/Test/0003.PNG")
    assert rows(sets.dagm(tmp_path), tmp_path) == [
        ("Class1/Train/0001.PNG", None, 0, "Class1", "good", "train"),
        ("Class1/Train/0002.PNG", "Class1/Train/Label/0002_label.PNG", 1, "Class1", "defect", "train"),
        ("Class1/Test/0003.PNG", None, 0, "Class1", "good", "test"),
    ]


def test_ksdd_is_anomalous_where_the_mask_is_and_trains_on_80_percent(tmp_path):
    for part in range(12):
        grow(tmp_path, f"kos{part % 3:02d}/Part{part}.jpg", f"kos{part % 3:02d}/Part{part}_label.bmp")
        if part > 1:
            Image.new("L", (6, 4)).save(tmp_path / f"kos{part % 3:02d}/Part{part}_label.bmp")
    samples = sets.ksdd(tmp_path)
    assert Counter((s.label, s.split) for s in samples) == {(1, "test"): 2, (0, "train"): 8, (0, "test"): 2}
    assert {s.image.stem: s.mask.name for s in samples if s.label} == {
        "Part0": "Part0_label.bmp",
        "Part1": "Part1_label.bmp",
    }
    assert {s.mask for s in samples if not s.label} == {None}
    (tmp_path / "kos00/Part0_label.bmp").unlink()
    with pytest.raises(FileNotFoundError, match=r"Part0\.jpg: its mask Part0_label\.bmp is missing"):
        sets.ksdd(tmp_path)


def test_ksdd2_keeps_the_official_split_and_leaves_the_stray_copies(tmp_path):
    grow(tmp_path, "train/10300.png", "train/10300_GT.png", "train/10301.png", "train/10301_GT.png", "test/2.png")
    grow(tmp_path, "test/2_GT.png", "train/10301 (copy).png", "train/10301_GT (copy).png")
    Image.new("L", (6, 4)).save(tmp_path / "train/10301_GT.png")
    assert rows(sets.ksdd2(tmp_path), tmp_path) == [
        ("train/10300.png", "train/10300_GT.png", 1, "ksdd2", "defect", "train"),
        ("train/10301.png", None, 0, "ksdd2", "good", "train"),
        ("test/2.png", "test/2_GT.png", 1, "ksdd2", "defect", "test"),
    ]


def real_iad_tree(root: Path, size: str = "realiad_256", **entry: str | None) -> Path:
    good, bad = "OK/S0001/usb_0001_OK_C1_1.jpg", "NG/BX/S0001/usb_0001_NG_C{}_1.jpg"
    mask = bad.format(2).replace(".jpg", "_mask.png")
    grow(root / size / "usb", good, bad.format(1), bad.format(2), mask)
    train = [{"category": "usb", "anomaly_class": "OK", "image_path": good, "mask_path": None}]
    test = [
        {"category": "usb", "anomaly_class": "BX", "image_path": bad.format(1), "mask_path": None},
        {"category": "usb", "anomaly_class": "BX", "image_path": bad.format(2), "mask_path": mask, **entry},
    ]
    (root / "realiad_jsons").mkdir(exist_ok=True)
    table = {"meta": {"prefix": "usb/", "normal_class": "OK"}, "train": train, "test": test}
    for category in ("usb", "zipper"):
        (root / "realiad_jsons" / f"{category}.json").write_text(json.dumps(table))
    return root


def test_real_iad_calls_a_defect_that_a_view_does_not_show_normal(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        samples = sets.real_iad(real_iad_tree(tmp_path))
    assert [(s.label, s.defect, s.split) for s in samples] == [
        (0, "good", "train"),
        (0, "good", "test"),
        (1, "BX", "test"),
    ]
    assert samples[2].mask.name == "usb_0001_NG_C2_1_mask.png"
    assert [s.specimen for s in samples] == ["usb/OK/S0001", "usb/NG/BX/S0001", "usb/NG/BX/S0001"]
    assert "there are no pictures of zipper" in caplog.text


def test_real_iad_with_several_sizes_asks_for_one_of_them(tmp_path):
    real_iad_tree(real_iad_tree(tmp_path), "realiad_1024")
    with pytest.raises(ValueError, match="holds realiad_1024, realiad_256; give one of these folders"):
        sets.real_iad(tmp_path)
    assert {s.image.parts[-6] for s in sets.real_iad(tmp_path / "realiad_1024") if s.label} == {"realiad_1024"}


def test_real_iad_names_the_table_with_a_broken_entry(tmp_path):
    real_iad_tree(tmp_path)
    (tmp_path / "realiad_jsons" / "usb.json").write_text('{"train": [{"image_path": "a.jpg"}]}')
    with pytest.raises(ValueError, match=r"usb\.json: entry 0 of train lacks anomaly_class, mask_path"):
        sets.real_iad(tmp_path)
    (tmp_path / "realiad_jsons" / "usb.json").write_text("{")
    with pytest.raises(ValueError, match=r"usb\.json: not valid JSON"):
        sets.real_iad(tmp_path)


def test_magnetic_tiles_are_split_by_hash_and_paired_by_stem(tmp_path):
    free = [f"MT_Free/Imgs/exp{n}.{suffix}" for n in range(10) for suffix in ("jpg", "png")]
    grow(tmp_path, *free, "MT_Crack/Imgs/b.jpg", "MT_Crack/Imgs/b.png", "MT_Crack/Imgs/a.jpg")
    samples = sets.mtd(tmp_path)
    assert Counter((s.defect, s.split) for s in samples) == {
        ("good", "train"): 8,
        ("good", "test"): 2,
        ("crack", "test"): 2,
    }
    assert [(s.image.name, s.mask and s.mask.name) for s in samples if s.label] == [("a.jpg", None), ("b.jpg", "b.png")]


def test_the_split_by_hash_is_the_same_everywhere(tmp_path):
    def train(root: Path) -> list[str]:
        grow(root, *(f"MT_Free/Imgs/exp{n}.jpg" for n in range(10)))
        return [s.image.stem for s in sets.mtd(root) if s.split == "test"]

    assert train(tmp_path / "here") == train(tmp_path / "there") == ["exp5", "exp8"]


def elpv_tree(root: Path) -> Path:
    lines = [f"images/cell{n:04d}.png  {level}  {'mono' if n < 8 else 'poly'}" for n, level in enumerate(ELPV)]
    grow(root, *(line.split()[0] for line in lines))
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


ELPV = [0.0] * 4 + [1.0, 0.3333333333333333, 0.6666666666666666, 1.0] + [0.0] * 4


def test_elpv_drops_the_unsure_cells_unless_asked(tmp_path):
    samples = sets.elpv(elpv_tree(tmp_path))
    assert Counter((s.category, s.defect) for s in samples) == {
        ("mono", "good"): 4,
        ("mono", "defective"): 2,
        ("poly", "good"): 4,
    }
    assert Counter(s.split for s in samples if not s.label) == {"train": 6, "test": 2}
    levels = [s.defect for s in sets.elpv(tmp_path, all_levels=True) if s.label]
    assert levels == ["defective", "possibly_defective", "probably_defective", "defective"]


def test_elpv_names_the_line_that_it_cannot_read(tmp_path):
    (elpv_tree(tmp_path) / "labels.csv").write_text("images/cell0000.png 0.0 mono\nimages/cell0001.png 0.5 mono\n")
    with pytest.raises(ValueError, match=r"labels\.csv, line 2: expected path, probability and mono or poly"):
        sets.elpv(tmp_path)


def textile_tree(root: Path) -> Path:
    return grow(root, *(f"nominal/t{n}.jpg" for n in range(5)), "local/t0.jpg", "global/t0.jpg")


def test_textiles_have_no_masks_and_train_on_80_percent_of_the_nominal_ones(tmp_path):
    samples = sets.textile(textile_tree(tmp_path))
    assert Counter((s.defect, s.split) for s in samples) == {
        ("good", "train"): 4,
        ("good", "test"): 1,
        ("local", "test"): 1,
        ("global", "test"): 1,
    }
    assert {s.mask for s in samples} == {None}


def test_packaged_sets_are_found_where_they_are_installed(tmp_path, monkeypatch):
    elpv_tree(tmp_path / "elpv_dataset" / "data")
    textile_tree(tmp_path / "conformal_clip_data" / "data" / "textile_images" / "simulated")
    for package in ("elpv_dataset", "conformal_clip_data"):
        (tmp_path / package / "__init__.py").write_text("raise ImportError('data needs no import')")
    monkeypatch.syspath_prepend(tmp_path)
    assert len(sets.load("elpv")) == 10 and len(sets.load("textile")) == 7
    assert sets.load("elpv:") == sets.load(f"elpv:{tmp_path}")


@pytest.mark.parametrize(("name", "package"), [("elpv", "elpv-dataset"), ("textile", "conformal-clip-data")])
def test_packaged_sets_that_are_not_installed_name_the_extra(name, package, monkeypatch):
    monkeypatch.setattr(importlib.machinery.PathFinder, "find_spec", lambda *_: None)
    with pytest.raises(FileNotFoundError, match=rf"{package}, which is not installed; .*vlad-ad\[data\].*{name}:ROOT"):
        sets.load(name)


@pytest.mark.parametrize(("name", "normal", "anomalous"), [("elpv", 1508, 715), ("textile", 1000, 1000)])
def test_packaged_sets_have_the_published_numbers(name, normal, anomalous):
    package = {"elpv": "elpv_dataset", "textile": "conformal_clip_data"}[name]
    pytest.importorskip(package, reason=f"{package} is not installed; pip install 'vlad-ad[data]'")
    assert Counter(s.label for s in sets.load(name)) == {0: normal, 1: anomalous}


# ---------------------------------------------------------------- medical sets


def test_headct_is_read_by_its_table(tmp_path):
    grow(tmp_path, "head_ct/head_ct/000.png", "head_ct/head_ct/001.png")
    (tmp_path / "labels.csv").write_text("id, hemorrhage\n0, 1\n1, 0\n")
    assert rows(sets.head_ct(tmp_path), tmp_path) == [
        ("head_ct/head_ct/000.png", None, 1, "brain", "hemorrhage", "test"),
        ("head_ct/head_ct/001.png", None, 0, "brain", "good", "test"),
    ]
    (tmp_path / "labels.csv").write_text("id,hemorrhage\nx,1\n")
    with pytest.raises(ValueError, match=r"labels\.csv: expected rows such as 12,0"):
        sets.head_ct(tmp_path)


@pytest.mark.parametrize("name", ["head_ct", "br35h", "brain_mri"])
def test_folders_no_and_yes_are_a_test_set(name, tmp_path):
    grow(tmp_path, "no/1.png", "yes/1.png", "pred/2.png")
    assert rows(sets.DATASETS[name](tmp_path), tmp_path) == [
        ("no/1.png", None, 0, "brain", "good", "test"),
        ("yes/1.png", None, 1, "brain", "yes", "test"),
    ]
    (tmp_path / "no/1.png").unlink()
    with pytest.raises(ValueError, match="expected pictures in no; found"):
        sets.DATASETS[name](tmp_path)


def test_brain_mri_reads_the_pictures_that_its_archive_holds_twice_once(tmp_path):
    grow(tmp_path, *(f"{place}{kind}/1.jpg" for place in ("", "brain_tumor_dataset/") for kind in ("no", "yes")))
    assert [s.image.relative_to(tmp_path).parts[0] for s in sets.brain_mri(tmp_path)] == ["brain_tumor_dataset"] * 2


def test_covid19_has_several_kinds_and_leaves_the_masks_of_lungs(tmp_path):
    grow(tmp_path, "COVID/images/1.png", "COVID/masks/1.png", "Normal/images/1.png", "Lung_Opacity/images/1.png")
    assert [(s.defect, s.label, s.mask) for s in sets.covid19(tmp_path)] == [
        ("COVID", 1, None),
        ("Lung_Opacity", 1, None),
        ("good", 0, None),
    ]


@pytest.mark.parametrize(
    ("name", "image", "mask", "category"),
    [
        ("isic", "ISBI2016_ISIC_Part1_Test_Data/I_3.jpg", "{isic}/I_3_Segmentation.png", "skin"),
        ("isic", "skin/test/bad/I_3.jpg", "skin/{isic}/I_3_Segmentation.png", "skin"),
        ("isic", "images/I_3.jpg", "masks/I_3.png", "skin"),
        ("cvc_colondb", "images/1.png", "masks/1.png", "colon"),
        ("cvc_clinicdb", "images/1.png", "masks/1.png", "colon"),
        ("cvc_clinicdb", "PNG/Original/1.png", "PNG/Ground Truth/1.png", "colon"),
        ("cvc_300", "images/1.png", "masks/1.png", "colon"),
        ("kvasir", "images/cju0.jpg", "masks/cju0.jpg", "colon"),
        ("endo", "images/1.jpg", "masks/1.jpg", "colon"),
        ("tn3k", "test-image/0000.jpg", "test-mask/0000.jpg", "thyroid"),
    ],
)
def test_sets_of_lesions_hold_anomalous_pictures_only(name, image, mask, category, tmp_path):
    mask = mask.format(isic="ISBI2016_ISIC_Part1_Test_GroundTruth")
    grow(tmp_path, image, mask)
    samples = sets.DATASETS[name](tmp_path)
    assert rows(samples, tmp_path) == [(image, mask, 1, category, "lesion", "test")]


@pytest.mark.parametrize("name", ["head_ct", "br35h", "isic", "cvc_colondb", "tn3k"])
def test_reorganised_medical_sets_keep_the_category_of_the_original(name, tmp_path):
    grow(tmp_path, *MVTEC)
    samples = sets.DATASETS[name](tmp_path)
    assert {s.category for s in samples} <= {"brain", "skin", "colon", "thyroid"} and samples[2].mask


def test_bmad_has_masks_in_some_of_its_sets(tmp_path):
    brain = [f"Brain/{split}/Ungood/{kind}/7.png" for split in ("valid", "test") for kind in ("img", "label")]
    grow(tmp_path, "Brain/train/good/1.png", "Brain/test/good/img/2.png", "Brain/test/good/label/2.png", *brain)
    grow(tmp_path, "Chest/train/good/1.png", "Chest/test/good/2.png", "Chest/test/Ungood/2.png")
    assert rows(sets.bmad(tmp_path), tmp_path) == [
        ("Brain/train/good/1.png", None, 0, "Brain", "good", "train"),
        ("Brain/valid/Ungood/img/7.png", "Brain/valid/Ungood/label/7.png", 1, "Brain", "Ungood", "validation"),
        ("Brain/test/Ungood/img/7.png", "Brain/test/Ungood/label/7.png", 1, "Brain", "Ungood", "test"),
        ("Brain/test/good/img/2.png", None, 0, "Brain", "good", "test"),
        ("Chest/train/good/1.png", None, 0, "Chest", "good", "train"),
        ("Chest/test/Ungood/2.png", None, 1, "Chest", "Ungood", "test"),
        ("Chest/test/good/2.png", None, 0, "Chest", "good", "test"),
    ]


# ---------------------------------------------------------------- own pictures


def test_a_folder_holds_categories_at_most_two_levels_below(tmp_path):
    grow(tmp_path, "a/test/good/1.png", "b/c/train/good/1.png", "d/e/f/train/good/1.png")
    assert [(s.dataset, s.category) for s in sets.folder(tmp_path)] == [(tmp_path.name, "a"), ("b", "c")]


def test_categories_of_one_name_are_told_apart_by_their_path(tmp_path):
    grow(tmp_path, "x/metal_nut/test/good/1.png", "y/metal_nut/test/good/1.png", "y/pin/test/good/1.png")
    samples = sets.folder(tmp_path)
    assert [s.category for s in samples] == ["x/metal_nut", "y/metal_nut", "pin"]
    assert samples[0].name == "metal nut"


def test_the_folder_around_a_category_is_its_data_set(tmp_path):
    grow(tmp_path, "visa/pcb1/test/good/1.png")
    for root in (tmp_path, tmp_path / "visa", tmp_path / "visa" / "pcb1"):
        (sample,) = sets.folder(root)
        assert (sample.dataset, sample.category, sample.name) == ("visa", "pcb1", "printed circuit board")


def test_pictures_directly_in_train_are_normal_and_in_test_unlabelled(tmp_path):
    grow(tmp_path, "nut/train/1.png", "nut/test/Normal/2.png")
    assert [(s.label, s.split) for s in sets.folder(tmp_path)] == [(0, "train"), (0, "test")]
    grow(tmp_path, "nut/test/3.png")
    with pytest.raises(ValueError, match=r"3\.png has no label; put pictures into .*good or .*<defect>"):
        sets.folder(tmp_path)


def test_a_category_without_pictures_is_left_out_with_a_warning(tmp_path, caplog):
    grow(tmp_path, *MVTEC)
    (tmp_path / "runs" / "train").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        assert {s.category for s in sets.folder(tmp_path)} == {"nut"}
    assert "runs: left out, there is no picture in train or test" in caplog.text


def test_a_flat_folder_is_one_category_without_train(tmp_path):
    grow(tmp_path / "nut", "OK/1.png", "bent/1.png", "ground_truth/bent/1_mask.png")
    assert rows(sets.folder(tmp_path / "nut"), tmp_path / "nut") == [
        ("OK/1.png", None, 0, "nut", "good", "test"),
        ("bent/1.png", "ground_truth/bent/1_mask.png", 1, "nut", "bent", "test"),
    ]


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return path


def test_csv_takes_paths_relative_to_its_folder(tmp_path):
    grow(tmp_path, "a.png", "b.png", "c.png", "b_mask.png")
    file = write(
        tmp_path / "line3.csv",
        "image,label,mask,category,defect,split,name,specimen",
        "a.png,0,,pin,,train,steel pin,7",
        "b.png, Anomalous ,b_mask.png,pin,bent,,,",
        f"{tmp_path / 'c.png'},normal,,,,,,",
    )
    samples = sets.load(f"csv:{file}")
    assert rows(samples, tmp_path) == [
        ("a.png", None, 0, "pin", "good", "train"),
        ("b.png", "b_mask.png", 1, "pin", "bent", "test"),
        ("c.png", None, 0, "line3", "good", "test"),
    ]
    assert [(s.name, s.specimen) for s in samples] == [("steel pin", "7"), ("pin", None), ("line3", None)]


@pytest.mark.parametrize(
    ("lines", "kind", "words"),
    [
        (["picture,label", "a.png,0"], ValueError, "the column image is missing; found picture, label"),
        (["image,label", "a.png,fine"], ValueError, "line 2: image is 'a.png' and label 'fine'; expected"),
        (["image,label,split", "a.png,0,dev"], ValueError, "line 2: .*split is 'dev'"),
        (["image,label", "a.png,0", "./a.png,1"], ValueError, "listed twice"),
        (["image,label", "gone.png,0"], FileNotFoundError, r"1 of 1 files are not there, the first is .*gone\.png"),
        (["image,label"], ValueError, "it lists no picture"),
    ],
)
def test_csv_says_what_is_wrong_and_where(lines, kind, words, tmp_path):
    grow(tmp_path, "a.png")
    with pytest.raises(kind, match=words):
        sets.csv(write(tmp_path / "list.csv", *lines))


def test_csv_warns_of_a_column_that_it_leaves_out(tmp_path, caplog):
    grow(tmp_path, "a.png")
    with caplog.at_level(logging.WARNING):
        sets.csv(write(tmp_path / "list.csv", "image,label,maks", "a.png,1,m.png"))
    assert "columns left out: maks" in caplog.text and "did you mean 'mask'" in caplog.text


def meta_tree(root: Path, **change: object) -> Path:
    grow(root, "nut/train/good/0.png", "nut/test/bent/0.png", "nut/ground_truth/bent/0_mask.png")
    good = {"img_path": "nut/train/good/0.png", "mask_path": "", "cls_name": "nut", "specie_name": "good", "anomaly": 0}
    bad = {"img_path": "nut/test/bent/0.png", "mask_path": "nut/ground_truth/bent/0_mask.png", "specie_name": "bent"}
    index = {"Train": {"nut": [good]}, "test": {"nut": [{**bad, "cls_name": "nut", "anomaly": 1, **change}]}}
    (root / "meta.json").write_text(json.dumps(index))
    return root


def test_an_index_of_anomalyclip_is_read_from_its_folder_or_file(tmp_path):
    samples = sets.meta(meta_tree(tmp_path))
    assert rows(samples, tmp_path) == [
        ("nut/train/good/0.png", None, 0, "nut", "good", "train"),
        ("nut/test/bent/0.png", "nut/ground_truth/bent/0_mask.png", 1, "nut", "bent", "test"),
    ]
    assert sets.load(f"meta:{tmp_path / 'meta.json'}") == samples
    assert sets.meta(meta_tree(tmp_path, specie_name=""))[1].defect == "anomaly"


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"anomaly": 3}, ValueError, "test, nut, entry 0: .*label is 3"),
        ({"mask_path": "gone.png"}, FileNotFoundError, "the first is .*gone.png"),
        ({"img_path": "nut/train/good/0.png"}, ValueError, "listed twice, as nut/train and as nut/test"),
    ],
)
def test_an_index_says_what_is_wrong_and_where(change, kind, words, tmp_path):
    with pytest.raises(kind, match=words):
        sets.meta(meta_tree(tmp_path, **change))


def test_an_index_of_another_shape_is_refused(tmp_path):
    for text in (
        "[]",
        '{"train": []}',
        '{"train": {"nut": [{}]}}',
        '{"dev": {"nut": [{"img_path": "a", "anomaly": 0}]}}',
        "{}",
    ):
        (tmp_path / "meta.json").write_text(text)
        with pytest.raises(ValueError, match=r"meta\.json"):
            sets.meta(tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is missing")
def test_the_shared_pictures_read_as_mvtec_style():
    samples = sets.folder(SHARED)
    assert len(samples) == 864
    assert {(s.dataset, s.category) for s in samples} == {
        ("aws_lookout", "cookie"),
        ("brain_mri", "brain"),
        ("crackforest", "road"),
        ("elpv", "solar_cell_mono"),
        ("elpv", "solar_cell_poly"),
        ("mtd", "magnetic_tile"),
        ("mvtec_ad", "screw"),
    }
    assert {s.name for s in samples if s.dataset == "crackforest"} == {"asphalt road"}
    marked = {s.dataset for s in samples if s.mask}
    assert marked == {"aws_lookout", "crackforest", "mtd", "mvtec_ad"}
    assert all(s.mask for s in samples if s.label and s.dataset in marked)


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is missing")
def test_each_shared_set_is_a_root_and_its_masks_fit():
    for place in sorted(path for path in SHARED.iterdir() if path.is_dir()):
        samples = sets.mvtec_ad(place)
        assert samples == [s for s in samples if s.image.is_file()]
        for sample in samples[-1:]:
            mask = read_mask(sample)
            assert mask is None or mask.any() == bool(sample.label)
