"""The seven subsets of real pictures behind eval/results, laid out from copies of their public sources that you have.

    python examples/real_subsets.py pictures --elpv elpv-dataset --mtd Magnetic-tile-defect-datasets ...

`examples/real_subsets.csv` says which file of which source becomes which picture; nothing is fetched. Each folder is a
copy of: aws-samples/amazon-lookout-for-vision (its computer-vision-defect-detection/cookie-dataset),
MohamedAliHabib/Brain-Tumor-Detection, cuilimeng/CrackForest-dataset, zae-bayern/elpv-dataset (or the package of that
name), abin24/Magnetic-tile-defect-datasets, all on GitHub, and MVTec AD. Look at the licence of each: most are for
non-commercial or research use, and none of the pictures ships with VLAD.

Pictures are scaled so that no side is longer than 512 px and written as JPEG of quality 92, like those of the results.
Pixels may differ a little from theirs (another version of Pillow): figures then move by rounding.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

SIDE, QUALITY = 512, 92
TABLE = Path(__file__).with_suffix(".csv")
SETS = ("aws_lookout", "brain_mri", "crackforest", "elpv", "mtd", "mvtec_ad")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder to lay the pictures out in")
    for name in SETS:
        parser.add_argument(f"--{name}", type=Path, metavar="COPY", help=f"your copy of the source of {name}")
    given = vars(parser.parse_args())
    copies = {name: given[name] for name in SETS if given[name] is not None}
    if not copies:
        parser.error("give at least one copy, such as --elpv FOLDER")
    for name, copy in copies.items():
        print(f"{name}: {lay_out(name, copy, given['out'])} pictures")


def lay_out(name: str, copy: Path, out: Path) -> int:
    """Writes the pictures and masks of one set; returns how many pictures. FileNotFoundError names what is missing."""
    lines = list(rows(name))
    files = [copy / part for line in lines for part in (line["source"], line["mask"]) if part]
    if lost := [file for file in files if not file.is_file()]:
        raise FileNotFoundError(f"{len(lost)} of {len(files)} files of {name} are not in your copy, such as {lost[0]}")
    for line in lines:
        box = tuple(map(int, line["crop"].split())) or None
        place = out / line["file"]
        save(prepared(Image.open(copy / line["source"]), box, Image.Resampling.LANCZOS), place, quality=QUALITY)
        if line["mask"]:
            marked = Image.fromarray(mask_of(name, copy / line["mask"]).astype(np.uint8) * 255)
            folder = out / name / place.relative_to(out / name).parts[0] / "ground_truth" / place.parent.name
            save(prepared(marked, box, Image.Resampling.NEAREST), folder / f"{place.stem}_mask.png")
    return len(lines)


def rows(name: str) -> Iterator[dict[str, str]]:
    """The lines of the table that belong to one set."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        yield from (line for line in csv.DictReader(file) if line["file"].startswith(f"{name}/"))


def prepared(picture: Image.Image, box: tuple[int, ...] | None, how: Image.Resampling) -> Image.Image:
    """Cut out where there is a box, 8-bit grey or RGB, no side longer than SIDE."""
    picture = picture if picture.mode == "L" else picture.convert("RGB")
    picture = picture.crop(box) if box else picture
    scale = min(1.0, SIDE / max(picture.size))
    return picture if scale == 1 else picture.resize(tuple(round(side * scale) for side in picture.size), how)


def mask_of(name: str, file: Path) -> np.ndarray:
    """bool [H, W]: what the source marks as the defect."""
    if name == "crackforest":  # label 2 is the crack
        from scipy.io import loadmat

        return loadmat(file)["groundTruth"][0, 0]["Segmentation"] == 2
    levels = np.asarray(Image.open(file).convert("RGB")).astype(int)
    if name == "aws_lookout":  # classes are colours; the crack is green
        return (levels[..., 1] > levels[..., 0]) & (levels[..., 1] > levels[..., 2])
    return levels.max(-1) > 127


def save(picture: Image.Image, place: Path, **how: int) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    picture.save(place, **how)


if __name__ == "__main__":
    main()
