"""From the name of an encoder or a method to the files that it needs and that do not ship with VLAD."""

import csv
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import open_clip

from vlad.encoders import dino, fetching, weights
from vlad.files import cache_dir, resource
from vlad.methods import methods

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "config.json",
)
HUB, BY_HAND = "hub:", "by hand: "


@dataclass(frozen=True)
class Needed:
    """A file that a name needs: under one of `names`, the best first, in a repository of the hub, or at an address.

    Attributes:
        repo: "owner/name" of the hub; "" for a file at an address.
        names: paths in the repository; of an address the file's own name.
        address: where it lies outside the hub.
        sha256: of its bytes, as far as it is known before anybody is asked.
        licence: as far as it is known before anybody is asked.
        optional: the name works without it.
    """

    repo: str
    names: tuple[str, ...]
    address: str = ""
    sha256: str = ""
    licence: str = ""
    optional: bool = False

    @property
    def kept(self) -> Path:
        """Where a file from an address is kept: its path there, below the cache."""
        parts = [part for part in self.address.partition("://")[2].split("/") if part not in ("", ".", "..")]
        return cache_dir().joinpath("published", *parts)


@dataclass(frozen=True)
class Published:
    """A line of adapters/published.csv: what a method's authors publish, and on what it was trained."""

    method: str
    trained_on: str
    encoder: str  # "": the file holds its own
    place: str  # "hub:<owner>/<name>/<file>", an address, or "by hand: <where>"
    licence: str
    sha256: str

    def file(self) -> Needed:
        """The file as what is needed.

        Raises:
            ValueError: it lies where only a person can fetch it.
        """
        if self.place.startswith(BY_HAND):
            raise ValueError(
                f"{self.method} trained on {self.trained_on} cannot be fetched by a program; it is in "
                f"{self.place.removeprefix(BY_HAND)}: put it anywhere and pass adapter=FILE"
            )
        if self.place.startswith(HUB):
            owner, name, path = self.place.removeprefix(HUB).split("/", 2)
            return Needed(f"{owner}/{name}", (path,), sha256=self.sha256, licence=self.licence)
        return Needed("", (self.place.rpartition("/")[2],), self.place, self.sha256, self.licence)


def published() -> list[Published]:
    """All that authors publish and VLAD reads."""
    with resource("adapters/published.csv").open(encoding="utf-8", newline="") as file:
        return [Published(**line) for line in csv.DictReader(file)]


def of_method(method: str, trained_on: str | None = None) -> Published:
    """The authors' file of a method.

    Raises:
        ValueError: none is known, or several are and `trained_on` names none of them.
    """
    files = [one for one in published() if one.method == method]
    if not files:
        learned = ", ".join(dict.fromkeys(one.method for one in published()))
        raise ValueError(f"{method} needs no file of its authors, or none is published; there are such of {learned}")
    chosen = [one for one in files if trained_on in (None, one.trained_on)]
    if len(chosen) != 1:
        known = ", ".join(repr(one.trained_on) for one in files)
        raise ValueError(
            f"the authors of {method} published files trained on {known}: say which with --trained-on, and measure "
            "only on other data"
        )
    return chosen[0]


def of_encoder(name: str) -> list[Needed]:
    """The files of an encoder, the weights last: where they are, the rest is too. None where all ships or is drawn.

    Raises:
        ValueError: no such encoder.
    """
    if name == "tiny" or "/random:" in name or name.startswith("local-dir:"):
        return []
    if name.startswith(dino.PREFIX):
        given = name.removeprefix(dino.PREFIX)
        repo = dino.REPOSITORIES.get(given, given)
        return [Needed(repo, ("config.json",)), Needed(repo, ("model.safetensors",))]
    if name.startswith("hf-hub:"):
        repo = name.removeprefix("hf-hub:")
        described = Needed(repo, ("open_clip_config.json",))
        return [*_tokenizer(repo), described, Needed(repo, fetching.hub_files({"hf_hub": f"{repo}/"})[1])]
    if ":" in name:
        raise ValueError(f"{name!r} names a file of yours; there is nothing to fetch")
    return _of_tag(name)


def _of_tag(name: str) -> list[Needed]:
    model, _, tag = name.partition("/")
    config, pretrained = open_clip.get_model_config(model), open_clip.pretrained.get_pretrained_cfg(model, tag)
    if config is None or not pretrained:
        known = [*methods(), *weights.encoders(), *(f"dino:{size}" for size in dino.REPOSITORIES)]
        close = get_close_matches(name, known, 1, 0.4)
        hint = (
            f"did you mean {close[0]!r}?" if close else "`vlad fetch --list` and `vlad list encoders` name what can be"
        )
        raise ValueError(f"unknown encoder or method {name!r}; {hint}")
    repo, names = fetching.hub_files(pretrained)
    text = config.get("text_cfg", {})
    return [*_tokenizer(text.get("hf_tokenizer_name") or text.get("hf_model_name") or ""), Needed(repo, names)]


def _tokenizer(repo: str) -> list[Needed]:
    return [Needed(repo, (file,), optional=True) for file in TOKENIZER_FILES] if repo else []
