"""What only some towers can do: walk tokens block by block, and read.

Each ability stands here with what it takes and gives, and refuses in one sentence; a tower that has it overrides it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, overload

from torch import Tensor

Edit = Callable[[int, Tensor], Tensor]


class Abilities:
    """Inherited by every encoder.

    Raises:
        TypeError: each of them, where the tower cannot do it.
    """

    name: str

    def cannot(self, what: str) -> NoReturn:
        """TypeError: one sentence that names the tower, what was asked of it, and the way out."""
        raise TypeError(f"{self.name} {what}; take a CLIP, such as 'tiny' or 'ViT-L-14-336/openai'")

    def embed(self, pixels: Tensor, positions: str = "bicubic-antialias", first: Tensor | None = None) -> Tensor:
        """[B, 1 + N, C] float32 tokens that enter the first block: class token, patches, positions, first layer norm.

        Args:
            pixels: [B, 3, H, W] from `pixels`.
            positions: how the position table is brought to another grid than its own: "bicubic-antialias" (open_clip),
                "bicubic", "bilinear" (AnomalyCLIP); align_corners=False in all.
            first: [n, C], other tokens to stand before the class token, with its position (VisualAD).
        """
        self.cannot("takes no tokens of others into its blocks")

    @overload
    def walk(
        self, tokens: Tensor, edit: Edit | None = None, class_only: bool = False, checkpointing: bool = False
    ) -> Iterator[tuple[int, Tensor, Tensor]]: ...
    @overload
    def walk(
        self, tokens: list[Tensor], edit: Edit | None = None, class_only: bool = False, checkpointing: bool = False
    ) -> Iterator[tuple[int, list[Tensor], list[Tensor]]]: ...
    def walk(
        self, tokens: Any, edit: Edit | None = None, class_only: bool = False, checkpointing: bool = False
    ) -> Iterator[tuple[int, Any, Any]]:
        """The vision tower's block loop: yields (layer, tokens before the block, tokens after), layer from 1.

        Args:
            tokens: [B, T, C] from `embed`; or a list of such groups of different lengths, which then share every matrix
                product (WinCLIP's windows) while attention stays within each sequence.
            edit: called before each block with (layer, tokens); what it returns goes on. One group only.
            class_only: the last block computes the first token of each sequence alone, [B, 1, C]; exact, and cheaper.
            checkpointing: for gradients, what is inside a block is computed again instead of kept; same results.
        """
        self.cannot("takes no tokens of others into its blocks")

    def value_attention(self, layer: int, tokens: Tensor, sources: str = "v") -> Tensor:
        """[B, T, C]: what block `layer` (from 1) attends to in `tokens` when values stand for queries and keys too.

        `sources` "qkv" is the sum of three such attentions, with the queries, the keys and the values on both sides.

        Source: CLIP Surgery (arXiv:2304.05653), the v-v attention; all three: Crane (arXiv:2504.11055), E-Attn.
        """
        self.cannot("takes no tokens of others into its blocks")

    def attention(self, layer: int, tokens: Tensor) -> Tensor:
        """[B, T, C]: what the attention of block `layer` (from 1) adds to `tokens`, before its MLP sees them."""
        self.cannot("takes no tokens of others into its blocks")

    def values(self, layer: int, tokens: Tensor, bare: bool = False) -> Tensor:
        """[B, T, C]: the values that block `layer` (from 1) makes of `tokens`; `bare` without its norm and its bias."""
        self.cannot("takes no tokens of others into its blocks")

    def joined(self, layer: int, mixed: Tensor) -> Tensor:
        """[B, T, C] float32: what the attention of block `layer` projects mixed values [B, T, C] to."""
        self.cannot("takes no tokens of others into its blocks")

    def mlp(self, layer: int, tokens: Tensor) -> Tensor:
        """[B, T, C]: what the MLP of block `layer` (from 1) adds to `tokens`, which its attention has changed."""
        self.cannot("takes no tokens of others into its blocks")

    def windows(self, pixels: Tensor, scales: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Class embeddings, not normalised: [B, D] of whole pictures, then [B, windows, D] of square windows per scale.

        A window is the class token and k x k patches with their own positions, run through the tower as a short
        sequence (WinCLIP, arXiv:2303.14814); stride 1, row-major.
        """
        self.cannot("looks at no windows of patches")

    # Words

    def text(self, sentences: Sequence[str], batch_size: int = 256) -> Tensor:
        """[T, D] float32 sentence embeddings, not normalised, on the encoder's device; raises what `tokenize` does."""
        self.cannot("knows pictures alone")

    def tokenize(self, sentences: Sequence[str]) -> Tensor:
        """[T, context] token ids on the encoder's device.

        Raises:
            ValueError: a sentence fills the tower's context, where its end (and what it says) would be cut off.
        """
        self.cannot("knows pictures alone")

    def embed_text(self, ids: Tensor, words: Tensor | None = None, at: int = 1) -> Tensor:
        """[T, length, C] tokens of [T, context] ids, cut after the longest sentence: no causal tower looks there.

        `words` [T, n, C] stand in the place of the embeddings of n tokens, from token `at` on, before positions are
        added; 1 is the first word.
        """
        self.cannot("knows pictures alone")

    def walk_text(self, tokens: Tensor, edit: Edit | None = None, checkpointing: bool = False) -> Tensor:
        """[T, length, C] after all text blocks; `edit`, which may change T, and `checkpointing` as in `walk`."""
        self.cannot("knows pictures alone")

    def walk_text_ends(self, groups: list[Tensor]) -> list[Tensor]:
        """The same of sentences that share beginnings: groups[0] [B, P, C] are the beginnings, each further group
        [B * T, L, C] has T ends of each, those of the first beginning first."""
        self.cannot("knows pictures alone")

    def pool_text(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """[T, D] from the end-of-text token, the one with the largest id."""
        self.cannot("knows pictures alone")

    def end_text(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """[T, C]: the end-of-text token after the last layer norm, not projected."""
        self.cannot("knows pictures alone")
