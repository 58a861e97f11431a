"""The pictures behind files, folders and globs, and the files that were left out."""

import glob
import hashlib
import importlib.util
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from PIL import Image

from vlad.images import Reader
from vlad.images.sources import places

logger = logging.getLogger(__name__)

_SUFFIXES = (
    "apng avif avifs bmp dib gif ico icb j2c j2k jfif jp2 jpc jpe jpeg jpf jpg jpx mpo pbm pcx pfm pgm png pnm ppm tga "
    "tif tiff webp"
)
_HEIC = ("heic", "heif", "hif") if importlib.util.find_spec("pillow_heif") or "HEIF" in Image.OPEN else ()
SUFFIXES = frozenset(f".{name}" for name in (*_SUFFIXES.split(), *_HEIC))  # what a folder is searched for, in any case
MASK_FOLDER = "ground_truth"
SHOWN = 8  # suffixes that the line of left-out files names


@dataclass(frozen=True)
class Found:
    """One input picture."""

    source: str  # as the user would write it, "/" between folders
    path: Path
    relative: Path  # its place below the input folder; no other picture of the same list has it

    def exists(self) -> bool:
        """Whether there is something of this name, perhaps as a page of a file."""
        return any(os.path.exists(place) for place, _ in places(str(self.path)))


def list_images(
    inputs: Iterable[str | os.PathLike[str]], left_out: Counter[str] | None = None, pages: str = "first"
) -> list[Found]:
    """The pictures behind files, folders and globs, each once, in natural order ("2.png" before "10.png") per input.

    A file is taken as given, even a missing one (reading it gives the error). A folder is searched recursively for
    SUFFIXES. A glob may hold `**`; folders it matches are searched too. Hidden names are left out, and so are folders
    named `ground_truth` unless the pattern names them. Pictures with the same place below their inputs get the whole
    path for `relative`, and a digest of it if that is taken too: both depend on the own source only, so a resumed run
    with more inputs never takes a name that is in use. "~" is the home folder. Links to folders are followed, but not
    to one that holds the given folder.

    Args:
        inputs: files, folders, globs.
        left_out: gets the count of each suffix of the files in searched folders that are no pictures.
        pages: "all" lists each page of a file with several ("scan.tif#2").

    Raises:
        FileNotFoundError: a folder or glob without pictures.
    """
    found: dict[str, Found] = {}
    others: Counter[str] = Counter()
    for given in [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs:
        for item in _list_one(_at_home(os.fspath(given)), others):
            found.setdefault(os.path.abspath(item.path), item)
    if left_out is not None:
        left_out.update(others)
    listed = list(found.values())
    return unique([page for item in listed for page in _pages(item)] if pages == "all" else listed)


def left_out_line(left_out: Mapping[str, int]) -> str | None:
    """One sentence on the files that `list_images` did not take, with counts by suffix; None where there are none."""
    if not (total := sum(left_out.values())):
        return None
    common = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    said = [f"{suffix} {count}" for suffix, count in common[:SHOWN]]
    if rest := sum(count for _, count in common[SHOWN:]):
        said.append(f"others {rest}")
    heic = "; .heic needs a package: pip install pillow-heif" if {".heic", ".heif", ".hif"} & set(left_out) else ""
    return f"{total} file{'s' * (total > 1)} left out: {', '.join(said)}{heic}"


def _at_home(given: str) -> str:
    return given if os.path.lexists(given) else os.path.expanduser(given)


def _pages(item: Found) -> Iterator[Found]:
    names = list(Reader(pages="all").pictures([item.path]))
    for number, name in enumerate(names, 1):
        mark = f"#{number}" if len(names) > 1 else ""
        relative = item.relative.with_name(item.relative.name + mark)
        yield Found(item.source + mark, Path(name), relative)


def _list_one(given: str, left_out: Counter[str]) -> list[Found]:
    if os.path.isdir(given):
        inside = sorted(_walk(given, left_out), key=natural)
        if not inside:
            others = left_out_line(left_out)
            said = f" ({others})" if others else ""
            known = ", ".join(sorted(SUFFIXES))
            raise FileNotFoundError(f"folder {given} holds no picture{said}; known suffixes: {known}")
        return [_found(os.path.join(given, name), below=name) for name in inside]
    if os.path.lexists(given) or not any(mark in given for mark in "*?["):
        return [_found(given, below=os.path.basename(given))]
    return _list_glob(given, left_out)


def _list_glob(pattern: str, left_out: Counter[str]) -> list[Found]:
    parts = PurePath(pattern).parts
    fixed = next(index for index, part in enumerate(parts) if any(mark in part for mark in "*?["))
    wanted = SUFFIXES | {PurePath(pattern).suffix.lower()}  # "*.dat" asks for .dat
    matches: set[str] = set()
    for match in glob.iglob(pattern, recursive=True):
        if os.path.isdir(match):
            matches |= {os.path.join(match, name) for name in _walk(match, left_out)}
        elif PurePath(match).suffix.lower() in wanted:
            matches.add(match)
    if not any(MASK_FOLDER in part for part in parts[fixed:]):
        matches = {match for match in matches if MASK_FOLDER not in PurePath(match).parts[fixed:-1]}
    if not matches:
        raise FileNotFoundError(f"no picture matches {pattern}; quote it, and write ** to search folders below")
    ordered = sorted(matches, key=natural)
    return [_found(match, below=os.path.join(*PurePath(match).parts[fixed:])) for match in ordered]


def _walk(folder: str, left_out: Counter[str]) -> Iterator[str]:
    """Paths below `folder` of the pictures in it; links are followed, each real folder once."""
    home = os.path.realpath(folder)
    seen, outside = {home}, []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != MASK_FOLDER)
        real = {name: os.path.realpath(os.path.join(place, name)) for name in folders}
        folders[:] = [name for name in folders if real[name] not in seen and not _holds(real[name], home)]
        seen.update(real[name] for name in folders)
        outside += [os.path.join(place, name) for name in folders if not _holds(home, real[name])]
        for name in names:
            suffix = PurePath(name).suffix.lower()
            if suffix in SUFFIXES and not name.startswith("."):
                yield os.path.relpath(os.path.join(place, name), folder)
            elif not name.startswith("."):
                left_out[_plain(suffix)] += 1
    if outside:
        logger.warning("%s: %d links lead out of it and are followed, such as %s", folder, len(outside), outside[0])


def _holds(outer: str, inner: str) -> bool:
    return inner == outer or inner.startswith(outer.rstrip(os.sep) + os.sep)


def _plain(suffix: str) -> str:
    """A suffix fit for a message; what is no suffix but half a name counts as none."""
    return suffix if re.fullmatch(r"\.[a-z0-9_+-]{1,12}", suffix) else "without suffix" if not suffix else "odd suffix"


def natural(path: str) -> tuple[Any, ...]:
    """By what names are sorted: "2.png" before "10.png"."""
    pieces = re.split(r"(\d+)", path.casefold())
    return [int(piece) if index % 2 else piece for index, piece in enumerate(pieces)], path


def _found(source: str, below: str) -> Found:
    return Found(source.replace(os.sep, "/"), Path(source), inside(below))


def inside(path: str) -> Path:
    """`path` without root, drive, "." and "..": a place below any output folder."""
    pure = PurePath(path)
    return Path(*(part for part in pure.parts if part not in (pure.anchor, "..")))


def unique(found: list[Found]) -> list[Found]:
    """The pictures with a `relative` of its own for each."""
    for rename in (inside, _marked):
        count = Counter(str(item.relative).casefold() for item in found)  # some file systems ignore case
        for index, item in enumerate(found):
            if count[str(item.relative).casefold()] > 1:
                found[index] = replace(item, relative=rename(item.source))
    return found


def _marked(source: str) -> Path:
    digest = hashlib.sha256(source.encode(errors="surrogateescape")).hexdigest()[:8]
    return inside(source).with_stem(f"{PurePath(source).stem}-{digest}")
