"""A set whose pictures score each other (`musc`), by workers of a Ray cluster; the numbers are those of one process.

    out/set/000042.0.safetensors      tokens of shard 42 in the first layer; seen once
    out/set/000042.safetensors        its class embeddings, and what could not be read; put last of these
    out/set/rows000007.safetensors    maps of some pictures of a part of the set, compared with all others of it
    out/set/000042.said.safetensors   maps and scores of the pictures of shard 42

Of these the lines are made, shard by shard. Each file is whole or absent, so that a killed run goes on; the
folder is deleted when the run is done.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from vlad.folder.lines import LineMaker, line_of
from vlad.images import ImageError
from vlad.images.listing import Found
from vlad.records import Line
from vlad.scale.inputs import brought, stamped
from vlad.scale.on_ray import each
from vlad.scale.places import Store
from vlad.scale.work import Deaths, Note, Saved, Work, in_tries, save_detector
from vlad.scorer import Scores

if TYPE_CHECKING:
    from vlad.detector import Detector

SET = "set"
ROWS_BYTES = 512 * 2**20  # of the cosines of some pictures with all others
Job = tuple[Any, ...]


@runtime_checkable
class SharedSet(Protocol):
    """A scorer of sets whose parts may be computed apart; see `vlad.methods.musc.MuSc`."""

    in_place_of_it: Callable[[Iterable[Tensor]], Iterable[Scores]] | None
    layers: Sequence[int]

    def seen(self, pixels: Tensor) -> tuple[Tensor, Tensor]: ...
    def set_grid(self) -> tuple[int, int]: ...
    def set_parts(self, N: int, /) -> list[list[int]]: ...
    def set_rows(
        self, rows: Sequence[int], part: Sequence[int], read: Callable[[Sequence[int], int], Tensor]
    ) -> Tensor: ...
    def set_scores(self, grids: Tensor, classes: Tensor) -> Tensor: ...
    def set_said(self, grids: Tensor, scores: Tensor) -> Scores: ...


@dataclass(frozen=True)
class Files:
    """What workers put for each other; a file of another key is none."""

    work: Work
    key: str  # of the plan and of all pictures as they are; then also of which of them could be read

    def put(self, name: str, tensors: Mapping[str, Tensor], **facts: Any) -> None:
        """Writes a file."""
        kept = {"key": self.key, **{key: json.dumps(value) for key, value in facts.items()}}
        self.work.plan.out.put(f"{SET}/{name}.safetensors", save({k: t.contiguous() for k, t in tensors.items()}, kept))

    def get(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """(tensors, facts); None where it is missing, cut, or of another key."""
        content = self.work.plan.out.read(f"{SET}/{name}.safetensors") or b""
        try:
            size = int.from_bytes(content[:8], "little")
            facts = json.loads(content[8 : 8 + size])["__metadata__"]
            tensors = load(content)
        except (ValueError, KeyError, SafetensorError):
            return None
        return (tensors, facts) if facts.pop("key", None) == self.key else None

    def tokens(self, name: str) -> Any:
        """Tokens of a shard in one layer, to be sliced; from a disk only what is asked for is read.

        Raises:
            OSError: they are gone.
        """
        place = self.work.plan.out
        if not isinstance(place, Store):
            with suppress(OSError, SafetensorError):
                file = safe_open(Path(str(place), SET, f"{name}.safetensors"), "pt")
                if (file.metadata() or {}).get("key") == self.key:
                    return file.get_slice("tokens")
        if (found := self.get(name)) is None:
            raise OSError(f"tokens of shard {name} are gone from {place}; go on with --resume")
        return found[0]["tokens"]


def scored_set(
    model: Detector, work: Work, pictures: Sequence[Found], address: str, workers: int | None, device: str | None
) -> Iterator[int]:
    """Numbers of the shards, each when its part is there.

    Raises:
        ValueError: fewer than two pictures can be read; and as `vlad.scale.work.scattered`.
    """
    plan, scorer = work.plan, model.scorer
    assert isinstance(scorer, SharedSet)
    stamps = json.dumps([plan.digest, *map(stamped, pictures)])
    files = Files(work, hashlib.sha256(stamps.encode()).hexdigest())
    saved, died = save_detector(model, work, device), Deaths(work)
    how: dict[str, Any] = {"workers": workers}

    def done(stage: str, function: Callable[..., None], jobs: Mapping[int, Job], **more: Any) -> None:
        for count, _ in enumerate(each(function, jobs, address, **how, **more), 1):
            scorer.report(stage, count, len(jobs))

    shards = {number: list(pictures[plan.span(number)]) for number in plan.numbers()}
    todo = [number for number in shards if not files.get(f"{number:06}")]
    done("shards read", look, {n: (saved, files, n, shards[n]) for n in todo}, died=died)
    heads = [found for number in shards if (found := files.get(f"{number:06}")) is not None]
    counts = [len(tensors["classes"]) for tensors, _ in heads]
    if sum(counts) < 2:
        raise ValueError(f"{model.method} scores pictures against each other; {sum(counts)} of these can be read")
    after = replace(files, key=hashlib.sha256(f"{files.key} {counts}".encode()).hexdigest())
    if not all(after.get(f"{number:06}.said") for number in shards):
        parts, size = scorer.set_parts(sum(counts)), plan.facts["shard_size"]
        blocks = [(part, start) for part in range(len(parts)) for start in range(0, len(parts[part]), size)]
        todo = [number for number in range(len(blocks)) if not after.get(f"rows{number:06}")]
        done("blocks compared", compare, {n: (saved, files, after, n, counts, *blocks[n], size) for n in todo})
        grids = torch.zeros(sum(counts), *scorer.set_grid(), dtype=torch.float64)
        for number, (part, start) in enumerate(blocks):
            if (found := after.get(f"rows{number:06}")) is not None:
                grids[parts[part][start : start + size]] = found[0]["maps"]
        scores = scorer.set_scores(grids, torch.cat([one["classes"] for one, _ in heads if len(one["classes"])]))
        for number, maps, own in zip(shards, grids.split(counts), scores.split(counts), strict=True):
            after.put(f"{number:06}.said", {"maps": maps, "scores": own})
    todo = [number for number in shards if plan.part(number) is None]
    jobs = {n: (saved, files, after, n, shards[n]) for n in todo}
    for number, _ in each(say, jobs, address, died=died, **how):
        yield number
    plan.out.clear(SET)


@contextmanager
def _standing_in(model: Detector, way: Callable[[Iterable[Tensor]], Iterable[Scores]]) -> Iterator[None]:
    """Until the block ends, sets are scored in that way; reading, framing and lines stay as they are."""
    scorer: Any = model.scorer
    scorer.in_place_of_it = way
    try:
        yield
    finally:
        scorer.in_place_of_it = None


def look(saved: Saved, files: Files, number: int, pictures: list[Found]) -> None:
    """Worker: the tokens of a shard."""
    model, work = saved.loaded(), files.work
    scorer: Any = model.scorer
    note = work.note(number)
    note.begin()
    tokens: list[Tensor] = []
    classes: list[Tensor] = []

    def collect(batches: Iterable[Tensor]) -> Iterator[Scores]:
        sizes = []
        for pixels in batches:  # all of them, before anything is said of the first
            layers, image = scorer.seen(pixels)
            tokens.append(layers)
            classes.append(image)
            sizes.append(len(image))
        for size in sizes:
            nothing = torch.zeros(size, *scorer.set_grid(), dtype=torch.float64)
            yield scorer.set_said(nothing, nothing[:, 0, 0])

    def lines(some: list[Found]) -> Iterator[Line]:
        found = model.predictions([one.path for one in some], batch_size=work.batch_size)
        for one, (_, outcome) in zip(some, found, strict=True):
            yield line_of(one.source, outcome if isinstance(outcome, ImageError) else outcome.of_pixels(), model.name)

    with _standing_in(model, collect), brought(pictures) as here:
        said = [here.told(*one)["error"] for one in enumerate(in_tries(lines, model.name, here.pictures, note))]
    errors = {str(place): error for place, error in enumerate(said) if error is not None}
    empty = torch.zeros(0, len(scorer.layers), 1, 1)
    for layer in range(len(scorer.layers)):
        files.put(f"{number:06}.{layer}", {"tokens": torch.cat([one[:, layer] for one in tokens] or [empty[:, layer]])})
    files.put(f"{number:06}", {"classes": torch.cat(classes or [torch.zeros(0, 1)])}, errors=errors)
    note.forget()


def compare(
    saved: Saved, files: Files, after: Files, number: int, counts: Sequence[int], part: int, start: int, size: int
) -> None:
    """Worker: the maps of `size` pictures of a part from `start` on.

    Pictures that can be read, `counts` in each shard, are numbered through the whole set.
    """
    scorer: Any = saved.loaded().scorer
    starts = [0, *accumulate(counts)]
    tokens = lru_cache(maxsize=64)(files.tokens)

    def read(numbers: Sequence[int], layer: int) -> Tensor:
        found = []
        for one in numbers:
            shard = bisect_right(starts, one) - 1
            place = one - starts[shard]
            found.append(tokens(f"{shard:06}.{layer}")[place : place + 1])
        return torch.cat(found)

    others, (rows, columns) = scorer.set_parts(starts[-1])[part], scorer.set_grid()
    own, at_once = others[start : start + size], max(1, ROWS_BYTES // (4 * len(others) * rows * columns))
    with torch.no_grad():
        some = [own[first : first + at_once] for first in range(0, len(own), at_once)]
        after.put(f"rows{number:06}", {"maps": torch.cat([scorer.set_rows(one, others, read) for one in some])})


def say(saved: Saved, files: Files, after: Files, number: int, pictures: list[Found]) -> None:
    """Worker: the lines of a shard.

    One after the other, so that a picture that has changed meanwhile shifts no other's numbers.
    """
    model = saved.loaded()
    scorer: Any = model.scorer
    head, found = files.get(f"{number:06}"), after.get(f"{number:06}.said")
    if head is None or found is None:
        raise OSError(f"what was compared is gone from {files.work.plan.out}; go on with --resume")
    (_, facts), (said, _) = head, found
    errors: dict[str, str] = json.loads(facts["errors"])
    places = [place for place in range(len(pictures)) if str(place) not in errors]

    def lines(make: LineMaker, some: Sequence[Found], _: Note) -> Iterator[Line]:
        for place, one in enumerate(some):
            if (error := errors.get(str(place))) is not None:
                yield line_of(one.source, ImageError(error), model.name)
                continue
            row = places.index(place)

            def own(batches: Iterable[Tensor], row: int = row) -> Iterator[Scores]:
                for _ in batches:
                    yield scorer.set_said(said["maps"][row : row + 1], said["scores"][row : row + 1])

            with _standing_in(model, own):
                yield from make.lines([one])

    files.work.score(model, number, pictures, lines)
