"""DINOv2 towers from transformers, with the face of an `Encoder` that knows pictures alone: no words, no windows.

Names: "dino:small", "dino:base", "dino:large" (the published weights, fetched once), "dino:<repo>" of the Hugging Face
hub, "dino:<folder>" with config.json and weights, "dino:<size>/random:<seed>" (untrained; warns).
"""

import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlad.encoders.clip import Encoder, Features, _shared
from vlad.encoders.dtypes import checked_dtype, fastest_safe_dtype
from vlad.encoders.weights import WeightsError, _digest, require_repository

PREFIX = "dino:"
SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}  # width, blocks, heads
RESOLUTION = 448  # AnomalyDINO's, 32 x 32 patches
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


class DinoEncoder(Encoder):
    """A frozen DINOv2. `pixels`, `grid`, the call and `sharing` are those of `Encoder`; tokens have the final norm.

    Source: AnomalyDINO (arXiv:2405.14529) and MuSc (arXiv:2401.16753) both tap DINOv2 after its final norm.
    """

    reads_text = False

    def __init__(self, model: Any, name: str, device: str | torch.device | None = None, dtype: Any = None):
        """`model` is a transformers Dinov2Model or one with registers; errors as in `Encoder.load`."""
        config = model.config
        self.name, self.digest = name, _digest(model, {"dino": _shape(config)})
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = checked_dtype(dtype) or fastest_safe_dtype(self.device)
        self.model: Any = model.to(self.device).eval().requires_grad_(False)
        self.mean = torch.tensor(MEAN, device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(STD, device=self.device).view(1, 3, 1, 1)
        self.per_picture = False
        self.patch_size = config.patch_size
        self.resolution = min(config.image_size, RESOLUTION) // self.patch_size * self.patch_size
        self.depth, self.width, self.embed_dim = config.num_hidden_layers, config.hidden_size, config.hidden_size
        self.skipped = 1 + getattr(config, "num_register_tokens", 0)
        self._shared = threading.local()

    @_shared
    def __call__(self, pixels: Tensor, layers: tuple[int, ...] = (), positions: str = "bicubic") -> Features:
        """Class token and the patch tokens of the asked layers (from 1), all after the final norm.

        `positions` changes nothing: DINOv2's own code, which resamples them, knows one way.

        Raises:
            ValueError: a layer is outside 1..depth.
        """
        if wrong := [layer for layer in layers if not 1 <= layer <= self.depth]:
            raise ValueError(f"layers {wrong} asked; {self.name} has layers 1 to {self.depth}")
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            states = self.model(pixels, output_hidden_states=True).hidden_states
        normed = {layer: self.model.layernorm(states[layer].float()) for layer in {*layers, self.depth}}
        image = F.normalize(normed[self.depth][:, 0], dim=-1)
        return Features(image, tuple(normed[i][:, self.skipped :] for i in layers), self.grid(pixels))

    def text(self, sentences: Sequence[str], batch_size: int = 256) -> Tensor:
        """Raises TypeError: DINOv2 was never taught words."""
        raise TypeError(f"{self.name} knows pictures alone; take a vision-language encoder for words")


def load(name: str, device: str | None = None, dtype: Any = None) -> DinoEncoder:
    """The DINOv2 of that name; see the module.

    Raises:
        ValueError: unknown size, seed or dtype, or the folder's model is no DINOv2.
        FileNotFoundError: the folder is missing.
        vlad.WeightsError: the weights are not here and cannot be fetched.
    """
    checked_dtype(dtype)
    given = name.removeprefix(PREFIX)
    size, _, seed = given.partition("/random:")
    if seed or given.endswith("/random:"):
        return DinoEncoder(_random(size, seed, name), name, device, dtype)
    if given not in SIZES and given.count("/") != 1 and not Path(given).expanduser().is_dir():
        raise FileNotFoundError(f"encoder {name!r}: give one of {', '.join(SIZES)}, a hub's owner/name, or a folder")
    return DinoEncoder(_pretrained(given, name), name, device, dtype)


def _pretrained(given: str, name: str) -> Any:
    from transformers import AutoModel

    source = f"facebook/dinov2-{given}" if given in SIZES else str(Path(given).expanduser())
    try:
        if not Path(source).is_dir():
            require_repository(source, f"{name} needs the repository {source}")
        model = AutoModel.from_pretrained(source, dtype=torch.float32)
    except Exception as error:  # whatever the hub's client raises, the way out for the user is the same
        raise WeightsError(
            f"the weights of {source} are not on this machine and could not be fetched "
            f"({str(error).splitlines()[0][:150]}): download its config.json and model.safetensors on a "
            'machine with a network into a folder and pass encoder="dino:FOLDER"'
        ) from error
    if not str(model.config.model_type).startswith("dinov2"):
        raise ValueError(f"encoder {name!r} is a {model.config.model_type}; expected a DINOv2")
    return model


def _random(size: str, seed: str, name: str) -> Any:
    from transformers import Dinov2Config, Dinov2Model

    if size not in SIZES or not seed.isdigit():
        raise ValueError(f"encoder {name!r}: expected 'dino:<size>/random:<seed>' with a size of {', '.join(SIZES)}")
    warnings.warn(f"{name} has untrained weights: its scores mean nothing", stacklevel=5)
    width, blocks, heads = SIZES[size]
    config = Dinov2Config(
        hidden_size=width, num_hidden_layers=blocks, num_attention_heads=heads, image_size=518, patch_size=14
    )
    with torch.random.fork_rng(devices=[]):  # transformers draws from the global generator
        torch.manual_seed(int(seed))
        return Dinov2Model(config)


def _shape(config: Any) -> dict[str, Any]:
    """What of the configuration changes the numbers, without versions and places."""
    keys = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size")
    more = ("mlp_ratio", "hidden_act", "layer_norm_eps", "use_swiglu_ffn", "num_register_tokens")
    return {key: getattr(config, key, None) for key in keys + more}
