"""What users hold: words in, pictures in, predictions out, one small file to keep it.

A `Detector` has a scorer, the method, and the thresholds that belong to it. It reads, checks, learns and saves; the
scorer computes.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, overload

from torch import Tensor

from vlad import detector_file
from vlad.encoders.dtypes import Placed, arithmetic
from vlad.encoders.encoder import Encoder
from vlad.fitting import as_list, learn
from vlad.framing import Framing
from vlad.framing.places import places
from vlad.images import ImageError, Reader, Remarks, is_bytes, repeats
from vlad.memory.normals import PREFIX, NormalPictures
from vlad.predicting import Judge, Reading, predictions
from vlad.prediction import Prediction
from vlad.prompts import PromptPack, check_name
from vlad.scorer import Scorer
from vlad.thresholds import Calibration, checked_threshold
from vlad.version import __version__

if TYPE_CHECKING:
    from vlad.export import ExportReport

logger = logging.getLogger(__name__)


class Detector(Placed):
    """One method looking for one kind of thing with one (shared) encoder. Build it with `vlad.load`.

    `describe`, `fit` and the thresholds exchange what it is as a whole: a `predict` that runs in another thread
    meanwhile answers as the old or as the new one, never as half of each, and a call that fails changes nothing.
    """

    def __init__(self, scorer: Scorer, reader: Reader | None = None):
        self._judge = Judge(scorer)
        self.reader = reader or Reader()  # how its pictures are read

    # What it is

    @property
    def scorer(self) -> Scorer:
        """The method itself, which computes; another one after `describe` and `fit`."""
        return self._judge.scorer

    @property
    def judge(self) -> Judge:
        """The scorer and the thresholds as they stand now, never changed afterwards."""
        return self._judge

    @property
    def encoder(self) -> Encoder:
        """The frozen tower, shared between detectors."""
        return self.scorer.encoder

    @property
    def method(self) -> str:
        """The method's name."""
        return self.scorer.method

    @property
    def name(self) -> str | None:
        """What the pictures show, in words."""
        return self.scorer.name

    @property
    def pack(self) -> PromptPack | None:
        """The prompt pack in use; None where there are no words."""
        return self.scorer.pack

    @property
    def options(self) -> dict[str, Any]:
        """The method's keywords as they are."""
        return self.scorer.options

    @property
    def resolution(self) -> int:
        """Side of the square that pictures are resized to, in pixels."""
        return self.scorer.resolution

    @property
    def framing(self) -> Framing:
        """What is done with every picture before it is seen."""
        return self.scorer.framing

    @property
    def ignore(self) -> Any:
        """Places that do not count: boxes and polygons as lists of numbers, a mask [h, w], or None.

        May be set, to what `vlad.load` takes. What was learnt of these places before then stays in memory and
        thresholds, which only makes them too forgiving there; `fit` makes them anew.
        """
        kept = self.framing.places
        return kept.marked() if kept.mask else [list(shape) for shape in kept.shapes] or None

    @ignore.setter
    def ignore(self, value: Any) -> None:
        kept = replace(places(None, value), roi=self.framing.places.roi)
        normals = self._judge.normals
        if normals is not None and self.framing == Framing():  # small pictures, in which places would lie elsewhere
            normals = normals.without("it ignores other places than when it was fitted")
        scorer = self.scorer.copied()
        scorer.framing = replace(scorer.framing, places=kept)
        self._judge = replace(self._judge, scorer=scorer, normals=normals)

    @property
    def references(self) -> list[str]:
        """Names of the normal pictures it has learnt from; empty before `fit`."""
        return self.scorer.references

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Data sets whose annotated pictures the method has learned from."""
        return self.scorer.trained_on

    @property
    def transductive(self) -> bool:
        """True where, as it stands, it scores a set of pictures against each other."""
        return self.scorer.score_set is not None

    @property
    def calibration(self) -> Calibration | None:
        """What the threshold rests on; None until fitted."""
        return self._judge.calibration

    @property
    def map_calibration(self) -> Calibration | None:
        """The same of the largest value of the map."""
        return self._judge.map_calibration

    @property
    def threshold(self) -> float | None:
        """Scores from here on are anomalous; may be set by hand. ValueError, TypeError: no finite number."""
        return self._judge.threshold

    @threshold.setter
    def threshold(self, value: float | None) -> None:
        self._judge = replace(self._judge, threshold=checked_threshold("threshold", value))

    @property
    def map_threshold(self) -> float | None:
        """Map values from here on are regions; may be set by hand. ValueError, TypeError: no finite number."""
        return self._judge.map_threshold

    @map_threshold.setter
    def map_threshold(self, value: float | None) -> None:
        self._judge = replace(self._judge, map_threshold=checked_threshold("map_threshold", value))

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Raises TypeError, with a word for those who take it for a module of torch's."""
        raise TypeError("a detector is not called; predict(picture) scores pictures, and scorer(pixels) ready tensors")

    def __reduce__(self) -> tuple[Any, ...]:
        """As what `save` writes, and the encoder by its name: for workers that have the same weights."""
        return _unpickled, (type(self.scorer), self.encoder, *self._content(self._judge.normals))

    def __repr__(self) -> str:
        kind = type(self.scorer).__name__
        return f"Detector({kind}, {self.name!r}, encoder={self.encoder.name!r}, threshold={self.threshold})"

    def copy(self) -> "Detector":
        """An independent detector round the same encoder."""
        other = Detector(self.scorer.copied(), self.reader)
        other._judge = replace(self._judge, scorer=other.scorer)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> "Detector":
        return self.copy()

    # Words

    def describe(self, name: str, prompts: Any = None) -> Self:
        """Changes what the words look for; the encoder stays. Returns self.

        Args:
            name: what the pictures show, in plain words ("metal bolt"); goes into the prompts exactly as given.
            prompts: a prompt pack, its name, its .toml file, or a dict of its lists; None keeps the present one.

        Raises:
            ValueError, TypeError, FileNotFoundError: an empty name, one longer than the encoder reads, or a wrong pack;
                the detector is then unchanged.
        """
        now = self._judge
        if now.scorer.words == "none":
            raise TypeError(f"{self.method} looks at pictures alone and takes no name")
        check_name(name)
        pack = PromptPack.load(prompts) if prompts is not None else self.pack or self._default_pack()
        scorer = now.scorer.copied()
        scorer.describe(pack, name)
        if scorer.words == "required" and now.calibration and (pack, name) != (self.pack, self.name):
            logger.warning("other words give other scores: the thresholds from %r are dropped, fit again", self.name)
            now = Judge(scorer, normals=now.normals)
        self._judge = replace(now, scorer=scorer)
        return self

    def take_pack(self, prompts: Any) -> None:
        """Keeps a prompt pack for the `describe` to come."""
        self.scorer.pack = PromptPack.load(prompts)

    def _default_pack(self) -> PromptPack:
        return PromptPack.load(self.scorer.default_prompts)

    # Normal pictures

    def fit(
        self,
        normals: Any,
        *,
        max_false_positive_rate: float | None = None,
        anomalous: Any = None,
        review: bool = False,
    ) -> Self:
        """Learns from a few normal pictures, in place of any earlier ones, and sets the thresholds. Returns self.

        Every normal is scored against the others alone; `vlad.thresholds.ladder` makes the thresholds of these scores.

        Args:
            normals: what `predict` takes, or a folder. A picture given twice counts once.
            max_false_positive_rate: the share of normal pictures that may be called anomalous; None takes what the
                number of normals allows (up to 4: no threshold, with a warning that says how many it would take).
            anomalous: pictures known to be so, as `normals` may be: the threshold of the score is then the one of the
                best F1 between the two, which promises no rate.
            review: with 5 to 18 normals, leaves scores a little above all of them to a person ("unsure").

        Raises:
            ValueError: no picture, a rate outside (0, 1), or one that so few normals cannot promise; a rate together
                with anomalous pictures.
            vlad.ImageError: a picture cannot be read.
            RuntimeError: a text method has no name yet.
            TypeError: the method does not learn from normal pictures.
        """
        scorer = self._learner()
        made = learn(scorer, normals, max_false_positive_rate, anomalous, review, reader=self.reader)
        return self._exchanged(made)

    def add(self, normals: Any) -> Self:
        """Learns from further normal pictures, as one `fit` with the earlier ones and these would. Returns self.

        Thresholds come from all of them, with the rate and the review that `fit` was given; words may be others.

        Args:
            normals: as for `fit`, which it is as long as nothing was learnt. What is there already counts once.

        Raises:
            RuntimeError: the earlier pictures are not at hand (`save(pictures=False)`, more than 64 MiB of them, a file
                of an older VLAD), or anomalous pictures took part in the threshold.
            ValueError, vlad.ImageError, TypeError: as `fit`; the detector is then unchanged.
        """
        before = self._judge.normals
        if before is None:
            return self.fit(normals)
        if before.missing:
            raise RuntimeError(
                f"nothing can be added to this detector, as {before.missing}: fit it anew with all of them"
            )
        made = learn(self._learner(), normals, before.rate, None, before.review, reader=self.reader, before=before)
        return self if made.scorer.references == self.references and self.calibration else self._exchanged(made)

    def decide_by(self, score: Calibration, amap: Calibration | None) -> Self:
        """Takes thresholds from calibrations that were made of it elsewhere, such as of whole clips. Returns self.

        No further normals can be added then: they would be compared in another way.
        """
        normals = self._judge.normals
        kept = normals and normals.without("its thresholds come from clips, not from pictures")
        cuts = [None if one is None else one.threshold for one in (score, amap)]
        self._judge = Judge(self._judge.scorer, score, amap, cuts[0], cuts[1], kept)
        return self

    def _learner(self) -> Scorer:
        """A copy of the scorer that can learn; the detector goes on with its own until then."""
        scorer = self.scorer.copied()
        if not scorer.memories():
            raise TypeError(f"{self.method} {_without_fit(scorer)}")
        _require_words(scorer)
        return scorer

    def _exchanged(self, judge: Judge) -> Self:
        self._judge = judge
        if judge.threshold is None and judge.calibration is not None:
            count = len(judge.scorer.references)
            warnings.warn(f"no threshold from {count} normals: {judge.calibration.note}", stacklevel=3)
        return self

    # Pictures

    @overload
    def predict(self, images: str | os.PathLike[str], *, batch_size: int = 8) -> Prediction: ...

    @overload
    def predict(self, images: list[Any] | tuple[Any, ...], *, batch_size: int = 8) -> list[Prediction]: ...

    @overload
    def predict(self, images: Any, *, batch_size: int = 8) -> Any: ...

    def predict(self, images: Any, *, batch_size: int = 8) -> Any:
        """One picture in, one Prediction out; a sequence in, a list out in the same order.

        Pictures are paths, bytes or opened files, PIL images, arrays [H, W(, 3|4)] or tensors [3, H, W]; see
        `vlad.images.read`. A tensor [B, 3, H, W] is a sequence; with pages="all" a file is one, too. A method that
        scores pictures against each other takes the given ones as the set.

        Raises:
            vlad.ImageError: a picture cannot be read; the message names it.
            RuntimeError: a text method has no name yet, or one that needs normal pictures has none.
        """
        if isinstance(images, Mapping):
            raise TypeError(f"a picture is a path, bytes, PIL picture, array or tensor; got {type(images).__name__}")
        alone = isinstance(images, str | os.PathLike) or is_bytes(images)
        alone = alone or not (isinstance(images, Iterable) and getattr(images, "ndim", 4) > 3)
        judge = self._ready(batch_size)
        given = [images] if alone else images
        if isinstance(given, list | tuple):
            Remarks().repeated(repeats(given))
        said = predictions(judge, given, reader=self.reader, batch_size=batch_size, on_error="raise")
        found = [prediction for _, prediction in said]
        return found[0] if alone and self.reader.pages == "first" else found

    @overload
    def stream(
        self, images: Iterable[Any], *, batch_size: int = 8, on_error: Literal["raise"] = "raise", prefetch: bool = True
    ) -> Iterator[Prediction]: ...

    @overload
    def stream(
        self, images: Iterable[Any], *, batch_size: int = 8, on_error: str, prefetch: bool = True
    ) -> Iterator[Prediction | ImageError]: ...

    def stream(
        self, images: Iterable[Any], *, batch_size: int = 8, on_error: str = "raise", prefetch: bool = True
    ) -> Iterator[Any]:
        """Predictions of any iterable of pictures, in order, in constant memory.

        Args:
            images: what `predict` takes, as many as you like, or batches [B, 3, H, W]; each is read when it is pulled.
            batch_size: pictures read and computed together; changes no result, as a pass never has more than 8.
            on_error: "raise" at a picture that cannot be read, or "yield" the vlad.ImageError in its place and go on.
            prefetch: read the next batch while the present one is computed; False gives each result before the next
                picture is asked for, which a camera wants.

        Raises:
            ValueError: batch_size or on_error is wrong.
            RuntimeError: a text method has no name yet, or one that needs normal pictures has none.
            TypeError: the method scores a set of pictures against each other.
        """
        if on_error not in ("raise", "yield"):
            raise ValueError(f"on_error is {on_error!r}; expected 'raise' or 'yield'")
        if isinstance(images, str | os.PathLike | Mapping) or is_bytes(images):
            raise TypeError(f"stream takes several pictures and got {images!r:.80}; predict scores one")
        if self.transductive:
            raise TypeError(f"{self.method} scores a set of pictures against each other: give predict the whole set")
        judge = self._ready(batch_size)
        size = batch_size if prefetch else 1
        found = predictions(judge, images, reader=self.reader, batch_size=size, on_error=on_error, prefetch=prefetch)
        return (said for _, said in found)

    def predictions(
        self, images: Iterable[Any], *, batch_size: int = 8
    ) -> Iterator[tuple[Reading, Prediction | ImageError]]:
        """Each picture as it was read, with its prediction or why there is none, in order; also of a set scored as one.

        Raises:
            ValueError: batch_size is wrong.
            RuntimeError: a text method has no name yet, or one that needs normal pictures has none.
        """
        return predictions(self._ready(batch_size), images, reader=self.reader, batch_size=batch_size)

    def _ready(self, batch_size: int) -> Judge:
        """What it is now, once it is known that it can predict."""
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r}; expected a whole number, 1 or more")
        judge = self._judge
        _require_words(judge.scorer)
        if judge.scorer.needs_normals and not judge.scorer.references:
            raise RuntimeError(f"{self.method} has no memory: call fit(normals) with a few normal pictures first")
        return judge

    def report_progress(self, told: Callable[[str, int, int], None] | None) -> None:
        """Has (stage, done, total) told while a set is scored; total 0: unknown."""
        self.scorer.progress = told

    # Files

    def save(self, path: str | os.PathLike[str], *, pictures: bool = True) -> None:
        """One .safetensors file: prototypes and what was learnt as tensors, all settings as JSON in its header.

        The encoder is named in it with its digest, not contained. Written beside and renamed, so it is whole or absent.

        Args:
            path: ends in .safetensors.
            pictures: with the good pictures, as small as the method sees them; without them `add` is refused later.
        """
        normals = self._judge.normals
        if normals is not None and not pictures:
            normals = normals.without("its file was saved without good pictures")
        detector_file.write(Path(path).expanduser(), *self._content(normals))

    def _content(self, normals: NormalPictures | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """All that it is beside its encoder, as (plain values, tensors)."""
        judge, pack = self._judge, self.pack
        header = {
            "vlad": __version__,
            "method": self.method,
            "encoder": self.encoder.name,
            "encoder_digest": self.encoder.digest,
            "dtype": self.encoder.precision,
            "runtime": self.encoder.runtime,
            "calibrated": self.encoder.calibrated,
            "options": self.options,
            "reading": self.reader.to_dict(),
            "framing": self.framing.to_dict(),
            "name": self.name,
            "prompts": pack.to_dict() if pack else None,
            "prompts_name": pack.name if pack else None,
            "phrases": self.scorer.phrases,
            "threshold": judge.threshold,
            "map_threshold": judge.map_threshold,
            "references": self.references,
            "trained_on": list(self.trained_on),
            "calibration": judge.calibration and judge.calibration.to_dict(),
            "map_calibration": judge.map_calibration and judge.map_calibration.to_dict(),
            "normals": normals.facts() if normals else {},
        }
        return header, {**judge.scorer.tensors(), **(normals.tensors() if normals else {})}

    def push_to_hub(self, repo: str, *, private: bool = True) -> str:
        """Shares the detector as "owner/name" on the Hugging Face hub, without its pictures; the repository's address.

        `vlad.load("hf-hub:owner/name")` brings it back. A card says method, encoder, threshold and what it promises.

        Raises:
            ValueError: `repo` is no "owner/name".
            vlad.WeightsError: the hub refuses, or does not answer.
        """
        from vlad.hub import share

        return share.push(self, repo, private)

    def export(self, path: str | os.PathLike[str], *, pictures: Any = None, tolerance: float = 1e-4) -> "ExportReport":
        """Writes the whole detector as one .onnx file, which runs without torch; examples/run_exported.py runs it.

        Args:
            path: of the file, replaced where it is there.
            pictures: what the graph is compared with torch on, as `fit` takes them; None takes drawn ones.
            tolerance: of the score, and of the map as a part of its range.

        Raises:
            TypeError: the method, or one of its options, is none that a graph can hold.
            ValueError: the path does not end in .onnx, or the encoder does not compute in float32 on the CPU.
            RuntimeError: the graph could not be made, or differs by more than the tolerance; nothing is then written.
            ModuleNotFoundError: the extra `export` is not installed.
        """
        from vlad.export import export

        self._ready(1)
        given = None
        if pictures is not None:
            remarks = Remarks()
            given = [self.reader.read(one, remarks) for one in as_list(pictures, self.reader, remarks)]
        return export(self, Path(path).expanduser(), given, tolerance)

    @classmethod
    def restored(cls, scorer: Scorer, header: Mapping[str, Any], tensors: Mapping[str, Any]) -> "Detector":
        """What `save` wrote, round a scorer with the options of the file; ValueError where it does not fit."""
        pictures = {key: tensor for key, tensor in tensors.items() if key.startswith(PREFIX)}
        scorer.restore(header, {key: tensor for key, tensor in tensors.items() if key not in pictures})
        normals = NormalPictures.restored(header["normals"], pictures, len(header["references"]))
        made = [header[key] and Calibration.from_dict(header[key]) for key in ("calibration", "map_calibration")]
        detector = cls(scorer, Reader.from_dict(header["reading"]))
        detector._judge = Judge(scorer, made[0], made[1], header["threshold"], header["map_threshold"], normals)
        before = arithmetic(header["dtype"], header["runtime"], header["calibrated"])
        if (made[0] or header["threshold"] is not None) and before != scorer.encoder.arithmetic:
            logger.warning(
                "other arithmetic gives other scores: the thresholds from %s are dropped, fit again in %s",
                before,
                scorer.encoder.arithmetic,
            )
            detector._judge = Judge(scorer, normals=normals)
        return detector


def _unpickled(kind: type[Scorer], encoder: Encoder, header: dict[str, Any], tensors: dict[str, Tensor]) -> Detector:
    """What unpickling calls."""
    detector = Detector.restored(kind(encoder, **header["options"]), header, tensors)
    detector.scorer.to(encoder.device)
    return detector


def _require_words(scorer: Scorer) -> None:
    if scorer.words == "required" and scorer.prototypes is None:
        raise RuntimeError(
            f"{scorer.method} does not know what to look for: call describe('metal bolt') first, "
            "or give vlad.load a name"
        )


def _without_fit(scorer: Scorer) -> str:
    """What a method that has no memory does with normal pictures instead, to follow its name."""
    if getattr(scorer, "views", 0):  # of a `LearnedScorer`
        return f"learns from normal pictures by training, not by fit: vlad train {scorer.method} --data good/"
    return "does not learn from normal pictures; patch_memory, for one, does"
