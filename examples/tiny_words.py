"""What the encoder `tiny` makes of words, on drawn pictures: python examples/tiny_words.py

It draws pictures of the materials that tiny_pool.py holds out of all training (about a quarter of an hour for the
default 1,500), and says how well scores rank them, which kind of defect the marked patches are closest to, and what
another name of the object changes.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tiny_pool import HELD_OUT_SHARDS, draw_one, patch_share

import vlad
from vlad.metrics import auroc
from vlad.prompts import PromptPack, embed
from vlad.synthetic import Synthetic
from vlad.synthetic.defects import WORDS

SYNONYMS = ("object", "part", "component", "workpiece", "surface", "sample of material")
UNUSUAL = ("quux gadget", "flurbel 3000", "Dichtungsring", "zyzzyva housing", "螺丝")


def draw(count: int, seed: int) -> list[Synthetic]:
    """Pictures of held-out materials, two of three defective."""
    rng = np.random.default_rng((seed, HELD_OUT_SHARDS - 1))
    return [draw_one(rng, 224, defective=k % 3 > 0, held_out=True) for k in range(count)]


@torch.no_grad()
def confusion(encoder: vlad.Encoder, drawn: list[Synthetic]) -> np.ndarray:
    """[kinds, kinds] pictures by the kind that was drawn and the kind whose words the marked patches are closest to."""
    pack, kinds, table = PromptPack.load("defects"), list(WORDS), np.zeros((len(WORDS), len(WORDS)), int)
    directions = []
    for kind in kinds:
        sentences = [t.replace("{}", f"object with {word}") for word in WORDS[kind] for t in pack.templates]
        directions.append(F.normalize(embed(encoder, sentences), dim=-1).mean(0))
    words = F.normalize(torch.stack(directions), dim=-1)
    for one in drawn:
        if len(one.defects) == 1:
            share = torch.from_numpy(patch_share(one.mask, encoder.patch_size).astype(np.float32)).flatten()
            patches = F.normalize(encoder.dense(encoder.pixels([one.picture]))[1][0].float(), dim=-1)
            region = patches[share >= share.max() / 2].mean(0)
            table[kinds.index(one.defects[0]), int((words @ region).argmax())] += 1
    return table


def scores(encoder: vlad.Encoder, drawn: list[Synthetic], name: str, **options: str) -> np.ndarray:
    """[n] of `patch_text`."""
    detector = vlad.load("patch_text", name, encoder=encoder, **options)
    return np.array([prediction.score for prediction in detector.predict([one.picture for one in drawn])])


def report(encoder: vlad.Encoder, drawn: list[Synthetic]) -> str:
    """The tables as Markdown."""
    label = np.array([bool(one.defects) for one in drawn])
    table, kinds = confusion(encoder, drawn), list(WORDS)
    right, base = np.diag(table).sum() / table.sum(), scores(encoder, drawn, SYNONYMS[0])
    whole = scores(encoder, drawn, SYNONYMS[0], score="global")
    lines = [f"{len(drawn)} pictures, {label.sum()} of them defective.", ""]
    lines += ["| image score | AUROC |", "| --- | --- |", f"| `patch_text` | {100 * auroc(base, label):.1f} |"]
    lines += [f"| its class token | {100 * auroc(whole, label):.1f} |", ""]
    lines += [
        f"Of {len(kinds)} kinds the right one is first for {100 * right:.1f} % of {table.sum()} pictures of one.",
        "",
    ]
    lines += ["| drawn | pictures | right, % | most often taken for |", "| --- | --- | --- | --- |"]
    for kind, row in zip(kinds, table, strict=True):
        if row.sum():
            order = [k for k in np.argsort(-row, kind="stable") if kinds[k] != kind and row[k]][:3]
            others = ", ".join(f"{kinds[k]} {100 * row[k] / row.sum():.0f}" for k in order)
            lines.append(f"| {kind} | {row.sum()} | {100 * row[kinds.index(kind)] / row.sum():.0f} | {others} |")
    lines += ["", "| name | AUROC | mean change of a score | rank correlation |", "| --- | --- | --- | --- |"]
    for name in (*SYNONYMS, *UNUSUAL):
        other = scores(encoder, drawn, name)
        ranks = np.corrcoef(*(np.argsort(np.argsort(s)) for s in (base, other)))[0, 1]
        lines.append(f"| {name} | {100 * auroc(other, label):.1f} | {np.abs(other - base).mean():.3f} | {ranks:.3f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="What the encoder tiny makes of words.")
    parser.add_argument("--pictures", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="Markdown file; the screen where it is left out")
    arguments = parser.parse_args()
    found = report(vlad.Encoder.load("tiny"), draw(arguments.pictures, arguments.seed))
    if arguments.out:
        arguments.out.write_text(found, encoding="utf-8")
    else:
        print(found)


if __name__ == "__main__":
    main()
