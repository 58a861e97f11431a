"""Any server that speaks the OpenAI chat protocol: vLLM, llama.cpp, Ollama, `transformers serve`, a hosted model."""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from vlad.explain.reasoners.parsing import how_to_answer, neutralise, read_answer
from vlad.explain.reasoners.probe import MAX_TOKENS as PROBE_TOKENS
from vlad.explain.reasoners.probe import probe as find_out
from vlad.explain.reasoners.protocol import Answer, Ask, Caps, Choice, Finish, ReasonerError, Schema, Usage
from vlad.explain.reasoners.transport import Server, ServerError
from vlad.explain.reasoners.wire import (
    LOGPROBS,
    first_choice,
    letter_probs,
    message_part,
    response_format,
    token_counts,
)

logger = logging.getLogger(__name__)

CHARACTERS_PER_TOKEN, PIXELS_PER_TOKEN = 3, 28 * 28  # for the estimate before a call


@dataclass(frozen=True)
class Budget:
    """What all questions to one reasoner may cost together; None: no limit."""

    calls: int | None = None
    images: int | None = None
    prompt_tokens: int | None = None
    seconds: float | None = None

    def exceeded(self, spent: Usage) -> str | None:
        """Name of the first limit that `spent` is above."""
        pairs = {
            "calls": (spent.calls, self.calls),
            "images": (spent.images_sent, self.images),
            "prompt tokens": (spent.prompt_tokens, self.prompt_tokens),
            "seconds": (spent.seconds, self.seconds),
        }
        return next((name for name, (used, limit) in pairs.items() if limit is not None and used > limit), None)


class BudgetSpentError(RuntimeError):
    """A question that was not asked, since it would exceed the budget."""


class EndpointReasoner:
    """Asks a server. Pictures are sent as PNG made from their pixels: nothing of a file's metadata goes along.

    Args:
        model: its name at the server.
        base_url: such as "http://127.0.0.1:8000/v1".
        privacy: "local" sends pictures to this machine alone; "remote" to any host.
        key_env: name of the environment variable that holds the key.
        budget: no question is asked that would exceed it.
        timeout_s: for one request with its retries; a model on a slow machine needs more.
        send: "all"; "grey" hides all but the marked regions; "crops" leaves whole pictures out.
        longest_side: px of a whole picture as it is sent.
        max_images: in one question.
        probe: False trusts the server to see pictures, and asks it for no schema and no probabilities.
        extra_body: further keys of a request; a value of None takes a key out.

    Raises:
        ValueError: a URL, host or key that `Server` refuses, or another `send`.
    """

    tier = "endpoint"

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        privacy: Literal["local", "remote"] = "local",
        key_env: str | None = None,
        budget: Budget | None = None,
        timeout_s: float = 60.0,
        send: Literal["all", "grey", "crops"] = "all",
        longest_side: int = 1024,
        max_images: int = 16,
        probe: bool = True,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        if send not in ("all", "grey", "crops"):
            raise ValueError(f"send is {send!r}; expected all, grey or crops")
        self.server = Server(base_url, privacy=privacy, key_env=key_env)
        self.name = f"openai:{model}@{base_url}"
        self.model, self.budget, self.timeout_s = model, budget or Budget(), timeout_s
        self.spent = Usage(host=self.server.host)
        self._trusted = Caps(max_images=max_images, longest_side=longest_side, send=send)
        self._caps = None if probe else self._trusted
        self._extra = dict(extra_body or {})

    @property
    def caps(self) -> Caps:
        """What the probe found, asked once; `max_images` is 0 for a server that does not see pictures.

        Raises ReasonerError: no answer came.
        """
        if self._caps is None:
            try:
                sees, schema, probs = find_out(self._ask_probe)
            except (ServerError, BudgetSpentError) as error:
                raise ReasonerError(f"{self.name} cannot be used: {error}") from error
            logger.info("%s: sees pictures %s, schema %s, log-probabilities %s", self.name, sees, schema, probs)
            images = self._trusted.max_images if sees else 0
            self._caps = replace(self._trusted, max_images=images, json_schema=schema, option_probs=probs)
        return self._caps

    def ask(self, question: Ask) -> Answer:
        """The answer to one question; a failure, a refusal and an empty budget are answers with an error."""
        before = self.spent
        try:
            if isinstance(question.answer, Choice) and self.caps.option_probs:
                answer = self._choose(question, question.answer)
            else:
                answer = self._write(question)
        except BudgetSpentError as error:
            answer = Answer(finish="error", error=str(error), code="budget")
        except (ServerError, ReasonerError) as error:
            answer = Answer(finish="error", error=str(error), code="reasoner_failed")
        return replace(answer, usage=_since(before, self.spent))

    def _write(self, question: Ask) -> Answer:
        keys: dict[str, Any] = {}
        if isinstance(question.answer, Schema) and self.caps.json_schema:
            keys["response_format"] = response_format(question.answer.json_schema)
        text, finish, _ = self._post(question, how_to_answer(question.answer), question.max_tokens, keys)
        return read_answer(text, question.answer, finish, Usage())

    def _choose(self, question: Ask, choice: Choice) -> Answer:
        """Both orders of the options, each read from the probabilities of the first token."""
        probs = np.zeros(len(choice.options))
        for step in (1, -1):
            order = Choice(choice.options[::step])
            text, finish, reply = self._post(question, how_to_answer(order), question.max_tokens, LOGPROBS)
            letters = letter_probs(reply, len(probs))
            if letters is None:
                return read_answer(text, order, finish, Usage())
            probs += letters[::step] / 2
        best = choice.options[int(probs.argmax())]
        return Answer(best, best, tuple(map(float, probs)))

    def _ask_probe(self, question: Ask, ending: str, keys: dict[str, Any]) -> tuple[str, Any]:
        text, _, reply = self._post(question, ending, PROBE_TOKENS, keys)
        return text, reply

    def _post(
        self, question: Ask, ending: str, max_tokens: int, keys: dict[str, Any]
    ) -> tuple[str, Finish, Mapping[str, Any]]:
        """One request: the text, how it ended, and all that the server says of it."""
        body = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": neutralise(question.system)},
                {"role": "user", "content": [message_part(part) for part in (*question.parts, ending)]},
            ],
            "max_tokens": max_tokens,
            "temperature": 0,
            "seed": question.seed,
            **keys,
            **self._extra,
        }
        coming = self._estimate(question, ending)
        limit = self.budget.exceeded(self.spent + coming)
        if limit:
            raise BudgetSpentError(f"the budget of {limit} is used up: no further question is asked")
        start, counts = time.monotonic(), (0, 0)
        try:
            wanted = {key: value for key, value in body.items() if value is not None}
            reply = self.server.post("/chat/completions", wanted, min(question.timeout_s, self.timeout_s))
            counts = token_counts(reply)
        finally:
            seconds = time.monotonic() - start
            spent = replace(coming, prompt_tokens=counts[0], completion_tokens=counts[1], seconds=seconds)
            self.spent += spent
            logger.info("%s: %d pictures of %d px, %.1f s", *_sent(self.server.host, spent))
        return first_choice(reply, self.server.host)

    def _estimate(self, question: Ask, ending: str) -> Usage:
        words = sum(len(part) for part in (question.system, *question.parts, ending) if isinstance(part, str))
        pixels = sum(picture.shape[0] * picture.shape[1] for picture in question.pictures)
        tokens = words // CHARACTERS_PER_TOKEN + pixels // PIXELS_PER_TOKEN
        return Usage(1, len(question.pictures), pixels, tokens, host=self.server.host)


def _sent(host: str, usage: Usage) -> tuple[str, int, int, float]:
    return host, usage.images_sent, usage.pixels_sent, usage.seconds


def _since(before: Usage, after: Usage) -> Usage:
    """What was spent between two sums."""
    old, new = asdict(before), asdict(after)
    less = {key: new[key] - (old[key] or 0) for key in new if isinstance(new[key], (int, float))}
    return Usage(**{**new, **less})
