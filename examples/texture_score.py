"""Whether `score="texture"` may join the default score: python examples/texture_score.py [--data folder:PICTURES]

Image AUROC with `tiny` and 8 normals of `patch_text`, which is the default, and of `patch_memory`, each alone and
joined with the texture score by three rules that were fixed beforehand: the mean, or the larger, of both values in
standard deviations of the normals' own, each of them scored without itself; and the geometric mean. Without `--data`
on drawn parts of one kind (tiny_kinds.py), with it on photos.
"""

import argparse
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from few_normals import drawn, made, photographed
from torch import Tensor

import vlad
from vlad.framing.looking import excluding
from vlad.metrics import auroc

BASES = ("patch_text", "patch_memory")
RULES = ("mean", "larger", "geometric")
LEAST = 1e-6  # of a standard deviation, for normals that are all alike


def scored(
    encoder: vlad.Encoder, method: str, words: str, normals: Tensor, tests: Sequence[Tensor], **options: str
) -> tuple[Tensor, Tensor]:
    """Scores of the tests, and the same in standard deviations of the normals', none compared with itself."""
    scorer = made(encoder, method, words, options)
    scorer.remember([normals])
    with excluding(scorer, torch.arange(len(normals))):
        own = scorer(normals).score
    found = torch.cat([scorer(pixels).score for pixels in tests])
    return found, (found - own.mean()) / own.std().clamp_min(LEAST)


@torch.no_grad()
def measure(
    encoder: vlad.Encoder, words: str, normals: Tensor, tests: Sequence[Tensor], labels: np.ndarray
) -> dict[str, float]:
    """Image AUROC in percent of each way."""
    texture, unlike = scored(encoder, "patch_memory", words, normals, tests, score="texture")
    ways = {"texture": texture}
    for method in BASES:
        score, odd = scored(encoder, method, words, normals, tests)
        joined = [(odd + unlike) / 2, torch.maximum(odd, unlike), (score * texture).clamp_min(0).sqrt()]
        ways[method] = score
        ways |= {f"{method}, {rule}": value for rule, value in zip(RULES, joined, strict=True)}
    return {way: 100 * auroc(value.double().numpy(), labels) for way, value in ways.items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Whether the texture score may join the default.")
    parser.add_argument("--data", help="a data set as `vlad eval` takes it; without it kinds are drawn")
    parser.add_argument("--kinds", type=int, default=80)
    parser.add_argument("--draws", type=int, default=5, help="of the normal pictures of a data set")
    parser.add_argument("--shots", type=int, default=8)
    asked = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(1)
    encoder = vlad.Encoder.load("tiny")
    cases = photographed(encoder, asked.data, asked.draws, asked.shots) if asked.data else drawn(encoder, asked.kinds)
    found: dict[str, dict[str, list[float]]] = {}
    for group, words, normals, tests, labels in cases:
        with encoder.sharing():
            for way, value in measure(encoder, words, normals[: asked.shots].clone(), tests, labels).items():
                found.setdefault(way, {}).setdefault(group, []).append(value)
        print(group, len(found["texture"][group]), flush=True)
    groups = list(found["texture"])
    print("| way | " + " | ".join([*groups, "mean"]) + " |")
    print("| --- |" + " --- |" * (len(groups) + 1))
    for way, values in found.items():
        means = [float(np.mean(values[group])) for group in groups]
        print(f"| {way} | " + " | ".join(f"{value:.1f}" for value in [*means, float(np.mean(means))]) + " |")


if __name__ == "__main__":
    main()
