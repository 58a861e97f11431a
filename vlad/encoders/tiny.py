"""The embedded encoder `tiny`: a CLIP of 2.2 million parameters that ships with the package and works offline.

It is an ordinary `open_clip.model.CLIP` (both towers 128 wide, 4 vision blocks, 14 x 14 tokens at 224 px) with two
parts of its own:

- the patch embedding is a frozen convolutional `Stem`: ImageNet EfficientNet-Lite0 up to its fifth stage (stride 16),
  batch norm folded into the convolutions, and a learned 1 x 1 projection. ImageNet's edges and textures are what a
  model trained on drawn pictures lacks most. The weights are Apache 2.0; adapters/weights/tiny/NOTICE says from where;
- the vocabulary is CLIP's byte pair encoding cut to its first merges, so that any word still has an encoding.

Blocks, words and projections are trained on procedural pictures only (vlad/synthetic) by examples/train_tiny.py. It
is a demonstration encoder and no substitute for a CLIP trained on photographs.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file
from torch import Tensor, nn

from vlad.files import resource

FOLDER = "adapters/weights/tiny"
CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"

# EfficientNet-Lite0 up to stride 16: (blocks, kernel, stride, expansion, channels) per stage.
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112))
FINE = 3  # the stage (stride 8) whose 2 x 2 positions join a token, so that thin marks survive
STEM_CHANNELS = 4 * STAGES[FINE - 1][-1] + STAGES[-1][-1]


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's "SAME" padding: ceil(input / stride) outputs, an odd pixel goes right and below."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', ceil(H / stride), ceil(W / stride)]."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        spare_h, spare_w = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:])
        if spare_h % 2 or spare_w % 2:
            x = F.pad(x, (spare_w // 2, spare_w - spare_w // 2, spare_h // 2, spare_h - spare_h // 2))
            spare_h = spare_w = 0
        return F.conv2d(x, self.weight, self.bias, stride, (spare_h // 2, spare_w // 2), groups=self.groups)


class InvertedResidual(nn.Module):
    """Widen, filter per channel, narrow; with a shortcut where the shape stays."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.expand = SameConv(channels, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = SameConv(wide, wide, kernel, stride, groups=wide)
        self.narrow = SameConv(wide, out, 1)
        self.shortcut = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H / stride, W / stride]."""
        y = x if isinstance(self.expand, nn.Identity) else F.relu6(self.expand(x), inplace=True)
        y = self.narrow(F.relu6(self.depthwise(y), inplace=True))
        return y.add_(x) if self.shortcut else y


class Stem(nn.Module):
    """EfficientNet-Lite0 up to stride 16 in the place of the patch embedding of a vision transformer."""

    centre: Tensor
    spread: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = SameConv(3, 32, 3, 2)
        self.stages = nn.ModuleList()
        channels = 32
        for blocks, kernel, stride, expansion, out in STAGES:
            sizes = [(channels, stride)] + [(out, 1)] * (blocks - 1)
            self.stages.append(nn.Sequential(*(InvertedResidual(c, out, kernel, s, expansion) for c, s in sizes)))
            channels = out
        self.register_buffer("centre", torch.zeros(STEM_CHANNELS, 1, 1))  # of each channel over drawn pictures
        self.register_buffer("spread", torch.ones(STEM_CHANNELS, 1, 1))
        self.project = nn.Conv2d(STEM_CHANNELS, width, 1)
        self.to(memory_format=torch.channels_last)  # twice as fast on a CPU, where depthwise convolutions dominate

    def features(self, pixels: Tensor) -> Tensor:
        """Frozen, standardised features [B, STEM_CHANNELS, H/16, W/16] of pixels [B, 3, H, W] (multiples of 16).

        On a CPU picture by picture: what is made on the way is then small enough for memory to be used again.
        """
        if pixels.device.type == "cpu" and not torch.compiler.is_exporting() and len(pixels) > 1:
            return torch.cat([self.features(one) for one in pixels.split(1)])
        x = F.relu6(self.first(pixels.contiguous(memory_format=torch.channels_last)), inplace=True)
        fine = x
        for number, stage in enumerate(self.stages, start=1):
            x = stage(x)
            fine = x if number == FINE else fine
        return (torch.cat([F.pixel_unshuffle(fine, 2), x], dim=1) - self.centre) / self.spread

    def forward(self, pixels: Tensor) -> Tensor:
        """Tokens [B, width, H/16, W/16] of normalised pixels [B, 3, H, W]."""
        return self.project(self.features(pixels))


class Tokenizer(SimpleTokenizer):
    """CLIP's tokenizer with only the first `merges` pair merges; rarer words fall into smaller pieces.

    Called with sentences it returns LongTensor [T, context_length]; too long sentences are cut and keep their end
    token, which has the largest id (CLIP's text pooling looks for it).
    """

    bpe_ranks: dict[tuple[str, ...], int]
    encoder: dict[str, int]

    def __init__(self, merges: int, context_length: int) -> None:
        super().__init__(context_length=context_length)
        pairs = [pair for pair, rank in self.bpe_ranks.items() if rank < merges]
        pieces = list(self.encoder)[:512] + ["".join(pair) for pair in pairs]
        pieces += ["<start_of_text>", "<end_of_text>"]
        self.bpe_ranks = dict(zip(pairs, range(merges), strict=True))
        self.encoder = dict(zip(pieces, range(len(pieces)), strict=True))
        self.decoder = {number: piece for piece, number in self.encoder.items()}
        self.vocab_size = len(pieces)
        self.sot_token_id, self.eot_token_id = self.all_special_ids = [len(pieces) - 2, len(pieces) - 1]


def per_picture(pixels: Tensor, like: Tensor | None = None) -> Tensor:
    """Brightness and contrast taken out: (x - mean) / (std + 0.02) * 0.2 + 0.5 over each picture's pixels and channels.

    Pixels are [B, 3, H, W] in [0, 1]; the result has the same shape, mean 0.5 and a standard deviation of about 0.2.
    Of parts of a picture mean and spread are those of the whole, `like` [1, 3, h, w].
    """
    whole = pixels if like is None else like
    mean = _mean(whole)
    spread = _mean((whole - mean).square()).sqrt()
    return (pixels - mean) / (spread + 0.02) * 0.2 + 0.5


def _mean(values: Tensor) -> Tensor:
    """[B, 1, 1, 1] of [B, 3, H, W], rows first: one sum of all pixels loses digits where it is taken in order."""
    return values.mean(3, keepdim=True).mean((1, 2), keepdim=True)


def build(config: Mapping) -> tuple[CLIP, Tokenizer]:
    """The untrained model and its tokenizer from the content of open_clip_config.json."""
    model_cfg = config["model_cfg"]
    model = CLIP(model_cfg["embed_dim"], dict(model_cfg["vision_cfg"]), dict(model_cfg["text_cfg"]), quick_gelu=False)
    model.visual.conv1 = Stem(model_cfg["vision_cfg"]["width"])
    tokenizer = Tokenizer(config["tokenizer"]["merges"], model_cfg["text_cfg"]["context_length"])
    return model.eval(), tokenizer


def load(folder: str | Path | None = None) -> tuple[CLIP, Tokenizer, dict]:
    """The model in float32 on the CPU, its tokenizer, and how pictures must be prepared.

    The third value holds `size` (pixels), `per_picture` (True: apply `per_picture` to values in [0, 1]), then `mean`
    and `std` of the usual normalisation, and `interpolation`, `resize_mode`. Without a folder the shipped weights are
    read; a missing file raises FileNotFoundError.
    """
    at = {name: Path(folder) / name if folder else resource(f"{FOLDER}/{name}") for name in (CONFIG, WEIGHTS)}
    config = json.loads(at[CONFIG].read_text(encoding="utf-8"))
    model, tokenizer = build(config)
    model.load_state_dict({name: value.float() for name, value in load_file(at[WEIGHTS]).items()})
    return model, tokenizer, dict(config["preprocess_cfg"])
