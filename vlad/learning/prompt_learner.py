"""What the object-agnostic prompt learners share: two learned sentences, and a value stream beside the picture's own.

Their sentences name no object, so what was learned on one data set can be asked about any other.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from vlad.encoders.encoder import Encoder
from vlad.learning.scorer import lengths_in
from vlad.maps import TEMPERATURE, state_logits, to_size

# In the authors' files beside what was learned: copies of CLIP's own embeddings, ids, and layers that nothing uses.
NOT_LEARNED = ("token_prefix_", "token_suffix_", "tokenized_prompts_", "compound_prompt_projections.")

SENTENCES = 512  # of several pictures, run through the text tower at once

Made = TypeVar("Made")


def value_start(encoder: Encoder) -> int:
    """The first block with a value stream: 6 of 24, 4 of 12, none where ordinary tokens align with text."""
    return encoder.depth + 1 - (0 if encoder.dense_path == "ordinary" else max(1, encoder.depth * 19 // 24))


def stream_walk(
    encoder: Encoder, pixels: Tensor, sources: str = "v"
) -> Iterator[tuple[int, Tensor, Tensor, Tensor | None]]:
    """The block loop with a value stream: yields (layer, tokens before, tokens after, the stream's tokens).

    From block 6 of 24 on (4 of 12) a second stream adds up the value attentions that the blocks give of the ordinary
    stream, and has no MLP; before that it is None. `sources` as in `Encoder.value_attention`. Positions are resampled
    bilinearly. The last block's tokens after it are the first alone, [B, 1, C].

    An encoder whose ordinary tokens align with text needs no value stream, and its training has given that no meaning:
    there the stream is None throughout, and positions are those of `Encoder.dense`.

    Source: AnomalyCLIP (arXiv:2310.18961), DPAM in its code.
    """
    aligned, first = encoder.dense_path == "ordinary", value_start(encoder)
    positions, stream = "bicubic-antialias" if aligned else "bilinear", None
    for layer, before, after, values in encoder.value_walk(pixels, positions, first, not aligned, sources):
        if values is not None:
            stream = (before if stream is None else stream) + values
        yield layer, before, after, stream


def value_stream(encoder: Encoder, pixels: Tensor, layers: Sequence[int]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """CLIP's own embedding [B, D], the class embedding to score [B, D], and [B, 1 + N, D] per layer; not normalised.

    The layers' tokens are those of `stream_walk`'s stream, or where there is none the ordinary ones, projected. The
    class token that is scored skips the last layer norm, an oddity which the published weights were learned with; of an
    encoder whose ordinary tokens align with text it is the encoder's own.
    """
    taps = {}
    for layer, _, after, stream in stream_walk(encoder, pixels):
        if layer in layers:
            taps[layer] = after if stream is None else stream
    own = encoder.project(after[:, 0])
    scored = own if encoder.dense_path == "ordinary" else after[:, 0] @ encoder.projection
    return own, scored, [encoder.project(taps[layer]) for layer in layers]


def state_maps(patches: Tensor, states: Tensor, size: tuple[int, int], patch: int) -> Tensor:
    """[B, 2, *size]: the two states' probabilities of each patch embedding [B, N, D], then bilinear to the size.

    `states` is [2, D], `patch` the side of a patch in pixels.
    """
    grid = size[0] // patch, size[1] // patch
    probabilities = state_logits(patches, states, TEMPERATURE).softmax(-1).unflatten(1, grid)  # [B, rows, columns, 2]
    return torch.stack([to_size(one, size) for one in probabilities.unbind(-1)], 1)


def read_prompts(encoder: Encoder, ids: Tensor, words: Tensor, deep: Sequence[Tensor] = ()) -> Tensor:
    """[T, D] embeddings, not normalised, of sentences [T, context] whose first words are learned vectors [T, n, C].

    Before text block 2 the tokens of the first of those words are replaced by deep[0] [length, C], the same in all
    sentences, before block 3 by deep[1], and so on.
    """

    def replaced(layer: int, tokens: Tensor) -> Tensor:
        if not 2 <= layer <= 1 + len(deep):
            return tokens
        learned = deep[layer - 2].expand(len(tokens), -1, -1)
        return torch.cat([tokens[:, :1], learned, tokens[:, 1 + learned.shape[1] :]], 1)

    return encoder.pool_text(encoder.walk_text(encoder.embed_text(ids, words), replaced), ids)


def read_by_picture(encoder: Encoder, ids: Tensor, words: Tensor) -> Tensor:
    """[B, T, D] unit embeddings of T sentences [T, context] after each picture's own vectors [B, T, n, C].

    Sentences of one length are read together: shorter ones among longer ones would be read to the longest one's end.
    """
    ends = ids.argmax(-1)
    rows = [(ends == end).nonzero()[:, 0] for end in ends.unique()]
    read = torch.cat([_read_alike(encoder, ids[row], words[:, row]) for row in rows], 1)
    return read[:, torch.cat(rows).argsort()]


def _read_alike(encoder: Encoder, ids: Tensor, words: Tensor) -> Tensor:
    """The same of sentences of one length."""
    read = []
    for part in words.split(max(1, SENTENCES // len(ids))):
        rows = read_prompts(encoder, ids.repeat(len(part), 1), part.flatten(0, 1))
        read.append(F.normalize(rows, dim=-1).unflatten(0, (len(part), -1)))
    return torch.cat(read)


def read_after(encoder: Encoder, ids: Tensor, words: Tensor) -> Tensor:
    """`read_by_picture`, where a picture's sentences all come after the same vectors [B, n, C], which are read once."""
    ends, start = ids.argmax(-1), 1 + words.shape[1]
    rows = [(ends == end).nonzero()[:, 0] for end in ends.unique()]
    tokens, order, read = encoder.embed_text(ids), torch.cat(rows).argsort(), []
    for part in words.split(max(1, SENTENCES // len(ids))):
        first = encoder.embed_text(ids[:1].expand(len(part), -1), part)[:, :start]
        groups = [tokens[row, start : 1 + int(ends[row[0]])].repeat(len(part), 1, 1) for row in rows]
        last = [group[:, -1:] for group in encoder.walk_text_ends([first, *groups])[1:]]  # [b * T, 1, C]
        pooled = [encoder.pool_text(one, one.new_zeros(len(one), 1)).unflatten(0, (len(part), -1)) for one in last]
        read.append(F.normalize(torch.cat(pooled, 1)[:, order], dim=-1))
    return torch.cat(read)


class Kept(Generic[Made]):
    """What is made of parameters, kept as long as these are the same and nothing was written into them.

    Some optimisers write behind autograd's back: their sums are compared too. A copy, by `copy` or by pickle, has kept
    nothing yet.
    """

    def __init__(self) -> None:
        self.now: tuple[list[Parameter], list[tuple[int, int, float]], Made] | None = None

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()

    def __call__(self, parameters: Iterable[Parameter], make: Callable[[], Made]) -> Made:
        """What `make` gives, or gave; where gradients are asked for it is made anew."""
        if torch.is_grad_enabled():
            return make()
        if torch.compiler.is_exporting() and self.now is not None:
            return self.now[2]
        own, kept = list(parameters), self.now
        sums = torch.stack([one.sum() for one in own]).tolist()
        written = [(one.data_ptr(), one._version, total) for one, total in zip(own, sums, strict=True)]
        if kept is None or list(map(id, kept[0])) != list(map(id, own)) or kept[1] != written:
            kept = self.now = own, written, make()
        return kept[2]


def word_width(encoder: Encoder) -> int:
    """C of the encoder's words; TypeError where its text tower does not read as CLIP's, so that none can be learned."""
    if encoder.text_width is None:
        raise TypeError(f"learned prompts need a text tower that reads as CLIP's does; {encoder.name!r} has another")
    return encoder.text_width


class PromptLearner(nn.Module):
    """Two sentences, one a state, whose first words are learned vectors and not words of any language.

    Parameters, under the names of AnomalyCLIP's code: `ctx_pos`, `ctx_neg` [1, 1, n_ctx, C], the first words of the
    normal and of the anomalous sentence; `compound_prompts_text`, depth - 1 of [length, C]: before text blocks 2 to
    `depth` the first `length` of those words' tokens are replaced by them, in both sentences.

    Args:
        endings: what follows the learned words in the normal and the anomalous sentence.
        n_ctx: number of learned words.
        depth: text blocks that get learned tokens; 1 is the first alone. More than there are means all.
        length: learned tokens per block after the first.

    Raises:
        TypeError: the encoder's text tower is not built as CLIP's.
        ValueError: a number is out of range.
    """

    ids: Tensor

    def __init__(self, encoder: Encoder, endings: tuple[str, str], n_ctx: int, depth: int = 1, length: int = 0):
        super().__init__()
        C = word_width(encoder)
        if n_ctx < 1 or depth < 1 or not 0 <= length <= n_ctx:
            raise ValueError(
                f"n_ctx is {n_ctx}, depth {depth}, length {length}; expected 1 or more, 1 or more, and 0 to n_ctx"
            )
        ids = encoder.tokenizer(_sentences(endings, n_ctx))
        if int(ids.argmax(-1).max()) == ids.shape[1] - 1:
            raise ValueError(f"n_ctx is {n_ctx}, too long for {encoder.name!r}, which reads {ids.shape[1] - 2} tokens")
        self.register_buffer("ids", ids.to(encoder.device), persistent=False)
        self.endings, self.depth, self.length = endings, min(depth, encoder.text_depth), length
        shapes = [(length, C)] * (self.depth - 1)
        self.ctx_pos, self.ctx_neg = (nn.Parameter(0.02 * torch.randn(1, 1, n_ctx, C)) for _ in range(2))
        self.compound_prompts_text = nn.ParameterList(0.02 * torch.randn(shape) for shape in shapes)
        self._kept = Kept[Tensor]()

    def forward(self, encoder: Encoder) -> Tensor:
        """[2, D] embeddings of the normal and the anomalous sentence, not normalised.

        Where no gradient is asked for they are kept as long as all parameters have the same values.
        """
        deep = list(self.compound_prompts_text)
        return self._kept(self.parameters(), lambda: read_prompts(encoder, self.ids, self._words(), deep))

    def with_word(self, encoder: Encoder, word: Tensor) -> Tensor:
        """[B, 2, D]: the same of sentences in which one more word [B, C] follows the learned ones."""
        words = torch.cat([self._words().expand(len(word), -1, -1, -1), word[:, None, None].expand(-1, 2, -1, -1)], 2)
        ids = encoder.tokenize(_sentences(self.endings, words.shape[2])).repeat(len(word), 1)
        deep = list(self.compound_prompts_text)
        return read_prompts(encoder, ids, words.flatten(0, 1), deep).unflatten(0, (-1, 2))

    def _words(self) -> Tensor:
        return torch.cat([self.ctx_pos[0], self.ctx_neg[0]])  # [2, n_ctx, C]


def _sentences(endings: Sequence[str], n_ctx: int) -> list[str]:
    return [" ".join(["X"] * n_ctx) + ending for ending in endings]


def check_joint_text(encoder: Encoder, method: str, official: str) -> None:
    """ValueError where text tokens are not as wide as the joint space, for methods that put pictures among words."""
    if encoder.text_width != encoder.embed_dim:
        raise ValueError(
            f"{method} needs text tokens as wide as the joint space; {encoder.name!r} has {encoder.text_width} and "
            f"{encoder.embed_dim}: take {official!r}, 'tiny' or another where they are the same"
        )


def official_prompts(learner: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(n_ctx, depth and length as far as the shapes tell, learned tensors) of a prompt learner in an authors' file."""
    tensors = {key: value for key, value in learner.items() if not key.startswith(NOT_LEARNED)}
    # the unused layers count too, so that a last deep prompt that is missing is missed
    numbers = [int(found[1]) for key in learner if (found := re.match(r"compound_prompt\w+\.(\d+)", key))]
    sizes = lengths_in(tensors, n_ctx=("ctx_pos", 2), length=("compound_prompts_text.0", 0))
    return {"depth": 2 + max(numbers, default=-1), **sizes}, tensors
