"""The drawn pictures that train_tiny.py learns from, kept as features of the frozen stem.

A shard holds 1,024 pictures: features float16 [n, C, h, w], the defective share of each patch uint8 [n, h, w], and
notes (caption, kinds of defect, object) as JSON in the file's header. It is drawn once, by seed and number, in about a
minute. Things of the materials in HELD_OUT are never drawn for training: what is chosen is chosen on them.
"""

import json
import os
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlad.encoders import tiny
from vlad.encoders.dtypes import fastest_safe_dtype
from vlad.files import resource
from vlad.synthetic import Synthetic, caption, sample
from vlad.synthetic.photos import another_shot
from vlad.synthetic.textures import TEXTURES

PREPARE = json.loads(resource(f"{tiny.FOLDER}/{tiny.CONFIG}").read_text(encoding="utf-8"))["preprocess_cfg"]

HELD_OUT = {word for texture in ("dots", "rings", "wood") for word in TEXTURES[texture][1]}
HELD_OUT_SHARDS = 9_000  # shards of these numbers and above hold the held-out materials alone


def to_pixels(pictures: list[np.ndarray]) -> Tensor:
    """[B, 3, H, W] as the encoder sees uint8 pictures [H, W, 3] that have its size already."""
    pixels = tiny.per_picture(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255)
    return (pixels - PREPARE["mean"][0]) / PREPARE["std"][0]


def patch_share(mask: np.ndarray, patch: int = 16) -> np.ndarray:
    """Share of each patch that is defect, uint8 0..255 [h, w], of a mask [H, W]; any defect pixel gives at least 1."""
    h, w = (side // patch for side in mask.shape)
    share = mask[: h * patch, : w * patch].reshape(h, patch, w, patch).mean((1, 3))
    return np.ceil(share * 255).astype(np.uint8)


def draw_one(rng: np.random.Generator, size: int, *, defective: bool, held_out: bool) -> Synthetic:
    """A picture of a material that is, or is not, held out."""
    while True:
        drawn = sample(rng, size, defective=defective)
        if (drawn.material in HELD_OUT) == held_out:
            return drawn


@torch.no_grad()
def stem_features(stem: tiny.Stem, pictures: list[np.ndarray]) -> Tensor:
    """float32 [n, C, h, w] of the frozen stem, in the arithmetic that encoders take on this machine."""
    dtype = fastest_safe_dtype(torch.device("cpu"))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        batches = [to_pixels(pictures[at : at + 16]) for at in range(0, len(pictures), 16)]
        return torch.cat([stem.features(batch).float() for batch in batches])


def draw(seed: int, shard: int, count: int, size: int) -> tuple[list[np.ndarray], list[np.ndarray], list[dict]]:
    """Pictures, patch shares and notes of a shard; most defective pictures are followed by their "twin".

    A twin is the same thing without its defects, in two of five cases to the pixel, else photographed again.
    """
    rng = np.random.default_rng((seed, shard))
    pictures, shares, notes = [], [], []
    while len(pictures) < count:
        defective = bool(rng.random() < 0.62)
        drawn = draw_one(rng, size, defective=defective, held_out=shard >= HELD_OUT_SHARDS)
        entries = [(drawn.picture, drawn.mask, drawn.caption, drawn.defects)]
        if drawn.defects and rng.random() < 0.6:
            clean = drawn.clean if rng.random() < 0.4 else another_shot(rng, drawn.clean)
            entries.append((clean, np.zeros_like(drawn.mask), caption(rng, drawn.material, drawn.object, []), ()))
        for at, (picture, mask, words, kinds) in enumerate(entries):
            pictures.append(picture)
            shares.append(patch_share(mask))
            notes.append({"caption": words, "kinds": kinds, "object": drawn.object, "twin": bool(at)})
    return pictures[:count], shares[:count], notes[:count]


def make_shard(stem: tiny.Stem, path: Path, seed: int, shard: int, count: int, size: int = 224) -> None:
    """Writes one shard: features float16 [n, C, h, w], shares uint8 [n, h, w], notes as JSON in the header."""
    pictures, shares, notes = draw(seed, shard, count, size)
    features = stem_features(stem, pictures).half().contiguous()
    tensors = {"features": features, "shares": torch.from_numpy(np.stack(shares))}
    beside = path.with_suffix(f".{os.getpid()}")  # two processes may draw the same shard
    save_file(tensors, beside, metadata={"notes": json.dumps(notes)})
    beside.replace(path)


class Pool:
    """The shards in memory; a missing one is drawn when it is first needed."""

    def __init__(self, folder: Path, stem: tiny.Stem, seed: int, count: int, size: int = 224) -> None:
        self.folder, self.stem, self.seed, self.count, self.size = folder, stem, seed, count, size
        self.loaded: dict[int, tuple[Tensor, Tensor, list[dict]]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, shard: int) -> Path:
        """Where a shard lies."""
        return self.folder / f"shard-{self.seed}-{shard:03d}.safetensors"

    def ensure(self, number: int) -> None:
        """Draws a shard that is not there."""
        if not self.path(number).exists():
            make_shard(self.stem, self.path(number), self.seed, number, self.count, self.size)

    def shard(self, number: int) -> tuple[Tensor, Tensor, list[dict]]:
        """Features [n, C, h, w] float16, shares [n, h, w] uint8 and the notes."""
        if number not in self.loaded:
            self.ensure(number)
            with safe_open(self.path(number), "pt") as file:
                notes = json.loads(file.metadata()["notes"])
                self.loaded[number] = (file.get_tensor("features"), file.get_tensor("shares"), notes)
        return self.loaded[number]

    def batch(
        self, rng: np.random.Generator, shards: int, size: int, pairs: int = 0
    ) -> tuple[Tensor, Tensor, list[dict]]:
        """A random batch from the first `shards` shards: features [B, C, h, w], shares [B, h, w] in [0, 1], notes.

        The first `pairs` pictures are defective and the next `pairs` are their twins, in the same order.
        """
        rows = [self.shard(int(rng.integers(shards))) for _ in range(size - pairs)]
        picks = [int(rng.integers(len(notes))) for _, _, notes in rows]
        for at in range(pairs):
            twins = [k for k, note in enumerate(rows[at][2]) if note["twin"]]
            picks[at] = twins[rng.integers(len(twins))] - 1
        rows[pairs:pairs], picks[pairs:pairs] = rows[:pairs], [pick + 1 for pick in picks[:pairs]]
        features = torch.stack([row[0][k] for row, k in zip(rows, picks, strict=True)]).float()
        shares = torch.stack([row[1][k] for row, k in zip(rows, picks, strict=True)]).float() / 255
        return features, shares, [row[2][k] for row, k in zip(rows, picks, strict=True)]


def standardise(stem: tiny.Stem, folder: Path, pictures: int = 192) -> None:
    """Sets centre and spread of the stem's channels from drawn pictures that no shard holds; kept beside the shards."""
    path = folder / "channels.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        raw = torch.cat([stem_features(stem, draw(0, 8_000 + k, 16, 224)[0]) for k in range(pictures // 16)])
        centre, spread = raw.mean((0, 2, 3)).half().float(), raw.std((0, 2, 3)).half().float()
        save_file({"centre": centre[:, None, None], "spread": spread[:, None, None]}, path)
    stem.load_state_dict(load_file(path), strict=False)
