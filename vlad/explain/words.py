"""The tier that is always there: regions named by the detector's own encoder, with a vocabulary of defects.

1. One pass over the picture gives patch embeddings that align with words; a region's embedding is the mean over the
   patches that it covers.
2. Every type of the vocabulary has the mean embedding of its phrases in the pack's templates, and so has "other": the
   pack's general anomalous phrases ("damaged {}").
3. p = softmax of the cosines times the scale that the encoder was trained with. Where "other" is likeliest, or the
   first is less than `MARGIN` above the second, the region is an "unspecified anomaly" and its guesses are
   alternatives.

p is not calibrated: nothing was fitted on labelled defects. Rules that name what must not be there, or does not matter,
are types like others; what a good object looks like, counts and order are out of reach here, and said so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from vlad.explain.case import Case, Rule
from vlad.explain.explanation import Alternative, Limit, RuleResult
from vlad.prompts import PromptPack, embed

if TYPE_CHECKING:
    from torch import Tensor

    from vlad.encoders.encoder import Encoder

UNSPECIFIED = "unspecified anomaly"
MARGIN = 0.1  # of the first type over the second
GUESSES = 3


@dataclass(frozen=True)
class RegionName:
    """What a region is called. `rule` is the one whose words fit best, where they fit better than any type."""

    type: str
    alternatives: tuple[Alternative, ...]
    confidence: float | None  # None for an unspecified anomaly: nothing is claimed
    rule: Rule | None = None


@dataclass(frozen=True)
class RegionNames:
    """What all regions of a case are called, in their order, with the rules that were looked for."""

    named: tuple[RegionName, ...]
    rule_results: tuple[RuleResult, ...]
    limits: tuple[Limit, ...]


def name_regions(case: Case, encoder: Encoder, pack: PromptPack, resolution: int | None = None) -> RegionNames:
    """Words for the regions of a case.

    Args:
        case: its `vocabulary` and rules are compared with its regions.
        encoder: of words and pictures.
        pack: its templates and general anomalous phrases.
        resolution: px, side of the square that the encoder sees.
    """
    side = resolution or encoder.resolution
    words = _vocabulary(case, encoder, pack)
    probabilities = _probabilities(case, encoder, words, side)  # [regions, types + rules + 1]
    named = tuple(_named(row, words) for row in probabilities)
    limits = [*_resolution_limits(case, encoder, side), *words.limits]
    if vague := [str(r.id) for r, one in zip(case.regions, named, strict=True) if one.type == UNSPECIFIED]:
        text = f"region {', '.join(vague)}: no type of the vocabulary stands out; what it may be is a guess"
        limits.append(Limit("outside_vocabulary", text))
    return RegionNames(named, _rule_results(case, named, probabilities, words), tuple(limits))


@dataclass(frozen=True, eq=False)
class _Vocabulary:
    types: tuple[str, ...]
    rules: tuple[Rule, ...]
    directions: Tensor  # [types + rules + 1, D] unit; the last is "other"
    limits: tuple[Limit, ...]


def _vocabulary(case: Case, encoder: Encoder, pack: PromptPack) -> _Vocabulary:
    import torch
    import torch.nn.functional as F

    name, limits = case.name or "object", []
    if case.name is not None and not _fits(encoder, _sentences(case.vocabulary, pack, name)):
        limits.append(
            Limit("object_unknown", "the name is longer than the encoder reads; types are compared without it")
        )
        name = "object"
    rules = []
    for rule in case.rules:
        if rule.kind != "normal" and rule.count is None and _fits(encoder, _of_rule(rule, pack, name)):
            rules.append(rule)
        elif rule.kind != "ignore":
            limits.append(Limit("rule_not_checked", f"rule {rule.id} cannot be checked without a language model"))
    groups = _sentences(case.vocabulary, pack, name)
    groups = [*groups[:-1], *(group for rule in rules for group in _of_rule(rule, pack, name)), groups[-1]]
    rows = F.normalize(embed(encoder, [one for group in groups for one in group]), dim=-1)
    means = [part.mean(0) for part in rows.split([len(group) for group in groups])]
    return _Vocabulary(tuple(case.vocabulary), tuple(rules), F.normalize(torch.stack(means), dim=-1), tuple(limits))


def _sentences(vocabulary: Mapping[str, Sequence[str]], pack: PromptPack, name: str) -> list[list[str]]:
    """The sentences of every type, then those of "other"."""
    phrases = [*vocabulary.values(), pack.anomalous]
    filled = [[phrase.replace("{}", name) for phrase in group] for group in phrases]
    return [[template.replace("{}", phrase) for phrase in group for template in pack.templates] for group in filled]


def _of_rule(rule: Rule, pack: PromptPack, name: str) -> list[list[str]]:
    return [[template.replace("{}", f"{name} with {rule.text}") for template in pack.templates]]


def _fits(encoder: Encoder, groups: list[list[str]]) -> bool:
    try:
        embed(encoder, [one for group in groups for one in group])
    except ValueError:  # longer than the encoder reads
        return False
    return True


def _probabilities(case: Case, encoder: Encoder, words: _Vocabulary, side: int) -> np.ndarray:
    import torch
    import torch.nn.functional as F

    if not case.regions:
        return np.zeros((0, len(words.directions)))
    with torch.no_grad():
        pixels = encoder.pixels([case.picture], side)
        patches = F.normalize(encoder.dense(pixels)[1][0].float(), dim=-1)  # [N, D]
        covers = torch.stack([_cover(region.mask, encoder.grid(pixels)) for region in case.regions])  # [regions, N]
        regions = F.normalize(covers.to(patches) @ patches, dim=-1)
        logits = encoder.logit_scale * regions @ words.directions.to(regions).T
    for row, region in zip(logits, case.regions, strict=True):
        for index, rule in enumerate(words.rules, start=len(words.types)):
            if rule.region is not None and rule.region != region.location.partition(",")[0]:
                row[index] = -math.inf  # it holds elsewhere
    return logits.softmax(-1).cpu().double().numpy()


def _cover(mask: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """[N] 1 where a patch is covered at least half as much as the most covered one."""
    import torch

    share = np.asarray(Image.fromarray(mask.astype(np.float32)).resize(grid[::-1], Image.Resampling.BOX))
    return torch.from_numpy((share >= share.max() / 2).ravel().astype(np.float32))


def _named(probabilities: np.ndarray, words: _Vocabulary) -> RegionName:
    order = np.argsort(-probabilities)
    labels = (*words.types, *(rule.text for rule in words.rules), UNSPECIFIED)
    guesses = [i for i in order if i < len(labels) - 1 and probabilities[i] > 0][:GUESSES]
    alternatives = tuple(Alternative(labels[i], round(float(probabilities[i]), 4)) for i in guesses)
    first, second = probabilities[order[0]], probabilities[order[1]] if len(order) > 1 else 0.0
    if order[0] == len(labels) - 1 or first - second < MARGIN:
        return RegionName(UNSPECIFIED, alternatives, None)
    rule = words.rules[order[0] - len(words.types)] if order[0] >= len(words.types) else None
    return RegionName(labels[order[0]], alternatives, round(float(first), 4), rule)


def _rule_results(
    case: Case, named: Sequence[RegionName], probabilities: np.ndarray, words: _Vocabulary
) -> tuple[RuleResult, ...]:
    """Of the rules on what must not be there: violated where a region is called so; never known to be kept."""
    results = []
    for index, rule in enumerate(words.rules, start=len(words.types)):
        if rule.kind == "ignore" or not len(named):
            continue
        ids = tuple(r.id for r, one in zip(case.regions, named, strict=True) if one.rule is rule)
        p = round(float(probabilities[:, index].max()), 4)
        results.append(RuleResult(rule.id, p, "violated" if ids else "unsure", ids))
    return tuple(results)


def _resolution_limits(case: Case, encoder: Encoder, side: int) -> list[Limit]:
    """What the encoder could not see: computed from the sizes."""
    height, width = case.picture.shape[:2]
    across, down = (encoder.patch_size * length / side for length in (width, height))  # px of the picture per patch
    limits = []
    if max(height, width) > side:
        detail = math.ceil(max(across, down))
        words = f"the picture was seen {max(height, width) / side:.1f} times smaller"
        limits.append(Limit("downscaled", f"{words}; one patch covers {detail} px, smaller details may be lost"))
    small = [str(r.id) for r in case.regions if r.box[2] - r.box[0] < across or r.box[3] - r.box[1] < down]
    if small:
        limits.append(Limit("region_too_small", f"region {', '.join(small)} is narrower than one patch of the encoder"))
    return limits
