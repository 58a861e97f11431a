"""How pictures are brought before a scorer: what counts of them, and how closely they are looked at."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlad.framing.places import Places, restored


@dataclass(frozen=True)
class Framing:
    """What a detector does with every picture before its scorer sees it; kept with it and in its file."""

    places: Places = field(default_factory=Places)

    def side(self, resolution: int) -> int | None:
        """How many px of a picture's sides are looked at by a scorer of this resolution; None: all that there are."""
        return resolution if self.places == Places() else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; those that were asked for."""
        return {key: value for key, value in self.places.to_dict().items() if value is not None}

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> "Framing":
        """Of what `to_dict` gave; ValueError where something else is there."""
        if unknown := set(kept) - {"roi", "ignore"}:
            raise ValueError(f"it frames pictures in a way that is not known: {', '.join(sorted(unknown))}")
        return cls(restored(kept))
