"""Modules that are also a call: `vlad.evaluate` is a folder, and `vlad.evaluate(...)` its function.

An import of the module must not hide the call, so both are one object.
"""

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


class CallableModule(ModuleType):
    """A module that its function stands behind: called, shown and asked for its signature as that function."""

    function: Callable[..., Any]
    __signature__: inspect.Signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __reduce__(self) -> tuple[Callable[[str], ModuleType], tuple[str]]:
        """By name, so that functions that use the module can be sent to other processes."""
        return import_module, (self.__name__,)


def make_callable(function: Callable[..., Any]) -> None:
    """Makes the module that `function` is written in callable as the function."""
    module = sys.modules[function.__module__]
    module.__class__ = CallableModule
    assert isinstance(module, CallableModule)
    module.function, module.__signature__ = function, inspect.signature(function)
    module.__doc__ = f"{module.__doc__}\n{function.__name__}{module.__signature__}\n\n{inspect.getdoc(function)}\n"
