"""Zero- and few-shot visual anomaly detection with vision-language models.

Names are loaded when they are first used, so that `import vlad` needs neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vlad.version import __version__

if TYPE_CHECKING:
    from vlad import metrics as metrics
    from vlad import scale as scale
    from vlad import serve as serve
    from vlad.datasets import datasets as datasets
    from vlad.datasets.samples import Sample as Sample
    from vlad.detector import Detector as Detector
    from vlad.detector.loading import load as load
    from vlad.encoders import encoders as encoders
    from vlad.encoders.encoder import Encoder as Encoder
    from vlad.encoders.fetching import WeightsError as WeightsError
    from vlad.evaluate import evaluate as evaluate
    from vlad.explain import explain as explain
    from vlad.explain.explanation import Explanation as Explanation
    from vlad.images import ImageError as ImageError
    from vlad.learning.train import train as train
    from vlad.methods import methods as methods
    from vlad.prediction import Prediction as Prediction
    from vlad.prediction import Region as Region
    from vlad.prompts import PromptPack as PromptPack
    from vlad.report import Report as Report
    from vlad.video.reading import frames as frames

# Public names that are files too; those that are calls as well are callable modules: an import never hides the call.
_MODULES = ("datasets", "encoders", "evaluate", "explain", "methods", "metrics", "scale", "serve")

_HOME = {
    "Detector": "detector",
    "Encoder": "encoders.encoder",
    "Explanation": "explain.explanation",
    "ImageError": "images",
    "Prediction": "prediction",
    "PromptPack": "prompts",
    "Region": "prediction",
    "Report": "report",
    "Sample": "datasets.samples",
    "WeightsError": "encoders.fetching",
    "frames": "video.reading",
    "load": "detector.loading",
    "train": "learning.train",
}

__all__ = ["__version__", *sorted((*_HOME, *_MODULES))]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"vlad.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'vlad' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"vlad.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
