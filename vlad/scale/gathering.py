"""The parts of a run put together: the folder is then as if one process had scored it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from vlad import folder, records
from vlad.folder.lines import recorded
from vlad.records import Line
from vlad.scale.plan import Plan
from vlad.scale.table import write_table
from vlad.scale.work import PARTIAL, TRIES
from vlad.thresholds import Calibration


def missing(out: str | os.PathLike[str]) -> list[int]:
    """Numbers of the shards without a whole part.

    Raises:
        ValueError: `out` is no run in shards.
    """
    plan = Plan.read(Path(out))
    return [number for number in plan.numbers() if plan.part(number) is None]


def gather(out: str | os.PathLike[str], parquet: bool = False) -> folder.Summary:
    """Writes results.jsonl and settings.json of a finished run, and its verdicts where the threshold was "auto".

    `parquet` writes results.parquet too.

    Raises:
        ValueError: `out` is no run in shards.
        RuntimeError: shards are missing.
        ImportError: pyarrow is not installed.
    """
    plan = Plan.read(Path(out))
    settings, lines = plan.facts["settings"], plan.out / folder.LINES
    failed: list[tuple[str, str]] = []

    def found() -> Iterator[Line]:
        for number in plan.numbers():
            if (part := plan.part(number)) is None:
                raise RuntimeError(f"shard {number} of {out} is not done; the same command with --resume goes on")
            failed.extend((line["source"], line["error"]) for line in part if line["error"] is not None)
            yield from part

    records.keep(lines, found())
    records.keep_settings(plan.out / folder.SETTINGS, settings, begun=False)
    decided = folder.decide(plan.out) if settings["threshold"] == "auto" else None
    made = settings["calibration"] and Calibration.from_dict(settings["calibration"])
    verdicts = Counter(line["verdict"] for line in recorded(lines) if line["error"] is None)
    for litter in [*plan.out.glob(f"{PARTIAL}*"), *plan.out.glob(f"{TRIES}/*")]:
        litter.unlink(missing_ok=True)
    if (tries := plan.out / TRIES).exists():
        tries.rmdir()
    if parquet:
        write_table(plan.out, recorded(lines))
    unlike = folder.unlike_normals(recorded(lines), made)
    return folder.Summary(verdicts.total(), dict(verdicts), 0, tuple(failed), 0.0, {}, unlike, decided)
