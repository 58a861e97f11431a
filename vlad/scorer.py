"""What a method writes: a scorer turns pixels into scores and maps. Tensors only; users hold a `vlad.Detector`.

A method subclasses `Scorer` and writes `forward`. It may write `prototypes_of` (how words become states), `remember`
(what it keeps of normal pictures), `score_set` (where a whole set is scored as one), `colours` and `pixels`, and it
says what differs in five values. Reading pictures, batches, thresholds and files are not its business.
"""

import copy
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from vlad.encoders.encoder import Encoder
from vlad.encoders.families import may_be_named
from vlad.framing import Framing
from vlad.images.looks import look_of
from vlad.memory import Memory
from vlad.prompts import PromptPack, phrase_prototypes, prototypes, shipped

LARGEST_SIDE = 2048  # of the square that is encoded: beyond it a picture takes minutes; cut it in tiles


class Scores(NamedTuple):
    """Of B pictures; higher is more anomalous."""

    score: Tensor  # [B]
    map: Tensor | None = None  # [B, h, w], finished and covering the whole picture; None for image-level methods
    image: Tensor | None = None  # [B, D] what the phrases are compared with; None for methods without words
    rule: Callable[[Tensor], Tensor] | None = None  # values of the map that count [B, n] -> score [B], if it is that

    def peaks(self) -> Tensor:
        """[B] the largest value of each map; RuntimeError for an image-level method."""
        if self.map is None:
            raise RuntimeError("an image-level method has no maps")
        return self.map.amax((1, 2))


def check_towers(kind: "type[Scorer]", recorded: Mapping[str, Any], given: Mapping[str, Any], file: str) -> None:
    """ValueError where options that a file records name a further encoder that only its user may name.

    `given` are the user's own options.
    """
    for option in towers_of(kind):
        name = recorded.get(option)
        if name is not None and option not in given and not may_be_named(str(name)):
            raise ValueError(
                f"{file} asks for {option}={name!r}, a file, folder or repository, which is opened only if you name it "
                f"yourself: if you trust it, load it with {option}={name!r}"
            )


def check_choices(**options: tuple[Any, Collection[Any]]) -> None:
    """ValueError where an option, given with the values that it can have, has none of them."""
    for option, (value, known) in options.items():
        if value not in known:
            raise ValueError(f"{option} is {value!r}; expected one of {', '.join(map(str, known))}")


def check_counts(**options: Any) -> None:
    """ValueError where an option is no whole number, 1 or more."""
    for option, number in options.items():
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"{option} is {number!r}; expected a whole number, 1 or more")


def towers_of(kind: "type[Scorer]") -> list[str]:
    """Those of a method's keywords that take a further encoder, as their annotations say."""
    options = inspect.signature(kind).parameters.values()
    return [one.name for one in options if one.kind is one.KEYWORD_ONLY and "Encoder" in str(one.annotation)]


class Scorer(nn.Module):
    """One method round one (shared, frozen) encoder.

    Attributes:
        words: "required" where a name must be given; "fixed" where its words are the same for all things: a name is
            then only remembered, and the phrases compared with it; "none" for methods that look at pictures alone.
        needs_normals: True for methods that say nothing before they have seen normal pictures.
        map_range: smallest and largest map value; the overlay's colour range unless `colours` narrows it.
        region_level: where its maps are cut into regions when nothing was calibrated.
        paper_resolution: native side of a published encoder -> the side at which the paper uses it.
        framing: what is done with pictures before it sees them; see `frame`.
        closer: itself again for each closer look that the framing asks for, with that look's memories.
        options: its keywords by name, for files: a method adds its own.
        trained_on: data sets whose annotated pictures it has learned from.
        progress: told (stage, done, total) while a set is scored; total 0: unknown.
    """

    words: ClassVar[Literal["required", "fixed", "none"]] = "required"
    needs_normals: ClassVar[bool] = False
    map_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    region_level: ClassVar[float] = 0.5
    paper_resolution: ClassVar[Mapping[int, int]] = {}

    encoder: Encoder
    framing: Framing = Framing()
    closer: Sequence["Scorer"] = ()
    progress: Callable[[str, int, int], None] | None = None
    trained_on: tuple[str, ...] = ()
    prototypes: Tensor  # [2, D]; None until described
    phrase_embeddings: Tensor  # [phrases, D] unit; None until described

    def __init__(self, encoder: Encoder, *, resolution: int | None = None):
        super().__init__()
        if self.words != "none" and not encoder.reads_text:
            raise TypeError(
                f"{self.method} needs an encoder of words and pictures; {encoder.name!r} knows pictures alone"
            )
        patch = encoder.patch_size
        if resolution is not None and (
            not isinstance(resolution, int) or resolution % patch or not patch <= resolution <= LARGEST_SIDE
        ):
            raise ValueError(
                f"resolution is {resolution!r:.20}; expected a positive multiple of {encoder.name}'s patch size "
                f"{patch}, up to {LARGEST_SIDE}"
            )
        object.__setattr__(self, "encoder", encoder)  # not registered as a submodule: shared and frozen
        native = encoder.resolution
        self.resolution = self.paper_resolution.get(native, native) if resolution is None else resolution
        self.options: dict[str, Any] = {"resolution": self.resolution}
        self.pack: PromptPack | None = None
        self.name: str | None = None
        self.phrases: list[str] = []
        self.register_buffer("prototypes", None)
        self.register_buffer("phrase_embeddings", None)

    # What a method writes

    def forward(self, pixels: Tensor) -> Scores:
        """Of pixels [B, 3, S, S]; one picture's scores do not depend on its company."""
        raise NotImplementedError  # each method's own

    def prototypes_of(self, pack: PromptPack, name: str) -> Tensor:
        """[2, D] prototypes of normal and anomalous; papers differ in how sentences are averaged."""
        return prototypes(self.encoder, pack, name)

    def phrases_of(self, pack: PromptPack, name: str) -> tuple[list[str], Tensor]:
        """What a picture is said to be more or less like: phrases, and [phrases, D] their unit embeddings."""
        return phrase_prototypes(self.encoder, pack, name)

    def remember(self, batches: Iterable[Tensor]) -> None:
        """Adds the tokens of batches of normal pixels [B, 3, S, S] to its memories."""
        raise TypeError(f"{self.method} does not learn from normal pictures; patch_memory, for one, does")

    @property
    def score_set(self) -> Callable[[Iterable[Tensor]], Iterable[Scores]] | None:
        """How batches of pixels are scored as one set, batch for batch; None where each picture is scored alone."""
        return None

    def colours(self) -> tuple[float, float]:
        """`map_range`, or the part of it that tells normal from anomalous as the method stands now."""
        return self.map_range

    def pixels(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """[B, 3, S, S] of uint8 pictures [H, W, 3], for `forward`; some papers frame pictures in a way of their own."""
        return self.encoder.pixels(pictures, self.resolution)

    def as_seen(self, picture: np.ndarray) -> np.ndarray:
        """uint8, all that is needed of a picture [H, W, 3] to see it again; kept of normals, which others may join."""
        side = self.resolution
        return self.encoder.as_seen(picture, (side, side)) if self.framing == Framing() else picture

    def look(self, picture: np.ndarray) -> str:
        """`look_of` a picture [H, W, 3] or of what `as_seen` gave of it, which is the same."""
        seen = self.as_seen(picture)
        return look_of(seen if seen is not picture else self.framing.places.framed(picture).picture)

    # What it gets

    @property
    def method(self) -> str:
        """The method's name, which is its file's name."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def default_prompts(self) -> str:
        """Name of the prompt pack that the paper uses: the one that is named as the method, else WinCLIP's."""
        return self.method if self.method in shipped() else "winclip"

    @property
    def frames_itself(self) -> bool:
        """Whether `pixels` is its own: it then sees whole pictures in one way alone."""
        return type(self).pixels is not Scorer.pixels

    @property
    def references(self) -> list[str]:
        """Names of the normal pictures that it remembers."""
        return next((list(memory.ids) for memory in self.memories().values()), [])

    def memories(self) -> dict[str, Memory]:
        """Every memory it has, by its name among the modules."""
        return {name: module for name, module in self.named_modules() if isinstance(module, Memory)}

    def report(self, stage: str, done: int, total: int) -> None:
        """Tells whoever listens how far a long stage is; total 0: unknown."""
        if self.progress is not None:
            self.progress(stage, done, total)

    def frame(self, framing: Framing) -> None:
        """Takes another framing; what closer looks have learnt is forgotten.

        Raises:
            TypeError, ValueError: the method cannot look so.
        """
        self._check_framing(framing)
        self.framing, self.closer = framing, ()
        self.closer = [self.copied() for _ in framing.closer(self.encoder.patch_size)]
        for memory in (memory for one in self.closer for memory in one.memories().values()):
            memory.clear()
            memory.in_parts = True

    def _check_framing(self, framing: Framing) -> None:
        looks = framing.closer(self.encoder.patch_size)
        if self.score_set is not None and (looks or framing.keep_aspect):
            raise TypeError(f"{self.method} scores a set as one, each picture as a whole; take a larger resolution")
        if self.frames_itself and (framing.keep_aspect or framing.looks != (1,)):
            raise TypeError(f"{self.method} frames whole pictures in a way of its own; tiles can be had of it")
        if framing.keep_aspect and any(memory.per_picture for memory in self.memories().values()):
            raise TypeError(f"{self.method} compares pictures of one shape, which a square gives them all")
        if (side := framing.looks[-1] * self.resolution) > LARGEST_SIDE:
            raise ValueError(f"looks is {framing.looks}, the last of which sees {side} px; {LARGEST_SIDE} is the most")

    def describe(self, pack: PromptPack, name: str) -> None:
        """Takes these words, filled with the name."""
        self.phrases, self.phrase_embeddings = self.phrases_of(pack, name)
        if self.words == "required":
            self.prototypes = self.prototypes_of(pack, name)
        self.pack, self.name = pack, name
        for one in self.closer:
            one.describe(pack, name)

    def copied(self) -> Self:
        """Another one with the same tensors, which are never changed in place; what it learns next is its own."""
        scorers: list[Scorer] = [self, *self.closer]
        shared: list[Any] = [self.encoder]
        for one in scorers:
            shared += [one.progress, *one.parameters(), *one.buffers()]
        return copy.deepcopy(self, {id(one): one for one in shared})

    def tensors(self) -> dict[str, Tensor]:
        """What a detector's file holds of it: its own, and of closer looks their memories."""
        found = dict(self.state_dict())
        for number, one in enumerate(self.closer):
            for name, memory in one.memories().items():
                parts = memory.state_dict().items()
                found |= {f"closer.{number}.{name}.{part}": value for part, value in parts}
        return found

    def restore(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Takes what a detector's file holds of it: words, memories and learned tensors.

        Raises:
            ValueError: they do not fit the method, its encoder or each other.
        """
        framing = Framing.from_dict(header["framing"])
        self._check_framing(framing)
        own = {key: value for key, value in tensors.items() if not key.startswith("closer.")}
        left = self._restore_learned(self._restore_memories(own, header["references"]))
        for key, value in left.items():
            if key not in self._buffers or value.ndim != 2 or not torch.isfinite(value).all():
                raise ValueError(f"it holds a tensor {key!r} {list(value.shape)} that {self.method} does not have")
            if value.shape[1] != self.encoder.embed_dim:
                width = self.encoder.embed_dim
                raise ValueError(f"its {key} are {value.shape[1]} wide and do not fit the encoder, {width} wide")
            self._buffers[key] = value.to(self.encoder.device)
        rows = 0 if self.phrase_embeddings is None else len(self.phrase_embeddings)
        if rows != len(header["phrases"]) or (self.prototypes is not None and len(self.prototypes) != 2):
            raise ValueError("its prototypes or phrases do not fit each other and the encoder")
        self.name, self.phrases = header["name"], list(header["phrases"])
        self.trained_on = tuple(header["trained_on"])
        if header["prompts"]:
            self.pack = replace(PromptPack.load(header["prompts"]), name=header["prompts_name"])
        self.frame(framing)
        own = {key: value for key, value in tensors.items() if key.startswith("closer.")}
        for number, one in enumerate(self.closer):
            start = f"closer.{number}."
            parts = {key.removeprefix(start): own.pop(key) for key in list(own) if key.startswith(start)}
            if one._restore_memories(parts, header["references"]) or one.references != self.references:
                raise ValueError(f"the memories of its closer look {number + 1} do not fit those of the first")
        if own:
            raise ValueError(f"it holds {next(iter(own))!r} of a look that it does not have")

    def _restore_memories(self, tensors: dict[str, Tensor], references: Sequence[str]) -> dict[str, Tensor]:
        """Takes from a file's tensors those of its memories; returns the others."""
        memories = self.memories()
        for name, memory in memories.items():
            parts = {key: tensors.pop(f"{name}.{key}") for key in memory.parts if f"{name}.{key}" in tensors}
            if parts:
                memory.restore(parts, references, self.encoder.device)
        if len({bool(memory.ids) for memory in memories.values()}) > 1:
            raise ValueError("some of its memories are missing")
        return tensors

    def _restore_learned(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Takes from a file's tensors those that were learned; returns the others."""
        return tensors
