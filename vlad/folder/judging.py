"""New verdicts from recorded scores: scores are scores, another threshold needs no second look at the pictures."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlad import records
from vlad.files import write_whole
from vlad.folder import LINES, SETTINGS, settings_of
from vlad.folder.lines import judged, line_of, recorded
from vlad.prediction import Prediction
from vlad.records import Line
from vlad.thresholds import p_value

if TYPE_CHECKING:
    from vlad.detector import Detector

OF_A_THRESHOLD = ("threshold", "map_threshold", "calibration", "vlad")  # settings that another verdict may change


def judge_folder(out: Path, threshold: float | None = None, detector: "Detector | None" = None) -> dict[str, int]:
    """Decides again on all lines of a scored folder; verdict -> pictures.

    Where the maps were saved (`raw/`), the regions are found again too. The settings then say what decided, so that
    `--resume` goes on with it.

    Args:
        out: what `score_folder` wrote.
        threshold: of the score.
        detector: takes its thresholds; it must be the one that made the scores, but for them.

    Raises:
        FileNotFoundError: there are no results.
        ValueError: a threshold that is no number, none at all, or scores of another detector.
        RuntimeError: another process is writing there.
    """
    if (threshold is None) == (detector is None):
        raise ValueError("give a threshold, or the detector whose thresholds decide")
    if threshold is not None and not math.isfinite(threshold):
        raise ValueError(f"threshold is {threshold}; expected a finite score")
    path = out / LINES
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; score pictures into the folder first")
    with records.locked(out):
        settings = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
        again: Callable[[Line], Line]
        if detector is None:
            settings |= {"threshold": threshold}
            again = _by_threshold(out, threshold, settings.get("map_threshold"))
        else:
            now = settings_of(detector)
            _refuse_others(out, settings, now)
            settings |= {key: now[key] for key in OF_A_THRESHOLD}
            again = _by_detector(out, detector)
        counts: dict[str, int] = {}

        def lines() -> Any:
            for line in recorded(path):
                line = line if line["error"] is not None else again(line)
                if line["error"] is None:
                    counts[line["verdict"]] = counts.get(line["verdict"], 0) + 1
                yield line

        records.keep(path, lines())
        write_whole(out / SETTINGS, json.dumps(settings, indent=1).encode(), sync=True)
    return counts


def _refuse_others(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    facts = json.loads(json.dumps(now, default=str))
    differing = [key for key in facts if key not in OF_A_THRESHOLD and before.get(key) != facts[key]]
    if differing:
        raise ValueError(
            f"{out} was scored by another detector ({', '.join(differing)} differ); score the pictures with this one"
        )


def _by_threshold(out: Path, threshold: float | None, map_threshold: float | None) -> Callable[[Line], Line]:
    def again(line: Line) -> Line:
        prediction = _predicted(out, line)
        if prediction is None:
            return judged(line, threshold)
        return _lined(line, replace(prediction, threshold=threshold, map_threshold=map_threshold))

    return again


def _by_detector(out: Path, detector: "Detector") -> Callable[[Line], Line]:
    judge = detector.judge
    made = judge.calibration

    def again(line: Line) -> Line:
        p = None if made is None else p_value(line["score"], made.scores)
        prediction = _predicted(out, line)
        facts: dict[str, Any] = {"threshold": judge.threshold, "p_value": p, "unsure": made and made.unsure}
        if prediction is None:
            bare = Prediction(line["score"], None, tuple(line["size"]), **facts)
            return {**line, **{key: bare.to_dict()[key] for key in ("verdict", "threshold", "p_value", "is_anomalous")}}
        maps: dict[str, Any] = {"map_threshold": judge.map_threshold, "region_level": judge.region_level()}
        return _lined(line, replace(prediction, **facts, **maps))

    return again


def _predicted(out: Path, line: Line) -> Prediction | None:
    """What was said of the picture, with its map; None where no map was saved."""
    if not (kept := line.get("map")):
        return None
    if kept.endswith(".npy"):
        amap = np.load(out / kept, allow_pickle=False)
    else:
        import tifffile

        amap = tifffile.imread(out / kept)
    return Prediction(line["score"], amap, tuple(line["size"]), name=line["name"], p_value=line["p_value"])


def _lined(line: Line, prediction: Prediction) -> Line:
    return {**line, **line_of(line["source"], prediction, line["name"])}
