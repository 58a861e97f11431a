"""Explains in words what a detector found in a picture: where it is, what it may be, and what could not be seen.

`explain` is the whole interface, and `vlad.explain` is both this module and that function. The map is the detector:
words name and cross-check what it marks, and never change a score. Three tiers stand behind one call: the encoder's own
vocabulary ("clip", always there), a local vision-language model ("hf:FOLDER"), a server ("openai:MODEL@URL"). A tier
that fails leaves the words of the first, and says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from vlad.callable_module import make_callable
from vlad.explain.case import Case
from vlad.explain.explanation import (
    DetectorFacts,
    Explanation,
    ImageFacts,
    Limit,
    ReasonerFacts,
)
from vlad.explain.reasoners import make_reasoner, usable
from vlad.explain.reasoners.protocol import Reasoner, ReasonerError, Usage
from vlad.images import ImageError
from vlad.prompts import PromptPack, check_name, shipped

if TYPE_CHECKING:
    from vlad.detector import Detector
    from vlad.encoders.encoder import Encoder
    from vlad.explain.defects import Found
    from vlad.explain.interview import Interview
    from vlad.explain.words import RegionNames
    from vlad.prediction import Prediction

__all__ = ["Explanation", "explain"]

DEFAULT_PACK = "defects"


def explain(
    picture: Any,
    prediction: Prediction,
    *,
    detector: Detector | None = None,
    reasoner: Any = "clip",
    references: Any = (),
    rules: Any = None,
    prompts: Any = None,
    question: str | None = None,
    name: str | None = None,
    passes: int | None = None,
    strict: bool = False,
) -> Explanation:
    """What is wrong with one picture, in words; the prediction is left as it is.

    Args:
        picture: the one that was scored, in any form that `predict` takes.
        prediction: what a detector said of it.
        detector: its encoder compares regions with words, else "tiny" does.
        reasoner: "clip", "hf:FOLDER_OR_ID", "openai:MODEL@BASE_URL", or an object as `vlad.explain.reasoners` asks for.
        references: a good picture or a list of them, to measure against and to show a reasoner.
        rules: a rule file, its lines, or dicts; see `vlad.explain.rules`.
        prompts: a pack whose [defects] are the vocabulary; None takes the detector's where that is a user's own, else
            the shipped "defects".
        question: the user's own, for a reasoner to answer.
        name: what the picture shows; None takes the prediction's.
        passes: of a reasoner: 1 finds, 2 also refutes; None: 2 with references, else 1.
        strict: raise where a reasoner fails, instead of falling back.

    Raises:
        ValueError: wrong rules, prompts, name or reasoner.
        vlad.ImageError: a picture cannot be read, or is not the one that was scored.
        FileNotFoundError: a rule file or pack is not there.
        vlad.explain.reasoners.protocol.ReasonerError: a reasoner failed, with `strict`.
    """
    from vlad.explain.words import name_regions

    pixels = _scored(picture, prediction)
    pack = _pack(prompts, detector)
    model = make_reasoner(reasoner) if strict else usable(reasoner)
    case, limits = _case(pixels, prediction, detector, references, rules, pack, question, name)
    own = detector is not None and detector.encoder.reads_text
    encoder, side = (detector.encoder, detector.resolution) if detector is not None and own else (_tiny(), None)
    names = name_regions(case, encoder, pack, side)
    said = None if model is None else _interview(model, case, passes, strict)
    found = _found(case, prediction, names, said, pack.severity)
    speaker = _reasoner_facts(case, encoder, model, said)
    return _explanation(case, prediction, detector, speaker, found, said, _limits(case, limits, names, said), names)


def _explanation(
    case: Case,
    prediction: Prediction,
    detector: Detector | None,
    speaker: ReasonerFacts,
    found: Found,
    said: Interview | None,
    limits: tuple[Limit, ...],
    names: RegionNames,
) -> Explanation:
    from vlad.explain.verdicts import judge

    scores = () if detector is None or detector.calibration is None else detector.calibration.scores
    judged = judge(prediction, None if said is None else said.verdict, scores)
    reasons = (*judged.reasons, *found.reasons)
    return Explanation(
        image=_image(case.picture),
        name=case.name,
        detector=_detector(detector, prediction),
        reasoner=speaker,
        verdict=judged.verdict,
        policy="detector",
        agreement=judged.agreement,
        needs_review=bool(reasons),
        review_reasons=reasons,
        defects=found.defects,
        answer=None if said is None else said.answer,
        rule_results=said.rule_results if said is not None and said.rule_results else names.rule_results,
        evidence=found.evidence,
        limits=limits,
        errors=() if said is None else said.errors,
        usage=Usage() if said is None else said.usage,
        picture=case.picture,
    )


def _scored(picture: Any, prediction: Prediction) -> np.ndarray:
    pixels = prediction.reader.read(picture)
    if pixels.shape[:2] != prediction.size:
        words = f"picture has size {pixels.shape[:2]}, the scored one had {prediction.size}; give that one"
        raise ImageError(words, prediction.source)
    return pixels


def _pack(prompts: Any, detector: Detector | None) -> PromptPack:
    """The pack whose [defects] are the vocabulary: the given one, else the user's own of the detector, else ours.

    A pack is ours where it equals a shipped one; its name says nothing, since files may be called anything.
    """
    given = None if prompts is None else PromptPack.load(prompts)
    own = None if detector is None or detector.pack in _shipped_packs() else detector.pack
    return next((one for one in (given, own) if one is not None and one.defects), None) or PromptPack.load(DEFAULT_PACK)


@cache
def _shipped_packs() -> tuple[PromptPack | None, ...]:
    return tuple(map(PromptPack.load, shipped()))


def _case(
    pixels: np.ndarray,
    prediction: Prediction,
    detector: Detector | None,
    references: Any,
    rules: Any,
    pack: PromptPack,
    question: str | None,
    name: str | None,
) -> tuple[Case, tuple[Limit, ...]]:
    from vlad.explain.regions import likeness, mark, reference_limit
    from vlad.explain.rules import read_rules

    good = [
        prediction.reader.read(one) for one in (references if isinstance(references, (list, tuple)) else [references])
    ]
    good.sort(key=lambda one: -likeness(pixels, one))
    name = name or prediction.name or (None if detector is None else detector.name)
    limits = reference_limit(pixels, good)
    if name is None:
        limits = (*limits, Limit("object_unknown", "it is not known what the picture shows; give its name"))
    verdict = prediction.verdict
    regions, seen = mark(pixels, prediction, good)
    if verdict == "normal":  # nothing is marked, so only what holds of the whole map is left to say
        regions, seen = (), tuple(limit for limit in seen if limit.code in ("no_map", "map_uncalibrated"))
    case = Case(
        picture=pixels,
        name=None if name is None else check_name(name),
        regions=regions,
        references=tuple(good),
        rules=read_rules(rules),
        vocabulary=pack.defects,
        question=question,
        detector_verdict=verdict,
    )
    return case, (*seen, *limits)


def _interview(model: Reasoner, case: Case, passes: int | None, strict: bool) -> Interview:
    from vlad.explain.interview import interview

    said = interview(model, case, passes=passes)
    if strict and any(limit.code == "reasoner_failed" for limit in said.limits):
        raise ReasonerError("; ".join(said.errors) or f"{said.reasoner} failed")
    return said


@cache
def _tiny() -> Encoder:
    from vlad.encoders.encoder import Encoder

    return Encoder.load("tiny")


def _found(
    case: Case, prediction: Prediction, names: RegionNames, said: Interview | None, severity: Mapping[str, str]
) -> Found:
    from vlad.explain.defects import by_words, with_findings, without_region

    found = by_words(case, names.named, severity)
    if not found.defects:
        found = without_region(prediction)
    return found if said is None else with_findings(found, case, said, severity)


def _limits(case: Case, limits: tuple[Limit, ...], names: RegionNames, said: Interview | None) -> tuple[Limit, ...]:
    found = [*limits, *names.limits]
    if said is not None:
        answered = [f"rule {result.rule_id} " for result in said.rule_results]
        found = [one for one in found if one.code != "rule_not_checked" or not one.text.startswith(tuple(answered))]
        found += said.limits
    if case.question and (said is None or said.answer is None):
        found.append(Limit("question_not_answered", "no language model has answered the question"))
    return tuple(dict.fromkeys(found))


def _image(pixels: np.ndarray) -> ImageFacts:
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return ImageFacts(digest.hexdigest()[:12], pixels.shape[1], pixels.shape[0], digest.hexdigest())


def _detector(detector: Detector | None, prediction: Prediction) -> DetectorFacts:

    calibrated = prediction.threshold is not None and prediction.p_value is not None
    method = None if detector is None else detector.method
    return DetectorFacts(method, prediction.score, prediction.threshold, calibrated, prediction.verdict)


def _reasoner_facts(case: Case, encoder: Encoder, model: Reasoner | None, said: Interview | None) -> ReasonerFacts:
    """Whose words they are: the encoder's where there is no reasoner, or where it said nothing of use."""
    if said is None or (said.verdict is None and not said.findings):
        return ReasonerFacts("clip", encoder.name, 1, None, None, "clip_softmax" if case.regions else "none")
    own = getattr(model, "tier", None)
    tier: Any = own if own in ("local", "endpoint") else "custom"
    return ReasonerFacts(tier, said.reasoner, said.passes, said.verdict, said.p_anomalous, said.confidence_source)


make_callable(explain)
