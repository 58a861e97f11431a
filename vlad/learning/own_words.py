"""Which CLIP an authors' file was learned on, as far as it holds rows of that CLIP's words."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from vlad.encoders.encoder import Encoder

START = "token_prefix_"  # in the names of what stands before the learned words: the token that begins a sentence
ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}  # of a row's length


def reads_the_same_words(content: Mapping[str, Any], encoder: Encoder) -> bool | None:
    """Whether the encoder's row for the start of a sentence is the one in the file; None where the file has none."""
    rows = [row for row in _rows(content) if row.shape[-1] == encoder.text_width]
    if not rows:
        return None
    own = _start(encoder).cpu()
    return all(float((row.float() - own).norm()) <= ROUNDING[row.dtype] * float(own.norm()) for row in rows)


def _rows(content: Mapping[str, Any]) -> Iterator[Tensor]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _rows(value)
        elif START in str(name) and isinstance(value, Tensor) and value.numel() and value.dtype in ROUNDING:
            row = value.reshape(-1, value.shape[-1])[0].cpu()
            if row.any():  # zeros are a place that was left empty
                yield row


@torch.no_grad()
def _start(encoder: Encoder) -> Tensor:
    """[C] float32: the embedding of the token that begins each sentence, without its position."""
    ids = encoder.tokenize([""])
    nothing = torch.zeros(1, 1, encoder.text_width or 0, device=encoder.device)
    return (encoder.embed_text(ids) - encoder.embed_text(ids, nothing, at=0))[0, 0].float()
