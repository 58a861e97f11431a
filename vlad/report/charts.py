"""The drawings of a report as inline SVG: bars with intervals, curves, lines over severities. Values are in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

PALETTE = 8  # colours c0 .. c7 of the page's style sheet


def colour(number: int) -> str:
    """The CSS class of the colour of the n-th detector."""
    return f"c{number % PALETTE}"


def bars(
    rows: Sequence[tuple[str, Sequence[tuple[float, tuple[float, float] | None]]]],
    names: Sequence[str],
    start: float = 0.0,
) -> str:
    """Horizontal bars: a group for each row (label, one (value, interval) for each name), an axis in percent below.

    Args:
        start: where the axis begins; a value of NaN is written as n/a.
    """
    bar, gap, left, width, right = (14 if len(names) == 1 else 11), 14, 150, 300, 46
    group = bar * len(names) + gap
    height = group * len(rows) + 26
    parts = [_svg(left + width + right, height, "bars")]
    for tick in range(math.ceil(start * 10 - 1e-9), 11, 2 if start < 0.5 else 1):
        x = left + width * (tick / 10 - start) / (1 - start)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 22}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 8}" text-anchor="middle">{tick * 10}</text>')
    for place, (label, values) in enumerate(rows):
        top = place * group + gap / 2
        middle = top + bar * len(names) / 2 + 4
        parts.append(f'<text class="label" x="{left - 10}" y="{middle:.1f}" text-anchor="end">{escape(label)}</text>')
        for number, (value, interval) in enumerate(values):
            y = top + number * bar
            if math.isnan(value):
                parts.append(f'<text class="tick" x="{left + 4}" y="{y + bar - 2:.1f}">n/a</text>')
                continue
            length = width * max(0.0, value - start) / (1 - start)
            box = f'x="{left}" y="{y + 1:.1f}" width="{length:.1f}" height="{bar - 2}" rx="2"'
            parts.append(
                f'<rect class="{colour(number)} bar" {box}>'
                f"<title>{escape(names[number])}: {100 * value:.1f}{_range(interval)}</title></rect>"
            )
            shown = left + length
            if interval:
                low, high = (left + width * max(0.0, end - start) / (1 - start) for end in interval)
                shown, y_mid = max(shown, high), y + bar / 2
                parts.append(f'<path class="whisker" d="M{low:.1f} {y_mid:.1f}H{high:.1f}"/>')
            parts.append(f'<text class="number" x="{shown + 5:.1f}" y="{y + bar - 2.5:.1f}">{100 * value:.1f}</text>')
    return "".join([*parts, "</svg>"])


def curve(
    lines: Sequence[tuple[int, Sequence[Sequence[float]]]], title: str, end: float = 1.0, diagonal: bool = True
) -> str:
    """Curves over the false positive rate up to `end`, a line for each (number of the detector, points)."""
    side, left, bottom = 120, 26, 20
    parts = [_svg(side + left + 14, side + bottom + 18, "curve")]
    parts.append(f'<text class="label" x="{left + side / 2}" y="12" text-anchor="middle">{escape(title)}</text>')
    for share in (0, 0.5, 1):
        x, y = left + side * share, 18 + side * (1 - share)
        parts.append(f'<path class="grid" d="M{x:.1f} 18V{18 + side}M{left} {y:.1f}H{left + side}"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{side + 31}" text-anchor="middle">{100 * share * end:g}</text>'
        )
        parts.append(f'<text class="tick" x="{left - 4}" y="{y + 4:.1f}" text-anchor="end">{100 * share:g}</text>')
    if diagonal:
        parts.append(f'<path class="chance" d="M{left} {18 + side}L{left + side} 18"/>')
    for number, points in lines:
        path = "L".join(f"{left + side * x / end:.1f} {18 + side * (1 - y):.1f}" for x, y in _until(points, end))
        parts.append(f'<path class="{colour(number)} line" d="M{path}"/>')
    return "".join([*parts, "</svg>"])


def _until(points: Sequence[Sequence[float]], end: float) -> list[tuple[float, float]]:
    """The points up to the rate `end`, with one interpolated there."""
    kept: list[tuple[float, float]] = []
    for x, y in points:
        if x > end:
            if kept:
                x0, y0 = kept[-1]
                kept.append((end, y0 + (y - y0) * (end - x0) / (x - x0)))
            break
        kept.append((x, y))
    return kept or [(0.0, 0.0)]


def severity(lines: Sequence[tuple[int, Mapping[int, float]]], clean: Sequence[float], title: str, low: float) -> str:
    """Values over severities, from the clean one at 0; a line for each (number of the detector, severity -> value)."""
    width, height, left = 190, 120, 28
    parts = [_svg(width + left + 10, height + 42, "curve")]
    parts.append(f'<text class="label" x="{left + width / 2}" y="12" text-anchor="middle">{escape(title)}</text>')
    places = [0, *sorted({level for _, found in lines for level in found})]
    xs = {level: left + width * level / max(places[-1], 1) for level in places}
    for level in places:
        word = "clean" if level == 0 else str(level)
        anchor = "start" if level == 0 else "middle"
        parts.append(f'<text class="tick" x="{xs[level]:.1f}" y="{height + 33}" text-anchor="{anchor}">{word}</text>')
    for share in (0, 0.5, 1):
        y = 18 + height * (1 - share)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{left + width}"/>')
        value = 100 * (low + (1 - low) * share)
        parts.append(f'<text class="tick" x="{left - 4}" y="{y + 4:.1f}" text-anchor="end">{value:.0f}</text>')
    for number, found in lines:
        points = [(xs[0], clean[number]), *((xs[level], value) for level, value in found.items())]
        kept = [(x, 18 + height * (1 - (y - low) / (1 - low))) for x, y in points if not math.isnan(y)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in kept)
        dots = "".join(f'<circle class="{colour(number)} bar" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in kept)
        parts.append(f'<path class="{colour(number)} line" d="M{path}"/>{dots}' if kept else "")
    return "".join([*parts, "</svg>"])


def _svg(width: float, height: float, kind: str) -> str:
    return f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img">'


def _range(interval: tuple[float, float] | None) -> str:
    return f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else ""
