"""Which arithmetic an encoder runs in."""

from typing import Any, NoReturn

import torch

INT8 = "int8"
KNOWN = (torch.float32, torch.bfloat16, torch.float16, torch.int8)


class Placed:
    """What stays on the device and in the arithmetic that it was loaded with: a tower may serve many at once."""

    def to(self, *_: Any, **__: Any) -> NoReturn:
        """Raises TypeError, with a word on what to do instead; so do the other moves of torch's modules."""
        raise TypeError(
            f"{type(self).__name__} stays where it was loaded, as its tower may be shared; load it anew with device= "
            "and dtype=, as in vlad.load('patch_text', 'metal bolt', device='cuda', dtype='bfloat16')"
        )

    cpu = cuda = half = float = double = bfloat16 = to


def fastest_safe_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where matrix products of it are faster (GPU, CPU with AMX, AMD's with AVX-512 BF16), else float32.

    Without native support bfloat16 is emulated and several times slower than float32. Intel's AVX-512 BF16 without AMX
    is native and slower still: a pass of ViT-B-16-plus-240 takes 1.5 to 1.7 times as long (tests/bench/bench_int8.py).
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu":
        able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        wide = able.get("avx512_bf16") and "intel" not in str(able.get("cpu_name")).lower()
        return torch.bfloat16 if wide or able.get("amx_bf16") else torch.float32
    return torch.float32


def checked_dtype(given: Any) -> torch.dtype | None:
    """The torch dtype of a name, a dtype or None; ValueError at any other."""
    dtype = getattr(torch, given.removeprefix("torch."), None) if isinstance(given, str) else given
    if given is not None and dtype not in KNOWN:
        raise ValueError(
            f"dtype is {given!r}; expected 'float32', 'bfloat16', 'float16', 'int8' or None (the fastest safe one)"
        )
    return dtype


def arithmetic(dtype: str, runtime: str, calibrated: str | None) -> str:
    """What scores, and so thresholds, belong to, in words; float32 gives the same ones on every runtime.

    `calibrated` is a digest of the pictures that a runtime took its ranges from.
    """
    if dtype == "float32":
        return dtype
    return f"{dtype} on {runtime}" + (f", calibrated on {calibrated[:8]}" if calibrated else "")


def checked_device(given: Any) -> torch.device:
    """The torch device of a name, a device or None (a GPU where there is one); ValueError where it is not here."""
    if given is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    here = ["cpu", *(["cuda", *gpus] if gpus else []), *(["mps"] if torch.backends.mps.is_available() else [])]
    if str(given) not in here:
        raise ValueError(f"device is {str(given)!r}; on this machine there is {', '.join(map(repr, here))}")
    return torch.device(given)


def name_of(dtype: torch.dtype) -> str:
    """ "float32" of torch.float32."""
    return str(dtype).removeprefix("torch.")
