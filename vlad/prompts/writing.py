"""A prompt pack written by a language model: asked kind by kind for visible states, filtered, for people to edit.

Released lists of such phrases hold states that no camera sees (odour, hardness), so what comes back is filtered twice:
by a list of words, and by asking the model whether a photo can show it. The general phrases of the generic pack are
always kept: they find what nobody thought of. No picture is sent.
"""

import datetime
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vlad.explain.reasoners.asking import Asker
from vlad.explain.reasoners.protocol import PROMPT_VERSION, Ask, Choice, Reasoner, Schema
from vlad.prompts import PromptPack, check_name
from vlad.prompts.wording import PACK_KEYS, STATES

KINDS = {
    "surface": "marks on its surface, such as scratches, cracks, pits or worn areas",
    "shape": "a wrong shape, such as bends, dents or broken edges",
    "colour": "a wrong colour, such as stains, burns or rust",
    "contamination": "foreign material on it or in it",
    "missing or extra": "parts that are missing, or that should not be there",
    "assembly": "parts that are in the wrong place, turned or loose",
    "print": "faults of its printing, label or coating",
}
STATES_PER_KIND, GOOD_STATES, MAX_WORDS = 2, 5, 8  # 14 anomalous ones in all
SCENES_AT_ONCE, CAPTION_LETTERS, SHOWN_AGAIN = 10, 160, 10  # captions of a question, their length, those it shows again
MAX_SECONDS = 600.0  # for all questions together
GENERIC = "winclip"
SYSTEM = (
    "You write short phrases for a program that compares photographs with words. A phrase names what a camera sees: "
    "no cause, no process, no negation, one thing at a time."
)

# What no photo shows; and words that negate, which text encoders hardly read.
_UNSEEN = r"smell\w*|odou?rs?|soft\w*|hard|harder|hardened|heavy|heavier|tast\w+|nois\w+|brittle\w*"
_NOT_VISUAL = re.compile(rf"\b(?:{_UNSEEN})\b", re.IGNORECASE)
_NEGATION = re.compile(r"\b(?:no|not|non|never|without|lacks?|lacking)\b|n't\b|\bfree of\b", re.IGNORECASE)
_ARTICLE = re.compile(r"^(?:an?|the|some|its|it has|with)\s+", re.IGNORECASE)


@dataclass(frozen=True)
class WrittenPack:
    """A pack, and what happened on the way.

    Attributes:
        dropped: state -> why it is not in the pack.
        errors: one sentence for each question without a usable answer.
        calls: questions asked.
    """

    pack: PromptPack
    dropped: Mapping[str, str] = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    calls: int = 0


def make_pack(name: str, reasoner: Reasoner, today: datetime.date | None = None) -> WrittenPack:
    """The generic pack with states of `name` that a language model thought of, each also a label of [defects].

    Args:
        name: what the pictures show, in words.
        reasoner: as `vlad.explain.reasoners.make_reasoner` gives it; it is sent words alone.
        today: written into [source]; None asks the clock.

    Raises:
        ValueError: a name that does not fit into prompts.
        RuntimeError: the model gave no usable anomalous state.
    """
    name, generic = check_name(name), PromptPack.load(GENERIC)
    asker = Asker(reasoner, MAX_SECONDS)
    dropped: dict[str, str] = {}
    good = _states(asker, _good_question(name), GOOD_STATES)
    bad = [state for what in KINDS.values() for state in _states(asker, _bad_question(name, what), STATES_PER_KIND)]
    good = _kept(good, dropped, lambda state: _can_be_seen(asker, name, state))
    bad = _kept(bad, dropped, lambda state: _can_be_seen(asker, name, state))
    if not bad:
        reasons = "; ".join([*asker.errors, *(f"{state!r}: {why}" for state, why in dropped.items())][:3])
        raise RuntimeError(f"{reasoner.name} gave no usable state of a {name} ({reasons or 'its lists were empty'})")
    source = {
        "model": reasoner.name,
        "date": (today or datetime.date.today()).isoformat(),
        "prompt_version": PROMPT_VERSION,
        "not_visual_dropped": [state for state, why in dropped.items() if why == "no photo shows it"],
    }
    pack = PromptPack(
        title=name,
        templates=generic.templates,
        normal=_joined(generic.normal, good),
        anomalous=_joined(generic.anomalous, bad, without=_joined(generic.normal, good)),
        defects={_label(state): (_phrase(state),) for state in bad},
        source=source,
    )
    return WrittenPack(pack, dropped, tuple(asker.errors), asker.usage.calls)


def with_scenes(written: WrittenPack, name: str, reasoner: Reasoner, count: int) -> WrittenPack:
    """The same with captions of `count` scenes of normal life round a `name` and `count` of something gone wrong there.

    Fewer where the model repeats itself: it is asked twice as often as it must be, no more.

    Raises:
        ValueError: count is below 1.
        RuntimeError: the model gave no usable caption of a side.
    """
    if count < 1:
        raise ValueError(f"--scenes is {count}; expected how many captions of each side, 1 or more")
    asker = Asker(reasoner, MAX_SECONDS)
    scenes: dict[str, tuple[str, ...]] = {}
    taken: set[str] = set()  # of both sides
    for state in STATES:
        found: list[str] = []
        for _ in range(2 * -(-count // SCENES_AT_ONCE)):
            if len(found) >= count:
                break
            question = _scenes_question(name, state, found[-SHOWN_AGAIN:])
            for caption in _states(asker, question, SCENES_AT_ONCE, CAPTION_LETTERS):
                if caption and not set("{}") & set(caption) and caption.casefold() not in taken:
                    taken.add(caption.casefold())
                    found.append(caption)
        if not found:
            raise RuntimeError(f"{reasoner.name} gave no usable caption ({'; '.join(asker.errors[:3]) or 'none came'})")
        scenes[state] = tuple(found[:count])
    errors, calls = (*written.errors, *asker.errors), written.calls + asker.usage.calls
    return replace(written, pack=replace(written.pack, scenes=scenes), errors=errors, calls=calls)


def why_not(state: str) -> str | None:
    """What makes a state unfit for a prompt, by its words alone; None where nothing does.

    >>> why_not("a smell of solvent"), why_not("a bent edge")
    ('no photo shows it', None)
    """
    if not state or any(mark in state for mark in "{}\n\r"):
        return "it is empty or has a brace"
    if _label(state) in PACK_KEYS:
        return "its name has another meaning in a pack"
    if len(state.split()) > MAX_WORDS:
        return f"it has more than {MAX_WORDS} words"
    if _NOT_VISUAL.search(state):
        return "no photo shows it"
    return "it is a negation" if _NEGATION.search(state) else None


def _good_question(name: str) -> str:
    return (
        f'A good {name}, free of any defect, is photographed. Complete "a {name} with ..." in {GOOD_STATES} ways that '
        f'say what the photo shows, such as "a smooth surface". Each at most {MAX_WORDS} words.'
    )


def _bad_question(name: str, what: str) -> str:
    return (
        f'A defective {name} is photographed. Complete "a {name} with ..." in {STATES_PER_KIND} ways that name '
        f'{what}, as they look in the photo, such as "a bent edge". Each at most {MAX_WORDS} words.'
    )


def _scenes_question(name: str, state: str, known: list[str]) -> str:
    what = "everyday life with nothing wrong" if state == "normal" else "something that has gone wrong or is dangerous"
    others = f" Others than these: {'; '.join(known)}." if known else ""
    return (
        f"A camera watches a {name}. Write {SCENES_AT_ONCE} captions of single frames that show {what}, all different, "
        f'each one short sentence that says who does what where, such as "a worker puts parts into a box".{others}'
    )


def _states(asker: Asker, question: str, count: int, letters: int = 80) -> list[str]:
    """The states of one answer, tidied; [] where no usable answer came."""
    entry = {"type": "string", "maxLength": letters}
    schema = {
        "type": "object",
        "properties": {"states": {"type": "array", "items": entry, "maxItems": count}},
        "required": ["states"],
        "additionalProperties": False,
    }
    answer = asker.ask(Ask((question,), Schema(schema), system=SYSTEM))
    return [] if answer.parsed is None else [_tidy(state) for state in answer.parsed["states"]]


def _tidy(state: Any) -> str:
    words = re.sub(r"^\W+|[\W_]+$", "", " ".join(str(state).split()))
    return re.sub(r"^with\s+", "", words, flags=re.IGNORECASE)


def _kept(states: Iterable[str], dropped: dict[str, str], can_be_seen: Callable[[str], bool]) -> list[str]:
    """Each fit state once; the others go into `dropped` with their reason."""
    kept: dict[str, str] = {}
    for state in states:
        if state.casefold() in kept or state in dropped:
            continue
        why = why_not(state) or (None if can_be_seen(state) else "no photo shows it")
        if why is None:
            kept[state.casefold()] = state
        elif state:
            dropped[state] = why
    return list(kept.values())


def _can_be_seen(asker: Asker, name: str, state: str) -> bool:
    """The model's word for it; where none comes the state stays, since people read the file."""
    question = f'Can an ordinary photo show "{state}" on a {name}, without touching, smelling or testing it?'
    return asker.ask(Ask((question,), Choice(("yes", "no")), system=SYSTEM)).parsed != "no"


def _phrase(state: str) -> str:
    return f"{{}} with {state}"


def _label(state: str) -> str:
    return _ARTICLE.sub("", state)


def _joined(generic: Iterable[str], states: Iterable[str], without: Iterable[str] = ()) -> tuple[str, ...]:
    """Generic phrases, then those of the states; none twice, and none that the other state has."""
    taken = {phrase.casefold() for phrase in without}
    phrases = {phrase.casefold(): phrase for phrase in [*generic, *map(_phrase, states)][::-1]}
    return tuple(phrase for key, phrase in reversed(phrases.items()) if key not in taken)
