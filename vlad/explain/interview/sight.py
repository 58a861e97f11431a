"""What a reasoner could not see of a picture: computed from the sizes of what it was shown, never asked."""

import math

from vlad.explain.explanation import Limit
from vlad.explain.interview.questions import MOST_TYPES, CaseViews
from vlad.explain.views import CROP_SIDE, VIEW_SIDE, crop_box


def blind_spots(views: CaseViews) -> tuple[Limit, ...]:
    """The limits of the views: shown smaller than they are, too coarse for a region, kept back; types not offered."""
    return (*_kept_back(views), *_downscaled(views), *_too_small(views), *_not_offered(views))


def _kept_back(views: CaseViews) -> tuple[Limit, ...]:
    words = {
        "crops": "only the crops of the regions were sent, no whole picture",
        "grey": "everything but the regions was sent grey",
    }
    return (Limit("not_sent_privacy", words[views.caps.send]),) if views.caps.send in words else ()


def _downscaled(views: CaseViews) -> tuple[Limit, ...]:
    longest = max(views.case.picture.shape[:2])
    factor = longest / views.caps.longest_side
    if factor <= 1 or not views.whole:
        return ()
    detail = math.ceil(factor * views.caps.pixels_per_token)
    words = f"the whole picture was shown {factor:.1f} times smaller; outside the crops, details below {detail} px"
    return (Limit("downscaled", f"{words} of the original may be lost"),)


def _too_small(views: CaseViews) -> tuple[Limit, ...]:
    """Regions whose short side, in the crop as it is shown, is less than one visual token."""
    small = []
    for region in views.case.regions:
        x0, y0, x1, y1 = region.box
        left, top, right, bottom = crop_box(region.box, views.case.picture.shape[:2])
        short, long = sorted((right - left, bottom - top))
        scale = min(max(1.0, CROP_SIDE / short), VIEW_SIDE / long)
        if min(x1 - x0, y1 - y0) * scale < views.caps.pixels_per_token:
            small.append(str(region.id))
    if not small:
        return ()
    side = views.caps.pixels_per_token
    words = f"in its enlarged crop, region {', '.join(small)} is narrower than the {side} px of one visual token"
    return (Limit("region_too_small", words),)


def _not_offered(views: CaseViews) -> tuple[Limit, ...]:
    given = len(views.case.vocabulary)
    if given <= MOST_TYPES:
        return ()
    return (Limit("outside_vocabulary", f"only the first {MOST_TYPES} of {given} defect types could be offered"),)
