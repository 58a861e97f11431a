"""From an upload to its line: what a picture is called, and its map as a file within the answer."""

import base64
import hashlib
import io
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlad.files import write_whole
from vlad.folder.lines import line_of
from vlad.framing.places import Places, Shape
from vlad.images import ImageError
from vlad.prediction import Prediction
from vlad.serve.passes import Outcome
from vlad.serve.shelf import Held

LONGEST = 200  # characters of a name
SIDE = 1024  # px of an overlay for a page


def label(name: str | None) -> str:
    """A client's name for a picture as text: printable, folders kept, cut where long. It is never a path."""
    text = (name or "").encode("utf-8", "replace").decode()
    return "".join(char for char in text if char.isprintable())[:LONGEST].strip() or "picture"


def file_name(name: str, number: int) -> str:
    """A plain name for a file of ours that begins as a client's did."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name.replace("\\", "/").rpartition("/")[2]).lstrip(".")
    stem, dot, suffix = plain[-80:].rpartition(".")
    return f"{stem or suffix or 'picture'}-{number:03}{dot and '.' + suffix}"


def line(name: str, outcome: Outcome, held: Held, maps: str, threshold: float | None) -> dict[str, Any]:
    """The picture's line of `results.jsonl`, with its map where that is asked for and there is one."""
    found: Prediction | ImageError = outcome[1]
    if isinstance(found, Prediction) and threshold is not None:
        found = replace(found, threshold=threshold, unsure=None)
    made = line_of(name, found, held.detector.name)
    if maps == "none" or isinstance(found, ImageError) or found.map is None:
        return made
    if maps == "npy":
        return {**made, "map": _address("application/octet-stream", _npy(found.map))}
    return {**made, "overlay": overlay(found, maps)}


def overlay(prediction: Prediction, kind: str) -> str:
    """The picture with its map: "jpeg" of at most SIDE px, or "png" of the full size."""
    assert prediction.picture is not None
    photo = Image.fromarray(prediction.picture)
    kept = io.BytesIO()
    if kind == "png":
        prediction.overlay().save(kept, "PNG", compress_level=1)
        return _address("image/png", kept.getvalue())
    photo.thumbnail((SIDE, SIDE))  # first: a large photo's map is then drawn at the size it is shown
    places = _in_shares(prediction.places, prediction.size)
    small = replace(prediction, size=(photo.height, photo.width), picture=np.asarray(photo), places=places)
    small.overlay().save(kept, "JPEG", quality=85)
    return _address("image/jpeg", kept.getvalue())


def _in_shares(places: Places, size: tuple[int, int]) -> Places:
    """The same places of the picture at any size."""

    def shares(shape: Shape) -> Shape:
        return tuple(value / size[1 - at % 2] for at, value in enumerate(shape)) if max(shape) > 1 else shape

    roi = None if places.roi is None else shares(places.roi)
    return replace(places, roi=roi, shapes=tuple(map(shares, places.shapes)))


def keep(folder: Path, held: Held, content: bytes, made: dict[str, Any]) -> None:
    """A scored picture and its line, below the folder by detector and day; the name of the file is its content's."""
    day = folder / held.name / time.strftime("%Y-%m-%d")
    name = hashlib.sha256(content).hexdigest()[:24]
    write_whole(day / name, content)
    facts = {"file": name, "version": held.version, "time": time.time(), **made}
    facts.pop("overlay", None)
    facts.pop("map", None)
    with (day / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(facts) + "\n")


def _npy(amap: np.ndarray) -> bytes:
    kept = io.BytesIO()
    np.save(kept, amap, allow_pickle=False)
    return kept.getvalue()


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
