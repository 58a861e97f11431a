"""The transformer block over packed sequences, and the bookkeeping of tokens: plain arithmetic, no state."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vlad.encoders.int8 import linear

LONG = 512  # tokens of a sequence from which on attention gains more than a copy of its rows costs


def window_index(grid: tuple[int, int], size: int) -> Tensor:
    """[windows, 1 + size * size] token numbers: the class token (0), then the window's patches; stride 1, row-major."""
    numbers = torch.arange(1, grid[0] * grid[1] + 1, dtype=torch.float32).view(1, 1, *grid)
    windows = F.unfold(numbers, size)[0].T.long()  # [windows, size * size]
    return F.pad(windows, (1, 0))


def block(module: Any, groups: list[Tensor], class_only: bool = False, causal: bool = False) -> list[Tensor]:
    """One transformer block over groups of sequences [B_i, T_i, C]: all tokens share each matrix product.

    The residual stream keeps its dtype; products run in the dtype of the block's weights.
    """
    kept = [g[:, :1] for g in groups] if class_only else groups
    query, key, value = _projected(module, groups, kept)
    return _residual(module, kept, _attend(query, key, value, groups, kept, module.attn.num_heads, causal))


def checkpointed(*args: Any, **kwargs: Any) -> list[Tensor]:
    """`block`, of which only the input is kept for the gradients."""
    return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def continued(module: Any, groups: list[Tensor]) -> list[Tensor]:
    """A causal block over sequences that share beginnings, each of which is computed once.

    groups[0] [B, P, C] are the beginnings; each further group [B * T, L, C] has T ends of each, those of the first
    beginning first.
    """
    sizes, heads = [g.shape[0] * g.shape[1] for g in groups], module.attn.num_heads
    parts = [zip(part.split(sizes), groups, strict=True) for part in _projected(module, groups, groups)]
    split = [[_heads(rows, group.shape[1], heads) for rows, group in part] for part in parts]
    (_, key, value), mixed = [one[0] for one in split], list[Tensor]()
    for queries, keys, values in zip(*split, strict=True):
        if mixed:
            times = len(queries) // len(key)
            keys, values = (
                torch.cat([before.repeat_interleave(times, 0), own], 2)
                for before, own in ((key, keys), (value, values))
            )
        mask = torch.ones(queries.shape[2], keys.shape[2], dtype=torch.bool, device=key.device)
        mask = mask.tril(keys.shape[2] - queries.shape[2])
        rows = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        mixed.append(rows.transpose(1, 2).flatten(2).flatten(0, 1))
    return _residual(module, groups, torch.cat(mixed))


def value_block(module: Any, tokens: Tensor, class_only: bool = False, sources: str = "v") -> tuple[Tensor, Tensor]:
    """([B, T, C], [B, T, C]): tokens after the block, and beside it what `self_attended` gives, from one projection.

    With `class_only` the tokens after it are the first alone, [B, 1, C].
    """
    groups = [tokens]
    kept = [tokens[:, :1]] if class_only else groups
    asked = groups if "q" in sources else kept
    query, key, value = _projected(module, groups, asked)
    values = _summed(module, {"q": query, "k": key, "v": value}, tokens, sources)
    if asked is not kept:
        query = query.view_as(tokens)[:, :1].flatten(0, 1)
    mixed = _attend(query, key, value, groups, kept, module.attn.num_heads, False)
    return _residual(module, kept, mixed)[0], values


def self_attended(module: Any, tokens: Tensor, sources: str = "v") -> Tensor:
    """[B, T, C]: what the block attends to when queries and keys are the same: its values ("v"), or the sum of what it
    attends to with each of several ("qkv"), each with a softmax of its own."""
    weight, bias, C = module.attn.in_proj_weight, module.attn.in_proj_bias, tokens.shape[-1]
    rows = module.ln_1(tokens.flatten(0, 1)).to(weight.dtype)
    third = {part: slice(number * C, (number + 1) * C) for number, part in enumerate("qkv")}
    parts = {part: linear(rows, weight[third[part]], bias[third[part]]) for part in {*sources, "v"}}
    return _summed(module, parts, tokens, sources)


def _summed(module: Any, parts: dict[str, Tensor], tokens: Tensor, sources: str) -> Tensor:
    heads = {part: _heads(parts[part], tokens.shape[1], module.attn.num_heads) for part in {*sources, "v"}}
    found = [F.scaled_dot_product_attention(heads[one], heads[one], heads["v"]) for one in sources]
    mixed = sum(found[1:], found[0]).transpose(1, 2).reshape_as(parts["v"])
    return module.attn.out_proj(mixed).view_as(tokens).to(tokens.dtype)


def attended(module: Any, tokens: Tensor) -> Tensor:
    """[B, T, C]: what the block's attention adds to tokens [B, T, C]."""
    groups = [tokens]
    mixed = _attend(*_projected(module, groups, groups), groups, groups, module.attn.num_heads, False)
    return module.ls_1(module.attn.out_proj(mixed)).view_as(tokens).to(tokens.dtype)


def fed(module: Any, tokens: Tensor) -> Tensor:
    """[B, T, C]: what the block's MLP adds to tokens [B, T, C]."""
    rows = module.ln_2(tokens).to(module.attn.in_proj_weight.dtype)
    return module.ls_2(module.mlp(rows)).to(tokens.dtype)


def _projected(module: Any, groups: list[Tensor], kept: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of the kept tokens, keys and values of all, [tokens, C] each."""
    weight, bias, C = module.attn.in_proj_weight, module.attn.in_proj_bias, groups[0].shape[-1]
    rows = module.ln_1(_pack(groups)).to(weight.dtype)
    if kept is groups:
        query, key, value = linear(rows, weight, bias).chunk(3, -1)
    else:
        query = linear(module.ln_1(_pack(kept)).to(weight.dtype), weight[:C], bias[:C])
        key, value = linear(rows, weight[C:], bias[C:]).chunk(2, -1)
    return query, key, value


def _residual(module: Any, kept: list[Tensor], mixed: Tensor) -> list[Tensor]:
    """The block's output from what its attention mixed, [all kept tokens, C]."""
    rows = _pack(kept)
    rows = rows + module.ls_1(module.attn.out_proj(mixed)).to(rows.dtype)
    rows = rows + fed(module, rows)
    sizes = [g.shape[0] * g.shape[1] for g in kept]
    return [r.view_as(g) for r, g in zip(rows.split(sizes), kept, strict=True)]


def _pack(groups: list[Tensor]) -> Tensor:
    """[all tokens, C] of groups [B_i, T_i, C]."""
    return torch.cat([g.flatten(0, 1) for g in groups]) if len(groups) > 1 else groups[0].flatten(0, 1)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, groups: list[Tensor], kept: list[Tensor], heads: int, causal: bool
) -> Tensor:
    """[kept tokens, C]: attention within each sequence of each group."""
    mixed, asked, seen = [], 0, 0
    for group, queried in zip(groups, kept, strict=True):
        q_count, k_count = queried.shape[0] * queried.shape[1], group.shape[0] * group.shape[1]
        q, k, v = (
            _heads(query[asked : asked + q_count], queried.shape[1], heads),
            _heads(key[seen : seen + k_count], group.shape[1], heads),
            _heads(value[seen : seen + k_count], group.shape[1], heads),
        )
        mixed.append(F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).reshape(q_count, -1))
        asked, seen = asked + q_count, seen + k_count
    return torch.cat(mixed) if len(mixed) > 1 else mixed[0]


def _heads(rows: Tensor, length: int, heads: int) -> Tensor:
    """[B, heads, T, C / heads] of rows [B * T, C], T is `length`; of long ones a head's rows are brought together."""
    apart = rows.reshape(-1, length, heads, rows.shape[-1] // heads).transpose(1, 2)
    return apart if torch.compiler.is_exporting() or length < LONG else apart.contiguous()


def resample_positions(table: Tensor, native: tuple[int, int], grid: tuple[int, int], mode: str) -> Tensor:
    """[1 + N, C]: the position table on another grid; the class row is kept."""
    known = {"bicubic-antialias": ("bicubic", True), "bicubic": ("bicubic", False), "bilinear": ("bilinear", False)}
    if mode not in known:
        raise ValueError(f"positions is {mode!r}; expected one of {', '.join(known)}")
    if tuple(native) == tuple(grid):
        return table
    interpolation, antialias = known[mode]
    square = table[1:].T.reshape(1, -1, *native)  # [1, C, rows, columns]
    square = F.interpolate(square, grid, mode=interpolation, antialias=antialias, align_corners=False)
    return torch.cat([table[:1], square.flatten(2)[0].T])
