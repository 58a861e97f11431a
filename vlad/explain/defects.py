"""From regions and words to defects: what each is called, how severe it is, and what that rests on.

Nothing is deleted and nothing invented: every region of a picture that is not called normal becomes a defect, whatever
a reasoner thinks of it, and every sentence is a measured fact, a word of the vocabulary, or marked as a reasoner's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vlad.explain.case import Case, MarkedRegion, Rule
from vlad.explain.explanation import Alternative, Defect, Evidence, Severity
from vlad.explain.interview import Interview, RegionFinding
from vlad.explain.words import GUESSES, UNSPECIFIED, RegionName
from vlad.images.places import PLACES, cell_box, place_of
from vlad.prediction import Prediction

MOST_WORDS = 40  # of a description
_BY_SIZE: dict[str, Severity] = {"tiny": "minor", "small": "minor", "medium": "major"}  # larger ones are critical
_SEVERITIES: dict[str, Severity] = {"cosmetic": "cosmetic", "minor": "minor", "major": "major", "critical": "critical"}


@dataclass(frozen=True)
class Found:
    """Defects, what they rest on, and why a person should look at them."""

    defects: tuple[Defect, ...]
    evidence: tuple[Evidence, ...]
    reasons: tuple[str, ...] = ()


def by_words(case: Case, named: Sequence[RegionName], severity: Mapping[str, str]) -> Found:
    """One defect for each region, as the encoder's vocabulary calls it; `severity` is of a type."""
    defects, evidence, reasons = [], list[Evidence](), []
    for region, one in zip(case.regions, named, strict=True):
        rests_on = _evidence(region, one, len(evidence))
        evidence += rests_on
        defect = Defect(
            id=f"d{region.id}",
            region_id=region.id,
            type=one.type,
            alternatives=one.alternatives,
            location=region.location,
            box=region.box,
            box_source="map",
            area_frac=region.area_share,
            size_words=region.size_words,
            severity=_severity(one.type, region.size_words, severity),
            severity_source="pack" if one.type in severity else "size",
            description=described(one.type, region),
            confidence=one.confidence,
            confidence_source="none" if one.confidence is None else "clip_softmax",
            evidence=tuple(item.id for item in rests_on),
        )
        if one.rule is not None:
            defect = _under_rule(defect, one.rule)
            if one.rule.kind == "ignore":
                reasons.append(f"region {region.id} looks like what rule {one.rule.id} says to ignore")
        defects.append(defect)
    return Found(tuple(defects), tuple(evidence), tuple(reasons))


def described(kind: str, region: MarkedRegion) -> str:
    """Type, size, place and as many measured facts as fit into a description.

    "Scratch, small, upper right: covers 0.8 % of the picture; line-like; darker by 14 L* than its surroundings."
    """
    start = f"{kind[:1].upper()}{kind[1:]}, {region.size_words}, {region.location}"
    facts = region.facts.split("; ")
    while facts and len(f"{start}: {'; '.join(facts)}".split()) > MOST_WORDS:
        facts.pop()
    return f"{start}: {'; '.join(facts)}." if facts else f"{start}."


def without_region(prediction: Prediction) -> Found:
    """Of a picture in which no region is shown: where the map is highest, a defect where the picture is anomalous."""
    if prediction.map is None or prediction.is_anomalous is False:
        return Found((), ())
    height, width = prediction.map.shape
    row, column = divmod(int(prediction.map.argmax()), width)
    place = place_of((column, row), (height, width))
    peak = float(prediction.map.max())
    seen = Evidence("e1", "map_region", f"the map is highest at {place}, {peak:.3g}, below where it is cut", None, peak)
    if not prediction.is_anomalous:
        return Found((), (seen,))
    defect = _of_cell("d1", place, prediction.size, UNSPECIFIED, f"Unspecified anomaly, {place}: no region stands out.")
    reason = "the score is anomalous, but no place of the map reaches its threshold"
    return Found((replace(defect, evidence=("e1",)),), (seen,), (reason,))


def with_findings(found: Found, case: Case, said: Interview, severity: Mapping[str, str]) -> Found:
    """The defects with a reasoner's types and words in the place of the vocabulary's, and its own ones after them."""
    findings = {finding.region_id: finding for finding in said.findings}
    defects = [_told(defect, findings.get(defect.region_id), said, severity) for defect in found.defects]
    harmless = [finding for finding in said.findings if finding.innocent is not None]
    reasons = [*found.reasons]
    reasons += [f"the reasoner takes region {one.region_id} for harmless: {one.innocent}" for one in harmless]
    for number, extra in enumerate(said.extra_defects, start=len(defects) + 1):
        place = extra.cell if extra.cell in PLACES else "centre"
        kind = extra.types[0][0] if extra.types else UNSPECIFIED
        own = _of_cell(f"d{number}", place, case.picture.shape[:2], kind, extra.description or f"{kind}, {place}.")
        defects.append(_told(own, extra, said, severity))
        reasons.append(f"possible defect outside the map: {place}")
    rules = {rule.id: rule for rule in case.rules}
    for result in said.rule_results:
        if result.verdict == "violated":
            reasons += [] if result.region_ids else [f"rule {result.rule_id} may be broken where no region is marked"]
            defects = [
                _under_rule(one, rules[result.rule_id]) if one.region_id in result.region_ids else one
                for one in defects
            ]
    return Found(tuple(defects), (*found.evidence, *said.evidence), tuple(reasons))


def _told(defect: Defect, finding: RegionFinding | None, said: Interview, severity: Mapping[str, str]) -> Defect:
    """A defect as a reasoner tells it; as it was where the reasoner named no type."""
    if finding is None or not finding.types:
        return defect
    own = f"region {finding.region_id or finding.cell}: "
    told = replace(
        defect,
        type=finding.types[0][0],
        alternatives=tuple(Alternative(kind, p) for kind, p in finding.types[:GUESSES]),
        description=finding.description or defect.description,
        confidence=finding.confidence,
        confidence_source=finding.confidence_source,
        evidence=(*defect.evidence, *(one.id for one in said.evidence if one.text.startswith(own))),
    )
    if defect.severity_source == "rule":
        return told
    if told.type in severity:
        return replace(told, severity=_SEVERITIES[severity[told.type]], severity_source="pack")
    known = told.box_source == "map"
    by_size = _severity(told.type, told.size_words, {})
    return replace(told, severity=by_size, severity_source="size" if known else "none")


def _evidence(region: MarkedRegion, named: RegionName, before: int) -> list[Evidence]:
    guesses = ", ".join(f"{one.type} {one.p:.2f}" for one in named.alternatives if one.p is not None)
    return [
        Evidence(
            f"e{before + 1}", "map_region", f"region {region.id}: peak of the map {region.peak:.3g}",
            region.box, region.peak,
        ),
        Evidence(f"e{before + 2}", "measurement", f"region {region.id}: {region.facts}", region.box, region.area_share),
        Evidence(
            f"e{before + 3}", "clip_alignment", f"region {region.id}: closest words {guesses}",
            region.box, named.confidence,
        ),
    ]  # fmt: skip


def _severity(kind: str, size: str, severity: Mapping[str, str]) -> Severity:
    if kind in severity:
        return _SEVERITIES[severity[kind]]
    return "unknown" if size == "unknown" else _BY_SIZE.get(size, "critical")


def _under_rule(defect: Defect, rule: Rule) -> Defect:
    own = {"critical": "critical", "ignore": "cosmetic"}.get(rule.kind)
    told = replace(defect, rule_ids=tuple(dict.fromkeys((*defect.rule_ids, rule.id))))
    return told if own is None else replace(told, severity=_SEVERITIES[own], severity_source="rule")


def _of_cell(own: str, place: str, size: tuple[int, ...], kind: str, description: str) -> Defect:
    return Defect(
        id=own,
        region_id=None,
        type=kind,
        alternatives=(),
        location=place,
        box=cell_box(place, size),
        box_source="cell",
        area_frac=None,
        size_words="unknown",
        severity="unknown",
        severity_source="none",
        description=description,
        confidence=None,
        confidence_source="none",
    )
