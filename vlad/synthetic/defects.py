"""The defects of procedural pictures: each changes part of a scene and says exactly where.

A defect is a function (rng, scene, canvas, unit) -> (new canvas [S, S, 3], cover [S, S] in [0, 1]): `unit` is the
contrast of the picture's own texture, in which strengths are measured, and the canvas is unchanged where cover is 0. A
defect starts on the scene's part.
"""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from vlad.synthetic.scenes import Scene
from vlad.synthetic.textures import Array, axes, blob, cloud, edge, soft, spot, strokes, surface, walk

Marked = tuple[Array, Array]

WORDS: dict[str, tuple[str, ...]] = {
    "scratch": ("scratch", "scratches", "a scratch", "a scrape", "a score mark", "a scuff", "a scratched area"),
    "crack": ("crack", "a crack", "cracks", "a fracture", "a fissure", "a split", "a broken line", "a cracked area"),
    "stain": ("stain", "a stain", "a spot", "a blot", "dirt", "a smudge", "a mark", "residue", "mould"),
    "lesion": ("a lesion", "a tumor", "a lump", "a nodule", "a swelling", "a mass", "an abnormal area"),
    "dent": ("dent", "a dent", "a bump", "a bulge", "a dimple", "an indentation", "a deformed area"),
    "hole": ("hole", "a hole", "a blowhole", "holes", "a pit", "a pore", "a puncture", "pinholes"),
    "missing part": (
        "a missing part",
        "a broken edge",
        "a chip",
        "a break",
        "a bite",
        "a broken corner",
        "a piece missing",
    ),
    "contamination": ("contamination", "a foreign fibre", "a hair", "a foreign body", "dust", "a thread", "a particle"),
    "misplaced": (
        "a misplaced part",
        "a wrong part",
        "a foreign patch",
        "a swapped area",
        "a turned part",
        "misalignment",
    ),
    "worn": ("a worn area", "abrasion", "a blurred area", "a rubbed spot", "lost texture", "wear"),
    "bent": ("a bent part", "a bend", "a warped area", "distortion", "a twisted area"),
    "discolouration": (
        "discolouration",
        "a colour fault",
        "a burn",
        "a faded area",
        "a wrong colour",
        "corrosion",
        "rust",
    ),
    "uneven": ("an uneven area", "an uneven surface", "a dark area", "a bright area", "a rough area", "a dead area"),
    "fray": ("fray", "a frayed edge", "a ragged edge", "loose threads", "a burr", "a torn edge"),
    "print fault": ("a print fault", "a smeared print", "a misprint", "smearing", "a print defect"),
    "missing element": ("a missing element", "a missing component", "an empty place", "a missing piece"),
}


def _amount(rng: Generator, unit: float, low: float = 1.5, high: float = 4.5) -> float:
    """A signed strength: some units of the picture's contrast, never below a visible floor."""
    return float(rng.choice([-1, -1, 1]) * max(rng.uniform(low, high) * unit, rng.uniform(0.035, 0.25)))


def _reach(rng: Generator, size: int, low: float = 0.02, high: float = 0.25) -> float:
    return size * float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _tint(rng: Generator, canvas: Array, cover: Array, amount: float, colourful: float = 0.3) -> Marked:
    colour = amount * (1 + rng.normal(0, rng.choice([0, colourful]), 3)).astype(np.float32)
    return canvas + cover[..., None] * colour, cover


def _scratch(rng: Generator, scene: Scene, canvas: Array, unit: float) -> Marked:
    size, heading = len(canvas), rng.uniform(0, 2 * np.pi)
    at, bend = spot(rng, scene.part), rng.choice([0, 0.02, 0.08])
    lines = []
    for _ in range(rng.choice([1, 1, 2, 4])):
        start = (at[0] + rng.normal(0, 5), at[1] + rng.normal(0, 5))
        points = walk(rng, start, _reach(rng, size, 0.08, 0.7), bend, heading + rng.normal(0, 0.1))
        lines.append((points, rng.uniform(0.6, 2.6)))
    return _tint(rng, canvas, strokes(size, lines) * scene.part, _amount(rng, unit, 2, 5))


def _crack(rng: Generator, scene: Scene, canvas: Array, unit: float) -> Marked:
    size, at, heading = len(canvas), spot(rng, scene.part), rng.uniform(0, 2 * np.pi)
    if rng.random() < 0.35:  # along a plane of weakness: straight, often from side to side
        heading, bend = rng.choice([heading, np.pi / 4, 3 * np.pi / 4]), rng.uniform(0, 0.08)
    else:
        bend = rng.uniform(0.15, 0.5)
    trunk, width = walk(rng, at, _reach(rng, size, 0.12, 1.2), bend, heading), rng.uniform(0.8, 3.5)
    lines = [(trunk[k : k + 3], width * rng.uniform(0.5, 1.2)) for k in range(0, len(trunk) - 1, 2)]
    for _ in range(rng.integers(0, 4)):
        x, y = trunk[rng.integers(len(trunk))]
        lines.append(
            (walk(rng, (y, x), _reach(rng, size, 0.04, 0.25), 0.4, heading + rng.uniform(-1.3, 1.3)), width * 0.6)
        )
    cover = soft(strokes(size, lines), rng.choice([0, 0.5, 1])) * scene.part
    return _tint(rng, canvas, cover, (-1 if rng.random() < 0.8 else 1) * abs(_amount(rng, unit, 2, 6)), 0.1)


def _stain(rng: Generator, scene: Scene, canvas: Array, unit: float) -> Marked:
    size = len(canvas)
    height = blob(rng, size, spot(rng, scene.part), _reach(rng, size, 0.03, 0.22), rng.uniform(0.1, 0.7))
    cover = np.clip(soft(np.clip(height * rng.uniform(2, 12), 0, 1), rng.uniform(0, 2)), 0, 1) * scene.part
    if rng.random() < 0.25:  # a dried drop: mostly its outline
        cover = cover * (0.25 + 0.75 * (height < 0.35))
    return _tint(rng, canvas, cover, _amount(rng, unit, 1.3, 4))


def _lesion(rng: Generator, scene: Scene, canvas: Array, unit: float) -> Marked:
    size = len(canvas)
    height = blob(rng, size, spot(rng, scene.part), _reach(rng, size, 0.05, 0.27), rng.uniform(0.05, 0.3))
    cover = np.clip(soft(np.clip(height * 3, 0, 1), rng.uniform(0.5, 3)) * 1.1 - 0.1, 0, 1) * scene.part
    inner = soft(canvas.mean(-1), 5)[..., None] + rng.uniform(0, 0.6) * unit * cloud(rng, size, 12, 3)[..., None]
    amount = _amount(rng, unit, 1, 3.5) * rng.choice([1, -1])
    core = np.clip(height * 2 - 0.8, 0, 1)[..., None] * rng.choice([0, 0, -1.5, 0.7]) * amount
    if rng.random() < 0.25:  # a bright rim round a darker inside
        core = core - 2 * amount * np.clip((height - rng.uniform(0.25, 0.5)) * 6, 0, 1)[..., None]
    return canvas + cover[..., None] * (inner + amount + core - canvas), cover


def _dent(rng: Generator, scene: Scene, canvas: Array, unit: float) -> Marked:
    size, at = len(canvas), spot(rng, scene.part)
    reach = _reach(rng, size, 0.04, 0.18)
    u, v = axes(size, rng.uniform(0, 2 * np.pi), (2 * at[0] / size - 1, 2 * at[1] / size - 1))
    u, v = u * size / 2 / reach, v * size / 2 / reach * rng.uniform(0.7, 1.5)
    bell = np.clip(np.exp(-(u * u + v * v)) * 1.1 - 0.1, 0, 1)
    strength = abs(_amount(rng, unit, 2, 5))
    change = np.clip(u, -1.5, 1.5) * bell * 2 * strength * scene.part
    return canvas + change[..., None], np.clip(np.abs(change) / strength * 1.5, 0, 1)


def _hole(rng: Generator, scene: Scene, canvas: Array, unit: float) -> Marked:
    size, cover = len(canvas), np.zeros(canvas.shape[:2], np.float32)
    at, count = spot(rng, scene.part), int(rng.choice([1, 1, 1, 2, 6]))
    for _ in range(count):
        where = (at[0] + rng.normal(0, 12) * (count > 1), at[1] + rng.normal(0, 12) * (count > 1))
        cover = np.maximum(cover, np.clip(blob(rng, size, where, _reach(rng, size, 0.012, 0.06), 0.15) * 4, 0, 1))
    cover = cover * scene.part
    depth = np.minimum(soft(canvas.mean(-1), 4) - abs(_amount(rng, unit, 2, 5)), rng.uniform(0.02, 0.3))
    inside = scene.ground if rng.random() < 0.25 else depth[..., None]
    ring = np.clip(soft(cover, 1.5) * 2, 0, 1) * (1 - cover) * rng.choice([0, rng.uniform(1, 3)]) * unit
    return canvas * (1 - cover[..., None]) + inside * cover[..., None] + ring[..., None], np.maximum(
        cover, ring > 0.5 * unit
    )


def _missing(rng: Generator, scene: Scene, canvas: Array, unit: float) -> Marked:
    size, at = len(canvas), edge(rng, scene.part)
    if rng.random() < 0.3:  # a straight break
        u, _ = axes(size, rng.uniform(0, 2 * np.pi), (2 * at[0] / size - 1, 2 * at[1] / size - 1))
        height = (u - rng.uniform(0, 0.25)) * 3 + rng.uniform(0, 0.15) * cloud(rng, size, 10, 3)
        height = np.minimum(height, blob(rng, size, at, size * 0.45, 0.05))
    else:
        height = blob(rng, size, at, _reach(rng, size, 0.04, 0.28), rng.uniform(0.05, 0.4))
    cover = np.clip(height * rng.uniform(5, 25), 0, 1) * scene.part
    lip = np.clip(soft(cover, 2) * 2, 0, 1) * (1 - cover) * scene.part * rng.choice([0, rng.uniform(-2, 2)]) * unit
    return canvas * (1 - cover[..., None]) + scene.ground * cover[..., None] + lip[..., None], cover


def _contamination(rng: Generator, scene: Scene, canvas: Array, unit: float) -> Marked:
    size, at = len(canvas), spot(rng, scene.part)
    if rng.random() < 0.5:  # a curled fibre
        points = walk(rng, at, _reach(rng, size, 0.15, 0.7), 0.05, rng.uniform(0, 6))
        bend = rng.normal(0, 0.25)
        turn = np.cumsum(bend + rng.normal(0, 0.1, len(points)))
        x, y = at[1] + np.cumsum(np.cos(turn)) * 3, at[0] + np.cumsum(np.sin(turn)) * 3
        cover = strokes(size, [(list(zip(x.tolist(), y.tolist(), strict=True)), rng.uniform(1, 3))])
        return _tint(rng, canvas, cover, _amount(rng, unit, 2, 5), 0.6)
    stuff = surface(rng, size)[0]
    height = blob(rng, size, at, _reach(rng, size, 0.02, 0.14), rng.uniform(0.05, 0.3))
    cover = np.clip(height * 6, 0, 1)
    shade = (np.sqrt(np.clip(height, 0, 1)) - 0.6) * rng.uniform(0, 0.4)
    return canvas + cover[..., None] * (stuff + shade[..., None] - canvas), cover


def _misplaced(rng: Generator, scene: Scene, canvas: Array, unit: float) -> Marked:
    size, at = len(canvas), spot(rng, scene.part)
    reach = _reach(rng, size, 0.06, 0.25)
    if rng.random() < 0.5:
        cover = np.clip(blob(rng, size, at, reach, rng.uniform(0, 0.3)) * 10, 0, 1)
    else:
        u, v = axes(size, rng.choice([0, rng.uniform(0, np.pi)]), (2 * at[0] / size - 1, 2 * at[1] / size - 1))
        r = 2 * reach / size
        cover = np.clip((1 - np.maximum(np.abs(u) / r, np.abs(v) / r / rng.uniform(0.3, 1))) * 12, 0, 1)
    turned = np.rot90(canvas, int(rng.integers(4)))
    moved = np.roll(turned, tuple(rng.integers(size // 8, size - size // 8, 2)), (0, 1))
    if rng.random() < 0.4:  # zoomed by whole steps
        moved = moved[: size // 2, : size // 2].repeat(2, 0).repeat(2, 1)[:size, :size]
        moved = np.pad(moved, [(0, size - len(moved)), (0, size - len(moved)), (0, 0)], mode="edge")
    return canvas + cover[..., None] * (moved - canvas), cover


def _worn(rng: Generator, scene: Scene, canvas: Array, unit: float) -> Marked:
    size = len(canvas)
    height = blob(rng, size, spot(rng, scene.part), _reach(rng, size, 0.07, 0.25), rng.uniform(0.05, 0.4))
    cover = np.clip(height * rng.uniform(2, 8), 0, 1) * scene.part
    sigma = rng.uniform(2, 6)
    blurred = np.stack([soft(canvas[..., c], sigma) for c in range(3)], -1) + rng.choice([0, rng.normal(0, unit)])
    return canvas + cover[..., None] * (blurred - canvas), cover


def _bent(rng: Generator, scene: Scene, canvas: Array, unit: float) -> Marked:
    size, at = len(canvas), spot(rng, scene.part)
    reach = _reach(rng, size, 0.08, 0.25)
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    bell = np.clip(1.1 * np.exp(-(((rows - at[0]) ** 2 + (columns - at[1]) ** 2) / reach**2)) - 0.1, 0, 1)
    angle, shift = rng.uniform(0, 2 * np.pi), reach * rng.uniform(0.3, 0.8)
    y = np.clip(rows + bell * shift * np.sin(angle), 0, size - 1).round().astype(int)
    x = np.clip(columns + bell * shift * np.cos(angle), 0, size - 1).round().astype(int)
    moved = canvas[y, x]
    changed = np.abs(moved - canvas).max(-1)
    cover = np.clip(soft((changed > 0.6 * unit).astype(np.float32), 2.5) * 2.5, 0, 1)
    return moved, cover * (bell > 0)


def _discolouration(rng: Generator, scene: Scene, canvas: Array, unit: float) -> Marked:
    size = len(canvas)
    height = blob(rng, size, spot(rng, scene.part), _reach(rng, size, 0.08, 0.3), rng.uniform(0.1, 0.5))
    cover = np.clip(soft(np.clip(height * 2.5, 0, 1), rng.uniform(0.5, 4)), 0, 1) * scene.part
    colour = rng.normal(0, 1, 3) if rng.random() < 0.6 else np.ones(3)
    shift = colour / np.abs(colour).max() * _amount(rng, unit, 1.3, 4)
    return canvas + cover[..., None] * shift.astype(np.float32), cover


def _uneven(rng: Generator, scene: Scene, canvas: Array, unit: float) -> Marked:
    """A large area that is darker, brighter or rougher, often with one straight border."""
    size, at = len(canvas), spot(rng, scene.part)
    centre = (2 * at[0] / size - 1, 2 * at[1] / size - 1)
    u, v = axes(size, rng.uniform(0, 2 * np.pi), centre)
    if (shape := rng.random()) < 0.5:
        height = np.minimum(u * 6, 0.9 - np.hypot(u, v * rng.uniform(0.5, 2)) / rng.uniform(0.25, 0.9))
    elif shape < 0.75:  # all on one side of a border from edge to edge
        height = u * 6 + rng.uniform(0, 0.3) * np.sin(v * rng.uniform(1, 4))
    else:  # a shard between two straight borders
        height = 6 * np.minimum(u, axes(size, rng.uniform(0, 2 * np.pi), centre)[0])
    height = height + rng.choice([0, 0.15, 0.4]) * cloud(rng, size, 5, 4)
    cover = np.clip(height * rng.choice([2, 8, 30]), 0, 1) * scene.part
    mean = soft(canvas.mean(-1), 8)[..., None]
    gain = rng.choice([0.3, 1, 2.5])
    target = mean + (canvas - mean) * gain + _amount(rng, unit, 0.8, 3)
    if rng.random() < 0.5:
        target = target + unit * cloud(rng, size, 20, 3)[..., None]
    return canvas + cover[..., None] * (target - canvas), cover


def _fray(rng: Generator, scene: Scene, canvas: Array, unit: float) -> Marked:
    size, at, lines = len(canvas), edge(rng, scene.part), []
    heading, along = rng.uniform(0, 2 * np.pi), _reach(rng, size, 0.05, 0.25)
    for _ in range(rng.integers(6, 30)):
        start = (at[0] + rng.normal(0, along / 2), at[1] + rng.normal(0, along / 2))
        points = walk(rng, start, _reach(rng, size, 0.03, 0.12), 0.3, heading + rng.normal(0, 0.5))
        lines.append((points, rng.uniform(0.7, 2.5)))
    cover = strokes(size, lines)
    if rng.random() < 0.5:
        return canvas + cover[..., None] * (scene.ground - canvas), cover
    return _tint(rng, canvas, cover, _amount(rng, unit, 2, 4))


def _print_fault(rng: Generator, scene: Scene, canvas: Array, unit: float) -> Marked:
    """Content smeared along one axis."""
    size, axis, length = len(canvas), int(rng.integers(2)), int(rng.integers(6, 24))
    height = blob(rng, size, spot(rng, scene.part), _reach(rng, size, 0.1, 0.3), rng.uniform(0, 0.3))
    cover = np.clip(height * 6, 0, 1) * scene.part
    smeared = sum(np.roll(canvas, k, axis) for k in range(0, length, 2)) / len(range(0, length, 2))
    return canvas + cover[..., None] * (smeared - canvas), cover


def _missing_element(rng: Generator, scene: Scene, canvas: Array, unit: float) -> Marked:
    row, column, radius = scene.centres[rng.integers(len(scene.centres))]
    here = np.zeros(canvas.shape[:2], np.float32)
    here[max(row - radius, 0) : row + radius + 1, max(column - radius, 0) : column + radius + 1] = 1
    cover = np.clip(soft(here * scene.part, 0.7), 0, 1)
    return canvas + cover[..., None] * (scene.ground - canvas), cover


DEFECTS: dict[str, Callable[[Generator, Scene, Array, float], Marked]] = {
    "scratch": _scratch,
    "crack": _crack,
    "stain": _stain,
    "lesion": _lesion,
    "dent": _dent,
    "hole": _hole,
    "missing part": _missing,
    "contamination": _contamination,
    "misplaced": _misplaced,
    "worn": _worn,
    "bent": _bent,
    "discolouration": _discolouration,
    "uneven": _uneven,
    "fray": _fray,
    "print fault": _print_fault,
    "missing element": _missing_element,
}
ODDS = {"scratch": 1.4, "crack": 2.2, "uneven": 1.5, "print fault": 0.5, "worn": 0.7, "bent": 0.7}
MANY = ("scratch", "crack", "stain", "hole", "contamination", "dent", "missing part", "fray")


def contrast(scene: Scene) -> float:
    """The spread of the part's own fine texture, the unit of defect strength; at least 0.015."""
    grey = scene.canvas.mean(-1)
    fine = (grey - soft(grey, 6))[scene.part]
    return float(np.clip(fine.std() if fine.size else 0, 0.015, 0.2))


def _visible(before: Array, after: Array, mask: Array, unit: float) -> bool:
    """True when the change covers a dozen pixels and stands out from the texture."""
    if mask.sum() < 12:
        return False
    change = np.abs(np.clip(after, 0, 1) - np.clip(before, 0, 1)).mean(-1)[mask]
    return bool(change.mean() > max(0.7 * unit, 0.03))


def spoil(rng: Generator, scene: Scene, tries: int = 12) -> tuple[Array, Array, tuple[str, ...]]:
    """The scene with defects: canvas [S, S, 3], mask [S, S] bool and the kinds in order (none if every try failed).

    Mostly one or two defects; in one picture of eight, five to fifteen of one kind.
    """
    unit, canvas = contrast(scene), scene.canvas
    mask = np.zeros(canvas.shape[:2], bool)
    kinds = [kind for kind in DEFECTS if kind != "missing element" or scene.centres]
    odds = np.array([ODDS.get(kind, 1.0) for kind in kinds])
    wanted = (1, 2, int(rng.integers(5, 16)))[rng.choice(3, p=[0.68, 0.2, 0.12])]
    same = MANY[rng.integers(len(MANY))] if wanted > 2 else None
    found: list[str] = []
    for _ in range(tries + wanted):
        kind = same or kinds[rng.choice(len(kinds), p=odds / odds.sum())]
        after, cover = DEFECTS[kind](rng, scene, canvas, unit)
        here = cover > 0.25
        if _visible(canvas, after, here, unit) and (mask | here).mean() < 0.5:
            canvas, mask = after.astype(np.float32), mask | here
            found.append(kind)
        if len(found) == wanted:
            break
    return canvas, mask, tuple(dict.fromkeys(found))
