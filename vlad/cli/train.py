"""`vlad train`: a recipe and annotated pictures in, an adapter out."""

import json
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from vlad.cli.progress import ProgressBar
from vlad.cli.shared import AsJson, Device, Dtype, Split, guarded


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE.toml", help="A file, or a name of `vlad list recipes`.")],
    out: Annotated[Path, typer.Option(help="The adapter to write, a .safetensors file.")],
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:ROOT|FOLDER", help='What to learn from; also "synthetic" or "synthetic:FOLDER".'),
    ] = None,
    split: Split = None,
    encoder: Annotated[str | None, typer.Option(help="Instead of the recipe's; `vlad list encoders`.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Learn an adapter on annotated pictures, to be used on other data. A run that was killed goes on.

    Example: vlad train anomalyclip --encoder tiny --data folder:pictures/mtd --out adapter.safetensors
    """

    def work() -> int:
        from vlad.learning.train import train as learn

        started = time.monotonic()
        with ProgressBar("steps") as show:
            detector = learn(recipe, data, out, split=split, encoder=encoder, device=device, dtype=dtype, progress=show)
        if os.environ.get("RANK", "0") != "0":  # one of several processes; the first one reports
            return 0
        from vlad.learning.adapter_file import read

        losses = read(out).facts["recipe"]["losses"]
        facts = {"adapter": str(out), "trained_on": list(detector.trained_on), "losses": losses}
        if as_json:
            print(json.dumps({**facts, "seconds": round(time.monotonic() - started, 1)}))
        else:
            learned = f"learned on {', '.join(detector.trained_on)}" if detector.trained_on else "learned from normals"
            print(f"{learned} in {time.monotonic() - started:.0f} s: {out}")
            print(f"loss {losses[0]:.4f} after the first epoch, {losses[-1]:.4f} after the last of {len(losses)}")
        return 0

    guarded(work, "; the same command goes on from there")
