"""Where a picture's bytes come from: paths, `file://`, bytes and opened files; nothing is ever fetched."""

import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

LONGEST = 200  # characters of a name in a message
_ADDRESS = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+):/(?P<second>/?)", re.IGNORECASE)  # Path joins two slashes
_PAGE = re.compile(r"(.+)#([1-9][0-9]{0,8})", re.DOTALL)


@dataclass(frozen=True)
class Source:
    """Bytes that hold a picture.

    Attributes:
        label: what messages call it.
        given: the path as it was given, None without one.
        path: the file it names.
        page: asked for by "#2" behind the name, counted from 1; None without.
        content: the bytes, None where they are to be read from `path`.
    """

    label: str
    given: str | None = None
    path: str | None = None
    page: int | None = None
    content: bytes | None = None

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The bytes as a file that can seek."""
        if self.content is not None:
            yield io.BytesIO(self.content)
        else:
            assert self.path is not None
            with open(self.path, "rb") as file:
                yield file


def is_bytes(image: Any) -> bool:
    """Whether it holds the bytes of one picture: bytes or an opened file."""
    return isinstance(image, bytes | bytearray | memoryview) or hasattr(image, "read")


def source_of(image: Any) -> Source:
    """The source that a path, `file://` address, bytes or an opened binary file names.

    An opened file is read from its start where it can seek, else from where it stands, and left open.

    Raises:
        ValueError: an address of the net, or a place that holds no file; the message has no name in it.
        TypeError: a file opened as text.
    """
    if isinstance(image, str | os.PathLike):
        return _of_path(os.fsdecode(os.fspath(image)))
    if not hasattr(image, "read"):
        return Source("bytes", content=bytes(image))
    if isinstance(image, io.TextIOBase):
        raise TypeError('the picture is a file opened as text; open it with open(path, "rb")')
    if hasattr(image, "seekable") and image.seekable():
        image.seek(0)
    content = image.read()
    if not isinstance(content, bytes | bytearray):
        raise TypeError(f'the picture is a file that gives {type(content).__name__}; open it with open(path, "rb")')
    name = getattr(image, "name", None)
    return Source(shown(name) if isinstance(name, str) else "opened file", content=bytes(content))


def path_of(image: Any) -> str | None:
    """The path as it was given, of a path or a `file://` address; None of anything else."""
    if not isinstance(image, str | os.PathLike):
        return None
    given = os.fsdecode(os.fspath(image))
    return _local(given) or given


def shown(name: str) -> str:
    """A name fit for a message: on one line, and no longer than LONGEST."""
    name = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 60]}...{name[-40:]}"


def _of_path(given: str) -> Source:
    path = _local(given) or given
    for place, page in places(path):
        if os.path.isfile(place):
            return Source(shown(path), path, place, page)
    raise ValueError(_why_no_file(given, os.path.expanduser(path)))


def places(path: str) -> Iterator[tuple[str, int | None]]:
    """What a name may mean, the plainest first: itself, below the home folder, a page of a file."""
    yield path, None
    yield os.path.expanduser(path), None
    if match := _PAGE.fullmatch(path):
        yield os.path.expanduser(match[1]), int(match[2])


def _local(given: str) -> str | None:
    """The path of a `file://` address on this machine."""
    if not given.lower().startswith("file:/"):
        return None
    parts = urlsplit(given if given.lower().startswith("file://") else "file://" + given[5:])
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"it lies on another machine ({shown(parts.netloc)}); copy it here and give its path")
    if os.name == "nt":
        return url2pathname(parts.path)
    return unquote(parts.path) + (f"#{parts.fragment}" if parts.fragment else "")


def _why_no_file(given: str, path: str) -> str:
    if given[:5].lower() == "data:":
        return "a data: address is not taken; decode what follows the comma with base64 and give the bytes"
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return _why_not_there(given, path)
    except ValueError:  # a NUL in the name
        return "no file can have such a name"
    if stat.S_ISDIR(mode):
        return "is a folder; give the pictures inside it"
    kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
    return f"is {kind} and no file; give the bytes that come from it"


def _why_not_there(given: str, path: str) -> str:
    if os.path.islink(path):
        return f"is a link that leads nowhere (to {shown(os.readlink(path))}); mend the link"
    if _ADDRESS.match(given):
        return "addresses are not fetched; download the picture and give its path or bytes"
    folder = os.path.dirname(path)
    if folder and os.path.isdir(folder) and not os.access(folder, os.X_OK):
        return f"its folder may not be entered; check the rights of {shown(folder)}"
    return "no such file; check the path"
