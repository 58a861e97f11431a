"""What a reasoner could not see of a picture: computed from the sizes of what it was shown, never asked."""

import math

from vlad.explain.explanation import Limit
from vlad.explain.marks import CROP_SIDE, VIEW_SIDE, crop_box
from vlad.explain.questions import MOST_TYPES, Room


def blind_spots(room: Room) -> tuple[Limit, ...]:
    """The limits of the views: shown smaller than they are, too coarse for a region, kept back; types not offered."""
    return (*_kept_back(room), *_downscaled(room), *_too_small(room), *_not_offered(room))


def _kept_back(room: Room) -> tuple[Limit, ...]:
    words = {
        "crops": "only the crops of the regions were sent, no whole picture",
        "grey": "everything but the regions was sent grey",
    }
    return (Limit("not_sent_privacy", words[room.caps.send]),) if room.caps.send in words else ()


def _downscaled(room: Room) -> tuple[Limit, ...]:
    longest = max(room.case.picture.shape[:2])
    factor = longest / room.caps.longest_side
    if factor <= 1 or not room.whole:
        return ()
    detail = math.ceil(factor * room.caps.pixels_per_token)
    words = f"the whole picture was shown {factor:.1f} times smaller; outside the crops, details below {detail} px"
    return (Limit("downscaled", f"{words} of the original may be lost"),)


def _too_small(room: Room) -> tuple[Limit, ...]:
    """Regions whose short side, in the crop as it is shown, is less than one visual token."""
    small = []
    for region in room.case.regions:
        x0, y0, x1, y1 = region.box
        left, top, right, bottom = crop_box(region.box, room.case.picture.shape[:2])
        short, long = sorted((right - left, bottom - top))
        scale = min(max(1.0, CROP_SIDE / short), VIEW_SIDE / long)
        if min(x1 - x0, y1 - y0) * scale < room.caps.pixels_per_token:
            small.append(str(region.id))
    if not small:
        return ()
    side = room.caps.pixels_per_token
    words = f"in its enlarged crop, region {', '.join(small)} is narrower than the {side} px of one visual token"
    return (Limit("region_too_small", words),)


def _not_offered(room: Room) -> tuple[Limit, ...]:
    given = len(room.case.vocabulary)
    if given <= MOST_TYPES:
        return ()
    return (Limit("outside_vocabulary", f"only the first {MOST_TYPES} of {given} defect types could be offered"),)
