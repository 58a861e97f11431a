"""INP-Former: what six prototypes, read off the same picture, cannot rebuild of it.

Paper: "Exploring Intrinsic Normal Prototypes within a Single Image for Universal Anomaly Detection" (arXiv:2503.02424).
Official code: luow23/INP-Former, MIT. Needs: learned weights, of `vlad train` on a few normal pictures or the authors'
`model.pth`, and for that their tower, `encoder="dino:base-registers"`. No words; other encoders can be trained on too.

1. The outputs of eight blocks, no last norm, in two groups of four: two targets, the means. Their mean is the picture.
2. Six learned tokens attend to the picture's patches: its prototypes.
3. A bottleneck and eight blocks rebuild both targets from the prototypes: a patch looks at them by products of unit
   vectors, negative ones cut off, and is replaced by what it finds, without a residual.
4. A patch's value is 1 minus the cosine of target and rebuilt, the mean over the groups; or, `zero_shot`, that of the
   patch and its closest prototype, for which no product need have been seen in training. The map is smoothed by a
   gaussian of 5 x 5 px; the score is the mean of its largest hundredth.
5. Learned from 22 views of each normal picture: cosine of whole feature maps, patches that are rebuilt well weigh
   little in its gradient; and patches shall be close to a prototype.

Known differences: the authors see the middle 7/8 of a picture (`crop`); the border of the map is 0 here, as it must
cover the whole. Features of training are kept in float16 (`vlad.learning.features`); views are drawn in another order.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vlad.encoders.dino import OFFSET, DinoEncoder
from vlad.encoders.encoder import Encoder
from vlad.encoders.views import moved
from vlad.images.sizes import resized
from vlad.learning.scorer import Batch, LearnedScorer, refuse_other_methods
from vlad.maps import to_size, top_mean
from vlad.memory import checked_layers
from vlad.scorer import Scores

EPSILON = 1e-8  # of the learned layer norms
DECODERS = 8
HEAD_WIDTH = 64
TOWER = "encoder."  # before the tower's tensors in the authors' file
COHERENCE = 0.2  # weight of the distance to the prototypes in the loss
MINING = 3  # power of a patch's share of the error, with which its gradient is weighted
GREY = (0.299, 0.587, 0.114)
TURNS = (-4, -3, -2, -1, 1, 2, 3, 4)  # sixteenths of half a turn
SHIFTS = [(far * x, far * y) for far in (0.2, 0.1) for x, y in ((1, 1), (-1, 1), (-1, -1), (1, -1))]
VIEWS = 22


def view(pixels: Tensor, number: int) -> Tensor:
    """Normalised pictures [B, 3, S, S] in one of VIEWS: as they are, turned, shifted, mirrored, grey, quarter turns."""
    if number == 0:
        return pixels
    if number <= 8:
        return moved(pixels, angle=TURNS[number - 1] * torch.pi / 16)
    if number <= 16:
        return moved(pixels, shift=SHIFTS[number - 9])
    if number == 17:
        return pixels.flip(-1)
    if number == 18:
        return (pixels * pixels.new_tensor(GREY).view(3, 1, 1)).sum(1, keepdim=True).expand_as(pixels)
    return pixels.rot90(number - 18, (2, 3))


def blurred(maps: Tensor) -> Tensor:
    """[B, h, w] smoothed by a gaussian of variance 16 px cut to 5 x 5, with zeros outside."""
    line = torch.exp(-(torch.arange(-2, 3, device=maps.device, dtype=maps.dtype) ** 2) / 32)
    line = line / line.sum()
    return F.conv2d(maps[:, None], torch.outer(line, line)[None, None], padding=2)[:, 0]


def eight_layers(depth: int) -> tuple[int, ...]:
    """Blocks 3 to 10 of 12, every second from 5 to 19 of 24, as the authors chose; as many as there are of others."""
    if depth == 24:
        return tuple(range(5, 20, 2))
    count = min(8, depth // 2 * 2)
    first = (depth - count) // 2 + 1
    return tuple(range(first, first + count))


class Mlp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    """Queries [B, N, C] looking at others [B, M, C]: a softmax, or with `products` what is learned to multiply them."""

    def __init__(self, width: int, heads: int, products: bool):
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.learn_scale = nn.Parameter(torch.ones(heads, 1, 1)) if products else None

    def forward(self, x: Tensor, others: Tensor) -> Tensor:
        queries = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, N, C / heads]
        keys, values = self.kv(others).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.learn_scale is None:
            mixed = F.scaled_dot_product_attention(queries, keys, values)
        else:
            alike = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).mT
            mixed = F.relu(alike * self.learn_scale) @ values
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """One norm serves both sides of the attention; the decoder's blocks, those with products, keep nothing of x."""

    def __init__(self, width: int, heads: int, products: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=EPSILON), nn.LayerNorm(width, eps=EPSILON)
        self.attn, self.mlp = Attention(width, heads, products), Mlp(width)

    def forward(self, x: Tensor, others: Tensor) -> Tensor:
        found = self.attn(self.norm1(x), self.norm1(others))
        x = found if self.attn.learn_scale is not None else x + found
        return x + self.mlp(self.norm2(x))


class InpFormer(LearnedScorer):
    """See the module.

    Args:
        layers: an even number of blocks, the first half of them one group; None are the authors'.
        heads: None is one for 64 of the width.
        prototypes: how many.
        zero_shot: the map is the distance to the prototypes alone.
        crop: pictures are made 8/7 of the resolution wide, and the middle is looked at.
        map_size: side of the map of what is looked at.
    """

    words = "none"
    map_range: ClassVar[tuple[float, float]] = (0.0, 2.0)
    paper_resolution: ClassVar[Mapping[int, int]] = {448: 392}
    views: ClassVar[int] = VIEWS
    official_encoder: ClassVar[str] = "dino:base-registers"
    official_activation: ClassVar[str] = ""

    def __init__(
        self,
        encoder: Encoder,
        *,
        resolution: int | None = None,
        layers: Sequence[int] | None = None,
        heads: int | None = None,
        prototypes: int = 6,
        zero_shot: bool = False,
        crop: bool = True,
        map_size: int = 256,
    ):
        super().__init__(encoder, resolution=resolution)
        C, heads = encoder.width, max(1, encoder.width // HEAD_WIDTH) if heads is None else heads
        self.layers = checked_layers(eight_layers(encoder.depth) if layers is None else layers, encoder.depth)
        if len(self.layers) % 2 or heads < 1 or C % heads or prototypes < 1 or map_size < 10:
            raise ValueError(
                f"layers is {list(self.layers)}, heads {heads}, prototypes {prototypes}, map_size {map_size}; expected "
                f"an even number of layers, heads that divide {C}, 1 or more, and 10 or more"
            )
        self.zero_shot, self.crop, self.map_size = bool(zero_shot), bool(crop), map_size
        self.options.update(layers=list(self.layers), heads=heads, prototypes=prototypes)
        self.options.update(zero_shot=self.zero_shot, crop=self.crop, map_size=map_size)
        with torch.random.fork_rng(devices=[]):  # follows the global seed, and leaves the global state alone
            self.prototype_token = nn.Parameter(torch.randn(prototypes, C))
            self.bottleneck = nn.ModuleList([Mlp(C)])
            self.aggregation = nn.ModuleList([Block(C, heads, products=False)])
            self.decoder = nn.ModuleList(Block(C, heads, products=True) for _ in range(DECODERS))
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.01, a=-0.03, b=0.03)
                    nn.init.zeros_(module.bias)
        self.to(encoder.device).eval()

    def pixels(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """As of every scorer, but bilinear, and of `crop` the middle."""
        side, encoder = self.resolution, self.encoder
        whole = round(side * 8 / 7) if self.crop else side
        edge = (whole - side) // 2
        squares = [resized(picture, (whole, whole), Image.Resampling.BILINEAR) for picture in pictures]
        batch = torch.from_numpy(np.stack(squares)[:, edge : edge + side, edge : edge + side]).to(encoder.device)
        return (encoder.levelled(batch.permute(0, 3, 1, 2).float() / 255) - encoder.mean) / encoder.std

    def viewed(self, pictures: Sequence[np.ndarray], views: Sequence[int]) -> Tensor:
        """Pixels, each in one of VIEWS."""
        return torch.cat([view(one[None], number) for one, number in zip(self.pixels(pictures), views, strict=True)])

    def image_side(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """([B, 2, N, C]): the two targets."""
        if isinstance(self.encoder, DinoEncoder):
            taps = self.encoder.block_patches(pixels, self.layers, OFFSET)
        else:
            taps = self.encoder.block_patches(pixels, self.layers)
        half = len(taps) // 2
        return (torch.stack([torch.stack(group).mean(0) for group in (taps[:half], taps[half:])], 1).float(),)

    def forward(self, pixels: Tensor) -> Scores:
        (targets,) = self.image_side(pixels)
        if self.zero_shot:
            values = self.distance(targets.mean(1), self.prototypes_in(targets.mean(1)))[0][:, None]
        else:
            values = 1 - F.cosine_similarity(targets, self.rebuilt(targets.mean(1))[0], dim=-1)  # [B, 2, N]
        grids = values.unflatten(2, self.encoder.grid(pixels))
        layers = [to_size(grid, (self.resolution, self.resolution), align_corners=True) for grid in grids.unbind(1)]
        amap = blurred(to_size(torch.stack(layers).mean(0), (self.map_size, self.map_size)))
        border = round(self.map_size / 14) if self.crop else 0
        return Scores(top_mean(amap), F.pad(amap, (border,) * 4))

    def prototypes_in(self, patches: Tensor) -> Tensor:
        """[B, prototypes, C] float32 of a picture's patches [B, N, C]."""
        tokens = self.prototype_token.expand(len(patches), -1, -1)
        with self._arithmetic():
            for block in self.aggregation:
                tokens = block(tokens, patches)
        return tokens.float()

    def distance(self, patches: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        """[B, N] from each patch to its closest prototype, in [0, 2], and which that is."""
        found = (1 - F.normalize(patches, dim=-1) @ F.normalize(prototypes, dim=-1).mT).min(-1)
        return found.values, found.indices

    def rebuilt(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """([B, 2, N, C] both targets as they are rebuilt from the prototypes, the prototypes)."""
        prototypes, outputs = self.prototypes_in(patches), []
        with self._arithmetic():
            x = self.bottleneck[0](patches)
            for block in self.decoder:
                x = block(x, prototypes)
                outputs.append(x.float())
        half = len(outputs) // 2  # the last blocks rebuild the first layers
        return torch.stack([torch.stack(group).mean(0) for group in (outputs[half:], outputs[:half])], 1), prototypes

    def _arithmetic(self) -> torch.autocast:
        """bfloat16 where the encoder has it; float16 has no room for what the norms add."""
        return torch.autocast(self.encoder.device.type, torch.bfloat16, enabled=self.encoder.dtype == torch.bfloat16)

    def loss(self, batch: Batch) -> Tensor:
        reconstruction, coherence = self.losses(batch.features[0])
        return reconstruction + COHERENCE * coherence

    def losses(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """That of the rebuilt targets [B, 2, N, C], and that of the prototypes.

        Source: INP-Former (arXiv:2503.02424), soft mining: the weights are of the gradient, not of the value.
        """
        patches = targets.mean(1)
        rebuilt, prototypes = self.rebuilt(patches)
        wrong = (1 - F.cosine_similarity(targets, rebuilt.detach(), dim=-1)).detach()  # [B, 2, N]
        weights = (wrong / wrong.mean((0, 2), keepdim=True)) ** MINING
        if rebuilt.requires_grad:
            rebuilt.register_hook(lambda gradient: gradient * weights[..., None])
        alike = F.cosine_similarity(targets.flatten(2), rebuilt.flatten(2), dim=-1)  # [B, 2]
        return (1 - alike).mean(), self.distance(patches, prototypes)[0].mean()

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """What an optimiser is built from: one group, its gradient cut to length 0.1 together."""
        return [{"params": list(self.parameters()), "lr": learning_rate, "clip_together": 0.1}]

    @classmethod
    def check_tower(cls, content: Mapping[str, Any], encoder: Encoder) -> None:
        if not isinstance(encoder, DinoEncoder):
            raise ValueError(
                f"it was learned on {cls.official_encoder!r} or its like; encoder {encoder.name!r} is no DINO"
            )
        tower = {key.removeprefix(TOWER): value for key, value in content.items() if key.startswith(TOWER)}
        named, own = encoder.named(tower), encoder.model.state_dict()
        same = named.keys() == own.keys() and all(torch.equal(named[key], own[key].cpu()) for key in own)
        if not same:
            raise ValueError(
                f"the tower in it has other weights than encoder {encoder.name!r}: it was learned on a DINOv2 with "
                f"registers, such as {cls.official_encoder!r}"
            )

    @classmethod
    def official(cls, content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Keywords and tensors of a file of luow23/INP-Former, without the tower's own."""
        refuse_other_methods(content, "inp_former")
        tensors = {key: value for key, value in content.items() if not key.startswith(TOWER)}
        if odd := [key for key, value in content.items() if not isinstance(value, Tensor)]:
            raise ValueError(f"{odd[0]!r} in it is no tensor")
        options = {"prototypes": len(tensors["prototype_token"])}
        if (scale := tensors.get("decoder.0.attn.learn_scale")) is not None:
            options["heads"] = len(scale)
        return options, tensors
