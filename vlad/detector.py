"""What every method shares: words in, pictures in, predictions out, one small file to keep it.

A method subclasses `Detector` and writes `forward`; reading pictures, batching, words, thresholds and files are here.
"""

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad import detector_file
from vlad.encoders.encoder import Encoder
from vlad.fitting import learn
from vlad.images import ImageError, read
from vlad.memory import Memory
from vlad.prediction import Prediction
from vlad.prompts import PromptPack, check_name, phrase_prototypes, prototypes
from vlad.thresholds import Calibration, p_value
from vlad.version import __version__

logger = logging.getLogger(__name__)


class Detector(nn.Module):
    """One method looking for one kind of thing with one (shared) encoder. Build it with `vlad.load`.

    A method's class states what differs in these, and writes `forward`; one that learns from normal pictures has a
    `Memory` or several as attributes and writes `_remember`.

    Attributes:
        needs_text: False for methods that do without a name.
        takes_text: True for those of them whose words are the same for all things: a name is then only remembered, and
            `Prediction.phrases` filled; None says the same as needs_text.
        needs_normals: True for methods that say nothing before `fit`.
        default_prompts: name of the prompt pack the paper uses.
        scale: (low, high), what its maps can hold; drawn cold and hot unless `_range` says a part of it.
        region_level: where its maps are cut into regions when nothing was calibrated.
        paper_resolution: native side of a published encoder -> the side at which the paper uses it.
    """

    needs_text: ClassVar[bool] = True
    takes_text: ClassVar[bool | None] = None
    needs_normals: ClassVar[bool] = False
    default_prompts: ClassVar[str] = "winclip"
    scale: ClassVar[tuple[float, float]] = (0.0, 1.0)
    region_level: ClassVar[float] = 0.5
    paper_resolution: ClassVar[Mapping[int, int]] = {}

    progress: Callable[[str, int, int], None] | None = None  # told (stage, done, in all or 0) before a set's results

    encoder: Encoder
    resolution: int
    trained_on: tuple[str, ...] = ()  # data sets whose annotated pictures it has learned from
    prototypes: Tensor  # None until described
    phrase_embeddings: Tensor

    def __init__(self, encoder: Encoder, *, resolution: int | None = None):
        super().__init__()
        if self.reads_words() and not getattr(encoder, "reads_text", True):
            raise TypeError(
                f"{self.method} needs an encoder of words and pictures; {encoder.name!r} knows pictures alone"
            )
        if resolution is not None and (
            not isinstance(resolution, int) or resolution < encoder.patch_size or resolution % encoder.patch_size
        ):
            raise ValueError(
                f"resolution is {resolution!r}; expected a positive multiple of {encoder.name}'s patch size "
                f"{encoder.patch_size}"
            )
        # past nn.Module's books: the encoder is shared and frozen, never moved, trained or saved with one detector
        object.__setattr__(self, "encoder", encoder)
        native = encoder.resolution
        self.resolution = self.paper_resolution.get(native, native) if resolution is None else resolution
        self.options: dict[str, Any] = {"resolution": self.resolution}
        self.pack: PromptPack | None = None
        self.name: str | None = None
        self.phrases: list[str] = []
        self.threshold: float | None = None
        self.map_threshold: float | None = None
        self.calibration: Calibration | None = None  # what the threshold rests on; None until fitted
        self.map_calibration: Calibration | None = None  # the same of the largest value of the map
        self.register_buffer("prototypes", None)  # [2, D]
        self.register_buffer("phrase_embeddings", None)  # [phrases, D] unit

    @property
    def transductive(self) -> bool:
        """True for methods that, as they stand, score a set of pictures against each other; they write `score`."""
        return False

    @classmethod
    def reads_words(cls) -> bool:
        """Whether it works with words at all, and so needs an encoder of words and pictures."""
        return cls.needs_text if cls.takes_text is None else cls.takes_text

    @property
    def method(self) -> str:
        """The method's name, which is its file's name."""
        return type(self).__module__.rpartition(".")[2]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, encoder={self.encoder.name!r}, threshold={self.threshold})"

    # Words

    def describe(self, name: str, prompts: Any = None) -> Self:
        """Changes what the words look for; the encoder stays. Returns self.

        Args:
            name: what the pictures show, in plain words ("metal bolt"); goes into the prompts exactly as given.
            prompts: a prompt pack, its name, its .toml file, or a dict of its lists; None keeps the present one.

        Raises:
            ValueError, TypeError, FileNotFoundError: an empty name or a wrong pack; the detector is then unchanged.
        """
        if not self.reads_words():
            raise TypeError(f"{self.method} looks at pictures alone and takes no name")
        check_name(name)
        pack = PromptPack.load(prompts) if prompts is not None else self.pack or PromptPack.load(self.default_prompts)
        if self.needs_text and self.calibration and (pack, name) != (self.pack, self.name):
            logger.warning("other words give other scores: the thresholds from %r are dropped, fit again", self.name)
            self._calibrate(None, None)
        if self.needs_text:
            self.prototypes = self._prototypes(pack, name)
        self.phrases, self.phrase_embeddings = phrase_prototypes(self.encoder, pack, name)
        self.pack, self.name = pack, name
        return self

    def _prototypes(self, pack: PromptPack, name: str) -> Tensor:
        """[2, D] of the two states; papers differ in how sentences are averaged."""
        return prototypes(self.encoder, pack, name)

    # Normal pictures

    @property
    def references(self) -> list[str]:
        """Names of the normal pictures it has learnt from; empty before `fit`."""
        return next((list(memory.ids) for memory in self._memories().values()), [])

    def fit(self, normals: Any, *, max_false_positive_rate: float | None = None, anomalous: Any = None) -> Self:
        """Learns from a few normal pictures, in place of any earlier ones, and sets the thresholds. Returns self.

        Every normal is scored against the others alone; `vlad.thresholds.ladder` makes the thresholds of these scores.

        Args:
            normals: what `predict` takes, or a folder. A picture given twice counts once.
            max_false_positive_rate: the share of normal pictures that may be called anomalous; None takes what the
                number of normals allows (up to 4: no threshold, with a warning that says how many it would take).
            anomalous: pictures known to be so, as `normals` may be: the threshold of the score is then the one of the
                best F1 between the two, which promises no rate.

        Raises:
            ValueError: no picture, a rate outside (0, 1), or one that so few normals cannot promise; a rate together
                with anomalous pictures.
            vlad.ImageError: a picture cannot be read.
            RuntimeError: a text method has no name yet.
            TypeError: the method does not learn from normal pictures.
        """
        if not self._memories():
            raise TypeError(f"{self.method} does not learn from normal pictures; patch_memory, for one, does")
        self._require_words()
        self._calibrate(*learn(self, normals, max_false_positive_rate, anomalous))
        if self.threshold is None and self.calibration is not None:
            warnings.warn(f"no threshold from {len(self.references)} normals: {self.calibration.note}", stacklevel=2)
        return self

    def _remember(self, batches: Iterable[Tensor]) -> None:
        """Adds the tokens of batches of normal pixels [B, 3, S, S] to the method's memories."""
        raise NotImplementedError  # each method's own

    def _memories(self) -> dict[str, Memory]:
        return {name: module for name, module in self.named_modules() if isinstance(module, Memory)}

    def _calibrate(self, score: Calibration | None, amap: Calibration | None) -> None:
        if self.transductive:  # a score within a set says nothing of another set
            score = None
        self.calibration, self.map_calibration = score, amap
        self.threshold = None if score is None else score.threshold
        self.map_threshold = None if amap is None else amap.threshold

    # Pictures

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(score [B], finished map [B, h, w] or None, image embedding [B, D] or None) of pixels [B, 3, S, S].

        The embedding is what `Prediction.phrases` compares with the words; a method without words returns None.
        """
        raise NotImplementedError  # each method's own

    def score(self, batches: Iterable[Tensor]) -> Iterable[tuple[Tensor, Tensor | None, Tensor | None]]:
        """What `forward` gives, of a whole set of pictures in batches of pixels. Transductive methods write it."""
        return map(self.forward, batches)

    def predict(self, images: Any, *, batch_size: int = 8) -> Any:
        """One picture in, one Prediction out; a sequence in, a list out in the same order.

        Pictures are paths, PIL images, arrays [H, W(, 3|4)] or tensors [3, H, W]; see `vlad.images.read`.

        Raises:
            vlad.ImageError: a picture cannot be read; the message names it.
            RuntimeError: a text method has no name yet, or one that needs normal pictures has none.
        """
        if isinstance(images, bytes | Mapping) or hasattr(images, "readline"):
            raise TypeError(f"a picture is a path, PIL picture, array or tensor; got {type(images).__name__}")
        if isinstance(images, str | os.PathLike) or not (
            isinstance(images, Iterable) and getattr(images, "ndim", 4) > 3
        ):
            images, alone = [images], True
        else:
            alone = False
        if self.transductive:
            predictions = list(self.together(list(images), batch_size=batch_size))
        else:
            predictions = list(self.stream(images, batch_size=batch_size))
        return predictions[0] if alone else predictions

    def stream(self, images: Iterable[Any], *, batch_size: int = 8, on_error: str = "raise") -> Iterator[Any]:
        """Predictions of any iterable of pictures, in order, in constant memory; the next batch is read meanwhile.

        Args:
            images: what `predict` takes, as many as you like.
            batch_size: pictures per pass.
            on_error: "raise" at a picture that cannot be read, or "yield" the vlad.ImageError in its place and go on.

        Raises:
            ValueError: batch_size or on_error is wrong.
            RuntimeError: a text method has no name yet, or one that needs normal pictures has none.
            TypeError: the method scores a set of pictures against each other.
        """
        _check_how(batch_size, on_error)
        if isinstance(images, str | bytes | os.PathLike | Mapping):
            raise TypeError(f"stream takes several pictures and got {images!r:.80}; predict scores one")
        if self.transductive:
            raise TypeError(f"{self.method} scores a set of pictures against each other: give predict the whole set")
        self._require_words()
        self._require_normals()
        return self._stream(images, batch_size, on_error)

    def _require_words(self) -> None:
        if self.needs_text and self.prototypes is None:
            raise RuntimeError(
                f"{self.method} does not know what to look for: call describe('metal bolt') first, "
                "or give vlad.load a name"
            )

    def _require_normals(self) -> None:
        if self.needs_normals and not self.references:
            raise RuntimeError(f"{self.method} has no memory: call fit(normals) with a few normal pictures first")

    def together(self, images: Sequence[Any], *, batch_size: int = 8, on_error: str = "raise") -> Iterator[Any]:
        """What `stream` gives, of a set that is scored as one: all are read before the first prediction comes."""
        _check_how(batch_size, on_error)
        self._require_words()
        self._require_normals()
        return self._together(images, batch_size, on_error)

    def _together(self, images: Sequence[Any], batch_size: int, on_error: str) -> Iterator[Any]:
        sizes: dict[int, tuple[int, int]] = {}
        errors: dict[int, ImageError] = {}

        def batches() -> Iterator[Tensor]:
            for start in range(0, len(images), batch_size):
                pictures = []
                for number, (_, found) in enumerate(_read_all(list(images[start : start + batch_size])), start):
                    if not isinstance(found, ImageError):
                        pictures.append(found)
                        sizes[number] = found.shape[0], found.shape[1]
                    elif on_error == "raise":
                        raise found
                    else:
                        errors[number] = found
                if pictures:
                    yield self.encoder.pixels(pictures, self.resolution)

        rows = self._rows_of(iter(self.score(batches())))
        rows = chain(list(islice(rows, 1)), rows)  # with the first of them all pictures are read
        for number, image in enumerate(images):
            yield errors.get(number) or self._prediction(image, sizes[number], next(rows), None)

    def _rows_of(self, results: Iterator[Any]) -> Iterator[Any]:
        while True:
            with torch.no_grad():  # not across a yield, that would switch gradients off for the caller
                result = next(results, None)
                found = [] if result is None else self._rows(*result)
            if result is None:
                return
            yield from found

    def _stream(self, images: Iterable[Any], batch_size: int, on_error: str) -> Iterator[Any]:
        pending = iter(images)
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(_read_all, list(islice(pending, batch_size)))
            while batch := ahead.result():
                ahead = reader.submit(_read_all, list(islice(pending, batch_size)))
                for result in self._score(batch):
                    if isinstance(result, ImageError) and on_error == "raise":
                        raise result
                    yield result

    def _score(self, batch: Sequence[tuple[Any, np.ndarray | ImageError]]) -> Iterator[Prediction | ImageError]:
        good = [picture for _, picture in batch if not isinstance(picture, ImageError)]
        results = iter(self._forward(good)) if good else iter(())
        for image, picture in batch:
            if isinstance(picture, ImageError):
                yield picture
                continue
            yield self._prediction(image, (picture.shape[0], picture.shape[1]), next(results), picture)

    def _prediction(
        self, image: Any, size: tuple[int, int], row: tuple[float, np.ndarray | None, dict[str, float]], picture: Any
    ) -> Prediction:
        score, amap, cosines = row
        is_path = isinstance(image, str | os.PathLike)
        kept = None if is_path else read(image) if picture is None else picture
        made = self.calibration
        own = made is not None and made.threshold == self.threshold  # not one that was set by hand
        return Prediction(
            score=score,
            map=amap,
            size=size,
            threshold=self.threshold,
            map_threshold=self.map_threshold,
            name=self.name,
            source=os.fspath(image) if is_path else None,
            phrases=cosines,
            p_value=None if made is None else p_value(score, made.scores),
            unsure=made.unsure if made is not None and own else None,
            scale=self._drawn(),
            region_level=self._region_level(),
            picture=kept,
        )

    def _drawn(self) -> tuple[float, float]:
        """The method's own colour range; once fitted, what the normals' maps reached is half way to hot at most."""
        peaks = self.map_calibration.scores if self.map_calibration else ()
        low, high = self._range()
        return (low, min(high, low + 2 * (peaks[-1] - low))) if peaks and peaks[-1] > low else (low, high)

    def _range(self) -> tuple[float, float]:
        """`scale`, or the part of it that tells normal from anomalous as the detector stands."""
        return self.scale

    def _region_level(self) -> float:
        """The method's own level; once fitted, just above all that the normals' maps reached."""
        peaks = self.map_calibration.scores if self.map_calibration else ()
        return math.nextafter(peaks[-1], math.inf) if peaks else self.region_level

    @torch.no_grad()
    def _forward(self, pictures: Sequence[np.ndarray]) -> list[tuple[float, np.ndarray | None, dict[str, float]]]:
        return self._rows(*self.forward(self.encoder.pixels(pictures, self.resolution)))

    def _rows(
        self, scores: Tensor, maps: Tensor | None, images: Tensor | None
    ) -> list[tuple[float, np.ndarray | None, dict[str, float]]]:
        """Score, map and cosines with the phrases of each picture."""
        cosines: list[dict[str, float]] = [{}] * len(scores)
        if images is not None and self.phrase_embeddings is not None:
            rows = F.normalize(images.float(), dim=-1) @ self.phrase_embeddings.T  # [B, phrases]
            cosines = [dict(zip(self.phrases, row, strict=True)) for row in rows.tolist()]
        arrays = [None] * len(scores) if maps is None else [one.copy() for one in maps.float().cpu().numpy()]
        return list(zip(scores.tolist(), arrays, cosines, strict=True))

    # Files

    def save(self, path: str | os.PathLike[str]) -> None:
        """One .safetensors file: prototypes and what was learnt as tensors, all settings as JSON in its header.

        The encoder is named in it with its digest, not contained. Written beside and renamed, so it is whole or absent.
        """
        header = {
            "vlad": __version__,
            "method": self.method,
            "encoder": self.encoder.name,
            "encoder_digest": self.encoder.digest,
            "dtype": str(self.encoder.dtype).removeprefix("torch."),
            "options": self.options,
            "name": self.name,
            "prompts": self.pack.to_dict() if self.pack else None,
            "prompts_name": self.pack.name if self.pack else None,
            "phrases": self.phrases,
            "threshold": self.threshold,
            "map_threshold": self.map_threshold,
            "references": self.references,
            "trained_on": list(self.trained_on),
            "calibration": self.calibration and self.calibration.to_dict(),
            "map_calibration": self.map_calibration and self.map_calibration.to_dict(),
        }
        detector_file.write(Path(path), header, self.state_dict())

    def _restore(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Takes what `save` wrote; ValueError where it does not fit."""
        memories = self._memories()
        left = dict(tensors)
        for name, memory in memories.items():
            parts = {part: left.pop(key) for part in ("rows", "owners") if (key := f"{name}.{part}") in left}
            if parts:
                memory.restore(parts, header["references"], self.encoder.device)
        if len({bool(memory.ids) for memory in memories.values()}) > 1:
            raise ValueError("some of its memories are missing")
        left = self._take(left)
        for key, value in left.items():
            if key not in self._buffers or value.ndim != 2 or not torch.isfinite(value).all():
                raise ValueError(f"it holds a tensor {key!r} {list(value.shape)} that {self.method} does not have")
            self._buffers[key] = value.to(self.encoder.device)
        widths = {len(value) for key, value in left.items() if key == "phrase_embeddings"} | {len(header["phrases"])}
        if (self.prototypes is not None and self.prototypes.shape != (2, self.encoder.embed_dim)) or len(widths) > 1:
            raise ValueError("its prototypes or phrases do not fit each other and the encoder")
        self.name, self.phrases = header["name"], header["phrases"]
        self.trained_on = tuple(header["trained_on"])
        self.threshold, self.map_threshold = header["threshold"], header["map_threshold"]
        made = [header[key] and Calibration.from_dict(header[key]) for key in ("calibration", "map_calibration")]
        self.calibration, self.map_calibration = made
        if header["prompts"]:
            self.pack = replace(PromptPack.load(header["prompts"]), name=header["prompts_name"])

    def _take(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Takes from a file's tensors those that were learned; returns the others."""
        return tensors


def _check_how(batch_size: int, on_error: str) -> None:
    if on_error not in ("raise", "yield"):
        raise ValueError(f"on_error is {on_error!r}; expected 'raise' or 'yield'")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}; expected a whole number, 1 or more")


def _read_all(images: list[Any]) -> list[tuple[Any, np.ndarray | ImageError]]:
    return [(image, _read_or_error(image)) for image in images]


def _read_or_error(image: Any) -> np.ndarray | ImageError:
    try:
        return read(image)
    except ImageError as error:
        return error
