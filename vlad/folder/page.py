"""The scored folder as a page to look at: `index.html` beside the lines, for any browser, without a server.

Worst first, with a histogram, a slider that tries another threshold, filters, and overlays that open large. Thumbnails
are in the page while pictures are few, else in `thumbs/`.
"""

import base64
import io
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from PIL import Image

from vlad.files import write_whole
from vlad.folder import LINES, SETTINGS, unlike_normals
from vlad.folder.lines import recorded
from vlad.records import Line
from vlad.thresholds import Calibration

PAGE, THUMBS = "index.html", "thumbs"
SIDE = 240  # px of a thumbnail
INSIDE = 200  # pictures up to which thumbnails lie in the page itself


def write_page(folder: Path) -> Path:
    """Writes `index.html` from the folder's lines; its path. Thumbnails that are there are kept.

    Raises:
        FileNotFoundError: there are no results.
    """
    if not (folder / LINES).exists():
        raise FileNotFoundError(f"there is no {folder / LINES}; score pictures into the folder first")
    lines = list(recorded(folder / LINES))
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    inside, failed = len(lines) <= INSIDE, sum(line["error"] is not None for line in lines)
    scored = len(lines) - failed
    calibration = settings.get("calibration") or {}
    threshold = next((one["threshold"] for one in lines if one.get("threshold") is not None), None)
    data = {
        "pictures": [_picture(folder, line, inside) for line in lines],
        "threshold": threshold,
        "normals": list(calibration.get("scores") or ()),
        "unsure": calibration.get("unsure"),
    }
    facts = {
        "title": f"{settings.get('name') or 'Pictures'}: {scored} scored"
        + (f", {failed} not readable" if failed else ""),
        "scored": scored,
        "promise": _promise(calibration, threshold),
        "unlike": unlike_normals(lines, _calibration(calibration)),
        "made": f"{settings.get('method')} on {settings.get('encoder')}, VLAD {settings.get('vlad')}",
    }
    environment = Environment(loader=PackageLoader("vlad.folder"), autoescape=True)
    text = environment.get_template("page.html.j2").render(data=_in_script(data), **facts)
    write_whole(folder / PAGE, text.encode("utf-8", "replace"))
    return folder / PAGE


def _promise(calibration: dict[str, Any], threshold: float | None) -> str:
    """What the threshold promises; of one that was set by hand the good pictures say nothing."""
    own = calibration.get("threshold")
    if own in (None, threshold):
        return calibration.get("note") or ""
    return f"a threshold set by hand; that of the good pictures is {own:.4g}"


def _calibration(facts: dict[str, Any]) -> Calibration | None:
    return Calibration.from_dict(facts) if facts else None


def _picture(folder: Path, line: Line, inside: bool) -> dict[str, Any]:
    source = line["source"]
    parts = source.replace("\\", "/").split("/")
    told = line.get("explanation") or {}
    return {
        "source": source,
        "folder": "/".join(parts[:-1]) or ".",
        "name": parts[-1],
        "score": line["score"],
        "verdict": line["verdict"] or "failed",
        "error": line["error"],
        "notes": line.get("notes", []),
        "where": [region.get("location", "") for region in (line["regions"] or [])[:3]],
        "words": [defect.get("description") for defect in told.get("defects", [])],
        "overlay": _address(line["overlay"]) if line.get("overlay") else None,
        "thumb": _thumb(folder, line.get("overlay"), inside),
    }


def _thumb(folder: Path, overlay: str | None, inside: bool) -> str | None:
    """Address of the small overlay: its bytes, or its file below the folder; None where there is no overlay."""
    if overlay is None or not (folder / overlay).exists():
        return None
    target = folder / THUMBS / f"{overlay.partition('/')[2]}.jpg"
    if not target.exists():
        with Image.open(folder / overlay) as picture:
            picture.thumbnail((SIDE, SIDE))
            kept = io.BytesIO()
            picture.convert("RGB").save(kept, format="JPEG", quality=82)
        if inside:
            return f"data:image/jpeg;base64,{base64.b64encode(kept.getvalue()).decode()}"
        write_whole(target, kept.getvalue())
    return _address(target.relative_to(folder).as_posix())


def _address(place: str) -> str:
    """Of a file below the page, whatever bytes its name has."""
    return quote(os.fsencode(place))


def _in_script(data: dict[str, Any]) -> Markup:
    """JSON that cannot end the script it stands in, whatever names the files have."""
    text = json.dumps(data, allow_nan=False)
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)
