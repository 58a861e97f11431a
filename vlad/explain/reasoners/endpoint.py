"""Any server that speaks the OpenAI chat protocol: vLLM, llama.cpp, Ollama, `transformers serve`, a hosted model."""

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from vlad.explain.reasoners.dialect import Dialect, names_pictures
from vlad.explain.reasoners.parsing import how_to_answer, read_answer
from vlad.explain.reasoners.probe import MAX_TOKENS as PROBE_TOKENS
from vlad.explain.reasoners.probe import WordlessError
from vlad.explain.reasoners.probe import probe as find_out
from vlad.explain.reasoners.protocol import Answer, Ask, Caps, Choice, ReasonerError, Schema, Text, Usage
from vlad.explain.reasoners.transport import Server, ServerError
from vlad.explain.reasoners.wire import LOGPROBS, Said, first_choice, letter_probs, response_format, token_counts

logger = logging.getLogger(__name__)

CHARACTERS_PER_TOKEN, PIXELS_PER_TOKEN = 3, 28 * 28  # for the estimate before a call
MOST_CHANGES = 8  # requests for one question: a server may refuse one key after the other


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
        if not isinstance(timeout_s, (int, float)) or not 0 < timeout_s < math.inf:
            raise ValueError(f"timeout_s is {timeout_s!r}; expected seconds above 0")
        for key, number in {"max_images": max_images, "longest_side": longest_side}.items():
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"{key} is {number!r}; expected a whole number above 0")
        if extra_body is not None and not isinstance(extra_body, Mapping):
            raise ValueError(f"extra_body is {extra_body!r}; expected keys with their values, as a JSON object")
        if send not in ("all", "grey", "crops"):
            raise ValueError(f"send is {send!r}; expected all, grey or crops")
        self.server = Server(base_url, privacy=privacy, key_env=key_env)
        self.name = f"openai:{model}@{base_url}"
        self.model, self.budget, self.timeout_s = model, budget or Budget(), timeout_s
        self.spent = Usage(host=self.server.host)
        self._trusted = Caps(max_images=max_images, longest_side=longest_side, send=send)
        self._caps = None if probe else self._trusted
        self._wordless: str | None = None
        self._dialect = Dialect(extra_body or {})

    @property
    def caps(self) -> Caps:
        """What the probe found, asked once; `max_images` is 0 for a server that does not see pictures.

        Raises ReasonerError: no answer came, or none in words.
        """
        if self._wordless is not None:
            raise ReasonerError(self._wordless)
        if self._caps is None:
            self._caps = self._probed()
        most, longest = self._dialect.most_images, self._dialect.longest_side
        return replace(
            self._caps,
            max_images=self._caps.max_images if most is None else min(most, self._caps.max_images),
            longest_side=self._caps.longest_side if longest is None else min(longest, self._caps.longest_side),
        )

    def _probed(self) -> Caps:
        try:
            sees, schema, probs = find_out(self._ask_probe)
        except WordlessError as error:
            self._wordless = f"{self.name} {error}"
            raise ReasonerError(self._wordless) from error
        except (ServerError, BudgetSpentError) as error:
            if not (isinstance(error, ServerError) and names_pictures(error)):
                raise ReasonerError(f"{self.name} cannot be used: {error}") from error
            sees, schema, probs = False, False, False
        logger.info("%s: sees pictures %s, schema %s, log-probabilities %s", self.name, sees, schema, probs)
        images = self._trusted.max_images if sees else 0
        return replace(self._trusted, max_images=images, json_schema=schema, option_probs=probs)

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
        said = self._post(question, how_to_answer(question.answer), question.max_tokens, keys)
        return _read(said, question.answer)

    def _choose(self, question: Ask, choice: Choice) -> Answer:
        """Both orders of the options, each read from the probabilities of the first token."""
        probs = np.zeros(len(choice.options))
        for step in (1, -1):
            order = Choice(choice.options[::step])
            said = self._post(question, how_to_answer(order), question.max_tokens, LOGPROBS)
            letters = None if said.thought else letter_probs(said.choice, len(probs))
            if letters is None:
                return _read(said, order)
            probs += letters[::step] / 2
        best = choice.options[int(probs.argmax())]
        return Answer(best, best, tuple(map(float, probs)))

    def _ask_probe(self, question: Ask, ending: str, keys: dict[str, Any]) -> Said:
        return self._post(question, ending, PROBE_TOKENS, keys)

    def _post(self, question: Ask, ending: str, max_tokens: int, keys: dict[str, Any]) -> Said:
        """What the server says; asked again where it refuses something that can be left out, or thought too long."""
        for _ in range(MOST_CHANGES):
            fitted = self._dialect.fitted(question)
            body = self._dialect.body(self.model, fitted, ending, max_tokens, keys)
            try:
                said = self._send(fitted, ending, body)
            except ServerError as error:
                if not self._dialect.learn(error, body, fitted):
                    raise ServerError(f"{error}{_advice(error)}", error.status, error.reply) from error
            else:
                if not (_thinks_still(said, question.answer) and self._dialect.think_longer()):
                    return said
        raise ServerError(f"{self.server.host} refuses every form of the question{_advice(None)}")

    def _send(self, question: Ask, ending: str, body: dict[str, Any]) -> Said:
        """One request, counted."""
        coming = self._estimate(question, ending)
        limit = self.budget.exceeded(self.spent + coming)
        if limit:
            raise BudgetSpentError(f"the budget of {limit} is used up: no further question is asked")
        start, counts = time.monotonic(), (0, 0)
        try:
            timeout_s = min(question.timeout_s, self.timeout_s)
            reply = self.server.post("/chat/completions", body, timeout_s, self._dialect.names)
            counts = token_counts(reply)
        finally:
            seconds = time.monotonic() - start
            spent = replace(coming, prompt_tokens=counts[0], completion_tokens=counts[1], seconds=seconds)
            self.spent += spent
            logger.info("%s: %d pictures of %d px, %.1f s", *_sent(self.server.host, spent))
        most = body.get("max_tokens", body.get("max_completion_tokens"))
        return first_choice(reply, self.server.host, most if isinstance(most, int) else None)

    def _estimate(self, question: Ask, ending: str) -> Usage:
        words = sum(len(part) for part in (question.system, *question.parts, ending) if isinstance(part, str))
        pixels = sum(picture.shape[0] * picture.shape[1] for picture in question.pictures)
        tokens = words // CHARACTERS_PER_TOKEN + pixels // PIXELS_PER_TOKEN
        return Usage(1, len(question.pictures), pixels, tokens, host=self.server.host)


def _read(said: Said, answer: Choice | Text | Schema) -> Answer:
    """The answer in a reply; where there are no words, what came in their place is the reason."""
    if said.instead is None or said.finish == "refused":
        return read_answer(said.text, answer, said.finish, Usage())
    code = "truncated_answer" if said.finish == "length" else "parse_failed"
    return Answer(said.text, None, None, said.finish, Usage(), f"it answers without words ({said.instead})", code)


def _thinks_still(said: Said, answer: Choice | Text | Schema) -> bool:
    """Whether the tokens ran out in a thought: one that is marked, or words where a letter or an object was asked."""
    if said.finish != "length" or said.instead is not None:
        return said.finish == "length"
    if isinstance(answer, Choice) and letter_probs(said.choice, len(answer.options)) is not None:
        return False  # its first token is an answer, however it goes on
    words = isinstance(answer, Text) or "{" in said.text
    return not words and read_answer(said.text, answer, "stop", Usage()).parsed is None


def _advice(error: ServerError | None) -> str:
    """Which keywords change what was refused."""
    if error is None or error.status in (400, 422):
        return "; requests are changed with max_images, longest_side and extra_body (--server max_images=1)"
    return "; pictures are made fewer and smaller with max_images and longest_side" if error.status == 413 else ""


def _sent(host: str, usage: Usage) -> tuple[str, int, int, float]:
    return host, usage.images_sent, usage.pixels_sent, usage.seconds


def _since(before: Usage, after: Usage) -> Usage:
    """What was spent between two sums."""
    old, new = asdict(before), asdict(after)
    less = {key: new[key] - (old[key] or 0) for key in new if isinstance(new[key], (int, float))}
    return Usage(**{**new, **less})
