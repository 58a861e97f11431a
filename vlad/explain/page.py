"""An explanation as Markdown and as one HTML file; words of models and of users are escaped wherever they stand.

All functions read the plain values of `Explanation.to_dict`, so that a line of results has a page as well.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from vlad.explain.views import crop, crop_box
from vlad.images.places import Box
from vlad.images.sizes import fitted

if TYPE_CHECKING:
    from jinja2 import Template

VIEW = 720  # px, longest side of the picture on the page
CROP = 280  # px, longest side of a crop on the page
_SPECIAL = re.compile(r"([\\`*_\[\]#!|~>&]|(?<=\])\(|^[-+=])")

Plain = Mapping[str, Any]


def to_markdown(said: Plain) -> str:
    """A page of Markdown, without pictures."""
    lines = [f"# {_plain(title(said))}", "", *(f"- {_plain(line)}" for line in summary(said)), ""]
    if said["needs_review"]:
        lines += ["**Needs review**", "", *(f"- {_plain(reason)}" for reason in said["review_reasons"]), ""]
    lines += ["## Defects", ""]
    for defect in said["defects"]:
        lines.append(f"{defect['id'][1:]}. **{_plain(defect['description'])}**")
        lines += [f"   - {_plain(line)}" for line in details(defect)]
    lines += [] if said["defects"] else [_plain(nothing(said))]
    for heading, words in sections(said):
        lines += ["", f"## {heading}", "", *(f"- {_plain(line)}" for line in words)]
    return "\n".join(lines) + "\n"


def to_html(said: Plain, picture: np.ndarray) -> str:
    """One HTML page with the picture and a crop of every defect inside it; it loads nothing and runs nothing."""
    boxes = [tuple(defect["box"]) for defect in said["defects"]]
    marked = [box for box, defect in zip(boxes, said["defects"], strict=True) if defect["box_source"] == "map"]
    return _template().render(
        said=said,
        title=title(said),
        summary=summary(said),
        nothing=nothing(said),
        sections=sections(said),
        view=_view(picture, marked),
        crops=[fitted(crop(picture, crop_box(box, picture.shape[:2])), CROP) for box in boxes],
    )


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined  # here: explaining itself needs no page

    environment = Environment(
        loader=PackageLoader("vlad.explain", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"details": details, "jpeg": _jpeg}
    return environment.get_template("page.html.j2")


def title(said: Plain) -> str:
    """What it is and how it was judged: "metal bolt: anomalous"."""
    return f"{said['name'] or 'picture'}: {said['verdict']}"


def summary(said: Plain) -> list[str]:
    """Score, threshold, and who put it into words."""
    detector, reasoner = said["detector"], said["reasoner"]
    threshold = "no threshold" if detector["threshold"] is None else f"threshold {detector['threshold']:.4f}"
    lines = [f"score {detector['score']:.4f} ({threshold}): {detector['verdict']}"]
    who = f"words by {reasoner['model']} ({reasoner['tier']})"
    if reasoner["verdict"] is not None:
        sure = "" if reasoner["p_anomalous"] is None else f", p = {reasoner['p_anomalous']:.2f}"
        who += f", who calls it {reasoner['verdict']}{sure}; {said['agreement'].replace('_', ' ')}"
    return [*lines, who]


def details(defect: Plain) -> list[str]:
    """What is known of a defect beside its description."""
    guesses = [one["type"] if one["p"] is None else f"{one['type']} {one['p']:.2f}" for one in defect["alternatives"]]
    sure = "" if defect["confidence"] is None else f" (confidence {defect['confidence']:.2f}, {_source(defect)})"
    source = "" if defect["severity_source"] == "none" else f", by {defect['severity_source']}"
    lines = [f"type: {defect['type']}{sure}", f"severity: {defect['severity']}{source}"]
    lines += [f"may be: {', '.join(guesses)}"] if guesses else []
    ninth = " (a ninth)" if defect["region_id"] is None else ""
    lines.append(f"place: {defect['location']}, box {list(defect['box'])}{ninth}")
    return [*lines, f"rules: {', '.join(defect['rule_ids'])}"] if defect["rule_ids"] else lines


def _source(defect: Plain) -> str:
    source = str(defect["confidence_source"])
    return "uncalibrated" if source == "clip_softmax" else source.replace("_", " ")


def nothing(said: Plain) -> str:
    """What is said where there is no defect."""
    if said["verdict"] == "normal":
        return "No defect is reported."
    peak = next((one["text"] for one in said["evidence"] if one["kind"] == "map_region"), "there is no map")
    return f"No place stands out: {peak}."


def sections(said: Plain) -> list[tuple[str, list[str]]]:
    """Headings with their lines; empty ones are left out."""
    rules = [
        f"{one['rule_id']}: {one['verdict']}"
        + ("" if one["p_violated"] is None else f", p = {one['p_violated']:.2f}")
        + (f", {one['quote']}" if one["quote"] else "")
        for one in said["rule_results"]
    ]
    found = {
        "Answer": [said["answer"]] if said["answer"] else [],
        "Rules": rules,
        "What could not be seen": [f"{one['text']} ({one['code']})" for one in said["limits"]],
        "Evidence": [f"{one['id']}: {one['text']}" for one in said["evidence"]],
        "Errors": list(said["errors"]),
    }
    return [(heading, words) for heading, words in found.items() if words]


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line; no HTML, no link, no list inside it."""
    line = " ".join("".join(c if c.isprintable() or c.isspace() else " " for c in text).split())
    return _SPECIAL.sub(r"\\\1", line).replace("<", "&lt;").replace("://", ":\u200b//")


def _view(picture: np.ndarray, boxes: Sequence[Box]) -> np.ndarray:
    """The whole picture, small, with the defects' boxes outlined."""
    view = Image.fromarray(fitted(picture, VIEW))
    pen, scale = ImageDraw.Draw(view), view.width / picture.shape[1]
    for number, box in enumerate(boxes, start=1):
        x0, y0, x1, y1 = (round(edge * scale) for edge in box)
        pen.rectangle((x0 - 4, y0 - 4, x1 + 3, y1 + 3), outline="black", width=2)
        pen.rectangle((x0 - 2, y0 - 2, x1 + 1, y1 + 1), outline="white", width=2)
        pen.text((x0, max(0, y0 - 18)), str(number), "white", stroke_width=2, stroke_fill="black")
    return np.array(view)


def _jpeg(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="JPEG", quality=88)
    return base64.b64encode(file.getvalue()).decode()
