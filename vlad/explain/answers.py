"""Answers that were paid for once: kept in memory, and in a folder only where the user names one."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

from vlad.explain.reasoner import Answer

REMEMBERED = 10_000  # answers in memory


class Answers:
    """Answers by the digest of their question; a folder holds one small JSON file for each, and no picture."""

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self._folder = None if folder is None else Path(folder)
        self._known: dict[str, Answer] = {}

    def get(self, digest: str) -> Answer | None:
        """The answer without its usage, which was counted when it was given; None for a new question."""
        if digest not in self._known and self._folder is not None:
            found = _read(self._folder / f"{digest}.json")
            if found is not None:
                self._known[digest] = found
        return self._known.get(digest)

    def put(self, digest: str, answer: Answer) -> None:
        """Keeps an answer; of too many in memory, the oldest goes."""
        self._known[digest] = Answer(answer.text, answer.parsed, answer.option_probs, answer.finish, code=answer.code)
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            beside = self._folder / f".{uuid.uuid4().hex}"
            known = self._known[digest]
            kept = {key: getattr(known, key) for key in ("text", "parsed", "option_probs", "finish", "code")}
            beside.write_text(json.dumps(kept), encoding="utf-8")
            os.replace(beside, self._folder / f"{digest}.json")


def _read(path: Path) -> Answer | None:
    """The answer in a file; None where there is none, or a broken one: then it is asked again."""
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        probs = kept["option_probs"]
        known = None if probs is None else tuple(map(float, probs))
        return Answer(str(kept["text"]), kept["parsed"], known, kept["finish"], code=kept["code"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
