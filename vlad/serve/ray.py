"""The same application as a Ray Serve deployment: replicas on a cluster that share one folder of detectors.

Replicas only read the folder: detectors are made by one `vlad serve` on it, or copied there, and every replica takes a
newer version up within seconds. An answer names its version, since two may answer meanwhile.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.serve import Settings, make_app

if TYPE_CHECKING:
    from fastapi import FastAPI

    from vlad.serve.shelf import Shelf

logger = logging.getLogger(__name__)

FRESH = 2.0  # seconds between two looks for newer versions


def deployment(
    folder: str | os.PathLike[str],
    *,
    replicas: int = 2,
    settings: Settings | None = None,
    encoder: str = "tiny",
    **placed: Any,
) -> Any:
    """What `ray.serve.run` takes.

    Args:
        folder: of the detectors, the same for all nodes.
        replicas: each has its own encoder and queue.
        settings: limits and rights of each; it is read-only whatever they say.
        encoder: of uploads' kind, as for `vlad serve`; `placed` are device and dtype.

    Raises:
        ImportError: ray is not installed.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise ImportError('a deployment needs Ray Serve: pip install "vlad-ad[serve]" "ray[serve]"') from error
    limits = replace(settings or Settings(), read_only=True)
    place = Path(folder).expanduser().absolute()

    def built() -> FastAPI:
        from vlad.serve.shelf import Shelf

        shelf = Shelf(place, encoder, **placed)
        threading.Thread(target=_keep_fresh, args=(shelf,), daemon=True).start()
        return make_app(shelf, limits)

    wrapped: Any = serve.deployment(serve.ingress(built)(), name="vlad", num_replicas=replicas)
    return wrapped.options(max_ongoing_requests=limits.queue).bind()


def _keep_fresh(shelf: Shelf) -> None:
    while True:
        time.sleep(FRESH)
        try:
            shelf.refresh()
        except OSError as error:  # a drive that is away for a while
            logger.warning("the folder of detectors cannot be read: %s", error)
