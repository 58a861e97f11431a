"""From an encoder's name to an open_clip model with its weights.

Names (see `encoders`): "tiny", "<model>/<tag>", "<model>:<file>", "local-dir:<folder>", "hf-hub:<repo>",
"<model>/random:<seed>".
Nothing here knows what a model is used for; `vlad.encoders.clip` does. `Encoder.load` takes other families' names too.
"""

import hashlib
import json
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import HFTokenizer
from torch import Tensor, nn

from vlad.encoders import clip_checkpoint
from vlad.encoders.checkpoint import digest_of, weight_files
from vlad.encoders.clip_names import config_of_transformers
from vlad.encoders.fetching import fetch, require_repository

TOKENIZER_OPTIONS = ("clean", "strip_sep_token", "language")  # what a configuration may ask of its tokenizer
FILES = (".safetensors", ".bin", ".pt", ".pth")  # what a checkpoint is called


@dataclass(frozen=True)
class LoadedModel:
    """A loaded model and what must be known to feed it.

    Attributes:
        model: open_clip CLIP or CustomTextCLIP, float32, on the CPU.
        tokenizer: sentences -> int64 [T, context length].
        mean, std: of the three colour channels, after scaling to [0, 1].
        per_picture: brightness and contrast are normalised picture by picture first (`tiny`).
        dense: "ordinary" where patch tokens of the last block align with text, "value" where only the value path does.
        digest: hex name of the weights; equal weights give equal digests whatever file they came from.
    """

    model: Any
    tokenizer: Callable[[list[str]], Tensor]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    digest: str
    per_picture: bool = False
    dense: str = "value"


def load_model(name: str, activation: str | None = None) -> LoadedModel:
    """The model that `name` stands for.

    Args:
        name: see the module's docstring.
        activation: "gelu" or "quickgelu" in place of what the model's configuration says.

    Raises:
        ValueError: no such model, tag or form of name.
        FileNotFoundError: a local file or folder is missing.
        WeightsError: the weights are not here and cannot be fetched.
    """
    if activation not in (None, "gelu", "quickgelu"):
        raise ValueError(f"activation is {activation!r}; expected 'gelu', 'quickgelu' or None (the model's own)")
    if name == "tiny":
        if activation:
            raise ValueError("tiny was trained with one activation; leave activation out")
        return _tiny()
    if name.startswith("local-dir:"):
        return _from_folder(Path(name.removeprefix("local-dir:")).expanduser(), activation)
    if name.startswith("hf-hub:"):
        return _from_hub(name.removeprefix("hf-hub:"), activation)
    if name.endswith(FILES) and ":" not in name:
        raise ValueError(f"encoder {name!r} is a file alone; put its open_clip model in front: 'ViT-B-32:{name}'")
    model, separator, file = name.partition(":")
    if separator and "/random" not in model:
        return _from_file(model, Path(file).expanduser(), activation)
    model, _, tag = name.partition("/")
    if tag.startswith("random:") or tag == "random":
        return _random(model, tag, activation)
    return _from_tag(model, tag, activation)


def encoders() -> list[str]:
    """Names for `encoder=`: "tiny", then every open_clip "<model>/<tag>" whose vision tower VLAD can walk."""
    pairs = open_clip.list_pretrained()
    usable = {m for m, _ in pairs if not _unusable(open_clip.get_model_config(m) or {})}
    return ["tiny", *(f"{model}/{tag}" for model, tag in pairs if model in usable)]


def _tiny() -> LoadedModel:
    from vlad.encoders import tiny

    model, tokenizer, config = tiny.load()
    mean, std = tuple(config["mean"]), tuple(config["std"])
    return LoadedModel(model, tokenizer, mean, std, digest_of(model, config), config["per_picture"], "ordinary")


def _from_tag(model: str, tag: str, activation: str | None) -> LoadedModel:
    config = _known_config(model)
    pretrained = open_clip.pretrained.get_pretrained_cfg(model, tag)
    if not pretrained:
        given = f"{model}/{tag}" if tag else model
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise ValueError(
            f"encoder {given!r} names no weights that open_clip knows for {model}; "
            f"known tags: {', '.join(tags) or 'none'} (or {model}/random:0 for untrained ones)"
        )
    instead = f'encoder="{_for_file(model, pretrained)}:FILE"'
    if "mean" in pretrained and tuple(pretrained["mean"]) != open_clip.OPENAI_DATASET_MEAN:
        instead = 'encoder="local-dir:FOLDER" (with its open_clip_config.json)'
    file = fetch(pretrained, f"the open_clip weights {tag!r} of {model} are", instead)
    if activation is None and bool(pretrained.get("quick_gelu")) != bool(config.get("quick_gelu")):
        named = "QuickGELU" if pretrained.get("quick_gelu") else "GELU"
        warnings.warn(
            f"{model}/{tag} was trained with {named}, and the model {model} has the other activation; "
            f"{model}-quickgelu/{tag} or activation= selects it",
            stacklevel=4,
        )
    mean, std = pretrained.get("mean"), pretrained.get("std")
    return _filled(config, [file], activation, mean, std, _tokenizer(model, config))


def _for_file(model: str, pretrained: Mapping[str, Any]) -> str:
    """The model to put in front of the tag's file: that one which computes the activation it was trained with."""
    quick = f"{model}-quickgelu"
    return quick if pretrained.get("quick_gelu") and quick in open_clip.list_models() else model


def _from_file(model: str, file: Path, activation: str | None) -> LoadedModel:
    config = _known_config(model)
    if not file.is_file():
        folder = f"; the folder of a model is 'local-dir:{file}'" if file.is_dir() else ""
        raise FileNotFoundError(f"encoder '{model}:{file}': there is no file {file}{folder}")
    loaded = _filled(config, [file], activation, None, None, _tokenizer(model, config))
    plain = isinstance(loaded.model.visual.transformer.resblocks[0].mlp.gelu, nn.GELU)
    if activation is None and plain and f"{model}-quickgelu" in open_clip.list_models():
        warnings.warn(
            f"{file} does not say with which activation it was trained, and {model} computes GELU; for weights trained "
            f"with QuickGELU (OpenAI's, DFN's, MetaCLIP's) take {model}-quickgelu:{file.name}",
            stacklevel=4,
        )
    return loaded


def _from_folder(folder: Path, activation: str | None) -> LoadedModel:
    described = folder / "open_clip_config.json"
    theirs = folder / "config.json"
    if not described.is_file() and not theirs.is_file():
        raise FileNotFoundError(
            f"encoder 'local-dir:{folder}': {described} is missing; the folder must hold it, or the config.json of a "
            "transformers CLIPModel, and the weights beside it"
        )
    weights = weight_files(folder)
    if not weights:
        raise FileNotFoundError(
            f"encoder 'local-dir:{folder}': no weights (*.safetensors, *.bin, *.pt, *.pth) beside its configuration"
        )
    if not described.is_file():
        return _from_transformers(theirs, weights, activation)
    return _described(described, weights, f"local-dir:{folder}", activation, folder)


def _from_transformers(file: Path, weights: Sequence[Path], activation: str | None) -> LoadedModel:
    """A folder that transformers' `CLIPModel.save_pretrained` wrote, or a clone of one on the hub."""
    try:
        config = config_of_transformers(json.loads(file.read_text("utf-8")))
        beside = file.with_name("preprocessor_config.json")
        preprocess = json.loads(beside.read_text("utf-8")) if beside.is_file() else {}
        mean, std = preprocess.get("image_mean"), preprocess.get("image_std")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{file} is no configuration of a CLIPModel that can be used: {reason}") from error
    tokenizer = open_clip.SimpleTokenizer(context_length=config["text_cfg"].get("context_length", 77))
    return _filled(config, weights, activation, mean, std, tokenizer)


def _from_hub(repo: str, activation: str | None) -> LoadedModel:
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ValueError(f"encoder 'hf-hub:{repo}': expected 'hf-hub:<owner>/<repository>'")
    what = f"open_clip_config.json and the weights of {repo} are"
    instead = 'encoder="local-dir:FOLDER", the folder that holds both'
    config = fetch({"hf_hub": f"{repo}/open_clip_config.json"}, what, instead)
    weights = fetch({"hf_hub": f"{repo}/"}, what, instead)
    return _described(config, [weights], f"hf-hub:{repo}", activation)


def _described(
    file: Path, weights: Sequence[Path], name: str, activation: str | None, folder: Path | None = None
) -> LoadedModel:
    """The tower of an `open_clip_config.json` and the weights beside it; `folder` holds its tokenizer too."""
    try:
        described = json.loads(file.read_text("utf-8"))
        config, preprocess = described["model_cfg"], described.get("preprocess_cfg", {})
        config["embed_dim"], config["vision_cfg"]["width"], config["text_cfg"]["width"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"encoder {name!r}: {file} is no open_clip configuration of a CLIP ({reason})") from error
    tokenizer = _tokenizer(name, config, folder)
    return _filled(config, weights, activation, preprocess.get("mean"), preprocess.get("std"), tokenizer)


def _tokenizer(name: str, config: Mapping[str, Any], folder: Path | None = None) -> Callable[[list[str]], Tensor]:
    """The model's tokenizer. Some are transformers': they come out of the folder, else from the hub.

    Of what a configuration asks for only TOKENIZER_OPTIONS are handed on, and code beside a tokenizer never runs.
    """
    text = config.get("text_cfg", {})
    repo, length = text.get("hf_tokenizer_name") or text.get("hf_model_name"), text.get("context_length", 77)
    if not repo:
        return open_clip.SimpleTokenizer(context_length=length)
    if folder is None:
        require_repository(repo, f"{name} needs the tokenizer {repo}")
    asked = text.get("tokenizer_kwargs") or {}
    options = {key: asked[key] for key in TOKENIZER_OPTIONS if key in asked}
    options["tokenizer_mode"] = text.get("tokenizer_mode")
    try:
        return HFTokenizer(str(folder or repo), length, trust_remote_code=False, **options)
    except Exception as error:  # each kind of tokenizer has errors of its own
        raise ValueError(
            f"encoder {name!r}: its tokenizer in {folder or repo} cannot be read, or is code of its own, which VLAD "
            f"never runs ({type(error).__name__}); the folder must hold the tokenizer's tables"
        ) from error


def _random(model: str, tag: str, activation: str | None) -> LoadedModel:
    seed = tag.partition(":")[2]
    if not seed.isdigit():
        raise ValueError(
            f"encoder '{model}/{tag}': expected '{model}/random:<seed>' with a whole number, such as random:0"
        )
    config = _with_activation(_known_config(model), activation)
    built = _build(config)
    warnings.warn(f"{model}/random:{seed} has untrained weights: its scores mean nothing", stacklevel=4)
    _fill_randomly(built, int(seed))
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    # torch owns the generator's stream, open_clip the model's shape
    key = f"{json.dumps(config, sort_keys=True)}/random:{seed}/{open_clip.__version__}/{torch.__version__}"
    return LoadedModel(built, _tokenizer(model, config), mean, std, hashlib.sha256(key.encode()).hexdigest())


def _known_config(model: str) -> dict[str, Any]:
    config = open_clip.get_model_config(model)
    if config is None:
        close = get_close_matches(model, open_clip.list_models(), n=3, cutoff=0.5)
        raise ValueError(
            f"unknown encoder {model!r}{'; close: ' + ', '.join(close) if close else ''}; give 'tiny', "
            "'<open_clip model>/<tag>', '<model>:<file>', 'local-dir:<folder>' or 'hf-hub:<repo>' (vlad list encoders)"
        )
    if reason := _unusable(config):
        raise ValueError(f"encoder {model!r} cannot be used: {reason}; take one of `vlad list encoders`")
    return config


def _unusable(config: dict[str, Any]) -> str:
    """Why VLAD cannot walk this tower block by block; empty when it can."""
    vision = config.get("vision_cfg", {})
    if "timm_model_name" in vision:
        return "its vision tower is a timm model, not an open_clip transformer"
    if isinstance(vision.get("layers"), (list, tuple)):
        return "its vision tower is a ResNet"
    if vision.get("attentional_pool") or vision.get("pool_type", "tok") != "tok" or vision.get("block_type"):
        return "its vision tower pools without a class token"
    return ""


def _filled(
    config: dict[str, Any],
    files: Sequence[Path],
    activation: str | None,
    mean: Any,
    std: Any,
    tokenizer: Callable[[list[str]], Tensor],
) -> LoadedModel:
    if reason := _unusable(config):
        raise ValueError(f"{files[0]} cannot be used: {reason}")
    read = clip_checkpoint.read(files)
    if read.openai and activation is None:
        activation = "quickgelu"  # all that OpenAI has trained
    config = _with_activation(config, activation)
    model = _build(config)
    clip_checkpoint.fill(model, read, files[0])
    mean, std = tuple(mean or open_clip.OPENAI_DATASET_MEAN), tuple(std or open_clip.OPENAI_DATASET_STD)
    return LoadedModel(model, tokenizer, mean, std, digest_of(model, {**config, "mean": mean, "std": std}))


def _with_activation(config: dict[str, Any], activation: str | None) -> dict[str, Any]:
    return {**config, "quick_gelu": activation == "quickgelu"} if activation else config


def _build(config: Mapping[str, Any]) -> nn.Module:
    """The model with room for its weights but nothing in it: initialising 200 M numbers first would take seconds."""
    config = dict(config)
    custom = config.pop("custom_text", False) or "hf_model_name" in config.get("text_cfg", {})
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    if "multimodal_cfg" in config:
        kind = open_clip.CoCa
    if repo := config.get("text_cfg", {}).get("hf_model_name"):
        _check_text_tower(repo)
        config["text_cfg"] = {**config["text_cfg"], "hf_model_pretrained": False}
        return kind(**config).eval().requires_grad_(False)
    with torch.device("meta"):
        model = kind(**config)
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    for mask_name, mask in list(model.named_buffers()):  # the causal mask is the one buffer that no file holds
        if mask_name.endswith("attn_mask"):
            mask.fill_(float("-inf")).triu_(1)
    return model


def _check_text_tower(repo: str) -> None:
    """Raises where transformers' configuration of a text tower is not there, or names code of its own."""
    from transformers import AutoConfig

    if not Path(repo).is_dir():
        require_repository(repo, f"the model needs the text tower {repo}")
    try:
        AutoConfig.from_pretrained(repo, trust_remote_code=False)
    except Exception as error:  # what transformers raises differs from version to version
        raise ValueError(
            f"the text tower {repo} cannot be read ({type(error).__name__}); VLAD runs no code of its"
        ) from error


def _fill_randomly(model: nn.Module, seed: int) -> None:
    """Uniform weights of the variance 1 / fan-in, so that activations stay near unit size through any depth.

    Every tensor repeats one pool of random numbers from a place of its own, since drawing 200 M takes a second more;
    the pool's prime length keeps the rows of a matrix different.
    """
    pool = torch.empty(1048573).uniform_(-1, 1, generator=torch.Generator().manual_seed(seed))
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            flat, own = parameter.view(-1), pool.roll(zlib.crc32(name.encode()) % len(pool))
            own *= (3 / parameter[0].numel()) ** 0.5
            for start in range(0, len(flat), len(own)):
                flat[start : start + len(own)] = own[: len(flat) - start]
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
