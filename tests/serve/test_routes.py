"""What software gets from the API: the library's own answers, sentences for mistakes, detectors that live on."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from PIL import Image
from serve_pictures import drawn, upload

import vlad
from vlad.folder.lines import line_of

DOCS = Path(__file__).resolve().parents[2] / "docs" / "serving.md"


def turned():
    """JPEG bytes with an EXIF orientation, CMYK ones, and a 16-bit PNG."""
    photo, kept = Image.open(io.BytesIO(drawn(3))), io.BytesIO()
    exif = photo.getexif()
    exif[0x0112] = 6
    photo.save(kept, "JPEG", exif=exif)
    cmyk, deep = io.BytesIO(), io.BytesIO()
    photo.convert("CMYK").save(cmyk, "JPEG")
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16).save(deep, "PNG")
    return kept.getvalue(), cmyk.getvalue(), deep.getvalue()


def test_lines_are_those_of_the_library_whatever_the_picture(client, fitted):
    contents = [drawn(7), drawn(8, spot=True), *turned()]
    answer = client().post("/v1/score", data={"detector": "grain"}, files=upload(*contents)).json()
    assert (answer["detector"], answer["version"]) == ("grain", 1)
    names = [f"parts/{number:03}.png" for number in range(5)]
    expected = [line_of(name, fitted.predict(one), "grain") for name, one in zip(names, contents, strict=True)]
    assert answer["results"] == json.loads(json.dumps(expected))
    assert [line["verdict"] for line in answer["results"][:2]] == ["normal", "anomalous"]


def test_a_broken_picture_is_a_line_with_its_name_and_the_rest_goes_on(client):
    answer = client().post("/v1/score", data={"detector": "grain"}, files=upload(drawn(7), b"GIF89a", b"", drawn(8)))
    lines = answer.json()["results"]
    assert answer.status_code == 200
    assert [line["error"] is None for line in lines] == [True, False, False, True]
    assert lines[1]["error"].startswith("parts/001.png: ") and lines[1]["score"] is None


def pages(kind, *contents):
    first, *more = (Image.open(io.BytesIO(one)) for one in contents)
    kept = io.BytesIO()
    first.save(kept, kind, save_all=True, append_images=more)
    return kept.getvalue()


@pytest.mark.parametrize("kind", ["TIFF", "GIF"])
def test_each_page_of_a_file_is_a_line_where_it_is_asked_for_and_else_a_note_says_that_there_are_more(client, kind):
    app, scan = client(max_pictures=4), pages(kind, drawn(7), drawn(8, spot=True), drawn(9))

    def asked(**more):
        data = {"detector": "grain", **more}
        return app.post("/v1/score", data=data, files=[("files", ("scan", scan)), ("files", ("one", drawn(7)))])

    first = asked().json()["results"]
    assert [line["source"] for line in first] == ["scan", "one"] and "notes" not in first[1]
    assert [note for note in first[0]["notes"] if "has 3 pages and only the first was read" in note]
    every = asked(pages="all").json()["results"]
    assert [line["source"] for line in every] == ["scan#1", "scan#2", "scan#3", "one"]
    assert [line["verdict"] for line in every] == ["normal", "anomalous", "normal", "normal"]
    assert every[0]["score"] == first[0]["score"] and "notes" not in every[0]
    picture = {"name": "scan", "data": base64.b64encode(scan).decode()}
    body = {"detector": "grain", "pictures": [picture], "pages": "all"}
    assert app.post("/v1/score/json", json=body).json()["results"] == every[:3]
    many = client(max_pictures=3).post("/v1/score/json", json={**body, "pictures": [picture] * 2})
    assert many.status_code == 413 and many.json()["error"].startswith("6 pictures came; send 3 at most")
    assert asked(pages="second").status_code == 422


def test_a_detector_that_was_made_for_each_page_is_served_so(client, shelf, tiny_encoder):
    every = vlad.load(name="grain", encoder=tiny_encoder, pages="all").fit([drawn(seed) for seed in range(6)])
    shelf.put("every", every)
    files = [("files", ("scan.tif", pages("TIFF", drawn(7), drawn(8)))), ("files", ("broken.tif", b"II*\0"))]
    lines = client().post("/v1/score", data={"detector": "every"}, files=files).json()["results"]
    assert [line["source"] for line in lines] == ["scan.tif#1", "scan.tif#2", "broken.tif"]
    assert lines[2]["error"].startswith("broken.tif: ")


def test_base64_gives_what_multipart_gives(client):
    with_files = client().post("/v1/score", data={"detector": "grain"}, files=upload(drawn(7))).json()
    picture = {"name": "parts/000.png", "data": base64.b64encode(drawn(7)).decode()}
    assert client().post("/v1/score/json", json={"detector": "grain", "pictures": [picture]}).json() == with_files


def test_maps_come_as_small_jpeg_as_png_of_the_full_size_and_as_numbers(client, fitted):
    app, found = client(), fitted.predict(drawn(8, spot=True))

    def asked(maps):
        files = upload(drawn(8, spot=True))
        line = app.post("/v1/score", data={"detector": "grain", "maps": maps}, files=files).json()["results"][0]
        kind, _, content = line[{"npy": "map"}.get(maps, "overlay")].partition(";base64,")
        return kind, io.BytesIO(base64.b64decode(content))

    kind, content = asked("png")
    assert kind == "data:image/png" and np.array_equal(np.asarray(Image.open(content)), np.asarray(found.overlay()))
    kind, content = asked("jpeg")
    assert kind == "data:image/jpeg" and Image.open(content).size == (128, 96)
    assert np.array_equal(np.load(asked("npy")[1]), found.map)
    assert app.post("/v1/score", data={"detector": "grain", "maps": "svg"}, files=upload(b"")).status_code == 422


def test_a_threshold_of_the_request_decides_this_request_alone(client):
    app, files = client(), upload(drawn(7))
    high = app.post("/v1/score", data={"detector": "grain", "threshold": "0"}, files=files).json()["results"][0]
    assert (high["verdict"], high["threshold"]) == ("anomalous", 0)
    assert app.post("/v1/score", data={"detector": "grain"}, files=files).json()["results"][0]["verdict"] == "normal"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("<img src=x onerror=alert(1)>.png",) * 2,
        ("a\x1b[31m.png", "a[31m.png"),
        ("x" * 900, "x" * 200),
        ("../../etc/passwd",) * 2,
    ],
)
def test_a_name_is_text_and_comes_back_printable_and_cut(client, given, shown):
    picture = {"name": given, "data": base64.b64encode(drawn(7)).decode()}
    body = {"detector": "grain", "pictures": [picture]}
    assert client().post("/v1/score/json", json=body).json()["results"][0]["source"] == shown


def test_fitting_answers_with_a_new_version_whose_scores_are_those_of_the_library(client, tiny_encoder):
    app, good = client(), [drawn(seed) for seed in range(20, 26)]
    made = app.post("/v1/detectors/fresh/fit", data={"words": "grain"}, files=upload(*good))
    again = vlad.load(name="grain", encoder=tiny_encoder).fit(good)
    assert made.status_code == 200
    assert made.json()["threshold"] == pytest.approx(again.threshold, abs=1e-6)
    assert (made.json()["version"], made.json()["references"], made.json()["words"]) == (1, 6, "grain")
    assert made.json()["rate"] == pytest.approx(1 / 7) and "about one may be called bad" in made.json()["note"]
    assert app.post("/v1/detectors/fresh/fit", files=upload(*good[:5])).json()["version"] == 2, "its words are kept"


@pytest.mark.filterwarnings("ignore:no threshold from 4 normals")
def test_further_good_pictures_are_learnt_as_if_given_at_once(client, tiny_encoder):
    app, good = client(), [drawn(seed) for seed in range(20, 26)]
    first = app.post("/v1/detectors/fresh/fit", data={"words": "grain"}, files=upload(*good[:4]))
    assert first.json()["threshold"] is None
    made = app.post("/v1/detectors/fresh/fit", data={"add": "true"}, files=upload(*good[4:])).json()
    again = vlad.load(name="grain", encoder=tiny_encoder).fit(good)
    assert (made["version"], made["references"]) == (2, 6)
    assert made["threshold"] == pytest.approx(again.threshold, abs=1e-6)


def test_places_that_do_not_count_are_kept_in_the_detector(client):
    app = client()
    changed = app.patch("/v1/detectors/grain", json={"ignore": [[0.3, 0.3, 0.7, 0.7]]}).json()
    assert changed["ignore"] == [[0.3, 0.3, 0.7, 0.7]] and not changed["masked"]
    for maps in ("none", "jpeg"):
        asked = {"detector": "grain", "maps": maps}
        line = app.post("/v1/score", data=asked, files=upload(drawn(8, spot=True))).json()["results"][0]
        assert line["verdict"] == "normal", "the spot lies within"
    assert app.patch("/v1/detectors/grain", json={"threshold": 0.5}).json()["ignore"] == changed["ignore"]
    assert app.patch("/v1/detectors/grain", json={"ignore": []}).json()["ignore"] is None
    for wrong in ([[0.5, 0.5, 0.5, 0.9]], [[0, 0, 2, 1]], [[0, 0, 1]], "/etc/passwd"):
        assert app.patch("/v1/detectors/grain", json={"ignore": wrong}).status_code == 422


def test_a_fit_that_fails_names_the_picture_without_a_path_and_leaves_the_old_detector(client):
    app = client()
    answer = app.post("/v1/detectors/grain/fit", files=upload(drawn(1), b"no picture"))
    assert answer.status_code == 422
    assert re.fullmatch(r"001-001\.png: [^/]*", answer.json()["error"])
    assert app.get("/v1/detectors/grain").json()["version"] == 1


def test_long_work_is_a_job_that_says_how_far_it_is(client):
    app = client()
    begun = app.post("/v1/detectors/fresh/fit?wait=0", data={"words": "x"}, files=upload(*map(drawn, range(5))))
    assert begun.status_code == 202 and begun.headers["location"] == f"/v1/jobs/{begun.json()['id']}"
    while (job := app.get(begun.headers["location"]).json())["state"] in ("waiting", "running"):
        assert job["result"] is None
    assert (job["state"], job["result"]["references"]) == ("done", 5) and job["done"] == 5
    assert app.get("/v1/jobs").json()[0] == job
    assert app.get("/v1/jobs/none").status_code == 404


def test_words_alone_make_a_detector_that_only_sorts(client):
    app, body = client(), {"words": "metal bolt", "prompts": {"normal": ["smooth {}"], "anomalous": ["torn {}"]}}
    made = app.post("/v1/detectors/bolt", json=body).json()
    assert (made["threshold"], made["words"], made["references"]) == (None, "metal bolt", 0)
    line = app.post("/v1/score", data={"detector": "bolt"}, files=upload(drawn(7))).json()["results"][0]
    assert line["verdict"] == "uncalibrated"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"words": "x", "prompts": "/etc/passwd"}, "prompts: "),
        ({"words": "x", "method": "patch_memory"}, "takes no name|no memory"),
        ({"words": "x", "method": "winclipp"}, "unknown method 'winclipp'"),
        ({"words": "x", "method": "musc"}, "looks at pictures alone|set of pictures"),
        ({"words": "x", "adapter": "a.pth"}, "adapter: Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_made_of_words_is_said_in_a_sentence(client, body, said):
    answer = client().post("/v1/detectors/new", json=body)
    assert answer.status_code == 422 and re.search(said, answer.json()["error"])


def test_a_fit_without_words_says_that_they_are_wanted(client):
    answer = client().post("/v1/detectors/new/fit", files=upload(drawn(1)))
    assert answer.status_code == 422 and "say it in words" in answer.json()["error"]


def test_a_threshold_set_by_hand_is_kept_and_makes_no_promise(client):
    app = client()
    changed = app.patch("/v1/detectors/grain", json={"threshold": 0.9}).json()
    assert (changed["threshold"], changed["rate"], changed["version"]) == (0.9, None, 2)
    assert app.patch("/v1/detectors/grain", json={"threshold": None}).json()["threshold"] is None
    assert app.patch("/v1/detectors/grain", content=b'{"threshold": NaN}').status_code == 422


def test_a_change_of_a_version_that_is_gone_is_refused(client):
    app = client()
    assert app.patch("/v1/detectors/grain", json={"threshold": 0.9}, headers={"if-match": '"1"'}).status_code == 200
    late = app.patch("/v1/detectors/grain", json={"threshold": 0.1}, headers={"if-match": "1"})
    assert late.status_code == 409 and "is at version 2 and not 1" in late.json()["error"]


def test_a_detector_travels_as_a_file(client, fitted, tmp_path, tiny_encoder):
    app = client()
    file = app.get("/v1/detectors/grain/file")
    assert 'filename="grain.safetensors"' in file.headers["content-disposition"]
    (tmp_path / "grain.safetensors").write_bytes(file.content)
    here = vlad.load(tmp_path / "grain.safetensors", encoder=tiny_encoder)
    assert here.predict(drawn(7)).score == fitted.predict(drawn(7)).score
    assert app.put("/v1/detectors/copy", content=file.content).json()["threshold"] == fitted.threshold
    assert app.delete("/v1/detectors/copy").status_code == 204
    missing = app.get("/v1/detectors/copy")
    assert missing.status_code == 404 and missing.json()["error"] == "there is no detector 'copy'; there are: grain"


@pytest.mark.parametrize("name", ["..", "a.b", "UPPER", "a" * 65, "a%2Fb", "-a", "a%00", "é"])
def test_a_name_that_is_no_plain_word_never_meets_a_path(client, shelf, name):
    app = client()
    answers = [
        app.put(f"/v1/detectors/{name}", content=b"x"),
        app.post(f"/v1/detectors/{name}", json={"words": "x"}),
        app.post(f"/v1/detectors/{name}/fit", data={"words": "x"}, files=upload(drawn(1))),
    ]
    assert {answer.status_code for answer in answers} <= {404, 405, 422}
    assert [path.name for path in shelf.folder.iterdir()] == ["grain.v1.safetensors"]


def test_an_explanation_is_the_libraries_own(client, fitted):
    file = {"file": ("p.png", drawn(8, spot=True))}
    answer = client().post("/v1/explain", data={"detector": "grain"}, files=file).json()
    found = fitted.predict(drawn(8, spot=True))
    said = vlad.explain(drawn(8, spot=True), found, detector=fitted)
    assert answer["explanation"]["verdict"] == "anomalous" and answer["explanation"]["defects"]
    assert answer["markdown"] == said.to_markdown()
    broken = client().post("/v1/explain", data={"detector": "grain"}, files={"file": ("p.png", b"x")})
    assert broken.status_code == 422 and broken.json()["error"].startswith("p.png: ")


def test_metrics_count_by_route_and_verdict_and_never_by_what_a_client_wrote(client):
    app = client()
    app.post("/v1/score", data={"detector": "grain"}, files=upload(drawn(7), b"x"))
    app.get("/v1/detectors/secret-name")
    text = app.get("/metrics").text
    assert 'vlad_requests_total{code="200",route="/v1/score"} 1.0' in text
    assert 'vlad_pictures_total{outcome="unreadable"} 1.0' in text and 'vlad_detector_version{name="grain"} 1.0' in text
    assert "vlad_queue_pictures 0.0" in text and "secret-name" not in text


def test_it_says_that_it_is_ready_until_it_ends_and_answers_all_the_same(client):
    app = client()
    assert app.get("/readyz").json() == {"status": "ready"}
    app.app.state.server.draining = True
    ending = app.get("/readyz")
    assert (ending.status_code, ending.json()) == (503, {"error": "the server is ending"})
    assert app.get("/healthz").status_code == 200, "a restart would not help it"
    assert app.post("/v1/score", data={"detector": "grain"}, files=upload(drawn(7))).status_code == 200


def test_pictures_are_kept_only_where_a_folder_is_given(client, tmp_path):
    client().post("/v1/score", data={"detector": "grain"}, files=upload(drawn(7)))
    assert not (tmp_path / "kept").exists()
    client(keep=tmp_path / "kept").post("/v1/score", data={"detector": "grain", "maps": "jpeg"}, files=upload(drawn(7)))
    (lines,) = (tmp_path / "kept").rglob("results.jsonl")
    assert len(list(lines.parent.iterdir())) == 2 and "overlay" not in lines.read_text()
    assert any(path.read_bytes() == drawn(7) for path in lines.parent.iterdir())


def test_the_openapi_document_is_valid_and_names_an_answer_for_every_problem(client):
    schema = client().get("/openapi.json").json()
    assert schema["openapi"].startswith("3.1")
    for form in schema["components"]["schemas"].values():
        Draft202012Validator.check_schema(form)
    assert {"401", "404", "413", "422", "503"} <= schema["paths"]["/v1/score"]["post"]["responses"].keys()


def test_the_docs_list_every_route(client):
    paths = client().get("/openapi.json").json()["paths"]
    routes = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert set(re.findall(r"`((?:GET|POST|PUT|PATCH|DELETE) /\S*)`", DOCS.read_text())) == routes
