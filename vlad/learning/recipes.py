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

[then]                       # for methods whose training has two stages: what is other in the second
epochs = 20
options = {stage = 2}
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, with_config

from vlad.datasets.samples import SPLITS
from vlad.forms import Number, Whole, file_of, filled, one_of, read

OPTIMIZERS = ("adam", "adamw", "stable_adamw")
SCHEDULES = ("constant", "cosine", "warm-cosine", "tenth-cosine")


def _share(value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"expected a share from 0 to below 1, got {value}")
    return value


def _betas(value: object) -> object:
    pair = list(value) if isinstance(value, list | tuple) else []
    if len(pair) != 2 or not all(type(beta) in (float, int) and 0 <= beta < 1 for beta in pair):
        raise ValueError(f"expected two numbers from 0 to below 1, got {value!r:.60}")
    return value


def _methods() -> list[str]:
    from vlad.methods import METHODS

    return list(METHODS)


def _steps(value: object) -> object:
    if not isinstance(value, list | tuple) or not all(type(step) is int and step > 0 for step in value):
        raise ValueError(f"expected a list of numbers of steps, each above 0, got {value!r:.60}")
    return value


Steps = Annotated[tuple[int, ...], BeforeValidator(_steps)]
Share = Annotated[Number, AfterValidator(_share)]
Data = Annotated[tuple[str, ...], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


@with_config({"extra": "forbid"})
@dataclass(frozen=True)
class Optimizer:
    """Attributes: name of OPTIMIZERS; learning_rate; betas; weight_decay; schedule over the epochs, of SCHEDULES, and
    floor, the rate that it ends near; halve_at, numbers of steps after each of which the rate is halved."""

    name: Annotated[str, one_of(lambda: OPTIMIZERS)] = "adam"
    learning_rate: Annotated[Number, Field(gt=0)] = 1e-3
    betas: Annotated[tuple[Number, Number], BeforeValidator(_betas)] = (0.9, 0.999)
    weight_decay: Number = 0.0
    schedule: Annotated[str, one_of(lambda: SCHEDULES)] = "constant"
    floor: Number = 0.0
    halve_at: Steps = ()


@with_config({"extra": "forbid"})
@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    Attributes:
        method, encoder, resolution, options: as in `vlad.load`.
        data: names of data sets, NAME:ROOT, folders, "synthetic" (drawn pictures) or "synthetic:FOLDER" (defects
            painted on the good pictures there).
        split: "train", "validation" or "test" of the data sets; left out, the test pictures are what is learned from,
            or those of the first split that has normal and anomalous ones.
        pictures: number of synthetic pictures.
        shots: normal pictures of each category, drawn by the seed, for methods that learn from these alone; 0 is all.
        epochs, batch_size, seed: of the training.
        mosaic: share of pictures replaced by a 2 x 2 mosaic of their category; features are then not cached.
        validation: share of the pictures that is held out, and whose loss chooses the epoch; 0 takes the last one.
        then: what a second stage changes; it goes on from what the first has learned, on the same data.
    """

    method: Annotated[str, one_of(_methods)]
    title: str = ""
    encoder: str = "tiny"
    resolution: Whole | None = None
    data: Data = ()
    split: Annotated[str, one_of(lambda: SPLITS)] | None = None
    pictures: Annotated[Whole, Field(ge=2)] = 2000
    shots: Annotated[Whole, Field(ge=0)] = 0
    epochs: Annotated[Whole, Field(ge=1)] = 15
    batch_size: Annotated[Whole, Field(ge=1)] = 8
    seed: Whole = 0
    mosaic: Share = 0.0
    validation: Share = 0.0
    optimizer: Optimizer = Optimizer()
    options: dict[str, Any] = field(default_factory=dict)
    then: dict[str, Any] = field(default_factory=dict)

    def stages(self) -> list[Recipe]:
        """The recipes of its stages in their order, none of which has another after it.

        Raises:
            ValueError: `then` holds a wrong value, or a key that both stages share.
        """
        first = replace(self, then={})
        if not self.then:
            return [first]
        table = first.to_dict()
        for key, value in self.then.items():
            if key in ("method", "encoder", "data", "pictures", "then"):
                raise ValueError(f"then.{key}: a second stage has the first one's; leave it out")
            both = isinstance(value, Mapping) and isinstance(table.get(key), Mapping)
            table[key] = {**table[key], **value} if both else value
        try:
            return [first, filled(Recipe, table)]
        except ValueError as error:
            raise ValueError(f"then: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, JSON-ready, without what is left open; `load` makes an equal recipe of them."""
        lists = {"betas": list(self.optimizer.betas), "halve_at": list(self.optimizer.halve_at)}
        optimizer = {**asdict(self.optimizer), **lists}
        tables = {"data": list(self.data), "options": dict(self.options), "optimizer": _said(optimizer)}
        return _said({**asdict(self), **tables})


def _said(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value is not None}


def load(recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str]) -> Recipe:
    """A recipe from a shipped one's name, a .toml file, or a dict with its keys.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no recipe of this name, or wrong content: names file and key, what was expected and the closest.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        return _staged(filled(Recipe, recipe))
    path = file_of(recipe, "recipe", "adapters")
    try:
        return _staged(read(Recipe, path))
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith(str(path)) else f"{path}: {message}") from None


def _staged(recipe: Recipe) -> Recipe:
    recipe.stages()  # a mistake in the second is found before the first is learned
    return recipe
