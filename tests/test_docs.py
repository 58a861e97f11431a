"""The pages say what the code does: tutorials run as they are written, tables of files have every key."""

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import vlad
from vlad.detector import saving
from vlad.evaluate.suites import DetectorTable, SuiteFile
from vlad.folder.lines import KEYS
from vlad.learning.recipes import Optimizer, Recipe
from vlad.prompts import PromptPack
from vlad.video.events import Event

ROOT = Path(__file__).parents[1]
FORMATS = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8") if (ROOT / "docs").is_dir() else ""
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)

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


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!http|#)([^)#]+)", text)
    assert not [link for link in links if not (ROOT / link).exists()]


def test_links_between_pages_lead_somewhere():
    for page in (ROOT / "docs").glob("*.md"):
        links = re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text(encoding="utf-8"))
        assert not [link for link in links if not (page.parent / link).exists()], page.name


@pytest.mark.slow
@pytest.mark.parametrize("page", ["inspect", "software", "compare"])
def test_a_tutorial_runs_as_it_is_written(page, tmp_path):
    shutil.copytree(ROOT / "examples" / "parts", tmp_path / "examples" / "parts")
    blocks = BLOCK.findall((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"))
    assert blocks
    program = "\n".join(code for kind, code in blocks if kind == "python")
    lines = [line for kind, code in blocks if kind == "bash" for line in code.splitlines()]
    words = [shlex.split(line)[1:] for line in lines if line.startswith("vlad ")]
    commands = [["-m", "vlad.cli", *own] for own in words] + ([["-c", program]] if program else [])
    for command in commands:
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, (command, done.stderr)
