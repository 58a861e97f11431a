"""Detectors behind an address: an API for software and a page for people, on one machine.

`make_app` is the whole interface; `vlad serve` runs it, `vlad.serve.ray` puts it on a cluster. It needs the extra
`serve`; nothing else of VLAD imports this folder.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from vlad.serve.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from vlad.serve.shelf import Shelf

__all__ = ["Settings", "make_app"]

NEEDED = ("fastapi", "multipart", "prometheus_client", "uvicorn")


def make_app(shelf: Shelf | None = None, settings: Settings | None = None) -> FastAPI:
    """The application, for any ASGI server; it holds detectors, so run it in one process.

    Args:
        shelf: where its detectors are; None is an empty one round "tiny", which ends with the process.
        settings: limits and rights; None: the defaults.

    Raises:
        ImportError: the extra `serve` is not installed.
    """
    check_installed()
    from vlad.serve.app import application
    from vlad.serve.shelf import Shelf

    return application(shelf or Shelf(), settings or Settings())


def check_installed() -> None:
    """ImportError that names the extra, where a part of it is missing."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ImportError(f'serving needs {", ".join(missing)}, not installed here: pip install "vlad-ad[serve]"')
