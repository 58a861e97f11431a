"""AnomalyVFM: a vision foundation model that was taught on drawn defects what an anomaly is; no words, no normals.

Paper: "AnomalyVFM: Transforming Vision Foundation Models into Zero-Shot Anomaly Detectors" (arXiv:2601.20524). Official
code: MaticFuc/AnomalyVFM, which states no licence; nothing of it is copied. Needs: the authors' file for RADIO, which
holds the tower too (`adapter="model.safetensors"`, its folder, "hf-hub:MaticFuc/anomalyvfm_radio", or their .pkl).

1. In each block of RADIO the queries', values' and output weights are changed by a product of two thin matrices, and
   each row of the result is given a learned length (DoRA; LoRA leaves the lengths).
2. The summary tokens go through one linear layer: the picture's score, a sigmoid.
3. The patch tokens go through convolutions with group norms, doubled once in size: the map, a sigmoid, and a confidence
   that counts in training alone.
4. Trained on pairs of generated pictures: focal loss of the score; of the map focal and absolute error, weighted by the
   confidence, whose logarithm is rewarded.

Known differences: the authors compute in 16 bits, VLAD in the encoder's dtype; the map is given as the decoder makes
it, at an eighth of the picture's side, `map_size` gives it as they evaluate it; in training they move RADIO's positions
at random, VLAD does not. Their files for DINOv2, CLIP and SigLIP2 are refused. `positions` says how RADIO's table is
resampled: "bilinear-corners" is NVlabs' rule, behind the published numbers, "bicubic" that of the authors' copy of it,
behind their files on the hub.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.encoders.radio import POSITIONS, PREFIX, SUMMARY, TABLE, Radio
from vlad.learning.losses import marked
from vlad.learning.scorer import Batch, LearnedScorer, refuse_other_methods
from vlad.scorer import Scores

SMALLEST = 1e-8  # added to a row's length
GROUPS = 32
ALPHA, GAMMA = 0.25, 2.0  # of the focal losses
FOCAL = 5.0  # weight of the map's focal loss beside its absolute error
CERTAIN = 0.1  # probabilities nearer to 0 or 1 than this are not pushed further by the absolute error
CONFIDENCE = 0.1  # weight of the logarithm of the confidence
SMOOTHED = 5  # side of the mean filter of the authors' evaluation


def adapted(weight: Tensor, down: Tensor, up: Tensor, lengths: Tensor | None) -> Tensor:
    """[out, in] weights plus the product of `up` [out, r] and `down` [r, in] over r; rows of `lengths` [out] if given.

    Source: LoRA (arXiv:2106.09685), DoRA (arXiv:2402.09353).
    """
    changed = weight + up @ down / len(down)
    return changed if lengths is None else lengths[:, None] * changed / (changed.norm(dim=1, keepdim=True) + SMALLEST)


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    """What logits of any shape cost, each for itself; labels are 0 or 1. Source: arXiv:1708.02002."""
    probability = logits.sigmoid()
    wrong = labels + (1 - 2 * labels) * probability  # how far it is from its label
    weight = ALPHA * labels + (1 - ALPHA) * (1 - labels)
    return weight * wrong**GAMMA * F.binary_cross_entropy_with_logits(logits, labels, reduction="none")


def map_loss(logits: Tensor, confidence: Tensor, masks: Tensor) -> Tensor:
    """The scalar of maps [B, h, w] and what the decoder says of its own certainty there; masks are 0 or 1.

    Source: AnomalyVFM (arXiv:2601.20524), confidence-weighted loss.
    """
    certainty = 1 + confidence.exp()
    error = (logits.sigmoid().clamp(CERTAIN, 1 - CERTAIN) - masks).abs()
    return (certainty * (FOCAL * focal(logits, masks) + error) - CONFIDENCE * certainty.log()).mean()


class Adapter(nn.Module):
    """What is learned beside one block's attention, by the authors' names."""

    def __init__(self, qkv: Tensor, proj: Tensor, rank: int, lengths: bool):
        super().__init__()
        width = proj.shape[1]
        query, _, value = qkv.chunk(3)
        self.qkv, self.proj = nn.ParameterDict(), nn.ParameterDict()
        for table, part, weight in ((self.qkv, "_q", query), (self.qkv, "_v", value), (self.proj, "", proj)):
            table[f"lora_A{part}"] = nn.Parameter(0.01 * torch.randn(rank, width))
            table[f"lora_B{part}"] = nn.Parameter(torch.zeros(width, rank))
            if lengths:
                table[f"mag{part}" if part else "magnitude"] = nn.Parameter(weight.norm(dim=1).cpu())

    def forward(self, qkv: Tensor, proj: Tensor) -> dict[str, Tensor]:
        """The block's changed weights by their names; the keys' stay as they are."""
        query, key, value = qkv.chunk(3)
        parts = []
        for weight, part in ((query, "_q"), (value, "_v")):
            lengths = self.qkv.get(f"mag{part}")
            parts.append(adapted(weight, self.qkv[f"lora_A{part}"], self.qkv[f"lora_B{part}"], lengths))
        lengths = self.proj.get("magnitude")
        changed = adapted(proj, self.proj["lora_A"], self.proj["lora_B"], lengths)
        return {"attn.qkv.weight": torch.cat([parts[0], key, parts[1]]), "attn.proj.weight": changed}


class Convolutions(nn.Module):
    """Two 3 x 3 convolutions, each with a group norm and a ReLU."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
        self.bn1, self.bn2 = nn.GroupNorm(GROUPS, out), nn.GroupNorm(GROUPS, out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Decoder(nn.Module):
    """Patch tokens [B, C, h, w] to the logits of the map and of its confidence, [B, 2h, 2w] each."""

    def __init__(self, width: int):
        super().__init__()
        self.bot = Convolutions(width, width)
        self.blocks = nn.ModuleList([Convolutions(width, width // 2)])
        self.final, self.final_conf = nn.Conv2d(width // 2, 1, 1), nn.Conv2d(width // 2, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.bot(x)
        for block in self.blocks:
            x = block(F.interpolate(x, scale_factor=2, mode="nearest"))
        return self.final(x)[:, 0], self.final_conf(x)[:, 0]


class AnomalyVfm(LearnedScorer):
    """See the module.

    Args:
        rank: of the thin matrices.
        lengths: whether rows have learned lengths (DoRA).
        positions: "bilinear-corners" or "bicubic".
        map_size: side of the map as the authors evaluate it, nearest and then the mean of 5 x 5 px with zeros outside;
            None leaves it as the decoder gives it.
    """

    words = "none"
    frozen_image_side: bool = False
    official_encoder: ClassVar[str] = f"{PREFIX}hf-hub:MaticFuc/anomalyvfm_radio"
    official_activation: ClassVar[str] = ""
    own_encoder: ClassVar[str] = PREFIX

    encoder: Radio

    def __init__(
        self,
        encoder: Radio,
        *,
        resolution: int | None = None,
        rank: int = 64,
        lengths: bool = True,
        positions: str = POSITIONS[0],
        map_size: int | None = None,
    ):
        super().__init__(encoder, resolution=resolution)
        if not isinstance(encoder, Radio):
            raise TypeError(f"anomalyvfm works in RADIO, which its file holds; leave encoder={encoder.name!r} out")
        if rank < 1 or positions not in POSITIONS or (map_size is not None and map_size < 1):
            raise ValueError(
                f"rank is {rank}, positions {positions!r} and map_size {map_size}; expected 1 or more, one of "
                f"{', '.join(POSITIONS)}, and None or 1 or more"
            )
        if encoder.width % (2 * GROUPS):
            raise ValueError(f"{encoder.name!r} is {encoder.width} wide; expected a multiple of {2 * GROUPS}")
        self.positions, self.map_size = positions, map_size
        self.options.update(rank=rank, lengths=lengths, positions=positions, map_size=map_size)
        with torch.random.fork_rng(devices=[]):  # follows the global seed, and leaves the global state alone
            self.adapters = nn.ModuleList(Adapter(*weights, rank, lengths) for weights in encoder.attention_weights())
            self.decoder = Decoder(encoder.width)
            self.predictor = nn.ModuleDict({"lin": nn.Linear(SUMMARY * encoder.width, 1)})
        self.to(encoder.device).eval()

    def image_side(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The pixels: what is learned stands in the tower itself."""
        return (pixels,)

    def forward(self, pixels: Tensor) -> Scores:
        score, logits, _ = self.see(pixels)
        amap = logits.sigmoid()
        return Scores(score.sigmoid(), amap if self.map_size is None else self._evaluated(amap, self.map_size))

    def see(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the score [B], of the map and of its confidence [B, S / 8, S / 8] for a patch of 16."""
        summary, features = self.features(pixels)
        logits, confidence = self.decoder(features.mT.unflatten(2, self.encoder.grid(pixels)))
        return self.predictor["lin"](summary)[:, 0], logits, confidence

    def features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The changed tower's summary [B, 3C] and patch tokens [B, N, C]."""
        pairs = zip(self.adapters, self.encoder.attention_weights(), strict=True)
        changed = {layer: adapter(*weights) for layer, (adapter, weights) in enumerate(pairs, 1)}
        last = self.encoder.states(pixels, self.positions, changed)[-1]
        return last[:, :SUMMARY].flatten(1), last[:, self.encoder.skipped :]

    @staticmethod
    def _evaluated(amap: Tensor, side: int) -> Tensor:
        nearest = F.interpolate(amap[:, None], (side, side), mode="nearest")
        return F.avg_pool2d(nearest, SMOOTHED, stride=1, padding=SMOOTHED // 2)[:, 0]

    def loss(self, batch: Batch) -> Tensor:
        return sum(self.losses(batch), torch.zeros((), device=batch.labels.device))

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """That of the score, and that of the map."""
        score, logits, confidence = self.see(batch.features[0])
        masks = F.interpolate(batch.masks[:, None], logits.shape[1:], mode="area")[:, 0] > 0.5
        of_score, seen = focal(score, batch.labels.float()).mean(), marked(batch.masks)
        if not seen.any():
            return of_score, logits[seen].sum()  # 0
        return of_score, map_loss(logits[seen], confidence[seen], masks[seen].float())

    @classmethod
    def official(cls, content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Keywords and tensors of a file of MaticFuc/AnomalyVFM for RADIO, without the tower's own."""
        refuse_other_methods(content, "anomalyvfm")
        tensors = flat(content)
        if not any(key.endswith(TABLE) for key in tensors):
            raise ValueError("it was learned on another tower than RADIO, the only one supported: anomalyvfm_radio")
        learned = {}
        for key, value in tensors.items():
            if key.startswith(("decoder.", "predictor.")):
                learned[key] = value
            elif key.rpartition(".")[2].startswith(("lora_", "mag")):
                learned[f"adapters.{key.rpartition('blocks.')[2].replace('.attn.', '.')}"] = value
        ranks = [value.shape[0] for key, value in learned.items() if "lora_A" in key and value.ndim == 2]
        options = {"lengths": any(".mag" in key for key in learned)}
        return options | ({"rank": ranks[0]} if ranks else {}), learned


def flat(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a hub's file as they are, those of a .pkl, three tables, under the same names."""
    starts = {"model_state_dict": "model.", "decoder_state_dict": "decoder.", "predictor_state_dict": "predictor."}
    if not content.keys() & starts.keys():
        found = dict(content)
    else:
        found = {}
        for part, table in content.items():
            if part not in starts or not isinstance(table, Mapping):
                raise ValueError(f"its part {part!r} is no table of tensors that a file of anomalyvfm's authors holds")
            found.update({f"{starts[part]}{key}": value for key, value in table.items()})
    if odd := [key for key, value in found.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{odd[0]!r} in it is no tensor")
    return found
