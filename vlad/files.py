"""VLAD's data files, its cache, and files written whole. No torch here: the command line imports this first."""

import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

LEFTOVER = re.compile(r"\.(.+)\.(\d+)-[0-9a-f]{8}", re.DOTALL)  # name, process

_PACKAGE = Path(__file__).resolve().parent


def resource(path: str) -> Path:
    """The file or folder `path` ("prompts/winclip.toml") of the data that ships with VLAD.

    An installed wheel keeps it in `vlad/share`, a checkout at its top level.

    Raises:
        FileNotFoundError: there is no such file.
    """
    for root in (_PACKAGE / "share", _PACKAGE.parent):
        if (root / path).exists():
            return root / path
    raise FileNotFoundError(f"VLAD's own data file {path!r} is missing; reinstall the package (pip install vlad-ad)")


def cache_dir() -> Path:
    """The folder for what VLAD computes once and keeps (text embeddings); created when missing.

    The environment variable VLAD_CACHE moves it; else it is the platform's user cache.
    """
    if given := os.environ.get("VLAD_CACHE"):
        root = Path(given).expanduser()
    elif sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "vlad"
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches" / "vlad"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlad"
    root.mkdir(parents=True, exist_ok=True)
    return root


def reserve(file: IO[bytes], size: int, what: str) -> None:
    """Has the disk set aside `size` bytes for an opened file, where the system can.

    Raises:
        OSError: there is not so much room; without this a file that is mapped into memory would end the process.
    """
    free = shutil.disk_usage(cache_dir()).free
    held = os.fstat(file.fileno()).st_blocks * 512 if hasattr(os.stat_result, "st_blocks") else 0
    try:
        if size > held + free:
            raise OSError(errno.ENOSPC, "no room")
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return  # a file system that cannot reserve
        raise OSError(
            f"{what} needs {size / 2**30:.1f} GiB in {cache_dir()}, where {free / 2**30:.1f} GiB are free; make room "
            "there, or set VLAD_CACHE to a folder on a larger disk"
        ) from None


FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a text that begins so is computed by some spreadsheets


def cell(value: Any) -> Any:
    """A value for a CSV table; a text that a spreadsheet would compute has an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def write_whole(path: Path, content: bytes | Iterable[bytes], *, sync: bool = False) -> None:
    """Writes beside and renames: a reader, or a second writer, never meets half a file. Makes the folder.

    `content` may come in pieces. With `sync` the disk has the content before the name is given to it, so that not even
    a power cut leaves half a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with beside.open("wb") as file:
            hold(file)
            for piece in [content] if isinstance(content, bytes) else content:
                file.write(piece)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def hold(file: IO[bytes]) -> bool:
    """Marks a file as being written until it is closed; False where another process does, or cannot be known to not."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):  # Windows; another writer; a network drive without locks
        return False
    return True


def _clear_leftovers(path: Path) -> None:
    """Deletes what killed writers of this file left beside it: files whose process is gone and that none holds."""
    for name in os.listdir(path.parent):
        found = LEFTOVER.fullmatch(name)
        if found is None or found[1] != path.name or _runs(int(found[2])):
            continue
        try:
            with (path.parent / name).open("rb+") as file:
                if hold(file):
                    (path.parent / name).unlink()
        except OSError:  # gone meanwhile, or not ours
            continue


def _runs(pid: int) -> bool:
    """Whether there is such a process, as far as can be known."""
    if sys.platform == "win32":  # where signal 0 would end it
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
