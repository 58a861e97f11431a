"""Where masks lie: in folders of their own under several names, loose or by defect, or beside their pictures.

A file that is the mask of another picture is never a picture itself.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from vlad.images.listing import SUFFIXES

logger = logging.getLogger(__name__)

FOLDERS = ("ground_truth", "groundtruth", "gt", "mask", "masks", "segmentation", "segmentations", "annotations")
ENDINGS = ("_mask", "_gt", "_segmentation", "_seg", "_label")  # of a mask that lies beside its picture
_PLAIN = {re.sub("[^a-z]", "", name) for name in FOLDERS}


def is_mask_folder(place: Path) -> bool:
    """Whether a folder is called as people call their folders of masks."""
    return re.sub("[^a-z]", "", place.name.lower()) in _PLAIN


def mask_folder(inside: Iterable[Path]) -> Path | None:
    """The one of these folders that holds masks; None where there is none.

    Raises:
        ValueError: there are several.
    """
    found = [place for place in inside if is_mask_folder(place)]
    if len(found) > 1:
        names = " and ".join(place.name for place in found)
        raise ValueError(f"{found[0].parent}: {names} are both called like folders of masks; keep one of them")
    return found[0] if found else None


def apart(files: Sequence[Path]) -> tuple[list[Path], dict[Path, Path]]:
    """(the pictures, picture -> its mask) of files that lie together: `000.png` and `000_mask.png`."""
    named = {path.with_suffix(""): path for path in files}
    masks = {}
    for path in files:
        for ending in ENDINGS:
            partner = named.get(path.with_name(path.stem[: -len(ending)])) if len(path.stem) > len(ending) else None
            if path.stem.lower().endswith(ending) and partner:
                masks[partner] = path
    taken = set(masks.values())
    return [path for path in files if path not in taken], masks


def by_stem(paths: Iterable[Path], base: Path | None = None) -> dict[str, Path]:
    """Name without suffix (of a folder the whole name) -> path; two of the same are refused, one would be lost.

    Args:
        base: names are paths below it; None takes the last part alone.
    """
    index: dict[str, Path] = {}
    for path in paths:
        name = path.relative_to(base) if base else Path(path.name)
        stem = name.with_suffix("").as_posix() if path.suffix.lower() in SUFFIXES else name.as_posix()
        if stem in index:
            raise ValueError(f"{path} and {index[stem].name} differ only in their suffix; keep one of them")
        index[stem] = path
    return index


def pair_masks(images: list[Path], masks: list[Path], endings: Sequence[str] = ("_mask", "")) -> list[Path | None]:
    """For each picture the mask (file or folder) named like it, with one of `endings` before the suffix.

    Never by position: one missing file would shift all masks behind it. A warning counts the pictures without a mask.

    Raises:
        ValueError: there are masks, but none is named like a picture; or two files of one name.
    """
    return _paired(by_stem(images), by_stem(masks), endings)


def pair_below(images: list[Path], kind: Path, masks: Path) -> list[Path | None]:
    """As `pair_masks`, for pictures anywhere below the folder of a defect.

    Args:
        kind: that folder.
        masks: the folder of masks; those of the defect lie in the folder of its name in it, or in it at once.
    """
    own = masks / kind.name
    if own.is_dir():
        below = [path for path in sorted(own.rglob("*")) if path.is_dir() or path.suffix.lower() in SUFFIXES]
        return _paired(by_stem(images, kind), by_stem(below, own), ("_mask", "", *ENDINGS[1:]))
    loose = by_stem(path for path in sorted(masks.iterdir()) if path.is_file() and path.suffix.lower() in SUFFIXES)
    found = [next((loose[one.stem + end] for end in ("", *ENDINGS) if one.stem + end in loose), None) for one in images]
    if (lost := found.count(None)) == len(images) and loose:
        logger.warning("%s: no mask in it is named like a picture of %s, such as %s", masks, kind, images[0].name)
    elif lost:
        logger.warning("%d of %d pictures of %s have no mask in %s", lost, len(images), kind, masks)
    return found


def _paired(named: dict[str, Path], marked: dict[str, Path], endings: Sequence[str]) -> list[Path | None]:
    found = [next((marked[stem + end] for end in endings if stem + end in marked), None) for stem in named]
    lost = [image for image, mask in zip(named.values(), found, strict=True) if mask is None]
    if marked and lost and len(lost) == len(named):
        first = next(iter(marked.values()))
        wanted = f"{lost[0].stem}{endings[0]}.png"
        raise ValueError(
            f"{first.parent}: no mask is named like a picture; expected names as {wanted}, found {first.name}"
        )
    if lost:
        logger.warning("%d of %d anomalous pictures have no mask, the first is %s", len(lost), len(found), lost[0])
    return found
