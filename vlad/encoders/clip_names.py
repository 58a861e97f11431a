"""CLIPs of other programs by open_clip's names, and which of open_clip's models some tensors belong to."""

import re
from collections.abc import Mapping
from typing import Any

import open_clip
import torch
from torch import Tensor

TRANSFORMERS = "vision_model.embeddings.class_embedding"  # a tensor that only transformers' CLIPModel calls so
VOCABULARY = 49408  # CLIP's
OPENAI_FACTS = ("input_resolution", "context_length", "vocab_size")  # what OpenAI's files hold beside tensors
_OUTER = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    **{f"text_model.final_layer_norm.{kind}": f"ln_final.{kind}" for kind in ("weight", "bias")},
    **{f"vision_model.pre_layrnorm.{kind}": f"visual.ln_pre.{kind}" for kind in ("weight", "bias")},
    **{f"vision_model.post_layernorm.{kind}": f"visual.ln_post.{kind}" for kind in ("weight", "bias")},
}
_INNER = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def from_transformers(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of transformers' CLIPModel by open_clip's names; what has no name there keeps its own."""
    ours: dict[str, Tensor] = {}
    for name, value in theirs.items():
        if name in _OUTER:
            ours[_OUTER[name]] = value
        elif name == "visual_projection.weight":
            ours["visual.proj"] = value.T
        elif name == "text_projection.weight":
            ours["text_projection"] = value.T
        elif not name.endswith("position_ids"):
            ours |= _of_block(name, value, theirs)
    return ours


def _of_block(name: str, value: Tensor, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = re.fullmatch(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if not found:
        return {name: value}
    tower, number, part, kind = found.groups()
    start = f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{number}"
    if part in _INNER:
        return {f"{start}.{_INNER[part]}.{kind}": value}
    if part not in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
        return {name: value}
    parts = [theirs.get(name.replace(part, f"self_attn.{one}_proj")) for one in "qkv"]
    if any(one is None for one in parts):
        return {name: value}
    return {f"{start}.attn.in_proj_{kind}": torch.cat([one for one in parts if one is not None])}


def config_of_transformers(described: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's configuration for the config.json of a CLIPModel.

    Raises:
        ValueError: it is none, or one that open_clip's CLIP cannot be.
    """
    if described.get("model_type") != "clip":
        raise ValueError(f"its model_type is {described.get('model_type')!r}; expected 'clip', a CLIPModel")
    vision, text = described["vision_config"], described["text_config"]
    activation = vision.get("hidden_act", "quick_gelu")
    if activation not in ("quick_gelu", "gelu") or text.get("hidden_act", "quick_gelu") != activation:
        raise ValueError(f"its activation is {activation!r}; expected 'quick_gelu' or 'gelu' in both towers")
    width, words = vision.get("hidden_size", 768), text.get("hidden_size", 512)
    if (vocabulary := text.get("vocab_size", VOCABULARY)) != VOCABULARY:
        raise ValueError(f"its vocabulary has {vocabulary} pieces; CLIP's, which is read, has {VOCABULARY}")
    heads = vision.get("num_attention_heads", 12)
    config = {
        "embed_dim": described.get("projection_dim", 512),
        "vision_cfg": {
            "image_size": vision.get("image_size", 224),
            "layers": vision.get("num_hidden_layers", 12),
            "width": width,
            "head_width": width // heads,
            "mlp_ratio": vision.get("intermediate_size", 3072) / width,
            "patch_size": vision.get("patch_size", 32),
        },
        "text_cfg": {
            "context_length": text.get("max_position_embeddings", 77),
            "vocab_size": vocabulary,
            "width": words,
            "heads": text.get("num_attention_heads", 8),
            "layers": text.get("num_hidden_layers", 12),
            "mlp_ratio": text.get("intermediate_size", 2048) / words,
        },
    }
    return _as_named({**config, "quick_gelu": True} if activation == "quick_gelu" else config)


def _as_named(config: dict[str, Any]) -> dict[str, Any]:
    """open_clip's own configuration where it says the same, so that the same weights have the same digest."""
    for name in open_clip.list_models():
        known = open_clip.get_model_config(name) or {}
        if _filled_in(known) == _filled_in(config):
            return known
    return config


def _filled_in(config: Mapping[str, Any]) -> Any:
    """The configuration with open_clip's defaults; None where it says more than a plain CLIP's does."""
    vision = {"head_width": 64, "mlp_ratio": 4.0, **config.get("vision_cfg", {})}
    text = {"context_length": 77, "vocab_size": VOCABULARY, "mlp_ratio": 4.0, **config.get("text_cfg", {})}
    if len(vision) != 6 or len(text) != 6 or set(config) - {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}:
        return None
    return config["embed_dim"], vision, text, bool(config.get("quick_gelu"))


def looks_like(tensors: Mapping[str, Tensor]) -> list[str]:
    """open_clip's models of these shapes, those of the same side first; none where a tensor that tells is missing."""
    try:
        width, patch = tensors["visual.conv1.weight"].shape[0], tensors["visual.conv1.weight"].shape[-1]
        side = round((tensors["visual.positional_embedding"].shape[0] - 1) ** 0.5) * patch
        joint = tensors["visual.proj"].shape[1]
        words = next(v.shape[1] for k, v in tensors.items() if k.endswith("token_embedding.weight"))
    except (KeyError, IndexError, StopIteration):
        return []
    layers = len({name.split(".")[3] for name in tensors if name.startswith("visual.transformer.resblocks.")})
    found = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name) or {}
        vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
        shape = (
            [vision.get(key) for key in ("width", "layers", "patch_size")],
            config.get("embed_dim"),
            text.get("width"),
        )
        if shape == ([width, layers, patch], joint, words):
            found.append((vision.get("image_size") != side, len(name), name))
    return [name for _, _, name in sorted(found)]
