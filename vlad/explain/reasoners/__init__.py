"""Language models that may see pictures, and how one is named.

"hf:FOLDER_OR_ID" runs a model in this process (`local.py`), "openai:MODEL@BASE_URL" asks a server (`endpoint.py`); a
user's own is any object with the `name`, `caps` and `ask` of `protocol.py`.
"""

from dataclasses import dataclass
from typing import Any, cast

from vlad.explain.reasoners.protocol import Answer, Ask, Caps, Reasoner, ReasonerError


def make_reasoner(which: Any, **options: Any) -> Reasoner | None:
    """The reasoner that a user names; None for "clip", which needs no language model.

    Args:
        which: "clip", "hf:FOLDER_OR_ID", "openai:MODEL@BASE_URL", or an object with `name`, `caps` and `ask`.
        options: keywords of `LocalReasoner` ("hf:") or `EndpointReasoner` ("openai:").

    Raises:
        ValueError: another name, or a server elsewhere without `privacy="remote"`.
        TypeError: an object that cannot be asked, or an unknown option.
        ReasonerError: a local model that does not load.
    """
    if not isinstance(which, str):
        if not callable(getattr(which, "ask", None)):
            raise TypeError(f"reasoner is of type {type(which).__name__}; give a name or an object that can be asked")
        return cast(Reasoner, which)
    kind, _, rest = which.partition(":")
    if which == "clip":
        return None
    if kind == "hf" and rest:
        from vlad.explain.reasoners.local import LocalReasoner

        return LocalReasoner(rest, **options)
    model, at, base_url = rest.rpartition("@")
    if kind == "openai" and at and model and base_url:
        from vlad.explain.reasoners.endpoint import EndpointReasoner

        return EndpointReasoner(model, base_url, **options)
    raise ValueError(f"reasoner is {which!r}; expected clip, hf:FOLDER_OR_ID or openai:MODEL@BASE_URL")


@dataclass(frozen=True)
class Unusable:
    """Stands in for a reasoner that cannot be used: every explanation has the first tier's words, and says why."""

    name: str
    reason: str

    @property
    def caps(self) -> Caps:
        """Raises ReasonerError with the reason."""
        raise ReasonerError(self.reason)

    def ask(self, question: Ask) -> Answer:
        """Raises ReasonerError with the reason."""
        raise ReasonerError(self.reason)


def usable(which: Any, **options: Any) -> Reasoner | None:
    """What `make_reasoner` gives; where a model does not load, something that says so in every explanation."""
    try:
        return make_reasoner(which, **options)
    except ReasonerError as error:
        return Unusable(str(which), str(error))
