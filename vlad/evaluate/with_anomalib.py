"""Models of anomalib (2.7 or newer; the extra `anomalib`) as detectors of an evaluation, by their names.

    [[detectors]]
    method = "anomalib:Padim"
    options = {backbone = "resnet18"}

Such a model is trained anew on all normal pictures for training of each category: full-shot, beside which zero- and
few-shot detectors find their place. It is measured by its raw scores and maps, without anomalib's normalisation, which
clamps them.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlad.images import read
from vlad.images.sizes import resized

PREFIX = "anomalib:"
BATCH = 8


class Anomalib:
    """One of anomalib's one-class models, untrained until `fit`.

    Args:
        name: of its class in `anomalib.models`.
        weights: file with a state_dict of the backbone; without it, and without pre_trained=True, the backbone keeps
            the random weights that it is made with. A model without the keyword pre_trained may fetch its tower.
        epochs: of training; None is what the model asks for.
        seed: of all that is random.
        options: keywords of the class.

    Raises:
        ImportError: anomalib is not installed.
        ValueError: it has no such model.
    """

    full_shot = True

    def __init__(
        self, name: str, *, weights: str | None = None, epochs: int | None = None, seed: int = 0, **options: Any
    ) -> None:
        try:
            from anomalib import models
        except ImportError as error:
            raise ImportError(f"{PREFIX}{name} needs anomalib 2.7; pip install 'vlad-ad[anomalib]' ({error})") from None
        if not isinstance(kind := getattr(models, name, None), type):
            raise ValueError(f"anomalib has no model {name!r}; see anomalib.models, such as Padim or Patchcore")
        self.kind, self.weights, self.epochs, self.seed = kind, weights, epochs, seed
        takes = inspect.signature(kind).parameters
        ours = {"post_processor": False, "evaluator": False, "visualizer": False, "pre_trained": False}
        self.options = {key: value for key, value in ours.items() if key in takes} | options
        self.method = f"anomalib {name}{self._backbone(takes)}"
        self.model: Any = None

    def _backbone(self, takes: Mapping[str, inspect.Parameter]) -> str:
        """Which backbone it has, and whose weights; "" where the model lets nobody choose."""
        if not {"backbone", "pre_trained"} <= takes.keys():
            return ""
        trained = "pretrained" if self.options["pre_trained"] else "UNTRAINED"
        name = self.options.get("backbone", takes["backbone"].default)
        return f", backbone {name}, {Path(self.weights).name if self.weights else trained}"

    def fit(self, normals: Sequence[Path]) -> None:
        """Trains a new model on pictures without a defect."""
        from anomalib.data import ImageBatch
        from anomalib.engine import Engine

        with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(self.seed)
            self.model = self.kind(**self.options)
            if self.weights:
                backbone = self.model.model.feature_extractor.feature_extractor
                backbone.load_state_dict(torch.load(self.weights, map_location="cpu", weights_only=True))
            batches: Any = [
                ImageBatch(image=self._stacked([read(path) for path in normals[start : start + BATCH]]))
                for start in range(0, len(normals), BATCH)
            ]
            how: dict[str, Any] = {} if self.epochs is None else {"max_epochs": self.epochs}
            quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "devices": 1}
            loader: Any = torch.utils.data.DataLoader(batches, batch_size=None)
            Engine(default_root_dir=folder, **quiet, **how).fit(self.model, train_dataloaders=loader)
        self.model.eval()

    def _stacked(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """float32 [B, 3, H, W] in [0, 1], at the size that the model's own transform resizes to."""
        steps = getattr(self.model.pre_processor.transform, "transforms", [])
        size = next((step.size for step in steps if hasattr(step, "size")), (256, 256))
        size = tuple(size) if len(size) > 1 else (size[0], size[0])
        return torch.stack([torch.from_numpy(resized(one, size)).permute(2, 0, 1) / 255 for one in pictures])

    @torch.no_grad()
    def predict(self, pictures: Sequence[np.ndarray]) -> Iterator[tuple[float, np.ndarray | None]]:
        """(score, map [h, w] or None) of each picture."""
        if self.model is None:
            raise RuntimeError(f"{self.method} is not trained; give data with normal pictures for training")
        found = self.model(self._stacked(pictures))
        maps = [None] * len(pictures) if found.anomaly_map is None else found.anomaly_map.float().cpu().numpy()
        for score, amap in zip(found.pred_score.flatten().tolist(), maps, strict=True):
            yield score, None if amap is None else np.asarray(amap).squeeze()
