"""Published numbers beside ours: only for whole data sets, each with its setting and its source.

`eval/published.csv` holds them in percent; `eval/full_sets.csv` says how many test pictures a whole set has. A subset,
or a set with another split, is never compared.
"""

import csv
import functools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from vlad.files import resource
from vlad.report.values import CLEAN, Findings

METRICS = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_aupro")

NOT_WHOLE = "this is not the whole set"
NAMED = 4  # categories that a sentence names


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
    return [one for one in lines() if one.dataset == dataset]


@functools.cache
def lines() -> tuple[Published, ...]:
    """All that is on record."""
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
    whole = {row["category"]: row for row in _whole_sets() if row["dataset"] == dataset}
    if not whole:
        return "no published table of this set, in this split, is on record"
    counts = Counter(normal=0, anomalous=0, categories=len(categories))
    for one in categories.values():
        counts.update(normal=one["normal"], anomalous=one["anomalous"])
    total = whole.pop("")
    if all(counts[key] == int(total[key]) for key in counts):
        return ""
    had = "{categories} categories with {normal} normal and {anomalous} anomalous test pictures"
    nothing = {"normal": 0, "anomalous": 0}
    other = [
        f"{name} {own['normal']} + {own['anomalous']}, not {row['normal']} + {row['anomalous']}"
        for name, row in whole.items()
        if any((own := categories.get(name, nothing))[key] != int(row[key]) for key in nothing)
    ]
    more = f" and {len(other) - NAMED} more" if len(other) > NAMED else ""
    said = f" ({'; '.join(other[:NAMED])}{more})" if other else ""
    return f"{NOT_WHOLE}: {had.format(**counts)}, the whole one has {had.format(**total)}{said}"


@functools.cache
def _whole_sets() -> tuple[dict[str, str], ...]:
    with resource("eval/full_sets.csv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


class Beside(NamedTuple):
    """One value of ours and the published one that it repeats."""

    detector: str
    dataset: str
    metric: str
    measured: float
    published: float
    source: str


def repeated(report: Findings) -> list[Beside]:
    """Measured means beside the published ones that their detectors repeat, on whole data sets.

    A published AUPRO is beside the papers' AUPRO where that was measured.
    """
    means = {(row.detector, row.dataset, row.metric): row.value for row in report.mean() if row.condition == CLEAN}
    found = []
    for label, settings in report.settings["detectors"].items():
        for dataset, categories in report.settings["data"].items():
            line = _line(dataset, settings.get("published"))
            if line is None or why_not(dataset, categories):
                continue
            for metric, value in line.values.items():
                own = "pixel_aupro_200" if metric == "pixel_aupro" else metric
                own = own if (label, dataset, own) in means else metric
                if not math.isnan(measured := means.get((label, dataset, own), math.nan)):
                    found.append(Beside(label, dataset, own, measured, value, line.source))
    return found


def _line(dataset: str, wanted: Mapping[str, str] | None) -> Published | None:
    """The line of this data set that a suite names by method, setting and the beginning of the source."""
    if wanted is None:
        return None
    key = wanted["method"], wanted["setting"]
    own = (one for one in published(dataset) if (one.method, one.setting) == key)
    return next((one for one in own if one.source.startswith(wanted["source"])), None)
