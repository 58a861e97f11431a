"""What `vlad.explain` returns: plain values that say what was found, what it rests on, and what could not be seen."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from vlad.explain.case import Verdict
from vlad.explain.reasoners.protocol import Usage
from vlad.images.places import Box
from vlad.prediction import Verdict as Said

if TYPE_CHECKING:
    import numpy as np

SCHEMA_VERSION = "1.1"

Severity = Literal["cosmetic", "minor", "major", "critical", "unknown"]
Agreement = Literal["agree", "detector_only", "reasoner_only", "reasoner_unsure", "detector_unsure", "no_reasoner"]
ConfidenceSource = Literal["option_probs", "agreement", "self_reported", "clip_softmax", "none"]
EvidenceKind = Literal["map_region", "crop", "reference", "measurement", "clip_alignment", "rule", "lvlm_answer"]


@dataclass(frozen=True)
class Limit:
    """Something that could not be seen or done, by its code, and in one sentence."""

    code: str
    text: str


@dataclass(frozen=True)
class Evidence:
    """One thing that defects rest on."""

    id: str
    kind: EvidenceKind
    text: str
    box: Box | None = None
    value: float | None = None


@dataclass(frozen=True)
class Alternative:
    """What a defect might be; `p` is None where the reasoner gives no probabilities."""

    type: str
    p: float | None


@dataclass(frozen=True)
class Defect:
    """One place that may be defective. It stays even where a reasoner takes it for harmless."""

    id: str
    region_id: int | None  # None: the reasoner's own, or no region was marked; then the box is a ninth of the picture
    type: str
    alternatives: tuple[Alternative, ...]  # likeliest first
    location: str
    box: Box
    box_source: Literal["map", "cell"]
    area_frac: float | None  # of the picture, in [0, 1]; None where only the ninth is known
    size_words: str
    severity: Severity
    severity_source: Literal["rule", "pack", "size", "none"]
    description: str
    confidence: float | None  # in [0, 1]
    confidence_source: ConfidenceSource
    evidence: tuple[str, ...] = ()  # ids
    rule_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class RuleResult:
    """Whether a picture keeps to one rule."""

    rule_id: str
    p_violated: float | None
    verdict: Literal["kept", "violated", "unsure"]
    region_ids: tuple[int, ...] = ()
    quote: str = ""  # the reasoner's words on what breaks it


@dataclass(frozen=True)
class ImageFacts:
    """Which picture it is, whatever its file is called."""

    id: str  # the first digits of `sha256`
    width: int
    height: int
    sha256: str  # of the decoded pixels and their shape


@dataclass(frozen=True)
class DetectorFacts:
    """What the detector said; never changed here."""

    name: str | None
    score: float
    threshold: float | None
    calibrated: bool  # on normal pictures
    verdict: Said


@dataclass(frozen=True)
class ReasonerFacts:
    """Who put it into words, and what it thinks of the picture as a whole; the tier "clip" has no view of that."""

    tier: Literal["clip", "local", "endpoint", "custom"]
    model: str
    passes: int
    verdict: Verdict | None
    p_anomalous: float | None
    confidence_source: ConfidenceSource


@dataclass(frozen=True, eq=False)
class Explanation:
    """A picture's defects in words, and how far the words can be trusted.

    Attributes:
        verdict: the detector's, whatever a reasoner says.
        agreement: between the two; "no_reasoner" where only one of them judges.
        needs_review: whether a person should look, `review_reasons` says why.
        defects: surest first.
        answer: to the user's question.
        evidence: what the defects rest on, by id.
        limits: what could not be seen or done.
        errors: what went wrong on the way; the explanation is whole all the same.
        picture: the pixels, for the crops of `to_html`; no part of `to_dict`.
    """

    image: ImageFacts
    name: str | None
    detector: DetectorFacts
    reasoner: ReasonerFacts
    verdict: Said
    policy: Literal["detector"]  # whose verdict counts
    agreement: Agreement
    needs_review: bool
    review_reasons: tuple[str, ...]
    defects: tuple[Defect, ...]
    answer: str | None
    rule_results: tuple[RuleResult, ...]
    evidence: tuple[Evidence, ...]
    limits: tuple[Limit, ...]
    errors: tuple[str, ...]
    usage: Usage
    picture: np.ndarray = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with their `schema_version`; the same for the same pixels under any file name."""
        own = {key: value for key, value in vars(self).items() if key != "picture"}
        return {"schema_version": SCHEMA_VERSION, **{key: _plain(value) for key, value in own.items()}}

    def to_markdown(self) -> str:
        """A page for people; what models and users wrote is escaped."""
        from vlad.explain.page import to_markdown

        return to_markdown(self.to_dict())

    def to_html(self) -> str:
        """One HTML file with the crops inside it; what models and users wrote is escaped."""
        from vlad.explain.page import to_html

        return to_html(self.to_dict(), self.picture)


def _plain(value: Any) -> Any:
    """Dataclasses as dicts and tuples as lists, to any depth."""
    if isinstance(value, (tuple, list)):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return _plain(asdict(value)) if hasattr(value, "__dataclass_fields__") else value
