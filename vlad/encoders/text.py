"""The half of an encoder that reads: sentences in, embeddings out. Always float32: they are encoded once and kept."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlad.encoders.abilities import Edit
from vlad.encoders.blocks import block, checkpointed, continued
from vlad.encoders.encoder import Encoder

TOKENIZED = 32  # calls whose tokens are kept
PIECES = 4  # into which the vocabulary's merges leave a word of another language or none; "photovoltaic" is 3


def strange_words(encoder: Encoder, name: str) -> list[str]:
    """The words of a name that an encoder with CLIP's vocabulary, which is of English, sees in small pieces alone."""
    from open_clip import tokenize
    from open_clip.tokenizer import SimpleTokenizer

    words = name.split()
    if not words or not isinstance(getattr(encoder, "tokenizer", None), SimpleTokenizer):
        return []
    pieces = (tokenize(words) != 0).sum(1) - 2  # without start and end
    return [word for word, count in zip(words, pieces.tolist(), strict=True) if count >= PIECES]


class ReadingEncoder(Encoder):
    """An encoder whose open_clip model also reads."""

    model: Any

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.tokenized: dict[tuple[str, ...], Tensor] = {}  # the last sentences: some methods read theirs each time

    @torch.no_grad()
    def text(self, sentences: Sequence[str], batch_size: int = 256) -> Tensor:
        rows = []
        for start in range(0, len(sentences), batch_size):
            rows.append(self._encode(self.tokenize(sentences[start : start + batch_size])))
        return torch.cat(rows)

    def tokenize(self, sentences: Sequence[str]) -> Tensor:
        if (kept := self.tokenized.get(asked := tuple(sentences))) is not None:
            return kept
        ids = self.tokenizer(list(sentences)).to(self.device)
        full = (ids.argmax(-1) == ids.shape[1] - 1).nonzero()
        if len(full):
            raise ValueError(
                f"too long for {self.name}, which reads {ids.shape[1] - 2} tokens: {sentences[int(full[0])]!r:.120}; "
                "shorten the name or the phrase"
            )
        self.tokenized = {**dict(list(self.tokenized.items())[1 - TOKENIZED :]), asked: ids}
        return ids

    def text_shape(self) -> tuple[int | None, int]:
        """(width of its tokens, number of its blocks), or (None, 0); see `Encoder`."""
        tower: Any = getattr(self.model, "text", self.model)
        blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
        pool = getattr(tower, "pool_type", getattr(self.model, "text_pool_type", None))
        causal = getattr(tower, "attn_mask", None) is not None
        if blocks is None or not causal or pool != "argmax" or getattr(tower, "cls_emb", None) is not None:
            return None, 0
        return tower.token_embedding.embedding_dim, len(blocks)

    def _encode(self, ids: Tensor) -> Tensor:
        if self.text_width is None:
            return self.model.encode_text(ids).float()  # BERT-like towers see all tokens at once
        return self.pool_text(self.walk_text(self.embed_text(ids)), ids)

    def embed_text(self, ids: Tensor, words: Tensor | None = None, at: int = 1) -> Tensor:
        tower: Any = getattr(self.model, "text", self.model)
        length = int(ids.argmax(-1).max()) + 1
        tokens = tower.token_embedding(ids[:, :length])
        if words is not None:
            tokens = torch.cat([tokens[:, :at], words, tokens[:, at + words.shape[1] :]], 1)
        return tokens + tower.positional_embedding[:length]

    def walk_text(self, tokens: Tensor, edit: Edit | None = None, checkpointing: bool = False) -> Tensor:
        tower: Any = getattr(self.model, "text", self.model)
        step = checkpointed if checkpointing else block
        for layer, module in enumerate(tower.transformer.resblocks, 1):
            tokens = step(module, [edit(layer, tokens) if edit else tokens], causal=True)[0]
        return tokens

    def walk_text_ends(self, groups: list[Tensor]) -> list[Tensor]:
        tower: Any = getattr(self.model, "text", self.model)
        for module in tower.transformer.resblocks:
            groups = continued(module, groups)
        return groups

    def pool_text(self, tokens: Tensor, ids: Tensor) -> Tensor:
        ends, projection = self.end_text(tokens, ids), getattr(self.model, "text", self.model).text_projection
        return projection(ends) if isinstance(projection, nn.Linear) else ends @ projection

    def end_text(self, tokens: Tensor, ids: Tensor) -> Tensor:
        tower: Any = getattr(self.model, "text", self.model)
        return tower.ln_final(tokens)[torch.arange(len(tokens), device=tokens.device), ids.argmax(-1)]
