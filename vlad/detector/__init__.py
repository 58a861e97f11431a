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

from vlad.detector import saving
from vlad.detector.fitting import as_list, learn
from vlad.detector.predicting import Judge, Reading, predictions
from vlad.detector.standing import Standing
from vlad.encoders.encoder import Encoder
from vlad.images import ImageError, Remarks, is_bytes, repeats
from vlad.prediction import Prediction
from vlad.prompts import PromptPack, check_name
from vlad.scorer import Scorer

if TYPE_CHECKING:
    from vlad.export import ExportReport

logger = logging.getLogger(__name__)


class Detector(Standing):
    """One method looking for one kind of thing with one (shared) encoder. Build it with `vlad.load`.

    `describe`, `fit` and the thresholds exchange what it is as a whole: a `predict` that runs in another thread
    meanwhile answers as the old or as the new one, never as half of each, and a call that fails changes nothing.
    """

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Raises TypeError, with a word for those who take it for a module of torch's."""
        raise TypeError("a detector is not called; predict(picture) scores pictures, and scorer(pixels) ready tensors")

    def __reduce__(self) -> tuple[Any, ...]:
        """As what `save` writes, and the encoder by its name: for workers that have the same weights."""
        return _unpickled, (type(self.scorer), self.encoder, *self.content(self._judge.normals))

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
        scorer = self.learner()
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
        made = learn(self.learner(), normals, before.rate, None, before.review, reader=self.reader, before=before)
        return self if made.scorer.references == self.references and self.calibration else self._exchanged(made)

    def take(self, judge: Judge) -> Self:
        """Goes on as what was learnt of its `learner` elsewhere, such as from whole clips. Returns self."""
        self._judge = judge
        return self

    def learner(self) -> Scorer:
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
        saving.write(Path(path).expanduser(), *self.content(normals))

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
