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
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlad import records
from vlad.files import write_whole
from vlad.images.listing import Found
from vlad.records import Line

PLAN, PARTS = "plan.json", "parts"
FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """What all who work on a run agree on; `facts` are plan.json's."""

    out: Path
    facts: Mapping[str, Any]

    @classmethod
    def made(cls, out: Path, pictures: Sequence[Found], shard_size: int, settings: Mapping[str, Any]) -> Plan:
        """Of these pictures, kept in `out`, or compared with the plan that is there.

        Raises:
            ValueError: the plan there is of other settings or of another list of pictures.
        """
        sources = hashlib.sha256("\0".join(one.source for one in pictures).encode(errors="surrogateescape"))
        facts = {"format": FORMAT, "pictures": len(pictures), "list": sources.hexdigest(), "shard_size": shard_size}
        facts |= {"settings": json.loads(json.dumps(settings, default=str))}
        records.keep_settings(out / PLAN, facts, begun=(out / PLAN).exists())
        return cls(out, facts)

    @classmethod
    def read(cls, out: Path) -> Plan:
        """The plan that lies in `out`.

        Raises:
            ValueError: there is none that can be read.
        """
        try:
            facts = json.loads((out / PLAN).read_text(encoding="utf-8"))
            if facts["format"] == FORMAT and facts["pictures"] > 0 and facts["shard_size"] > 0:
                return cls(out, facts)
        except (OSError, KeyError, TypeError, ValueError):
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
        write_whole(self._part(number), gzip.compress(content, mtime=0), sync=True)

    def part(self, number: int) -> list[Line] | None:
        """The lines of a shard; None where its part is missing, torn, short or of another plan."""
        try:
            content = gzip.decompress(self._part(number).read_bytes())
            *lines, last = map(json.loads, content.splitlines())
        except (OSError, EOFError, zlib.error, ValueError):
            return None
        span = self.span(number)
        told = {"shard": number, "lines": span.stop - span.start, "plan": self.digest}
        return lines if last == told and len(lines) == told["lines"] else None

    def has(self, number: int) -> bool:
        """Whether there is a part of that name, whole or not; quick."""
        return os.path.exists(self._part(number))

    def _part(self, number: int) -> Path:
        return self.out / PARTS / f"{number:06}.jsonl.gz"
