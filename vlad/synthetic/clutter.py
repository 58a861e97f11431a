"""Marks on procedural pictures that are normal: regular, everywhere, written, or made by light.

Each function (rng, size) returns the cover [S, S] of one kind of mark, about 0 to 1.
"""

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from vlad.synthetic.textures import Array, axes, cloud, soft, strokes


def _bars(rng: Generator, size: int) -> Array:
    """Busbars: a few parallel lines over the whole picture, plain or dashed, perhaps with many faint cross lines."""
    u, v = axes(size, rng.choice([0, np.pi / 2]))
    count, width = int(rng.integers(1, 6)), rng.uniform(0.01, 0.06)
    phase = (v * count / 2 + rng.uniform(0, 1)) % 1
    lines = (np.abs(phase - 0.5) < width * count / 2).astype(np.float32)
    if rng.random() < 0.5:
        dash = (u * rng.uniform(3, 15)) % 1 < rng.uniform(0.3, 0.9)
        lines = lines * np.where(dash, 1.0, rng.choice([0, 0.4]))
    if rng.random() < 0.3:
        lines = lines + 0.3 * (np.sin(u * rng.uniform(60, 200)) > 0.6)
    return soft(lines.astype(np.float32), 0.5)


def _repeated(rng: Generator, size: int) -> Array:
    """The same small mark many times: in rows, in a ring, or scattered."""
    mark, n = np.asarray(rng.uniform(-1, 1, (int(rng.integers(2, 5)), 2))) * rng.uniform(2, 9), int(rng.integers(2, 6))
    if (kind := rng.integers(3)) == 0:
        spots = [(x, y) for x in np.linspace(0.1, 0.9, n) for y in np.linspace(0.1, 0.9, int(rng.integers(2, 6)))]
    elif kind == 1:
        turns = np.linspace(0, 2 * np.pi, 2 * n + 2, endpoint=False)
        spots = [(0.5 + 0.35 * np.cos(t), 0.5 + 0.35 * np.sin(t)) for t in turns]
    else:
        spots = list(rng.uniform(0.05, 0.95, (int(rng.integers(10, 30)), 2)))
    width = rng.uniform(0.7, 4)
    return strokes(size, [([(x * size + dx, y * size + dy) for dx, dy in mark], width) for x, y in spots])


def _hairlines(rng: Generator, size: int) -> Array:
    """Many fine lines everywhere."""
    count, common = int(rng.integers(12, 60)), rng.uniform(0, np.pi)
    spread, length = rng.choice([0.05, 0.3, 3]), rng.uniform(0.05, 0.6) * size
    lines = []
    for x, y in rng.uniform(0, size, (count, 2)):
        t = common + rng.normal(0, spread)
        lines.append(([(x, y), (x + length * np.cos(t), y + length * np.sin(t))], rng.uniform(0.4, 1)))
    return strokes(size, lines) * 0.6


def _text(rng: Generator, size: int) -> Array:
    """A few lines of letters and digits."""
    page = Image.new("L", (size, size))
    pen = ImageDraw.Draw(page)
    letters = "ABCDEFGHKLMNPRSTUVXYZ0123456789-./"
    x, y = rng.uniform(0.05, 0.5, 2) * size
    height = float(rng.uniform(8, 30))
    for line in range(rng.integers(1, 4)):
        word = "".join(rng.choice(list(letters), int(rng.integers(3, 12))))
        pen.text((x, y + line * height * 1.2), word, fill=255, font_size=height)
    turned = page.rotate(float(rng.choice([0, 0, 90, 180, rng.uniform(0, 360)])))
    return np.asarray(turned, np.float32) / 255


def _seam(rng: Generator, size: int) -> Array:
    """One or two straight joints from side to side."""
    _, v = axes(size, rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)]), tuple(rng.uniform(-0.5, 0.5, 2)))
    lines = np.exp(-((v / rng.uniform(0.006, 0.03)) ** 2))
    return lines + (np.exp(-(((v - 0.3) / 0.01) ** 2)) if rng.random() < 0.3 else 0)


def _highlight(rng: Generator, size: int) -> Array:
    """A broad soft reflection: a band along the picture or a patch."""
    u, v = axes(size, rng.uniform(0, np.pi), tuple(rng.uniform(-0.8, 0.8, 2)))
    return np.exp(-((v / rng.uniform(0.1, 0.6)) ** 2) - rng.choice([0, 1]) * (u / rng.uniform(0.2, 0.8)) ** 2)


def _margin(rng: Generator, size: int) -> Array:
    """A band along one side, or along two opposite ones, with a soft or sharp inner border."""
    u, _ = axes(size, rng.choice([0, np.pi / 2, np.pi, 3 * np.pi / 2]) + rng.normal(0, 0.02))
    inner, blur = rng.uniform(0.6, 1), rng.choice([2, 6, 40])
    waves = rng.choice([0, 0.05]) * cloud(rng, size, 3, 4)
    band = np.clip((u + waves - inner) * blur + 0.5, 0, 1)
    return band + (np.clip((-u + waves - rng.uniform(0.6, 1)) * blur + 0.5, 0, 1) if rng.random() < 0.5 else 0)


def _bands(rng: Generator, size: int) -> Array:
    """Light that is uneven along one axis: broad soft stripes, the same all the way across."""
    profile = cloud(rng, size, int(rng.integers(3, 12)), int(rng.integers(1, 4)))[:1]
    wide = np.broadcast_to(profile * 0.4, (size, size))
    return wide.T if rng.random() < 0.5 else wide


def _tabs(rng: Generator, size: int) -> Array:
    """The same blob some times along one border, or along two opposite ones."""
    u, v = axes(size, rng.choice([0, np.pi / 2]))
    count, deep, wide = int(rng.integers(2, 7)), rng.uniform(0.03, 0.15), rng.uniform(0.1, 0.45)
    along = np.abs((v * count / 2 + rng.choice([0, 0.5])) % 1 - 0.5) * 2
    inside = np.minimum(1 - u, 1 + u) if rng.random() < 0.6 else 1 - u
    return np.clip((1 - np.hypot(inside / deep, along / wide)) * rng.uniform(1, 6), 0, 1)


def _blotches(rng: Generator, size: int) -> Array:
    """Blots of all sizes all over."""
    spots = cloud(rng, size, int(rng.integers(5, 24)), int(rng.integers(1, 5)), rng.uniform(0.4, 0.9))
    return np.clip((spots - rng.uniform(1, 1.8)) * rng.uniform(0.7, 4), 0, 1)


CLUTTER = (_bars, _bars, _repeated, _hairlines, _text, _seam, _highlight, _margin, _bands, _tabs, _blotches)


def clutter(rng: Generator, canvas: Array, part: Array) -> Array:
    """The canvas [S, S, 3] with up to three kinds of normal marks on it, mostly within the part [S, S]."""
    for _ in range(rng.choice(4, p=[0.35, 0.3, 0.2, 0.15])):
        cover = CLUTTER[rng.integers(len(CLUTTER))](rng, canvas.shape[0])
        shift = rng.choice([-1, 1]) * rng.uniform(0.05, 0.4) + rng.normal(0, rng.choice([0, 0.1]), 3)
        within = part if rng.random() < 0.8 else 1.0
        canvas = canvas + ((cover * within)[..., None] * shift).astype(np.float32)
    return canvas
