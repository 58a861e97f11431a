"""The pages say what the code does: their code runs as it is written, tables of files have every key."""

import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serve_process import serving

import vlad
from vlad.detector import saving
from vlad.evaluate.suites import DetectorTable, SuiteFile
from vlad.folder.lines import KEYS
from vlad.learning.recipes import Optimizer, Recipe
from vlad.prompts import PromptPack
from vlad.video import belt
from vlad.video.events import Event

ROOT = Path(__file__).parents[1]
FORMATS = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8") if (ROOT / "docs").is_dir() else ""
BLOCK = re.compile(r'^```(bash|python|toml)(?: title="([\w.]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.skipif(not FORMATS, reason="the pages are not in an installed package")


def section(title):
    return FORMATS.partition(f"## {title}\n")[2].partition("\n## ")[0]


def names(form):
    return {one.name for one in fields(form) if not one.name.startswith("_")}


@pytest.mark.parametrize(
    ("title", "keys"),
    [
        ("A line of `results.jsonl`", {"source", "error", *KEYS}),
        ("The header of a detector's file", set(saving.KEYS)),
        ("A line of `events.jsonl`", {"event", "state", "clock", *names(Event) - {"id"}}),
        ("Suites", names(SuiteFile) | names(DetectorTable)),
        ("Recipes", names(Recipe) | names(Optimizer)),
        ("Prompt packs", names(PromptPack) - {"name"}),
    ],
)
def test_every_key_of_a_file_is_on_the_page(title, keys):
    assert not {key for key in keys if f"`{key}`" not in section(title)}


def test_every_method_has_its_row_its_paragraph_and_its_formula():
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)`", page, re.MULTILINE)
    said = dict(re.findall(r"^#### `(\w+)`\n\n(.*?)(?=^#|\Z)", page, re.MULTILINE | re.DOTALL))
    assert sorted(rows) == sorted(said) == vlad.methods()
    for name, text in said.items():
        paragraph, *formula = text.strip().split("\n\n")
        assert len(paragraph.split()) > 25 and len(formula) == 1 and re.search("[=←]", formula[0]), name
        assert all(line.startswith("    ") for line in formula[0].splitlines()), name


def test_no_key_of_a_line_is_made_up():
    known = {"source", "error", "overlay", "map", "mask", "file", "notes", "explanation", *KEYS}
    known |= {"look", "time", "frame", "smoothed", "event", "rules"}
    rows = [line.split("|")[1] for line in section("A line of `results.jsonl`").splitlines() if line.startswith("| `")]
    assert {key for row in rows for key in re.findall(r"`(\w+)`", row)} == known


def test_every_table_of_numbers_says_what_gives_it_again():
    blocks = (ROOT / "docs" / "numbers.md").read_text(encoding="utf-8").split("\n\n")
    said = re.compile(r"vlad eval |python tests/bench/(\w+\.py)|eval/results/([\w-]+\.md)")
    for at, block in enumerate(blocks):
        if not block.startswith("|"):
            continue
        head, _, *rows = block.splitlines()
        if head.endswith("| command |"):
            assert all(said.search(row) or row.endswith("| the same |") for row in rows)
        else:
            assert any(said.search(near) for near in blocks[at - 2 : at + 2]), block
    named = [
        (ROOT / "tests" / "bench", one[0]) if one[0] else (ROOT / "eval" / "results", one[1])
        for block in blocks
        for one in said.findall(block)
        if any(one)
    ]
    assert named and not [name for folder, name in named if not (folder / name).is_file()]


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!http|#)([^)#]+)", text)
    assert not [link for link in links if not (ROOT / link).exists()]


def test_links_between_pages_lead_somewhere():
    for page in (ROOT / "docs").glob("*.md"):
        links = re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text(encoding="utf-8"))
        assert not [link for link in links if not (page.parent / link).exists()], page.name


# Code of the pages: blocks marked `bash` and `python` run as they stand, in order; `sh` and `py` are only shown, as
# they want a network, a cluster, another server or many minutes. What the pages take for granted lies in the folder
# where they run.

PARTS = ROOT / "examples" / "parts" / "part"
GOOD, TEST = PARTS / "train" / "good", PARTS / "test"
FOLDERS = {"good": GOOD, "more": TEST / "good", "photos": TEST / "good", "parts": TEST, "PICTURES": PARTS.parent}
FOLDERS |= {f"{kind}/good": TEST / "good" for kind in ("known", "fresh")}
FOLDERS |= {f"{kind}/bad": TEST / "spoilt" for kind in ("known", "fresh")}
SERVER = "http://127.0.0.1:8000"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def code_of(page):
    """(kind, title or "", code) of the blocks that run; installing is left out."""
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    kept = [(kind, title, re.sub("^pip install .*\n", "", code, flags=re.MULTILINE)) for kind, title, code in blocks]
    return [one for one in kept if one[2].strip()]


def laid_out(folder, page):
    """The folder with what this page takes for granted."""
    for name, source in FOLDERS.items():
        shutil.copytree(source, folder / name)
    for name in ("parts", "pictures"):
        shutil.copytree(ROOT / "examples" / name, folder / "examples" / name)
    shutil.copy(ROOT / "examples" / "run_exported.py", folder / "examples")
    shutil.copy(TEST / "spoilt" / "16.jpg", folder / "photo.jpg")
    Image.open(folder / "photo.jpg").save(folder / "part.png")
    rim = np.zeros((256, 256), np.uint8)
    rim[:, :40] = 255
    Image.fromarray(rim).save(folder / "rim.png")
    for number, path in enumerate(sorted(GOOD.iterdir())[:5], 1):
        Image.open(path).save(folder / f"good{number}.png")
    commands = folder / "bin"
    commands.mkdir()
    for name, words in (("vlad", "-m vlad.cli"), ("python", "")):
        (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (commands / name).chmod(0o755)
    if page == "scale":
        vlad.load(name="metal bolt").fit(sorted(GOOD.iterdir())).save(folder / "bolt.safetensors")
    if page == "video":
        for number, name in enumerate(("good-monday", "good-tuesday", "belt")):
            belt.PLANS[name] = belt.Plan(12, number, faults=5 * (name == "belt"))
            belt.draw(folder, name)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the pages are written for a shell")
@pytest.mark.parametrize("page", [page for page in PAGES if code_of(page)], ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_as_it_is_written(page, tmp_path, monkeypatch):
    monkeypatch.setattr(belt, "PLANS", dict(belt.PLANS))
    laid_out(tmp_path, page.stem)
    blocks = code_of(page)
    for title, code in [(title, code) for _, title, code in blocks if title]:
        (tmp_path / title).write_text(code)
    asks = any(SERVER in code for _, _, code in blocks)
    with serving(tmp_path / "detectors") if asks else nullcontext((SERVER, None)) as (address, _):
        run = [["bash", "-euc", code.replace(SERVER, address)] for kind, _, code in blocks if kind == "bash"]
        program = "\n".join(code.replace(SERVER, address) for kind, _, code in blocks if kind == "python")
        path = {**os.environ, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        for command in [*run, *([[sys.executable, "-c", program]] if program else [])]:
            done = subprocess.run(command, cwd=tmp_path, env=path, capture_output=True, text=True, timeout=900)
            assert done.returncode == 0, (command, done.stdout, done.stderr)
            assert '{"error":' not in done.stdout, done.stdout


NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_and_its_program_have_the_same_cells_and_no_outputs(notebook):
    jupytext = pytest.importorskip("jupytext")
    both = [jupytext.read(path).cells for path in (notebook, notebook.with_suffix(".py"))]
    cells = [[(cell.cell_type, cell.source) for cell in one] for one in both]
    assert cells[0] == cells[1], f"write it again: jupytext --to ipynb {notebook.with_suffix('.py').name}"
    assert not [cell for cell in both[0] if cell.get("outputs") or cell.get("execution_count")]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_its_first_cell_to_its_last(notebook, tmp_path):
    shutil.copytree(ROOT / "examples" / "parts", tmp_path / "parts")
    (tmp_path / "notebooks").mkdir()
    program = notebook.with_suffix(".py")
    command = [sys.executable, str(program)]
    done = subprocess.run(command, cwd=tmp_path / "notebooks", capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "found 6 of 6 bad parts" in done.stdout or "winclip" in done.stdout
