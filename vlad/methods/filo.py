"""FiLo: sentences that name likely defects and their places, after learned words that the picture shifts.

Paper: "FiLo: Zero-Shot Anomaly Detection by Fine-Grained Description and High-Quality Localization" (arXiv:2404.13671).
Official code: CASIA-IVA-Lab/FiLo. Needs: text, best a pack with the defects that the object can have, and learned
weights (the authors' files, or `vlad train`). No normal pictures, one picture at a time; some 100 sentences a picture.

1. Each sentence starts with twelve learned vectors, one set a state, to which a small network of the picture's
   embedding adds a vector. Anomalous states are read at nine places: "damaged bolt at top left."
2. Two streams of tokens: the ordinary one, and from the first quarter of the depth on one of value attentions. Four
   taps get a linear layer each; three of the value stream a bank of convolutions, from 1 x 1 to 7 x 7.
3. Their logits go to the picture's square and through a softmax; the mean of the seven, smoothed over 3 x 3 pixels, is
   the map.
4. A small residual layer adapts the picture's embedding. Its cosine with the anomalous mean, over the root of 2, and
   the map's maximum make the score, their mean, in [-0.36, 0.86].
5. Boxes, if there are any, say where to look: outside the map is multiplied by 0.7, after the score; and the place of
   the most confident one chooses the sentences.
6. Trained in two stages: all but the residual layer on focal and dice losses of the seven maps; then that layer on
   cross entropy.

Known differences: by additions in place the official tap 6 and all three of the value stream are the last value stream,
and taps 12 and 18 the middle of the next block. That is `taps="as_published"`, which its weights were learned with;
"separate" is what the paper says. Encoders whose ordinary tokens align with text have no value stream: it is those. The
official boxes come from a detector that is not part of this; `boxes` takes them of any model. Phrases are the pack's,
for any object. It was trained with batches of one picture, where its dice loss takes every row for a picture:
`row_dice=True`. The six convolutions are added up to one of 7 x 7, which is the same.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.encoders.encoder import Encoder
from vlad.learning.losses import segmentation, whole_picture
from vlad.learning.optimizers import groups_by_rate
from vlad.learning.prompt_learner import Kept, check_joint_text, read_after
from vlad.learning.scorer import Batch, LearnedScorer, lengths_in, official_parts
from vlad.learning.tap_layers import TapLayers, anomalous_pixels, by_name
from vlad.maps import TEMPERATURE, blurred, enlarge
from vlad.memory import quarters
from vlad.prompts import PromptPack
from vlad.scorer import Scores, check_choices, check_counts

PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
SIDE, THIRDS = 518, ((0, 172), (173, 344), (345, 517))  # of the square that a box's centre is looked up in
KERNELS = {"fc_11": (1, 1), "fc_33": (3, 3), "fc_55": (5, 5), "fc_77": (7, 7), "fc_15": (1, 5), "fc_51": (5, 1)}
SCALE = 100  # of the products with states of length 1 / ROOT
ROOT = math.sqrt(2)
OUTSIDE = 0.7  # of the map outside all boxes
TAPS = ("as_published", "separate")
FROZEN = ("clip_model.", "text_encoder.")  # in the authors' files

Boxes = Sequence[Sequence[float]]


def place_of(box: Sequence[float] | None, side: int) -> list[str]:
    """The place, of nine, of the centre of a box in a square of `side` pixels; all of them for a centre on a border."""
    middle = side / 2
    x0, y0, x1, y1 = (middle,) * 4 if box is None else box[:4]
    column, row = ((low + high) / 2 * SIDE / side for low, high in ((x0, x1), (y0, y1)))
    found = [[third for third, (low, high) in enumerate(THIRDS) if low <= one <= high] for one in (row, column)]
    return [PLACES[3 * found[0][0] + found[1][0]]] if all(found) else list(PLACES)


def looked_at(boxes: Boxes, size: tuple[int, int]) -> Tensor:
    """[*size]: 1 within any of the boxes, whose corners are cut to whole pixels, and 0.7 elsewhere."""
    weights = torch.full(size, OUTSIDE)
    for box in boxes:
        x0, y0, x1, y1 = (max(0, int(corner)) for corner in box[:4])
        weights[y0:y1, x0:x1] = 1
    return weights


class Learner(nn.Module):
    """[B, n_ctx, D] vectors that a state's sentences start with, for unit embeddings of pictures [B, D]."""

    def __init__(self, width: int, n_ctx: int):
        super().__init__()
        self.ctx = nn.Parameter(0.02 * torch.randn(n_ctx, width))
        hidden = width // 16
        self.meta_net = nn.ModuleDict({"linear1": nn.Linear(width, hidden), "linear2": nn.Linear(hidden, width)})

    def forward(self, image: Tensor) -> Tensor:
        return self.ctx + self.meta_net["linear2"](self.meta_net["linear1"](image).relu())[:, None]


class ConvolutionBank(nn.Module):
    """Six convolutions for each of three taps, whose results are added up."""

    def __init__(self, encoder: Encoder, taps: int):
        super().__init__()
        shape = encoder.width, encoder.embed_dim
        for name, kernel in KERNELS.items():
            self.add_module(name, nn.ModuleList(nn.Conv2d(*shape, kernel) for _ in range(taps)))
        self._kept = Kept[list[tuple[Tensor, Tensor]]]()

    def forward(self, taps: Sequence[Tensor], grid: tuple[int, int]) -> list[Tensor]:
        """[B, N, D] of raw patch tokens [B, N, C] of each tap on a grid."""
        merged = self._kept(self.parameters(), lambda: [self._merged(number) for number in range(len(taps))])
        maps = [tokens.float().mT.unflatten(-1, grid) for tokens in taps]
        found = [F.conv2d(one, *kernel, padding=3) for one, kernel in zip(maps, merged, strict=True)]
        return [rows.flatten(2).mT for rows in found]

    def _merged(self, number: int) -> tuple[Tensor, Tensor]:
        """The one kernel [D, C, 7, 7] and bias [D] that do what the six of a tap do together."""
        largest = self.get_submodule(f"fc_77.{number}")
        kernel, bias = (largest.get_parameter(part).clone() for part in ("weight", "bias"))
        for name, (rows, columns) in KERNELS.items():
            one, top, left = self.get_submodule(f"{name}.{number}"), (7 - rows) // 2, (7 - columns) // 2
            if one is not largest:
                kernel[:, :, top : top + rows, left : left + columns] += one.get_parameter("weight")
                bias += one.get_parameter("bias")
        return kernel, bias


class Residual(nn.Module):
    """The picture's embedding [B, D] plus what two layers make of it."""

    def __init__(self, width: int):
        super().__init__()
        down, up = nn.Linear(width, width // 2, bias=False), nn.Linear(width // 2, width, bias=False)
        self.fc = nn.Sequential(down, nn.ReLU(), up, nn.SiLU())

    def forward(self, image: Tensor) -> Tensor:
        return image + self.fc(image)


class Filo(LearnedScorer):
    """See the module. Parameters have the names of the official code.

    Args:
        taps: "as_published" or "separate".
        positions: places of which the anomalous states are read; None means all nine, "boxes" that of the most
            confident box of a picture.
        boxes: (x0, y0, x1, y1), perhaps with a confidence, in pixels of the method's square, the same for all pictures;
            or a function of pixels [B, 3, S, S], normalised as the encoder wants them, that gives such boxes for each
            picture. A function is not kept by `save`.
        n_ctx: learned vectors at the start of a sentence; fewer leave room for longer names.
        row_dice: for training, take every row of a picture for a picture in the dice loss.
        stage: of training, 1 or 2; in stage 1 the residual layer is left out.

    Raises:
        ValueError: the encoder's text tokens are not as wide as the joint space, or an option is out of range.
    """

    paper_resolution: ClassVar[Mapping[int, int]] = {336: 518}
    learns_from_labels: ClassVar[bool] = False
    stages: ClassVar[int] = 2
    official_encoder: ClassVar[str] = "ViT-L-14-336/openai"
    official_activation: ClassVar[str] = "gelu"

    def __init__(
        self,
        encoder: Encoder,
        *,
        resolution: int | None = None,
        taps: str = "as_published",
        positions: Sequence[str] | str | None = None,
        boxes: Boxes | Callable[[Tensor], Sequence[Boxes]] | None = None,
        n_ctx: int = 12,
        row_dice: bool = False,
        stage: int = 2,
    ):
        super().__init__(encoder, resolution=resolution)
        check_joint_text(encoder, "filo", self.official_encoder)
        check_choices(taps=(taps, TAPS), stage=(stage, (1, 2)))
        check_counts(n_ctx=n_ctx)
        self.by_boxes = positions == "boxes"
        self.positions = PLACES if positions is None or self.by_boxes else tuple(positions)
        if not self.positions or not set(self.positions) <= set(PLACES):
            raise ValueError(f"positions are {positions!r}; expected 'boxes' or some of {', '.join(PLACES)}")
        self.boxes = boxes if boxes is None or callable(boxes) else [[float(edge) for edge in box] for box in boxes]
        if isinstance(self.boxes, list) and any(len(box) not in (4, 5) for box in self.boxes):
            raise ValueError(f"boxes are {boxes!r:.80}; expected (x0, y0, x1, y1) each, perhaps with a confidence")
        self.layers, self.taps, self.stage, self.row_dice = quarters(encoder.depth), taps, stage, row_dice
        self.options.update(taps=taps, n_ctx=n_ctx, stage=stage)
        self.options["boxes"] = self.boxes if isinstance(self.boxes, list) else None
        self.options["positions"] = positions if isinstance(positions, str | None) else list(positions)
        D = encoder.embed_dim
        self.decoder_linear = TapLayers(encoder, len(self.layers))
        with torch.random.fork_rng(devices=[]):  # follows the global seed, and leaves the global state alone
            self.decoder_cov = ConvolutionBank(encoder, len(self.layers) - 1)
            self.normal_prompt_learner, self.abnormal_prompt_learner = Learner(D, n_ctx), Learner(D, n_ctx)
            self.adapter = Residual(D)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith("adapter.") == (stage == 2))
        self.to(encoder.device).eval()

    # Pictures

    def image_side(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The picture's embedding [B, D], not normalised; and raw patch tokens [B, N, C].

        They are those of the four linear layers, and with separate taps also those of the three banks.
        """
        aligned, ordinary, streams, stream = self.encoder.dense_path == "ordinary", {}, {}, None
        for layer, before, after, values in self.encoder.value_walk(pixels, "bicubic", self.layers[0] + 1):
            if values is not None and not aligned:
                stream = (before if stream is None else stream) + values
            if self.taps == "as_published" and layer - 1 in self.layers[1:-1]:
                ordinary[layer - 1] = before + self.encoder.attention(layer, before)
            if layer in self.layers:
                ordinary[layer], streams[layer] = after, after if stream is None else stream
        first, last = self.layers[0], self.layers[-1]
        if self.taps == "as_published":
            ordinary[first] = streams[last]
        found = [ordinary[layer] for layer in self.layers]
        if self.taps == "separate":
            found += [streams[layer] for layer in self.layers[1:]]
        return self.encoder.project(after[:, 0]), *(tokens[:, 1:] for tokens in found)

    def forward(self, pixels: Tensor) -> Scores:
        image, *tokens = self.image_side(pixels)
        size = pixels.shape[-2], pixels.shape[-1]
        boxes = self.boxes(pixels) if callable(self.boxes) else [self.boxes or []] * len(pixels)
        seen = self.seen(image)
        states = self.states(seen, [self.name or ""] * len(image), [self._places(one, size[0]) for one in boxes])
        taps = self.embeddings(tokens, self.encoder.grid(pixels))
        maps = [anomalous_pixels(one, states, self.encoder.grid(pixels), size, ROOT / SCALE) for one in taps]
        amap = blurred(torch.stack(maps).mean(0), 3, 4.0)
        score = ((seen * states[:, 1]).sum(-1) + amap.amax((1, 2))) / 2
        if self.boxes is not None:
            amap = amap * torch.stack([looked_at(one, size) for one in boxes]).to(amap.device)
        return Scores(score, amap, image)

    def _places(self, boxes: Boxes, side: int) -> Sequence[str]:
        if not self.by_boxes:
            return self.positions
        best = max(boxes, key=lambda box: box[4] if len(box) > 4 else 0.0, default=None)
        return place_of(best, side)

    def seen(self, image: Tensor) -> Tensor:
        """[B, D] unit, the embedding that words are compared with and shifted by."""
        return F.normalize(image.float() if self.stage == 1 else self.adapter(image.float()), dim=-1)

    def maps(self, tokens: Sequence[Tensor], states: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """Seven times [B, 2, *size]: the states' probabilities by the linear layers, then by the banks."""
        grid = size[0] // self.encoder.patch_size, size[1] // self.encoder.patch_size
        taps = self.embeddings(tokens, grid)
        return [enlarge(SCALE * F.normalize(one, dim=-1) @ states.mT, grid, size).softmax(1) for one in taps]

    def embeddings(self, tokens: Sequence[Tensor], grid: tuple[int, int]) -> list[Tensor]:
        """Seven times [B, N, D], not normalised: what the linear layers make of patch tokens, then the banks."""
        taps = len(self.layers)
        convolved = tokens[taps:] or [tokens[0]] * (taps - 1)
        return [*self.decoder_linear(tokens[:taps]), *self.decoder_cov(convolved, grid)]

    # Words

    def states(self, seen: Tensor, names: Sequence[str], places: Sequence[Sequence[str]]) -> Tensor:
        """[B, 2, D] of length 1 / root of 2: both states of pictures of unit embeddings [B, D], by names and places."""
        return by_name(names, lambda rows, name: self._states(seen[rows], name, [places[row] for row in rows]))

    def _states(self, seen: Tensor, name: str, places: Sequence[Sequence[str]]) -> Tensor:
        needed = [place for place in PLACES if any(place in chosen for chosen in places)]
        normal, anomalous = self.sentences(name, needed)
        good = self.read(self.normal_prompt_learner(seen), normal).mean(1)
        bad = self.read(self.abnormal_prompt_learner(seen), anomalous).unflatten(1, (-1, len(needed)))
        weights = torch.tensor([[float(place in chosen) for place in needed] for chosen in places], device=seen.device)
        chosen = (bad.mean(1) * weights[..., None]).sum(1)  # the length does not matter
        return F.normalize(torch.stack([good, chosen], 1), dim=-1) / ROOT

    def sentences(self, name: str, places: Sequence[str] = PLACES) -> tuple[list[str], list[str]]:
        """What follows the learned vectors, of the normal and of the anomalous state, the places innermost."""
        pack = self.pack or PromptPack.load(self.default_prompts)

        def filled(phrases: Sequence[str], ends: Sequence[str]) -> list[str]:
            told = [template.replace("{}", one + end) for one in phrases for template in pack.templates for end in ends]
            return [f"{one.rstrip('.')}." for one in told]

        normal, anomalous = pack.phrases(name)
        return filled(normal, [""]), filled(anomalous, [f" at {place}" for place in places])

    def read(self, words: Tensor, sentences: Sequence[str]) -> Tensor:
        """[B, T, D] unit embeddings of T sentences after the words [B, n_ctx, D] of each picture."""
        start = ["X"] * words.shape[1]
        ids = self.encoder.tokenize([" ".join([*start, one]) for one in sentences])
        return read_after(self.encoder, ids, words)

    # Training

    def loss(self, batch: Batch) -> Tensor:
        image, *tokens = batch.features
        seen, places = self.seen(image), [self.positions] * len(image)
        if self.stage == 2:
            with torch.no_grad():
                states = self.states(seen, batch.names, places)
            return whole_picture((states @ seen[..., None])[..., 0] / TEMPERATURE, batch.labels)
        states = self.states(seen, batch.names, places)
        maps = self.maps(tokens, states, (batch.masks.shape[-2], batch.masks.shape[-1]))
        return torch.stack([segmentation(one, batch.masks, self.row_dice) for one in maps]).sum()

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """What an optimiser is built from: the layers of the taps learn ten times slower than all else."""
        return groups_by_rate(self, learning_rate, lambda name: 0.1 if name.startswith("decoder_") else 1)

    @classmethod
    def official(cls, content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Keywords and tensors of a file of CASIA-IVA-Lab/FiLo, which has all of CLIP in it as well."""
        (table,) = official_parts(content, "filo", ("filo",))
        tensors = {key: value for key, value in table.items() if not key.startswith(FROZEN)}
        return lengths_in(tensors, n_ctx=("normal_prompt_learner.ctx", 0)), tensors
