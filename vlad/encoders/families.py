"""The names of encoders: which file loads a tower of a name, and which names are safe in a file."""

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

# How a name begins -> the file that loads it; all others are CLIPs.
FAMILIES = {
    "radio:": "vlad.encoders.radio",
    "dino:": "vlad.encoders.dino",
    "efficientnet:": "vlad.encoders.efficientnet",
}
CLIP = "vlad.encoders.clip"

TORCH = "torch"
RUNTIMES = (TORCH, "openvino")

# Names that a file may hold: the shipped encoder, tags that open_clip knows, sizes that DINOv2 was published in.
NAMED = re.compile(
    r"tiny|[\w-][\w.-]*/[\w-][\w.-]*|[\w-][\w.-]*/random:\d+|dino:(small|base|large)(-registers|/random:\d+)?"
)


def may_be_named(name: str) -> bool:
    """Whether an encoder that a file names is loaded because of that: no path, and no repository of just anybody."""
    return NAMED.fullmatch(name) is not None


def tower(name: str, device: Any, dtype: Any, activation: str | None, runtime: str) -> Any:
    """The encoder of that name; see `vlad.Encoder.load`."""
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime is {runtime!r}; expected one of {', '.join(RUNTIMES)}")
    family = next((file for start, file in FAMILIES.items() if name.startswith(start)), CLIP)
    load: Callable[..., Any] = import_module(family).load
    if family == CLIP:
        return load(name, device, dtype, activation, runtime)
    if runtime != TORCH:
        raise TypeError(f"runtime={runtime!r} computes the blocks of CLIPs, and {name!r} is none; leave it out")
    return load(name, device, dtype, activation)
