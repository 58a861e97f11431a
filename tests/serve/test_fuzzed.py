"""Every route with bodies, names and headers that nobody would send: no answer says that the server failed."""

import json
import random
import string

import pytest
from serve_pictures import drawn

pytestmark = pytest.mark.slow

REQUESTS = 3000
ODD = ["", "\x00", "é" * 300, "../../etc/passwd", "nan", "-1", "1e999", "[]", "null", "🔩", "a" * 5000, "%00", "grain"]
KINDS = [
    "application/json",
    "multipart/form-data; boundary=x",
    "multipart/form-data",
    "text/plain",
    "",
    "application/xml",
]


def value(draw, depth=0):
    """A value of JSON, mostly of the wrong kind."""
    kinds = [
        lambda: draw.choice(ODD),
        lambda: draw.choice([None, True, 0, -1, 1 << 80, 1e308, 0.5, ""]),
        lambda: [value(draw, depth + 1) for _ in range(draw.randint(0, 5))],
        lambda: {draw.choice(KEYS): value(draw, depth + 1) for _ in range(draw.randint(0, 5))},
    ]
    return draw.choice(kinds[: 2 if depth > 2 else 4])()


KEYS = ["detector", "pictures", "name", "data", "maps", "threshold", "map_threshold", "ignore", "words", "method"]
KEYS += ["prompts", "normal", "anomalous", "files", "file", "question", "add", "\ud800"]


def body(draw):
    """(content, its kind): JSON, a form, or bytes of either kind that were cut and changed."""
    if draw.random() < 0.4:
        content, kind = json.dumps(value(draw)).encode(), KINDS[0]
    else:
        parts = []
        for _ in range(draw.randint(0, 5)):
            name = f'; filename="{draw.choice(ODD)}"' if draw.random() < 0.5 else ""
            holds = drawn(3) if draw.random() < 0.2 else draw.choice(["patch_text", *ODD]).encode()
            parts.append(
                f'--x\r\nContent-Disposition: form-data; name="{draw.choice(KEYS)}"{name}\r\n\r\n'.encode(
                    "utf-8", "replace"
                )
                + holds
                + b"\r\n"
            )
        content, kind = b"".join(parts) + b"--x--\r\n", KINDS[1]
    if draw.random() < 0.3:
        content = bytearray(content[: draw.randint(0, len(content))])
        for _ in range(draw.randint(0, 20)):
            if content:
                content[draw.randrange(len(content))] = draw.randrange(256)
        content, kind = bytes(content), draw.choice(KINDS)
    return content, kind


@pytest.mark.filterwarnings("ignore:no threshold from")
def test_no_request_makes_the_server_fail(client, shelf):
    app, draw = client(timeout=120), random.Random(0)
    paths = app.get("/openapi.json").json()["paths"]
    routes = [(method, path) for path, methods in sorted(paths.items()) for method in sorted(methods)]
    codes = set()
    for number in range(REQUESTS):
        method, path = draw.choice(routes)
        named = draw.choice(["grain", "other", *("".join(draw.choices(string.printable, k=5)) for _ in range(2))])
        path = path.replace("{name}", named if draw.random() < 0.8 else draw.choice(ODD)[:100]).replace("{id}", named)
        content, kind = body(draw)
        headers = {"content-type": kind, "if-match": draw.choice(["1", "x", '"9"'])} if draw.random() < 0.3 else {}
        headers = {"content-type": kind, **headers}
        try:
            answer = app.request(method, path.replace("\n", ""), content=content, headers=headers)
        except (UnicodeError, ValueError):
            continue  # nothing that a client can send
        except Exception as error:
            if type(error).__name__ != "InvalidURL":
                raise
            continue
        codes.add(answer.status_code)
        assert answer.status_code < 500 or answer.status_code in (503, 507), (
            number,
            method,
            path,
            content[:300],
            answer.text,
        )
        if answer.status_code >= 400:
            assert answer.json()["error"]
    assert {200, 404, 422} <= codes
    assert all(path.name.count(".") == 2 for path in shelf.folder.iterdir())
