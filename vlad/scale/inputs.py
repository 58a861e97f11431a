"""What a run in shards may be given beside files, folders and globs: lists, tar files, and addresses of stores.

Such pictures are listed where they lie and brought here when their shard is scored, each whole or not at all.
"""

from __future__ import annotations

import csv
import io
import os
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from vlad import folder
from vlad.folder.lines import line_of, stamp
from vlad.images import ImageError
from vlad.images.listing import MASK_FOLDER, SUFFIXES, Found, inside, natural, unique
from vlad.records import Line
from vlad.scale.places import Place, address, column, held, read_at

LISTS, TAR = (".csv", ".parquet"), ".tar"
COLUMNS = ("path", "image", "source", "file", "filename", "uri", "url")
AT_ONCE = 8  # pictures that are fetched
READ = 64 * 2**20  # bytes of a tar file that are read in one piece
NOT_FETCHED = "could not be fetched"


@dataclass(frozen=True)
class Lying(Found):
    """A picture in a store or a tar file."""

    file: str  # path or address of the file that it is, or is in
    span: tuple[int, int] | None = None  # in a tar file: (first byte, bytes)
    known: tuple[int, int] | None = None  # (bytes, nanoseconds of the last change), where they were listed


def is_further(given: str | os.PathLike[str]) -> bool:
    """Whether only a run in shards takes it."""
    return address(given) is not None or os.fspath(given).lower().endswith((*LISTS, TAR))


def listed(inputs: Iterable[str | os.PathLike[str]], out: Place, pages: str, left_out: Counter[str]) -> list[Found]:
    """The pictures of `inputs`, each once, in order.

    A list is a CSV or Parquet file with one of COLUMNS; what is no address in it is a path from its own folder.

    Raises:
        FileNotFoundError: there is not one picture.
        ValueError: a list without such a column; a tar file that is compressed, damaged or cut short.
        OSError: a store is not reached.
    """
    given, here = [os.fspath(one) for one in inputs], Path(str(out)) if address(str(out)) is None else None
    if not any(map(is_further, given)):
        return folder.list_pictures(given, here, pages=pages, left_out=left_out)
    if pages == "all":
        raise ValueError("pages of files are listed of files here alone, not in lists, tar files and stores")
    found: dict[str, Found] = {}
    for one in given:
        for picture in _of(one, here, left_out):
            where = picture.source if isinstance(picture, Lying) else os.path.abspath(picture.path)
            found.setdefault(where, picture)
    return unique(list(found.values()))


def stamped(picture: Found) -> list[int] | None:
    """By what a run that goes on knows a picture again; None where nobody has looked."""
    if isinstance(picture, Lying):
        return None if picture.known is None else list(picture.known)
    return stamp(picture.path)


def _of(given: str, out: Path | None, left_out: Counter[str]) -> list[Found]:
    named = address(given)
    if given.lower().endswith(TAR):
        found = _members(named or given)
    elif given.lower().endswith(LISTS):
        found = _entries(named or given)
    elif named is None:
        return folder.list_pictures([given], out, left_out=left_out)
    else:
        found = _stored(named.rstrip("/"), left_out)
    if not found:
        raise FileNotFoundError(f"{named or given} holds no picture; check the name")
    return found


def _stored(named: str, left_out: Counter[str]) -> list[Found]:
    found: list[Found] = []
    for one in sorted(held(named), key=lambda one: natural(one.name)):
        parts = PurePosixPath(one.name).parts
        if one.name and (MASK_FOLDER in parts[:-1] or any(part.startswith(".") for part in parts)):
            continue
        suffix = PurePosixPath(one.name).suffix.lower()
        if one.name and suffix not in SUFFIXES:
            left_out[suffix or "without suffix"] += 1
            continue
        source = f"{named}/{one.name}" if one.name else named
        below = inside(one.name or PurePosixPath(named).name)
        found.append(Lying(source, Path(source), below, source, None, (one.size, one.changed)))
    return found


def _entries(file: str) -> list[Found]:
    """Of a list."""
    content, beside = read_at(file), file.rpartition("/")[0]
    try:
        if file.lower().endswith(".csv"):
            rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig")))
            there = {str(name).strip().lower(): name for name in rows.fieldnames or ()}
            own = next((there[name] for name in COLUMNS if name in there), None)
            if own is None:
                said = ", ".join(there) or "none"
                raise ValueError(f"it has the columns {said}; expected one of {', '.join(COLUMNS)}")
            entries = [text for row in rows if (text := (row[own] or "").strip())]
        else:
            entries = column(content, COLUMNS)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{file} cannot be taken as a list of pictures: {error}") from None
    found: list[Found] = []
    for entry in entries:
        named = address(entry) or (f"{beside}/{entry}" if address(file) else None)
        if named is not None:
            found.append(Lying(named, Path(named), inside(named.partition("://")[2]), named))
            continue
        path = os.path.normpath(os.path.join(os.path.dirname(file), entry))
        found.append(Found(path.replace(os.sep, "/"), Path(path), inside(entry)))
    return found


def _members(file: str) -> list[Found]:
    """Of a tar file, where they lie in it."""
    here = address(file) is None
    changed = os.stat(file).st_mtime_ns if here else held(file)[0].changed
    found: list[Found] = []
    with open(file, "rb") if here else io.BytesIO(read_at(file)) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for one in tar:
                    parts, suffix = PurePosixPath(one.name).parts, PurePosixPath(one.name).suffix.lower()
                    hidden = MASK_FOLDER in parts[:-1] or any(part.startswith(".") for part in parts if part != ".")
                    if one.isfile() and suffix in SUFFIXES and not hidden:
                        source = f"{file}/{one.name}"
                        known, span = (one.size, changed), (one.offset_data, one.size)
                        found.append(Lying(source, Path(source), inside(one.name), file, span, known))
                end = tar.offset
        except tarfile.TarError as error:
            raise ValueError(
                f"{file} is no plain tar file, or is damaged ({error}); compressed ones are not taken"
            ) from None
        stream.seek(end)
        if stream.read(512) != bytes(512):  # without it a tar file that was cut between two members would look whole
            raise ValueError(f"{file} is cut short: a tar file ends with a block of zeros")
    return found


@dataclass
class Brought:
    """Pictures of a shard as files of this machine."""

    pictures: list[Found]
    given: Sequence[Found]
    failed: dict[int, str] = field(default_factory=dict)  # place in the shard -> why it is not there

    def told(self, place: int, line: Line) -> Line:
        """A picture's line as if it had been scored where it lies."""
        if (why := self.failed.get(place)) is not None:
            return line_of(line["source"], ImageError(f"{line['source']} {NOT_FETCHED}: {why}"), line["name"])
        if line["error"] is None or self.pictures[place] is self.given[place]:
            return line
        return {**line, "error": line["error"].replace(str(self.pictures[place].path), line["source"])}


@contextmanager
def brought(pictures: Sequence[Found]) -> Iterator[Brought]:
    """The pictures where they can be opened, until the block ends; those that are here stay where they are."""
    if not any(isinstance(one, Lying) for one in pictures):
        yield Brought(list(pictures), pictures)
        return
    with tempfile.TemporaryDirectory(prefix="vlad-") as made:
        found = Brought(list(pictures), pictures)
        lying = [(place, one) for place, one in enumerate(pictures) if isinstance(one, Lying)]
        for place, one in lying:
            path = Path(made, f"{place}{one.path.suffix}")
            found.pictures[place] = Found(one.source, path, one.relative)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for run, contents in zip(_runs(lying), pool.map(_fetched, _runs(lying)), strict=True):
                for (place, one), content in zip(run, contents, strict=True):
                    if isinstance(content, str):
                        found.failed[place] = content
                        continue
                    (path := found.pictures[place].path).write_bytes(content)
                    changed = 0 if one.known is None else one.known[1]
                    os.utime(path, ns=(changed, changed))
        yield found


def _runs(lying: Sequence[tuple[int, Lying]]) -> Iterator[list[tuple[int, Lying]]]:
    """Those that are read in one piece together: neighbours in a tar file."""
    run: list[tuple[int, Lying]] = []
    for place, one in lying:
        near = run and one.span is not None and run[0][1].file == one.file and run[-1][1].span is not None
        if near and run[0][1].span and one.span and one.span[0] + one.span[1] - run[0][1].span[0] <= READ:
            run.append((place, one))
            continue
        if run:
            yield run
        run = [(place, one)]
    if run:
        yield run


def _fetched(run: list[tuple[int, Lying]]) -> list[bytes | str]:
    """The content of each, or why it is not to be had."""
    first, last = run[0][1], run[-1][1]
    try:
        if first.span is None or last.span is None:
            content = read_at(first.file)
            if first.known is not None and len(content) != first.known[0]:
                return [f"it has {len(content)} bytes and had {first.known[0]} when it was listed"]
            return [content]
        start = first.span[0]
        content = read_at(first.file, start, last.span[0] + last.span[1] - start)
    except FileNotFoundError:
        return ["it is no longer there"] * len(run)
    except OSError as error:
        return [str(error)] * len(run)
    spans = [one.span for _, one in run if one.span is not None]
    return [content[first - start : first - start + size] for first, size in spans]
