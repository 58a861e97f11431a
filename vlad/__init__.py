"""Zero- and few-shot visual anomaly detection with vision-language models.

Names are loaded when they are first used, so that `import vlad` needs neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlad.detector import Detector as Detector
    from vlad.detector import load as load
    from vlad.encoder import Encoder as Encoder
    from vlad.images import ImageError as ImageError
    from vlad.methods import methods as methods
    from vlad.prediction import Prediction as Prediction
    from vlad.prediction import Region as Region
    from vlad.prompts import PromptPack as PromptPack
    from vlad.weights import WeightsError as WeightsError
    from vlad.weights import encoders as encoders

__version__ = "0.1.0"

_HOME = {
    "Detector": "detector",
    "Encoder": "encoder",
    "ImageError": "images",
    "Prediction": "prediction",
    "PromptPack": "prompts",
    "Region": "prediction",
    "WeightsError": "weights",
    "encoders": "weights",
    "load": "detector",
    "methods": "methods",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vlad' has no attribute {name!r}; it has {', '.join(sorted(_HOME))}")
    module = import_module(f"vlad.{_HOME[name]}")
    if name == "methods":  # the sub-package of that name takes the attribute; see vlad/methods/__init__.py
        return module
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
