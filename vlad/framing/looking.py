"""From pictures to scores the way a scorer's framing says: cut, painted over, looked at, put together again."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlad.framing.places import Framed, cells, spread
from vlad.scorer import Scorer, Scores


@dataclass(frozen=True, eq=False)
class Views:
    """What a scorer looks at of some pictures."""

    pixels: Tensor  # [B, 3, S, S]
    framed: Sequence[Framed]  # the B pictures

    def __len__(self) -> int:
        return len(self.framed)

    @property
    def bytes(self) -> int:
        """What keeping them takes."""
        return self.pixels.numel() * self.pixels.element_size()


def views_of(scorer: Scorer, pictures: Sequence[np.ndarray]) -> Views:
    """What the scorer looks at of uint8 pictures [H, W, 3].

    Raises:
        ValueError: a picture cannot be framed so; `Places.check` says it before.
    """
    return framed_views(scorer, [scorer.framing.places.framed(picture) for picture in pictures])


def framed_views(scorer: Scorer, framed: Sequence[Framed]) -> Views:
    """The same of pictures that are framed already; without their pixels, which no look needs again."""
    pixels = scorer.pixels([one.picture for one in framed])
    return Views(pixels, [one._replace(picture=one.picture[:0]) for one in framed])


def scores_of(scorer: Scorer, views: Views) -> list[Scores]:
    """What the scorer says of each, as of a batch of one."""
    return finished(scorer, scorer(views.pixels), views.framed)


def finished(scorer: Scorer, scores: Scores, framed: Sequence[Framed]) -> list[Scores]:
    """A scorer's words on framed pictures as words on the whole ones: what does not count is lowest in their maps."""
    score, amap, image = scores
    found = []
    for i, one in enumerate(framed):
        part = slice(i, i + 1)
        alone = Scores(score[part], None if amap is None else amap[part], None if image is None else image[part])
        found.append(_whole(scorer, alone, one))
    return found


def _whole(scorer: Scorer, scores: Scores, framed: Framed) -> Scores:
    amap, low = scores.map, scorer.map_range[0]
    if amap is None:
        return scores
    if framed.ignored is not None:
        left_out = torch.from_numpy(cells(framed.ignored, amap.shape[1:])).to(amap.device)
        amap = amap.masked_fill(left_out, low)
        rule = None if left_out.all() else scorer.score_of(amap[:, ~left_out])
        scores = scores._replace(score=scores.score if rule is None else rule)
    if framed.box != (0, 0, framed.size[1], framed.size[0]):
        amap = torch.from_numpy(spread(amap[0].float().cpu().numpy(), framed, low))[None]
    return scores._replace(map=amap)


def remember(scorer: Scorer, batches: Iterable[Views]) -> None:
    """Adds the tokens of normal pictures to the scorer's memories."""
    scorer.remember(views.pixels for views in batches)
