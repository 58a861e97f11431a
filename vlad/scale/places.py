"""Where runs and pictures lie: folders of this machine, and object stores by pyarrow, which this file alone imports.

A store gives and takes streams, and a stream may end too soon without a word. So what is read must have the length that
the store names, and what was put is asked for its length; each has TRIES.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from vlad.files import write_whole
from vlad.records import Line

TRIES, WAIT = 3, 0.5  # times, seconds before the second; then twice as long
TABLE = "results.parquet"
ROWS = 10_000  # of a row group
TEXTS, NUMBERS = ("source", "verdict", "name", "overlay", "error"), ("score", "threshold", "p_value")
_ADDRESS = re.compile(r"(?!file:)([a-z][a-z0-9+.-]+):/{1,2}([^/].*)", re.IGNORECASE | re.DOTALL)  # Path joins slashes

Result = TypeVar("Result")


def address(given: str | os.PathLike[str]) -> str | None:
    """ "s3://bucket/key" where it is an address, also of a path made of one; None for a place on this machine."""
    match = _ADDRESS.fullmatch(os.fspath(given))
    return match and f"{match[1]}://{match[2]}"


class Held(NamedTuple):
    """A file of a store."""

    name: str  # below the folder that was searched; "" for the file itself
    size: int  # bytes
    changed: int  # nanoseconds


@dataclass(frozen=True)
class Place:
    """A folder of this machine; what is put into it is there whole or not at all."""

    root: str

    @classmethod
    def of(cls, given: str | os.PathLike[str]) -> Place:
        """The folder or, of an address, the store."""
        named = address(given)
        return Place(os.path.abspath(given)) if named is None else Store(named.rstrip("/"))

    def __str__(self) -> str:
        return self.root

    def read(self, name: str) -> bytes | None:
        """The content of a file, None where there is none."""
        try:
            return Path(self.root, name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, name: str, content: bytes) -> None:
        """Writes a file as a whole."""
        write_whole(Path(self.root, name), content, sync=True)

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return Path(self.root, name).exists()

    def names(self, folder: str) -> list[str]:
        """Of all files in one of its folders."""
        there = Path(self.root, folder)
        return sorted(one.name for one in there.iterdir() if one.is_file()) if there.is_dir() else []

    def remove(self, name: str) -> None:
        """Deletes a file if it is there."""
        Path(self.root, name).unlink(missing_ok=True)

    def clear(self, folder: str) -> None:
        """Deletes one of its folders with its files, when nobody writes there any more."""
        for name in self.names(folder):
            self.remove(f"{folder}/{name}")
        with suppress(OSError):  # there is none, as in stores, or something else lies in it
            Path(self.root, folder).rmdir()

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """A folder whose files lie here when the block has ended well."""
        Path(self.root).mkdir(parents=True, exist_ok=True)
        yield Path(self.root)

    @contextmanager
    def at_hand(self, name: str) -> Iterator[Path]:
        """A file as one of this machine."""
        yield Path(self.root, name)


class Store(Place):
    """A folder of an object store, by its address; credentials are those of the machine."""

    def read(self, name: str) -> bytes | None:
        try:
            return read_at(f"{self}/{name}")
        except FileNotFoundError:
            return None

    def put(self, name: str, content: bytes) -> None:
        files, path = _store(f"{self}/{name}")

        def once() -> None:
            with files.open_output_stream(path, compression=None) as stream:  # of .gz it would guess
                stream.write(content)
            if (size := files.get_file_info(path).size) != len(content):
                raise OSError(f"{size} of {len(content)} bytes arrived")

        _tried(once, f"{self}/{name} cannot be written")

    def has(self, name: str) -> bool:
        files, path = _store(f"{self}/{name}")
        return bool(_tried(lambda: files.get_file_info(path).is_file, f"{self} cannot be reached"))

    def names(self, folder: str) -> list[str]:
        return sorted(one.name for one in held(f"{self}/{folder}" if folder else str(self)) if "/" not in one.name)

    def remove(self, name: str) -> None:
        files, path = _store(f"{self}/{name}")
        if self.has(name):
            _tried(lambda: files.delete_file(path), f"{self}/{name} cannot be deleted")

    @contextmanager
    def writing(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="vlad-") as made:
            yield Path(made)
            for file in sorted(Path(made).rglob("*")):
                if file.is_file():
                    self.put(file.relative_to(made).as_posix(), file.read_bytes())

    @contextmanager
    def at_hand(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="vlad-") as made:
            (file := Path(made, Path(name).name)).write_bytes(self.read(name) or b"")
            yield file


def read_at(file: str, start: int = 0, length: int | None = None) -> bytes:
    """Bytes of a file by its path or address, all of it or `length` from `start` on, and no byte less.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it ends too soon, or is not reached.
    """
    if address(file) is None:
        with open(file, "rb") as here:
            here.seek(start)
            content = here.read() if length is None else here.read(length)
        if length not in (None, len(content)):
            raise OSError(f"{file} ends too soon")
        return content
    files, path = _store(file)

    def once() -> bytes:
        with files.open_input_file(path) as stream:
            wanted = stream.size() - start if length is None else length
            content = bytes(stream.read_at(wanted, start))
        if len(content) != wanted:
            raise OSError(f"{len(content)} of {wanted} bytes came")
        return content

    return _tried(once, f"{file} cannot be read")


def held(folder: str) -> list[Held]:
    """The files below an address, or the one that it names itself.

    Raises:
        ImportError: pyarrow is not installed.
        OSError: the store is not reached.
    """
    files, path = _store(folder)
    from pyarrow.fs import FileSelector

    def once() -> list[Held]:
        if (own := files.get_file_info(path)).is_file:
            return [Held("", own.size, own.mtime_ns or 0)]
        found = files.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
        start = len(path.rstrip("/")) + 1
        return [Held(one.path[start:], one.size, one.mtime_ns or 0) for one in found if one.is_file]

    return _tried(once, f"{folder} cannot be listed")


def _tried(once: Callable[[], Result], words: str) -> Result:
    """What it gives in one of TRIES; OSError with the words and the last reason."""
    for number in range(TRIES):
        try:
            return once()
        except FileNotFoundError:
            raise
        except OSError as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        time.sleep(WAIT * 2**number if number < TRIES - 1 else 0)
    raise OSError(f"{words}, in {TRIES} tries ({reason})")


@lru_cache(maxsize=64)
def _files(root: str) -> tuple[Any, str]:
    try:
        import pyarrow
        from pyarrow import fs
    except ImportError:
        raise ImportError(f"{root} needs pyarrow: pip install 'vlad-ad[parquet]'") from None
    try:
        return fs.FileSystem.from_uri(root)
    except pyarrow.ArrowInvalid:  # not one of pyarrow's own
        import fsspec

        try:
            files, path = fsspec.core.url_to_fs(root)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{root} cannot be opened ({error})") from None
        return fs.PyFileSystem(fs.FSSpecHandler(files)), path


def _store(file: str) -> tuple[Any, str]:
    """(the file system, the path in it) of an address; a query behind its first part is kept for all of it."""
    scheme, rest = file.split("://", 1)
    head, _, tail = rest.partition("/")
    tail, mark, query = tail.partition("?")
    files, path = _files(f"{scheme}://{head}{mark}{query}")
    return files, "/".join([path.rstrip("/"), *([tail] if tail else [])])


# ---- tables ---------------------------------------------------------------------------------------------------------


def column(content: bytes, names: Iterable[str]) -> list[str]:
    """The first of these columns that a Parquet table has, as texts.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: it is no such table, or has none of them.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise ImportError("lists in Parquet need pyarrow: pip install 'vlad-ad[parquet]'") from None
    try:
        table = parquet.ParquetFile(io.BytesIO(content))
        there = {name.lower(): name for name in table.schema_arrow.names}
        own = next((there[name] for name in names if name in there), None)
        if own is None:
            raise ValueError(f"it has the columns {', '.join(there.values())}; expected one of {', '.join(names)}")
        return [str(one) for one in table.read([own])[own].to_pylist() if one is not None]
    except pa.ArrowInvalid as error:
        raise ValueError(f"it is no Parquet table ({error})") from None


def write_table(folder: Path, lines: Iterable[Line]) -> Path:
    """Writes `results.parquet`, for those who ask something of many lines, beside and renamed; its path.

    Raises:
        ImportError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise ImportError("--parquet needs pyarrow: pip install 'vlad-ad[parquet]'") from None
    region = pa.struct([("box", pa.list_(pa.int32())), ("area", pa.int64()), ("peak", pa.float64())])
    columns = [(name, pa.string()) for name in TEXTS] + [(name, pa.float64()) for name in NUMBERS]
    schema = pa.schema([*columns, ("size", pa.list_(pa.int32())), ("regions", pa.list_(region))])
    beside, rest = folder / f".{TABLE}", iter(lines)
    with parquet.ParquetWriter(beside, schema, compression="zstd") as writer:
        while some := list(islice(rest, ROWS)):
            rows = [{**line, **{name: _valid(line.get(name)) for name in TEXTS}} for line in some]
            writer.write_table(pa.Table.from_pylist(rows, schema))
    os.replace(beside, folder / TABLE)
    return folder / TABLE


def _valid(text: str | None) -> str | None:
    """The text without what is no Unicode, as names of files may be."""
    return text and text.encode(errors="replace").decode()
