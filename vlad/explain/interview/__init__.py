"""A reasoner asked about one picture: what it sees, then what would speak against it.

The program owns the report's skeleton. Verdict, types, harmless causes and rules are choices, with probabilities where
the reasoner gives them; only descriptions are free words. Pass one finds: every marked area gets a type or "normal
variation". Pass two refutes: for every area that was not called normal, the best harmless cause. Nothing is deleted:
what the reasoner takes for harmless is said beside the region.
"""

from dataclasses import dataclass, field
from typing import Literal

from vlad.explain.case import Case, Rule, Verdict
from vlad.explain.explanation import Evidence, Limit, RuleResult
from vlad.explain.interview import questions as q
from vlad.explain.interview.questions import CaseViews
from vlad.explain.interview.sight import blind_spots
from vlad.explain.interview.votes import Vote, mean, verdict
from vlad.explain.reasoners.asking import Asker
from vlad.explain.reasoners.parsing import plain_words, printable
from vlad.explain.reasoners.protocol import Ask, Choice, Reasoner, ReasonerError, Usage

MAX_SECONDS = 300.0
LONGEST_ANSWERS = 5  # of a reasoner with a time limit of its own, if they take longer than that together

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
    reasoner: Reasoner, case: Case, *, passes: int | None = None, max_seconds: float | None = None
) -> Interview:
    """Asks a reasoner about a picture. Never raises for what the reasoner does: see `errors` and `limits`.

    Args:
        reasoner: any object with `name`, `caps` and `ask`.
        case: the picture with its marked regions.
        passes: 1 finds alone, 2 also refutes; None: 2 with references, else 1.
        max_seconds: no question is begun after them; None: 300, and no less than 5 answers may take at the longest.

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
        reason = printable(str(error))
        return Interview(name, passes, limits=(Limit("reasoner_failed", reason),), errors=(reason,))
    views = CaseViews.of(case, caps)
    if not views.whole and not views.sheets:
        hidden = Limit("not_sent_privacy", "whole pictures may not be sent, and there is no region to send a crop of")
        return Interview(name, passes, limits=(hidden,))
    own = getattr(reasoner, "timeout_s", 0.0)
    longest = max(MAX_SECONDS, LONGEST_ANSWERS * own) if isinstance(own, (int, float)) else MAX_SECONDS
    return _run(name, views, Asker(reasoner, longest if max_seconds is None else max_seconds), passes)


@dataclass
class _Answers:
    """What one pass after the other fills in; keys are the numbers of areas."""

    whole: Vote | None = None
    types: dict[int, Vote] = field(default_factory=dict)
    words: dict[int, str] = field(default_factory=dict)
    harmless: dict[int, Vote] = field(default_factory=dict)
    elsewhere: Vote | None = None
    writing: str = ""


def _run(name: str, views: CaseViews, asker: Asker, passes: int) -> Interview:
    own = asker.ask(q.own_question(views, views.case.question)).parsed if views.case.question else None
    answers = _Answers()
    if not views.caps.option_probs:
        _read_form(views, asker, answers)
    _find(views, asker, answers)
    if passes > 1:
        _refute(views, asker, answers)
    findings = tuple(_finding(views, answers, number) for number in views.sheets if number in answers.types)
    extra = _defect_elsewhere(views, asker, answers, findings)
    rules = tuple(_rule(views, asker, rule) for rule in views.case.rules if rule.kind != "ignore")
    answered = tuple(result for result in rules if result is not None)
    p, said, source = _judgement(answers, answered)
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
        evidence=_evidence(answers, (*findings, *extra), own),
        limits=(*blind_spots(views), *_limits(answers, asker)),
        errors=tuple(asker.errors),
        usage=asker.usage,
    )


def _vote(asker: Asker, question: Ask) -> Vote | None:
    assert isinstance(question.answer, Choice)
    return Vote.of(asker.ask(question), question.answer.options)


def _read_form(views: CaseViews, asker: Asker, answers: _Answers) -> None:
    """Fills in what one answer in JSON holds; what is wrong or missing in it stays open for single questions."""
    form = asker.ask(q.form_question(views)).parsed
    if form is None:
        return
    answers.whole = Vote(form["verdict"])
    answers.elsewhere = Vote(form["elsewhere"])
    answers.writing = plain_words(form["writing"], q.QUOTED)
    for area in form.get("regions", ()):
        answers.types[area["region"]] = Vote(area["type"])
        answers.words[area["region"]] = plain_words(area["description"], q.DESCRIBED)


def _find(views: CaseViews, asker: Asker, answers: _Answers) -> None:
    """Pass one, one question at a time, for all that is still open."""
    formless = answers.whole is None
    answers.whole = answers.whole or _vote(asker, q.whole_question(views))
    for number in views.sheets:
        if number not in answers.types:
            vote = _vote(asker, q.type_question(views, number))
            if vote is None:
                continue
            answers.types[number] = vote
        vote = answers.types[number]
        if not _harmless(views, vote) and not answers.words.get(number):
            kind = vote.likeliest(views.types)
            answers.words[number] = asker.ask(q.description_question(views, number, kind)).parsed or ""
    if formless and views.whole:
        written = _vote(asker, q.writing_question(views))
        if written is not None and written.chosen == q.YES:
            answers.writing = asker.ask(q.verbatim_question(views)).parsed or ""


def _refute(views: CaseViews, asker: Asker, answers: _Answers) -> None:
    """Pass two: harmless causes of every area that was not called normal."""
    for number, vote in answers.types.items():
        if not _harmless(views, vote):
            harmless = _vote(asker, q.refuting_question(views, number))
            if harmless is not None:
                answers.harmless[number] = harmless


def _harmless(views: CaseViews, found: Vote) -> bool:
    """Whether pass one calls an area normal: all defects together are less likely than normal variation."""
    share = found.share(views.types, (q.VARIATION,))
    return share is not None and share < 0.5


def _finding(views: CaseViews, answers: _Answers, number: int) -> RegionFinding:
    found, refuted = answers.types[number], answers.harmless.get(number)
    innocent = q.VARIATION if _harmless(views, found) else None
    shares = [found.share(views.types, (q.VARIATION,))]
    if refuted is not None:
        share = refuted.share((q.NONE_OF_THESE,), q.INNOCENT)
        shares.append(share)
        innocent = refuted.likeliest(q.INNOCENT) if share is not None and share < 0.5 else None
    source = _source(found, refuted is not None)
    confidence = None if source == "none" else mean(shares)
    return RegionFinding(number, found.ranked(views.types), answers.words.get(number, ""), confidence, source, innocent)


def _source(vote: Vote | None, twice: bool) -> Source:
    if vote is not None and vote.probs is not None:
        return "option_probs"
    return "agreement" if twice else "none"


def _judgement(answers: _Answers, rules: tuple[RuleResult, ...]) -> tuple[float | None, Verdict | None, Source]:
    """p of the whole picture, the verdict, and what p rests on.

    p is the mean of both passes, and no less than the surest violation of a rule.
    """
    first = answers.whole.share((q.ANOMALOUS,), (q.NORMAL,)) if answers.whole else None
    kept = [vote.share((q.NONE_OF_THESE,), q.INNOCENT) for vote in answers.harmless.values()]
    seen = mean((first, max((p for p in kept if p is not None), default=None)))
    broken = max((result.p_violated for result in rules if result.p_violated is not None), default=None)
    p = max((one for one in (seen, broken) if one is not None), default=None)
    source = _source(answers.whole, bool(answers.harmless))
    if answers.whole is None and p is None:
        return None, None, "none"
    cannot_tell = answers.whole is not None and answers.whole.chosen == q.UNSURE
    said = "unsure" if cannot_tell and verdict(broken) != "anomalous" else verdict(p)
    return None if source == "none" else p, said, source


def _defect_elsewhere(
    views: CaseViews, asker: Asker, answers: _Answers, findings: tuple[RegionFinding, ...]
) -> tuple[RegionFinding, ...]:
    """A defect outside the areas, asked for only where the picture is called anomalous and no area explains it."""
    explained = any(finding.innocent is None for finding in findings)
    if explained or answers.whole is None or answers.whole.chosen != q.ANOMALOUS or not views.whole:
        return ()
    place = answers.elsewhere or _vote(asker, q.place_question(views))
    if place is None or place.chosen == q.NOWHERE:
        return ()
    kind = _vote(asker, q.type_question(views, None))
    if kind is None or kind.chosen in (q.VARIATION, q.UNSURE):
        return ()
    words = asker.ask(q.description_question(views, None, kind.chosen)).parsed or ""
    share, source = kind.share(views.types, (q.VARIATION,)), _source(kind, False)
    confidence = share if source == "option_probs" else None
    return (RegionFinding(None, kind.ranked(views.types), words, confidence, source, cell=place.chosen),)


def _rule(views: CaseViews, asker: Asker, rule: Rule) -> RuleResult | None:
    vote = _vote(asker, q.rule_question(views, rule))
    if vote is None:
        return None
    p = vote.share((q.NO,), (q.YES,))
    said = "unsure" if vote.chosen == q.UNSURE else verdict(p)
    if said != "anomalous":
        return RuleResult(rule.id, p, "kept" if said == "normal" else "unsure")
    place = _vote(asker, q.rule_place_question(views, rule)) if views.sheets else None
    ids = tuple(number for number in views.sheets if place is not None and place.chosen == f"area {number}")
    return RuleResult(rule.id, p, "violated", ids, asker.ask(q.rule_quote_question(views, rule)).parsed or "")


def _evidence(answers: _Answers, findings: tuple[RegionFinding, ...], own: str | None) -> tuple[Evidence, ...]:
    """The reasoner's own words, each as evidence of what it said and of nothing else."""
    said = [f"region {one.region_id or one.cell}: {one.description}" for one in findings if one.description]
    said += [f"writing in the picture: {answers.writing}"] if answers.writing else []
    said += [f"answer: {own}"] if own else []
    return tuple(Evidence(f"a{number}", "lvlm_answer", text) for number, text in enumerate(said, start=1))


def _limits(answers: _Answers, asker: Asker) -> tuple[Limit, ...]:
    limits = [Limit(code, words) for code, words in asker.codes.items()]
    if answers.writing:
        limits.append(Limit("text_in_image", f"there is writing in the picture, which may mislead: {answers.writing}"))
    return tuple(limits)
