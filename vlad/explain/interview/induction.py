"""Rules proposed by a vision-language model that looks at good pictures, one by one; for people to edit.

Each picture is described, and rules are drawn from the description: what holds of a good one, and what would be wrong.
A normal rule is kept where it comes back for several pictures, in similar words: what holds of one alone may be chance.
All abnormal rules are kept, each once.

Source: in the spirit of AnomalyRuler (arXiv:2407.10299), whose normal rules are put to a vote as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlad.explain.reasoners.asking import Asker
from vlad.explain.reasoners.parsing import plain_words
from vlad.explain.reasoners.protocol import Ask, Reasoner, Schema, Text
from vlad.explain.views import VIEW_SIDE
from vlad.images import read
from vlad.images.sizes import fitted
from vlad.prompts import check_name

PICTURES, RECURRENCES = 10, 3  # a normal rule holds of 3 of 10 pictures, or of the same share of fewer
SIMILAR = 0.6  # ROUGE-L from which two rules say the same
MAX_WORDS, MAX_RULES, MAX_SECONDS = 20, 5, 1800.0


@dataclass(frozen=True)
class ProposedRules:
    """Rules with the number of pictures that each was drawn from, the most common first.

    Attributes:
        pictures: number of pictures that rules came from.
        errors: one sentence for each question without a usable answer.
    """

    normal: tuple[tuple[str, int], ...]
    abnormal: tuple[tuple[str, int], ...]
    pictures: int
    errors: tuple[str, ...] = ()

    def text(self, name: str, model: str) -> str:
        """The rule file, with a remark on where each rule comes from."""
        lines = [f"# Proposed by {plain_words(model, 20)} from {self.pictures} good pictures of a {name}: edit it."]
        for kind, rules in (("normal", self.normal), ("abnormal", self.abnormal)):
            lines += [""] if rules else []
            for rule, count in rules:
                lines += [f"# from {count} of {self.pictures}", f"{kind}: {rule}"]
        return "\n".join(lines) + "\n"


def propose_rules(pictures: Sequence[Any], name: str, reasoner: Reasoner) -> ProposedRules:
    """Rules of what `name` looks like, from up to 10 good pictures.

    Args:
        pictures: good ones, as `vlad.images.read` takes them; the first 10 are looked at.
        name: what they show, in words.
        reasoner: as `vlad.explain.reasoners.make_reasoner` gives it; it is sent the pictures.

    Raises:
        ValueError: no picture, or a name that does not fit into prompts.
        vlad.ImageError: a picture that cannot be read.
        RuntimeError: the model gave no usable rule.
    """
    name, pictures = check_name(name), list(pictures)[:PICTURES]
    if not pictures:
        raise ValueError("no good picture given; rules are drawn from at least one")
    asker = Asker(reasoner, MAX_SECONDS)
    drawn = [found for one in pictures if (found := _rules_of(asker, one, name)) is not None]
    least = max(1, -(-RECURRENCES * len(pictures) // PICTURES))  # rounded up
    normal = [(rule, count) for rule, count in recurring([found["normal"] for found in drawn]) if count >= least]
    abnormal = recurring([found["abnormal"] for found in drawn])
    if not normal and not abnormal:
        raise RuntimeError(f"{reasoner.name} gave no usable rule ({'; '.join(asker.errors[:3]) or 'none came back'})")
    return ProposedRules(tuple(normal), tuple(abnormal), len(drawn), tuple(asker.errors))


def recurring(lists: Sequence[Sequence[str]]) -> list[tuple[str, int]]:
    """Each rule once, in its first wording, with the number of lists that hold it or a similar one; commonest first.

    >>> recurring([["the edge is smooth"], ["the edge is smooth", "it is red"], ["the edge is very smooth"]])
    [('the edge is smooth', 3), ('it is red', 1)]
    """
    seen: dict[str, set[int]] = {}
    for index, rules in enumerate(lists):
        for rule in rules:
            same = next((known for known in seen if rouge_l(known, rule) >= SIMILAR), rule)
            seen.setdefault(same, set()).add(index)
    return sorted(((rule, len(where)) for rule, where in seen.items()), key=lambda pair: -pair[1])


def _rules_of(asker: Asker, picture: Any, name: str) -> dict[str, list[str]] | None:
    """The rules drawn from one picture; None where no usable answer came."""
    view = fitted(read(picture), VIEW_SIDE)
    ask = f"This is a good {name}, free of any defect. Describe its parts, their number, places, shapes and colours."
    description = asker.ask(Ask((view, ask), Text(max_words=80))).parsed
    if description is None:
        return None
    question = (
        f"A good {name} looks like this: {description}\nWrite rules that an inspector can check in a photo: what holds "
        f"of every good {name} (normal), and what would be wrong (abnormal). Only what is visible; at most {MAX_WORDS} "
        "words a rule."
    )
    rules = asker.ask(Ask((question,), Schema(_schema()))).parsed
    if rules is None:
        return None
    tidy = {kind: [_one_rule(rule) for rule in rules[kind]] for kind in ("normal", "abnormal")}
    return {kind: [rule for rule in found if rule] for kind, found in tidy.items()}


def _schema() -> dict[str, Any]:
    rules = {"type": "array", "items": {"type": "string", "maxLength": 200}, "maxItems": MAX_RULES}
    return {
        "type": "object",
        "properties": {"normal": rules, "abnormal": rules},
        "required": ["normal", "abnormal"],
        "additionalProperties": False,
    }


def rouge_l(candidate: str, reference: str) -> float:
    """F of the longest common subsequence of the lower-cased words; 0 where either text has none.

    "A dark scratch at the top" and "a scratch at the top left" share "a scratch at the top": P = 5/6, R = 5/6.

    >>> round(rouge_l("A dark scratch at the top.", "a scratch at the top left"), 4)
    0.8333

    Source: Lin 2004, ROUGE: a package for automatic evaluation of summaries.
    """
    one, other = _words(candidate), _words(reference)
    if not one or not other:
        return 0.0
    row = [0] * (len(other) + 1)
    for word in one:
        before = row
        row = [0]
        for index, theirs in enumerate(other):
            row.append(before[index] + 1 if word == theirs else max(before[index + 1], row[index]))
    return 2 * row[-1] / (len(one) + len(other))


def _words(text: str) -> list[str]:
    return "".join(char if char.isalnum() else " " for char in text.casefold()).split()


def _one_rule(words: str) -> str:
    """A rule as one line of a rule file: no prefix and no options of its own, no remark."""
    line = plain_words(words, MAX_WORDS)
    for mark in "#[]":
        line = line.replace(mark, " ")
    kind, colon, rest = line.partition(":")
    return " ".join((rest if colon and len(kind.split()) == 1 else line).split())
