"""Damaged and hostile files of every kind of ours end in a result or in one sentence: soon, and in little memory."""

import contextlib
import json
import logging
import multiprocessing
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mutations import mutated, peak_memory
from PIL import Image

import vlad
from vlad.cli.shared import USERS_OWN
from vlad.detector import saving
from vlad.evaluate import suites
from vlad.files import resource
from vlad.folder import score_folder
from vlad.folder.judging import judge_folder
from vlad.folder.page import write_page
from vlad.folder.sheet import write_sheet
from vlad.learning import recipes

GOLDEN = Path(__file__).parent / "golden"
SECONDS, GIGABYTES, LONGEST = 5, 2, 1000
SIDE = 48  # at which pictures are scored here

Open = Callable[[Path], object]


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8)


class Kinds:
    """Kind of file -> (its name, its whole content, what opens it and uses what it says)."""

    def __init__(self, folder: Path, clip: str):
        torch.set_num_threads(1)
        self.folder = folder
        self.tiny = vlad.Encoder.load("tiny", device="cpu", dtype="float32")
        self.clip = vlad.Encoder.load(clip, device="cpu", dtype="float32")
        detector = vlad.load("patch_memory", encoder=self.tiny, resolution=SIDE).fit([picture(n) for n in range(6)])
        detector.save(folder / "fitted.safetensors")
        vlad.load("patch_text", "bolt", encoder=self.tiny, resolution=SIDE).save(folder / "words.safetensors")
        vlad.load("anomalyclip", encoder=self.tiny, resolution=SIDE).scorer.save_adapter(folder / "own.safetensors", {})
        (folder / "parts").mkdir()
        for number in range(3):
            Image.fromarray(picture(number)).save(folder / "parts" / f"{number}.png")
        score_folder(detector, [folder / "parts"], folder / "results")

    def all(self) -> dict[str, tuple[str, bytes, Open]]:
        text = (resource("prompts/winclip.toml"), resource("adapters/anomalyclip-tiny.toml"))
        suite = resource("eval/suites/real-smoke.toml")
        files: dict[str, tuple[Path, Open]] = {
            "detector": (self.folder / "fitted.safetensors", self.detector),
            "detector of words": (self.folder / "words.safetensors", self.detector),
            "detector, sealed anew": (self.folder / "fitted.safetensors", self.sealed),
            "adapter": (self.folder / "own.safetensors", lambda path: self.adapter(path, self.tiny)),
            "adapter.pth": (GOLDEN / "anomalyclip_official_format.pth", lambda path: self.adapter(path, self.clip)),
            "pack": (text[0], lambda path: vlad.PromptPack.load(path).sentences("bolt")),
            "recipe": (text[1], recipes.load),
            "suite": (suite, suites.load),
            "results": (self.folder / "results" / "results.jsonl", self.results),
            "settings": (self.folder / "results" / "settings.json", self.results),
        }
        return {kind: (path.name, path.read_bytes(), opened) for kind, (path, opened) in files.items()}

    def detector(self, path: Path) -> object:
        return vlad.load(path, encoder=self.tiny).predict(picture())

    def sealed(self, path: Path) -> object:
        """As one would change it who knows how the checksums are made: the header alone is what was mutated."""
        with contextlib.suppress(Exception):
            facts = json.loads(path.read_bytes())
            facts["header_sha256"] = saving._header_checksum(facts)
            path.write_bytes(json.dumps(facts).encode())
        header = path.read_bytes().decode("utf-8", "replace")
        from safetensors.torch import load_file, save_file

        save_file(load_file(self.folder / "fitted.safetensors"), path, {"vlad": header})
        return self.detector(path)

    def adapter(self, path: Path, encoder: vlad.Encoder) -> object:
        return vlad.load(
            "anomalyclip", encoder=encoder, adapter=path, resolution=SIDE if encoder is self.tiny else None
        )

    def results(self, path: Path) -> object:
        for name in ("results.jsonl", "settings.json"):
            if name != path.name:
                shutil.copy(self.folder / "results" / name, path.parent / name)
        return judge_folder(path.parent, 0.2), write_sheet(path.parent), write_page(path.parent)


def tried(first: int, last: int, clip: str) -> tuple[list[str], float]:
    """What went wrong with the mutations of these numbers, and the peak in gigabytes."""
    warnings.simplefilter("ignore")
    logging.disable()
    wrong = []
    with tempfile.TemporaryDirectory() as made:
        kinds = list(Kinds(Path(made), clip).all().items())
        for number in range(first, last):
            kind, (name, content, opened) = kinds[number % len(kinds)]
            if kind == "detector, sealed anew":
                content = header_of(content)
            (place := Path(made) / str(number)).mkdir()
            (place / name).write_bytes(mutated(content, np.random.default_rng(number)))
            started = time.monotonic()
            try:
                opened(place / name)
            except USERS_OWN as error:
                if "\n" in str(error) or len(str(error)) > LONGEST or not str(error):
                    wrong.append(f"{number} {kind}: {type(error).__name__} {str(error)[:LONGEST]!r}")
            except BaseException as error:
                wrong.append(f"{number} {kind}: {type(error).__name__}: {str(error)[:200]}")
            if (taken := time.monotonic() - started) > SECONDS:
                wrong.append(f"{number} {kind}: {taken:.1f} s")
            shutil.rmtree(place)
    return wrong, peak_memory()


def header_of(content: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])["__metadata__"]["vlad"].encode()


def holds(first: int, last: int, clip: str) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process of its own, for the peak
        wrong, peak = pool.apply(tried, (first, last, clip))
    assert wrong == []
    assert peak < GIGABYTES


def test_all_the_originals_are_taken(small_folder, tmp_path):
    threads = torch.get_num_threads()
    for kind, (name, content, opened) in Kinds(tmp_path, f"local-dir:{small_folder}").all().items():
        (place := tmp_path / "tried" / kind).mkdir(parents=True)
        (place / name).write_bytes(header_of(content) if kind == "detector, sealed anew" else content)
        assert opened(place / name) is not None, kind
    torch.set_num_threads(threads)


def test_a_hundred_mutations_of_our_files_end_in_a_result_or_a_sentence(small_folder):
    holds(0, 100, f"local-dir:{small_folder}")


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_two_thousand_mutations_of_our_files_end_in_a_result_or_a_sentence(small_folder, part):
    holds(100 + 500 * part, 100 + 500 * (part + 1), f"local-dir:{small_folder}")
