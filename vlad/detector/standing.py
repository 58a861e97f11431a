"""What a detector is at the moment: views of its scorer and thresholds, and all of it as plain values and tensors."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from torch import Tensor

from vlad.detector.predicting import Judge
from vlad.encoders.dtypes import Placed, arithmetic
from vlad.encoders.encoder import Encoder
from vlad.framing import Framing
from vlad.framing.places import places
from vlad.images import Reader
from vlad.memory.normals import PREFIX, NormalPictures
from vlad.prompts import PromptPack
from vlad.scorer import Scorer
from vlad.thresholds import Calibration, checked_threshold
from vlad.version import __version__

logger = logging.getLogger(__name__)


class Standing(Placed):
    """The part of a detector that says what it is, and takes thresholds and places that are set by hand."""

    def __init__(self, scorer: Scorer, reader: Reader | None = None):
        self._judge = Judge(scorer)
        self.reader = reader or Reader()  # how its pictures are read

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

    def content(self, normals: NormalPictures | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
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

    @classmethod
    def restored(cls, scorer: Scorer, header: Mapping[str, Any], tensors: Mapping[str, Any]) -> Self:
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
