"""Who may ask, how much and for how long; what every answer carries."""

import asyncio
import io
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from serve_pictures import drawn, upload

import vlad.serve
from vlad.serve import Settings, make_app

KEY = "a-long-random-text"


def score(app, **more):
    return app.post("/v1/score", data={"detector": "grain"}, files=upload(drawn(7)), **more)


@pytest.mark.parametrize("said", [None, "Bearer wrong", "Bearer ", KEY, f"Basic {KEY}", b"Bearer \xff\xfe"])
def test_without_the_right_key_nothing_is_said(client, said):
    headers = {} if said is None else {"authorization": said}
    app = client(key=KEY)
    answers = [app.get(path, headers=headers) for path in ("/v1/detectors", "/metrics")]
    for answer in (*answers, score(app, headers=headers)):
        assert answer.status_code == 401 and "wants its key" in answer.json()["error"]
    assert app.get("/healthz").status_code == app.get("/").status_code == 200


def test_with_the_key_any_name_of_the_server_will_do(client):
    app = client(key=KEY)
    headers = {"authorization": f"Bearer {KEY}", "host": "vlad.example"}
    assert score(app, headers=headers).status_code == 200
    assert KEY not in repr(Settings(key=KEY))


def test_other_machines_are_only_served_with_a_key():
    with pytest.raises(ValueError, match=r"at 0\.0\.0\.0 other machines can reach the server.*VLAD_SERVE_KEY"):
        Settings(host="0.0.0.0")
    with pytest.raises(ValueError, match="take 16 or more"):
        Settings(host="0.0.0.0", key="secret")
    assert Settings(host="0.0.0.0", key=KEY).host == "0.0.0.0"
    assert all(Settings(host=host).loopback for host in ("localhost", "127.0.0.2", "::1"))


def test_a_foreign_name_that_leads_to_this_machine_is_refused(client):
    app = client()
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
        assert app.get("/v1/detectors", headers={"host": host}).status_code == 421
    for host in ("localhost:8000", "127.0.0.1", "[::1]:80"):
        assert app.get("/v1/detectors", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "https://localhost"])
def test_a_form_of_a_foreign_page_changes_nothing(client, shelf, origin):
    answer = client().post(
        "/v1/detectors/grain/fit", files=upload(drawn(1)), headers={"origin": origin, "host": "localhost"}
    )
    assert answer.status_code == 403 and shelf.get("grain").version == 1


def test_only_named_pages_may_call_it_and_no_star(client):
    app, asked = client(origins=("https://mes.example",)), {"access-control-request-method": "POST"}
    allowed = app.options("/v1/score", headers={"origin": "https://mes.example", **asked})
    assert allowed.headers["access-control-allow-origin"] == "https://mes.example"
    assert score(app, headers={"origin": "https://mes.example"}).status_code == 200
    refused = app.options("/v1/score", headers={"origin": "https://evil.example", **asked})
    assert "access-control-allow-origin" not in refused.headers
    assert "access-control-allow-origin" not in client().get("/healthz", headers={"origin": "https://a.b"}).headers
    with pytest.raises(ValueError, match="named one by one"):
        Settings(origins=("*",))


def test_a_read_only_server_scores_and_changes_nothing(client):
    app = client(read_only=True)
    assert score(app).status_code == 200
    assert app.post("/v1/explain", data={"detector": "grain"}, files={"file": drawn(7)}).status_code == 200
    tried = [
        app.put("/v1/detectors/new", content=b"x"),
        app.patch("/v1/detectors/grain", json={"threshold": 1}),
        app.delete("/v1/detectors/grain"),
        app.post("/v1/detectors/grain/fit", files=upload(drawn(1))),
        app.post("/v1/detectors/new", json={"words": "x"}),
    ]
    assert {answer.status_code for answer in tried} == {403}


def test_a_body_is_refused_by_its_length_and_counted_where_that_lies(client):
    app = client(max_body=20_000)
    assert app.put("/v1/detectors/a", content=b"x" * 20_001).status_code == 413
    assert app.put("/v1/detectors/a", content=iter([b"x"])).status_code == 411
    lying = app.put("/v1/detectors/a", content=b"x" * 30_000, headers={"content-length": "10"})
    assert lying.status_code == 413 and "more than 20000 bytes" in lying.json()["error"]
    for wrong in ("-1", "x", "9" * 5000):
        assert app.put("/v1/detectors/a", content=b"", headers={"content-length": wrong}).status_code == 400


def test_more_pictures_than_a_request_may_have_are_refused_whole(client):
    answer = client(max_pictures=2).post("/v1/score", data={"detector": "grain"}, files=upload(*[b""] * 3))
    assert answer.status_code == 413 and "send 2 at most" in answer.json()["error"]


def test_a_picture_of_too_many_pixels_is_known_from_its_head(client):
    kept = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(kept, "PNG")
    answer = client().post("/v1/score", data={"detector": "grain"}, files=upload(kept.getvalue(), drawn(7)))
    lines = answer.json()["results"]
    assert "more than 40000000 pixels" in lines[0]["error"] and lines[1]["error"] is None


def test_a_request_that_takes_too_long_is_given_up(shelf):
    app = make_app(shelf, Settings(timeout=1))
    told = []

    async def receive():
        await asyncio.sleep(30)  # a body that never comes

    async def send(message):
        told.append(message)

    headers = [(b"host", b"localhost"), (b"content-length", b"9"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/detectors/a", "headers": headers, "scheme": "http"}
    scope |= {"query_string": b"", "root_path": "", "http_version": "1.1", "client": ("127.0.0.1", 1)}
    asyncio.run(app(scope, receive, send))
    assert told[0]["status"] == 504 and "within 1 s" in json.loads(told[1]["body"])["error"]


def test_beyond_the_queue_clients_are_told_to_come_again_before_anything_is_decoded(client, monkeypatch):
    """The encoder is held back until all have asked."""
    app, started, go = client(queue=4, max_pictures=4), threading.Event(), threading.Event()
    server = app.app.state.server
    monkeypatch.setattr(server.passes, "observe", lambda count: (started.set(), go.wait(20)))
    decoded = []
    read = vlad.serve.passes.reading_of
    monkeypatch.setattr(vlad.serve.passes, "reading_of", lambda *given: decoded.append(1) or read(*given))
    with ThreadPoolExecutor(12) as pool:
        first = [pool.submit(score, app) for _ in range(4)]
        assert started.wait(20)
        while server.passes.count < 4:
            pass
        more = list(pool.map(score, [app] * 8))
        assert app.get("/healthz").status_code == 200
        go.set()
        assert {one.result().status_code for one in first} == {200}
    assert {answer.status_code for answer in more} == {503}
    assert all(answer.headers["retry-after"] == "1" for answer in more)
    assert len(decoded) == 4 and server.passes.count == 0


def test_a_pass_that_fails_fails_its_own_pictures_and_the_next_go_on(client, monkeypatch):
    app = client()
    with monkeypatch.context() as patch:
        patch.setattr(vlad.serve.passes, "judged", lambda *_: 1 / 0)
        failed = score(app)
    assert failed.status_code == 500 and "log says why" in failed.json()["error"]
    assert score(app).status_code == 200


def test_every_answer_is_safe_to_look_at_and_has_a_number(client):
    app = client()
    answers = [app.get(path) for path in ("/", "/page/page.js", "/v1/nothing", "/healthz")] + [app.post("/v1/score")]
    for answer in answers:
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)
    assert all("set-cookie" not in answer.headers for answer in answers)


def test_the_log_has_a_line_a_request_without_what_clients_wrote(client, caplog):
    caplog.set_level(logging.INFO, "vlad.serve.guard")
    app = client()
    score(app)
    app.post("/v1/score", data={"detector": "secret"}, files=upload(drawn(7)))
    lines = [json.loads(record.message) for record in caplog.records if record.name == "vlad.serve.guard"]
    assert [(line["route"], line["code"]) for line in lines] == [("/v1/score", 200), ("/v1/score", 404)]
    assert lines[1]["failures_in_the_last_minute"] == 1
    assert "secret" not in caplog.text and "parts/" not in caplog.text


def test_what_is_wrong_with_a_body_is_said_without_repeating_it(client):
    answer = client().post("/v1/detectors/a", json={"words": ["hunter2"]})
    assert answer.status_code == 422 and answer.json()["error"].startswith("words: ") and "hunter2" not in answer.text


def test_an_answer_belongs_to_its_own_picture_whatever_goes_through_beside_it(shelf, fitted):
    """16 clients at once, passes of 1 and of 8 pictures; scores known beforehand."""
    from starlette.testclient import TestClient

    contents = [drawn(seed, spot=seed % 3 == 0) for seed in range(60, 76)]
    expected = [fitted.predict(one).score for one in contents]
    assert len({round(one, 9) for one in expected}) == 16
    for size in (1, 8):
        with TestClient(make_app(shelf, Settings(batch_size=size)), "http://localhost") as app:

            def asked(content, app=app):
                files = {"files": ("a.png", content)}
                return app.post("/v1/score", data={"detector": "grain"}, files=files).json()["results"][0]["score"]

            with ThreadPoolExecutor(16) as pool:
                assert np.allclose(list(pool.map(asked, contents)), expected, rtol=0, atol=1e-6)


def test_without_the_extra_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(vlad.serve, "NEEDED", ("fastapi", "no_such_module"))
    with pytest.raises(ImportError, match=r'no_such_module, not installed here: pip install "vlad-ad\[serve\]"'):
        make_app()
