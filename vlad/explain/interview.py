"""A reasoner asked about one picture: what it sees, then what would speak against it.

The program owns the report's skeleton. Verdict, types, harmless causes and rules are choices, with probabilities where
the reasoner gives them; only descriptions are free words. Pass one finds: every marked area gets a type or "normal
variation". Pass two refutes: for every area that was not called normal, the best harmless cause. Nothing is deleted:
what the reasoner takes for harmless is said beside the region.
"""

from dataclasses import dataclass, field
from typing import Literal

from vlad.explain import questions as q
from vlad.explain.asking import Asker
from vlad.explain.case import Case, Rule
from vlad.explain.explanation import Evidence, Limit
from vlad.explain.parsing import plain_words
from vlad.explain.questions import Room
from vlad.explain.reasoner import Ask, Choice, Reasoner, ReasonerError, Usage
from vlad.explain.sight import blind_spots
from vlad.explain.votes import Verdict, Vote, mean, verdict

MAX_SECONDS = 300.0

Source = Literal["option_probs", "agreement", "none"]


@dataclass(frozen=True)
class RegionFinding:
    """What a reasoner says of one area, or, without `region_id`, of a part of the picture that the map did not mark."""

    region_id: int | None
    types: tuple[tuple[str, float | None], ...]  # likeliest first; p given that it is a defect
    description: str
    confidence: float | None  # in [0, 1], that it is a defect
    confidence_source: Source
    innocent: str | None = None  # the harmless cause that the reasoner prefers
    cell: str | None = None  # location words of an extra defect


@dataclass(frozen=True)
class RuleResult:
    """Whether a picture keeps to one rule."""

    rule_id: str
    p_violated: float | None
    verdict: Literal["kept", "violated", "unsure"]
    region_ids: tuple[int, ...] = ()
    quote: str = ""  # the reasoner's words on what breaks it


@dataclass(frozen=True)
class Interview:
    """All that a reasoner said of one picture, with what kept it from saying more."""

    reasoner: str
    passes: int
    p_anomalous: float | None = None
    verdict: Verdict | None = None  # None: it gave none
    confidence_source: Source = "none"
    findings: tuple[RegionFinding, ...] = ()
    extra_defects: tuple[RegionFinding, ...] = ()
    rule_results: tuple[RuleResult, ...] = ()
    answer: str | None = None  # to the user's own question
    evidence: tuple[Evidence, ...] = ()
    limits: tuple[Limit, ...] = ()
    errors: tuple[str, ...] = ()
    usage: Usage = field(default_factory=Usage)


def interview(
    reasoner: Reasoner, case: Case, *, passes: int | None = None, max_seconds: float = MAX_SECONDS
) -> Interview:
    """Asks a reasoner about a picture. Never raises for what the reasoner does: see `errors` and `limits`.

    Args:
        reasoner: any object with `name`, `caps` and `ask`.
        case: the picture with its marked regions.
        passes: 1 finds alone, 2 also refutes; None: 2 with references, else 1.
        max_seconds: no question is begun after them.

    Raises:
        ValueError: another number of passes.
    """
    if passes not in (None, 1, 2):
        raise ValueError(f"passes is {passes!r}; expected 1 (find) or 2 (find, then refute)")
    name = str(getattr(reasoner, "name", type(reasoner).__name__))
    passes = passes or (2 if case.references else 1)
    try:
        caps = reasoner.caps
        if not caps.max_images:
            raise ReasonerError(f"{name} does not see pictures")
    except Exception as error:  # a reasoner of the user's own may raise anything; detection goes on
        return Interview(name, passes, limits=(Limit("reasoner_failed", str(error)),), errors=(str(error),))
    room = Room.of(case, caps)
    if not room.whole and not room.sheets:
        hidden = Limit("not_sent_privacy", "whole pictures may not be sent, and there is no region to send a crop of")
        return Interview(name, passes, limits=(hidden,))
    return _hold(name, room, Asker(reasoner, max_seconds), passes)


@dataclass
class _Notes:
    """What one pass after the other fills in; keys are the numbers of areas."""

    whole: Vote | None = None
    types: dict[int, Vote] = field(default_factory=dict)
    words: dict[int, str] = field(default_factory=dict)
    harmless: dict[int, Vote] = field(default_factory=dict)
    elsewhere: Vote | None = None
    writing: str = ""


def _hold(name: str, room: Room, asker: Asker, passes: int) -> Interview:
    own = asker.ask(q.own_question(room, room.case.question)).parsed if room.case.question else None
    notes = _Notes()
    if not room.caps.option_probs:
        _read_form(room, asker, notes)
    _find(room, asker, notes)
    if passes > 1:
        _refute(room, asker, notes)
    findings = tuple(_finding(room, notes, number) for number in room.sheets if number in notes.types)
    extra = _extra(room, asker, notes, findings)
    rules = tuple(_rule(room, asker, rule) for rule in room.case.rules if rule.kind != "ignore")
    answered = tuple(result for result in rules if result is not None)
    p, said, source = _judgement(notes, answered)
    return Interview(
        reasoner=name,
        passes=passes,
        p_anomalous=p,
        verdict=said,
        confidence_source=source,
        findings=findings,
        extra_defects=extra,
        rule_results=answered,
        answer=own,
        evidence=_evidence(notes, (*findings, *extra), own),
        limits=(*blind_spots(room), *_limits(notes, asker)),
        errors=tuple(asker.errors),
        usage=asker.usage,
    )


def _vote(asker: Asker, question: Ask) -> Vote | None:
    assert isinstance(question.answer, Choice)
    return Vote.of(asker.ask(question), question.answer.options)


def _read_form(room: Room, asker: Asker, notes: _Notes) -> None:
    """Fills in what one answer in JSON holds; what is wrong or missing in it stays open for single questions."""
    form = asker.ask(q.form_question(room)).parsed
    if form is None:
        return
    notes.whole = Vote(form["verdict"])
    notes.elsewhere = Vote(form["elsewhere"])
    notes.writing = plain_words(form["writing"], q.QUOTED)
    for area in form.get("regions", ()):
        notes.types[area["region"]] = Vote(area["type"])
        notes.words[area["region"]] = plain_words(area["description"], q.DESCRIBED)


def _find(room: Room, asker: Asker, notes: _Notes) -> None:
    """Pass one, one question at a time, for all that is still open."""
    formless = notes.whole is None
    notes.whole = notes.whole or _vote(asker, q.whole_question(room))
    for number in room.sheets:
        if number not in notes.types:
            vote = _vote(asker, q.type_question(room, number))
            if vote is None:
                continue
            notes.types[number] = vote
        vote = notes.types[number]
        if not _harmless(room, vote) and not notes.words.get(number):
            kind = vote.likeliest(room.types)
            notes.words[number] = asker.ask(q.description_question(room, number, kind)).parsed or ""
    if formless and room.whole:
        written = _vote(asker, q.writing_question(room))
        if written is not None and written.chosen == q.YES:
            notes.writing = asker.ask(q.verbatim_question(room)).parsed or ""


def _refute(room: Room, asker: Asker, notes: _Notes) -> None:
    """Pass two: harmless causes of every area that was not called normal."""
    for number, vote in notes.types.items():
        if not _harmless(room, vote):
            harmless = _vote(asker, q.refuting_question(room, number))
            if harmless is not None:
                notes.harmless[number] = harmless


def _harmless(room: Room, found: Vote) -> bool:
    """Whether pass one calls an area normal: all defects together are less likely than normal variation."""
    share = found.share(room.types, (q.VARIATION,))
    return share is not None and share < 0.5


def _finding(room: Room, notes: _Notes, number: int) -> RegionFinding:
    found, refuted = notes.types[number], notes.harmless.get(number)
    innocent = q.VARIATION if _harmless(room, found) else None
    shares = [found.share(room.types, (q.VARIATION,))]
    if refuted is not None:
        share = refuted.share((q.NONE_OF_THESE,), q.INNOCENT)
        shares.append(share)
        innocent = refuted.likeliest(q.INNOCENT) if share is not None and share < 0.5 else None
    source = _source(found, refuted is not None)
    confidence = None if source == "none" else mean(shares)
    return RegionFinding(number, found.ranked(room.types), notes.words.get(number, ""), confidence, source, innocent)


def _source(vote: Vote | None, twice: bool) -> Source:
    if vote is not None and vote.probs is not None:
        return "option_probs"
    return "agreement" if twice else "none"


def _judgement(notes: _Notes, rules: tuple[RuleResult, ...]) -> tuple[float | None, Verdict | None, Source]:
    """p of the whole picture, the verdict, and what p rests on.

    p is the mean of both passes, and no less than the surest violation of a rule.
    """
    first = notes.whole.share((q.ANOMALOUS,), (q.NORMAL,)) if notes.whole else None
    kept = [vote.share((q.NONE_OF_THESE,), q.INNOCENT) for vote in notes.harmless.values()]
    seen = mean((first, max((p for p in kept if p is not None), default=None)))
    broken = max((result.p_violated for result in rules if result.p_violated is not None), default=None)
    p = max((one for one in (seen, broken) if one is not None), default=None)
    source = _source(notes.whole, bool(notes.harmless))
    if notes.whole is None and p is None:
        return None, None, "none"
    cannot_tell = notes.whole is not None and notes.whole.chosen == q.UNSURE
    said = "unsure" if cannot_tell and verdict(broken) != "anomalous" else verdict(p)
    return None if source == "none" else p, said, source


def _extra(room: Room, asker: Asker, notes: _Notes, findings: tuple[RegionFinding, ...]) -> tuple[RegionFinding, ...]:
    """A defect outside the areas, asked for only where the picture is called anomalous and no area explains it."""
    explained = any(finding.innocent is None for finding in findings)
    if explained or notes.whole is None or notes.whole.chosen != q.ANOMALOUS or not room.whole:
        return ()
    place = notes.elsewhere or _vote(asker, q.place_question(room))
    if place is None or place.chosen == q.NOWHERE:
        return ()
    kind = _vote(asker, q.type_question(room, None))
    if kind is None or kind.chosen in (q.VARIATION, q.UNSURE):
        return ()
    words = asker.ask(q.description_question(room, None, kind.chosen)).parsed or ""
    share, source = kind.share(room.types, (q.VARIATION,)), _source(kind, False)
    confidence = share if source == "option_probs" else None
    return (RegionFinding(None, kind.ranked(room.types), words, confidence, source, cell=place.chosen),)


def _rule(room: Room, asker: Asker, rule: Rule) -> RuleResult | None:
    vote = _vote(asker, q.rule_question(room, rule))
    if vote is None:
        return None
    p = vote.share((q.NO,), (q.YES,))
    said = "unsure" if vote.chosen == q.UNSURE else verdict(p)
    if said != "anomalous":
        return RuleResult(rule.id, p, "kept" if said == "normal" else "unsure")
    place = _vote(asker, q.rule_place_question(room, rule)) if room.sheets else None
    ids = tuple(number for number in room.sheets if place is not None and place.chosen == f"area {number}")
    return RuleResult(rule.id, p, "violated", ids, asker.ask(q.rule_quote_question(room, rule)).parsed or "")


def _evidence(notes: _Notes, findings: tuple[RegionFinding, ...], own: str | None) -> tuple[Evidence, ...]:
    """The reasoner's own words, each as evidence of what it said and of nothing else."""
    said = [f"region {one.region_id or one.cell}: {one.description}" for one in findings if one.description]
    said += [f"writing in the picture: {notes.writing}"] if notes.writing else []
    said += [f"answer: {own}"] if own else []
    return tuple(Evidence(f"a{number}", "lvlm_answer", text) for number, text in enumerate(said, start=1))


def _limits(notes: _Notes, asker: Asker) -> tuple[Limit, ...]:
    limits = [Limit(code, words) for code, words in asker.codes.items()]
    if notes.writing:
        limits.append(Limit("text_in_image", f"there is writing in the picture, which may mislead: {notes.writing}"))
    return tuple(limits)
