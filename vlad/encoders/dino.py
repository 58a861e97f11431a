"""DINOv2 towers from transformers, with the face of an `Encoder` that knows pictures alone: no words, no windows.

Names: "dino:small", "dino:base", "dino:large" (the published weights, fetched once), "dino:<size>-registers" (with
register tokens), "dino:<repo>" of the Hugging Face hub, "dino:<folder>" with config.json and weights,
"dino:<size>/random:<seed>" (untrained; warns).
"""

import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlad.encoders.checkpoint import digest_of
from vlad.encoders.dtypes import INT8
from vlad.encoders.encoder import Encoder, Features
from vlad.encoders.fetching import WeightsError, require_repository
from vlad.encoders.int8 import quantise
from vlad.encoders.sharing import once

PREFIX = "dino:"
SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}  # width, blocks, heads
REPOSITORIES = {
    **{size: f"facebook/dinov2-{size}" for size in SIZES},
    **{f"{size}-registers": f"facebook/dinov2-with-registers-{size}" for size in SIZES},
}
KINDS = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}  # of transformers
RESOLUTION = 448  # AnomalyDINO's, 32 x 32 patches
OFFSET = "offset"
OFFICIAL_NAMES = {  # of Facebook's checkpoints, and what stands there in transformers' models
    r"^(cls_token|mask_token|register_tokens)$": r"embeddings.\1",
    r"^pos_embed$": "embeddings.position_embeddings",
    r"^patch_embed\.proj\.": "embeddings.patch_embeddings.projection.",
    r"^blocks\.": "encoder.layer.",
    r"\.ls([12])\.gamma$": r".layer_scale\1.lambda1",
    r"^norm\.": "layernorm.",
}
PROJECTIONS = ("attention.o_proj", "attention.output.dense")  # newer and older versions of transformers
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


class DinoEncoder(Encoder):
    """A frozen DINOv2. Its tokens have the final norm; the space it projects to is its own, of no words.

    Source: AnomalyDINO (arXiv:2405.14529) and MuSc (arXiv:2401.16753) both tap DINOv2 after its final norm.
    """

    reads_text = False
    walks = False
    in_int8 = True

    def __init__(self, model: Any, name: str, device: Any = None, dtype: Any = None):
        """`model` is a transformers Dinov2Model or one with registers; errors as in `Encoder.load`."""
        super().__init__(name, MEAN, STD, device, dtype)
        config = model.config
        self.digest = digest_of(model, {"dino": _shape(config)})
        self.model: Any = model.to(self.device).eval().requires_grad_(False)
        self.patch_size = config.patch_size
        self.resolution = min(config.image_size, RESOLUTION) // self.patch_size * self.patch_size
        self.depth, self.width, self.embed_dim = config.num_hidden_layers, config.hidden_size, config.hidden_size
        self.norm, self.projection = self.model.layernorm, torch.eye(self.width, device=self.device)
        if self.precision == INT8:
            quantise(self.model.encoder)
        self.skipped = 1 + getattr(config, "num_register_tokens", 0)

    @once
    def __call__(self, pixels: Tensor, layers: tuple[int, ...] = (), positions: str = "bicubic") -> Features:
        """Class token and the patch tokens of the asked layers (from 1), all after the final norm.

        `positions` changes nothing: DINOv2's own code, which resamples them, knows one way.
        """
        self.check_layers(layers)
        states = self._states(pixels)
        image = F.normalize(self.norm(states[self.depth].float())[:, 0], dim=-1)
        patches = (self.norm(states[layer].float())[:, self.skipped :] for layer in layers)
        return Features(image, tuple(patches), self.grid(pixels))

    @once
    def block_patches(self, pixels: Tensor, layers: tuple[int, ...], positions: str = "bicubic") -> tuple[Tensor, ...]:
        """As of every tower; `positions` "offset" resamples them as Facebook's first code did, of DINOv2's models
        without registers, and INP-Former's does of those with: bicubic, not antialiased, by a factor that is too large.
        """
        self.check_layers(layers)
        states = self.walked(pixels, max(layers)) if positions == OFFSET else self._states(pixels)
        return tuple(states[layer].float()[:, self.skipped :] for layer in layers)

    def walked(self, pixels: Tensor, last: int) -> list[Tensor]:
        """[B, special + N, C] before the first block and after each up to the last, with "offset" positions."""
        with self.mixed():
            states = [self._embedded(pixels)]
            for block in self.model.encoder.layer[:last]:
                after = block(states[-1])
                states.append(after[0] if isinstance(after, tuple) else after)  # older versions of transformers
        return states

    def _embedded(self, pixels: Tensor) -> Tensor:
        parts = self.model.embeddings
        patches, table = parts.patch_embeddings(pixels), parts.position_embeddings
        rows, columns = self.grid(pixels)
        side = math.isqrt(table.shape[1] - 1)
        places = table[:, 1:].mT.unflatten(2, (side, side))  # [1, C, side, side]
        if (rows, columns) != (side, side):
            factor = (rows + 0.1) / side, (columns + 0.1) / side
            places = F.interpolate(places, scale_factor=factor, mode="bicubic")
        tokens = torch.cat([parts.cls_token + table[:, :1], getattr(parts, "register_tokens", table[:, :0])], 1)
        return torch.cat([tokens.expand(len(patches), -1, -1), patches + places.flatten(2).mT], 1)

    def named(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of Facebook's own checkpoints by the names of this model; what it does not know keeps its name."""
        own, found = self.model.state_dict(), {}
        for name, value in official.items():
            for theirs, ours in OFFICIAL_NAMES.items():
                name = re.sub(theirs, ours, name)
            names = [name]
            if ".attn.qkv." in name:
                names = [name.replace("attn.qkv", f"attention.{part}") for part in ("query", "key", "value")]
            for each, part in zip(names, value.chunk(len(names)), strict=True):
                newer = re.sub(r"attention\.(query|key|value)", lambda at: f"attention.{at[1][0]}_proj", each)
                older = each.replace("attention.", "attention.attention.")
                if each.endswith(("attn.proj.weight", "attn.proj.bias")):
                    newer, older = (each.replace("attn.proj", one) for one in PROJECTIONS)
                found[next((one for one in (newer, older) if one in own), each)] = part
        return found

    @once
    def dense(self, pixels: Tensor, blocks: int = 0, positions: str = "bicubic") -> tuple[Tensor, Tensor]:
        last = self.norm(self._states(pixels)[self.depth].float())
        return last[:, 0], last[:, self.skipped :]

    def registers_see(self, pixels: Tensor, layer: int) -> Tensor:
        """[B, N]: how much attention the register tokens pay to each patch in a block (from 1), averaged over heads
        and registers; a picture's values sum to less than 1.

        Raises:
            TypeError: the model has no registers.
            ValueError: it has no such block.
        """
        if self.skipped == 1:
            raise TypeError(f"{self.name} has no register tokens; take {PREFIX}base-registers or another with them")
        self.check_layers((layer,))
        block = self.model.encoder.layer[layer - 1]
        attention = getattr(block.attention, "attention", block.attention)  # older versions of transformers
        linears = (getattr(attention, f"{part[0]}_proj", None) or getattr(attention, part) for part in ("query", "key"))
        tokens, heads = block.norm1(self._states(pixels)[layer - 1].float()), self.model.config.num_attention_heads
        queries, keys = (linear(tokens).unflatten(-1, (heads, -1)).transpose(1, 2) for linear in linears)
        products = queries[:, :, 1 : self.skipped] @ keys.mT * queries.shape[-1] ** -0.5  # [B, heads, registers, T]
        return products.softmax(-1)[..., self.skipped :].mean((1, 2))

    @once
    def _states(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """[B, special + N, C] before the first block and after each, without the final norm."""
        with self.mixed():
            return self.model(pixels, output_hidden_states=True).hidden_states


def load(name: str, device: str | None = None, dtype: Any = None, activation: str | None = None) -> DinoEncoder:
    """The DINOv2 of that name; see the module.

    Raises:
        ValueError: unknown size, seed or dtype, an activation, or the folder's model is no DINOv2.
        FileNotFoundError: the folder is missing.
        vlad.WeightsError: the weights are not here and cannot be fetched.
    """
    if activation is not None:
        raise ValueError(f"{name} has one activation; leave activation out")
    given = name.removeprefix(PREFIX)
    size, _, seed = given.partition("/random:")
    if seed or given.endswith("/random:"):
        return DinoEncoder(_random(size, seed, name), name, device, dtype)
    if given not in REPOSITORIES and given.count("/") != 1 and not Path(given).expanduser().is_dir():
        raise FileNotFoundError(
            f"encoder {name!r}: give one of {', '.join(REPOSITORIES)}, a hub's owner/name, or a folder"
        )
    return DinoEncoder(_pretrained(given, name), name, device, dtype)


def _pretrained(given: str, name: str) -> Any:
    import transformers

    source = REPOSITORIES.get(given) or str(Path(given).expanduser())
    folder = given not in REPOSITORIES and Path(source).is_dir()
    try:
        if not folder:
            require_repository(source, f"{name} needs the repository {source}")
        config, _ = transformers.PretrainedConfig.get_config_dict(source)
        kind = KINDS.get(str(config.get("model_type")))
        # a class by name, and not what the folder says: code beside the weights never runs
        model = kind and getattr(transformers, kind).from_pretrained(source, dtype=torch.float32)
    except Exception as error:  # whatever the hub's client raises, the way out for the user is the same
        raise WeightsError(
            f"the weights of {source} are not on this machine and could not be fetched "
            f"({str(error).splitlines()[0][:150]}): download its config.json and model.safetensors on a "
            'machine with a network into a folder and pass encoder="dino:FOLDER"'
        ) from error
    if model is None:
        raise ValueError(f"encoder {name!r} is a {config.get('model_type')}; expected a DINOv2")
    return model


def _random(size: str, seed: str, name: str) -> Any:
    from transformers import Dinov2Config, Dinov2Model

    if size not in SIZES or not seed.isdigit():
        raise ValueError(f"encoder {name!r}: expected 'dino:<size>/random:<seed>' with a size of {', '.join(SIZES)}")
    warnings.warn(f"{name} has untrained weights: its scores mean nothing", stacklevel=6)
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
