"""`index.html` of a scored folder, looked at in a real browser."""

import json
import os
import sys
import time
from collections import Counter

import numpy as np
import pytest
from browser import browser
from PIL import Image

from vlad.folder import LINES, SETTINGS
from vlad.folder.page import write_page

CALIBRATION = {
    **{"threshold": 0.5, "method": "largest", "n": 5, "rate": 1 / 6, "unsure": None, "note": "of 6 about one"},
    "scores": [0.1, 0.2, 0.3, 0.4, 0.45],
}


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def write_folder(out, scores, sources=None, overlays=True):
    """A scored folder of drawn pictures with the threshold .5."""
    sources = sources or [f"parts/{'left' if n % 2 else 'right'}/{n:05}.png" for n in range(len(scores))]
    lines = []
    for number, (source, score) in enumerate(zip(sources, scores, strict=True)):
        line = {"source": source, "verdict": "anomalous" if score >= 0.5 else "normal", "score": score}
        line |= {"threshold": 0.5, "p_value": None, "is_anomalous": score >= 0.5, "name": "bolt", "size": [96, 96]}
        line |= {"regions": [], "error": None}
        if overlays:
            line["overlay"] = f"maps/{os.path.basename(source)}.png"
            path = out / line["overlay"]
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((96, 96)).save(path)
        lines.append(json.dumps(line))
    (out / LINES).write_text("\n".join(lines) + "\n")
    facts = {"name": "bolt", "method": "patch_memory", "encoder": "tiny", "vlad": "0", "calibration": CALIBRATION}
    (out / SETTINGS).write_text(json.dumps(facts))
    return write_page(out)


def counts(window):
    """Verdict -> count, of the buttons; "" is all."""
    script = "return [...document.querySelectorAll('#counts button')].map(b => [b.dataset.verdict, b.innerText])"
    return {verdict: int(text.split()[0]) for verdict, text in window.run(script)}


def slide(window, value):
    script = "const s = document.getElementById('slider'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))"
    window.run(script, value)


def shown_scores(window):
    return [float(text.split()[1]) for text in window.all(".card .text p:first-child")]


def test_cards_stand_worst_first_with_their_counts(window, tmp_path):
    window.open(write_folder(tmp_path, [0.1, 0.9, 0.3, 0.6]))
    assert shown_scores(window) == [0.9, 0.6, 0.3, 0.1]
    assert counts(window) == {"": 4, "anomalous": 2, "normal": 2}
    loaded = "return [...document.querySelectorAll('.card img')].every(i => i.complete && i.naturalWidth > 0)"
    assert window.run(loaded)


def test_the_slider_tries_another_threshold_and_says_what_changes(window, tmp_path):
    window.open(write_folder(tmp_path, [0.1, 0.9, 0.3, 0.6]))
    slide(window, 240)  # .1 + .24 * .8 = .292
    assert counts(window) == {"": 4, "anomalous": 3, "normal": 1}
    assert "1 more anomalous, 0 more normal" in window.all("#changes")[0]
    assert "3 of 5 good pictures of fit would be called anomalous" in window.all("#changes")[0]
    slide(window, 1000)
    assert counts(window) == {"": 4, "anomalous": 1, "normal": 3}


def test_the_filters_leave_the_chosen_verdict_and_folder(window, tmp_path):
    window.open(write_folder(tmp_path, [0.1, 0.9, 0.3, 0.6]))
    window.click("#counts button[data-verdict=anomalous]")
    assert shown_scores(window) == [0.9, 0.6]
    script = (
        "const f = document.getElementById('folders'); f.value = arguments[0]; f.dispatchEvent(new Event('change'))"
    )
    window.run(script, "parts/right")
    assert window.all(".card") == [] and counts(window) == {"": 2, "normal": 2}
    window.click("#counts button[data-verdict='']")
    assert shown_scores(window) == [0.3, 0.1]


def test_a_picture_opens_large_and_the_arrow_goes_to_the_next(window, tmp_path):
    window.open(write_folder(tmp_path, [0.1, 0.9]))
    window.click(".card")
    about = "return [document.getElementById('large').open, document.querySelector('#large img').alt]"
    assert window.run(about) == [True, "00001.png"]
    key = "document.getElementById('large').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))"
    window.run(key)
    assert window.run(about) == [True, "00000.png"]


HOSTILE = [
    *("quote\"'.png", "</script><script>window.bad = 1<", "<img src=x onerror=window.bad=1>.png", "größe ☂.png"),
    *("50%25 #1?.png", "{{ 7 * 7 }}.png"),
]


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_names_of_files_are_text_whatever_they_hold(window, tmp_path):
    names = [*(name.replace("/", "\u2044") for name in HOSTILE), os.fsdecode(b"latin-\xe9.png")]
    window.open(write_folder(tmp_path, [0.9] * len(names), names))
    assert Counter(window.all(".card .text p:nth-child(2)")) == Counter([*names[:-1], "latin-\ufffd.png"])
    assert window.run("return window.bad || document.querySelectorAll('.card script, .card .text img').length") == 0
    for card in range(len(names)):
        window.run("document.querySelectorAll('.card')[arguments[0]].click()", card)
        wait = "const i = document.querySelector('#large img'); return i.decode().then(() => i.naturalWidth)"
        assert window.run(wait) == 96


def test_a_name_with_a_script_end_in_its_folder_is_text(window, tmp_path):
    window.open(write_folder(tmp_path, [0.9], ["</script><b>x/1.png"], overlays=False))
    assert window.all("#folders option") == ["all", "</script><b>x"] and window.all("main b") == []


def test_500_pictures_are_there_in_two_seconds(window, tmp_path):
    page = write_folder(tmp_path, [float(n) / 500 for n in range(500)])
    started = time.monotonic()
    window.open(page)
    assert len(window.all(".card")) == 200
    assert time.monotonic() - started < 2
    assert (tmp_path / "thumbs").is_dir()
    window.click("#more")
    assert len(window.all(".card")) == 400


def test_10000_lines_stay_usable(window, tmp_path):
    window.open(write_folder(tmp_path, [n / 10_000 for n in range(10_000)], overlays=False))
    assert len(window.all(".card")) == 200 and counts(window)[""] == 10_000
    started = time.monotonic()
    slide(window, 900)
    assert time.monotonic() - started < 1
    assert counts(window)["anomalous"] == 1001, "from .8999 on"


def test_the_command_for_a_tried_threshold_gives_what_the_page_shows(window, tmp_path):
    scores = [0.0123456789, 0.0129, 0.0151, 0.0163]
    window.open(write_folder(tmp_path, scores, overlays=False))
    slide(window, 5)
    said = window.all("#changes")[0].rpartition("--threshold ")[2]
    assert len(said) <= 7 and window.all("#shown")[0] == f"{said} (tried)"
    assert counts(window)["anomalous"] == sum(score >= float(said) for score in scores)


def test_a_folder_without_a_scored_picture_and_one_without_a_threshold_have_a_page(window, tmp_path):
    for number, lines in enumerate(([], [{"source": "a.png", "error": "a.png: cut off", "regions": []}])):
        (out := tmp_path / str(number)).mkdir()
        whole = [dict.fromkeys(("verdict", "score", "threshold", "name"), None) | line for line in lines]
        (out / LINES).write_text("".join(json.dumps(line) + "\n" for line in whole))
        (out / SETTINGS).write_text(json.dumps({"name": "bolt", "method": "patch_text"}))
        window.open(write_page(out))
        assert window.all("h1") == [f"bolt: 0 scored{', 1 not readable' if number else ''}"]
        assert "No picture here has a score." in window.all("main p")[0]
        assert counts(window)[""] == number and not window.run(
            "return document.getElementById('slider').checkVisibility()"
        )
    page = write_folder(tmp_path, [0.2, 0.4], overlays=False)
    text = (
        (tmp_path / LINES)
        .read_text()
        .replace('"threshold": 0.5', '"threshold": null')
        .replace("normal", "uncalibrated")
    )
    (tmp_path / LINES).write_text(text)
    (tmp_path / SETTINGS).write_text(json.dumps({"name": "bolt", "method": "patch_text", "calibration": None}))
    window.open(write_page(tmp_path))
    assert counts(window) == {"": 2, "uncalibrated": 2} and window.all("#shown") == ["none"]
    slide(window, 500)
    assert counts(window) == {"": 2, "anomalous": 1, "normal": 1} and page.exists()


@pytest.mark.slow
def test_500_real_pictures_are_there_in_two_seconds_with_slider_and_filter(window, shared, tmp_path):
    """With their own pixels as overlays, so that thumbnails and large views are those of photos."""
    real = [path for path in sorted((shared / "data").glob("*/*/test/*/*")) if path.is_file()][:500]
    sources = [str(path.relative_to(shared / "data")) for path in real]
    for number, path in enumerate(real):
        sources[number] = f"{path.parent.parent.parent.name}/{path.parent.name}/{number:03}.png"
        (overlay := tmp_path / "maps" / f"{number:03}.png.png").parent.mkdir(exist_ok=True)
        overlay.symlink_to(path)
    write_folder(tmp_path, [(7 * n % 500) / 500 for n in range(500)], sources, overlays=False)
    text = [json.loads(line) for line in (tmp_path / LINES).read_text().splitlines()]
    lines = [line | {"overlay": f"maps/{number:03}.png.png"} for number, line in enumerate(text)]
    (tmp_path / LINES).write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_page(tmp_path)
    started = time.monotonic()
    window.open(page)
    assert len(window.all(".card")) == 200
    assert time.monotonic() - started < 2
    assert counts(window)["anomalous"] == 250
    slide(window, 800)
    assert counts(window)["anomalous"] < 110
    window.click("#counts button[data-verdict=anomalous]")
    assert min(shown_scores(window)) > 0.79
