"""An explanation as Markdown and as one HTML file; words of models and of users are escaped wherever they stand."""

import base64
import io
import re
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image, ImageDraw

from vlad.explain.explanation import Box, Defect, Explanation
from vlad.explain.marks import crop, crop_box

VIEW = 720  # px, longest side of the picture on the page
CROP = 280  # px, longest side of a crop on the page
_SPECIAL = re.compile(r"([\\`*_\[\]#!|~>&]|(?<=\])\(|^[-+=])")

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#1c1c28}
img{max-width:100%;height:auto}h1{margin-bottom:0}h2{margin-top:2rem;border-bottom:1px solid #ddd}
.defect{display:flex;gap:1.5rem;margin:1rem 0}.soft{color:#666}
.review{background:#fff3d6;padding:.5rem 1rem;border-left:4px solid #e0a000}
"""


def to_markdown(explanation: Explanation) -> str:
    """A page of Markdown, without pictures."""
    said = explanation
    lines = [f"# {_plain(title(said))}", "", *(f"- {_plain(line)}" for line in summary(said)), ""]
    if said.needs_review:
        lines += ["**Needs review**", "", *(f"- {_plain(reason)}" for reason in said.review_reasons), ""]
    lines += ["## Defects", ""]
    for defect in said.defects:
        lines.append(f"{defect.id[1:]}. **{_plain(defect.description)}**")
        lines += [f"   - {_plain(line)}" for line in details(defect)]
    lines += [] if said.defects else [_plain(nothing(said))]
    for heading, words in sections(said):
        lines += ["", f"## {heading}", "", *(f"- {_plain(line)}" for line in words)]
    return "\n".join(lines) + "\n"


def to_html(explanation: Explanation) -> str:
    """One HTML page with the picture and a crop of every defect inside it; it loads nothing and runs nothing."""
    said = explanation
    parts = [f"<h1>{escape(title(said))}</h1>", _listed(summary(said), "soft")]
    if said.needs_review:
        parts.append(f'<div class="review"><b>Needs review</b>{_listed(said.review_reasons)}</div>')
    boxes = [defect.box for defect in said.defects if defect.box_source == "map"]
    parts += [_picture(_view(said.picture, boxes), "the picture with its defects outlined"), "<h2>Defects</h2>"]
    for defect in said.defects:
        cut = _fitted(crop(said.picture, crop_box(defect.box, said.picture.shape[:2])), CROP)
        words = f"<p><b>{escape(defect.description)}</b></p>{_listed(details(defect))}"
        parts.append(f'<div class="defect">{_picture(cut, defect.id)}<div>{words}</div></div>')
    parts += [] if said.defects else [f"<p>{escape(nothing(said))}</p>"]
    parts += [f"<h2>{escape(heading)}</h2>{_listed(words)}" for heading, words in sections(said)]
    safe = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{safe}">'
    return f"<!doctype html><html><head>{head}<title>{escape(title(said))}</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>"  # noqa: E501


def title(said: Explanation) -> str:
    """What it is and how it was judged: "metal bolt: anomalous"."""
    return f"{said.name or 'picture'}: {said.verdict}"


def summary(said: Explanation) -> list[str]:
    """Score, threshold, and who put it into words."""
    threshold = "no threshold" if said.detector.threshold is None else f"threshold {said.detector.threshold:.4f}"
    lines = [f"score {said.detector.score:.4f} ({threshold}): {said.detector.verdict}"]
    who = f"words by {said.reasoner.model} ({said.reasoner.tier})"
    if said.reasoner.verdict is not None:
        sure = "" if said.reasoner.p_anomalous is None else f", p = {said.reasoner.p_anomalous:.2f}"
        who += f", who calls it {said.reasoner.verdict}{sure}; {said.agreement.replace('_', ' ')}"
    return [*lines, who]


def details(defect: Defect) -> list[str]:
    """What is known of a defect beside its description."""
    guesses = [one.type if one.p is None else f"{one.type} {one.p:.2f}" for one in defect.alternatives]
    sure = "" if defect.confidence is None else f" (confidence {defect.confidence:.2f}, {_source(defect)})"
    source = "" if defect.severity_source == "none" else f", by {defect.severity_source}"
    lines = [f"type: {defect.type}{sure}", f"severity: {defect.severity}{source}"]
    lines += [f"may be: {', '.join(guesses)}"] if guesses else []
    lines.append(
        f"place: {defect.location}, box {list(defect.box)}" + (" (a ninth)" if defect.region_id is None else "")
    )
    return [*lines, f"rules: {', '.join(defect.rule_ids)}"] if defect.rule_ids else lines


def _source(defect: Defect) -> str:
    return "uncalibrated" if defect.confidence_source == "clip_softmax" else defect.confidence_source.replace("_", " ")


def nothing(said: Explanation) -> str:
    """What is said where there is no defect."""
    if said.verdict == "normal":
        return "No defect is reported."
    peak = next((one.text for one in said.evidence if one.kind == "map_region"), "there is no map")
    return f"No place stands out: {peak}."


def sections(said: Explanation) -> list[tuple[str, list[str]]]:
    """Headings with their lines; empty ones are left out."""
    rules = [
        f"{one.rule_id}: {one.verdict}"
        + ("" if one.p_violated is None else f", p = {one.p_violated:.2f}")
        + (f", {one.quote}" if one.quote else "")
        for one in said.rule_results
    ]
    found = {
        "Answer": [said.answer] if said.answer else [],
        "Rules": rules,
        "What could not be seen": [f"{one.text} ({one.code})" for one in said.limits],
        "Evidence": [f"{one.id}: {one.text}" for one in said.evidence],
        "Errors": list(said.errors),
    }
    return [(heading, words) for heading, words in found.items() if words]


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line; no HTML, no link, no list inside it."""
    line = " ".join("".join(c if c.isprintable() or c.isspace() else " " for c in text).split())
    return _SPECIAL.sub(r"\\\1", line).replace("<", "&lt;").replace("://", ":\u200b//")


def _listed(lines: Sequence[str], kind: str = "") -> str:
    inside = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="{kind}">{inside}</ul>' if inside else ""


def _fitted(picture: np.ndarray, longest: int) -> np.ndarray:
    scale = min(1.0, longest / max(picture.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def _view(picture: np.ndarray, boxes: Sequence[Box]) -> np.ndarray:
    """The whole picture, small, with the defects' boxes outlined."""
    view = Image.fromarray(_fitted(picture, VIEW))
    pen, scale = ImageDraw.Draw(view), view.width / picture.shape[1]
    for number, box in enumerate(boxes, start=1):
        x0, y0, x1, y1 = (round(edge * scale) for edge in box)
        pen.rectangle((x0 - 4, y0 - 4, x1 + 3, y1 + 3), outline="black", width=2)
        pen.rectangle((x0 - 2, y0 - 2, x1 + 1, y1 + 1), outline="white", width=2)
        pen.text((x0, max(0, y0 - 18)), str(number), "white", stroke_width=2, stroke_fill="black")
    return np.array(view)


def _picture(picture: np.ndarray, words: str) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="JPEG", quality=88)
    return f'<img alt="{escape(words)}" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'
