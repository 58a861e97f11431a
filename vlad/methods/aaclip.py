"""AA-CLIP: small residual layers in the first blocks of both towers, the words' learned first, then the picture's.

Paper: "AA-CLIP: Enhancing Zero-shot Anomaly Detection via Anomaly-Aware CLIP" (arXiv:2503.06661). Official code:
Mwxinnn/AA-CLIP. Needs: text, best a phrase that describes the object, and learned weights (the authors' two files in
one folder, or `vlad train`). No normal pictures, one picture at a time.

1. After each of the first three text blocks and the first quarter of the vision blocks every token x becomes
   0.9 x + 0.1 a |x| / |a|, a = leaky relu of a linear layer of x.
2. A linear layer and a leaky relu bring the words into the joint space in place of the tower's projection. The
   prototypes are the means of 6 and 10 unit sentences.
3. Tokens of four blocks, the quarters of the depth, each get the last layer norm and a linear layer; their (100
   cos_anomalous + 1 - 100 cos_normal) / 2 is blurred on the patch grid, goes to the picture's square, and is summed
   over the taps: the map, about 2 where both states are alike.
4. The mean over the patches of another linear layer's unit vectors is compared with the words: (cos_anomalous + 1) / 2
   is the score. It ranks pictures of one thing; its height alone says nothing.
5. Trained in two stages. In the first the words learn against a frozen tower whose attention has values for queries and
   keys; in the second the picture's layers do, on the pixels of each tap and cross entropy of the picture.

Known differences: the official scores rescale maps and image values by the smallest and largest of all pictures of a
class, and mix the maps' maxima in; `score="set"` does that in `predict`, `score="map"` is a picture's own maximum. In
the official first stage attention runs, by a transposed tensor, over the pictures of a batch and not over their
patches; `across=True` does the same, and the default is what that gives for a picture alone: each token attends to
itself. The official loop trains on the last tap of its first stage only, and so does this one. Training has no
augmentation.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.encoders.abilities import Edit
from vlad.encoders.encoder import Encoder
from vlad.learning.losses import segmentation, whole_picture
from vlad.learning.prompt_learner import value_start
from vlad.learning.scorer import Batch, LearnedScorer, official_parts, refuse_other_methods
from vlad.learning.tap_layers import states_of
from vlad.maps import blurred, enlarge, rescaled_together, to_size
from vlad.memory import quarters
from vlad.prompts import PromptPack
from vlad.scorer import Scores, check_choices

TEXT_BLOCKS = 3  # that get a residual layer
SHARE = 0.1  # of a residual layer in the tokens
SCALE = 100  # of the cosines
APART = 0.1  # weight, in the first stage, of the squared cosine between both states
BLURS = {"industrial": (7, 1.0), "medical": (9, 1.5)}  # side of the window and sigma, in patches
SCORES = ("image", "map", "set")
PARTS = ("text_adapter", "image_adapter")


def mixed(tokens: Tensor, layer: nn.Module) -> Tensor:
    """[..., C] tokens with a tenth of what a layer makes of them, brought to their own length."""
    made = layer(tokens)
    return SHARE * made * tokens.norm(dim=-1, keepdim=True) / made.norm(dim=-1, keepdim=True) + (1 - SHARE) * tokens


def before_blocks(layers: Sequence[nn.Module] | nn.ModuleList) -> Edit:
    """The edit of a tower's tokens that puts residual layers behind its first blocks."""

    def adapted(number: int, tokens: Tensor) -> Tensor:
        return mixed(tokens, layers[number - 2]) if 2 <= number <= 1 + len(layers) else tokens

    return adapted


class Layer(nn.Module):
    """A linear layer without bias, named as in the official code, where only a leaky one's has an index."""

    def __init__(self, inner: int, outer: int, leaky: bool):
        super().__init__()
        linear = nn.Linear(inner, outer, bias=False)
        nn.init.xavier_uniform_(linear.weight)
        self.fc = nn.Sequential(linear, nn.LeakyReLU()) if leaky else linear

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(tokens)


class ImageLayers(nn.Module):
    """What is learned of the vision side: residual layers of the first blocks, a head for each tap and one for all."""

    def __init__(self, encoder: Encoder, taps: int, blocks: int, relu: bool):
        super().__init__()
        C, D = encoder.width, encoder.embed_dim
        self.layer_adapters = nn.ModuleList(Layer(C, C, True) for _ in range(blocks))
        self.seg_proj = nn.ModuleList(Layer(C, D, relu) for _ in range(taps))
        self.det_proj = Layer(C, D, relu)


class AaClip(LearnedScorer):
    """See the module. Parameters have the names of the official code.

    Args:
        kind: "industrial" or "medical", how widely maps are blurred; of the latter the rescaled score is the maps'.
        score: "image", "map" or "set".
        relu: the vision side's last layers are followed by a leaky relu.
        stage: of training, 1 for the words and 2 for the pictures.
        across: in stage 1, attend over the pictures of a batch; features are then not cached.
        checkpointing: in stage 2, compute the blocks' insides again instead of keeping them; same results.
    """

    map_range: ClassVar[tuple[float, float]] = (-398.0, 402.0)
    region_level: ClassVar[float] = 2.0  # where both states are alike
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
        kind: str = "industrial",
        score: str = "image",
        relu: bool = False,
        stage: int = 2,
        across: bool = False,
        checkpointing: bool = False,
    ):
        super().__init__(encoder, resolution=resolution)
        check_choices(kind=(kind, BLURS), score=(score, SCORES), stage=(stage, (1, 2)))
        self.layers, self.kind, self.how = quarters(encoder.depth), kind, score
        self.stage, self.across, self.checkpointing = stage, across, checkpointing
        self.options.update(kind=kind, score=score, relu=relu, stage=stage, across=across)
        self.frozen_image_side = stage == 1 and not across
        if (T := encoder.text_width) is None:
            raise TypeError(f"aaclip needs a text tower that reads as CLIP's does; {encoder.name!r} has another")
        with torch.random.fork_rng(devices=[]):  # follows the global seed, and leaves the global state alone
            texts = [Layer(T, T, True) for _ in range(min(TEXT_BLOCKS, encoder.text_depth))]
            self.text_adapter = nn.ModuleList([*texts, Layer(T, encoder.embed_dim, True)])
            self.image_adapter = ImageLayers(encoder, len(self.layers), self.layers[0], relu)
        self.text_adapter.requires_grad_(stage == 1)
        self.image_adapter.requires_grad_(stage == 2)
        self.to(encoder.device).eval()

    @property
    def score_set(self) -> Callable[[Iterable[Tensor]], Iterable[Scores]] | None:
        return self._rescaled if self.how == "set" else None

    def _rescaled(self, batches: Iterable[Tensor]) -> Iterable[Scores]:
        """Maps and scores, each rescaled over the set."""
        scores, raw, images, _ = zip(*map(self.forward, batches), strict=True)
        maps = rescaled_together(raw)
        peaks = [amap.amax((1, 2)) for amap in maps]
        if self.kind == "industrial":
            peaks = [(peak + score) / 2 for peak, score in zip(peaks, rescaled_together(scores), strict=True)]
        return map(Scores, peaks, maps, images)

    def colours(self) -> tuple[float, float]:
        return (-4.0, 8.0)  # from where the taps are sure of normal to where they are sure of anomalous

    def prototypes_of(self, pack: PromptPack, name: str) -> Tensor:
        """Read by the tower with its learned layers, as the phrases are."""
        rows = [self.sentences(state) for state in pack.sentences(name)]
        with torch.no_grad():
            phrases = torch.cat(rows).unflatten(0, (-1, len(pack.templates))).mean(1)
            self.phrase_embeddings = F.normalize(phrases, dim=-1)
        return torch.stack([F.normalize(one.mean(0), dim=-1) for one in rows])

    def sentences(self, sentences: Sequence[str]) -> Tensor:
        """[T, D] unit embeddings by the text tower with its learned layers."""
        ids, adapted = self.encoder.tokenize(sentences), before_blocks(self.text_adapter[:-1])
        tokens = self.encoder.walk_text(self.encoder.embed_text(ids), adapted)
        tokens = adapted(1 + self.encoder.text_depth, tokens)  # where the tower is no deeper than they are
        return F.normalize(self.text_adapter[-1](self.encoder.end_text(tokens, ids)), dim=-1)

    def forward(self, pixels: Tensor) -> Scores:
        patches, whole = self.see(pixels)
        states = F.normalize(self.prototypes, dim=-1)
        cosines = torch.stack(patches) @ states.T  # [taps, B, N, 2]
        grids = (SCALE * (cosines[..., 1] - cosines[..., 0]) + 1) / 2
        grids = grids.sum(0).unflatten(1, self.encoder.grid(pixels))  # blur and resize are linear: once for all taps
        size = pixels.shape[-2], pixels.shape[-1]
        amap = to_size(blurred(grids, *BLURS[self.kind]), size, align_corners=True)
        score = amap.amax((1, 2)) if self.how == "map" else (whole @ states[1] + 1) / 2
        return Scores(score, amap, whole)

    def see(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        """Unit patch embeddings [B, N, D] of each tap, and the picture's [B, D], which is shorter than 1."""
        adapted, taps = before_blocks(self.image_adapter.layer_adapters), {}
        walk = self.encoder.walk(self.encoder.embed(pixels), adapted, checkpointing=self.checkpointing)
        for number, _, after in walk:
            if number in self.layers:
                taps[number] = self.encoder.norm(adapted(number + 1, after)[:, 1:])
        heads = zip(self.image_adapter.seg_proj, self.layers, strict=True)
        patches = [F.normalize(head(taps[number]), dim=-1) for head, number in heads]
        whole = F.normalize(self.image_adapter.det_proj(taps[self.layers[-1]]), dim=-1)
        return patches, whole.mean(1)

    # Training

    def image_side(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """In stage 1 what the words are compared with [B, N, D]; in stage 2 the pixels."""
        return (pixels,) if self.stage == 2 else (self.surgery(pixels, self.layers[-1:])[0],)

    @torch.no_grad()
    def surgery(self, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Per layer [B, N, D]: unit patches of a tower that attends by values, plus the picture's unit embedding.

        From block 6 of 24 on its blocks attend to the same token of all pictures, with `across`, or to each token
        itself. An encoder whose ordinary tokens align with text has them taken as they are.
        """
        first, stream, taps = value_start(self.encoder), None, {}
        for number, before, after, _ in self.encoder.value_walk(pixels, first=self.encoder.depth + 1):
            if number >= first:
                stream = self._attended(number, before if stream is None else stream)
                stream = stream + self.encoder.mlp(number, stream)
            if number in layers:
                taps[number] = (after if stream is None else stream)[:, 1:]
        whole = F.normalize(self.encoder.project(after[:, :1]), dim=-1)  # [B, 1, D]
        return [F.normalize(self.encoder.project(taps[number]), dim=-1) + whole for number in layers]

    def _attended(self, number: int, tokens: Tensor) -> Tensor:
        if self.across:
            return tokens + self.encoder.value_attention(number, tokens.transpose(0, 1)).transpose(0, 1)
        return tokens + self.encoder.value_attention(number, tokens.flatten(0, 1)[:, None]).view_as(tokens)

    def loss(self, batch: Batch) -> Tensor:
        size = batch.masks.shape[-2], batch.masks.shape[-1]
        grid = size[0] // self.encoder.patch_size, size[1] // self.encoder.patch_size
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.stage == 1):
            states = states_of(self, batch.names)  # [B, 2, D]
        if self.stage == 1:
            maps = enlarge(SCALE * batch.features[0] @ states.mT, grid, size).softmax(1)
            alike = (states[:, 0] * states[:, 1]).sum(-1).mean()
            return segmentation(maps, batch.masks) + APART * alike.square()
        patches, whole = self.see(batch.features[0])
        total = whole_picture((states @ whole[..., None])[..., 0], batch.labels)
        for one in patches:
            total = total + segmentation(enlarge(SCALE * one @ states.mT, grid, size).softmax(1), batch.masks)
        return total

    @classmethod
    def official(cls, content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Keywords and tensors of both files of Mwxinnn/AA-CLIP, joined."""
        refuse_other_methods(content, "aaclip")
        left = {key: value for key, value in content.items() if key != "epoch" and not str(key).endswith("_optimizer")}
        if missing := [part for part in PARTS if part not in left]:
            raise ValueError(
                f"it lacks {missing[0]!r}: aaclip's authors save the words' and the picture's layers apart; put both "
                "files into one folder and give that"
            )
        parts = zip(PARTS, official_parts(left, "aaclip", PARTS), strict=True)
        tensors = {f"{part}.{key}": value for part, table in parts for key, value in table.items()}
        return {"relu": any(key.startswith("image_adapter.det_proj.fc.0") for key in tensors)}, tensors
