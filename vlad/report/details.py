"""What a saved report keeps beside its numbers, so that it reads back whole: draws, curves, pictures, predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from vlad.files import write_whole
from vlad.report.values import Findings

KEPT = ("curves", "shown", "predictions")
DIGITS = 6  # of a draw; float32 keeps them


def write(file: Path, report: Findings) -> None:
    """Writes `report.details.json` and `report.draws.safetensors` beside `report.json`."""
    from safetensors.numpy import save

    kept = {name: [[*one] for one in getattr(report, name).items()] for name in KEPT}
    write_whole(file.with_suffix(".details.json"), json.dumps(kept).encode())
    # the tensors' names are short: those of the header's list, in order
    names = [list(key) for key in report.draws]
    draws = {str(number): column.astype(np.float32) for number, column in enumerate(report.draws.values())}
    write_whole(file.with_suffix(".draws.safetensors"), save(draws, {"names": json.dumps(names)}))


def read(file: Path) -> dict[str, Any]:
    """What `write` left beside `file`, as keywords of a report; {} where there is nothing."""
    from safetensors import safe_open

    found: dict[str, Any] = {}
    if (beside := file.with_suffix(".details.json")).is_file():
        raw = json.loads(beside.read_text(encoding="utf-8"))
        found = {name: {tuple(key): value for key, value in raw[name]} for name in KEPT}
    if (beside := file.with_suffix(".draws.safetensors")).is_file():
        with safe_open(beside, framework="numpy") as draws:
            names = json.loads(draws.metadata()["names"])
            found["draws"] = {
                tuple(name): np.round(draws.get_tensor(str(number)).astype(np.float64), DIGITS)
                for number, name in enumerate(names)
            }
    return found
