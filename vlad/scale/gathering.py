"""The parts of a run put together: the folder is then as if one process had scored it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from vlad import folder, records
from vlad.folder.lines import recorded
from vlad.records import Line
from vlad.scale.places import Place, write_table
from vlad.scale.plan import Plan
from vlad.scale.work import PARTIAL, TRIES
from vlad.thresholds import Calibration


def missing(out: str | os.PathLike[str]) -> list[int]:
    """Numbers of the shards without a whole part.

    Raises:
        ValueError: `out` is no run in shards.
    """
    plan = Plan.read(Place.of(out))
    return [number for number in plan.numbers() if plan.part(number) is None]


def gather(
    out: str | os.PathLike[str], parquet: bool = False, then: Callable[[Path], None] | None = None
) -> folder.Summary:
    """Writes results.jsonl and settings.json of a finished run, and its verdicts where the threshold was "auto".

    Args:
        parquet: write results.parquet too.
        then: called with the folder that holds them, before a store gets them and what else lies there.

    Raises:
        ValueError: `out` is no run in shards.
        RuntimeError: shards are missing.
        ImportError: pyarrow is not installed.
    """
    plan = Plan.read(Place.of(out))
    settings = plan.facts["settings"]
    failed: list[tuple[str, str]] = []

    def found() -> Iterator[Line]:
        for number in plan.numbers():
            if (part := plan.part(number)) is None:
                raise RuntimeError(f"shard {number} of {out} is not done; the same command with --resume goes on")
            failed.extend((line["source"], line["error"]) for line in part if line["error"] is not None)
            yield from part

    with plan.out.writing() as here:
        lines = here / folder.LINES
        records.keep(lines, found())
        records.keep_settings(here / folder.SETTINGS, settings, begun=False)
        decided = folder.decide(here) if settings["threshold"] == "auto" else None
        made = settings["calibration"] and Calibration.from_dict(settings["calibration"])
        verdicts = Counter(line["verdict"] for line in recorded(lines) if line["error"] is None)
        unlike = folder.unlike_normals(recorded(lines), made)
        if parquet:
            write_table(here, recorded(lines))
        if then is not None:
            then(here)
    for name in plan.out.names(""):
        if name.startswith(PARTIAL):
            plan.out.remove(name)
    plan.out.clear(TRIES)
    return folder.Summary(verdicts.total(), dict(verdicts), 0, tuple(failed), 0.0, {}, unlike, decided)
