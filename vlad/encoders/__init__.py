"""Frozen towers that turn pictures, and words where they can, into embeddings.

`vlad.encoders` is this folder and also the public call `vlad.encoders()`.
"""

import sys
from types import ModuleType


class _CallableModule(ModuleType):
    """An import of the folder must not hide the call."""

    def __call__(self) -> list[str]:
        from vlad.encoders.weights import encoders

        return encoders()


sys.modules[__name__].__class__ = _CallableModule
