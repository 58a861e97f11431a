"""Methods with learned weights: prompts or small layers that were trained on annotated pictures of another data set.

A learned method writes, beside what every `Scorer` has: `image_side` (what it needs of the frozen encoder), `loss`,
and, where its authors publish weights, `official` (their names into ours). Its parameters, and the buffers of its
layers, are what an adapter's file holds.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from vlad.encoders.authors_file import read_official
from vlad.encoders.encoder import Encoder
from vlad.encoders.families import may_be_named
from vlad.files import resource
from vlad.learning import adapter_file
from vlad.learning.own_words import reads_the_same_words
from vlad.scorer import Scorer, check_towers

logger = logging.getLogger(__name__)

LARGEST = 1e8  # of what is learned; beyond it the arithmetic of the methods overflows
NOT_LEARNED = ("prototypes", "phrase_embeddings")  # buffers that come from words


@dataclass(frozen=True)
class Batch:
    """B annotated pictures of a training step.

    Attributes:
        features: what `image_side` gave, [B, ...] each.
        masks: float [B, S, S], 1 where anomalous; S is the scorer's resolution. NaN where nobody has marked it.
        labels: int64 [B], 1 anomalous.
        names: B category names in words.
        references: `image_side` of one normal picture of the same category each; only for methods that compare.
    """

    features: tuple[Tensor, ...]
    masks: Tensor
    labels: Tensor
    names: Sequence[str]
    references: tuple[Tensor, ...] | None = None


class LearnedScorer(Scorer):
    """A method with learned weights; build it with `vlad.load(method, adapter=...)`.

    Attributes:
        needs_adapter: False for methods that also work without one.
        frozen_image_side: True where `image_side` does not depend on what is learned: training computes it once. A
            method whose training has stages may set it for each; those that have it share what was computed.
        stages: trainings that follow each other, of one detector each, which has them by its option `stage`, from 1.
        learns_from_labels: False where the loss, or that of a stage, is over pixels alone: it needs masks.
        compares: True where a training step needs a normal picture beside each picture.
        mask_share: the part of a pixel of the network's size above which training takes it for anomalous.
        views: how many `viewed` knows, for methods that learn from normal pictures alone; 0 for those that learn from
            annotated ones.
        official_encoder: the encoder that the authors' files were learned on.
        official_activation: part of that; "" where nothing else could be given.
        own_encoder: the first part of the name of the encoder that their files hold, "efficientnet:"; else "".
        trained_on: names of the data sets it was trained on.
    """

    needs_adapter: ClassVar[bool] = True
    frozen_image_side: bool = True
    stages: ClassVar[int] = 1
    learns_from_labels: ClassVar[bool] = True
    compares: ClassVar[bool] = False
    views: ClassVar[int] = 0
    mask_share: ClassVar[float] = 0.5
    official_encoder: ClassVar[str] = ""
    official_activation: ClassVar[str] = "quickgelu"
    own_encoder: ClassVar[str] = ""

    def image_side(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """What the method needs of the frozen encoder for pixels [B, 3, S, S]: tensors [B, ...]."""
        raise NotImplementedError  # each method's own

    def viewed(self, pictures: Sequence[np.ndarray], views: Sequence[int]) -> Tensor:
        """What training sees of pictures: their pixels [B, 3, S, S], each in the view of that number."""
        return self.pixels(pictures)

    def loss(self, batch: Batch) -> Tensor:
        """The scalar that training lowers."""
        raise NotImplementedError  # each method's own

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """What an optimiser is built from; papers give some parts another "lr" or a "clip" of their gradient's norm."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": learning_rate}]

    @classmethod
    def check_tower(cls, content: Mapping[str, Any], encoder: Encoder) -> None:
        """ValueError where the authors' checkpoint says that it was learned on other weights; most do not say."""

    @classmethod
    def official(cls, content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(keywords, tensors by our names) of the authors' checkpoint.

        Raises:
            ValueError: it is not one of this method's.
        """
        raise ValueError(f"{cls.__module__.rpartition('.')[2]} has no files of its authors that VLAD can read")

    def learned(self) -> dict[str, Tensor]:
        """The learned tensors by name: all parameters, and the buffers of layers (running means and the like)."""
        memories = tuple(f"{name}." for name in self.memories())
        state = self.state_dict().items()
        return {k: v for k, v in state if k not in NOT_LEARNED and not k.startswith(memories)}

    def load_learned(self, tensors: Mapping[str, Tensor]) -> Self:
        """Takes learned tensors in place of its own; all of them, in the shapes that it has. Returns self.

        Raises:
            ValueError: lists tensors that are missing, unknown, of another shape or kind, and those that are not finite
                or so large that nothing learned them.
        """
        own = self.learned()
        problems = [f"{key} is missing" for key in own if key not in tensors]
        problems += [f"{key} is unknown" for key in tensors if key not in own]
        for key, value in tensors.items():
            if key in own and tuple(value.shape) != tuple(own[key].shape):
                problems.append(f"{key} is {list(value.shape)}, expected {list(own[key].shape)}")
            elif key in own and own[key].is_floating_point() and not value.is_floating_point():
                problems.append(f"{key} holds {str(value.dtype).removeprefix('torch.')} and no fractions")
            elif key in own and value.is_floating_point() and not (value.abs() <= LARGEST).all():
                problems.append(f"{key} is not finite, or beyond {LARGEST:.0e}")
        if problems:
            more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
            raise ValueError(f"the tensors do not fit {self.method}: {'; '.join(problems[:8])}{more}")
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(tensors[key])
        return self

    def save_adapter(self, path: Path, recipe: Mapping[str, Any]) -> None:
        """Writes the learned tensors, and what they need, as an adapter's file."""
        facts = {
            "method": self.method,
            "encoder": self.encoder.name,
            "encoder_digest": self.encoder.digest,
            "options": self.options,
            "trained_on": list(self.trained_on),
            "recipe": dict(recipe),
        }
        adapter_file.write(path, facts, self.learned())

    def _restore_learned(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        own = self.learned()
        self.load_learned({key: value for key, value in tensors.items() if key in own})
        return {key: value for key, value in tensors.items() if key not in own}


def with_adapter(
    kind: type[LearnedScorer], encoder: Encoder, adapter: Path | None, options: Mapping[str, Any]
) -> LearnedScorer:
    """A scorer of the class with the weights of a file, or of a shipped one by its name.

    None takes the one that ships for this method and encoder.

    Raises:
        ValueError: none ships for this encoder, or the file does not fit the method or the encoder.
        FileNotFoundError: there is no such file.
    """
    method = kind.__module__.rpartition(".")[2]
    if adapter is not None and not adapter.suffix and not adapter.exists():
        adapter = _shipped(adapter.name) or adapter
    if adapter is None:
        adapter = _shipped(f"{method}-{encoder.name}") if encoder.name == "tiny" else None
        if adapter is None and not kind.needs_adapter and not (made := kind(encoder, **options)).learned():
            return made
        if adapter is None:
            kind(encoder, **options)  # an encoder that this method cannot work with at all is the better reason
            raise ValueError(
                f"{method} has no adapter that ships for encoder {encoder.name!r}: give adapter=FILE, which "
                "`vlad train` makes; adapters/README.md lists what ships for 'tiny' and what the authors publish"
            )
    if adapter_file.is_official(adapter):
        return _from_official(kind, encoder, adapter, options)
    read = adapter_file.read(adapter)
    if read.facts["method"] != method:
        raise ValueError(f"{adapter} is an adapter of {read.facts['method']}, not of {method}")
    if read.facts["encoder_digest"] != encoder.digest:
        raise ValueError(
            f"{adapter.name} was learned on other weights than encoder {encoder.name!r} has: it names "
            f"{read.facts['encoder']!r}, digest {read.facts['encoder_digest'][:12]}, and got {encoder.digest[:12]}"
        )
    check_towers(kind, read.facts["options"], options, adapter.name)
    try:
        scorer = kind(encoder, **{**read.facts["options"], **options}).load_learned(read.tensors)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{adapter} cannot be used: {error}") from error
    scorer.trained_on = tuple(map(str, read.facts["trained_on"]))
    return scorer


def own_encoder(kind: type[LearnedScorer], adapter: Path | None) -> str:
    """The name of the encoder that is used when none is given: "tiny", or the method's own, which lies in the file.

    Raises:
        ValueError: the method has a tower of its own, and no file is given, one of another method, or one of our own,
            which names a tower that lies elsewhere.
    """
    if not kind.own_encoder:
        return "tiny"
    method = kind.__module__.rpartition(".")[2]
    if adapter is None:
        raise ValueError(
            f"{method} needs its authors' file, which holds the tower and what was learned with it: give adapter=FILE; "
            "adapters/README.md says where it is"
        )
    if adapter_file.is_official(adapter):
        try:
            refuse_other_methods(read_official(adapter), method)
        except ValueError as error:
            raise ValueError(f"{adapter}: {error}") from error
        return f"{kind.own_encoder}{adapter}"
    recorded = str(adapter_file.read(adapter).facts["encoder"])
    if not may_be_named(recorded):
        raise ValueError(
            f"{adapter.name} was learned on the encoder {recorded!r}, which is opened only if you name it yourself: if "
            f"you trust it, give encoder={recorded!r} beside it"
        )
    return recorded


def official_parts(content: Mapping[str, Any], method: str, parts: Sequence[str]) -> list[Mapping[str, Tensor]]:
    """The parts, tables of tensors, that the files of a method's authors consist of.

    Raises:
        ValueError: it is another method's file, which is named if it is known, or has other parts than these.
    """
    refuse_other_methods(content, method)
    if content.keys() != set(parts):
        given, wanted = (", ".join(map(repr, sorted(map(str, keys)))) for keys in (content, parts))
        raise ValueError(f"it holds {given}; a file of {method}'s authors holds {wanted}")
    for part, table in content.items():
        if not isinstance(table, Mapping) or not all(
            isinstance(key, str) and isinstance(value, Tensor) for key, value in table.items()
        ):
            raise ValueError(f"its part {part!r} is no table of tensors")
    return [content[part] for part in parts]


def lengths_in(tensors: Mapping[str, Tensor], **places: tuple[str, int]) -> dict[str, int]:
    """The length of a tensor along an axis for each option that says where; without those that are not there."""
    there = {option: (tensors[key].shape, axis) for option, (key, axis) in places.items() if key in tensors}
    return {option: shape[axis] for option, (shape, axis) in there.items() if axis < len(shape)}


def refuse_other_methods(content: Mapping[str, Any], method: str) -> None:
    """ValueError where a checkpoint is not of the method's authors; names the method it looks like."""
    if (looks := official_method(content)) != method:
        names = ", ".join(repr(str(key)) for key in list(content)[:4])
        known = "of no kind that VLAD knows" if looks is None else f"{looks}'s"
        raise ValueError(f"it is no file of {method}'s authors: with the names {names} it looks {known}")


def official_method(content: Mapping[str, Any]) -> str | None:
    """The method whose authors' files have such names; None where they are of no known kind."""
    if content.keys() & {"textual_learner", "visual_learner", "pq_learner"}:
        return "adaptclip"
    if any(str(key).startswith("clip_model.text_prompter.") for key in content):
        return "adaclip"
    if "anomaly_token" in content:
        return "visualad"
    if content.keys() & {"text_adapter", "image_adapter"}:
        return "aaclip"
    if "filo" in content:
        return "filo"
    if "MyModel" in content:
        return "bayes_pfl"
    table = content.get("state_dict")
    if isinstance(table, Mapping) and any(str(key).startswith("net.cross_fusion.") for key in table):
        return "sowa"
    if "Zero_try" in content:
        return "vcpclip"
    if "trainable_linearlayer" in content:
        return "april_gan"
    if "linear_layers" in content:
        return "clip_ad"
    if any(str(key).startswith("alignment.0.alignment_layer.") for key in content):
        return "metauas"
    if "prototype_token" in content:
        return "inp_former"
    if content.keys() & {"predictor.lin.weight", "predictor_state_dict"}:
        return "anomalyvfm"
    if not isinstance(learner := content.get("prompt_learner"), Mapping):
        return None
    several = learner.get("ctx_neg")
    if isinstance(several, Tensor) and several.ndim == 4 and several.shape[1] > 1:
        return "faprompt"
    unused = any(str(key).startswith("compound_prompt_projections.") for key in learner)
    return "anomalyclip" if unused else "crane"  # layers that AnomalyCLIP's code left in its files


def _shipped(name: str) -> Path | None:
    try:
        return resource(f"adapters/weights/{name}.safetensors")
    except FileNotFoundError:
        return None


def _from_official(
    kind: type[LearnedScorer], encoder: Encoder, file: Path, options: Mapping[str, Any]
) -> LearnedScorer:
    content = read_official(file)
    try:
        found, tensors = kind.official(content)
        kind.check_tower(content, encoder)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    wanted = f"it belongs to encoder {kind.official_encoder!r}"
    if kind.official_activation and encoder.activation != kind.official_activation:
        raise ValueError(
            f"{file} was learned with the activation {kind.official_activation}, and encoder {encoder.name!r} "
            f"computes {encoder.activation}: {wanted}"
        )
    try:
        scorer = kind(encoder, **{**found, **options}).load_learned(tensors)
    except ValueError as error:
        raise ValueError(
            f"{file} does not fit encoder {encoder.name!r} ({encoder.depth} blocks of width {encoder.width}, text "
            f"width {encoder.text_width}, joint width {encoder.embed_dim}): {wanted}. {error}"
        ) from error
    if (same := reads_the_same_words(content, encoder)) is False:
        raise ValueError(
            f"{file} was learned on another CLIP than encoder {encoder.name!r}, of the same shape but with other "
            f"embeddings of words: {wanted}"
        )
    if same is None and kind.official_encoder and encoder.name != kind.official_encoder:
        logger.warning("%s does not say which CLIP it was learned on; %s", file.name, wanted)
    return scorer
