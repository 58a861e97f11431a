"""A run in shards: which pictures make which shard, and part files that are whole or do not count.

    out/plan.json              what the numbers depend on, and a digest of the list of pictures
    out/parts/000042.jsonl.gz  the lines of shard 42 in order, then a line that says how many they are and of which plan

A part's name and content depend on the plan alone, so whoever does a shard, and however often, nothing is lost or
doubled.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlad import records
from vlad.folder import LINES
from vlad.images.listing import Found
from vlad.records import Line
from vlad.scale.places import Place

PLAN, PARTS = "plan.json", "parts"
FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """What all who work on a run agree on; `facts` are plan.json's."""

    out: Place
    facts: Mapping[str, Any]

    @classmethod
    def made(cls, out: Place, pictures: Sequence[Found], shard_size: int, settings: Mapping[str, Any]) -> Plan:
        """Of these pictures, kept in `out`, or compared with the plan that is there.

        Raises:
            ValueError: the plan there is of other settings or of another list of pictures.
            FileExistsError: `out` holds what was scored without shards.
        """
        if out.has(LINES) and not out.has(PLAN):
            raise FileExistsError(f"{out} was scored by one process, without shards; choose another folder")
        sources = hashlib.sha256("\0".join(one.source for one in pictures).encode(errors="surrogateescape"))
        facts = {"format": FORMAT, "pictures": len(pictures), "list": sources.hexdigest(), "shard_size": shard_size}
        facts |= {"settings": json.loads(json.dumps(settings, default=str))}
        content = records.settings_bytes(facts)
        if (old := out.read(PLAN)) is not None:
            records.compare_settings(old, content, str(out), PLAN)
        else:
            out.put(PLAN, content)
        return cls(out, facts)

    @classmethod
    def read(cls, out: Place) -> Plan:
        """The plan that lies in `out`.

        Raises:
            ValueError: there is none that can be read.
        """
        try:
            facts = json.loads(out.read(PLAN) or b"")
            if facts["format"] == FORMAT and facts["pictures"] > 0 and facts["shard_size"] > 0:
                return cls(out, facts)
        except (KeyError, TypeError, ValueError):
            pass
        raise ValueError(f"{out} holds no {PLAN} that can be read; give what --share or --ray wrote into --out")

    @property
    def digest(self) -> str:
        """By which a part of this plan is known."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()

    def numbers(self) -> range:
        """Of all shards."""
        return range(-(-self.facts["pictures"] // self.facts["shard_size"]))

    def span(self, number: int) -> slice:
        """Of the list of pictures: those of a shard."""
        size = self.facts["shard_size"]
        return slice(number * size, min((number + 1) * size, self.facts["pictures"]))

    def put(self, number: int, lines: Sequence[Line]) -> None:
        """Writes a part, in one piece: the same bytes for the same lines, whoever writes them."""
        last = {"shard": number, "lines": len(lines), "plan": self.digest}
        content = b"".join([*map(records.to_bytes, lines), records.to_bytes(last)])
        self.out.put(_part(number), gzip.compress(content, mtime=0))

    def part(self, number: int) -> list[Line] | None:
        """The lines of a shard; None where its part is missing, torn, short or of another plan."""
        try:
            content = gzip.decompress(self.out.read(_part(number)) or b"cut")
            *lines, last = map(json.loads, content.splitlines())
        except (gzip.BadGzipFile, EOFError, zlib.error, ValueError):
            return None
        span = self.span(number)
        told = {"shard": number, "lines": span.stop - span.start, "plan": self.digest}
        return lines if last == told and len(lines) == told["lines"] else None

    def has(self, number: int) -> bool:
        """Whether there is a part of that name, whole or not; quick."""
        return self.out.has(_part(number))


def _part(number: int) -> str:
    return f"{PARTS}/{number:06}.jsonl.gz"
