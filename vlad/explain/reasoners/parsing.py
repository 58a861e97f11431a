"""Makes words safe to send to a model, and reads what it answers, in whatever form.

Nothing unreadable is ever read as "normal" or "anomalous": it is an answer without a value, with the reason beside it.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vlad.explain.reasoners.protocol import Answer, Choice, Finish, Schema, Text, Usage

MAX_ANSWER = 100_000  # characters of an answer that are read
MAX_TRIES = 200  # opening braces that are tried
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# What opens and closes a thought: tags of any of these names, then marks of Kimi, Cohere, Apertus, Gemma and harmony,
# and what is left of harmony's where a server takes its marks out.
_THOUGHTS = "think|thinking|thoughts?|reasoning|reflection|analysis|scratchpad|seed:think"
_OPENED = (
    rf"<(?:{_THOUGHTS})\s*>|\[THINK\]|\u25c1think\u25b7|<\|(?:START_THINKING|inner_prefix)\|>|<\|channel>\s*thought"
    r"|<\|channel\|>\s*(?:analysis|commentary)|\A\s*analysis(?=[A-Z])"
)
_CLOSED = (
    rf"</(?:{_THOUGHTS})\s*>|\[/THINK\]|\u25c1/think\u25b7|<\|(?:END_THINKING|inner_suffix)\|>|<channel\|>"
    r"|<\|channel\|>\s*final(?:\s*<\|constrain\|>\s*\w+)?\s*<\|message\|>|assistantfinal"
)
_OPENS, _CLOSES = re.compile(_OPENED, re.IGNORECASE), re.compile(_CLOSED, re.IGNORECASE)
_DRESS = re.compile(r"</?(?:answer|response|output)\s*>|<\|(?:START|END)_RESPONSE\|>", re.IGNORECASE)
_CONTROL = re.compile(
    rf"{_OPENED}|{_CLOSED}|"
    r"<\|[^<>|\n]{0,64}\|>"  # <|im_start|>, <|image_pad|>, <|eot_id|>
    r"|<\uff5c[^<>\uff5c\n]{0,64}\uff5c>"
    r"|</?(?:s|bos|eos|pad|unk|img|image|video|audio|image_soft_token|IMG_CONTEXT|image_placeholder"
    r"|(?:start|end)_of_(?:turn|image|utterance)|end_of_utterance|fake_token_around_image|global-img|row_\d+_col_\d+)>"
    r"|\[/?(?:INST|IMG|IMG_BREAK|IMG_END|SYSTEM_PROMPT|TOOL_CALLS|AVAILABLE_TOOLS)\]|<</?SYS>>",
    re.IGNORECASE,
)
# What is not seen on a page: control and formatting characters, halves of pairs, fillers, selectors, tags.
_UNPRINTED = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    r"\u2060-\u206f\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_LINK = re.compile(r"!?\[([^\]\n]*)\]\([^)\n]*\)|\b(?:https?|ftp|file|data|javascript):\S+|\bwww\.\S+", re.IGNORECASE)
_REFUSAL = re.compile(
    r"^\W*(?:i['\u2019]?m |i am |unfortunately,? |really |so )*(?:sorry\b|i apologi[sz]e)"
    r"|^\W*(?:unfortunately,? |as an? (?:ai|language model)[^.]*?,? )?(?:i|we)(?:['\u2019]m| am| are)? ?"
    r"(?:can['\u2019]?t|cannot|can not|won['\u2019]?t|will not|unable to|not able to)"
    r" (?:help|assist|comply|provide|process|view|see the (?:image|picture)|analy[sz]e|identify|answer|do that)",
    re.IGNORECASE,
)
_SYNONYMS = {
    "anomalous": "anomalous yes defective ng bad fail failed faulty abnormal anomaly defect nok damaged",
    "normal": "normal no ok good pass passed fine normal. regular intact defect-free",
    "cannot tell": "unsure unknown uncertain unclear undetermined n/a none",
    "yes": "yes true compliant",
    "no": "no false violated",
}


def neutralise(text: str, tokens: Iterable[str] = ()) -> str:
    """`text` with a space where it looks like a chat turn or the place of a picture.

    Args:
        tokens: further pieces to take out, such as the special tokens of a tokenizer, case kept.
    """
    for token in sorted(tokens, key=len, reverse=True):
        text = text.replace(token, " ")  # a space: cut out of "<|im_<|x|>start|>" it would leave another token
    before = ""
    while before != text:  # what is left may close up to a mark: "<think<s>>"
        before, text = text, _CONTROL.sub(" ", _UNPRINTED.sub(" ", text))
    return text


def spoken(text: str) -> str:
    """What a model said aloud: its thinking is cut off; empty where it never stopped to think."""
    text = _CLOSES.split(text[:MAX_ANSWER])[-1]
    text = _OPENS.split(text)[0]
    return _CONTROL.sub(" ", _DRESS.sub(" ", text)).strip()


def thinks(text: str) -> bool:
    """Whether a text holds a thought, or a part of one."""
    return bool(_CLOSES.search(text[:MAX_ANSWER]) or _OPENS.search(text[:MAX_ANSWER]))


def printable(text: str) -> str:
    """Words of unknown origin on one line, without what is not seen: for sentences that people read."""
    shown = "".join(one if one.isprintable() else " " for one in _UNPRINTED.sub(" ", text))
    return " ".join(shown.split())


def plain_words(text: str, max_words: int) -> str:
    """Untrusted words as one line for a report: no links, no control characters, nothing a spreadsheet would run."""
    text = _LINK.sub(lambda link: link.group(1) or "", _UNPRINTED.sub(" ", spoken(text)))
    words = text.replace("```", " ").lstrip(" \t\n=+-@*#>").split()
    return " ".join(words[:max_words])[: 16 * max_words]


def is_refusal(text: str) -> bool:
    """Whether an answer opens like one that declines the question. Ask only of what could not be read."""
    return bool(_REFUSAL.match(spoken(text)[:200]))


def match_option(text: str, options: tuple[str, ...]) -> int | None:
    """Index of the one option that an answer names by its letter or in full; None for anything else.

    "B", "(b)", "**B.** dent", "Answer: B", "dent" and {"answer": "B"} are read; a word inside a sentence is not.
    """
    said = spoken(text)
    found = find_object(said, ("answer",))
    said = str(found["answer"]) if found else said
    said = re.sub(r"^(?:the )?(?:final )?answer(?: is)?\s*:?\s*", "", said.strip("`*_\"'. \n"), flags=re.IGNORECASE)
    said = re.sub(r"^\$*\\boxed\{(?:\\(?:text|mathrm|mathbf)\{)?(.*?)\}+\$*$", r"\1", said).strip("`*_\"'. \n")
    plain = [option.casefold() for option in options]
    if said.casefold() in plain:
        return plain.index(said.casefold())
    lettered = re.fullmatch(r"\(?([A-Za-z])\)?(?:\**[.):\]]\**\s*(.*))?", said, flags=re.DOTALL)
    index = LETTERS.find(lettered.group(1).upper()) if lettered else -1
    if lettered is None or index >= len(options):
        return None
    listed = re.findall(r"^\W*([A-Z])[).:\]]", lettered.group(2) or "", flags=re.MULTILINE)
    if {LETTERS.find(letter) for letter in listed} & {*range(len(options))} - {index}:
        return None  # the list of options again, and none chosen
    repeated = (lettered.group(2) or "").strip(" .*").casefold()
    others = [option for option in plain if repeated == option and option != plain[index]]
    return None if others else index  # "A. dent" where dent is B says nothing


def find_object(text: str, required: Iterable[str]) -> dict[str, Any] | None:
    """The last JSON object of a text that has all the required keys; a cut-off one is none.

    An inner object is passed over by its keys: the first complete one of a cut-off answer is not the answer.
    """
    decoder = json.JSONDecoder(parse_constant=lambda name: None)
    found, at = None, text.find("{")
    for _ in range(MAX_TRIES):
        if at < 0:
            break
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            value, end = None, at + 1
        complete = isinstance(value, dict) and all(key in value for key in required)
        found = value if complete else found
        at = text.find("{", end if complete else at + 1)
    return found


def conform(value: Any, schema: Mapping[str, Any], problems: list[str], at: str = "answer") -> Any:
    """`value` brought into the form of a flat JSON schema; what cannot be mended is added to `problems`.

    Mended without a word: synonyms and case of an enum, numbers as text or out of range, text that is too long, keys
    nobody asked for. An array's items that are wrong are left out and named.
    """
    kinds: dict[str, Callable[..., Any]] = {"object": _object, "array": _array, "string": _string, "boolean": _boolean}
    return kinds.get(schema["type"], _number)(value, schema, problems, at)


def _object(value: Any, schema: Mapping[str, Any], problems: list[str], at: str) -> Any:
    if not isinstance(value, dict):
        problems.append(f"{at} is not an object")
        return None
    missing = [key for key in schema["required"] if key not in value]
    problems.extend(f"{at} has no {key}" for key in missing)
    keys = {key: inner for key, inner in schema["properties"].items() if key in value}
    return {key: conform(value[key], inner, problems, f"{at}.{key}") for key, inner in keys.items()}


def _array(value: Any, schema: Mapping[str, Any], problems: list[str], at: str) -> Any:
    if not isinstance(value, list):
        problems.append(f"{at} is not a list")
        return None
    kept = []
    for number, item in enumerate(value[: schema.get("maxItems", 26)]):
        wrong: list[str] = []
        mended = conform(item, schema["items"], wrong, f"{at}[{number}]")
        problems.extend(f"{problem} (left out)" for problem in wrong)
        kept += [] if wrong else [mended]
    return kept


def _string(value: Any, schema: Mapping[str, Any], problems: list[str], at: str) -> Any:
    if not isinstance(value, str):
        problems.append(f"{at} is not text")
        return None
    options = schema.get("enum")
    if options is None:
        return _UNPRINTED.sub(" ", value)[: schema.get("maxLength", 600)]
    said = value.strip().casefold()
    for option in options:
        if said == option.casefold():
            return option
    for option in options:
        if said in _SYNONYMS.get(option, "").split():
            return option
    problems.append(f"{at} is {value[:40]!r}, not one of {', '.join(options)}")
    return None


def _number(value: Any, schema: Mapping[str, Any], problems: list[str], at: str) -> Any:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if number != number or isinstance(value, bool):
        problems.append(f"{at} is not a number")
        return None
    number = min(max(number, schema.get("minimum", number)), schema.get("maximum", number))
    if "enum" in schema and number not in schema["enum"]:
        problems.append(f"{at} is {value!r:.40}, not one of {', '.join(map(str, schema['enum']))}")
        return None
    return number if schema["type"] == "number" else int(min(max(number, -1e9), 1e9))


def _boolean(value: Any, schema: Mapping[str, Any], problems: list[str], at: str) -> Any:
    if not isinstance(value, bool):
        problems.append(f"{at} is not true or false")
        return None
    return value


def how_to_answer(answer: Choice | Text | Schema) -> str:
    """The words that end a question: in which form the answer is wanted."""
    if isinstance(answer, Choice):
        listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, answer.options, strict=False))
        return f"{listed}\nAnswer with one letter alone."
    if isinstance(answer, Schema):
        return f"Answer with one JSON object of this schema and nothing else:\n{json.dumps(answer.json_schema)}"
    return f"Answer with at most {answer.max_words} plain words."


def read_answer(text: str, answer: Choice | Text | Schema, finish: Finish, usage: Usage) -> Answer:
    """The answer behind a text that a model wrote; `parsed` is None, with the reason, where there is none."""
    parsed, problems = _parse(text, answer)
    if parsed is not None and finish != "refused":
        cut = finish == "length" and isinstance(answer, Text)  # words cut at the limit are still words
        return Answer(text, parsed, finish=finish, usage=usage, code="truncated_answer" if cut else None)
    if finish == "length":
        return Answer(text, None, None, "length", usage, "the answer was cut off at its limit", "truncated_answer")
    if finish == "refused" or is_refusal(text):
        return Answer(text, None, None, "refused", usage, "the model declined to answer", "refused")
    return Answer(text, None, None, finish, usage, f"the answer could not be read: {problems}", "parse_failed")


def _parse(text: str, answer: Choice | Text | Schema) -> tuple[Any, str]:
    if isinstance(answer, Choice):
        index = match_option(text, answer.options)
        return (None, "it names none of the options") if index is None else (answer.options[index], "")
    if isinstance(answer, Text):
        words = plain_words(text, answer.max_words)
        return (words, "") if words and not is_refusal(text) else (None, "it is empty")
    found = find_object(spoken(text), answer.json_schema["required"])
    if found is None:
        return None, "it holds no JSON object with the keys " + ", ".join(answer.json_schema["required"])
    problems: list[str] = []
    mended = conform(found, answer.json_schema, problems)
    fatal = [problem for problem in problems if not problem.endswith("(left out)")]
    return (None, "; ".join(fatal[:5])) if fatal else (mended, "")
