"""A small benchmark: drawn parts on a belt, good and faulty ones at times that are known by construction."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from vlad.synthetic.defects import spoil
from vlad.synthetic.photos import another_shot
from vlad.synthetic.scenes import Scene, draw_scene
from vlad.video.labelled import Labelled
from vlad.video.writing import write

HEIGHT, WIDTH, RATE = 270, 480, 5  # px, px, frames a second
PACE = 80.0  # px a second: a part of 270 px passes every 3.4 s and is in view for 9.4 s
DARK = 0.15  # mean of a black ground, in [0, 1]: scans lie on one
TURN = 4.0  # degrees by which parts lie askew
SEEN = 840  # px that a fault covers at least: a square of 1.5 patches of `tiny`; for less a camera has to be closer
MARK, RED = 36, (200, 30, 40)  # px and colour of what lies on the belt
FITTED = ("fit-1", "fit-2")


@dataclass(frozen=True)
class Plan:
    """What happens in a clip."""

    seconds: float
    seed: int
    faults: float = 0.0  # every how many seconds a part is faulty; 0: none
    light: float = 0.0  # share by which the light drifts and flickers
    shake: float = 0.0  # px
    fast: tuple[float, float] | None = None  # seconds in which the belt runs three times as fast
    still: tuple[float, float] | None = None  # seconds in which it stands
    marks: tuple[tuple[float, float], ...] = ()  # (from, to) seconds in which something lies on the belt
    missing: bool = False  # one part is not there


PLANS = {
    "fit-1": Plan(300, 1),
    "fit-2": Plan(300, 2),
    "good": Plan(600, 3),
    "faults": Plan(120, 4, faults=24),
    "light": Plan(60, 5, light=0.15),
    "shake": Plan(60, 6, shake=3),
    "fast": Plan(60, 7, fast=(20, 40)),
    "stops": Plan(60, 8, still=(20, 30), missing=True),
    "short": Plan(60, 9, marks=((0, 2), (15, 15.2), (30, 32), (33, 35), (58, 60))),
}


def product(seed: int, size: int = HEIGHT) -> Scene:
    """What is made: the first drawn thing on a belt that is not black, on 20 to 60 % of its square and off its rim."""
    for number in range(seed * 100, seed * 100 + 100):
        scene = draw_scene(np.random.default_rng(number), size)
        rim = scene.part.copy()
        rim[4:-4, 4:-4] = False
        if 0.2 <= scene.part.mean() <= 0.6 and not rim.any() and scene.ground.mean() > DARK:
            return scene
    raise ValueError(f"seed {seed} draws no thing that lies free; take another")


def draw(folder: Path, name: str, seed: int = 0) -> Labelled:
    """Writes one clip of the benchmark and gives its labels.

    Labelled are a faulty part, or the place of a missing one, at least half in view; the fast belt; what lies on it.
    """
    plan = PLANS[name]
    rng = np.random.default_rng([seed, plan.seed])
    places = np.cumsum([_pace(plan, k / RATE) / RATE for k in range(round(plan.seconds * RATE))])
    count = int(places[-1] + WIDTH) // HEIGHT + 2
    apart = round(plan.faults * PACE / HEIGHT)
    faulty = set(range(apart // 2 + 1, count - 2, apart)) if apart else set()
    belt = _belt(rng, product(seed), count, faulty, count * 2 // 3 if plan.missing else None)
    path = folder / f"{name}.mp4"
    write(path, ((k / RATE, _seen(rng, plan, belt, at, k / RATE)) for k, at in enumerate(places)), rate=RATE)
    middles = [number * HEIGHT + HEIGHT / 2 for number in (faulty if not plan.missing else {count * 2 // 3})]
    labels = np.array([any(at <= middle <= at + WIDTH for middle in middles) for at in places])
    if plan.fast:
        labels = _within(len(places), [plan.fast])
    if plan.marks:
        labels = _within(len(places), plan.marks)
    return Labelled(str(path), labels)


def _within(frames: int, spans: Sequence[tuple[float, float]]) -> np.ndarray:
    """bool [frames]"""
    return np.array([any(a <= k / RATE < b for a, b in spans) for k in range(frames)])


def _pace(plan: Plan, second: float) -> float:
    if plan.still and plan.still[0] <= second < plan.still[1]:
        return 0.0
    return PACE * (3 if plan.fast and plan.fast[0] <= second < plan.fast[1] else 1)


def _belt(rng: Generator, scene: Scene, count: int, faulty: set[int], missing: int | None) -> np.ndarray:
    """uint8 [270, 270 count, 3]: the parts side by side."""
    parts = [_part(rng, scene, number in faulty) for number in range(count)]
    if missing is not None:
        parts[missing] = another_shot(rng, (np.clip(scene.ground, 0, 1) * 255).astype(np.uint8))
    return np.concatenate(parts, axis=1)


def _part(rng: Generator, scene: Scene, faulty: bool) -> np.ndarray:
    canvas, changed = scene.canvas, 0
    while faulty and changed < SEEN:
        canvas, mask, _ = spoil(rng, scene)
        changed = int(mask.sum())
    angle = rng.uniform(-TURN, TURN)
    turned = ndimage.rotate(canvas, angle, axes=(0, 1), reshape=False, order=1, mode="nearest")
    over = ndimage.rotate(scene.part.astype(np.float32), angle, reshape=False, order=1)[..., None]
    lying = turned * over + scene.ground * (1 - over)
    return another_shot(rng, (np.clip(lying, 0, 1) * 255).astype(np.uint8))


def _seen(rng: Generator, plan: Plan, belt: np.ndarray, at: float, second: float) -> np.ndarray:
    aside, down = np.round(rng.uniform(-plan.shake, plan.shake, 2)).astype(int) if plan.shake else (0, 0)
    left = int(np.clip(at + aside, 0, belt.shape[1] - WIDTH))
    picture = np.roll(belt[:, left : left + WIDTH], down, axis=0)
    if any(a <= second < b for a, b in plan.marks):
        picture = picture.copy()
        picture[HEIGHT // 2 : HEIGHT // 2 + MARK, WIDTH // 2 : WIDTH // 2 + MARK] = RED
    if plan.light:
        drift = 1 + plan.light * (np.sin(second / 10) + 0.2 * rng.uniform(-1, 1))
        picture = np.clip(picture * drift, 0, 255).astype(np.uint8)
    return picture


def clips(folder: Path, names: Sequence[str], seed: int = 0) -> Iterator[Labelled]:
    """Several clips, one after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    yield from (draw(folder, name, seed) for name in names)
