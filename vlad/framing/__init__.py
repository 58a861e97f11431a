"""How pictures are brought before a scorer: what counts of them, and how closely they are looked at.

Every picture is looked at as a whole, squeezed into the scorer's square. It may be looked at more closely as well, in
one of two ways: the whole of it at twice the side (`looks=(1, 2)`), or in tiles that lie over each other (`tiles`, or
`tile_scale` and `smallest_defect` for large photos). Each look has a memory of its own; map and score are the means.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

from vlad.framing.places import Places, places

ENOUGH_PATCHES = 1.5  # across a defect, from which on it has been found (design: weak evidence, kinds differ with size)
LARGEST_SCALE = 2.0  # enlarging a picture beyond that shows nothing more
OPTIONS = ("roi", "ignore", "keep_aspect", "looks", "tiles", "tile_scale", "smallest_defect")
LARGEST = 16  # of tiles and looks: beyond it nothing is left to see


class Look(NamedTuple):
    """One look beside the first."""

    kind: Literal["whole", "tiles", "scale"]
    value: float  # times the side; tiles along the shorter side; pixels at work per pixel of the picture


@dataclass(frozen=True)
class Framing:
    """What a detector does with every picture before its scorer sees it; kept with it and in its file. See `framing`.

    Raises:
        ValueError: a value that cannot be, or several that say how closely to look.
    """

    places: Places = field(default_factory=Places)
    keep_aspect: bool = False
    looks: tuple[int, ...] = (1,)
    tiles: tuple[int, ...] = ()
    tile_scale: float | None = None
    smallest_defect: float | None = None

    def __post_init__(self) -> None:
        expected = {
            "keep_aspect": (isinstance(self.keep_aspect, bool), "True or False"),
            "looks": (self.looks[:1] == (1,) and _ascend(self.looks), "(1, 2): times the side, from 1 on"),
            "tiles": (_ascend(self.tiles), f"a number from 1 to {LARGEST}, several such as (2, 3), or None"),
            "tile_scale": (_within(self.tile_scale, LARGEST_SCALE), f"a number above 0, up to {LARGEST_SCALE:g}"),
            "smallest_defect": (_within(self.smallest_defect, 1e6), "pixels, a number above 0"),
        }
        for option, (right, words) in expected.items():
            if not right:
                raise ValueError(f"{option} is {getattr(self, option)!r:.60}; expected {words}")
        closer = [option for option in ("tiles", "tile_scale", "smallest_defect") if getattr(self, option)]
        closer += ["looks"] * (len(self.looks) > 1)
        if len(closer) > 1:
            raise ValueError(f"{' and '.join(closer)} each say how closely to look; give one of them")

    @property
    def large(self) -> bool:
        """Whether it is for photos so large that the look at the whole sees no defect: only tiles count then."""
        return bool(self.tile_scale or self.smallest_defect)

    def closer(self, patch: int) -> list[Look]:
        """The looks beside the first, of an encoder whose patches have this side."""
        found = [Look("whole", times) for times in self.looks[1:]]
        found += [Look("tiles", count) for count in self.tiles]
        if self.smallest_defect is not None:
            found.append(Look("scale", min(LARGEST_SCALE, ENOUGH_PATCHES * patch / self.smallest_defect)))
        return found + ([] if self.tile_scale is None else [Look("scale", self.tile_scale)])

    def side(self, resolution: int) -> int | None:
        """How many px of a picture's sides are looked at by a scorer of this resolution; None: all that there are."""
        plain = self == Framing(looks=self.looks)
        return resolution * self.looks[-1] if plain else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; those that differ from a plain framing's."""
        own = {one.name: getattr(self, one.name) for one in fields(self)[1:] if getattr(self, one.name) != one.default}
        own = {key: list(value) if isinstance(value, tuple) else value for key, value in own.items()}
        return {key: value for key, value in {**self.places.to_dict(), **own}.items() if value is not None}

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> "Framing":
        """Of what `to_dict` gave; ValueError where something else is there."""
        if unknown := set(kept) - set(OPTIONS):
            raise ValueError(f"it frames pictures in a way that is not known: {', '.join(sorted(unknown))}")
        ignore = kept.get("ignore")
        return framing(**{**kept, "ignore": base64.b64decode(ignore) if isinstance(ignore, str) else ignore})


def framing(
    *,
    roi: Any = None,
    ignore: Any = None,
    keep_aspect: bool | None = None,
    looks: Any = None,
    tiles: Any = None,
    tile_scale: float | None = None,
    smallest_defect: float | None = None,
) -> Framing:
    """What these keywords of `vlad.load` say; None leaves each as it is without it.

    Args:
        roi, ignore: see `places`.
        keep_aspect: see the whole in a rectangle of its shape and about as many patches, not squeezed into a square.
        looks: (1, 2) looks at the whole a second time, at twice the side; 4 or 5 times the work.
        tiles: look closer in tiles of the scorer's square, so many along the shorter side; or in several such layers,
            (2, 3). 2 is 5 to 9 times the work.
        tile_scale: the same for large photos: tiles of a copy with so many pixels for one of the picture, up to 2.
        smallest_defect: the same, the scale chosen so that a defect of so many pixels spans 1.5 patches.
    """
    given = {"keep_aspect": keep_aspect, "tile_scale": tile_scale, "smallest_defect": smallest_defect}
    given |= {"looks": _several(looks), "tiles": _several(tiles)}
    return Framing(places(roi, ignore), **{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]


def _several(given: Any) -> Any:
    """Numbers as a tuple; one alone too."""
    return tuple(given) if isinstance(given, list | tuple) else None if given is None else (given,)


def _ascend(numbers: tuple[int, ...]) -> bool:
    whole = all(type(one) is int and 1 <= one <= LARGEST for one in numbers)
    return whole and list(numbers) == sorted(set(numbers))


def _number(value: Any) -> float:
    """The value where it is a number, else one that is nowhere allowed."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else -1.0


def _within(value: Any, largest: float) -> bool:
    return value is None or 0 < _number(value) <= largest
