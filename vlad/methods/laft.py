"""LAFT: normal pictures and the closest of them, seen in a space that words have chosen.

Paper: "Language-Assisted Feature Transformation for Anomaly Detection" (arXiv:2503.01184), official code yuneg11/LAFT.
Needs: text (what to look at, what to overlook), and normals. No training; one picture at a time; scores, no maps.

1. Sentences that differ in one concept only ("dimly lit bolt", "brightly lit bolt") differ in the joint space of words
   and pictures along that concept. Their differences span it: V, the leading right singular vectors, not centred.
2. guide keeps that part of a picture's embedding v alone: v V^T V. ignore takes it away: v - v V^T V.
3. The score is the mean cosine distance to the 30 closest normals (all, where there are fewer), treated alike.

Without `guide` and `ignore` the prompt pack's normal and anomalous phrases guide, as in the paper's industrial setting.
With both, what is to be ignored is taken from the pictures and from the guiding sentences first.

Known differences: no pair of sentences is ever formed, few rows with the same singular vectors stand for all pairs; the
coordinates v V^T stand for v V^T V, their cosines are the same; the number of dimensions, which the released scripts
choose by the test labels, is the smallest with 90 % of the energy, at most 64, and to guide at least 8 (where there
are so many): the cosines of one or two dimensions say next to nothing.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlad.encoders.encoder import Encoder
from vlad.memory import Memory
from vlad.memory.nearest import nearest
from vlad.prompts import PromptPack, embed
from vlad.scorer import Scorer, Scores

logger = logging.getLogger(__name__)

ENERGY, MOST = 0.9, 64  # share of the squared singular values that a basis keeps, and its largest size
FEWEST = 8  # dimensions of a basis that guides

CONCEPTS = {
    "lighting": ("{} in bright light", "{} in dim light", "{} in shadow", "overexposed {}", "underexposed {}"),
    "background": (
        "{} on a white background",
        "{} on a black background",
        "{} on a table",
        "{} on a cluttered background",
    ),
    "colour": ("red {}", "green {}", "blue {}", "yellow {}", "black {}", "white {}", "grey {}"),
    "orientation": ("upright {}", "upside-down {}", "{} lying on its side", "rotated {}", "mirrored {}"),
    "position": ("{} in the middle", "{} on the left", "{} on the right", "{} at the top", "{} at the bottom"),
    "size": ("{} seen from close up", "{} seen from far away", "small {}", "large {}", "cropped {}"),
    "focus": ("sharp picture of {}", "blurred picture of {}", "noisy picture of {}", "low-resolution picture of {}"),
}  # groups of phrases for words that people ignore or look at most

Concept = str | Sequence[str] | Sequence[Sequence[str]]


def difference_rows(groups: Sequence[Tensor]) -> Tensor:
    """[rows, D] whose Gram matrix is, but for a factor, that of all differences between the groups' sentences.

    Args:
        groups: [n, D] each. Of one group all pairs within it count, of several all pairs between two of them.

    With mean m and size n of a group T, the sum of (a - b)(a - b)^T over all pairs between two groups is
    n_b S_a + n_a S_b + n_a n_b (m_a - m_b)(m_a - m_b)^T, where S is the sum of (t - m)(t - m)^T over the group.
    """
    means = [group.mean(0) for group in groups]
    if len(groups) == 1:
        return groups[0] - means[0]
    total = sum(len(group) for group in groups)
    rows = [(total - len(group)) ** 0.5 * (group - mean) for group, mean in zip(groups, means, strict=True)]
    for j, other in enumerate(groups):
        for i, group in enumerate(groups[:j]):
            rows.append((len(group) * len(other)) ** 0.5 * (means[i] - means[j])[None])
    return torch.cat(rows)


def concept_basis(groups: Sequence[Tensor], dimensions: int | None = None, fewest: int = 1) -> Tensor:
    """[d, D] orthonormal rows that span what differs between sentence embeddings; d is `dimensions` or what there is.

    Args:
        groups: as for `difference_rows`; embeddings as the encoder gives them, not normalised.
        dimensions: None takes the smallest number with 90 % of the energy, from `fewest` to 64.

    Raises:
        ValueError: all sentences are the same.

    Source: LAFT (arXiv:2503.01184), section 4.1; the official code's principal components are not centred.
    """
    values, vectors = torch.linalg.svd(difference_rows(groups).float(), full_matrices=False)[1:]
    rank = int((values > torch.cat(list(groups)).norm() * 1e-6).sum())
    if not rank:
        raise ValueError("all phrases of the concept mean the same; give phrases that differ in it")
    if dimensions is None:
        energy = values.square().cumsum(0) / values.square().sum()
        dimensions = min(max(int((energy < ENERGY).sum()) + 1, fewest), MOST)
    return vectors[: min(dimensions, rank)].contiguous()  # as it comes back from a file: products round alike


def guided(embeddings: Tensor, basis: Tensor) -> Tensor:
    """[..., d] coordinates in `basis` [d, D] of embeddings [..., D]; cosines and lengths are their projections'."""
    return embeddings @ basis.T


def ignored(embeddings: Tensor, basis: Tensor) -> Tensor:
    """[..., D] embeddings without their part in the span of `basis` [d, D]."""
    return embeddings - guided(embeddings, basis) @ basis


def phrase_groups(concept: Concept) -> list[list[str]]:
    """The groups of phrases that a concept stands for: a known word's, one list as one group, or several lists.

    Raises:
        ValueError: an unknown word, an empty phrase or group, or nothing to compare.
        TypeError: something else than texts.
    """
    if isinstance(concept, str):
        if concept not in CONCEPTS:
            close = get_close_matches(concept, CONCEPTS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"the concept {concept!r} is not known; known: {', '.join(CONCEPTS)}; or give a list of phrases that "
                f"differ in it, such as ['{{}} at noon', '{{}} at night']{hint}"
            )
        return [list(CONCEPTS[concept])]
    parts: list[Any] = list(concept)
    one = all(isinstance(part, str) for part in parts)
    groups = [parts] if one else [[part] if isinstance(part, str) else list(part) for part in parts]
    if not all(isinstance(phrase, str) for group in groups for phrase in group):
        raise TypeError(f"a concept is {concept!r}; expected a word, a list of phrases, or lists of phrases")
    if not all(groups) or not all(phrase.strip() for group in groups for phrase in group) or sum(map(len, groups)) < 2:
        raise ValueError(f"a concept is {concept!r}; expected two phrases or more, none of them empty")
    return groups


class Laft(Scorer):
    """See the module. A phrase's `{}` becomes the name; the prompt pack's templates are put around it.

    Args:
        guide: what alone is looked at: a word of CONCEPTS, a list of phrases that differ in it, or lists of phrases
            where what differs between the lists counts.
        ignore: what is overlooked, given alike (boxes, polygons and masks are places, as for every method).
        dimensions: of the space of each; None takes as many as hold 90 % of the differences; see the module.
        neighbours: normals that a picture is compared with.
    """

    needs_normals: ClassVar[bool] = True

    guide_basis: Tensor | None  # [d, D]
    ignore_basis: Tensor | None

    def __init__(
        self,
        encoder: Encoder,
        *,
        resolution: int | None = None,
        guide: Concept | None = None,
        ignore: Concept | None = None,
        dimensions: int | None = None,
        neighbours: int = 30,
    ):
        super().__init__(encoder, resolution=resolution)
        if dimensions is not None and not 1 <= dimensions < encoder.embed_dim:
            raise ValueError(f"dimensions is {dimensions}; expected 1 to {encoder.embed_dim - 1}, or None")
        if neighbours < 1:
            raise ValueError(f"neighbours is {neighbours}; expected 1 or more")
        self.guide = None if guide is None else phrase_groups(guide)
        self.ignore = None if ignore is None else phrase_groups(ignore)
        self.dimensions, self.neighbours = dimensions, neighbours
        self.options.update(guide=self.guide, ignore=self.ignore, dimensions=dimensions, neighbours=neighbours)
        self.normals = Memory(encoder.embed_dim)  # whole embeddings: other words may ask for another part of them
        self.register_buffer("guide_basis", None)
        self.register_buffer("ignore_basis", None)

    def prototypes_of(self, pack: PromptPack, name: str) -> Tensor:
        """Those of all methods; the words of the concepts are taken at the same time."""
        fill = partial(self._sentences, pack, name)
        guide = self.guide or (None if self.ignore else [list(pack.normal), list(pack.anomalous)])
        self.ignore_basis = self._basis(self.ignore, fill, None, 1)
        self.guide_basis = self._basis(guide, fill, self.ignore_basis, FEWEST)
        sizes = [0 if basis is None else len(basis) for basis in (self.guide_basis, self.ignore_basis)]
        if sizes[0] == 1:
            logger.warning("one dimension guides: scores can only be 0 to 2 by sign; give more phrases or dimensions")
        logger.info("%s: %d dimensions guide, %d are ignored, of %d", name, *sizes, self.encoder.embed_dim)
        return super().prototypes_of(pack, name)

    def _basis(
        self, groups: list[list[str]] | None, fill: Callable[[list[str]], Tensor], without: Tensor | None, fewest: int
    ) -> Tensor | None:
        if groups is None:
            return None
        rows = [fill(group) for group in groups]
        rows = rows if without is None else [ignored(row, without) for row in rows]
        return concept_basis(rows, self.dimensions, fewest)

    def _sentences(self, pack: PromptPack, name: str, phrases: Sequence[str]) -> Tensor:
        """[phrases, D]: the raw embeddings of each phrase, averaged over the pack's templates."""
        templates = pack.templates
        filled = [phrase.replace("{}", name) for phrase in phrases]
        sentences = [template.replace("{}", phrase) for phrase in filled for template in templates]
        return embed(self.encoder, sentences).unflatten(0, (len(phrases), len(templates))).mean(1)

    def transform(self, embeddings: Tensor) -> Tensor:
        """[..., d or D] what the words leave of embeddings [..., D]."""
        if self.ignore_basis is not None:
            embeddings = ignored(embeddings, self.ignore_basis)
        return embeddings if self.guide_basis is None else guided(embeddings, self.guide_basis)

    def forward(self, pixels: Tensor) -> Scores:
        image = self.encoder(pixels).image.float()  # [B, D]
        seen = self.transform(image), self.transform(self.normals.rows)
        owners, without = self.normals.owners, self.normals.excluded
        distances = nearest(*seen, self.neighbours, metric="cosine", owners=owners, without=without)[0]  # [B, k]
        return Scores(distances.mean(1), None, image)

    def remember(self, batches: Iterable[Tensor]) -> None:
        for pixels in batches:
            self.normals.add(self.encoder(pixels).image[:, None])
