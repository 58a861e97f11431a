"""Published numbers beside ours: only for whole data sets, each with its setting and its source.

`eval/published.csv` holds them in percent; `eval/full_sets.csv` says how many test pictures a whole set has. A subset,
or a set with another split, is never compared.
"""

import csv
import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlad.files import resource

METRICS = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_aupro")


@dataclass(frozen=True)
class Published:
    """One line of a paper's or repository's table: means over the categories of a whole data set."""

    dataset: str
    method: str
    setting: str  # "zero-shot", "4-shot", "batch" (transductive), "full" (all normal training pictures)
    train_data: str  # auxiliary data, "none" where there is none
    values: Mapping[str, float]  # in [0, 1]; only what was reported
    source: str


def published(dataset: str) -> list[Published]:
    """What was published for a whole data set, by its name in `vlad.datasets()`."""
    return [one for one in _all() if one.dataset == dataset]


@functools.cache
def _all() -> tuple[Published, ...]:
    with resource("eval/published.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if not row["category"]]
    return tuple(
        Published(
            row["dataset"],
            row["method"],
            row["setting"],
            row["train_data"],
            {metric: float(row[metric]) / 100 for metric in METRICS if row[metric]},
            row["source"],
        )
        for row in rows
    )


def why_not(dataset: str, categories: Mapping[str, Mapping[str, Any]]) -> str:
    """Why a data set's means are not to be compared with published ones; "" where they are.

    Args:
        categories: category -> counts "normal" and "anomalous" of its test pictures.
    """
    with resource("eval/full_sets.csv").open(encoding="utf-8", newline="") as file:
        whole = {row["dataset"]: row for row in csv.DictReader(file)}
    if dataset not in whole:
        return "no published table of this set, in this split, is on record"
    counts = Counter(normal=0, anomalous=0, categories=len(categories))
    for one in categories.values():
        counts.update(normal=one["normal"], anomalous=one["anomalous"])
    if all(counts[key] == int(whole[dataset][key]) for key in counts):
        return ""
    had = "{categories} categories with {normal} normal and {anomalous} anomalous test pictures"
    return f"this is not the whole set: {had.format(**counts)}, the whole one has {had.format(**whole[dataset])}"
