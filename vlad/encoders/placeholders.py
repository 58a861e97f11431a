"""Checkpoints that hold objects beside tensors, read without looking up a single class of theirs.

Lightning writes the arguments of a model's constructor, optimisers and functions among them, into the file that its
tensors lie in; torch's safe reader refuses such a file as a whole. Here every name that is not needed to build a tensor
leads to an empty placeholder, which takes whatever the file does to it and does nothing.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

PLAIN = {("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter")}


class Placeholder:
    """Stands for any object, class or function of a file; is nothing and does nothing."""

    def __init__(self, *_: Any, **__: Any): ...

    def __call__(self, *_: Any, **__: Any) -> "Placeholder":
        return self

    def __setstate__(self, _: Any) -> None: ...

    def __setitem__(self, _: Any, __: Any) -> None: ...

    def append(self, _: Any) -> None: ...

    def extend(self, _: Any) -> None: ...

    def add(self, _: Any) -> None: ...


class Unpickler(pickle.Unpickler):
    """What `torch.load` reads with: knows the parts of tensors (storages torch handles itself) and placeholders."""

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(module, name) if (module, name) in PLAIN else Placeholder


def without_classes(path: Path) -> Any:
    """The content of a checkpoint in torch's zip format, with a `Placeholder` for everything that is no plain value.

    Raises:
        pickle.UnpicklingError: it is no such checkpoint, or no table of tensors can be made of it.
    """
    if not zipfile.is_zipfile(path):
        raise pickle.UnpicklingError("it is no zip file, as torch has written them since version 1.6")
    if any(name.endswith("constants.pkl") for name in zipfile.ZipFile(path).namelist()):
        raise pickle.UnpicklingError("it is a program (TorchScript), not a checkpoint")
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_Reader)
    except (TypeError, AttributeError, AssertionError, IndexError) as error:  # what a crafted file does to placeholders
        raise pickle.UnpicklingError(f"it cannot be read without the classes that it names ({error})") from error


class _Reader:
    """The part of the module `pickle` that `torch.load` uses."""

    __name__ = "placeholders"
    Unpickler = Unpickler

    @staticmethod
    def load(*_: Any, **__: Any) -> Any:
        raise pickle.UnpicklingError("it is of a format that only code can read")
