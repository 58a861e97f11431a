"""The pictures of the documentation, made again: python examples/docs_pictures.py [NAME ...]

Pages are seen through a real Chromium (with its chromedriver). Everything shown is drawn or ships with the repository.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import vlad
from vlad.synthetic.large import large_photo
from vlad.video.belt import PLANS, Plan, draw

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from browser import Browser, browser  # noqa: E402
from serve_process import serving  # noqa: E402

ASSETS, PARTS = ROOT / "docs" / "assets", ROOT / "examples" / "parts" / "part"
WIDE, SIDE, GAP = 1100, 260, 6  # px of a page, of a picture in a row, between two
GOOD, TEST = sorted((PARTS / "train" / "good").glob("*.jpg")), sorted((PARTS / "test").rglob("*.jpg"))


def run(folder: Path, *words: str) -> None:
    """One command of `vlad`, in this folder."""
    subprocess.run([sys.executable, "-m", "vlad.cli", *words], check=True, cwd=folder)


def row(name: str, pictures: list[Image.Image]) -> None:
    """Pictures side by side."""
    sheet = Image.new("RGB", ((SIDE + GAP) * len(pictures) - GAP, SIDE), "white")
    for number, one in enumerate(pictures):
        sheet.paste(one.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS), ((SIDE + GAP) * number, 0))
    sheet.save(ASSETS / f"{name}.webp", quality=85, method=6)


def seen(window: Browser, name: str, high: int, place: Path | str | None = None) -> None:
    """A page, WIDE px wide, its first `high` px; None is what is open."""
    window.tell("Emulation.setDeviceMetricsOverride", width=WIDE, height=high, deviceScaleFactor=1, mobile=False)
    window.tell("Emulation.setScrollbarsHidden", hidden=True)
    if place is not None:
        window.open(place)
        time.sleep(1)
    shot = ASSETS / f"{name}.png"
    window.screenshot(shot)
    Image.open(shot).convert("RGB").save(ASSETS / f"{name}.webp", quality=85, method=6)
    shot.unlink()


def overlays(_: Path) -> None:
    detector = vlad.load(name="surface", dtype="float32")
    found = [detector.predict(path) for path in sorted((ROOT / "examples" / "pictures").glob("gravel*.jpg"))]
    found += [detector.predict(path) for path in sorted((ROOT / "examples" / "pictures").glob("brick*.jpg"))]
    row("overlays", [one.overlay() for one in found])


def closer(_: Path) -> None:
    """A large drawn photo with a small spot: itself, the map of the whole, that of a closer look, a place left out."""
    size = (1000, 1000)
    photo = large_photo(np.random.default_rng(1), size, 50)[0]
    good = [large_photo(np.random.default_rng(1), size)[0], large_photo(np.random.default_rng(1), size)[0][::-1].copy()]

    def drawn(**more: object) -> Image.Image:
        return vlad.load("patch_memory", dtype="float32", **more).fit(good).predict(photo).overlay()

    row("closer", [Image.fromarray(photo), drawn(), drawn(tiles=2), drawn(tiles=2, ignore=[(0, 0, 1, 0.3)])])


def page(folder: Path) -> None:
    run(folder, "fit", *map(str, GOOD), "--name", "metal plate", "--out", "plate.safetensors")
    run(folder, "score", str(PARTS / "test"), "--detector", "plate.safetensors", "--out", "today", "--page")
    with browser(folder / "profile") as window:
        seen(window, "page", 760, folder / "today" / "index.html")


def report(folder: Path) -> None:
    data = f"folder:{PARTS.parent}"
    methods = ("--method", "patch_text", "--method", "winclip", "--method", "clip_surgery")
    run(folder, "eval", "--data", data, *methods, "--name", "metal plate", "--out", "report")
    with browser(folder / "profile") as window:
        seen(window, "report", 900, folder / "report" / "report.html")


def explanation(folder: Path) -> None:
    detector = vlad.load(name="metal plate", dtype="float32").fit(GOOD)
    part = next(path for path in TEST if path.parent.name == "spoilt")
    said = vlad.explain(part, detector.predict(part), detector=detector, references=GOOD[:1])
    (folder / "explanation.html").write_text(said.to_html(), encoding="utf-8")
    with browser(folder / "profile") as window:
        seen(window, "explanation", 900, folder / "explanation.html")


def timeline(folder: Path) -> None:
    PLANS.update(monday=Plan(40, 11), tuesday=Plan(40, 12), belt=Plan(60, 13, faults=20))
    for name in ("monday", "tuesday", "belt"):
        draw(folder, name)
    every = ("--every", "1s")
    detector = ("--method", "patch_memory", "--out", "belt.safetensors")
    run(folder, "fit", "monday.mp4", "tuesday.mp4", *every, *detector)
    run(folder, "score", "belt.mp4", *every, "--detector", "belt.safetensors", "--out", "results")
    with browser(folder / "profile") as window:
        seen(window, "timeline", 600, folder / "results" / "timeline.html")


def serve(folder: Path) -> None:
    with browser(folder / "profile") as window, serving(folder / "detectors") as (address, _):
        window.tell("Emulation.setDeviceMetricsOverride", width=WIDE, height=900, deviceScaleFactor=1, mobile=False)
        window.open(address)
        until(window, "document.getElementById('state').textContent == 'ready'")
        window.type("#fit-words", "metal plate")
        window.type("#fit-files", "\n".join(map(str, GOOD)))
        window.click("#fit-start")
        until(window, "!document.getElementById('work').hidden")
        window.type("#files", "\n".join(map(str, TEST)))
        until(window, f"document.querySelectorAll('.card').length == {len(TEST)}")
        until(window, "document.getElementById('progress').hidden")
        seen(window, "serve", 900)


def until(window: Browser, condition: str) -> None:
    """Waits until an expression of the page is true."""
    end = time.monotonic() + 120
    while not window.run(f"return {condition}"):
        assert time.monotonic() < end, condition
        time.sleep(0.1)


MADE: dict[str, Callable[[Path], None]] = {
    one.__name__: one for one in (overlays, closer, page, report, explanation, timeline, serve)
}


def main() -> None:
    for name in sys.argv[1:] or MADE:
        with tempfile.TemporaryDirectory() as folder:
            MADE[name](Path(folder))
        print(f"{name}: {(ASSETS / f'{name}.webp').stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
