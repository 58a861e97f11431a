"""Normal scenes of procedural pictures: what is in the frame before any defect."""

from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator

from vlad.synthetic.clutter import clutter
from vlad.synthetic.textures import (
    Array,
    axes,
    brushed,
    cloud,
    dough,
    folds,
    grain,
    paint,
    plain,
    smudged,
    soft,
    spectral,
    surface,
    weave,
)


@dataclass
class Scene:
    """A drawn normal thing before any defect."""

    canvas: Array  # [S, S, 3]
    part: Array  # bool [S, S]: the thing under inspection
    ground: Array  # [S, S, 3]: what shows where the thing is missing
    material: str
    object: str
    centres: list[tuple[int, int, int]] = field(default_factory=list)  # (row, column, radius) of equal parts


def _radial(rng: Generator, size: int, u: Array, v: Array) -> tuple[Array, str]:
    """Height (1 in the middle, 0 at the edge) of a disc, blob, polygon or gear, and its word."""
    angle, radius = np.arctan2(v, u), np.hypot(u, v)
    kind = rng.integers(5)
    if kind == 0:
        return 1 - radius, str(rng.choice(["disc", "cap", "lid", "coin", "button", "tablet"]))
    if kind == 1:
        edge = 1 + sum(rng.normal(0, 0.12 / k) * np.cos(k * angle + rng.uniform(0, 6)) for k in range(2, 7))
        return 1 - radius / edge, str(rng.choice(["cookie", "biscuit", "nut", "stone", "fruit", "potato"]))
    if kind == 2:
        n = int(rng.integers(3, 9))
        return 1 - radius * np.cos((angle % (2 * np.pi / n)) - np.pi / n) / np.cos(np.pi / n), str(
            rng.choice(["nut", "plate", "badge"])
        )
    if kind == 3:
        teeth = 1 + rng.uniform(0.04, 0.15) * np.tanh(4 * np.sin(rng.integers(8, 30) * angle))
        return 1 - radius / teeth, str(rng.choice(["gear", "cog", "bottle cap"]))
    inner = rng.uniform(0.3, 0.75)
    return np.minimum(1 - radius, radius - inner) / (1 - inner) * 2, str(
        rng.choice(["ring", "washer", "gasket", "bearing"])
    )


def _long(rng: Generator, size: int, u: Array, v: Array) -> tuple[Array, str]:
    """Height of a long thing whose half width follows a profile: screw, bolt, bottle, capsule, bar."""
    knots = rng.uniform(0.12, 0.35) * rng.uniform(0.6, 1.3, int(rng.integers(2, 7)))
    steps = (
        np.interp(u, np.linspace(-1, 1, len(knots)), knots)
        if rng.random() < 0.5
        else knots[np.clip(((u + 1) / 2 * len(knots)).astype(int), 0, len(knots) - 1)]
    )
    if rng.random() < 0.4:
        steps = steps + rng.uniform(0.02, 0.06) * np.abs((u * rng.uniform(4, 12)) % 1 - 0.5) * (
            u > rng.uniform(-1, 0.5)
        )
    body = np.minimum(1 - np.abs(v) / steps, (1 - np.abs(u)) * 6)
    if rng.random() < 0.4:  # thread or ribs
        turns, slant = rng.uniform(20, 70), rng.choice([0, rng.uniform(-0.5, 0.5)])
        body = body * (1 + rng.uniform(0.2, 0.7) * np.sin(turns * (u + slant * v)) * (u > rng.uniform(-1, 0.6)))
    return body, str(
        rng.choice(["screw", "bolt", "bottle", "capsule", "bar", "pen", "toothbrush", "pipe", "cable", "zipper"])
    )


def _rounded(rng: Generator, size: int, u: Array, v: Array) -> tuple[Array, str]:
    """Height of a rectangle with rounded or cut corners."""
    a, b = np.abs(u), np.abs(v) / rng.uniform(0.5, 1)
    height = 1 - (a ** (p := rng.choice([2, 4, 8, 16])) + b**p) ** (1 / p)
    if rng.random() < 0.4:
        height = np.minimum(height, rng.uniform(1.4, 1.9) - a - b)
    return height, str(rng.choice(["tile", "plate", "chip", "circuit board", "box", "card", "block", "label", "panel"]))


def thing(rng: Generator, size: int, reach: float, centre: tuple[float, float]) -> tuple[Array, str]:
    """Height field (above 0 inside, 1 in the middle) of a shape of half size `reach`, and its word."""
    angle = rng.choice([0.0, np.pi / 2, rng.uniform(0, 2 * np.pi)])
    u, v = axes(size, angle, centre)
    shape = (_radial, _radial, _long, _rounded)[rng.integers(4)]
    height, word = shape(rng, size, u / np.float32(reach), v / np.float32(reach))
    return height.astype(np.float32), word


def place(rng: Generator, ground: Array, body: Array, height: Array, reach: float) -> tuple[Array, Array]:
    """The body laid on the ground where height > 0, with relief, rim and shadow; and its boolean part."""
    size = ground.shape[0]
    cover = np.clip(height * size * reach / 2 + 0.5, 0, 1)[..., None]
    inside = np.clip(height, 0, 1)
    relief = rng.choice([0, rng.uniform(0, 0.35)]) * (np.sqrt(inside) - 0.7)
    rim = rng.choice([0, 0, rng.uniform(-0.4, 0.5)]) * np.exp(-((inside / rng.uniform(0.03, 0.2)) ** 2))
    if rng.random() < 0.5:
        shift = tuple(rng.integers(-8, 9, 2))
        shadow = soft(np.roll(cover[..., 0], shift, (0, 1)), rng.uniform(1, 8))[..., None]
        ground = ground * (1 - rng.uniform(0.1, 0.6) * shadow)
    return ground * (1 - cover) + (body + (relief + rim)[..., None]) * cover, cover[..., 0] > 0.5


def _texture_scene(rng: Generator, size: int) -> Scene:
    canvas, material = surface(rng, size, 0.015, 0.18)
    word = str(rng.choice(["surface", "sheet", "material", "texture", "panel", "sample", "road", "wall", "floor"]))
    dark = np.full_like(canvas, rng.uniform(0, 0.2)) if rng.random() < 0.7 else surface(rng, size)[0]
    return Scene(canvas, np.ones((size, size), bool), dark, material, word)


def _quiet(rng: Generator, size: int) -> Array:
    """A plain or faintly textured ground, often nearly black or white."""
    level = rng.choice([rng.uniform(0, 0.12), rng.uniform(0.8, 1), rng.uniform(0.1, 0.9)])
    base = np.clip(level + rng.normal(0, rng.choice([0, 0.08]), 3), 0, 1)
    values = (grain, plain, brushed, cloud, weave)[rng.integers(5)](rng, size)
    return paint(rng, values, rng.choice([0.0, 0.01, rng.uniform(0.01, 0.05)]), base)


def _features(rng: Generator, canvas: Array, ground: Array, height: Array) -> Array:
    """Smaller parts on a thing, or holes through it; each alone, mirrored, or in a ring."""
    size = len(canvas)
    for _ in range(rng.integers(1, 5)):
        reach, (y, x) = rng.uniform(0.05, 0.3), rng.uniform(-0.5, 0.5, 2)
        look = ground if rng.random() < 0.4 else surface(rng, size)[0]
        spots = [(y, x)]
        if (copies := rng.random()) < 0.3:
            spots.append((y, -x))
        elif copies < 0.5:
            spots = [(np.hypot(y, x) * np.sin(t), np.hypot(y, x) * np.cos(t)) for t in np.arange(6) * np.pi / 3]
        bump, _ = thing(rng, size, reach, spots[0])
        shifts = [(round((i - spots[0][0]) * size / 2), round((j - spots[0][1]) * size / 2)) for i, j in spots]
        bumps = [np.roll(bump, shift, (0, 1)) for shift in shifts]
        canvas, _ = place(rng, canvas, look, np.minimum(np.maximum.reduce(bumps), height), reach)
    return canvas


def _object_scene(rng: Generator, size: int) -> Scene:
    ground = _quiet(rng, size)
    body, material = surface(rng, size, 0.01, 0.15)
    reach = rng.uniform(0.45, 0.98)
    height, word = thing(rng, size, reach, tuple(rng.uniform(-0.25, 0.25, 2)))
    canvas, part = place(rng, ground, body, height, reach)
    if rng.random() < 0.55:
        canvas = _features(rng, canvas, ground, height)
    return Scene(canvas, part, ground, material, word)


def _array_scene(rng: Generator, size: int) -> Scene:
    ground = _quiet(rng, size) if rng.random() < 0.7 else surface(rng, size, 0.01, 0.06)[0]
    canvas, (body, material) = ground.copy(), surface(rng, size)
    rows, columns = (int(n) for n in rng.integers(2, 7, 2))
    cell = size // max(rows, columns)
    one, word = thing(rng, cell, rng.uniform(0.6, 0.95), (0, 0))
    jitter = rng.choice([0, 0, 2])
    stamp, part = place(rng, ground[:cell, :cell], body[:cell, :cell], one, 0.8)
    whole, centres = np.zeros((size, size), bool), []
    top, left = (size - rows * cell) // 2, (size - columns * cell) // 2
    for r in range(rows):
        for c in range(columns):
            y, x = np.clip(
                np.array([top + r * cell, left + c * cell]) + rng.integers(-jitter, jitter + 1, 2), 0, size - cell
            )
            canvas[y : y + cell, x : x + cell] = np.where(part[..., None], stamp, canvas[y : y + cell, x : x + cell])
            whole[y : y + cell, x : x + cell] |= part
            centres.append((int(y) + cell // 2, int(x) + cell // 2, cell // 2))
    return Scene(
        canvas, whole, ground, material, f"{word} array" if rng.random() < 0.3 else f"row of {word} parts", centres
    )


def _framed_scene(rng: Generator, size: int) -> Scene:
    """One thing that fills the frame: a tile with round or cut corners and uneven margins, often cut by the frame."""
    body, material = surface(rng, size, 0.01, 0.14)
    level = rng.choice([rng.uniform(0, 0.15), rng.uniform(0, 0.15), rng.uniform(0.7, 1)])
    ground = paint(rng, cloud(rng, size, 3, 3), rng.uniform(0, 0.03), np.full(3, level))
    u, v = axes(size, rng.normal(0, 0.015), tuple(rng.normal(0, 0.03, 2)))
    wobble = rng.choice([0, rng.uniform(0, 0.02)]) * cloud(rng, size, 4, 3)
    a, b = np.abs(u) / rng.uniform(0.85, 1.25) + wobble, np.abs(v) / rng.uniform(0.85, 1.25) + wobble
    power = rng.choice([4, 8, 16, 40])
    height = 1 - (a**power + b**power) ** (1 / power)
    if rng.random() < 0.5:
        height = np.minimum(height, rng.uniform(1.55, 1.95) - a - b)
    for _ in range(rng.integers(0, 3)):  # a dark band at one side
        side = (u, -u, v, -v)[rng.integers(4)]
        height = np.minimum(height, rng.uniform(0.75, 1) - side + rng.choice([0, 0.02]) * wobble)
    canvas, part = place(rng, ground, body, height.astype(np.float32), 1.0)
    word = str(
        rng.choice(["tile", "cell", "solar cell", "plate", "wafer", "panel", "card", "battery", "screen", "board"])
    )
    return Scene(canvas, part, ground, material, word)


def _inside(rng: Generator, u: Array, v: Array, radius: Array) -> Array:
    """Tone [S, S] of what a body holds: tissues, a core, chambers and a cleft, the halves much or not at all alike."""
    size = len(u)
    tone = np.full_like(u, rng.uniform(0.2, 0.6)) + 0.02 * grain(rng, size)
    likeness = rng.choice([0, rng.uniform(0.6, 1), rng.uniform(0.6, 1)])  # of the two halves
    for _ in range(rng.integers(1, 4)):  # tissues, some of them in a shell
        half = (folds, cloud, smudged, dough, spectral)[rng.integers(5)](rng, size)
        mirrored = np.where(np.arange(size) < size // 2, half, half[:, ::-1])
        tissue = likeness * mirrored + (1 - likeness) * half
        within = np.exp(-(((radius - rng.uniform(0, 1)) / rng.uniform(0.2, 0.6)) ** 2)) if rng.random() < 0.5 else 1
        tone = tone + rng.uniform(0.03, 0.25) * tissue * within
    if rng.random() < 0.4:  # a core with a folded border, of another tone
        tone = tone + rng.uniform(-0.3, 0.3) * (radius + rng.uniform(0, 0.15) * mirrored < rng.uniform(0.4, 0.8))
    for _ in range(rng.integers(0, 5)):  # chambers in the middle, the same on both sides
        x0, y0, r, lean = rng.uniform(0, 0.3), rng.uniform(-0.5, 0.5), rng.uniform(0.05, 0.25), rng.uniform(-0.8, 0.8)
        across, down = np.abs(u) - x0 - lean * (v - y0), v - y0
        chamber = np.hypot(across * rng.uniform(0.7, 3), down * rng.uniform(0.5, 1)) + 0.03 * mirrored < r
        tone = np.where(chamber, tone + rng.uniform(-0.5, 0.6), tone)
    if rng.random() < 0.4:  # the cleft between the halves
        tone = tone + rng.uniform(-0.4, 0.3) * np.exp(-((u / rng.uniform(0.01, 0.04)) ** 2)) * (np.abs(v) > 0.3)
    return tone


def _body_scene(rng: Generator, size: int) -> Scene:
    """A round body with shells and a mirror-symmetric inside on a dark ground, like a scan or a cut fruit."""
    ground = paint(
        rng, grain(rng, size), rng.uniform(0, 0.02), np.full(3, rng.choice([0.02, 0.05, rng.uniform(0, 0.5)]))
    )
    u, v = axes(size, rng.choice([0, rng.normal(0, 0.1)]), tuple(rng.normal(0, 0.05, 2)))
    u, v = u / np.float32(rng.uniform(0.6, 0.98)), v / np.float32(rng.uniform(0.6, 0.98))
    angle = np.arctan2(np.abs(u), v)
    radius = np.hypot(u, v) * (1 + sum(rng.normal(0, 0.04) * np.cos(k * angle) for k in (1, 2, 3)))
    tone = _inside(rng, u, v, radius)
    at = rng.uniform(0.75, 0.95)
    for edge, width in ((at, 0.03), (at + 0.06, rng.uniform(0.02, 0.05))):  # shells
        tone = tone + rng.uniform(-0.5, 0.6) * np.exp(-(((radius - edge) / width) ** 2))
    cover = np.clip((1 - radius) * size / 2, 0, 1)[..., None].astype(np.float32)
    canvas = ground * (1 - cover) + paint(rng, soft(tone.astype(np.float32), 0.6), 1.0, np.zeros(3)) * cover
    word = str(rng.choice(["brain", "brain scan", "head", "fruit", "seed", "organ", "walnut", "lens"]))
    return Scene(canvas, radius < at, ground, str(rng.choice(["tissue", "organic", "soft tissue"])), word)


SCENES = (_texture_scene, _object_scene, _array_scene, _framed_scene, _body_scene)
SHARES = (0.27, 0.24, 0.09, 0.26, 0.14)


def draw_scene(rng: Generator, size: int) -> Scene:
    """A random normal scene with its normal clutter."""
    scene = SCENES[rng.choice(len(SCENES), p=SHARES)](rng, size)
    scene.canvas = clutter(rng, scene.canvas, scene.part)
    return scene
