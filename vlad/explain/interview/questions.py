"""The questions of an interview: their words, their options, and the pictures that go with each.

The wording is neutral: areas to look at, some of which may be fine. The detector's verdict is not told, and nothing
here knows a path or a file name, since folders named after defects would give the answer away.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vlad.explain.case import Case, MarkedRegion, Rule
from vlad.explain.reasoners.protocol import MARKED, REFERENCE, Ask, Caps, Choice, Schema, Text
from vlad.explain.views import crop, marks_view, query_view, reference_view, region_sheet, same_size
from vlad.images.places import PLACES, cell_box

NORMAL, ANOMALOUS, UNSURE = "normal", "anomalous", "cannot tell"
VARIATION = "normal variation"
NONE_OF_THESE = "none of these"
INNOCENT = ("lighting or reflection", "printed pattern", "texture of the material", "pose or crop", "allowed by a rule")
YES, NO = "yes", "no"
NOWHERE = "nowhere else"
ELSEWHERE = "elsewhere"
MOST_TYPES = 24  # 26 letters less the two that are no defect
DESCRIBED, QUOTED, ANSWERED = 40, 25, 80  # words
CHOICE_TOKENS, WORD_TOKENS, FORM_TOKENS = 32, 96, 512

View = tuple[str, np.ndarray]  # label, picture


@dataclass(frozen=True)
class CaseViews:
    """The pictures of a case that may be sent to one reasoner, drawn once for all questions."""

    case: Case
    caps: Caps
    whole: tuple[View, ...]  # reference, query, marks: those that there are and that may be sent
    sheets: dict[int, View]  # of each region, by its id

    @classmethod
    def of(cls, case: Case, caps: Caps) -> "CaseViews":
        """Draws the views of a case; where the detector finds it normal, nothing is marked."""
        if case.detector_verdict == NORMAL:
            case = replace(case, regions=())
        pictures = {
            REFERENCE: reference_view(case, caps),
            "QUERY": query_view(case, caps),
            MARKED: marks_view(case, caps),
        }
        whole = [(label, picture) for label, picture in pictures.items() if picture is not None]
        for label in (REFERENCE, MARKED):
            if len(whole) > caps.max_images:
                whole = [view for view in whole if view[0] != label]
        between = " (first the NORMAL reference at the same coordinates, then QUERY)" if case.references else ""
        sheets = {one.id: (f"Area {one.id} enlarged{between}", region_sheet(case, one)) for one in case.regions}
        return cls(case, caps, tuple(whole), sheets)

    @property
    def types(self) -> tuple[str, ...]:
        """Names of the defects to choose from, at least one."""
        names = (name for name in self.case.vocabulary if name not in (VARIATION, UNSURE))
        return tuple(names)[:MOST_TYPES] or ("defect",)

    @property
    def all(self) -> tuple[View, ...]:
        """The whole picture in its views, then every crop, as many as one question may hold."""
        return (*self.whole, *self.sheets.values())[: self.caps.max_images]

    def near(self, number: int) -> tuple[View, ...]:
        """The numbered picture and the crop of one area; the crop matters most."""
        return (*self.whole[-1:], self.sheets[number])[-self.caps.max_images :]

    def part(self, location: str) -> tuple[View, ...]:
        """One ninth of the picture and of the reference enlarged; where whole pictures are held back, what there is."""
        if self.caps.send != "all":
            return self.all
        box = cell_box(location, self.case.picture.shape[:2])
        pictures = {"QUERY": self.case.picture}
        if self.case.references:
            pictures = {REFERENCE: same_size(self.case.references[0], self.case.picture), **pictures}
        views = tuple((f"{label}, {location}", crop(picture, box)) for label, picture in pictures.items())
        return views[-self.caps.max_images :]

    def parts(self, words: str, views: tuple[View, ...], *ids: int) -> tuple[str | np.ndarray, ...]:
        """Pictures with their labels, what is known of the object and of some areas, then the words of a question."""
        name = self.case.name or "an object (its name is not known)"
        known = [f"The pictures show: {name}."]
        known += [f"{rule.kind}: {rule.text}" for rule in self.case.rules]
        known += [measured(region) for region in self.case.regions if region.id in ids]
        if any(label == MARKED for label, _ in views) and len(ids) != 1:
            known.append("The numbered areas are places to look at; some or all of them may be fine.")
        return (*(part for view in views for part in view), "\n".join(known), words)


def measured(region: MarkedRegion) -> str:
    """What is known of a region without asking."""
    return f"Area {region.id}: {region.location}, {region.size_words}; measured: {region.facts}."


def whole_question(views: CaseViews) -> Ask:
    """Whether anything is wrong with the object."""
    words = "Compare with what such an object should look like. Is the object in QUERY normal or anomalous?"
    return Ask(
        views.parts(words, views.all, *views.sheets), Choice((NORMAL, ANOMALOUS, UNSURE)), max_tokens=CHOICE_TOKENS
    )


def type_question(views: CaseViews, number: int | None) -> Ask:
    """Which defect an area shows, or, without a number, the object."""
    options = Choice((*views.types, VARIATION, UNSURE))
    return Ask(_about(views, number, "What does {} show?"), options, max_tokens=CHOICE_TOKENS)


def description_question(views: CaseViews, number: int | None, kind: str) -> Ask:
    """One sentence on what is visible."""
    words = f"Describe in one sentence what is visible in {{}} that may be: {kind}. No cause, no advice."
    return Ask(_about(views, number, words), Text(DESCRIBED), max_tokens=WORD_TOKENS)


def _about(views: CaseViews, number: int | None, words: str) -> tuple[str | np.ndarray, ...]:
    if number is None:
        return views.parts(words.format("QUERY"), views.whole)
    return views.parts(words.format(f"area {number}"), views.near(number), number)


def refuting_question(views: CaseViews, number: int) -> Ask:
    """The best innocent cause of an area; its crop alone is shown."""
    words = f"Area {number} may be harmless. Which harmless cause explains it best?"
    options = Choice((*INNOCENT, NONE_OF_THESE))
    return Ask(views.parts(words, (views.sheets[number],), number), options, max_tokens=CHOICE_TOKENS)


def place_question(views: CaseViews) -> Ask:
    """Where, outside the numbered areas, something is wrong."""
    words = "In which part of QUERY, outside the numbered areas, is something wrong?"
    return Ask(views.parts(words, views.whole), Choice((*PLACES, NOWHERE)), max_tokens=CHOICE_TOKENS)


def writing_question(views: CaseViews) -> Ask:
    """Whether there is writing in the picture, which a model may take for an instruction."""
    words = "Is there any writing in QUERY, such as letters, a label or handwriting?"
    return Ask(views.parts(words, views.whole), Choice((YES, NO)), max_tokens=CHOICE_TOKENS)


def verbatim_question(views: CaseViews) -> Ask:
    """The writing, word for word."""
    return Ask(
        views.parts("Copy the writing in QUERY word for word.", views.whole), Text(QUOTED), max_tokens=WORD_TOKENS
    )


def rule_question(views: CaseViews, rule: Rule) -> Ask:
    """Whether the object keeps to a rule: yes is always good. Where a rule holds in one place, that place is shown."""
    shown = views.all if rule.region is None else views.part(rule.region)
    where = "QUERY" if rule.region is None else f"the {rule.region} of QUERY"
    text = rule.text if rule.count is None else f"{rule.text} (exactly {rule.count[1]} x {rule.count[0]})"
    if rule.kind == "normal":
        words = f"It should be so: {text}. Is it so in {where}?"
    else:
        words = f"This must not be there: {text}. Is {where} free of it?"
    return Ask(views.parts(words, shown, *views.sheets), Choice((YES, NO, UNSURE)), max_tokens=CHOICE_TOKENS)


def rule_place_question(views: CaseViews, rule: Rule) -> Ask:
    """Which numbered area breaks a rule."""
    options = (*(f"area {number}" for number in views.sheets), ELSEWHERE)
    words = f"Which area breaks this rule: {rule.text}?"
    return Ask(views.parts(words, views.all, *views.sheets), Choice(options), max_tokens=CHOICE_TOKENS)


def rule_quote_question(views: CaseViews, rule: Rule) -> Ask:
    """What breaks a rule, in one sentence."""
    words = f"Say in one sentence what is visible in QUERY that breaks this rule: {rule.text}"
    return Ask(views.parts(words, views.all, *views.sheets), Text(QUOTED), max_tokens=WORD_TOKENS)


def own_question(views: CaseViews, question: str) -> Ask:
    """The user's own question."""
    return Ask(views.parts(question, views.all, *views.sheets), Text(ANSWERED), max_tokens=2 * WORD_TOKENS)


def form_question(views: CaseViews) -> Ask:
    """Verdict, areas and writing in one answer, for servers that give no probabilities."""
    words = (
        "Compare with what such an object should look like. Give a verdict on QUERY, then for every numbered area what "
        "it shows and one sentence on what is visible there; where else something is wrong; and any writing in QUERY, "
        "word for word (empty if none)."
    )
    types = {"type": "string", "enum": [*views.types, VARIATION, UNSURE]}
    area = {
        "region": {"type": "integer", "enum": list(views.sheets)},
        "type": types,
        "description": {"type": "string", "maxLength": 300},
    }
    keys = {
        "verdict": {"type": "string", "enum": [NORMAL, ANOMALOUS, UNSURE]},
        "regions": {"type": "array", "items": _object(area)},
        "elsewhere": {"type": "string", "enum": [*PLACES, NOWHERE]},
        "writing": {"type": "string", "maxLength": 200},
    }
    if not views.sheets:
        del keys["regions"]
    return Ask(views.parts(words, views.all, *views.sheets), Schema(_object(keys)), max_tokens=FORM_TOKENS)


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    required = list(properties)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
