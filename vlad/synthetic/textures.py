"""Surfaces of procedural pictures, and the drawing tools that they, the scenes and the defects share.

A field is float32 [S, S] with about mean 0 and standard deviation 1; a canvas is float32 [S, S, 3] with values around
[0, 1]. All randomness comes from the generator given.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

Array = np.ndarray


@lru_cache(maxsize=4)
def _lattice(size: int) -> tuple[Array, Array]:
    line = np.linspace(-1, 1, size, dtype=np.float32)
    rows, columns = np.meshgrid(line, line, indexing="ij")
    return rows, columns


def axes(size: int, angle: float = 0.0, centre: tuple[float, float] = (0.0, 0.0)) -> tuple[Array, Array]:
    """Turned coordinates u, v [S, S]; the picture spans -1 to 1 along both sides before turning and moving."""
    y, x = _lattice(size)
    y, x = y - np.float32(centre[0]), x - np.float32(centre[1])
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * x + s * y, c * y - s * x


def stretch(small: Array, size: int) -> Array:
    """A small array resized to [S, S] with bicubic interpolation."""
    return np.asarray(Image.fromarray(small.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC))


def soft(values: Array, sigma: float) -> Array:
    """Gaussian blur of a [S, S] array, sigma in pixels (by halving when it is wide: exactness does not matter here)."""
    if sigma < 0.3:
        return values
    factor = max(1, int(sigma / 1.5))
    size = values.shape[0]
    small = Image.fromarray(values.astype(np.float32))
    if factor > 1:
        small = small.resize((max(size // factor, 2),) * 2, Image.Resampling.BOX)
    shrunk = np.asarray(small)
    weights = np.exp(-0.5 * (np.arange(-4, 5) * factor / sigma) ** 2).astype(np.float32)
    weights /= weights.sum()
    for axis in (0, 1):
        padded = np.pad(shrunk, [(4, 4) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        length = shrunk.shape[axis]
        shrunk = np.sum([w * padded.take(range(k, k + length), axis) for k, w in enumerate(weights)], axis=0)
    return stretch(shrunk, size) if factor > 1 else shrunk


def unit(values: Array) -> Array:
    """The array shifted and scaled to mean 0 and standard deviation 1."""
    return (values - values.mean()) / (values.std() + 1e-6)


def cloud(rng: Generator, size: int, first: int = 3, octaves: int = 5, fade: float = 0.6) -> Array:
    """Noise at several octaves, coarsest with `first` cells a side, each finer one weaker by `fade`."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        cells = min(first * 2**octave, size)
        total += fade**octave * stretch(rng.standard_normal((cells, cells), dtype=np.float32), size)
    return unit(total)


def strokes(size: int, lines: list[tuple[list[tuple[float, float]], float]]) -> Array:
    """Anti-aliased coverage [S, S] in [0, 1] of polylines ((x, y) points in pixels, width in pixels)."""
    big = Image.new("L", (2 * size, 2 * size))
    pen = ImageDraw.Draw(big)
    for points, width in lines:
        pen.line([(2 * x, 2 * y) for x, y in points], fill=255, width=max(1, round(2 * width)), joint="curve")
    return np.asarray(big.resize((size, size), Image.Resampling.BOX), np.float32) / 255


def grain(rng: Generator, size: int) -> Array:
    return unit(soft(rng.standard_normal((size, size), dtype=np.float32), rng.uniform(0, 1.6)))


def brushed(rng: Generator, size: int) -> Array:
    cells = (int(rng.integers(size // 3, size + 1)), int(rng.integers(2, 12)))
    lines = rng.standard_normal(cells, dtype=np.float32) + rng.uniform(0, 2) * rng.standard_normal(
        (cells[0], 1), np.float32
    )
    streaks = stretch(lines, size)
    return unit(streaks.T if rng.random() < 0.6 else streaks) + 0.3 * grain(rng, size)


def weave(rng: Generator, size: int) -> Array:
    u, v = axes(size, rng.uniform(0, np.pi))
    f = rng.uniform(20, 90)
    wobble = 0.4 * cloud(rng, size, 4, 2)
    a, b = np.sin(f * u + wobble), np.sin(f * rng.uniform(0.7, 1.3) * v + wobble)
    woven = (a * b, np.maximum(a, b), np.abs(a) - np.abs(b), np.sin(f * (u + 0.5 * np.sign(b))))[rng.integers(4)]
    return unit(woven) + rng.uniform(0.1, 0.6) * grain(rng, size)


def wood(rng: Generator, size: int) -> Array:
    u, v = axes(size, rng.uniform(0, np.pi), tuple(rng.uniform(-2, 2, 2)))
    rings = np.sqrt(u * u * rng.uniform(0.01, 0.3) + v * v) * rng.uniform(20, 60)
    return unit(np.sin(rings + 2 * cloud(rng, size, 3, 3))) + 0.4 * brushed(rng, size)


def marble(rng: Generator, size: int) -> Array:
    veins = np.abs(
        np.sin(rng.uniform(2, 8) * axes(size, rng.uniform(0, np.pi))[0] + rng.uniform(1, 3) * cloud(rng, size, 3))
    )
    return unit(veins ** rng.uniform(0.3, 1)) + 0.3 * cloud(rng, size, 8)


def grid(rng: Generator, size: int) -> Array:
    u, v = axes(size, rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)]), tuple(rng.uniform(-0.3, 0.3, 2)))
    pitch = rng.uniform(0.08, 0.6) * np.array([1, rng.choice([1, rng.uniform(0.4, 1)])])
    width = rng.uniform(0.02, 0.08)
    lines = (np.abs((u / pitch[0]) % 1 - 0.5) > 0.5 - width) | (np.abs((v / pitch[1]) % 1 - 0.5) > 0.5 - width)
    return unit(soft(lines.astype(np.float32), 0.6)) + rng.uniform(0.2, 0.8) * (grain if rng.random() < 0.5 else cloud)(
        rng, size
    )


def dots(rng: Generator, size: int) -> Array:
    angle, f = rng.uniform(0, np.pi), rng.uniform(12, 50)
    u, v = axes(size, angle)
    shift = np.where((v * f / np.pi) % 2 < 1, np.pi / 2, 0) * rng.integers(0, 2)
    holes = np.cos(f * u + shift) * np.cos(f * v) > rng.uniform(0.1, 0.8)
    return unit(soft(holes.astype(np.float32), 0.7)) + rng.uniform(0.1, 0.5) * grain(rng, size)


def speckle(rng: Generator, size: int) -> Array:
    spots = soft(rng.standard_normal((size, size), dtype=np.float32), rng.uniform(0.7, 3))
    level = np.quantile(spots[::4, ::4], rng.uniform(0.85, 0.98))
    return unit(np.clip(spots - level, 0, None)) * rng.choice([-1, 1]) + rng.uniform(0.1, 0.7) * grain(rng, size)


def asphalt(rng: Generator, size: int) -> Array:
    stones = unit(soft(rng.standard_normal((size, size), dtype=np.float32), rng.uniform(0.6, 2.2)))
    stones = np.where(stones > rng.uniform(0.3, 1.2), stones * rng.uniform(1, 2.5), stones)
    return unit(stones + rng.uniform(0, 0.8) * cloud(rng, size, 3, 3) + 0.4 * grain(rng, size))


def crystals(rng: Generator, size: int) -> Array:
    n = int(rng.integers(30, 220))
    small = 56
    y, x = _lattice(small)
    seeds = rng.uniform(-1.1, 1.1, (2, n)).astype(np.float32)
    squash = np.float32(rng.uniform(0.3, 1))
    wobble = 0.15 * cloud(rng, small, 6, 2)
    far = (y[..., None] + wobble[..., None] - seeds[0]) ** 2 + squash * (
        x[..., None] - wobble[..., None] - seeds[1]
    ) ** 2
    tones = rng.standard_normal(n).astype(np.float32)[far.argmin(-1)]
    sharp = np.asarray(Image.fromarray(tones).resize((size, size), Image.Resampling.BILINEAR))
    return unit(sharp) + rng.uniform(0.1, 0.9) * cloud(rng, size, 5, 5, 0.7)


def dough(rng: Generator, size: int) -> Array:
    bumps = cloud(rng, size, int(rng.integers(5, 14)), 4, 0.7)
    lit = np.gradient(bumps, axis=int(rng.integers(2)))
    chips = cloud(rng, size, int(rng.integers(6, 16)), 2) > rng.uniform(1.4, 2.4)
    return unit(lit) + 0.5 * bumps - rng.uniform(0, 4) * soft(chips.astype(np.float32), 1)


def rings(rng: Generator, size: int) -> Array:
    u, v = axes(size, 0, tuple(rng.uniform(-0.2, 0.2, 2)))
    table = np.cumsum(rng.standard_normal(512)) * rng.choice([0, 0.3]) + rng.standard_normal(512)
    return unit(table[(np.hypot(u, v) * rng.uniform(60, 250)).astype(int) % 512].astype(np.float32)) + 0.3 * grain(
        rng, size
    )


def folds(rng: Generator, size: int) -> Array:
    height = cloud(rng, size, int(rng.integers(3, 9)), 3)
    return unit(np.tanh(rng.uniform(1, 4) * np.sin(height * rng.uniform(2, 7)))) + 0.3 * grain(rng, size)


def stripes(rng: Generator, size: int) -> Array:
    u, v = axes(size, rng.uniform(0, np.pi))
    wave = np.sin(rng.uniform(8, 70) * u + rng.choice([0, 1]) * np.sin(rng.uniform(4, 12) * v) * rng.uniform(0, 3))
    return unit(np.tanh(wave * rng.uniform(0.5, 6))) + rng.uniform(0.1, 0.6) * grain(rng, size)


def smudged(rng: Generator, size: int) -> Array:
    blots = cloud(rng, size, int(rng.integers(3, 10)), 5, 0.75)
    return unit(np.minimum(blots, rng.uniform(-0.5, 1))) + rng.uniform(0.1, 0.6) * grain(rng, size)


def spectral(rng: Generator, size: int) -> Array:
    """Noise of a random spectrum (a slope, perhaps a band or a direction), often bent: waves, labyrinths, grain."""
    fy, fx = np.fft.fftfreq(size)[:, None] * size, np.fft.rfftfreq(size)[None] * size
    radius = np.maximum(np.hypot(fy, fx), 1)
    strength = radius ** -rng.uniform(0, 2)
    if rng.random() < 0.6:
        middle, width = np.exp(rng.uniform(np.log(4), np.log(size / 4))), rng.uniform(0.1, 0.7)
        strength = strength * (np.exp(-((np.log(radius / middle) / width) ** 2)) + rng.choice([0, 0.03]))
    if rng.random() < 0.5:
        along = np.cos(np.arctan2(fy, fx) - rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)])) ** 2
        strength = strength * (along ** rng.uniform(1, 40) + rng.choice([0, 0.05]))
    strength[0, 0] = 0
    turns = np.exp(2j * np.pi * rng.random(strength.shape))
    waves = unit(np.fft.irfft2(strength * turns, (size, size)).astype(np.float32))
    bend = rng.integers(5)
    bent = (waves, np.tanh(rng.uniform(1, 5) * waves), np.abs(waves), np.maximum(waves, rng.uniform(-0.5, 1)), waves)
    return unit(bent[bend]) + rng.uniform(0, 0.4) * grain(rng, size)


def blotches(rng: Generator, size: int) -> Array:
    """Dark blotches of all sizes all over, denser here and thinner there, as on cast or crystalline matter."""
    dense, total = rng.uniform(0, 0.5) * cloud(rng, size, 3, 2), np.zeros((size, size), np.float32)
    for cells in rng.integers(5, 40, int(rng.integers(1, 4))):
        spots = cloud(rng, size, int(cells), 3, rng.uniform(0.4, 0.8)) + dense
        total -= rng.uniform(0.3, 1) * np.clip((spots - rng.uniform(0.9, 1.8)) * rng.uniform(1, 5), 0, 1)
    return unit(total) + rng.uniform(0.1, 0.6) * (grain if rng.random() < 0.5 else cloud)(rng, size)


def leaves(rng: Generator, size: int) -> Array:
    """Things lying over each other (the dead leaves model): gravel, chips, scales, at one size or at all sizes."""
    count, smallest = int(rng.integers(80, 400)), rng.uniform(0.015, 0.08)
    largest = smallest * rng.choice([1.3, 3, 10])
    page, shade = Image.new("F", (size, size)), rng.uniform(0, 0.4)
    pen, corners = ImageDraw.Draw(page), rng.integers(3, 9)
    turns = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    reaches = smallest * (1 - rng.random(count) * (1 - (smallest / largest) ** 2)) ** -0.5 * size
    for reach, tone, (x, y) in zip(reaches, rng.standard_normal(count), rng.uniform(0, size, (count, 2)), strict=True):
        at = turns + rng.uniform(0, 2 * np.pi)
        far = reach * rng.uniform(0.7, 1.3, corners)
        outline = np.stack([x + far * np.cos(at), y + far * np.sin(at)], -1)
        pen.polygon([tuple(point) for point in outline.tolist()], fill=float(tone))
        pen.line([tuple(point) for point in outline[: corners // 2 + 1].tolist()], fill=float(tone - 4 * shade))
    return unit(soft(np.asarray(page), 0.6)) + rng.uniform(0.05, 0.5) * grain(rng, size)


def cells(rng: Generator, size: int) -> Array:
    """Cells with walls between: leather, crackle glaze, foam, mosaic."""
    small, n = 112, int(rng.integers(20, 160))
    y, x = _lattice(small)
    seeds = rng.uniform(-1.1, 1.1, (2, n)).astype(np.float32)
    wobble = rng.uniform(0, 0.1) * cloud(rng, small, 6, 2)
    down, across = y[..., None] + wobble[..., None] - seeds[0], x[..., None] - wobble[..., None] - seeds[1]
    far = np.hypot(down, across)
    near = np.partition(far, 1, axis=-1)[..., :2]
    walls = np.clip((near[..., 1] - near[..., 0]) * np.sqrt(n) * rng.uniform(1, 5), 0, 1)
    return unit(stretch(walls, size)) * rng.choice([-1, 1]) + rng.uniform(0.1, 0.6) * grain(rng, size)


def plain(rng: Generator, size: int) -> Array:
    return 0.5 * cloud(rng, size, 2, 2) + 0.2 * grain(rng, size)


TEXTURES: dict[str, tuple[Callable[[Generator, int], Array], tuple[str, ...]]] = {
    "grain": (grain, ("cast metal", "sandpaper", "plastic", "felt", "stone")),
    "brushed": (brushed, ("brushed steel", "rolled aluminium", "ground metal", "magnetic ceramic")),
    "weave": (weave, ("fabric", "carpet", "woven cloth", "canvas", "mesh")),
    "wood": (wood, ("wood", "timber", "oak", "veneer")),
    "marble": (marble, ("marble", "leather", "granite")),
    "grid": (grid, ("tiled ceramic", "wire grid", "circuit", "brick")),
    "dots": (dots, ("perforated metal", "dotted fabric", "rubber")),
    "speckle": (speckle, ("terrazzo", "speckled stone", "foam", "powder")),
    "asphalt": (asphalt, ("asphalt", "concrete", "gravel", "pavement")),
    "crystals": (crystals, ("polycrystalline silicon", "galvanised steel", "mosaic")),
    "dough": (dough, ("dough", "biscuit", "bread", "clay")),
    "rings": (rings, ("turned metal", "machined steel", "vinyl")),
    "folds": (folds, ("tissue", "brain tissue", "camouflage cloth", "leather")),
    "stripes": (stripes, ("corrugated board", "striped cloth", "ribbed rubber")),
    "spectral": (spectral, ("cast iron", "leather", "ground steel", "hammered metal", "fur", "skin")),
    "blotches": (blotches, ("multicrystalline silicon", "cast resin", "cork", "chipboard")),
    "leaves": (leaves, ("gravel", "chipboard", "granulate", "cereal", "scales")),
    "cells": (cells, ("leather", "crackle glaze", "foam", "sponge")),
    "smudged": (smudged, ("silicon", "rusty steel", "painted wall", "paper")),
    "plain": (plain, ("glass", "porcelain", "painted metal", "monocrystalline silicon", "plastic")),
}


def paint(rng: Generator, values: Array, contrast: float, base: Array | None = None) -> Array:
    """A canvas [S, S, 3] from a field: a base colour, and the field along a nearby colour direction."""
    if base is None:
        base = np.clip(rng.uniform(0.15, 0.85) + rng.normal(0, rng.choice([0, 0.12]), 3), 0.05, 0.95)
    direction = 1 + rng.normal(0, rng.choice([0, 0.25]), 3)
    return (base + contrast * values[..., None] * direction).astype(np.float32)


def surface(rng: Generator, size: int, low: float = 0.01, high: float = 0.16) -> tuple[Array, str]:
    """A textured canvas and its material; sometimes one texture on top of another."""
    function, words = list(TEXTURES.values())[rng.integers(len(TEXTURES))]
    values = function(rng, size)
    if rng.random() < 0.3:
        values = values + rng.uniform(0.3, 1) * list(TEXTURES.values())[rng.integers(len(TEXTURES))][0](rng, size)
    return paint(rng, unit(values), float(np.exp(rng.uniform(np.log(low), np.log(high))))), str(rng.choice(words))


def spot(rng: Generator, part: Array) -> tuple[float, float]:
    """A random position (row, column) in pixels on the part."""
    rows, columns = np.nonzero(part[::4, ::4])
    if not len(rows):
        return float(rng.uniform(0.2, 0.8) * len(part)), float(rng.uniform(0.2, 0.8) * len(part))
    pick = rng.integers(len(rows))
    return 4.0 * rows[pick] + rng.uniform(0, 4), 4.0 * columns[pick] + rng.uniform(0, 4)


def blob(rng: Generator, size: int, at: tuple[float, float], reach: float, ragged: float = 0.5) -> Array:
    """Height [S, S] (above 0 inside) of a ragged ellipse of about `reach` pixels round a position (row, column)."""
    centre = (2 * at[0] / size - 1, 2 * at[1] / size - 1)
    u, v = axes(size, rng.uniform(0, np.pi), centre)
    r = 2 * reach / size
    height = 1 - np.hypot(u * rng.uniform(0.6, 1.2), v * rng.uniform(0.8, 2)) / r
    return height + ragged * cloud(rng, size, int(np.clip(2 * size / max(reach, 4), 4, 48)), 3)


def walk(
    rng: Generator, at: tuple[float, float], length: float, bend: float, heading: float
) -> list[tuple[float, float]]:
    """Points (x, y) of a line that turns by about `bend` radians a step."""
    steps = max(int(length / 4), 2)
    turns = heading + np.cumsum(rng.normal(0, bend, steps))
    x, y = at[1] + np.cumsum(np.cos(turns)) * 4, at[0] + np.cumsum(np.sin(turns)) * 4
    return list(zip(x.tolist(), y.tolist(), strict=True))


def edge(rng: Generator, part: Array) -> tuple[float, float]:
    """A random position on the part's border, or on the frame's border where the part fills it."""
    size = len(part)
    rim = part[2:-2:2, 2:-2:2] & ~(part[:-4:2, 2:-2:2] & part[4::2, 2:-2:2] & part[2:-2:2, :-4:2] & part[2:-2:2, 4::2])
    rows, columns = np.nonzero(rim)
    if len(rows) > 40:
        pick = rng.integers(len(rows))
        return 2.0 * rows[pick] + 2, 2.0 * columns[pick] + 2
    along, side = rng.uniform(0, size), rng.choice([0, size - 1])
    return (along, float(side)) if rng.random() < 0.5 else (float(side), along)
