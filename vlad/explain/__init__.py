"""Explains in words what a detector found in a picture: where it is, what it may be, and what could not be seen.

`explain` is the whole interface, and `vlad.explain` is both this module and that function. The map is the detector:
words name and cross-check what it marks, and never change a score. Three tiers stand behind one call: the encoder's own
vocabulary ("clip", always there), a local vision-language model ("hf:FOLDER"), a server ("openai:MODEL@URL"). A tier
that fails leaves the words of the first, and says so.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from vlad.explain.case import Case
from vlad.explain.explanation import (
    DetectorFacts,
    Explanation,
    ImageFacts,
    Limit,
    ReasonerFacts,
)
from vlad.explain.reasoner import Reasoner, ReasonerError, Usage, make_reasoner
from vlad.images import read
from vlad.prompts import PromptPack, check_name

if TYPE_CHECKING:
    from vlad.detector import Detector
    from vlad.encoder import Encoder
    from vlad.explain.clip import Naming
    from vlad.explain.interview import Interview
    from vlad.prediction import Prediction

__all__ = ["Explanation", "explain"]

DEFAULT_PACK = "defects"


def explain(
    picture: Any,
    prediction: Prediction,
    *,
    detector: Detector | None = None,
    reasoner: Any = "clip",
    references: Sequence[Any] = (),
    rules: Any = None,
    prompts: Any = None,
    question: str | None = None,
    name: str | None = None,
    policy: str = "detector",
    passes: int | None = None,
    strict: bool = False,
) -> Explanation:
    """What is wrong with one picture, in words; the prediction is left as it is.

    Args:
        picture: the one that was scored, in any form that `predict` takes.
        prediction: what a detector said of it.
        detector: its encoder compares regions with words, else "tiny" does.
        reasoner: "clip", "hf:FOLDER_OR_ID", "openai:MODEL@BASE_URL", or an object as `vlad.explain.reasoner` asks for.
        references: good pictures, to measure against and to show a reasoner.
        rules: a rule file, its lines, or dicts; see `vlad.explain.rules`.
        prompts: a pack whose [defects] are the vocabulary; None takes the detector's, else the shipped "defects".
        question: the user's own, for a reasoner to answer.
        name: what the picture shows; None takes the prediction's.
        policy: whose verdict counts: "detector", "either", "both" or "blend".
        passes: of a reasoner: 1 finds, 2 also refutes; None: 2 with references, else 1.
        strict: raise where a reasoner fails, instead of falling back.

    Raises:
        ValueError: the picture is not the one that was scored; wrong rules, prompts, name, policy or reasoner.
        vlad.ImageError: a picture cannot be read.
        FileNotFoundError: a rule file or pack is not there.
        vlad.explain.reasoner.ReasonerError: a reasoner failed, with `strict`.
    """
    from vlad.explain.clip import name_regions
    from vlad.explain.verdicts import check_policy

    pixels = _scored(picture, prediction)
    how = check_policy(policy, prediction)
    pack = _pack(prompts, detector)
    model, failure = _reasoner(reasoner, strict)
    case, limits = _case(pixels, prediction, detector, references, rules, pack, question, name)
    own = detector is not None and getattr(detector.encoder, "reads_text", True)
    encoder, side = (detector.encoder, detector.resolution) if detector is not None and own else (_tiny(), None)
    naming = name_regions(case, encoder, pack, side)
    said = None if model is None else _interview(model, case, passes, strict)
    told = _Told(case, naming, said, pack, (*limits, *naming.limits), failure)
    return _explanation(told, prediction, detector, encoder, model, how)


class _Told:
    """What the tiers said of a case, before it is put together."""

    def __init__(
        self,
        case: Case,
        naming: Naming,
        said: Interview | None,
        pack: PromptPack,
        limits: tuple[Limit, ...],
        failure: str | None,
    ) -> None:
        self.case, self.naming, self.pack = case, naming, pack
        self.failed = failure is not None or (said is not None and said.verdict is None and not said.findings)
        self.said = said
        self.errors = (*([failure] if failure else []), *(said.errors if said is not None else ()))
        if failure:
            limits = (*limits, Limit("reasoner_failed", f"{failure}; these are the words of the tier clip"))
        if case.question and (said is None or said.answer is None):
            limits = (*limits, Limit("question_not_answered", "the question was not answered by a language model"))
        if said is not None:
            answered = {result.rule_id for result in said.rule_results}
            limits = tuple(
                one for one in limits if one.code != "rule_not_checked" or one.text.split()[1] not in answered
            )
            limits = (*limits, *said.limits)
        self.limits = tuple(dict.fromkeys(limits))


def _scored(picture: Any, prediction: Prediction) -> np.ndarray:
    pixels = read(picture)
    if pixels.shape[:2] != prediction.size:
        raise ValueError(f"picture has size {pixels.shape[:2]}, the scored one had {prediction.size}; give that one")
    return pixels


def _pack(prompts: Any, detector: Detector | None) -> PromptPack:
    """The pack whose [defects] are the vocabulary: the given one, else the detector's, else the shipped one."""
    given = None if prompts is None else PromptPack.load(prompts)
    own = None if detector is None else detector.pack
    return next((one for one in (given, own) if one is not None and one.defects), None) or PromptPack.load(DEFAULT_PACK)


def _reasoner(which: Any, strict: bool) -> tuple[Reasoner | None, str | None]:
    """The reasoner, or None and why it cannot be used."""
    try:
        return make_reasoner(which), None
    except ReasonerError as error:
        if strict:
            raise
        return None, str(error)


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
    from vlad.explain.verdicts import of_detector

    good = [read(one) for one in references]
    good.sort(key=lambda one: -likeness(pixels, one))
    name = name or prediction.name or (None if detector is None else detector.name)
    limits = reference_limit(pixels, good)
    if name is None:
        limits = (*limits, Limit("object_unknown", "it is not known what the picture shows; give its name"))
    verdict = of_detector(prediction)
    regions, seen = mark(pixels, prediction, good)
    case = Case(
        picture=pixels,
        name=None if name is None else check_name(name),
        regions=() if verdict == "normal" else regions,
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
    from vlad.encoder import Encoder

    return Encoder.load("tiny")


def _explanation(
    told: _Told,
    prediction: Prediction,
    detector: Detector | None,
    encoder: Encoder,
    model: Reasoner | None,
    policy: Any,
) -> Explanation:
    from vlad.explain import defects as make
    from vlad.explain.verdicts import judge, of_detector

    case, said, naming = told.case, told.said, told.naming
    found = make.by_words(case, naming.named, told.pack.severity)
    if not found.defects and case.detector_verdict == "anomalous":
        found = make.without_region(prediction)
    if said is not None:
        found = make.with_findings(found, case, said, told.pack.severity)
    verdict, p = (None, None) if said is None else (said.verdict, said.p_anomalous)
    scores = () if detector is None or detector.calibration is None else detector.calibration.scores
    judged = judge(prediction, policy, verdict, p, scores)
    reasons = (*judged.reasons, *found.reasons)
    digest = hashlib.sha256(repr(case.picture.shape).encode() + case.picture.tobytes()).hexdigest()
    height, width = case.picture.shape[:2]
    return Explanation(
        image=ImageFacts(digest[:12], width, height, digest),
        name=case.name,
        detector=DetectorFacts(
            name=None if detector is None else detector.method,
            score=prediction.score,
            threshold=prediction.threshold,
            calibrated=prediction.p_value is not None,
            verdict=of_detector(prediction),
        ),
        reasoner=_facts(told, encoder, model),
        verdict=judged.verdict,
        policy=policy,
        agreement=judged.agreement,
        needs_review=bool(reasons),
        review_reasons=reasons,
        defects=found.defects,
        answer=None if said is None else said.answer,
        rule_results=said.rule_results if said is not None and said.rule_results else naming.rule_results,
        evidence=found.evidence,
        limits=told.limits,
        errors=told.errors,
        usage=Usage() if said is None else said.usage,
        picture=case.picture,
    )


def _facts(told: _Told, encoder: Encoder, model: Reasoner | None) -> ReasonerFacts:
    said = told.said
    if model is None or said is None or told.failed:
        source: Any = "clip_softmax" if told.case.regions else "none"
        return ReasonerFacts("clip", encoder.name, 1, None, None, source)
    tier = getattr(model, "tier", "custom")
    tier = tier if tier in ("local", "endpoint") else "custom"
    return ReasonerFacts(tier, said.reasoner, said.passes, said.verdict, said.p_anomalous, said.confidence_source)


class _CallableModule(ModuleType):
    """`vlad.explain` is this module and also the public call; an import must not hide the call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Explanation:
        return explain(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
