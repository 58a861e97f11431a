"""Verdicts for a pile of pictures of which nobody knows which are good, once all of them have a score.

The threshold is the one that the scores together show, if they show one: two groups with a gap. It is never made from
one picture, and where there is no gap there is no verdict; see `vlad.thresholds.from_unlabelled`.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from vlad.batch import LINES, Line, _bytes, _locked, _parsed, _replace
from vlad.thresholds import Calibration, from_unlabelled

RULE = "threshold.json"  # beside the lines: what their threshold rests on


def decide(lines: Iterable[Line]) -> Calibration:
    """What the scores of lines of results show; failed ones do not count."""
    return from_unlabelled([line["score"] for line in lines if line["error"] is None])


def judged(line: Line, threshold: float | None) -> Line:
    """The line with this threshold and the verdict that follows; None: no verdict. Failed ones stay as they are."""
    if line["error"] is not None:
        return line
    verdict = None if threshold is None else line["score"] >= threshold
    return {**line, "threshold": threshold, "is_anomalous": verdict}


def decide_folder(out: str | Path) -> Calibration:
    """Decides on all lines of a folder that `vlad.batch.score_folder` wrote, and writes the verdicts into it.

    `results.jsonl` is replaced as a whole, so it has all verdicts or none; `threshold.json` says which rule gave them.

    Raises:
        FileNotFoundError: the folder has no results.
        RuntimeError: another process is writing it.
    """
    folder = Path(out)
    path, partial = folder / LINES, folder / (LINES + ".partial")
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; score pictures into the folder first")
    with _locked(folder):
        made = decide(_lines(path))
        with partial.open("wb") as file:
            file.writelines(_bytes(judged(line, made.threshold)) for line in _lines(path))
            file.flush()
            os.fsync(file.fileno())
        _replace(folder / RULE, json.dumps(made.to_dict(), indent=1).encode())
        os.replace(partial, path)
    return made


def _lines(path: Path) -> Iterator[Line]:
    with path.open("rb") as file:
        yield from filter(None, map(_parsed, file))
