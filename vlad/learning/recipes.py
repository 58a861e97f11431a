"""Recipes: how an adapter is learned, as TOML files in `adapters/` or of your own.

title = "AnomalyCLIP (arXiv:2310.18961)"
method = "anomalyclip"
encoder = "ViT-L-14-336-quickgelu/openai"
data = ["mvtec_ad"]          # annotated data sets; where they lie is said by --data mvtec_ad:ROOT
epochs = 15
batch_size = 8
seed = 111

[optimizer]
name = "adam"                # or "adamw"
learning_rate = 1e-3
betas = [0.5, 0.999]

[options]                    # keywords of the method
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlad.files import resource
from vlad.forms import closest, read_toml

OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("constant", "cosine")
_WORDS: dict[type, str] = {str: "text", int: "a whole number", float: "a number", list: "a list", dict: "a table"}


@dataclass(frozen=True)
class Optimizer:
    """Attributes: name of OPTIMIZERS; learning_rate; betas; weight_decay; schedule over the epochs, of SCHEDULES, and
    floor, the rate that it ends near."""

    name: str = "adam"
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: str = "constant"
    floor: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    Attributes:
        method, encoder, resolution, options: as in `vlad.load`.
        data: names of data sets, NAME:ROOT, folders, "synthetic" (drawn pictures) or "synthetic:FOLDER" (defects
            painted on the good pictures there); the test pictures of a data set are what is learned from.
        pictures: number of synthetic pictures.
        epochs, batch_size, seed: of the training.
        mosaic: share of pictures replaced by a 2 x 2 mosaic of their category; features are then not cached.
        validation: share of the pictures that is held out, and whose loss chooses the epoch; 0 takes the last one.
    """

    method: str
    title: str = ""
    encoder: str = "tiny"
    resolution: int | None = None
    data: tuple[str, ...] = ()
    pictures: int = 2000
    epochs: int = 15
    batch_size: int = 8
    seed: int = 0
    mosaic: float = 0.0
    validation: float = 0.0
    optimizer: Optimizer = Optimizer()
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, JSON-ready, without what is left open; `load` makes an equal recipe of them."""
        optimizer = {**asdict(self.optimizer), "betas": list(self.optimizer.betas)}
        tables = {"data": list(self.data), "options": dict(self.options), "optimizer": _said(optimizer)}
        return _said({**asdict(self), **tables})


def _said(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value is not None}


_KINDS: dict[str, tuple[type, ...]] = {
    "title": (str,),
    "method": (str,),
    "encoder": (str,),
    "resolution": (int,),
    "data": (list, str),
    "pictures": (int,),
    "epochs": (int,),
    "batch_size": (int,),
    "seed": (int,),
    "mosaic": (float, int),
    "validation": (float, int),
    "optimizer": (dict,),
    "options": (dict,),
}
_OPTIMIZER_KINDS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "learning_rate": (float, int),
    "betas": (list,),
    "weight_decay": (float, int),
    "schedule": (str,),
    "floor": (float, int),
}


def recipes() -> list[str]:
    """Names of the recipes that ship with VLAD."""
    return sorted(path.stem for path in resource("adapters").glob("*.toml"))


def load(recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str]) -> Recipe:
    """A recipe from a shipped one's name, a .toml file, or a dict with its keys.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no recipe of this name, or wrong content: names file and key, what was expected and the closest.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        return checked(recipe)
    given = os.fspath(recipe)
    if given.endswith(".toml") or os.sep in given:
        path = Path(given).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"there is no recipe file {path}")
    elif given not in recipes():
        raise ValueError(f"unknown recipe {given!r}; {closest(given, recipes())}, or give a .toml file")
    else:
        path = resource(f"adapters/{given}.toml")
    try:
        return checked(read_toml(path))
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith(str(path)) else f"{path}: {message}") from None


def checked(raw: Mapping[str, Any]) -> Recipe:
    """The recipe of a file's tables; ValueError names the key that is wrong."""
    from vlad.methods import METHODS

    _kinds(raw, _KINDS, "")
    if raw.get("method") not in METHODS:
        raise ValueError(f"method: unknown {raw.get('method')!r}; {closest(raw.get('method', ''), METHODS)}")
    table = raw.get("optimizer", {})
    _kinds(table, _OPTIMIZER_KINDS, "optimizer.")
    optimizer = Optimizer(**{**table, "betas": tuple(table.get("betas", Optimizer.betas))})
    data = raw.get("data", ())
    recipe = Recipe(**{**raw, "data": (data,) if isinstance(data, str) else tuple(data), "optimizer": optimizer})
    _ranges(recipe)
    return recipe


def _ranges(recipe: Recipe) -> None:
    optimizer = recipe.optimizer
    for key, value, low in (
        ("epochs", recipe.epochs, 1),
        ("batch_size", recipe.batch_size, 1),
        ("pictures", recipe.pictures, 2),
    ):
        if value < low:
            raise ValueError(f"{key}: expected {low} or more, got {value}")
    for key, share in (("mosaic", recipe.mosaic), ("validation", recipe.validation)):
        if not 0 <= share < 1:
            raise ValueError(f"{key}: expected a share from 0 to below 1, got {share}")
    if optimizer.name not in OPTIMIZERS:
        raise ValueError(f"optimizer.name: unknown {optimizer.name!r}; {closest(optimizer.name, OPTIMIZERS)}")
    if optimizer.schedule not in SCHEDULES:
        raise ValueError(
            f"optimizer.schedule: unknown {optimizer.schedule!r}; {closest(optimizer.schedule, SCHEDULES)}"
        )
    if not optimizer.learning_rate > 0:
        raise ValueError(f"optimizer.learning_rate: expected a number above 0, got {optimizer.learning_rate}")
    if len(optimizer.betas) != 2 or not all(isinstance(b, float | int) and 0 <= b < 1 for b in optimizer.betas):
        raise ValueError(f"optimizer.betas: expected two numbers from 0 to below 1, got {list(optimizer.betas)}")


def _kinds(raw: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]], where: str) -> None:
    for key, value in raw.items():
        if key not in kinds:
            raise ValueError(f"{where}{key}: unknown key; {closest(key, kinds)}")
        if not isinstance(value, kinds[key]) or isinstance(value, bool):
            expected = " or ".join(_WORDS[kind] for kind in kinds[key])
            raise ValueError(f"{where}{key}: expected {expected}, got {reprlib.repr(value)}")
