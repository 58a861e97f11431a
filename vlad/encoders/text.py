"""The half of an encoder that reads: sentences in, embeddings out. Always float32: they are encoded once and kept."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlad.encoders.blocks import block, checkpointed

Edit = Callable[[int, Tensor], Tensor]


class TextTower:
    """What `Encoder` has for sentences.

    Attributes:
        text_width, text_depth: width of its tokens and number of its blocks; None and 0 for towers that do not read as
            CLIP's does, from left to right, and so cannot be walked.
    """

    name: str
    model: Any
    device: torch.device
    tokenizer: Callable[[list[str]], Tensor]
    text_width: int | None
    text_depth: int

    @torch.no_grad()
    def text(self, sentences: Sequence[str], batch_size: int = 256) -> Tensor:
        """[T, D] float32 sentence embeddings, not normalised, on the encoder's device; raises what `tokenize` does."""
        rows = []
        for start in range(0, len(sentences), batch_size):
            rows.append(self._encode(self.tokenize(sentences[start : start + batch_size])))
        return torch.cat(rows)

    def tokenize(self, sentences: Sequence[str]) -> Tensor:
        """[T, context] token ids on the encoder's device.

        Raises:
            ValueError: a sentence fills the tower's context, where its end (and what it says) would be cut off.
        """
        ids = self.tokenizer(list(sentences)).to(self.device)
        full = (ids.argmax(-1) == ids.shape[1] - 1).nonzero()
        if len(full):
            raise ValueError(
                f"too long for {self.name}, which reads {ids.shape[1] - 2} tokens: {sentences[int(full[0])]!r:.120}; "
                "shorten the name or the phrase"
            )
        return ids

    def _text_shape(self) -> tuple[int | None, int]:
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
        """[T, length, C] tokens of [T, context] ids, cut after the longest sentence: no causal tower looks there.

        `words` [T, n, C] stand in the place of the embeddings of n tokens, from token `at` on, before positions are
        added; 1 is the first word.
        """
        tower: Any = getattr(self.model, "text", self.model)
        length = int(ids.argmax(-1).max()) + 1
        tokens = tower.token_embedding(ids[:, :length])
        if words is not None:
            tokens = torch.cat([tokens[:, :at], words, tokens[:, at + words.shape[1] :]], 1)
        return tokens + tower.positional_embedding[:length]

    def walk_text(self, tokens: Tensor, edit: Edit | None = None, checkpointing: bool = False) -> Tensor:
        """[T, length, C] after all text blocks; `edit`, which may change T, and `checkpointing` as in `walk`."""
        tower: Any = getattr(self.model, "text", self.model)
        step = checkpointed if checkpointing else block
        for layer, module in enumerate(tower.transformer.resblocks, 1):
            tokens = step(module, [edit(layer, tokens) if edit else tokens], causal=True)[0]
        return tokens

    def pool_text(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """[T, D] from the end-of-text token, the one with the largest id."""
        ends, projection = self.end_text(tokens, ids), getattr(self.model, "text", self.model).text_projection
        return projection(ends) if isinstance(projection, nn.Linear) else ends @ projection

    def end_text(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """[T, C]: the end-of-text token after the last layer norm, not projected."""
        tower: Any = getattr(self.model, "text", self.model)
        return tower.ln_final(tokens)[torch.arange(len(tokens), device=tokens.device), ids.argmax(-1)]
