"""MetaUAS: what has changed between a picture and a normal one of the same thing; no words, nothing to train.

Paper: "MetaUAS: Universal Anomaly Segmentation with One-Prompt Meta-Learning" (arXiv:2505.09265). Official code:
gaobb/MetaUAS. Needs: one normal picture or more (`fit`), and the authors' file, which holds the tower too
(`adapter="metauas-256.ckpt"`, or metauas-512). One picture at a time; made for CPUs as well.

1. A frozen EfficientNet-B4 gives five levels of features for the picture and for the normal one, its prompt.
2. At the three deepest levels each place of the picture looks over all places of the prompt: the softmax over products
   of reduced features says where, and what it finds there, the prompt's features, stands beside its own.
3. A U-Net rises from the deepest level to full size, each step joined with the picture's own next level and gated by
   channel and place. A 1x1 convolution and a sigmoid give the probability of a change, the map; the score is its
   maximum.

Of several normals the one whose deepest level is closest to the picture's (cosine of the means over places) is the
prompt, which is the authors' "MetaUAS*". `several="least"` (ours) lets each be the prompt and takes the least of all
maps: changed is what is so against every normal; the decoder passes once for each. They train on pairs of pictures in
which something was put in, taken out or exchanged, and have not published how; VLAD only reads what they learned.

Known differences: none in the numbers; the authors' evaluation rescales all maps of a product by their smallest and
largest value, which is not done here. What their class for several prompts at once should do is not known: it crashes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.encoders.efficientnet import PREFIX, STRIDE, WIDTHS, EfficientNet
from vlad.learning.scorer import LearnedScorer, refuse_other_methods
from vlad.memory import Memory
from vlad.scorer import Scores

DEEP = (WIDTHS[4], WIDTHS[3], WIDTHS[2])  # the aligned levels, the deepest first
HIDDEN = tuple(width // 2 for width in DEEP)
SKIPS = (2 * DEEP[1], 2 * DEEP[2], WIDTHS[1], WIDTHS[0], 0)  # what joins at each step of the decoder
STEPS = (256, 128, 64, 64, 48)  # widths of the decoder
REDUCTION = 16
SEVERAL = ("closest", "least")
QUERIES = 1024  # places that look at the prompt at once; changes memory use, never the result


def found(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """[B, N, C] what each of the queries [B, N, H] finds among P places: keys [B, P, H], values [B, P, C].

    Source: MetaUAS (arXiv:2505.09265), soft alignment; the products are not scaled.
    """
    return torch.cat([(part @ keys.mT).softmax(-1) @ values for part in queries.split(QUERIES, 1)], 1)


class Alignment(nn.Module):
    """One level's features side by side with those of the prompt that match them."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.alignment_layer = nn.ModuleDict({"dimensionality_reduction": nn.Conv2d(width, hidden, 1)})

    def forward(self, level: Tensor, prompt: Tensor) -> Tensor:
        """[B, 2C, h, w] of [B, C, h, w] each."""
        reduce = self.alignment_layer["dimensionality_reduction"]
        queries, keys = (reduce(features).flatten(2).mT for features in (level, prompt))
        matching = found(queries, keys, prompt.flatten(2).mT).mT
        return torch.cat([level, matching.unflatten(2, level.shape[2:])], 1)


class Gates(nn.Module):
    """Features weighted by channel, plus the same weighted by place (scSE, arXiv:1803.02579)."""

    def __init__(self, width: int):
        super().__init__()
        hidden = width // REDUCTION
        channels = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, width, 1)]
        self.attention = nn.ModuleDict({"cSE": nn.Sequential(*channels), "sSE": nn.Sequential(nn.Conv2d(width, 1, 1))})

    def forward(self, x: Tensor) -> Tensor:
        return x * self.attention["cSE"](x).sigmoid() + x * self.attention["sSE"](x).sigmoid()


class Step(nn.Module):
    """One step of the decoder: twice the size, joined with `skip` channels where there are any, two convolutions."""

    def __init__(self, width: int, skip: int, out: int):
        super().__init__()
        self.conv1, self.conv2 = self._convolution(width + skip, out), self._convolution(out, out)
        self.attention1 = Gates(width + skip) if skip else nn.Identity()
        self.attention2 = Gates(out) if skip else nn.Identity()

    @staticmethod
    def _convolution(width: int, out: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU())

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = x if skip is None else torch.cat([x, skip], 1)
        return self.attention2(self.conv2(self.conv1(self.attention1(x))))


class MetaUas(LearnedScorer):
    """See the module. `resolution` None is the side that the file was learned with; other multiples of 32 run too.
    `several` is what is done with more than one normal, "closest" or "least".
    """

    words = "none"
    needs_normals: ClassVar[bool] = True
    official_encoder: ClassVar[str] = f"{PREFIX}metauas-256.ckpt"
    official_activation: ClassVar[str] = ""
    own_encoder: ClassVar[str] = PREFIX

    encoder: EfficientNet
    decoder: Any  # its blocks are a list
    prompts: Any  # a Memory of each aligned level, the deepest first

    def __init__(self, encoder: EfficientNet, *, resolution: int | None = None, several: str = "closest"):
        super().__init__(encoder, resolution=resolution)
        if not isinstance(encoder, EfficientNet):
            raise TypeError(
                f"metauas has a tower of its own, which its authors' file holds; leave encoder={encoder.name!r} out"
            )
        if self.resolution % STRIDE:
            raise ValueError(f"metauas halves its pictures five times: give resolution=, a multiple of {STRIDE}")
        if several not in SEVERAL:
            raise ValueError(f"several is {several!r}; expected one of {', '.join(SEVERAL)}")
        self.several = self.options["several"] = several
        with torch.random.fork_rng(devices=[]):  # follows the global seed, and leaves the global state alone
            self.alignment = nn.ModuleList(Alignment(*sizes) for sizes in zip(DEEP, HIDDEN, strict=True))
            inputs = (2 * DEEP[0], *STEPS[:-1])
            steps = [Step(inputs[i], SKIPS[i], out) for i, out in enumerate(STEPS)]
            self.decoder = nn.ModuleDict({"blocks": nn.ModuleList(steps)})
            self.mask_head = nn.Conv2d(STEPS[-1], 1, 1)
        places = [(self.resolution // 32 * 2**level) ** 2 for level in range(len(DEEP))]  # of a picture, per level
        self.prompts = nn.ModuleList(
            Memory(width, metric="euclidean", per_picture=each) for width, each in zip(DEEP, places, strict=True)
        )
        self.to(encoder.device).eval()

    def forward(self, pixels: Tensor) -> Scores:
        levels = self.encoder.levels(pixels)
        pictures = list(zip(*(level.split(1) for level in levels), strict=True))
        chosen = [self.chosen(own, position) for position, own in enumerate(pictures)]
        if self.several == "closest":
            logits = self.logits(levels, [torch.cat(level) for level in zip(*chosen, strict=True)])
        else:
            logits = torch.cat([self.least(*each) for each in zip(pictures, chosen, strict=True)])
        amap = logits.sigmoid()
        return Scores(amap.amax((1, 2)), amap)

    def logits(self, levels: Sequence[Tensor], prompts: Sequence[Tensor]) -> Tensor:
        """[B, S, S] of a picture's five levels and the three deepest of its prompt, the deepest first."""
        aligned = [part(levels[4 - i], prompts[i]) for i, part in enumerate(self.alignment)]
        x, skips = aligned[0], (*aligned[1:], levels[1], levels[0], None)
        for step, skip in zip(self.decoder["blocks"], skips, strict=True):
            x = step(x, skip)
        return self.mask_head(x)[:, 0]

    def least(self, levels: Sequence[Tensor], normals: Sequence[Tensor]) -> Tensor:
        """[1, S, S]: the least logits of one picture's levels under each of the normals [K, C, h, w]."""
        every = zip(*(level.split(1) for level in normals), strict=True)
        return torch.stack([self.logits(levels, prompts) for prompts in every]).amin(0)

    def chosen(self, levels: Sequence[Tensor], position: int) -> list[Tensor]:
        """The three deepest levels [K, C, h, w] of the normals that are prompts of the picture at this position of a
        batch, the deepest first: all that it may see, or the one that is most like it."""
        normals = []
        for i, memory in enumerate(self.prompts):
            size = levels[4 - i].shape[2:]
            normals.append(memory.rows_for(position).unflatten(0, (-1, size.numel())).mT.unflatten(2, size))
        if self.several == "least":
            return normals
        alike = F.cosine_similarity(normals[0].mean((2, 3)), levels[4].mean((2, 3)), dim=-1)  # [K]
        return [level[alike.argmax()][None] for level in normals]

    def remember(self, batches: Iterable[Tensor]) -> None:
        for pixels in batches:
            levels = self.encoder.levels(pixels)
            for i, memory in enumerate(self.prompts):
                memory.add(levels[4 - i].flatten(2).mT)

    @classmethod
    def official(cls, content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The tensors of a file of gaobb/MetaUAS, but for the tower's; all settings are the encoder's."""
        refuse_other_methods(content, "metauas")
        tensors = {key: value for key, value in content.items() if not key.startswith("encoder.")}
        if odd := [key for key, value in tensors.items() if not isinstance(value, Tensor)]:
            raise ValueError(f"{odd[0]!r} in it is no tensor")
        if odd := [key for key, value in tensors.items() if key.endswith("running_var") and not (value > 0).all()]:
            raise ValueError(f"{odd[0]} is a variance and not above 0 everywhere")
        return {}, tensors
