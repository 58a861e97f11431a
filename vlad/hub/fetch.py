"""`vlad fetch`: what a name needs is found, brought, and tried once."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlad import synthetic
from vlad.detector.loading import load
from vlad.hub.download import Progress
from vlad.hub.needed import Needed, of_encoder, of_method
from vlad.hub.sources import Found, bring, find, here
from vlad.methods import METHODS, method_class


@dataclass(frozen=True)
class Plan:
    """What a name needs, where it is, and how it is used when it is here.

    Attributes:
        name: of an encoder or a method, as given.
        method: to try it with.
        encoder: to load; None is the one in the method's own file.
        adapter: the authors' file among `files`, None for an encoder.
        files: all of it, what is here already too.
        mirror: where they come from in place of their own sources.
    """

    name: str
    method: str
    encoder: str | None
    adapter: Needed | None
    files: tuple[Found, ...]
    mirror: str = ""

    @property
    def size(self) -> int:
        """Bytes still to bring, as far as the sources say."""
        return sum(one.size or 0 for one in self.files if one.here is None)


def plan(name: str, trained_on: str | None = None, mirror: str = "") -> Plan:
    """What the encoder or method of that name needs, looked up at its sources.

    Args:
        name: of `vlad list encoders`, "hf-hub:<owner>/<repository>", "dino:<size>", or a method whose authors publish.
        trained_on: which of a method's files, by the data it was trained on.
        mirror: a folder or http address that has the files; see `sources.find`.

    Raises:
        ValueError: no such name, or nothing of it can be fetched.
        vlad.WeightsError: a source has it not, or does not answer.
    """
    method, encoder, adapter = "patch_text", name, None
    if name in METHODS:
        chosen = of_method(name, trained_on)
        method, encoder, adapter = name, chosen.encoder, chosen.file()
    elif name.startswith("dino:"):
        method = "patch_memory"
    needed = [*([adapter] if adapter else []), *(of_encoder(encoder) if encoder else [])]
    whole = all(here(one) for one in needed if not one.optional)  # then nobody is asked
    files = tuple(found for one in needed if (found := here(one) if whole else find(one, mirror)))
    return Plan(name, method, encoder or None, adapter, files, mirror)


def fetch(plan: Plan, progress: Progress | None = None) -> dict[Needed, Path]:
    """Brings all files of a plan; where each now lies.

    Raises:
        vlad.WeightsError, OSError: see `sources.bring`; what came before is kept.
    """
    return {one.needed: bring(one, plan.mirror, progress) for one in plan.files}


def tried(plan: Plan, places: dict[Needed, Path]) -> float:
    """Seconds to score a drawn picture with what was fetched: so it loads, and it works.

    Raises:
        ValueError, vlad.WeightsError: what came is no such encoder or adapter, or its score is no number.
    """
    adapter = places[plan.adapter] if plan.adapter else None
    words = None if method_class(plan.method).words == "none" else "surface"
    detector = load(plan.method, words, encoder=plan.encoder, adapter=adapter)
    rng = np.random.default_rng(0)
    if detector.scorer.needs_normals:
        detector.fit([synthetic.sample(rng, defective=False).picture])
    detector.predict(synthetic.sample(rng, defective=True).picture)  # the first one also embeds the words
    began = time.perf_counter()
    score = detector.predict(synthetic.sample(rng, defective=True).picture).score
    if not np.isfinite(score):
        raise ValueError(f"{plan.name} is here, but gives a drawn picture the score {score}: its weights are damaged")
    return time.perf_counter() - began


def usage(plan: Plan, places: dict[Needed, Path]) -> str:
    """The command that uses what was fetched."""
    encoder = f" --encoder {plan.encoder}" if plan.encoder else ""
    if plan.adapter is not None:
        encoder += f" --adapter {places[plan.adapter]}"
    if method_class(plan.method).needs_normals:
        return f"vlad fit good/ --method {plan.method}{encoder} --out part.safetensors"
    words = "" if method_class(plan.method).words == "none" else ' --name "metal bolt"'
    return f"vlad score photos/ --method {plan.method}{words}{encoder}"
