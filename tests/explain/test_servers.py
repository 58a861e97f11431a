"""Servers as they really answer: models that think, keys that are refused, small limits, odd bodies, bad times."""

import gzip
import json
import threading
import time
import zlib

import numpy as np
import pytest
from chat_stub import pictures, reply, said, seen_quarter, serving, words
from test_reasoner_endpoint import GOOD, PICTURE, SCHEMA, TYPES, asked, seeing

from vlad.explain.reasoners import make_reasoner, transport
from vlad.explain.reasoners.address import read_address
from vlad.explain.reasoners.asking import Asker
from vlad.explain.reasoners.endpoint import EndpointReasoner
from vlad.explain.reasoners.parsing import neutralise, plain_words, spoken, thinks
from vlad.explain.reasoners.protocol import Ask, ReasonerError, Text
from vlad.explain.reasoners.transport import Server


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(transport, "BACKOFF_S", 0.01)


def most_tokens(request):
    return request.get("max_tokens", request.get("max_completion_tokens"))


# A model that thinks


def thinking(request, **apart):
    """Answers once it may write 800 tokens; before, its thoughts end at the limit."""
    if most_tokens(request) < 800:
        return reply(said("", "length", **apart))
    answer = seeing(request, logprobs=False)[1]
    answer["choices"][0]["message"] |= apart
    return reply(answer)


@pytest.mark.parametrize("place", ["reasoning_content", "reasoning", "thinking"])
def test_a_model_that_thinks_gets_far_more_tokens_once_and_keeps_them(place):
    with serving(lambda request: thinking(request, **{place: "Let me look at the quarters ..."})) as stub:
        reasoner = make_reasoner(f"openai:m@{stub.url}")
        assert reasoner.caps.max_images > 0 and not reasoner.caps.option_probs
        assert len(stub.requests) == 3  # the probe's two, one of them twice
        assert reasoner.ask(Ask((PICTURE, "x"), TYPES)).parsed == "dent"
    assert len(stub.requests) == 4 and most_tokens(stub.requests[-1]) >= 4096


@pytest.mark.parametrize(
    "text", ["<think>Let me see", "Okay, the user wants to know which quarter", "analysisWe need to look"]
)
def test_a_thought_that_stands_in_the_words_and_is_cut_is_no_answer(text):
    def answer(request):
        return reply(said(text, "length")) if most_tokens(request) < 800 else seeing(request)

    with serving(answer) as stub:
        assert make_reasoner(f"openai:m@{stub.url}").caps.max_images > 0
    assert len(stub.requests) == 3


def test_a_cut_that_only_the_token_count_shows_is_one():
    def answer(request):
        body = said("<think>hm")
        body["usage"]["completion_tokens"] = most_tokens(request)
        return reply(body) if most_tokens(request) < 800 else seeing(request)

    with serving(answer) as stub:
        assert make_reasoner(f"openai:m@{stub.url}").caps.max_images > 0


def test_the_first_token_of_a_thought_is_no_option():
    def answer(request):
        if "Which quarter" in words(request):
            return seeing(request)
        return reply(said("<think>A...</think>B", top={"A": -0.01}))

    with serving(answer) as stub:
        answered = make_reasoner(f"openai:m@{stub.url}").ask(Ask((PICTURE,), TYPES))
    assert answered.parsed == "dent" and answered.option_probs is None


def test_a_talkative_model_whose_first_token_is_an_option_gets_no_more_tokens():
    def answer(request):
        top = {"B": -0.1, "The": -2.0}
        return seeing(request) if "Which quarter" in words(request) else reply(said("The picture", "length", top=top))

    with serving(answer) as stub:
        assert make_reasoner(f"openai:m@{stub.url}").ask(Ask((PICTURE,), TYPES)).option_probs is not None
    assert len(stub.requests) == 4 and most_tokens(stub.requests[-1]) == 256


TEXT = {"type": "text", "text": "B"}
WORDLESS = {
    "thoughts to the end": (said("", "length", reasoning_content="hm"), "it thought until its limit"),
    "null and thoughts": (said(None, "length", reasoning="hm"), "it thought until its limit"),
    "thoughts alone": (said("", reasoning_content="B"), "it only thought"),
    "an unfinished thought": (said("<think>B"), "it only thought"),
    "parts of thoughts": (said([{"type": "thinking", "thinking": [TEXT]}]), "it only thought"),
    "tools": (
        said(None, "tool_calls", tool_calls=[{"function": {"name": "x", "arguments": "{}"}}]),
        "calls tools",
    ),
    "a content of no kind": (said(7), "its content has no text"),
}


@pytest.mark.parametrize("case", WORDLESS)
def test_a_server_without_words_is_not_called_blind(case):
    body, reason = WORDLESS[case]
    with serving([reply(body)]) as stub:
        reasoner = make_reasoner(f"openai:m@{stub.url}")
        for _ in range(2):
            with pytest.raises(ReasonerError, match="answers without words") as caught:
                _ = reasoner.caps
    assert reason in str(caught.value) and "extra_body" in str(caught.value)
    assert len(stub.requests) <= 2  # found out once


@pytest.mark.parametrize("case", WORDLESS)
def test_an_answer_without_words_says_so_and_is_no_verdict(case):
    body, reason = WORDLESS[case]
    with serving([reply(body)]) as stub:
        answer = asked(stub, TYPES)
    assert answer.parsed is None and reason in answer.error and len(stub.requests) <= 3


CONTENTS = {
    "an object with text": {"type": "text", "text": "B"},
    "the answer as an object": {"answer": "B"},
    "parts": [{"type": "text", "text": "B"}],
    "parts without a type": [{"text": "B"}],
    "text in an object": [{"type": "text", "text": {"value": "B"}}],
    "strings": ["B"],
    "a thought before": [{"type": "reasoning", "text": "A"}, {"type": "text", "text": "B"}],
    "thoughts as parts": [
        {"type": "thinking", "thinking": [{"type": "text", "text": "A"}]},
        {"type": "text", "text": "B"},
    ],
    "output": [{"type": "output_text", "text": "B"}],
}


@pytest.mark.parametrize("case", CONTENTS)
def test_words_are_read_from_a_content_of_any_form(case):
    with serving([reply(said(CONTENTS[case]))]) as stub:
        assert asked(stub, TYPES).parsed == "dent"


def test_a_choice_that_holds_its_text_itself_is_read():
    with serving([reply({"choices": [{"text": "B", "finish_reason": "stop"}]})]) as stub:
        assert asked(stub, TYPES).parsed == "dent"


# Other marks

MARKS = {
    "think": ("<think>", "</think>"),
    "thinking": ("<thinking>", "</thinking>"),
    "thought": ("<thought>", "</thought>"),
    "reasoning": ("<reasoning>", "</reasoning>"),
    "analysis": ("<analysis>", "</analysis>"),
    "seed": ("<seed:think>", "</seed:think>"),
    "capitals": ("<THINK>", "</THINK>"),
    "Magistral": ("[THINK]", "[/THINK]"),
    "Kimi": ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    "Cohere": ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
    "Apertus": ("<|inner_prefix|>", "<|inner_suffix|>"),
    "Gemma": ("<|channel>thought\n", "<channel|>"),
    "harmony": ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    "harmony in JSON": ("<|channel|>analysis<|message|>", "<|channel|>final <|constrain|>json<|message|>"),
    "harmony without marks": ("analysis", "assistantfinal"),
}


@pytest.mark.parametrize("mark", MARKS)
def test_a_thought_in_any_marks_is_cut_off(mark):
    opened, closed = MARKS[mark]
    thought = f"{opened}We see Q-TR, or {{}} and A. dent{closed}"
    assert spoken(f"{thought}B") == "B" and thinks(thought)
    with serving([reply(said(f"{thought}B"))]) as stub:
        assert asked(stub, TYPES).parsed == "dent"
    with serving([reply(said(thought + json.dumps(GOOD)))]) as stub:
        assert asked(stub, SCHEMA).parsed == GOOD


@pytest.mark.parametrize("mark", MARKS)
def test_nothing_inside_an_unfinished_thought_is_an_answer(mark):
    opened, _ = MARKS[mark]
    assert spoken(f"{opened}We see B") == ""
    with serving([reply(said(f"{opened}We see\n{json.dumps(GOOD)}"))]) as stub:
        assert asked(stub, SCHEMA).parsed is None


@pytest.mark.parametrize(
    "text", ["<answer>B</answer>", "<|begin_of_box|>B<|end_of_box|>", "B<|im_end|>", "$\\boxed{B}$"]
)
def test_an_answer_is_read_in_the_marks_that_models_put_round_it(text):
    with serving([reply(said(text))]) as stub:
        assert asked(stub, TYPES).parsed == "dent"


@pytest.mark.parametrize("mark", MARKS)
def test_marks_of_thoughts_in_words_do_not_reach_the_server(mark):
    opened, closed = MARKS[mark]
    if mark != "harmony without marks":
        assert not thinks(neutralise(f"rule {opened} ends {closed} here"))


def test_what_is_not_seen_is_not_kept_of_a_model_s_words():
    hidden = "".join(map(chr, (0xE0041, 0x61C, 0xAD, 0x3164, 0xFE0F, 0xE0100, 0xD800, 0x202E, 0x2028)))
    assert plain_words(f"a {hidden}scratch{hidden}", 9) == "a scratch"
    with serving([reply(said(json.dumps({**GOOD, "regions": [{"region": 1, "description": hidden + "x"}]})))]) as stub:
        assert asked(stub).parsed["regions"][0]["description"].strip() == "x"


# Keys that are refused


def refuses(key, message, status=400):
    return lambda request: reply({"error": {"message": message}}, status) if key(request) else seeing(request)


def has(key):
    return lambda request: key in request


def system_turn(request):
    return request["messages"][0]["role"] == "system"


REFUSED = {
    "renamed": (has("max_tokens"), "'max_tokens' is not supported, use 'max_completion_tokens' instead", 400),
    "seed": (has("seed"), "Unsupported parameter: 'seed'", 400),
    "temperature": (
        lambda request: request.get("temperature") == 0,
        "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) is supported.",
        400,
    ),
    "unprocessable": (has("seed"), "seed: Extra inputs are not permitted", 422),
    "system": (system_turn, "System role not supported", 400),
    "template": (system_turn, "Conversation roles must alternate user/assistant/user/assistant/...", 500),
    "roles": (system_turn, "Only user and assistant roles are supported!", 400),
    "Google": (system_turn, "Developer instruction is not enabled for models/gemma-3-27b-it", 400),
    "schema": (has("response_format"), "This response_format type is unavailable now", 400),
    "logprobs": (has("logprobs"), "You are not allowed to request logprobs from this model", 400),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_one_key_that_a_refusal_names_is_changed_and_stays_so(case):
    key, message, status = REFUSED[case]
    with serving(refuses(key, message, status)) as stub:
        reasoner = make_reasoner(f"openai:m@{stub.url}")
        assert reasoner.caps.max_images > 0 and len(stub.requests) == 3
        answer = reasoner.ask(Ask((PICTURE, "look"), TYPES))
        again = len(stub.requests)
        assert answer.parsed == "dent" and not any(key(request) for request in stub.requests[1:])
    assert again <= 5 and set(stub.requests[0]) - set(stub.requests[1]) <= {
        "max_tokens", "seed", "temperature", "response_format", "logprobs", "top_logprobs"
    }  # fmt: skip
    assert ("schema" not in case) is reasoner.caps.json_schema
    assert ("logprobs" not in case) is reasoner.caps.option_probs


def test_the_system_text_moves_into_the_user_s_turn():
    with serving(refuses(system_turn, "System role not supported")) as stub:
        assert asked(stub, TYPES).parsed == "dent"
    (message,) = stub.requests[1]["messages"]
    assert message["role"] == "user" and "You inspect pictures" in message["content"][0]["text"]


def test_keys_that_are_refused_one_after_the_other_are_all_changed():
    def answer(request):
        for key, advice in (("max_tokens", "use 'max_completion_tokens'"), ("temperature", "no"), ("seed", "no")):
            if key in request:
                return reply({"error": {"message": f"'{key}': {advice}", "param": key}}, 400)
        return seeing(request)

    with serving(answer) as stub:
        assert asked(stub, TYPES).parsed == "dent"
    assert len(stub.requests) == 4 and stub.requests[-1]["max_completion_tokens"] == 256


def test_a_place_in_the_refusal_counts_for_more_than_words_in_it():
    detail = [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "not permitted, as max_tokens", "input": 0}]
    with serving(lambda r: reply({"detail": detail}, 422) if "seed" in r else seeing(r)) as stub:
        assert asked(stub, TYPES).parsed == "dent"
    assert "seed" not in stub.requests[1] and "max_tokens" in stub.requests[1]


def test_fewer_log_probabilities_are_asked_for_where_twenty_are_too_many():
    message = "Requested sample logprobs of 20, which is greater than max allowed: 5"
    with serving(refuses(lambda request: request.get("top_logprobs", 0) > 5, message)) as stub:
        assert make_reasoner(f"openai:m@{stub.url}").caps.option_probs
    assert stub.requests[-1]["top_logprobs"] == 5


def test_a_key_of_the_user_s_own_is_never_changed_and_the_refusal_names_where():
    with serving([reply("'seed' is not supported", 400)]) as stub:
        answer = asked(stub, TYPES, extra_body={"seed": 3})
    assert len(stub.requests) == 1 and "extra_body" in answer.error


def test_a_limit_of_tokens_that_the_user_s_own_key_passes_is_given_up():
    with serving([reply("max_tokens is at most 20", 400)]) as stub:
        assert asked(stub, TYPES, extra_body={"max_tokens": 30}).parsed is None
    assert len(stub.requests) == 1


@pytest.mark.parametrize("message", ["bad request", "'max_tokens' is not supported, use 'max_completion_tokens'"])
def test_a_refusal_that_no_change_ends_is_given_up(message):
    with serving([reply({"error": message}, 400)]) as stub:
        answer = asked(stub, TYPES)
    assert answer.code == "reasoner_failed" and "extra_body" in answer.error and len(stub.requests) <= 2


def test_a_server_that_takes_no_parts_gets_plain_words():
    def answer(request):
        if isinstance(request["messages"][-1]["content"], list):
            return reply({"error": "messages[1].content must be a string"}, 400)
        return reply(said("B"))

    with serving(answer) as stub:
        assert asked(stub, TYPES, parts=("which one?",)).parsed == "dent"
    assert len(stub.requests) == 2


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "Invalid content type. image_url is only supported by certain models."),
        (500, "image input is not supported - hint: you may need to provide the mmproj"),
        (404, "No endpoints found that support image input"),
        (400, "m is not a multimodal model"),
    ],
)
def test_a_model_that_refuses_pictures_is_blind_and_still_answers_words(status, message):
    def answer(request):
        return reply({"error": {"message": message}}, status) if pictures(request) else reply(said("B"))

    with serving(answer) as stub:
        reasoner = make_reasoner(f"openai:m@{stub.url}")
        assert reasoner.caps.max_images == 0
        assert reasoner.ask(Ask(("which?",), TYPES)).parsed == "dent"
    assert len(stub.requests) <= 4


@pytest.mark.parametrize(
    "message",
    [
        "This model only support stream mode, please enable the stream parameter to access the model.",
        "parameter.enable_thinking must be set to false for non-streaming calls",
    ],
)
def test_a_server_that_only_streams_is_asked_to(message):
    def answer(request):
        return reply(events({"content": "B"}).encode()) if request.get("stream") else reply({"message": message}, 400)

    with serving(answer) as stub:
        assert asked(stub, TYPES).parsed == "dent"
    assert len(stub.requests) == 2


@pytest.mark.parametrize("code", [429, 503])
def test_an_error_in_a_body_is_the_status_that_it_states(code):
    with serving([reply({"error": {"code": code, "message": "busy"}}), reply(said("B"))]) as stub:
        assert asked(stub, TYPES).parsed == "dent"
    with serving([reply({"error": {"code": 401, "message": "no key"}})]) as stub:
        assert "answers 401" in asked(stub, TYPES).error and len(stub.requests) == 1


# Small limits

REFERENCED = ("NORMAL reference, a good one:", PICTURE, "QUERY", 255 - PICTURE, "which one?")
COUNTS = {
    "vLLM": "At most 1 image(s) may be provided in one request.",
    "vLLM later": "You set or defaulted to '{\"image\": 1}' in `--limit-mm-per-prompt`, but passed 2 image items",
    "words": "Only one image is supported by this model",
    "order": "2 images given, at most 1 allowed",
    "no number": "multiple images are not supported",
}


@pytest.mark.parametrize("case", COUNTS)
def test_where_one_picture_is_allowed_the_one_in_question_goes(case):
    with serving(refuses(lambda request: len(pictures(request)) > 1, COUNTS[case])) as stub:
        reasoner = make_reasoner(f"openai:m@{stub.url}")
        assert reasoner.caps.max_images == 16
        assert reasoner.ask(Ask(REFERENCED, TYPES)).parsed == "dent"
        assert reasoner.caps.max_images == 1
    (picture,) = pictures(stub.requests[-1])
    assert np.array_equal(picture, 255 - PICTURE) and "NORMAL" not in words(stub.requests[-1])
    assert len(stub.requests) == 5  # the probe's two, one refusal, the choice in both orders


LARGE = np.zeros((600, 1000, 3), np.uint8)
SIZES = {
    "context": (400, "This model's maximum context length is 2048 tokens, your request has 3000 input tokens"),
    "llama.cpp": (400, "the request exceeds the available context size, try increasing it"),
    "body": (413, "Request Entity Too Large"),
    "bytes": (400, "image exceeds the maximum of 5 MB: 6000000 bytes"),
    "memory": (500, "CUDA out of memory"),
}


@pytest.mark.parametrize("case", SIZES)
def test_what_is_too_large_is_sent_fewer_and_smaller_once(case):
    status, message = SIZES[case]
    parts = ("NORMAL reference", LARGE, "QUERY", LARGE, "which?")
    with serving(lambda r: reply(message, status) if len(pictures(r)) > 1 else reply(said("B"))) as stub:
        reasoner = EndpointReasoner("m", stub.url, probe=False)
        assert reasoner.ask(Ask(parts, TYPES)).parsed == "dent"
        assert reasoner.caps.longest_side == 500
    assert len(stub.requests) == 2 and pictures(stub.requests[1])[0].shape == (300, 500, 3)
    with serving([reply(message, 413 if status == 500 else status)]) as stub:
        answer = asked(stub, TYPES, parts=parts)
    assert len(stub.requests) == 2 and "max_images" in answer.error and "longest_side" in answer.error


@pytest.mark.parametrize("size", [(5, 60), (60, 5), (1, 1)])
def test_pictures_below_28_px_are_padded_to_them(size):
    small = np.full((*size, 3), 7, np.uint8)
    with serving([reply(said("B"))]) as stub:
        asked(stub, TYPES, parts=("look", small))
    (sent,) = pictures(stub.requests[0])
    assert min(sent.shape[:2]) == 28 and np.array_equal(sent[: size[0], : size[1]], small)
    assert (sent[size[0] :] == 255).all() and (sent[:, size[1] :] == 255).all()


def test_an_allowance_for_thoughts_that_has_no_room_is_made_smaller():
    def answer(request):
        if most_tokens(request) > 2000:
            return reply("max_tokens is too large: 4352. This model supports at most 2000 completion tokens", 400)
        return thinking(request, reasoning_content="hm")

    with serving(answer) as stub:
        assert asked(stub, TYPES).parsed == "dent"
    assert most_tokens(stub.requests[-1]) == 2000


# Addresses


@pytest.mark.parametrize(
    ("url", "host", "path"),
    [
        ("http://0.0.0.0:8000/v1", "127.0.0.1", "/v1"),
        ("http://[::]:8000/v1/", "localhost", "/v1"),
        ("http://127.0.0.1:8000/v1/chat/completions", "127.0.0.1", "/v1"),
        ("http://127.0.0.1:8000/v1/chat/completions/", "127.0.0.1", "/v1"),
        (" http://localhost:8000/v1/models\n", "localhost", "/v1"),
        ("http://localhost:11434", "localhost", ""),
    ],
)
def test_an_address_is_taken_as_servers_print_it(url, host, path):
    assert (read_address(url).host, read_address(url).path) == (host, path)
    assert Server(url).host


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "localhost"])
def test_a_server_on_all_addresses_is_this_machine(host):
    with serving([reply(said("A"))]) as stub:
        url = stub.url.replace("127.0.0.1", host) + "/chat/completions"
        assert EndpointReasoner("m", url, probe=False).ask(Ask((PICTURE,), TYPES)).parsed == "scratch"


@pytest.mark.parametrize("url", ["http://127.0.0.1:80000/v1", "http://127.0.0.1:x/v1", "http://[::1/v1", "//127.0.0.1"])
def test_an_address_of_no_form_is_one_sentence(url):
    with pytest.raises(ValueError, match="expected one such as http"):
        Server(url)


def test_a_host_elsewhere_is_refused_with_what_explain_takes():
    with pytest.raises(ValueError, match=r"--allow-remote.*make_reasoner\("):
        make_reasoner("openai:m@http://10.0.0.7/v1")


@pytest.mark.parametrize("body", [reply("Not Found", 404), reply("", 405), reply(b"<!doctype html><title>UI</title>")])
def test_an_address_without_its_version_is_hinted_at(body):
    with serving([body]) as stub:
        bare, whole = (EndpointReasoner("m", url, probe=False) for url in (stub.url.removesuffix("/v1"), stub.url))
        assert f"may lack its /v1: {stub.url}" in bare.ask(Ask(("x",), TYPES)).error
        assert "may lack" not in whole.ask(Ask(("x",), TYPES)).error


# Bodies


def events(*deltas, usage=True):
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}]
    chunks += [{"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}] if usage else []
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


PLAIN = json.dumps(said("B"))
BODIES = {
    "events": events({"role": "assistant", "content": ""}, {"content": "**"}, {"content": "B**"}).encode(),
    "events with thoughts": events({"reasoning_content": "A?"}, {"reasoning_content": " A"}, {"content": "B"}).encode(),
    "events and comments": (": keep-alive\n\nevent: message\n" + events({"content": "B"})).encode(),
    "events with returns": events({"content": "B"}).replace("\n", "\r\n").encode(),
    "lines of objects": "\n".join(line[6:] for line in events({"content": "B"}).split("\n\n")[:-2]).encode(),
    "kept alive": (": keep-alive\n\n: OPENROUTER PROCESSING\n\n\n" + PLAIN).encode(),
    "empty lines first": ("\n\n\n" + PLAIN).encode(),
    "a byte order mark": ("\ufeff" + PLAIN).encode(),
    "one event": f"data: {json.dumps(said('B'))}\n\n".encode(),
}


@pytest.mark.parametrize("case", BODIES)
def test_a_stream_that_nobody_asked_for_is_read(case):
    with serving([reply(BODIES[case])]) as stub:
        assert asked(stub, TYPES).parsed == "dent"


def test_the_pieces_of_a_stream_are_put_together_with_their_probabilities():
    top = {"content": [{"token": "B", "top_logprobs": [{"token": "B", "logprob": -0.1}]}]}

    def answer(request):
        if seen_quarter(request) is not None:
            return seeing(request)
        first = {"choices": [{"delta": {"content": "B"}, "logprobs": top}]}
        return reply(f"data: {json.dumps(first)}\n\n{events({'content': ''})}".encode())

    with serving(answer) as stub:
        found = make_reasoner(f"openai:m@{stub.url}").ask(Ask((PICTURE,), TYPES))
    assert found.parsed == "dent" and found.option_probs is not None and found.usage.completion_tokens == 18


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda body: zlib.compress(body)[2:-4]),
        ("", gzip.compress),
    ],
)
def test_a_compressed_body_is_read(encoding, pack):
    headers = {"Content_Encoding": encoding} if encoding else {}
    with serving([reply(pack(PLAIN.encode()), **headers)]) as stub:
        assert asked(stub, TYPES).parsed == "dent"


@pytest.mark.parametrize(
    ("body", "encoding", "reason"),
    [
        (b"not packed", "gzip", "is not gzip"),
        (PLAIN.encode(), "br", "in br, which is not read"),
        (gzip.compress(b" " * (64 << 20)), "gzip", "more than 8 MB"),
        (b'data: {"choices": [{"delta"', "", "no JSON object"),
        (b'data: {"error": {"message": "overloaded"}}\n\n', "", "overloaded"),
    ],
)
def test_a_body_that_cannot_be_read_is_one_sentence(body, encoding, reason):
    with serving([reply(body, **({"Content_Encoding": encoding} if encoding else {}))]) as stub:
        answer = asked(stub, TYPES)
    assert answer.parsed is None and reason in answer.error


# Keys and time


def test_a_missing_key_and_a_wrong_one_are_told_apart(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-1")
    with serving([reply("unauthorized", 401)]) as stub:
        without = EndpointReasoner("m", stub.url, probe=False).ask(Ask(("x",), TYPES))
        wrong = EndpointReasoner("m", stub.url, probe=False, key_env="MY_KEY").ask(Ask(("x",), TYPES))
    assert "--key-env" in without.error and "check the key in MY_KEY" in wrong.error


def test_a_time_out_names_what_gives_more_time():
    with serving([reply(said("A"), delay=0.6)]) as stub:
        answer = asked(stub, TYPES, timeout_s=0.2)
    assert "did not answer in time" in answer.error and "timeout_s=" in answer.error


def test_a_server_that_comes_back_is_asked_again_after_a_pause(monkeypatch):
    monkeypatch.setattr(transport, "PAUSE_S", 0.3)
    down = [True]
    with serving(lambda request: reply("down", 503) if down[0] else reply(said("B"))) as stub:
        reasoner = EndpointReasoner("m", stub.url, probe=False)
        for _ in range(4):
            failed = reasoner.ask(Ask(("x",), TYPES))
        assert "left alone" in failed.error and len(stub.requests) == 3 * (1 + transport.RETRIES)
        down[0] = False
        time.sleep(0.35)
        assert reasoner.ask(Ask(("x",), TYPES)).parsed == "dent"
        assert reasoner.ask(Ask(("x",), TYPES)).parsed == "dent"


def test_a_probe_that_failed_is_asked_again_once_the_server_is_there():
    down = [True]
    with serving(lambda request: reply("down", 500) if down[0] else seeing(request)) as stub:
        reasoner = make_reasoner(f"openai:m@{stub.url}")
        with pytest.raises(ReasonerError, match="answers 500"):
            _ = reasoner.caps
        down[0] = False
        assert reasoner.caps.max_images > 0


def test_a_server_that_asks_for_a_long_pause_gets_it():
    with serving([reply("busy", 429, Retry_After="120"), reply(said("B"))]) as stub:
        reasoner = EndpointReasoner("m", stub.url, probe=False)
        first, second = (reasoner.ask(Ask(("x",), TYPES)) for _ in range(2))
    assert "429" in first.error and "left alone for 1" in second.error and len(stub.requests) == 1


@pytest.mark.parametrize(
    "value", ["soon", "", "-5", "99999999999999999999", "Wed, 99 Foo 2026 99:99:99", "1e9", "\u00b2"]
)
def test_an_odd_time_to_wait_stops_nothing(value):
    with serving([reply("busy", 429, Retry_After=value.encode().decode("latin-1")), reply(said("B"))]) as stub:
        start = time.monotonic()
        asked(stub, TYPES, timeout_s=1.0)
    assert time.monotonic() - start < 3


def test_a_model_that_is_being_loaded_is_waited_for(monkeypatch):
    monkeypatch.setattr(transport, "LOADING_S", 0.02)
    loading = reply({"error": {"code": 503, "message": "Loading model"}}, 503)
    with serving([*[loading] * 6, reply(said("B"))]) as stub:
        assert asked(stub, TYPES).parsed == "dent"
    assert len(stub.requests) == 7


def test_a_healthy_server_is_asked_as_often_as_there_are_questions():
    with serving(seeing) as stub:
        asker = Asker(make_reasoner(f"openai:m@{stub.url}"), 30)
        asker.ask(Ask((PICTURE, "x"), TYPES))
        asker.ask(Ask((PICTURE, "x"), Text(9)))
    assert len(stub.requests) == 2 + 2 + 1  # the probe, a choice in both orders, words


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout_s": 0}, "timeout_s is 0"),
        ({"timeout_s": float("nan")}, "timeout_s is nan"),
        ({"max_images": 0}, "max_images is 0"),
        ({"longest_side": "512"}, "longest_side is '512'"),
        ({"extra_body": "seed"}, "extra_body is 'seed'"),
    ],
)
def test_a_wrong_keyword_of_a_server_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        EndpointReasoner("m", "http://127.0.0.1:1/v1", **options)


def test_redirects_to_nowhere_are_one_sentence():
    with serving([reply("", 302, Location="http://[::1")]) as stub:
        assert "redirects to another address" in asked(stub, TYPES).error


def test_two_threads_may_learn_at_once():
    with serving(refuses(has("max_tokens"), "'max_tokens': use 'max_completion_tokens'")) as stub:
        reasoner = EndpointReasoner("m", stub.url, probe=False)
        said_ = []
        threads = [threading.Thread(target=lambda: said_.append(reasoner.ask(Ask(("x",), TYPES)))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [answer.parsed for answer in said_] == ["dent"] * 4
