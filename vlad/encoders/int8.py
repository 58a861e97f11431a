"""Linear layers in int8, in plain torch: weights with a scale per output row, activations with a scale per token.

A scale per batch, or per picture, would be cheaper, but then a score would depend on what lies beside it: a token's
scale depends on that token alone. Nothing is calibrated. Attention, norms, GELU and the residual stream stay float32.
"""

import warnings
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 256  # tokens of one product: what is made of them on the way stays in the cache
LARGEST = 127  # of an int8 on both sides of 0
EXACT = 2**24 // (LARGEST + 1) ** 2  # products of two int8 that float32 adds up without rounding
UNITS = ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8")  # any of them multiplies int8 fast


class Int8Weight:
    """A matrix [out, in] of int8 with a scale per row. Rows are taken with a slice, as of a tensor.

    Attributes:
        dtype: what it is multiplied with and what comes out.
    """

    dtype = torch.float32

    def __init__(self, values: Tensor, scales: Tensor):
        self.values, self.scales = values, scales  # int8 [out, in], float32 [out]

    @classmethod
    def of(cls, weight: Tensor) -> "Int8Weight":
        """The nearest to a float matrix."""
        quantised, scales = quantised_rows(weight.detach().float())
        return cls(quantised, scales[:, 0])

    def __getitem__(self, rows: slice) -> "Int8Weight":
        return Int8Weight(self.values[rows], self.scales[rows])

    def times(self, tokens: Tensor, bias: Tensor | None) -> Tensor:
        """[..., out] float32 of [..., in]."""
        found = [self._times(part, bias) for part in tokens.flatten(0, -2).split(ROWS)]
        whole = found[0] if len(found) == 1 else torch.cat(found)
        return whole.unflatten(0, tokens.shape[:-1])

    def _times(self, tokens: Tensor, bias: Tensor | None) -> Tensor:
        quantised, scales = quantised_rows(tokens.float())
        found = int8_product(quantised, self.values.T).float().mul_(scales).mul_(self.scales)
        return found if bias is None else found.add_(bias)


class Int8Linear(nn.Module):
    """What stands in the place of an `nn.Linear`."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.matrix = Int8Weight.of(layer.weight)
        self.bias = None if layer.bias is None else layer.bias.detach().float()

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., out] float32 of [..., in]."""
        return self.matrix.times(tokens, self.bias)


def linear(tokens: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
    """[..., out] of [..., in] and a weight [out, in] that is a tensor or an `Int8Weight`."""
    return weight.times(tokens, bias) if isinstance(weight, Int8Weight) else F.linear(tokens, weight, bias)


def quantise(module: nn.Module) -> None:
    """Puts an `Int8Linear` in the place of every linear layer below the module, and int8 into its attention."""
    if isinstance(module, nn.MultiheadAttention):
        weight = Int8Weight.of(module.in_proj_weight)
        del module.in_proj_weight  # a parameter cannot be replaced by anything else
        setattr(module, "in_proj_weight", weight)  # noqa: B010  # typed as a parameter
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child))
        else:
            quantise(child)


def quantised_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [n, C] and scales [n, 1], whose product is nearest to float32 rows [n, C]."""
    reach = torch.maximum(rows.amax(1, keepdim=True), -rows.amin(1, keepdim=True))  # |rows| would be a copy of them
    scales = reach.clamp_min_(torch.finfo(torch.float32).tiny * LARGEST) / LARGEST
    return (rows / scales).round_().to(torch.int8), scales


def int8_product(left: Tensor, right: Tensor) -> Tensor:
    """int32 [n, out] of int8 [n, in] and [in, out]; torch has no public name for it yet.

    Without units for int8 that takes 20 times as long as float32, so float32 does it there: its sums of EXACT products
    of such integers are exact.
    """
    if has_int8_units():
        return torch._int_mm(left, right)
    parts = zip(left.split(EXACT, 1), right.split(EXACT, 0), strict=True)
    return torch.stack([(some.float() @ others.float()).int() for some, others in parts]).sum(0, dtype=torch.int32)


@cache
def has_int8_units() -> bool:
    """Whether this processor multiplies int8 faster than float32, as far as torch knows."""
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return able.get("architecture") != "x86_64" or any(able.get(unit) for unit in UNITS)


def warn_of_slow_int8() -> None:
    """Says where int8 gains nothing."""
    if not has_int8_units():
        warnings.warn(
            "this processor has no units for int8 (VNNI, AMX): dtype='int8' is no faster than 'float32' here",
            stacklevel=2,
        )


def check_int8(device: torch.device) -> None:
    """ValueError where this torch or this device multiplies no int8 matrices."""
    if device.type != "cpu":
        raise ValueError(f"dtype='int8' is for the CPU, and device is {str(device)!r}; take dtype='bfloat16' there")
    try:
        int8_product(torch.ones(2, 8, dtype=torch.int8), torch.ones(8, 8, dtype=torch.int8))
    except (AttributeError, RuntimeError) as error:
        raise ValueError(f"this torch ({torch.__version__}) has no int8 products; take dtype='bfloat16'") from error
    warn_of_slow_int8()
