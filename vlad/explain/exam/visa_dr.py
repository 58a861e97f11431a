"""VisA-D&R: does it see that something is wrong (arXiv:2502.07601).

Every .json file of a folder is a list of items; those with an answer to be counted are {"image", "anomaly": true |
false}. Paths are relative to the file, or to the folder above it, and begin <class>/ or VisA/<class>/. Items with
"questions", the reasoning part, are passed over: how their answers are scored was never published.

One fixed yes-no question; accuracy, precision, recall and F1 per class, then their means.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vlad.explain.exam.answering import Answerer, Question, outcome
from vlad.explain.exam.scores import decisions
from vlad.explain.interview.votes import Vote, mean
from vlad.images import read
from vlad.prompts import category_name
from vlad.records import Line

YES, NO = "yes", "no"


@dataclass(frozen=True)
class Item:
    """One picture to be judged."""

    image: str
    path: Path
    anomalous: bool

    @property
    def key(self) -> str:
        """Tells it from all others."""
        return f"{self.image}#detection"

    @property
    def category(self) -> str:
        """The class: first folder of the path below VisA."""
        parts = PurePosixPath(self.image).parts
        return parts[1] if parts[0].casefold() == "visa" and len(parts) > 1 else parts[0]


def items(root: Path) -> list[Item]:
    """The detection items of all .json files of a folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file that is no such list, an item of another form, or no detection item at all.
    """
    files = sorted(root.glob("*.json"))
    if not files:
        raise FileNotFoundError(f"{root}: no .json file here; give the folder with the lists of VisA-D&R")
    found = [item for file in files for item in _items(file)]
    if not found:
        raise ValueError(f'{root}: no item to judge; expected items {{"image", "anomaly": true | false}}')
    return found


def _items(file: Path) -> list[Item]:
    try:
        raw = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(raw, list):
        raise ValueError(f"{file}: expected a list of items, got {type(raw).__name__}")
    found = []
    for number, entry in enumerate(raw, 1):
        try:
            found += [] if "questions" in entry else [_item(file.parent, entry)]
        except (KeyError, TypeError, ValueError) as error:
            needed = '{"image", "anomaly": true | false}'
            raise ValueError(f"{file}, item {number}: {error!r}; expected {needed}") from None
    return found


def _item(folder: Path, entry: Any) -> Item:
    image = str(entry["image"])
    path = next((p for p in (folder / image, folder.parent / image) if p.is_file()), folder / image)
    if entry["anomaly"] not in (True, False, 0, 1):
        raise ValueError(f"anomaly is {entry['anomaly']!r}")
    return Item(image, path, bool(entry["anomaly"]))


def ask(item: Item, answerer: Answerer) -> Line:
    """One item judged; a picture that cannot be read is the line's error."""
    truth = {"image": item.image, "class": item.category, "anomalous": item.anomalous}
    name = category_name("visa", item.category)
    try:
        picture = read(item.path)
    except ValueError as error:
        return {**truth, "said": None, "p_anomalous": None, "usage": None, "error": str(error), "unreadable": None}
    got = answerer(Question(f"Is there any defect on this {name}?", (YES, NO), picture, name))
    vote = Vote.of(got, (YES, NO))
    p = vote.share([YES], [NO]) if vote is not None and vote.probs is not None else None
    said = None if got.parsed is None else got.parsed == YES
    return {**truth, "said": said, "p_anomalous": p, **outcome(got)}


def detection(lines: Sequence[Line]) -> dict[str, dict[str, float | None]]:
    """Class -> accuracy, precision, recall, f1; "mean" over the classes."""
    found: dict[str, dict[str, float | None]] = {}
    for name in dict.fromkeys(line["class"] for line in lines):
        here = [line for line in lines if line["class"] == name]
        found[name] = vars(decisions([line["said"] for line in here], [line["anomalous"] for line in here]))
    keys = next(iter(found.values()))
    found["mean"] = {key: mean(row[key] for row in found.values()) for key in keys}
    return found
