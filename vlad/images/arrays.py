"""Arrays and tensors as pictures: their shapes, channel orders and types."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from vlad.images.depth import Levels

PLAIN = (np.dtype(np.bool_), np.dtype(np.uint8), np.dtype(np.uint16))


def is_tensor(image: Any) -> bool:
    """Whether it is a torch tensor; torch is not imported for the question."""
    return any(kind.__module__ == "torch" and kind.__name__ == "Tensor" for kind in type(image).__mro__)


def repeats(images: Iterable[Any]) -> int:
    """How often the commonest array, tensor or PIL picture stands in the list: more than 1 is a buffer refilled."""
    kinds = (np.ndarray, Image.Image)
    counts = Counter(id(image) for image in images if isinstance(image, kinds) or is_tensor(image))
    return max(counts.values(), default=0)


def from_array(array: np.ndarray, channels: str, bits: int | None) -> Levels:
    """Levels, in memory of their own, of [H, W] or [H, W, 1|3|4].

    Args:
        array: bool, uint8, uint16, float in [0, 1]; with `bits` integers of any type.
        channels: "RGB" or "BGR", the order of three or four.
        bits: as in `vlad.images.read`.

    Raises:
        ValueError: another shape or type.
    """
    shape = array.shape
    if isinstance(array, np.ma.MaskedArray):
        if np.ma.is_masked(array):
            raise ValueError("some of its values are masked; fill them first: array.filled(0)")
        array = array.data
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ValueError(f"shape {shape}; expected [H, W] or [H, W, 3|4] ({_shape_hint(array)})")
    if not array.size:
        raise ValueError(f"shape {shape} holds no pixels; expected H and W of at least 1")
    kind = array.dtype.newbyteorder("=")
    if kind not in PLAIN and kind.kind != "f" and not (bits is not None and kind.kind in "iu"):
        raise ValueError(f"dtype {kind}; expected uint8, uint16, or float in [0, 1] ({_kind_hint(array)})")
    if channels == "BGR" and array.shape[2] > 1:
        array = array[..., [2, 1, 0, 3][: array.shape[2]]]
    return Levels(np.array(array, order="C"))


def _shape_hint(array: np.ndarray) -> str:
    shape = array.shape
    if len(shape) == 3 and shape[0] in (1, 3, 4):
        return "channels come last: transpose(1, 2, 0)"
    if len(shape) == 1 and array.dtype == np.uint8:
        return "the bytes of a file are given as array.tobytes()"
    return "one picture at a time, channels last"


def _kind_hint(array: np.ndarray) -> str:
    if array.dtype.kind not in "iu" or not array.size:
        return "astype('uint8') for 0 to 255"
    low, high = int(array.min()), int(array.max())
    if low < 0:
        return f"its values reach from {low} to {high}: shift them so that black is 0"
    if high > 65535:
        return f"its values reach {high}: divide them by the white level"
    return "astype('uint8') for 0 to 255" if high < 256 else "astype('uint16') for levels up to 65535"


def to_array(tensor: Any) -> np.ndarray:
    """[H, W, channels] of a tensor [channels, H, W].

    Raises:
        ValueError: another shape.
    """
    shape = tuple(tensor.shape)
    if len(shape) != 3 or shape[0] not in (1, 3, 4):
        hint = "give one picture at a time, or list(tensor)" if len(shape) == 4 else "permute(2, 0, 1) moves channels"
        raise ValueError(f"tensor has shape {shape}; expected [3, H, W] in [0, 1] ({hint})")
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and tensor.element_size() < 4:
        tensor = tensor.float()  # NumPy has no bfloat16
    return tensor.permute(1, 2, 0).numpy()
