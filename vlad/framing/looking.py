"""From pictures to scores the way a scorer's framing says: cut, painted over, looked at, put together again."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlad.framing import Look
from vlad.framing.places import Framed, cells, spread
from vlad.framing.tiles import Canvas, Layout, layout, work_size
from vlad.images.depth import Remarks
from vlad.images.sizes import factor
from vlad.maps import to_size
from vlad.memory import Memory
from vlad.scorer import Scorer, Scores

PASS = 8  # pictures computed at once, whatever the batch: kernels of bfloat16 round a larger pass otherwise
TILE_ROWS = 20_000  # rows that a memory keeps of the tiles of all normals together
KEPT_TILES = 32  # of a picture: more are cut and encoded anew by every detector that looks at it
SAMPLED = 1_000_000  # pixels of a picture, about, from which its brightness and contrast are taken for its tiles


@dataclass(frozen=True, eq=False)
class Views:
    """What a scorer looks at of B pictures."""

    framed: Sequence[Framed]  # without pixels where there are no tiles to cut
    wholes: Sequence[Sequence[Tensor]]  # of each look at the whole, pixels [b, 3, h, w] of runs of one shape
    cut: dict[tuple[Layout, int], list["Tiles"]] = field(default_factory=dict)  # tiles kept for further passes

    def __len__(self) -> int:
        return len(self.framed)

    @property
    def bytes(self) -> int:
        """What keeping them takes."""
        pixels = sum(run.numel() * run.element_size() for runs in self.wholes for run in runs)
        return pixels + sum(one.picture.nbytes for one in self.framed)


# ---- what is looked at -------------------------------------------------------------------------------------------


def check_size(scorer: Scorer, size: tuple[int, int]) -> None:
    """ValueError where a picture of this size (H, W) cannot be framed as the scorer asks."""
    scorer.framing.places.check(size)
    passes(scorer, size)


def passes(scorer: Scorer, size: tuple[int, int]) -> int:
    """How many passes of one square a picture of this size (H, W) takes, about; ValueError: too many tiles."""
    x0, y0, x1, y1 = scorer.framing.places.box(size)
    found = 1
    for look, _ in closer(scorer):
        where = None if look.kind == "whole" else _layout(scorer, look, (y1 - y0, x1 - x0))
        found += round(look.value**2) if where is None else len(where)
    return found


def smallest_seen(scorer: Scorer, size: tuple[int, int]) -> tuple[float, int]:
    """How many times smaller than it is a picture of this size (H, W) is seen at best, and a patch's side."""
    x0, y0, x1, y1 = scorer.framing.places.box(size)
    cut, side = (y1 - y0, x1 - x0), scorer.resolution
    times = max(cut) / side / scorer.framing.looks[-1]
    for look, _ in closer(scorer):
        if look.kind != "whole":
            times = min(times, cut[0] / _layout(scorer, look, cut).size[0])
    return times, scorer.encoder.patch_size


def remark(scorer: Scorer, label: str, size: tuple[int, int], remarks: Remarks) -> None:
    """Notes, once a run, that a picture of this size (H, W) is seen too small, or what looking closely will cost."""
    remarks.shrunk(label, size, *smallest_seen(scorer, size))
    if scorer.framing.large:
        ((look, _),), (x0, y0, x1, y1) = closer(scorer), scorer.framing.places.box(size)
        remarks.costly(label, size, _layout(scorer, look, (y1 - y0, x1 - x0)).size, passes(scorer, size))


def closer(scorer: Scorer) -> list[tuple[Look, Scorer]]:
    """The looks beside the first, each with the scorer that has its memory."""
    return list(zip(scorer.framing.closer(scorer.encoder.patch_size), scorer.closer, strict=True))


def wholes(scorer: Scorer) -> list[Scorer]:
    """The scorers that look at the whole: itself, and those of further such looks."""
    return [scorer, *(one for look, one in closer(scorer) if look.kind == "whole")]


def reduction(scorer: Scorer, size: tuple[int, int]) -> int:
    """By which whole number the scorer makes a picture, or a part, of this size (H, W) smaller before it looks at it.

    That is for tiles of large photos alone: the look at the whole is cut from the same then.
    """
    if scorer.frames_itself or scorer.encoder.resizes_itself:
        return 1
    tiled = [look for look, _ in closer(scorer) if look.kind != "whole"]
    planes = [work_size(look, size, scorer.resolution, scorer.encoder.patch_size) for look in tiled]
    return min((factor(size, plane) for plane in planes), default=1)


def views_of(scorer: Scorer, pictures: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]] | None = None) -> Views:
    """What the scorer looks at of uint8 pictures [H, W, 3], which `check_size` has let pass.

    `sizes` are the (H, W) that they have, where some of them may be read smaller; None: their own.
    """
    given = zip(pictures, sizes or [picture.shape[:2] for picture in pictures], strict=True)
    return framed_views(scorer, [_framed(scorer, picture, (size[0], size[1])) for picture, size in given])


def _framed(scorer: Scorer, picture: np.ndarray, size: tuple[int, int]) -> Framed:
    """A picture that has this size, whole or as it was read for `reduction`."""
    if picture.shape[:2] == size or (by := reduction(scorer, size)) == 1:
        return scorer.framing.places.framed(picture)
    return Framed(picture, None, (0, 0, size[1], size[0]), size, by)


def framed_views(scorer: Scorer, framed: Sequence[Framed]) -> Views:
    """The same of pictures that are framed already."""
    framed = [one.reduced(reduction(scorer, one.cut)) if one.by == 1 else one for one in framed]
    runs = [_runs(scorer, framed, times) for times in scorer.framing.looks]
    if all(look.kind == "whole" for look, _ in closer(scorer)):
        framed = [one._replace(picture=one.picture[:0]) for one in framed]
    return Views(framed, runs)


def _runs(scorer: Scorer, framed: Sequence[Framed], times: int) -> list[Tensor]:
    """Pixels of pictures as wholes, those of one shape in a row together."""
    shapes = [_shape(scorer, one.cut, times) for one in framed]
    seen = zip(framed, shapes, strict=True)
    pictures = [one.picture if one.by == 1 else one.resized(shape, scorer.encoder.resampling) for one, shape in seen]
    if not scorer.framing.keep_aspect and times == 1:
        return [scorer.pixels(pictures)]
    runs = groupby(zip(shapes, pictures, strict=True), key=lambda one: one[0])
    return [scorer.encoder.pixels([picture for _, picture in run], shape) for shape, run in runs]


def _shape(scorer: Scorer, size: tuple[int, int], times: int) -> tuple[int, int]:
    """(H, W) at which a picture of this size is seen: of about as many patches as a square of `times` the side has."""
    side, patch = scorer.resolution * times, scorer.encoder.patch_size
    if not scorer.framing.keep_aspect:
        return side, side
    tall = math.sqrt(size[0] / size[1])
    return patch * max(1, round(side / patch * tall)), patch * max(1, round(side / patch / tall))


def _layout(scorer: Scorer, look: Look, size: tuple[int, int]) -> Layout:
    return layout(look, size, scorer.resolution, scorer.encoder.patch_size)


@dataclass(frozen=True)
class Tiles:
    """Some tiles of one picture."""

    pixels: Tensor  # [k, 3, S, S]
    corners: Sequence[tuple[int, int]]  # (upper, left) edges
    ignored: Sequence[np.ndarray | None]  # bool [S, S] each


def _tiles(scorer: Scorer, where: Layout, framed: Framed) -> Iterator[Tiles]:
    """The tiles in passes; those of which nothing counts are left out."""
    work = framed.resized(where.size, scorer.encoder.resampling)
    ignored = None
    if framed.ignored is not None:
        small = Image.fromarray(framed.ignored).resize(where.size[::-1], Image.Resampling.NEAREST)
        ignored = np.asarray(small)
    step = math.isqrt(where.size[0] * where.size[1] // SAMPLED) + 1
    sample = work[::step, ::step]
    corners: list[tuple[int, int]] = []
    left_out: list[np.ndarray | None] = []
    for number, (y, x) in enumerate(where, 1):
        part = None if ignored is None else ignored[y : y + where.side, x : x + where.side]
        if part is None or not part.all():
            corners.append((y, x))
            left_out.append(part)
        if corners and (len(corners) == PASS or number == len(where)):
            cut = [work[y : y + where.side, x : x + where.side] for y, x in corners]
            yield Tiles(_tile_pixels(scorer, cut, sample), corners, left_out)
            corners, left_out = [], []


@contextmanager
def _cut(scorer: Scorer, look: Look, views: Views, number: int) -> Iterator[tuple[Layout, Iterable[Tiles]]]:
    """The tiles of one picture; the same ones again where passes are shared and they are few."""
    framed = views.framed[number]
    where = _layout(scorer, look, framed.cut)
    if len(where) > KEPT_TILES or scorer.encoder.passes.results is None:
        with scorer.encoder.unshared():
            yield where, _tiles(scorer, where, framed)
        return
    if (where, number) not in views.cut:
        views.cut[where, number] = list(_tiles(scorer, where, framed))
    yield where, views.cut[where, number]


def _tile_pixels(scorer: Scorer, tiles: Sequence[np.ndarray], sample: np.ndarray) -> Tensor:
    """[k, 3, S, S] of tiles, as light as their picture is as a whole, of which `sample` has every n-th pixel."""
    if scorer.frames_itself:
        return scorer.pixels(tiles)
    return scorer.encoder.pixels(tiles, scorer.resolution, like=sample)


# ---- what is said of it ------------------------------------------------------------------------------------------


def scores_of(scorer: Scorer, views: Views, leaving_out: Tensor | None = None) -> list[Scores]:
    """What the scorer says of each picture, as of a batch of one.

    Args:
        leaving_out: [B], the normal picture in the memories that each must not be compared with.
    """
    looks = closer(scorer)
    found: list[list[Scores]] = []
    for one, runs in zip(wholes(scorer), views.wholes, strict=True):
        start, said = 0, []
        for run in runs:
            without = None if leaving_out is None else leaving_out[start : start + len(run)]
            with excluding(one, without):
                said += _each(one(run))
            start += len(run)
        parts = zip(said, views.framed, strict=True)
        found.append([_counted(scores, framed.ignored) for scores, framed in parts])
    for look, one in looks:
        if look.kind != "whole":
            numbers = [None] * len(views) if leaving_out is None else leaving_out
            found.append([_in_tiles(one, look, views, *pair) for pair in enumerate(numbers)])
    return [_together(scorer, *one) for one in zip(views.framed, zip(*found, strict=True), strict=True)]


def finished(scorer: Scorer, scores: Scores, framed: Sequence[Framed]) -> list[Scores]:
    """A batch's scores of one look as those of each picture, as of a batch of one."""
    both = zip(_each(scores), framed, strict=True)
    return [_together(scorer, one, [_counted(said, one.ignored)]) for said, one in both]


def _each(scores: Scores) -> list[Scores]:
    """The scores of a batch as those of batches of one."""
    parts = [[None] * len(scores.score) if part is None else part.split(1) for part in scores[:3]]
    return [Scores(score, amap, image, scores.rule) for score, amap, image in zip(*parts, strict=True)]


def _counted(scores: Scores, ignored: np.ndarray | None) -> Scores:
    """The scores as they are, or where places are ignored `_ruled`."""
    return scores if ignored is None else _ruled(scores, ignored)


def _ruled(scores: Scores, ignored: np.ndarray | None) -> Scores:
    """The scores with the score of the places that count in their maps, where it is a rule of places."""
    if scores.map is None or scores.rule is None:
        return scores
    values = scores.map.flatten(1)
    if ignored is not None:
        values = values[:, ~torch.from_numpy(cells(ignored, scores.map.shape[1:])).flatten().to(values.device)]
    return scores._replace(score=scores.rule(values)) if values.shape[1] else scores


def _in_tiles(scorer: Scorer, look: Look, views: Views, number: int, leaving_out: Tensor | None) -> Scores:
    """Of one picture, as of a batch of one: the map of its tiles together, and a score.

    That is the method's rule on this map. Of a large photo, whose many good places would outweigh a small defect in a
    mean, it is the worst tile's; so too where the score is no rule of the map.
    """
    best = []
    with _cut(scorer, look, views, number) as (where, cut):
        canvas = Canvas(where)
        for tiles in cut:
            numbers = None if leaving_out is None else leaving_out.expand(len(tiles.pixels))
            with excluding(scorer, numbers):
                said = scorer(tiles.pixels)
            parts = zip(_each(said), tiles.ignored, strict=True)
            best += [_counted(one, part).score for one, part in parts]
            if said.map is not None:
                canvas.add(said.map.float(), tiles.corners)
    worst, amap = torch.stack(best).amax(0), canvas.mean()
    found = Scores(worst, None if amap is None else amap[None], rule=said.rule)
    return found if scorer.framing.large else _ruled(found, views.framed[number].ignored)


def _together(scorer: Scorer, framed: Framed, looks: Sequence[Scores]) -> Scores:
    """Of all looks at a picture: the mean of their scores and maps; what does not count is lowest in the map.

    Of a large photo the whole shows no defect: only its tiles count.
    """
    counted = looks[-1:] if scorer.framing.large else looks
    scores = looks[0]._replace(score=torch.stack([one.score for one in counted]).mean(0))
    maps = [one.map for one in counted if one.map is not None]
    if not maps:
        return scores
    if len(maps) > 1:
        height, width = max((one.shape[1:] for one in maps), key=math.prod)
        maps = [to_size(one.float(), (height, width)) for one in maps]
    amap, low = (torch.stack(maps).mean(0) if len(maps) > 1 else maps[0]), scorer.map_range[0]
    if framed.ignored is not None:
        amap = amap.masked_fill(torch.from_numpy(cells(framed.ignored, amap.shape[1:])).to(amap.device), low)
    if framed.box != (0, 0, framed.size[1], framed.size[0]):
        amap = torch.from_numpy(spread(amap[0].float().cpu().numpy(), framed, low))[None]
    return scores._replace(map=amap)


# ---- what is learnt of it ----------------------------------------------------------------------------------------


def memories(scorer: Scorer) -> list[Memory]:
    """Those of every look."""
    return [memory for one in (scorer, *scorer.closer) for memory in one.memories().values()]


def keep(memory: Memory, numbers: Sequence[int]) -> None:
    """Leaves in a memory the pictures of these numbers alone, ascending."""
    wanted = torch.tensor(numbers).to(memory.owners)
    kept = torch.isin(memory.owners, wanted)
    memory.ids = [memory.ids[number] for number in numbers]
    memory.rows, memory.owners = memory.rows[kept], torch.searchsorted(wanted, memory.owners[kept]).to(wanted)


@contextmanager
def excluding(scorer: Scorer, numbers: Tensor | None) -> Iterator[None]:
    """Until the block ends, the i-th picture of a batch does not see the rows of picture numbers[i]."""
    with ExitStack() as stack:
        if numbers is not None:
            for memory in scorer.memories().values():
                stack.enter_context(memory.excluding(numbers))
        yield


def remember(scorer: Scorer, batches: Iterable[Views], pictures: int) -> None:
    """Adds normal pictures, so many or fewer, to the memories of every look: a picture owns all rows of its tiles."""
    looks, before = closer(scorer), len(scorer.references)

    def passing() -> Iterator[Tensor]:
        count = before
        for views in batches:
            for one, runs in zip(wholes(scorer)[1:], views.wholes[1:], strict=True):
                one.remember(iter(runs))
            for look, one in looks:
                for number in range(len(views) if look.kind != "whole" else 0):
                    with _cut(one, look, views, number) as (_, cut):
                        one.remember(tiles.pixels for tiles in cut)
                    for memory in one.memories().values():
                        memory.join(count + number, TILE_ROWS // pictures)
            count += len(views)
            yield from views.wholes[0]

    scorer.remember(passing())
