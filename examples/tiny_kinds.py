"""What a few good pictures give, on drawn parts of one kind: python examples/tiny_kinds.py

Settings of `patch_memory` and `patch_text` for a few normals are chosen by these tables, never by photos. A kind is a
scene whose numbers stay and whose grain, spots and light are drawn anew for every part, a little bent, moved or turned
over besides; its defects are those of all drawn pictures. Half of the kinds are of the materials that tiny_pool.py
holds out of all training. For 80 kinds of 8 normals and 24 parts to be ranked it takes a quarter of an hour.
"""

import argparse
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import PCG64, Generator, default_rng
from tiny_pool import HELD_OUT
from torch import Tensor

import vlad
from vlad.encoders.views import moved
from vlad.memory import layers as layer_memory
from vlad.metrics import auroc
from vlad.synthetic import camera
from vlad.synthetic.defects import spoil
from vlad.synthetic.scenes import draw_scene

NORMALS, GOOD, BAD = 8, 12, 12
LABEL = np.repeat([0, 1], [GOOD, BAD])
STRUCTURE = 12  # numbers that are drawn at once: more of them are grain, and each part's own


class Kind(Generator):
    """The same numbers for every part of a kind, up to `loose`, but each part's own arrays."""

    def __init__(self, seed: Sequence[int], part: int, loose: float) -> None:
        super().__init__(PCG64([*seed, 0]))
        self.own, self.loose = default_rng([*seed, 1, part]), loose

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        """As numpy's; a number moves by `loose` of its range."""
        if _grain(size):
            return self.own.uniform(low, high, size)
        at = super().random(size) + self.loose * self.own.standard_normal(size)
        return low + (high - low) * np.clip(at, 0, 1)

    def normal(self, loc: Any = 0.0, scale: Any = 1.0, size: Any = None) -> Any:
        """As numpy's; a number moves by `loose` of its deviation."""
        return loc + scale * (self.standard_normal(size) + self.loose * self.own.standard_normal(size))

    def standard_normal(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
        """As numpy's."""
        if _grain(size):
            return self.own.standard_normal(size, dtype, out)
        return super().standard_normal(size, dtype, out)

    def random(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
        """As numpy's."""
        return self.own.random(size, dtype, out) if _grain(size) else super().random(size, dtype, out)


def _grain(size: Any) -> bool:
    return size is not None and np.prod(size) > STRUCTURE


@dataclass(frozen=True)
class Parts:
    """Of one kind: normals to learn from, uint8 [224, 224, 3], and the pixels [N, 3, 224, 224] of those to rank."""

    normals: list[np.ndarray]
    ranked: Tensor


def draw_kind(encoder: vlad.Encoder, seed: Sequence[int], *, held_out: bool, size: int = 224) -> Parts:
    """Parts of the first kind whose material is, or is not, held out."""
    tries = 0
    while (draw_scene(Kind([*seed, tries], 0, 0.0), size).material in HELD_OUT) != held_out:
        tries += 1
    seed, pictures = [*seed, tries], []
    common = default_rng([*seed, 2])
    loose, pose = float(common.choice([0, 0.02, 0.06])), POSES[common.choice(3, p=[0.35, 0.4, 0.25])]
    for part in range(NORMALS + GOOD + BAD):
        rng, own = Kind(seed, part, loose), default_rng([*seed, 3, part])
        scene = draw_scene(rng, size)
        canvas, spoiled = scene.canvas, part < NORMALS + GOOD
        while not spoiled:
            canvas, _, kinds = spoil(own, scene)
            spoiled = bool(kinds)
        pictures.append(pose(own, camera(rng, size)(canvas)))
    return Parts(pictures[:NORMALS], encoder.pixels(pictures[NORMALS:]))


def _nudged(rng: Generator, picture: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    pixels = moved(pixels, float(rng.normal(0, 0.04)), (float(rng.normal(0, 0.03)), float(rng.normal(0, 0.03))))
    return pixels[0].round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()


def _turned(rng: Generator, picture: np.ndarray) -> np.ndarray:
    turned = np.rot90(picture, int(rng.integers(4)))
    return np.ascontiguousarray(turned[:, ::-1] if rng.random() < 0.5 else turned)


POSES: tuple[Callable[[Generator, np.ndarray], np.ndarray], ...] = (lambda _, picture: picture, _nudged, _turned)


def settings() -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Method, times that unlikeness counts, options."""
    for sides in ((1,), (3,), (5,), (1, 3), (1, 3, 5)):
        yield "patch_memory", 1, {"neighbours": sides}
    for score in ("max", "sqrt"):
        for unlike in (1, 2, 4, 8):
            yield "patch_text", unlike, {"name": "object", "score": score}


@torch.no_grad()
def measure(encoder: vlad.Encoder, parts: Parts, shots: int, method: str, unlike: int, options: dict) -> float:
    """Image AUROC in percent of a method that learnt from the first `shots` normals; `ranked` are pixels already."""
    layer_memory.UNLIKE = unlike
    detector = vlad.load(method, encoder=encoder, **options).fit(parts.normals[:shots])
    return 100 * auroc(detector.scorer(parts.ranked).score.numpy(), LABEL)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="What a few good pictures give, on drawn parts of one kind.")
    parser.add_argument("--kinds", type=int, default=80, help="half of held-out materials, half of the others")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 8])
    asked = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # below 5 normals there is no threshold, and none is needed here
    encoder, shown = vlad.Encoder.load("tiny"), list(settings())
    found = np.zeros((len(shown), len(asked.shots), asked.kinds))
    for number in range(asked.kinds):
        parts = draw_kind(encoder, [number], held_out=number % 2 == 0)
        with encoder.sharing():
            for row, (method, unlike, options) in enumerate(shown):
                for column, shots in enumerate(asked.shots):
                    found[row, column, number] = measure(encoder, parts, shots, method, unlike, options)
    print("| method | " + " | ".join(f"{shots} normals: held-out materials, others" for shots in asked.shots) + " |")
    print("| --- |" + " --- |" * len(asked.shots))
    for (method, unlike, options), row in zip(shown, found, strict=True):
        words = ", ".join(f"{key} {value}" for key, value in options.items() if key != "name")
        words += f", unlikeness x {unlike}" if method == "patch_text" else ""
        cells = [f"{kinds[::2].mean():.1f}, {kinds[1::2].mean():.1f}" for kinds in row]
        print(f"| `{method}`, {words} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
