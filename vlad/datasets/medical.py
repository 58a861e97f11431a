"""Readers of medical data sets: `name(root) -> list[Sample]`.

They are test sets: all pictures are "test", save in BMAD. Where pictures come with masks but without healthy ones, all
of them are anomalous. The copies that are reorganised as MVTec AD are read too, under the same category.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlad.datasets.layouts import (
    Root,
    categories,
    checked,
    existing,
    folders,
    is_normal,
    mvtec_like,
    pictures,
    wrong_root,
)
from vlad.datasets.mask_files import pair_masks
from vlad.datasets.samples import Sample

_POLYP_FOLDERS = (("images", "masks"), ("Original", "Ground Truth"), ("PNG/Original", "PNG/Ground Truth"))
_ISIC_TRUTH = "ISBI2016_ISIC_Part1_Test_GroundTruth"
_ISIC_FOLDERS = (("ISBI2016_ISIC_Part1_Test_Data", _ISIC_TRUTH), ("skin/test/*", f"skin/{_ISIC_TRUTH}"))


def head_ct(root: Root) -> list[Sample]:
    """HeadCT, haemorrhage: `labels.csv` (id, 0 or 1) with `head_ct/000.png`, or folders `no` and `yes`; no masks."""
    root = existing(root)
    table = root / "labels.csv"
    if not table.is_file():
        return _by_folder(
            "head_ct", root, "brain", {"no": 0, "yes": 1}, "labels.csv and head_ct/000.png, or no/ and yes/"
        )
    inner = [root / "head_ct" / "head_ct", root / "head_ct", root]
    place = next(place for place in inner if pictures(place) or place == root)
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row][1:]
    samples = []
    for row in rows:
        if len(row) != 2 or not row[0].isdecimal() or row[1] not in ("0", "1"):
            raise ValueError(f"{table}: expected rows such as 12,0 (id, then 0 normal or 1 anomalous), got {row}")
        defect = "hemorrhage" if row[1] == "1" else "good"
        image = place / f"{int(row[0]):03d}.png"
        samples.append(Sample(image, None, int(row[1]), "brain", defect, "test", dataset="head_ct"))
    return checked(samples, table)


def brain_mri(root: Root) -> list[Sample]:
    """BrainMRI, tumours: folders `no` and `yes`, in the root or in `brain_tumor_dataset`; no masks."""
    root = existing(root)
    # The archive holds the same pictures once more beside that folder.
    inner = root / "brain_tumor_dataset"
    return _by_folder("brain_mri", inner if inner.is_dir() else root, "brain", {"no": 0, "yes": 1})


def br35h(root: Root) -> list[Sample]:
    """Br35H, tumours: folders `no` and `yes`; no masks. The unlabelled folder `pred` is not read."""
    return _by_folder("br35h", existing(root), "brain", {"no": 0, "yes": 1})


def covid19(root: Root) -> list[Sample]:
    """COVID-19 Radiography: every folder but Normal is anomalous, as in AnomalyCLIP; its lung masks are not read."""
    root = existing(root)
    labels = {place.name: int(place.name.lower() != "normal") for place in folders(root)}
    if 0 not in labels.values():
        raise wrong_root("covid19", root, "Normal/images and COVID/images, Lung_Opacity/images, ...")
    return _by_folder("covid19", root, "chest", labels)


def isic(root: Root) -> list[Sample]:
    """ISIC 2016 skin lesions, test part: pictures and `<picture>_Segmentation.png`; all anomalous."""
    return _all_anomalous("isic", root, "skin", (*_ISIC_FOLDERS, ("images", "masks")))


def cvc_colondb(root: Root) -> list[Sample]:
    """CVC-ColonDB polyps: `images` and `masks`; all anomalous."""
    return _all_anomalous("cvc_colondb", root, "colon", _POLYP_FOLDERS)


def cvc_clinicdb(root: Root) -> list[Sample]:
    """CVC-ClinicDB polyps: `images` and `masks`, or `Original` and `Ground Truth`; all anomalous."""
    return _all_anomalous("cvc_clinicdb", root, "colon", _POLYP_FOLDERS)


def cvc_300(root: Root) -> list[Sample]:
    """CVC-300 polyps: `images` and `masks`; all anomalous."""
    return _all_anomalous("cvc_300", root, "colon", _POLYP_FOLDERS)


def kvasir(root: Root) -> list[Sample]:
    """Kvasir-SEG polyps: `images` and `masks` (JPEG); all anomalous."""
    return _all_anomalous("kvasir", root, "colon", _POLYP_FOLDERS)


def endo(root: Root) -> list[Sample]:
    """EndoTect 2020 polyps, test part: `images` and `masks`; all anomalous."""
    return _all_anomalous("endo", root, "colon", _POLYP_FOLDERS)


def tn3k(root: Root) -> list[Sample]:
    """TN3K thyroid nodules, test part: `test-image` and `test-mask`; all anomalous."""
    return _all_anomalous("tn3k", root, "thyroid", (("test-image", "test-mask"), ("images", "masks")))


def bmad(root: Root) -> list[Sample]:
    """BMAD: six sets with train, valid (as "validation") and test in `good` and `Ungood`; masks in three of them."""
    root = existing(root)
    samples = []
    for place in categories(root):
        for folder, split in (("train", "train"), ("valid", "validation"), ("test", "test")):
            for kind in folders(place / folder):
                samples += _bmad_folder(kind, place.resolve().name, split)
    if not samples:
        raise wrong_root(
            "bmad", root, "<set>/train/good, <set>/{valid,test}/{good,Ungood}, in these img and label or not"
        )
    return samples


def _bmad_folder(kind: Path, category: str, split: str) -> list[Sample]:
    images = pictures(kind / "img") or pictures(kind)
    label = int(not is_normal(kind.name))
    truth = [kind / inner for inner in ("label", "anomaly_mask") if label and (kind / inner).is_dir()]
    masks = pair_masks(images, pictures(truth[0]), ("", "_mask")) if truth else [None] * len(images)
    defect = kind.name if label else "good"
    return [
        Sample(image, mask, label, category, defect, split, dataset="bmad")
        for image, mask in zip(images, masks, strict=True)
    ]


def _by_folder(
    dataset: str, root: Path, category: str, labels: Mapping[str, int], expected: str = "no/ and yes/"
) -> list[Sample]:
    """Test samples of the folders named in `labels`; their pictures lie in the folder or in its `images`."""
    found = {kind: pictures(root / kind / "images") or pictures(root / kind) for kind in labels}
    if not any(found.values()):
        return mvtec_like(dataset, root, category, expected)
    if empty := [kind for kind, images in found.items() if not images]:
        raise wrong_root(dataset, root, f"pictures in {' and '.join(empty)}")
    return [
        Sample(image, None, label, category, kind if label else "good", "test", dataset=dataset)
        for kind, label in labels.items()
        for image in found[kind]
    ]


def _all_anomalous(dataset: str, root: Root, category: str, places: Sequence[tuple[str, str]]) -> list[Sample]:
    """Test samples of the first pair (folder of pictures, folder of masks) in `places` that is there."""
    root = existing(root)
    for shown, marked in places:
        images = [image for place in sorted(root.glob(shown)) for image in pictures(place)]
        if images and (root / marked).is_dir():
            masks = pair_masks(images, pictures(root / marked), ("", "_Segmentation", "_segmentation", "_mask"))
            return [
                Sample(image, mask, 1, category, "lesion", "test", dataset=dataset)
                for image, mask in zip(images, masks, strict=True)
            ]
    return mvtec_like(dataset, root, category, f"pictures in {places[0][0]} and their masks in {places[0][1]}")
