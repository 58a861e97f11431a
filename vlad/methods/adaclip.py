"""AdaCLIP: learned prompts in both towers, some of them made anew from each picture.

Paper: "AdaCLIP: Adapting CLIP with Hybrid Learnable Prompts for Zero-Shot Anomaly Detection" (arXiv:2407.15795).
Official code: caoyunkang/AdaCLIP. Needs: text, and learned weights (the authors' files, or `vlad train`). No normal
pictures, one picture at a time.

1. The frozen encoder's embedding of the picture gives, through linear layers, five prompts for each tower.
2. Added to five learned ones they stand at the end of the vision tower's tokens, and are put in anew before blocks 2 to
   4. Tokens of four layers and the class embedding each get a linear layer of their own.
3. Before text blocks 2 to 4 the same, with the other five prompts, takes the place of each sentence's first words. So
   every picture has its own normal and anomalous prototype, the means over the sentences.
4. 100 times the cosines with both are the logits of each patch and layer; their mean over the layers, bilinear to the
   picture's square, softmax and a gaussian of 4 px: the map.
5. The score: the 100 most anomalous patches fall into 20 clusters (k-means), whose mean is mixed into the class
   embedding (0.2 to 0.8) before a softmax over its logits.
6. Trained on focal loss of the score (without 5) and focal and dice losses of each layer's map.

Known differences: the official code runs in half precision, one picture at a time (here B at once, alike), and draws
k-means from the global random state, here from `seed`. Its sentences keep the underscore of folders such as
"metal_nut"; here the name goes in as given. Prompts never overwrite the end of a short sentence, and in a tower with
fewer blocks there are fewer. It was trained with batches of one picture, where its dice loss takes every row for a
picture: `row_dice=True`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.encoders.encoder import Encoder
from vlad.learning.losses import focal, segmentation
from vlad.learning.prompt_learner import check_joint_text
from vlad.learning.scorer import Batch, LearnedScorer, refuse_other_methods
from vlad.learning.tap_layers import by_name
from vlad.maps import checked_sigma, enlarge, gaussian
from vlad.memory import quarters
from vlad.prompts import PromptPack
from vlad.scorer import Scores

SCALE = 100  # of the cosines
CLUSTERS, PER_CLUSTER = 20, 5  # the score's clusters; as many times more patches are looked at
SHARE = 0.2  # of the clusters in the embedding that is scored
SENTENCES = 512  # run through the text tower at once
PREFIX = "clip_model."  # of all names in the authors' files


def k_means(points: Tensor, count: int, seed: int) -> Tensor:
    """[M] numbers below `count` of the clusters of [M, C]: k-means++ start, then Lloyd's steps until nothing moves."""
    rows, draw = points.detach().cpu().double(), np.random.RandomState(seed)  # its streams never change
    centres = rows[draw.randint(len(rows))][None]
    nearest = (rows - centres[0]).square().sum(1)
    while len(centres) < count:
        reached = nearest.cumsum(0)
        centres = torch.cat([centres, rows[torch.searchsorted(reached, reached[-1] * draw.rand())][None]])
        nearest = nearest.minimum((rows - centres[-1]).square().sum(1))
    labels = torch.cdist(rows, centres).argmin(1)
    for _ in range(300):
        members = F.one_hot(labels, count).double()  # [M, count]
        sizes = members.sum(0)[:, None]
        centres = torch.where(sizes > 0, members.T @ rows / sizes.clamp_min(1), centres)
        before, labels = labels, torch.cdist(rows, centres).argmin(1)
        if torch.equal(before, labels):
            break
    return labels.to(points.device)


def cluster_mean(patches: Tensor, labels: Tensor) -> Tensor:
    """[D] unit: the mean, one vote a cluster, of patches [L, M, D] with the cluster numbers [M]."""
    members = F.one_hot(labels).to(patches.dtype)
    members = members[:, members.any(0)]  # [M, clusters]
    return F.normalize((members.T @ patches.mean(0) / members.sum(0)[:, None]).mean(0), dim=0)


def most_anomalous(logits: Tensor) -> Tensor:
    """[B, M] numbers of the patches with the highest probability, best first, from logits [L, B, N, 2]."""
    probability = logits.mean(0).softmax(-1)[..., 1]
    return probability.topk(min(CLUSTERS * PER_CLUSTER, probability.shape[1])).indices


def class_probabilities(whole: Tensor, states: Tensor) -> Tensor:
    """[B, 2] of unit class embeddings [B, D] and unit prototypes [B, 2, D]."""
    return (SCALE * (states @ whole[..., None])[..., 0]).softmax(-1)


class Prompts(nn.Module):
    """`count` times [length, C] learned prompts, one for each of the first blocks of a tower."""

    def __init__(self, count: int, length: int, width: int):
        super().__init__()
        self.static_prompts = nn.ParameterList(0.02 * torch.randn(length, width) for _ in range(count))


class Heads(nn.Module):
    """`count` linear layers beside each other."""

    def __init__(self, count: int, inner: int, outer: int):
        super().__init__()
        self.head = nn.ModuleList(nn.Linear(inner, outer) for _ in range(count))

    def forward(self, rows: Tensor) -> Tensor:
        """[B, count, outer] from [B, inner]: what all layers make of the same."""
        return torch.stack([head(rows) for head in self.head], 1)


class AdaClip(LearnedScorer):
    """See the module. Its `prototypes` are the words' alone; pictures are compared with their own, `states`.

    Args:
        depth: blocks of each tower that get prompts, from 2; more than a tower has means all of them.
        length: prompts per block.
        hsf: mix clusters of anomalous patches into the score; `seed` is that of k-means.
        sigma: of the map's smoothing, in input pixels.
        row_dice: for training, take every row of a picture for a picture in the dice loss.
        checkpointing: for training, compute the blocks' insides again instead of keeping them; same results.

    Raises:
        ValueError: the encoder's text tokens are not as wide as the joint space, or a number is out of range.
    """

    paper_resolution: ClassVar[Mapping[int, int]] = {336: 518}
    frozen_image_side: bool = False
    official_encoder: ClassVar[str] = "ViT-L-14-336/openai"
    official_activation: ClassVar[str] = "gelu"

    def __init__(
        self,
        encoder: Encoder,
        *,
        resolution: int | None = None,
        depth: int = 4,
        length: int = 5,
        hsf: bool = True,
        seed: int = 0,
        sigma: float = 4.0,
        row_dice: bool = False,
        checkpointing: bool = False,
    ):
        super().__init__(encoder, resolution=resolution)
        check_joint_text(encoder, "adaclip", self.official_encoder)
        if depth < 2 or length < 1:
            raise ValueError(f"depth is {depth} and length {length}; expected 2 or more and 1 or more")
        self.layers, self.length = quarters(encoder.depth), length
        self.hsf, self.seed, self.sigma = bool(hsf), int(seed), checked_sigma(sigma)
        self.row_dice, self.checkpointing = row_dice, checkpointing
        self.options.update(depth=depth, length=length, hsf=self.hsf, seed=self.seed, sigma=self.sigma)
        D, C = encoder.embed_dim, encoder.width
        with torch.random.fork_rng(devices=[]):  # follows the global seed, and leaves the global state alone
            self.text_prompter = Prompts(min(depth, encoder.text_depth), length, D)
            self.visual_prompter = Prompts(min(depth, encoder.depth), length, C)
            self.patch_token_layer = Heads(len(self.layers), C, D)
            self.cls_token_layer = Heads(1, D, D)
            self.dynamic_visual_prompt_generator = Heads(length, D, C)
            self.dynamic_text_prompt_generator = Heads(length, D, D)
        # no words are replaced before the first text block, so this one does nothing; the authors' files have it
        self.text_prompter.static_prompts[0].requires_grad_(False)
        self.to(encoder.device).eval()

    def image_side(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The pixels: what is learned stands in the vision tower itself."""
        return (pixels,)

    def forward(self, pixels: Tensor) -> Scores:
        own = self.own_embedding(pixels)
        whole, patches = self.see(pixels, own)
        states = self.states(own, [self.name or ""] * len(own))
        logits = SCALE * patches @ states.mT  # [L, B, N, 2]
        if self.hsf:
            whole = self.hybrid(whole, patches, logits)
        size = pixels.shape[-2], pixels.shape[-1]
        maps = enlarge(logits.mean(0), self.encoder.grid(pixels), size).softmax(1)[:, 1]
        return Scores(class_probabilities(whole, states)[:, 1], gaussian(maps, self.sigma), own)

    def loss(self, batch: Batch) -> Tensor:
        (pixels,) = batch.features
        own = self.own_embedding(pixels)
        whole, patches = self.see(pixels, own)
        states = self.states(own, batch.names)
        total = focal(class_probabilities(whole, states), batch.labels.float())
        grid, size = self.encoder.grid(pixels), (batch.masks.shape[-2], batch.masks.shape[-1])
        for logits in SCALE * patches @ states.mT:
            total = total + segmentation(enlarge(logits, grid, size).softmax(1), batch.masks, self.row_dice)
        return total

    @torch.no_grad()
    def own_embedding(self, pixels: Tensor) -> Tensor:
        """[B, D], not normalised: the frozen encoder's, without any prompts."""
        for _, _, after, _ in self.encoder.value_walk(pixels, "bicubic", self.encoder.depth + 1, True):  # noqa: B007
            pass
        return self.encoder.project(after[:, 0])

    def see(self, pixels: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Unit class embeddings [B, D] and patch embeddings [L, B, N, D], with the prompts of `own` [B, D]."""
        dynamic, static = self.dynamic_visual_prompt_generator(own), self.visual_prompter.static_prompts

        def prompted(layer: int, tokens: Tensor) -> Tensor:
            if layer > len(static):
                return tokens
            kept = tokens if layer == 1 else tokens[:, : -self.length]
            return torch.cat([kept, dynamic + static[layer - 1]], 1)

        taps = {}
        tokens = self.encoder.embed(pixels, "bicubic")
        for layer, _, after in self.encoder.walk(tokens, prompted, checkpointing=self.checkpointing):
            if layer in self.layers:
                taps[layer] = after[:, 1 : -self.length]
        heads = zip(self.patch_token_layer.head, self.layers, strict=True)
        patches = torch.stack([head(taps[layer]) for head, layer in heads])
        whole = self.cls_token_layer(self.encoder.project(after[:, 0]))[:, 0]
        return F.normalize(whole, dim=-1), F.normalize(patches, dim=-1)

    def states(self, own: Tensor, names: Sequence[str]) -> Tensor:
        """[B, 2, D] unit: the normal and the anomalous prototype of each picture, by embedding [B, D] and name."""
        dynamic = self.dynamic_text_prompt_generator(own)
        return by_name(names, lambda rows, name: self._states(dynamic[rows], name))

    def _states(self, dynamic: Tensor, name: str) -> Tensor:
        pack = self.pack or PromptPack.load(self.default_prompts)
        normal, anomalous = pack.sentences(name)
        ids = self.encoder.tokenize(normal + anomalous)  # [T, context]
        means = []
        for part in dynamic.split(max(1, SENTENCES // len(ids))):
            rows = F.normalize(self._read(ids, part), dim=-1)  # [b, T, D]
            means.append(torch.stack([rows[:, : len(normal)].mean(1), rows[:, len(normal) :].mean(1)], 1))
        return F.normalize(torch.cat(means), dim=-1)

    def _read(self, ids: Tensor, dynamic: Tensor) -> Tensor:
        """[b, T, D] embeddings of the sentences [T, context], for each picture with its prompts [b, length, C]."""
        tokens, static = self.encoder.embed_text(ids), self.text_prompter.static_prompts
        count, positions = len(dynamic), torch.arange(tokens.shape[1], device=ids.device)
        ends = ids.argmax(-1)[:, None]
        replaced = ((positions >= 1) & (positions <= self.length) & (positions < ends))[..., None]  # [T, tokens, 1]
        beyond = tokens.shape[1] - 1 - self.length  # below 0, where all sentences are short, it cuts

        def prompted(layer: int, tokens: Tensor) -> Tensor:
            if layer == 1 or layer > len(static):  # the first block is the same for all pictures
                return tokens
            each = tokens.expand(count, *tokens.shape) if layer == 2 else tokens.unflatten(0, (count, -1))
            prompts = F.pad(dynamic + static[layer - 1], (0, 0, 1, beyond))[:, None]  # [b, 1, tokens, C]
            return torch.where(replaced, prompts, each).flatten(0, 1)

        read = self.encoder.walk_text(tokens, prompted, checkpointing=self.checkpointing)
        return self.encoder.pool_text(read, ids.repeat(count, 1)).unflatten(0, (count, -1))

    def hybrid(self, whole: Tensor, patches: Tensor, logits: Tensor) -> Tensor:
        """[B, D] unit: class embeddings [B, D] with clusters of the most anomalous patches [L, B, N, D] mixed in."""
        mixed = []
        for row, best in enumerate(most_anomalous(logits).sort(-1).values):  # sorted: rounding does not reorder them
            chosen = patches[:, row, best]  # [L, M, D]
            labels = k_means(chosen.transpose(0, 1).flatten(1), min(CLUSTERS, len(best)), self.seed)
            mixed.append(SHARE * cluster_mean(chosen, labels) + (1 - SHARE) * whole[row])
        return F.normalize(torch.stack(mixed), dim=-1)

    @classmethod
    def official(cls, content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Keywords and tensors of a file of caoyunkang/AdaCLIP."""
        refuse_other_methods(content, "adaclip")
        for key, value in content.items():
            if not str(key).startswith(PREFIX) or not isinstance(value, Tensor):
                raise ValueError(f"it holds {key!r}; a file of adaclip's authors holds tensors named {PREFIX}... alone")
        tensors = {key.removeprefix(PREFIX): value for key, value in content.items()}
        numbers = [key.rpartition(".")[2] for key in tensors if ".static_prompts." in key]
        options = {"depth": 1 + max((int(number) for number in numbers if number.isdecimal()), default=3)}
        first = tensors.get("visual_prompter.static_prompts.0")
        if first is not None and first.ndim == 2:
            options["length"] = first.shape[0]
        return options, tensors
