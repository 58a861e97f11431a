"""Explanations of annotated pictures against their annotations: is the defect called and placed as people did?

Type naming, as in VELM (arXiv:2505.02626): the names of a category's defect folders are the vocabulary; the strongest
defect counts. Localisation against masks: its location words against the cell of the mask's centre, its box against the
mask's, and whether any defect's box holds the mask's centre. An anomalous picture in which nothing was marked is wrong
in all of them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlad.datasets.samples import Sample, read_mask
from vlad.explain.exam.answering import usage_line
from vlad.explain.exam.scores import box_iou, inside, mask_box, mask_center
from vlad.explain.exam.tables import Table
from vlad.explain.interview.votes import mean
from vlad.images.places import place_of
from vlad.prompts import PromptPack
from vlad.records import Line

if TYPE_CHECKING:
    from vlad.explain.explanation import Explanation

Measure = Callable[[Sequence[Line]], dict[str, float | int | None]]

TOP = 3
ALL = "mean"


def vocabulary(samples: Iterable[Sample]) -> tuple[str, ...]:
    """The defect types of a category's pictures, in words, sorted."""
    return tuple(sorted({in_words(sample.defect) for sample in samples if sample.label}))


def in_words(defect: str) -> str:
    """A folder's name as words.

    >>> in_words("manipulated_front")
    'manipulated front'
    """
    return " ".join(defect.replace("_", " ").replace("-", " ").split())


def with_vocabulary(pack: PromptPack, labels: Sequence[str]) -> PromptPack:
    """`pack` with these labels as its defects, one phrase each."""
    return replace(pack, defects={label: (f"{{}} with {label}",) for label in labels}, severity={})


def compare(sample: Sample, explanation: "Explanation", types: int) -> Line:
    """One picture's explanation beside its annotation; `types` is the size of the vocabulary."""
    defects = explanation.defects
    first = defects[0] if defects else None
    said = {
        "type": None if first is None else first.type,
        "guesses": [] if first is None else [one.type for one in first.alternatives][:TOP],
        "location": None if first is None else first.location,
        "boxes": [list(defect.box) for defect in defects],
        "p_anomalous": explanation.reasoner.p_anomalous,
        "needs_review": explanation.needs_review,
    }
    truth = {
        "source": str(sample.image),
        "category": sample.category,
        "anomalous": bool(sample.label),
        "truth": in_words(sample.defect) if sample.label else None,
        "types": types,
    }
    mask = read_mask(sample) if sample.label and sample.mask is not None else None
    problems = "; ".join(explanation.errors) or None
    # a tier that fell back to another was not measured: the picture is explained again when the run goes on
    fell = any(limit.code in ("reasoner_failed", "budget") for limit in explanation.limits)
    outcome = {"error": problems if fell else None, "unreadable": None if fell else problems}
    ending = {"usage": usage_line(explanation.usage), **outcome}
    return {**truth, **said, "place": None if mask is None else place(mask), **ending}


def place(mask: np.ndarray) -> dict[str, Any] | None:
    """Centre, cell and box of what is marked; None for an empty mask."""
    if not mask.any():
        return None
    center = mask_center(mask)
    return {"center": list(center), "cell": place_of(center, mask.shape), "box": list(mask_box(mask))}


def tables(lines: Sequence[Line]) -> tuple[Table, ...]:
    """Naming and localisation; those without a single picture are left out."""
    anomalous = [line for line in lines if line["anomalous"]]
    placed = [line for line in anomalous if line["place"] is not None]
    found = [
        _by_category("Type naming", ("types", "top-1", "top-3", "unspecified", "nothing marked"), anomalous, naming),
        _by_category("Localisation agreement", ("location words", "box IoU", "centre hit"), placed, localisation),
    ]
    return tuple(table for table in found if table.rows)


def probabilities(lines: Sequence[Line]) -> tuple[list[float | None], list[bool]]:
    """p(anomalous) of every picture, None where the tier gives none, and whether it is anomalous."""
    return [line["p_anomalous"] for line in lines], [line["anomalous"] for line in lines]


def normal_shots(samples: Iterable[Sample], shots: int) -> list[Path]:
    """The first normal pictures of the train split, shuffled with seed 0 as `vlad.evaluate` does.

    Raises:
        ValueError: there are fewer.
    """
    files = sorted(sample.image for sample in samples if sample.split == "train" and not sample.label)
    if len(files) < shots:
        raise ValueError(f"{shots} shots asked, the train split has {len(files)} normal pictures")
    return [files[index] for index in np.random.RandomState(0).permutation(len(files))[:shots]]


def naming(lines: Sequence[Line]) -> dict[str, float | int | None]:
    """Shares of anomalous pictures: named right, right among the three likeliest, not named, nothing marked.

    A defect whose type is none of the vocabulary's ("unspecified anomaly") is not named, whatever its first guess.
    """
    named = [line["type"] == line["truth"] for line in lines]
    among = [line["truth"] in {line["type"], *line["guesses"]} for line in lines]
    vague = [line["type"] is not None and line["type"].startswith("unspecified") for line in lines]
    nothing = [line["type"] is None for line in lines]
    shares = dict(zip(("top-1", "top-3", "unspecified", "nothing marked"), (named, among, vague, nothing), strict=True))
    return {"types": lines[0]["types"], **{key: mean(map(float, values)) for key, values in shares.items()}}


def localisation(lines: Sequence[Line]) -> dict[str, float | int | None]:
    """Over pictures with a mask: share with the right location words, mean box IoU, share with the centre in a box."""
    words, overlaps, hits = [], [], []
    for line in lines:
        truth, boxes = line["place"], line["boxes"]
        words.append(bool(boxes) and _cell_words(line["location"]) == truth["cell"])
        overlaps.append(box_iou(boxes[0], truth["box"]) if boxes else 0.0)
        hits.append(any(inside(truth["center"], box) for box in boxes))
    return {
        "location words": mean(map(float, words)),
        "box IoU": mean(overlaps),
        "centre hit": mean(map(float, hits)),
    }


def _cell_words(location: str) -> str:
    """The cell in location words such as "upper left, spanning the width"."""
    return location.partition(",")[0].strip()


def _by_category(title: str, columns: Sequence[str], lines: Sequence[Line], measure: Measure) -> Table:
    """A row for each category, and their mean; one type alone is no choice, so its naming stays out of the mean."""
    rows = {}
    for category in dict.fromkeys(line["category"] for line in lines):
        here = [line for line in lines if line["category"] == category]
        rows[category] = {"pictures": len(here), **measure(here)}
    table = [(category, *(row[column] for column in ("pictures", *columns))) for category, row in rows.items()]
    counted = [row for row in rows.values() if row.get("types") != 1]
    if len(rows) > 1 and counted:
        means = (None if column == "types" else mean(row[column] for row in counted) for column in columns)
        label = ALL if len(counted) == len(rows) else f"{ALL} over {len(counted)}"
        table.append((label, sum(int(row["pictures"] or 0) for row in counted), *means))
    return Table(title, ("category", "pictures", *columns), tuple(table))
