"""Bayes-PFL: a bank of learned prompts, shifted by learned random vectors, averaged over draws.

Paper: "Bayesian Prompt Flow Learning for Zero-Shot Anomaly Detection" (arXiv:2503.10080). Official code:
xiaozhen228/Bayes-PFL. Needs: text, and learned weights (the authors' files, or `vlad train`). No normal pictures, one
picture at a time; six sentences per draw and picture are read.

1. Ten learned vectors and the object's name make a sentence: five of context, five of the state, normal or anomalous.
   There are three such sentences a state.
2. A draw from a gaussian, brought through ten planar flows, is added to the context's vectors, and another one to the
   state's. The first distribution depends on the picture's embedding; the others do not.
3. Tokens of four blocks, the quarters of the depth, get a linear layer each; each sentence attends to them and is added
   to what it finds. The logits of each pair of sentences go to the picture's square and through a softmax; the mean
   over taps, pairs and draws, smoothed by a gaussian of 8 px, is the map.
4. The score is the mean over the pairs of their probability that the picture, its embedding together with its tokens
   under a learned weighting, is anomalous.
5. Trained in two stages: first everything but the weighting, on cross entropy, focal and dice losses, the flows' KL
   divergence and the squared cosines among a state's sentences; then what the score needs, on cross entropy.

Known differences: the draws come from `seed`, and are the same for every picture, where the official code goes on
drawing. Its scores rescale the probability and the mean of the map's 2000 largest pixels (20 for seven categories of
the test sets) by the smallest and largest of all pictures of a class; `score="set"` does that in `predict`, with the
share `top` of the pixels, and `score="both"` is the mean of both as they are. It chose its epochs on test pictures of
the other data set; here a held-out part may do so. No augmentation but mosaics; layers that nothing uses are not kept.
The name goes in as given, where the official code says "printed circuit board" for pcb1.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.encoders.encoder import Encoder
from vlad.learning.flows import Draw, Gaussian, PictureFlows, StateFlows, drawn
from vlad.learning.losses import balanced_focal, whole_dice
from vlad.learning.optimizers import groups_by_rate
from vlad.learning.prompt_learner import check_joint_text, read_by_picture
from vlad.learning.scorer import Batch, LearnedScorer, lengths_in, official_parts
from vlad.learning.tap_layers import by_name, raw_taps
from vlad.maps import TEMPERATURE, checked_sigma, enlarge, gaussian, rescaled_together, top_mean
from vlad.memory import quarters
from vlad.prompts import PromptPack
from vlad.scorer import Scores, check_choices, check_counts

HEADS = 4  # of the sentences' attention to patches
KL = 0.01  # weight of the divergences
SCORES = ("probability", "both", "set")
UNUSED = (".decoder.", "_decoder.", ".p_mu.")  # in the authors' files; nothing learns them
TWICE = {"PFL_context.encoder.": "context_encoder.", "PFL_normal.encoder.": "state_encoder."}
TWICE["PFL_abnormal.encoder."] = "state_encoder."


def alike(texts: Tensor) -> Tensor:
    """Mean over all entries of the squared cosines of unit [B, M, D] with each other, with themselves as 0."""
    cosines = texts @ texts.mT
    return (cosines * (1 - torch.eye(cosines.shape[-1], device=cosines.device))).square().mean()


def small(module: nn.Module) -> None:
    """First weights of every linear layer in it, as in the official code."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def faster(name: str) -> int:
    """How many times faster than the others a parameter of this name learns."""
    if name.startswith("temperature_"):
        return 100
    return 10 if name.startswith(("prompt_", "PFL_")) else 1


class CrossAttention(nn.Module):
    """Sentences that attend to each tap's patches, in the joint space."""

    def __init__(self, encoder: Encoder, taps: int):
        super().__init__()
        D = encoder.embed_dim
        self.q_proj_pre = nn.Conv1d(D, D, 1)
        self.linear_proj = nn.ModuleList(nn.Linear(encoder.width, D, bias=False) for _ in range(taps))

    def forward(self, texts: Tensor, taps: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Per tap unit (sentences [B, M, D], patches [B, N, D]), from unit sentences and raw tokens [B, N, C]."""
        found, D = [], texts.shape[-1]
        query = self.q_proj_pre(texts.mT).mT.unflatten(-1, (HEADS, -1)).transpose(1, 2)  # [B, heads, M, D / heads]
        for layer, tokens in zip(self.linear_proj, taps, strict=True):
            patches = F.normalize(layer(tokens.float()), dim=-1)
            keys = patches.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            seen = F.scaled_dot_product_attention(query, keys, keys, scale=D**-0.5).transpose(1, 2).flatten(2)
            found.append((F.normalize(seen + texts, dim=-1), patches))
        return found


def mean_probability(logits: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """[B, *size]: the mean over all pairs of the sigmoid of logits [B, N, pairs] brought to the size.

    Picture by picture: together they would be too large for memory to be used again.
    """
    if torch.compiler.is_exporting():
        return enlarge(logits, grid, size).sigmoid().mean(1)
    return torch.cat([enlarge(one, grid, size).sigmoid_().mean(1) for one in logits.split(1)])


class Fuse(nn.Module):
    """[B, D]: the tokens of all taps beside each other, weighted over the patches as learned."""

    def __init__(self, encoder: Encoder, taps: int, hidden: int):
        super().__init__()
        self.fuse_modules = nn.Linear(taps * encoder.width, hidden)
        self.compress, self.post_process = nn.Linear(hidden, 1), nn.Linear(hidden, encoder.embed_dim)

    def forward(self, taps: Sequence[Tensor]) -> Tensor:
        rows = self.fuse_modules(torch.cat([tokens.float() for tokens in taps], -1))  # [B, N, hidden]
        return self.post_process((self.compress(rows).softmax(1) * rows).sum(1))


class BayesPfl(LearnedScorer):
    """See the module. Parameters have the names of the official code.

    Args:
        draws: how many are averaged; `seed` is that of the draws.
        bank, length, flows: sentences a state, vectors of context and as many of state, and flows.
        sigma: of the map's smoothing, in input pixels.
        top: the share of the pixels that `score` "both" and "set" take.
        score: "probability", "both" or "set".
        stage: of training, 1 or 2; in stage 1 the score is that of the picture's embedding alone.

    Raises:
        ValueError: the encoder's text tokens are not as wide as the joint space, or an option is out of range.
    """

    paper_resolution: ClassVar[Mapping[int, int]] = {336: 518}
    stages: ClassVar[int] = 2
    official_encoder: ClassVar[str] = "ViT-L-14-336/openai"
    official_activation: ClassVar[str] = "gelu"

    noise: Tensor  # [3, R, D] of the context, the normal and the anomalous state; the same for every picture

    def __init__(
        self,
        encoder: Encoder,
        *,
        resolution: int | None = None,
        draws: int = 10,
        seed: int = 0,
        bank: int = 3,
        length: int = 5,
        flows: int = 10,
        sigma: float = 8.0,
        top: float = 2000 / 518**2,
        score: str = "probability",
        stage: int = 2,
    ):
        super().__init__(encoder, resolution=resolution)
        check_joint_text(encoder, "bayes_pfl", self.official_encoder)
        check_choices(score=(score, SCORES), stage=(stage, (1, 2)))
        check_counts(draws=draws, bank=bank, length=length, flows=flows)
        if not 0 < top <= 1:
            raise ValueError(f"top is {top!r}; expected a share of the pixels above 0 and up to 1")
        self.layers, self.bank, self.vectors = quarters(encoder.depth), bank, 2 * length
        self.sigma, self.top, self.how, self.stage = checked_sigma(sigma), float(top), score, stage
        self.options.update(draws=draws, seed=seed, bank=bank, length=length, flows=flows, sigma=self.sigma)
        self.options.update(top=self.top, score=score, stage=stage)
        noise = torch.randn(3, draws, encoder.embed_dim, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("noise", noise, persistent=False)
        with torch.random.fork_rng(devices=[]):  # follows the global seed, and leaves the global state alone
            self._build(encoder, bank, length, flows)
        last = {"fuse", "image_mapping", "class_mapping"}  # learned in stage 2; the last of them in both
        for name, parameter in self.named_parameters():
            part = name.partition(".")[0]
            parameter.requires_grad_(part in last if stage == 2 else part not in last - {"class_mapping"})
        self.to(encoder.device).eval()

    def _build(self, encoder: Encoder, bank: int, length: int, flows: int) -> None:
        D, hidden = encoder.embed_dim, encoder.width // 2
        prompts = (nn.init.trunc_normal_(torch.empty(bank, length, D), std=0.02) for _ in range(3))
        context, normal, abnormal = prompts
        self.prompt_context, self.prompt_state_normal = nn.Parameter(context), nn.Parameter(normal + 0.5)
        self.prompt_state_abnormal = nn.Parameter(abnormal - 0.5)
        warm = math.log(1 / TEMPERATURE)
        self.temperature_pixel, self.temperature_image = (nn.Parameter(torch.tensor(warm)) for _ in range(2))
        self.context_encoder, self.state_encoder = Gaussian(D, hidden), Gaussian(D, hidden)
        self.PFL_context = PictureFlows(D, flows)
        self.PFL_normal, self.PFL_abnormal = StateFlows(D, flows), StateFlows(D, flows)
        self.RCA, self.fuse = CrossAttention(encoder, len(self.layers)), Fuse(encoder, len(self.layers), hidden)
        self.class_mapping, self.image_mapping = nn.Linear(D, D), nn.Linear(D, D)
        self.apply(small)

    @property
    def score_set(self) -> Callable[[Iterable[Tensor]], Iterable[Scores]] | None:
        return self._rescaled if self.how == "set" else None

    def _rescaled(self, batches: Iterable[Tensor]) -> Iterable[Scores]:
        """Probabilities and means of the maps' largest pixels, each rescaled over the set."""
        found = [
            (probability, top_mean(amap, self.top), gaussian(amap, self.sigma), image)
            for probability, amap, image in map(self.parts, batches)
        ]
        probabilities, tops, maps, images = zip(*found, strict=True)
        both = zip(rescaled_together(probabilities), rescaled_together(tops), strict=True)
        return map(Scores, [(one + other) / 2 for one, other in both], maps, images)

    def image_side(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The picture's embedding [B, D], not normalised, and the raw patch tokens [B, N, C] of each tap."""
        return raw_taps(self.encoder, pixels, self.layers)

    def prototypes_of(self, pack: PromptPack, name: str) -> Tensor:
        """Those of the sentences without any shift; pictures are compared with their own."""
        none = self.noise.new_zeros(1, 1, self.encoder.embed_dim)
        with torch.no_grad():
            return self.texts([name], [none] * 3)[0].unflatten(0, (2, -1)).mean(1)

    def forward(self, pixels: Tensor) -> Scores:
        probability, amap, image = self.parts(pixels)
        score = (probability + top_mean(amap, self.top)) / 2 if self.how == "both" else probability
        return Scores(score, gaussian(amap, self.sigma), image)

    def parts(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(probability [B], map [B, H, W] before its smoothing, embedding [B, D]) of pixels [B, 3, H, W]."""
        image, *taps = self.image_side(pixels)
        shifts = [draw.shift for draw in self.drawn(image, self.noise[:, None])]
        texts = self.texts([self.name or ""] * len(image), shifts)
        size = pixels.shape[-2], pixels.shape[-1]
        grid, logits = self.encoder.grid(pixels), self.logits(texts, taps)
        amap = torch.stack([mean_probability(one, grid, size) for one in logits]).mean(0)
        normal_logits, anomalous = self.image_logits(texts, image, taps).chunk(2, -1)
        return (anomalous - normal_logits).sigmoid().mean(-1), amap, image

    def drawn(self, image: Tensor, noise: Iterable[Tensor]) -> list[Draw]:
        """Of the context of pictures [B, D], and of the normal and the anomalous state of all.

        `noise` is that of each of the three, [B or 1, R, D].
        """
        context, *states = noise
        flows = zip((self.PFL_normal, self.PFL_abnormal), states, strict=True)
        own = drawn(self.context_encoder, self.PFL_context, image, context)
        return [own, *(drawn(self.state_encoder, one, one.state, noise) for one, noise in flows)]

    def texts(self, names: Sequence[str], shifts: Sequence[Tensor]) -> Tensor:
        """[B, 2 * R * bank, D] unit: the normal sentences, then the anomalous ones, of pictures of these names.

        `shifts` are [B, R, D] of the context, [1, R, D] of the normal and of the anomalous state.
        """
        prompts = self.prompt_context, self.prompt_state_normal, self.prompt_state_abnormal
        shifted = [prompt + shift[:, :, None, None] for prompt, shift in zip(prompts, shifts, strict=True)]
        context, *states = shifted  # [B or 1, R, bank, length, D] each
        both = [torch.cat([context, state.expand_as(context)], -2) for state in states]
        words = torch.stack(both, 1).flatten(1, 3)  # [B, 2 * R * bank, 2 * length, D]
        return by_name(names, lambda rows, name: self._read(words[rows], name))

    def _read(self, words: Tensor, name: str) -> Tensor:
        """[b, M, D] unit of word vectors [b, M, n, D] that stand before a name."""
        ids = self.encoder.tokenize([" ".join(["X"] * self.vectors + [name.lower()])])
        return read_by_picture(self.encoder, ids.expand(words.shape[1], -1), words)

    def maps(self, texts: Tensor, taps: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """Per tap [B, pairs, *size]: the anomalous probability by each pair of sentences [B, 2 * pairs, D]."""
        grid = size[0] // self.encoder.patch_size, size[1] // self.encoder.patch_size
        return [enlarge(one, grid, size).sigmoid() for one in self.logits(texts, taps)]

    def logits(self, texts: Tensor, taps: Sequence[Tensor]) -> list[Tensor]:
        """Per tap [B, N, pairs]: how much likelier each patch is to be anomalous."""
        found = []
        for seen, patches in self.RCA(texts, taps):
            normal, anomalous = (self.temperature_pixel.exp() * patches @ seen.mT).chunk(2, -1)
            found.append(anomalous - normal)
        return found

    def image_logits(self, texts: Tensor, image: Tensor, taps: Sequence[Tensor]) -> Tensor:
        """[B, M] logits of the whole picture by each sentence [B, M, D]."""
        whole = image if self.stage == 1 else self.image_mapping(image + self.fuse(taps))
        words = F.normalize(self.class_mapping(texts), dim=-1)
        return self.temperature_image.exp() * (words @ F.normalize(whole, dim=-1)[..., None])[..., 0]

    # Training

    def loss(self, batch: Batch) -> Tensor:
        """Of one draw a picture and one a state, and of one pair of sentences of the bank."""
        entry = int(torch.randint(self.bank, ()))
        noise = torch.randn(len(batch.labels) + 2, self.encoder.embed_dim, device=batch.masks.device)
        return torch.stack([value.sum() for value in self.losses(batch, noise, entry).values()]).sum()

    def losses(self, batch: Batch, noise: Tensor, entry: int) -> dict[str, Tensor]:
        """The terms of the loss: entropy, and in stage 1 focal and dice [taps], divergence [3] and orthogonality.

        Args:
            noise: [B + 2, D] of each picture's context, the normal and the anomalous state.
            entry: the pair of the bank that is compared with pictures.
        """
        image, *taps = (part.float() for part in batch.features)
        drawn = self.drawn(image, noise[:, None].split([len(image), 1, 1]))
        texts = self.texts(batch.names, [draw.shift for draw in drawn])  # [B, 2 * bank, D]
        pair = [entry, self.bank + entry]
        logits = self.image_logits(texts, image, taps)[:, pair]
        found = {"entropy": F.cross_entropy(logits, batch.labels)}
        if self.stage == 2:
            return found
        maps = [one[:, 0] for one in self.maps(texts[:, pair], taps, (batch.masks.shape[-2], batch.masks.shape[-1]))]
        found["focal"] = torch.stack([balanced_focal(one, batch.masks) for one in maps])
        found["dice"] = torch.stack([whole_dice(one, batch.masks) for one in maps])
        # a state's one row counts fully in the first part and as one of B in the second, an accident of the code
        apart = [draw.apart.mean() - draw.change.sum() / len(image) for draw in drawn]
        found["divergence"] = KL * torch.stack(apart)
        found["orthogonality"] = alike(texts[:, : self.bank]) + alike(texts[:, self.bank :])
        return found

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """What an optimiser is built from: prompts and flows learn ten times faster, both temperatures a hundred."""
        return groups_by_rate(self, learning_rate, faster)

    @classmethod
    def official(cls, content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Keywords and tensors of a file of xiaozhen228/Bayes-PFL, whose shared layers stand in it several times."""
        (table,) = official_parts(content, "bayes_pfl", ("MyModel",))
        tensors = {key: value for key, value in table.items() if not any(part in key for part in UNUSED)}
        for copied, name in TWICE.items():
            for key in [key for key in tensors if key.startswith(copied)]:
                own = tensors.get(name + key.removeprefix(copied))
                if own is None or not torch.equal(own, tensors.pop(key)):
                    raise ValueError(f"its {key!r} is not what stands under {name + key.removeprefix(copied)!r}")
        sizes = {"bank": ("prompt_context", 0), "length": ("prompt_context", 1)}
        return lengths_in(tensors, **sizes, flows=("PFL_context.amor_b.weight", 0)), tensors
