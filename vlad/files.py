"""VLAD's data files, its cache, and files written whole. No torch here: the command line imports this first."""

import os
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path

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


def write_whole(path: Path, content: bytes | Iterable[bytes], *, sync: bool = False) -> None:
    """Writes beside and renames: a reader, or a second writer, never meets half a file. Makes the folder.

    `content` may come in pieces. With `sync` the disk has the content before the name is given to it, so that not even
    a power cut leaves half a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with beside.open("wb") as file:
            for piece in [content] if isinstance(content, bytes) else content:
                file.write(piece)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
