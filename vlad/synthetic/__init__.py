"""Procedural pictures of normal and defective things, with exact masks and captions.

Everything is drawn: surfaces (vlad/synthetic/textures.py); things, arrays of parts, tiles that fill the frame and round
bodies (vlad/synthetic/scenes.py); the clutter that is normal on them (vlad/synthetic/clutter.py); defects as strong as
the picture's own texture asks for (vlad/synthetic/defects.py); last a camera (light, blur, noise, JPEG). Used to train
the encoder `tiny`, in tests and in examples. All randomness comes from the generator given, none from the global one.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

from vlad.synthetic.defects import WORDS, spoil
from vlad.synthetic.scenes import draw_scene
from vlad.synthetic.textures import Array, axes


@dataclass(frozen=True)
class Synthetic:
    """One drawn picture; `clean` is the same picture without its defects (equal to `picture` when there are none)."""

    picture: Array  # uint8 [H, W, 3]
    mask: Array  # bool [H, W], True on defects
    clean: Array  # uint8 [H, W, 3]
    caption: str
    defects: tuple[str, ...]  # kinds, keys of synthetic.defects.WORDS
    material: str
    object: str


def camera(rng: Generator, size: int) -> Callable[[Array], Array]:
    """A function canvas -> uint8 picture with fixed light, blur, noise and compression, the same at every call."""
    u, v = axes(size, rng.uniform(0, 2 * np.pi))
    light = 1 + rng.choice([0, rng.uniform(0, 0.35)]) * u - rng.choice([0, 0, rng.uniform(0, 0.5)]) * (u * u + v * v)
    grey, blur, quality = rng.random() < 0.6, rng.choice([0, rng.uniform(0.3, 1.3)]), int(rng.integers(35, 96))
    noise = rng.choice([0.004, rng.uniform(0, 0.04)]) * rng.standard_normal((size, size, 1), dtype=np.float32)
    gamma, compress = np.exp(rng.normal(0, 0.2)), rng.random() < 0.6

    def shoot(canvas: Array) -> Array:
        shot = np.clip(canvas * light[..., None], 0, 1) ** np.float32(gamma)
        if grey:
            shot = np.repeat(shot.mean(-1, keepdims=True), 3, -1)
        photo = Image.fromarray((shot * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(float(blur)))
        photo = Image.fromarray(np.clip(np.asarray(photo) + noise * 255, 0, 255).astype(np.uint8))
        if compress:
            photo.save(file := io.BytesIO(), "JPEG", quality=quality)
            photo = Image.open(file)
        return np.array(photo.convert("RGB"))

    return shoot


def sample(rng: Generator, size: int = 224, *, defective: bool | None = None) -> Synthetic:
    """One drawn picture, defective with probability one half unless said.

    Args:
        rng: the only source of randomness.
        size: side of the square picture in pixels, at least 64.
        defective: True or False asks for one kind; a defect that would be invisible is drawn again.

    Raises:
        ValueError: size is below 64.
    """
    if size < 64:
        raise ValueError(f"size is {size}; synthetic pictures need at least 64 pixels a side")
    scene = draw_scene(rng, size)
    spoiled, mask = scene.canvas, np.zeros((size, size), bool)
    kinds: tuple[str, ...] = ()
    if defective if defective is not None else rng.random() < 0.5:
        spoiled, mask, kinds = spoil(rng, scene)
    shoot = camera(rng, size)
    clean = shoot(scene.canvas)
    picture = shoot(spoiled) if kinds else clean
    words = [str(rng.choice(WORDS[kind])) for kind in kinds]
    return Synthetic(
        picture, mask, clean, caption(rng, scene.material, scene.object, words), kinds, scene.material, scene.object
    )


OPENINGS = (
    "a photo of",
    "a picture of",
    "a close-up photo of",
    "an image of",
    "a cropped photo of",
    "a grey photo of",
    "",
)
GOOD = (
    "flawless {}",
    "perfect {}",
    "normal {}",
    "undamaged {}",
    "clean {}",
    "{} without defect",
    "{} without flaw",
    "intact {}",
    "{}",
)
BAD = ("{} with {}", "{} with {}", "{} showing {}", "damaged {} with {}", "defective {} with {}", "{} that has {}")


def caption(rng: Generator, material: str, name: str, words: list[str]) -> str:
    """A sentence that names the material, the object and each defect word (none: that it is good)."""
    what = f"{material} {name}" if rng.random() < 0.75 else f"{name} made of {material}"
    state = str(rng.choice(BAD)).format(what, " and ".join(words)) if words else str(rng.choice(GOOD)).format(what)
    return f"{rng.choice(OPENINGS)} {'the' if rng.random() < 0.4 else 'a'} {state}".strip()
