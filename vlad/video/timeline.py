"""`timeline.html`: a scored clip at a glance, one file without a script: scores over time, events, their peaks."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader
from PIL import Image

from vlad.files import write_whole
from vlad.folder.lines import recorded
from vlad.records import Line
from vlad.video.events import Event, Rule
from vlad.video.reading import clock

WIDTH, HEIGHT = 1000.0, 160.0  # of the drawing, in its own units
POINTS = 1000  # bins of the time; each keeps its least and largest value
THUMBS, SIDE = 30, 160  # peaks that are shown, the strongest; px of their longest side


@dataclass
class Curve:
    """One source's scores over time, thinned to bins so that hours take no more room than minutes.

    Attributes:
        source: its name.
        end: seconds of its last frame.
        raw, even: bin -> (least, largest) score, as they are and smoothed.
    """

    source: str
    end: float = 0.0
    frames: int = 0
    raw: dict[int, tuple[float, float]] = field(default_factory=dict)
    even: dict[int, tuple[float, float]] = field(default_factory=dict)


def write(path: Path, lines: Path, events: Sequence[Event], rule: Rule | None, peaks: Path) -> None:
    """Writes the page from a file of lines, which is read twice and never held; events' overlays lie in `peaks`."""
    curves = _curves(lines)
    shown = sorted(events, key=lambda event: -event.peak)[:THUMBS]
    top = max([value[1] for curve in curves for value in curve.raw.values()] + [rule.on if rule else 0.0, 1e-9])
    low = min([value[0] for curve in curves for value in curve.raw.values()] + [0.0])
    scale = (low, top + 0.05 * (top - low))
    drawn = [_drawn(curve, [one for one in events if one.source == curve.source], rule, scale) for curve in curves]
    facts = {
        "clips": drawn,
        "rule": rule,
        "cards": [_card(event, peaks) for event in shown],
        "left": len(events) - len(shown),
        "width": WIDTH,
        "height": HEIGHT,
        "clock": clock,
    }
    environment = Environment(loader=PackageLoader("vlad.video"), autoescape=True)
    write_whole(path, environment.get_template("timeline.html.j2").render(facts).encode("utf-8", "replace"))


def _curves(lines: Path) -> list[Curve]:
    curves: dict[str, Curve] = {}
    for source, line in _timed(lines):
        curve = curves.setdefault(source, Curve(source))
        curve.end, curve.frames = max(curve.end, line["time"]), curve.frames + 1
    for source, line in _timed(lines):
        curve = curves[source]
        place = int(line["time"] / max(curve.end, 1e-9) * (POINTS - 1))
        for kept, value in ((curve.raw, line["score"]), (curve.even, line["smoothed"])):
            least, largest = kept.get(place, (value, value))
            kept[place] = (min(least, value), max(largest, value))
    return list(curves.values())


def _timed(lines: Path) -> Iterator[tuple[str, Line]]:
    """(name of its clip, line) of each scored frame."""
    for line in recorded(lines):
        if line.get("time") is not None and line["error"] is None:
            yield str(line["source"]).rpartition("#t=")[0], line


def _drawn(curve: Curve, events: Sequence[Event], rule: Rule | None, scale: tuple[float, float]) -> dict[str, object]:
    """What the template draws of a clip: paths, bands and lines in the drawing's units."""

    def height(value: float) -> float:
        return round(HEIGHT * (1 - (value - scale[0]) / (scale[1] - scale[0])), 1)

    def path(kept: dict[int, tuple[float, float]]) -> str:
        steps = []
        for place in sorted(kept):
            across = place / (POINTS - 1) * WIDTH
            steps += [f"{across:.1f},{height(value):.1f}" for value in dict.fromkeys(kept[place])]
        return "M" + " L".join(steps) if steps else ""

    span = max(curve.end, 1e-9)
    bands = [
        {"x": event.start / span * WIDTH, "width": max((event.end - event.start) / span * WIDTH, 3.0), "event": event}
        for event in events
    ]
    cuts = [(height(value), word) for value, word in ((rule.on, "on"), (rule.off, "off"))] if rule else []
    return {"curve": curve, "raw": path(curve.raw), "even": path(curve.even), "bands": bands, "cuts": cuts}


def _card(event: Event, peaks: Path) -> dict[str, object]:
    file = peaks / f"{event.id:04}.png"
    if not file.is_file():
        return {"event": event, "picture": None}
    with Image.open(file) as overlay:
        overlay.thumbnail((SIDE, SIDE))
        overlay.convert("RGB").save(kept := io.BytesIO(), "JPEG", quality=80)
    return {"event": event, "picture": base64.b64encode(kept.getvalue()).decode()}
