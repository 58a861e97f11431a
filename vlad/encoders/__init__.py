"""Frozen towers that turn pictures, and words where they can, into embeddings.

`vlad.encoders` is this folder; called, `vlad.encoders()`, it lists names, and `vlad.encoders.load` is the one door from
a name to an `Encoder`.
"""

from typing import TYPE_CHECKING, Any

from vlad.callable_module import make_callable

if TYPE_CHECKING:
    from vlad.encoders.encoder import Encoder


def load(
    encoder: "str | Encoder | None" = "tiny",
    device: str | None = None,
    dtype: Any = None,
    runtime: str | None = None,
) -> "Encoder":
    """The encoder of a name, as `vlad.Encoder.load` has it; None is "tiny", and an Encoder is returned as it is.

    Raises:
        TypeError: neither a name nor an Encoder, or a device, dtype or runtime beside one; what `Encoder.load` raises.
    """
    from vlad.encoders.encoder import Encoder

    if encoder is None or isinstance(encoder, str):
        return Encoder.load("tiny" if encoder is None else encoder, device, dtype, runtime=runtime or "torch")
    if not isinstance(encoder, Encoder):
        raise TypeError(f"encoder is a {type(encoder).__name__}; expected a name such as 'tiny' or a vlad.Encoder")
    if device is not None or dtype is not None or runtime is not None:
        raise TypeError(
            "device, dtype and runtime belong to the encoder: give them to Encoder.load, not beside a loaded Encoder"
        )
    return encoder


def encoders() -> list[str]:
    """Names for `encoder=`: "tiny", then every open_clip "MODEL/TAG" whose vision tower VLAD can walk."""
    from vlad.encoders import weights

    return weights.encoders()


make_callable(encoders)
