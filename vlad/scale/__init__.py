"""Scoring past one process: a fixed run of pictures is a shard, and a shard becomes one file, whole or absent.

    vlad.scale.score("bolt.safetensors", ["photos"], "run", share=(3, 100))  # the fourth of a hundred processes
    vlad.scale.score("bolt.safetensors", ["photos"], "run", ray="auto")      # tasks on a Ray cluster
    vlad.scale.gather("run")                                                 # as if one process had scored them

Whoever works on a run reads its pictures and writes its parts itself: all must see pictures and `out` under one path
or, of an object store, address.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

from vlad import folder
from vlad.detector import Detector
from vlad.detector.loading import load
from vlad.folder.lines import SIDE, Wanted
from vlad.images.listing import Found
from vlad.records import Line
from vlad.scale.gathering import gather as gather
from vlad.scale.gathering import missing as missing
from vlad.scale.inputs import NOT_FETCHED, listed, stamped
from vlad.scale.places import Place, Store
from vlad.scale.plan import Plan
from vlad.scale.sets import SharedSet, scored_set
from vlad.scale.work import Work, scattered
from vlad.thresholds import checked_threshold

SHARD = 256  # pictures; seconds to minutes of work, which is what a death costs


def score(
    detector: Detector | str | os.PathLike[str],
    inputs: Iterable[str | Path],
    out: str | os.PathLike[str],
    *,
    share: tuple[int, int] | None = None,
    ray: str | None = None,
    workers: int | None = None,
    device: str | None = None,
    shard_size: int = SHARD,
    resume: bool = False,
    batch_size: int = 8,
    threshold: float | str | None = None,
    maps: bool = True,
    save_maps: str | None = None,
    masks: bool = False,
    overlay_side: int = SIDE,
    settings: Mapping[str, Any] | None = None,
    progress: folder.Progress | None = None,
) -> folder.Summary:
    """Scores shards of the pictures into part files of `out`; what was done, by this call.

    Args:
        detector: what `vlad.load` returns, or the file of a saved one.
        inputs: files, folders, globs; lists (`vlad.scale.inputs.listed`), tar files, addresses such as "s3://bucket/in".
        out: folder or address of the run.
        share: (i, n): the shards k with k % n == i, in this process; None is all of them.
        ray: "local", "auto" or the address of a Ray cluster, whose workers do the shards.
        workers: with `ray`: shards in work at once; None: a worker for each GPU, or CPU where there is none.
        device: of these workers, or of the detector's file; None: the best that each has.
        shard_size: pictures of a shard, a multiple of `batch_size`; the same for all calls on one run.
        resume: leave out the shards that are done, and whose pictures have not changed since.
        progress: called with (line, pictures done, pictures in all) once the part that holds the line is written.

    The other arguments are those of `vlad.folder.score_folder`; with threshold="auto" `gather` makes the verdicts.

    Raises:
        FileNotFoundError: there is not one picture.
        OSError: a disk or store takes no more, or is not reached.
        FileExistsError: parts are there and `resume` is False.
        ValueError: `out` is a run of other settings or pictures; a share or size that is none; a method that scores
            all pictures as one set, without `ray`.
        ImportError, ConnectionError, RuntimeError: of Ray: not installed, not reached, workers that die as they start.
    """
    place, numbers = Place.of(out), _checked(share, ray, shard_size, batch_size, threshold)
    model = detector if isinstance(detector, Detector) else load(detector, device=device)
    as_one, left_out = _is_set(model, ray), Counter[str]()
    pictures = listed(inputs, place, model.reader.pages, left_out)
    wanted = Wanted(Path(str(place)), maps, save_maps, masks, overlay_side)
    facts = {**folder.settings_of(model, threshold), **wanted.facts(), **(settings or {})}
    plan = Plan.made(place, pictures, shard_size, facts)
    own = plan.numbers()[numbers]
    todo = {number: pictures[plan.span(number)] for number in _todo(plan, own, pictures, resume)}
    if as_one and any(map(plan.has, todo)):
        raise ValueError(f"pictures of the set in {place} have changed; a set is scored as one, take a new folder")
    total, left = (sum(len(pictures[plan.span(number)]) for number in some) for some in (own, todo))
    work = Work(plan, wanted, batch_size, threshold)
    lines = _scored(model, work, todo, pictures if as_one and todo else None, ray, workers, device)
    return replace(folder.drain(lines, progress, total - left, total), left_out=left_out)


def _is_set(model: Detector, ray: str | None) -> bool:
    """Whether the pictures are scored as one set; ValueError where that cannot be in shards."""
    if model.transductive and (ray is None or not isinstance(model.scorer, SharedSet)):
        way = "give ray=" if isinstance(model.scorer, SharedSet) else "score it whole"
        raise ValueError(f"{model.method} scores all pictures as one set, which shares would part; {way}")
    return model.transductive


def _checked(
    share: tuple[int, int] | None, ray: str | None, shard_size: int, batch_size: int, threshold: float | str | None
) -> slice:
    """Of all shards, those that are asked for; TypeError, ValueError where the arguments are wrong."""
    if threshold != "auto":
        checked_threshold("threshold", threshold)
    if share is not None and ray is not None:
        raise ValueError("a share is done by this process and Ray does all shards; give one of the two")
    if shard_size < 1 or shard_size % batch_size:
        raise ValueError(f"a shard of {shard_size} pictures is no multiple of the batch of {batch_size}; take one")
    if share is None:
        return slice(None)
    i, n = share
    if not 0 <= i < n:
        raise ValueError(f"the share is {i}/{n}; expected I/N with I from 0 to N - 1, such as 0/2 and 1/2")
    return slice(i, None, n)


def _todo(plan: Plan, numbers: Iterable[int], pictures: Sequence[Found], resume: bool) -> Iterator[int]:
    """Those of the shards that are not done, or whose pictures have changed since."""
    for number in numbers:
        if not resume and plan.has(number):
            raise FileExistsError(f"{plan.out} holds parts; go on with them (--resume), or choose another folder")
        lines = plan.part(number) if resume else None
        if lines is None or not all(map(_stands, repeat(plan.out), lines, pictures[plan.span(number)])):
            yield number


def _stands(out: Place, line: Line, picture: Found) -> bool:
    """Whether the picture is as it was, and what was written of it still there; a store is not asked for each file."""
    beside = [line[key] for key in ("overlay", "map", "mask") if line.get(key)] if not isinstance(out, Store) else []
    same = (now := stamped(picture)) is None or line.get("file") in (None, now)
    return same and NOT_FETCHED not in (line["error"] or "") and all(map(out.has, beside))


def _scored(
    model: Detector,
    work: Work,
    todo: Mapping[int, list[Found]],
    whole: list[Found] | None,
    ray: str | None,
    workers: int | None,
    device: str | None,
) -> Iterator[Line]:
    if ray is None:
        for number, pictures in todo.items():
            yield from work.score(model, number, pictures)
        return
    if whole is None:
        numbers = scattered(model, work, todo, ray, workers, device)
    else:
        numbers = scored_set(model, work, whole, ray, workers, device)
    for number in numbers:
        if (lines := work.plan.part(number)) is None:
            raise RuntimeError(f"a worker wrote shard {number}, which is not in {work.plan.out}: no shared folder?")
        yield from lines
