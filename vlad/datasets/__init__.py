"""Data sets: a reader each, `name(root) -> list[Sample]`; and own pictures, from folders or from a list.

`DATASETS` is the whole registry. Readers look at names and small tables only, in a fixed order; pictures and masks are
opened later, by who needs them.
"""

import csv as csv_files
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlad.callable_module import make_callable
from vlad.datasets.industrial import (
    btad,
    dagm,
    dtd_synthetic,
    elpv,
    ksdd,
    ksdd2,
    mpdd,
    mtd,
    mvtec_ad,
    mvtec_ad_2,
    mvtec_loco,
    real_iad,
    textile,
    visa,
)
from vlad.datasets.layouts import (
    Reader,
    Root,
    categories,
    checked,
    existing,
    folders,
    is_normal,
    labelled,
    mvtec_category,
    read_json,
    wrong_root,
)
from vlad.datasets.mask_files import is_mask_folder, mask_folder
from vlad.datasets.medical import (
    bmad,
    br35h,
    brain_mri,
    covid19,
    cvc_300,
    cvc_clinicdb,
    cvc_colondb,
    endo,
    head_ct,
    isic,
    kvasir,
    tn3k,
)
from vlad.datasets.samples import Sample
from vlad.forms import closest

logger = logging.getLogger(__name__)

_CSV_COLUMNS = ("image", "mask", "label", "category", "defect", "split", "name", "specimen")
_CSV_LABELS = {"0": 0, "normal": 0, "good": 0, "1": 1, "anomalous": 1, "anomaly": 1}


def folder(root: Root) -> list[Sample]:
    """Own pictures: every folder with `train` or `test` at most two levels below `root` is a category.

    In it `train/good`, `test/good`, `test/<defect>` and, where there are masks, `ground_truth/<defect>` as in MVTec AD;
    names that say the same ("normal", "no_defect", "masks") mean the same, and folders in these are searched whole.
    Masks may also lie loose in their folder, or beside the pictures (`000.png`, `000_mask.png`). A category is called
    by its folder, or by its path below `root` where several folders have its name; its data set by the folder above.
    A `root` with `good` and one folder for each defect is one category without `train`.
    """
    root = existing(root)
    samples = []
    paths = {place: place.resolve() for place in categories(root, depth=2)}
    count = Counter(path.name for path in paths.values())
    for place, path in paths.items():
        name = path.name if count[path.name] == 1 else place.relative_to(root).as_posix()
        samples += mvtec_category(place, path.parent.name, name)
    if not samples and any(is_normal(kind.name) for kind in folders(root)):
        path, masks = root.resolve(), mask_folder(folders(root))
        for kind in folders(root):
            if not is_mask_folder(kind):
                samples += labelled(kind, path.parent.name, path.name, "test", masks)
    if not samples:
        raise wrong_root(
            "folder", root, "<category>/{train,test}/good and <category>/test/<defect>, or good/ and <defect>/"
        )
    return samples


def csv(file: Root) -> list[Sample]:
    """Own pictures from a CSV file with the columns image and label, and more of the fields of `Sample` if wanted.

    Paths are relative to the file's folder. Label: 0, normal or good; 1, anomalous or anomaly. Left out or empty: no
    mask, split "test", the file's stem as category. Columns of other names are left out, with a warning.
    """
    path = _existing_file(file)
    with path.open(encoding="utf-8-sig", newline="") as opened:
        reader = csv_files.DictReader(opened)
        columns = list(reader.fieldnames or ())
        if missing := [column for column in ("image", "label") if column not in columns]:
            found = ", ".join(columns) or "an empty file"
            raise ValueError(f"{path}: the column {missing[0]} is missing; found {found}")
        if other := [column for column in columns if column not in _CSV_COLUMNS]:
            logger.warning("%s: columns left out: %s; %s", path, ", ".join(other), closest(other[0], _CSV_COLUMNS))
        samples = [_csv_sample(path, f"{path}, line {reader.line_num}", row) for row in reader]
    return checked(samples, path)


def _csv_sample(path: Path, where: str, row: Mapping[str, str | None]) -> Sample:
    cells = {key: (row.get(key) or "").strip() for key in _CSV_COLUMNS}
    label = _CSV_LABELS.get(cells["label"].lower())
    if label is None or not cells["image"]:
        known = f"image and label, one of {', '.join(_CSV_LABELS)}"
        raise ValueError(f"{where}: image is {cells['image']!r} and label {cells['label']!r}; expected {known}")
    try:
        return Sample(
            path.parent / cells["image"],
            path.parent / cells["mask"] if cells["mask"] else None,
            label,
            cells["category"] or path.stem,
            cells["defect"] or ("anomaly" if label else "good"),
            cells["split"] or "test",
            name=cells["name"],
            dataset=path.stem,
            specimen=cells["specimen"] or None,
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def meta(root: Root) -> list[Sample]:
    """The index `meta.json` that AnomalyCLIP and many after it write: {train|test: {class: [picture, ...]}}.

    A picture has img_path, mask_path, cls_name, specie_name and anomaly; paths are relative to the file's folder. The
    data set is called by that folder.
    """
    given = Path(root).expanduser()
    path = given if given.is_file() else existing(given) / "meta.json"
    if not path.is_file():
        raise wrong_root("meta", given, "meta.json")
    samples = []
    for where, split, category, entry in _meta_entries(path):
        try:
            samples.append(_meta_sample(path.parent, split, category, entry))
        except (KeyError, TypeError, ValueError) as error:
            expected = "expected img_path, mask_path, specie_name and anomaly (0 or 1)"
            raise ValueError(f"{where}: {error}; {expected}") from None
    return checked(samples, path)


def _meta_entries(path: Path) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Where it stands, split, category and content of each entry."""
    for split, classes in read_json(path).items():
        if not isinstance(classes, dict):
            raise ValueError(f"{path}: {split} is a {type(classes).__name__}; expected {{class: [picture, ...]}}")
        for category, entries in classes.items():
            for number, entry in enumerate(entries):
                yield f"{path}: {split}, {category}, entry {number}", split.lower(), category, dict(entry)


def _meta_sample(place: Path, split: str, category: str, entry: Mapping[str, Any]) -> Sample:
    mask = place / entry["mask_path"] if entry.get("mask_path") else None
    label = int(entry["anomaly"])
    defect = (entry.get("specie_name") or "anomaly") if label else "good"
    dataset = place.resolve().name
    return Sample(place / entry["img_path"], mask, label, category, defect, split, dataset=dataset)


def _existing_file(file: Root) -> Path:
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a CSV file with the columns image and label")
    return path


DATASETS: dict[str, Reader] = {
    "bmad": bmad,
    "br35h": br35h,
    "brain_mri": brain_mri,
    "btad": btad,
    "covid19": covid19,
    "csv": csv,
    "cvc_300": cvc_300,
    "cvc_clinicdb": cvc_clinicdb,
    "cvc_colondb": cvc_colondb,
    "dagm": dagm,
    "dtd_synthetic": dtd_synthetic,
    "elpv": elpv,
    "endo": endo,
    "folder": folder,
    "head_ct": head_ct,
    "isic": isic,
    "ksdd": ksdd,
    "ksdd2": ksdd2,
    "kvasir": kvasir,
    "meta": meta,
    "mpdd": mpdd,
    "mtd": mtd,
    "mvtec_ad": mvtec_ad,
    "mvtec_ad_2": mvtec_ad_2,
    "mvtec_loco": mvtec_loco,
    "real_iad": real_iad,
    "textile": textile,
    "tn3k": tn3k,
    "visa": visa,
}
ALIASES = {  # what people call them -> what they are called here
    "mvtec": "mvtec_ad",
    "mvtec2": "mvtec_ad_2",
    "mvtec_ad2": "mvtec_ad_2",
    "loco": "mvtec_loco",
    "realiad": "real_iad",
    "dtd": "dtd_synthetic",
    "headct": "head_ct",
    "brainmri": "brain_mri",
    "clinicdb": "cvc_clinicdb",
    "colondb": "cvc_colondb",
}
INSTALLABLE = ("elpv", "textile")  # without a root they are read from their package, `pip install 'vlad-ad[data]'`


def datasets() -> list[str]:
    """The names that may stand before the colon in NAME:ROOT."""
    return sorted(DATASETS)


def own_name(name: str) -> str:
    """A data set's own name, of what people call it, in letters of any case; what nobody calls one stays as it is."""
    low = name.casefold().replace("-", "_")
    found = ALIASES.get(low, low)
    return found if found in DATASETS else name


def load(spec: str | os.PathLike[str]) -> list[Sample]:
    """The samples of "NAME:ROOT"; a folder's path is read by `folder`, "elpv" or "textile" alone from its package.

    Raises:
        ValueError: no such name, a name without its root, or a root that holds something else.
        FileNotFoundError: the root does not exist, or the package is not installed.
    """
    text = os.fspath(spec)
    name, _, root = text.partition(":")
    name = own_name(name) if root else name
    if name in DATASETS and root:
        return DATASETS[name](root)
    if name in INSTALLABLE:
        return DATASETS[name]()
    if name in DATASETS:
        raise ValueError(f"data set '{text}' lacks its folder; write {name}:ROOT")
    if Path(text).expanduser().is_dir():  # also C:\pictures
        return folder(text)
    if os.path.isabs(text) or os.sep in name or not root:
        raise ValueError(f"'{text}' is neither a folder nor NAME:ROOT; {closest(name, datasets())}")
    raise ValueError(f"unknown data set '{name}' in '{text}'; {closest(name, datasets())}")


make_callable(datasets)
