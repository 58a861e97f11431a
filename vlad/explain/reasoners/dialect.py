"""What one server accepts, learnt from its refusals: names of keys, a system turn, how much at once.

A refusal is read for what it names; nothing is tried that the reply does not speak of, and nothing twice.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlad.explain.reasoners.parsing import neutralise
from vlad.explain.reasoners.protocol import Ask
from vlad.explain.reasoners.transport import ServerError
from vlad.explain.reasoners.wire import message_part

THOUGHT_TOKENS = 4096  # further ones for a model that thinks before it answers
LEAST_THOUGHT = 1024  # tokens; a smaller allowance brings no answer
FEW_LOGPROBS = 5  # of the first token, where a server gives no more; enough for the letters that matter
LEAST_SIDE = 224  # px; smaller whole pictures show too little
REFUSALS = (400, 404, 413, 415, 422, 500, 501)  # answers that may name what was wrong with a request
OWN_KEYS = ("max_tokens", "max_completion_tokens", "temperature", "seed", "response_format", "logprobs", "top_logprobs")

_COUNT = re.compile(
    r"(?:at most|only|up to|maximum(?: number)?(?: of)?|max\w*|limit\w*(?: of| to)?|supports?)\W{0,12}"
    r"(\d+|one|a single) ?(?:images?|pictures?)|\"image\": ?(\d+)"
    r"|images? .{0,40}?(?:at most|limit\w*|maximum|only|up to)\D{0,8}(\d+)"
    r"|(?:too many|multiple|more than (?:one|1)) images?",
    re.IGNORECASE,
)
_SIZE = re.compile(
    r"context (?:length|size|window)|n_ctx|n_keep|too (?:long|large|big|many tokens)|token limit|out of memory"
    r"|exceeds? (?:the )?(?:max|limit|available|allowed)|reduce the (?:length|size)"
    r"|maximum .{0,40}(?:size|dimension|pixels|length|tokens)",
    re.IGNORECASE,
)
_TOKENS = re.compile(r"max(?:_completion)?_tokens|completion tokens|output tokens", re.IGNORECASE)
_MOST = re.compile(
    r"(?:at most|maximum(?: \w+){0,3}|supports|up to|limit\w*|<=|\u2264|or equal to)\W{0,6}(\d+)", re.IGNORECASE
)
_SYSTEM = re.compile(
    r"(?:system|developer) (?:role|message|prompt|instruction|turn)s?\b|'system'|\"system\"|roles? must alternate"
    r"|messages(?:\[0\]|\.0)\.role|only (?:the )?['\"]?user",
    re.IGNORECASE,
)
_BLIND = re.compile(
    r"image_url|image input|(?:support|accept|process|read|handle|see)\w* (?:any )?(?:images?|pictures?|vision)"
    r"|at most 0 image|multi-?modal|mmproj",
    re.IGNORECASE,
)
_STREAM = re.compile(r"stream(?:ing)? (?:mode|parameter)|non-stream|only support\w* stream", re.IGNORECASE)
_PLAIN = re.compile(r"content.{0,60}\bstring|\bstring\b.{0,60}content", re.IGNORECASE)
_CAUSES = (_COUNT, _SIZE, _SYSTEM, _BLIND, _STREAM, _PLAIN)


def names_pictures(error: ServerError) -> bool:
    """Whether a refusal speaks of pictures as such: the model behind the server reads text alone."""
    words = _words(error)
    return error.status in REFUSALS and bool(_BLIND.search(words) or _PLAIN.search(words))


class Dialect:
    """How requests to one server are written.

    Args:
        extra: the user's own keys, which are never changed; a value of None takes a key out.

    Attributes:
        thinking: further tokens that every answer is allowed; 0 until the model ran out of them while it thought.
        most_images, longest_side: of the pictures in a question; None: as they come.
    """

    def __init__(self, extra: Mapping[str, Any]) -> None:
        self.thinking = 0
        self.most_images: int | None = None
        self.longest_side: int | None = None
        self._extra = dict(extra)
        self._names: dict[str, str | None] = {}  # key -> what this server calls it; None: left out
        self._most_tokens: int | None = None
        self._few_logprobs = self._system_in_user = self._plain = self._stream = False

    def fitted(self, question: Ask) -> Ask:
        """The question with as many and as large pictures as the server takes."""
        fewer = question if self.most_images is None else question.fewer(self.most_images)
        return fewer if self.longest_side is None else fewer.smaller(self.longest_side)

    def body(self, model: str, question: Ask, ending: str, max_tokens: int, keys: Mapping[str, Any]) -> dict[str, Any]:
        """A request."""
        system, user = neutralise(question.system), [message_part(part) for part in (*question.parts, ending)]
        if self._system_in_user:
            messages: list[dict[str, Any]] = [{"role": "user", "content": [message_part(system), *user]}]
        else:
            messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        if self._plain and not question.pictures:
            messages = [{**one, "content": _joined(one["content"])} for one in messages]
        most = max_tokens + self.thinking
        own = {
            "max_tokens": most if self._most_tokens is None else min(most, self._most_tokens),
            "temperature": 0,
            "seed": question.seed,
            **keys,
        }
        if self._stream:
            own["stream"] = True
        if self._few_logprobs and "top_logprobs" in own:
            own["top_logprobs"] = FEW_LOGPROBS
        named = {self._names.get(key, key): value for key, value in own.items()}
        whole = {"model": model, "messages": messages, **{key: one for key, one in named.items() if key}, **self._extra}
        return {key: value for key, value in whole.items() if value is not None}

    def think_longer(self) -> bool:
        """Allows more tokens from now on; False where it did so before."""
        if self.thinking:
            return False
        self.thinking = THOUGHT_TOKENS
        return True

    def names(self, error: ServerError) -> bool:
        """Whether a refusal speaks of something that another request could do differently."""
        words = _words(error)
        known = any(pattern.search(words) for pattern in _CAUSES) or bool(_named(words))
        return error.status in REFUSALS and (known or error.status == 413)

    def learn(self, error: ServerError, body: Mapping[str, Any], question: Ask) -> bool:
        """Changes what the refusal of a request names; False where nothing is left to change."""
        if not self.names(error):
            return False
        words, pictures = _words(error), question.pictures
        if self._fewer_tokens(words, body):
            return True
        if pictures and (_COUNT.search(words) or _SIZE.search(words) or error.status == 413):
            return self._fewer_pictures(words, pictures)
        if _SYSTEM.search(words) and body["messages"][0]["role"] == "system":
            self._system_in_user = True
            return True
        if _STREAM.search(words) and "stream" not in body:
            self._stream = True
            return True
        if _PLAIN.search(words) and not (self._plain or pictures):
            self._plain = True
            return True
        return self._other_key(words, body)

    def _fewer_tokens(self, words: str, body: Mapping[str, Any]) -> bool:
        if self._extra.keys() & {"max_tokens", "max_completion_tokens"}:
            return False
        sent = body.get("max_tokens", body.get("max_completion_tokens"))
        limits = [int(found[1][:9]) for found in _MOST.finditer(words)]
        fitting = [limit for limit in limits if isinstance(sent, int) and 0 < limit < sent]
        if fitting and _TOKENS.search(words):
            self._most_tokens = max(fitting)
            return True
        if self.thinking and isinstance(sent, int) and sent > LEAST_THOUGHT and _SIZE.search(words):
            self._most_tokens = sent // 2  # what is allowed for thoughts is more than the model has room for
            return True
        return False

    def _fewer_pictures(self, words: str, pictures: tuple[np.ndarray, ...]) -> bool:
        """Fewer pictures each time that it names a smaller number; where it names none, once fewer and smaller ones."""
        counted, longest = _COUNT.search(words), max(max(picture.shape[:2]) for picture in pictures)
        if counted is not None:
            most = next((int(one[:4]) if one.isdecimal() else 1 for one in counted.groups() if one), len(pictures) // 2)
            if max(1, most) < len(pictures):
                self.most_images = max(1, most)
                return True
        if self.longest_side is not None or (counted and not _SIZE.search(words)):
            return False
        self.longest_side = max(LEAST_SIDE, longest // 2)
        self.most_images = -(-len(pictures) // 2)
        return True

    def _other_key(self, words: str, body: Mapping[str, Any]) -> bool:
        known = {name: key for key, name in self._names.items() if name}  # what this server calls our keys
        named = [name for name in _named(words) if name in body and name not in self._extra]
        named = [name for name in named if known.get(name, name) == name or known[name] not in words]  # it advises this
        if not named:
            return False
        key = known.get(named[0], named[0])
        if self._names.get(key, key) != named[0]:
            return True  # another question has learnt it meanwhile
        if key in ("logprobs", "top_logprobs"):
            if not self._few_logprobs and re.search(r"\d", words):
                self._few_logprobs = True
            else:
                self._names |= {"logprobs": None, "top_logprobs": None}
        elif key == "max_tokens" and key not in self._names and "max_completion_tokens" in words:
            self._names[key] = "max_completion_tokens"
        else:
            self._names[key] = None
        return True


def _named(words: str) -> list[str]:
    """Our keys that a refusal names: where it says which is wrong, then in quotes, then anywhere."""
    stated = re.findall(r'"param": ?"([a-z_]+)"|"loc": ?\[[^\]]*"([a-z_]+)"\]', words)
    quoted = re.findall(r"['`\"]([a-z_]+)['`\"]", words)
    found = [*("".join(one) for one in stated), *quoted, *re.findall(r"[a-z_]+", words)]
    return [one for one in found if one in OWN_KEYS]


def _words(error: ServerError) -> str:
    """What a refusal says, its quotes as they are meant."""
    return error.reply.replace('\\"', '"')


def _joined(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)
