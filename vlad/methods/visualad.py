"""VisualAD: two learned tokens, "anomalous" and "normal", ride through the vision tower; no words at all.

Paper: "VisualAD: Language-Free Zero-Shot Anomaly Detection via Vision Transformer" (arXiv:2603.07952). Official code:
7HHHHH/VisualAD. Needs: learned weights (the authors' files, or `vlad train`). No text, no normal pictures, one picture
at a time.

1. The two tokens stand before the class token, with its position, and pass all blocks of the frozen tower.
2. For each of four layers both final tokens take up something of its patches: four anchors attend to the patches, each
   token gates what they find, and a little of it is added (spatial attention).
3. The layer's patches pass a small network, and the difference of their cosines with the two tokens is the layer's
   grid, bilinear to the picture's square. The sum over the layers, smoothed by a gaussian of 4 px, is the map.
4. The score is the mean of the map's largest hundredth, rounded up to whole pixels.
5. Trained with cross entropy of that score before the smoothing, focal and dice losses of each layer's map, and a
   penalty where the two tokens point the same way.

The last layer norm is trained too, but the authors' test script never loads it: the published numbers come from CLIP's
own norm with heads that were trained behind another one. `clip_norm` says which one scores, and is True as published;
training always goes through the learned one.

Known differences: a sigmoid makes probabilities of score and map, which changes no ranking; a last batch of one picture
is left out of training.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.encoders.encoder import Encoder
from vlad.learning.losses import dice, focal
from vlad.learning.scorer import Batch, LearnedScorer, refuse_other_methods
from vlad.maps import checked_sigma, gaussian, to_size, top_mean
from vlad.memory import checked_layers, quarters
from vlad.scorer import Scores

SPECIAL = 3  # tokens before the patches: anomalous, normal, class
DROPOUT = 0.1
MARGIN = 0.5  # the two tokens' cosine should be below minus this
PLAIN = (
    "features_list",
    "image_size",
    "epoch",
    "backbone",
    "token_insert_layer",
    "transform_type",
    "cross_attn_config",
)
PARTS = {  # of the authors' files, and where they are here
    "anomaly_token": "anomaly_token",
    "normal_token": "normal_token",
    "ln_post_weight": "ln_post.weight",
    "ln_post_bias": "ln_post.bias",
    "layer_transforms": "layer_transforms",
    "cross_attn": "",
}
SIZES = {  # keywords that are read off a learned tensor, and which of its axes that is
    "anchors": ("layer_attentions.layer_{layer}.anchor_queries", 0),
    "places": ("layer_attentions.layer_{layer}.pos_encoding", 1),
    "hidden": ("layer_transforms.layer_{layer}.mlp.0.weight", 0),
}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Tensors in nested tables by their dotted names.

    Raises:
        ValueError: something in it is neither a table nor a tensor.
    """
    found: dict[str, Tensor] = {}
    for key, value in tree.items():
        name = f"{prefix}.{key}".strip(".")
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, Mapping):
            found.update(flat(value, name))
        else:
            raise ValueError(f"its part {name!r} is no table of tensors")
    return found


class SpatialAttention(nn.Module):
    """Lets tokens take up what a few learned anchors find in a layer's patches, at most `places` of them."""

    def __init__(self, width: int, anchors: int, places: int):
        super().__init__()
        self.anchor_queries = nn.Parameter(0.02 * torch.randn(anchors, width))
        self.pos_encoding = nn.Parameter(0.02 * torch.randn(1, places, width))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.q_norm, self.k_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.gate = nn.Sequential(nn.Linear(width, anchors), nn.Sigmoid())
        self.out_proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(DROPOUT)
        self.res_scale = nn.Parameter(torch.full((1,), 0.01))
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, tokens: Tensor, patches: Tensor) -> Tensor:
        """[B, 2, C] tokens that have looked at the patches [B, N, C]."""
        keys = self.k_norm(self.k_proj(patches + self.pos_encoding[:, : patches.shape[1]]))
        similar = self.q_norm(self.q_proj(self.anchor_queries)) @ keys.mT * patches.shape[-1] ** -0.5
        shares = similar.softmax(-1)[:, None].expand(-1, tokens.shape[1], -1, -1)  # [B, 2, anchors, N]
        found = self.dropout(shares) @ self.v_proj(patches)[:, None]  # [B, 2, anchors, C], dropped apart for each token
        gated = (self.gate(tokens)[:, :, None] @ found)[:, :, 0]  # [B, 2, C]
        return tokens + self.res_scale * self.dropout(self.out_proj(gated))


class Realignment(nn.Module):
    """A layer's patches [B, N, C] brought to where they can be compared with the tokens."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        first, last = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.mlp = nn.Sequential(first, nn.GELU(), nn.Dropout(DROPOUT), last, nn.Dropout(DROPOUT))
        for linear in (first, last):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, patches: Tensor) -> Tensor:
        return self.mlp(patches)


class VisualAD(LearnedScorer):
    """See the module.

    Args:
        layers: whose patches are looked at; None is the end of each quarter of the blocks.
        anchors: of the spatial attention.
        places: patches of the largest picture that the spatial attention has positions for.
        hidden: width of the realignment's hidden layer; None is the encoder's.
        sigma: of the map's smoothing, in input pixels.
        clip_norm: score with the encoder's own last layer norm, as the published numbers do, not with the learned one.
        checkpointing: for training, compute the blocks' insides again instead of keeping them; same results.

    Raises:
        TypeError: the encoder is no CLIP.
        ValueError: the resolution gives more patches than there are places, or another number is out of range.
    """

    words = "none"
    paper_resolution: ClassVar[Mapping[int, int]] = {336: 518}
    frozen_image_side: bool = False
    official_encoder: ClassVar[str] = "ViT-L-14-336-quickgelu/openai"

    def __init__(
        self,
        encoder: Encoder,
        *,
        resolution: int | None = None,
        layers: Sequence[int] | None = None,
        anchors: int = 4,
        places: int = 1536,
        hidden: int | None = None,
        sigma: float = 4.0,
        clip_norm: bool = True,
        checkpointing: bool = False,
    ):
        super().__init__(encoder, resolution=resolution)
        if not encoder.walks:
            raise TypeError(f"visualad works in the vision tower of a CLIP; {encoder.name!r} is none")
        patches = (self.resolution // encoder.patch_size) ** 2
        if anchors < 1 or places < patches:
            raise ValueError(
                f"anchors is {anchors} and places {places}; expected 1 or more, and the {patches} patches of "
                f"resolution {self.resolution} or more"
            )
        self.layers = checked_layers(quarters(encoder.depth) if layers is None else layers, encoder.depth)
        self.sigma, self.clip_norm, self.checkpointing = checked_sigma(sigma), bool(clip_norm), checkpointing
        hidden = encoder.width if hidden is None else hidden
        self.options.update(layers=list(self.layers), anchors=anchors, places=places, hidden=hidden)
        self.options.update(sigma=self.sigma, clip_norm=self.clip_norm)
        C, names = encoder.width, [f"layer_{layer}" for layer in self.layers]
        with torch.random.fork_rng(devices=[]):  # follows the global seed, and leaves the global state alone
            self.anomaly_token, self.normal_token = (nn.Parameter(0.1 * C**-0.5 * torch.randn(C)) for _ in range(2))
            self.layer_attentions = nn.ModuleDict({name: SpatialAttention(C, anchors, places) for name in names})
            self.layer_transforms = nn.ModuleDict({name: Realignment(C, hidden) for name in names})
        self.ln_post = copy.deepcopy(encoder.norm).requires_grad_(True)
        self.to(encoder.device).eval()

    def image_side(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The pixels: the learned tokens stand in the vision tower itself."""
        return (pixels,)

    def forward(self, pixels: Tensor) -> Scores:
        _, layers = self.see(pixels, self.encoder.norm if self.clip_norm else self.ln_post)
        logits = gaussian(layers.sum(0), self.sigma)
        return Scores(top_mean(logits, up=True).sigmoid(), logits.sigmoid())

    def see(self, pixels: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
        """The two tokens [B, 2, C] after the last layer's patches, and each layer's map [L, B, S, S] in [-2, 2]."""
        first = torch.stack([self.anomaly_token, self.normal_token])
        taps = {}
        tokens = self.encoder.embed(pixels, "bilinear", first)
        for layer, _, after in self.encoder.walk(tokens, checkpointing=self.checkpointing):
            if layer in self.layers:
                taps[layer] = norm(after[:, SPECIAL:])
        final, maps = norm(after[:, :2]), []
        for layer in self.layers:
            patches = taps[layer]
            tokens = self.layer_attentions[f"layer_{layer}"](final, patches)
            aligned = self.layer_transforms[f"layer_{layer}"](patches)
            cosines = F.normalize(aligned, dim=-1) @ F.normalize(tokens, dim=-1).mT  # [B, N, 2]
            maps.append((cosines[..., 0] - cosines[..., 1]).unflatten(1, self.encoder.grid(pixels)))
        size = pixels.shape[-2], pixels.shape[-1]
        return tokens, torch.stack([to_size(grid, size) for grid in maps])

    def loss(self, batch: Batch) -> Tensor:
        of_picture, of_layers, of_tokens = self.losses(*self.see(batch.features[0], self.ln_post), batch)
        return of_picture + of_layers.sum() + of_tokens

    def losses(self, tokens: Tensor, layers: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Of what `see` gives: the picture's score's; focal and dice [L, 2] of each layer's map; the two tokens'."""
        of_picture = F.binary_cross_entropy_with_logits(top_mean(layers.sum(0), up=True), batch.labels.float())
        of_layers = [
            torch.stack([focal(torch.stack([1 - anomalous, anomalous], 1), batch.masks), dice(anomalous, batch.masks)])
            for anomalous in layers.sigmoid()
        ]
        alike = F.cosine_similarity(tokens[:, 0], tokens[:, 1], dim=-1)
        return of_picture, torch.stack(of_layers), (alike + MARGIN).clamp_min(0).mean()

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """What an optimiser is built from: the two tokens learn ten times faster than all else, and each
        one's gradient is cut to length 1."""
        tokens = [self.anomaly_token, self.normal_token]
        others = [parameter for parameter in self.parameters() if all(parameter is not token for token in tokens)]
        return [{"params": tokens, "lr": learning_rate, "clip": 1.0}, {"params": others, "lr": 0.1 * learning_rate}]

    def load_learned(self, tensors: Mapping[str, Tensor]) -> Self:
        """As ever; a file without the last norm leaves the encoder's own, from which training starts."""
        norm = {f"ln_post.{kind}": value for kind, value in self.ln_post.state_dict().items()}
        return super().load_learned(tensors if norm.keys() & tensors else {**norm, **tensors})

    @classmethod
    def official(cls, content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Keywords and tensors of a file of 7HHHHH/VisualAD."""
        refuse_other_methods(content, "visualad")
        if unknown := sorted(repr(str(key)) for key in content if key not in (*PARTS, *PLAIN)):
            raise ValueError(f"it holds {', '.join(unknown)}, which no file of visualad's authors does")
        if "dino" in str(content.get("backbone")).lower() or content.get("token_insert_layer", 0) != 0:
            raise ValueError("it was learned on a DINO, or its tokens enter at a later block; neither is supported")
        tensors = flat({ours: content[key] for key, ours in PARTS.items() if content.get(key) is not None})
        for key in ("anomaly_token", "normal_token"):
            if key in tensors:
                tensors[key] = tensors[key].flatten()  # [C] or [1, C]
        options: dict[str, Any] = {}
        layers, side = content.get("features_list"), content.get("image_size")
        if isinstance(layers, list | tuple) and layers:
            options["layers"] = layers
            for option, (place, axis) in SIZES.items():
                found = tensors.get(place.format(layer=layers[0]))
                if found is not None and found.ndim > axis:
                    options[option] = found.shape[axis]
        if isinstance(side, int):
            options["resolution"] = side
        return options, tensors
