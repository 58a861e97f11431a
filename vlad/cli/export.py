"""`vlad export`: a saved detector as one .onnx file, which runs without torch and without VLAD."""

import json
from pathlib import Path
from typing import Annotated

import typer

import vlad
from vlad.cli.shared import AsJson, Encoder, guarded


def export(
    detector: Annotated[Path, typer.Argument(metavar="DETECTOR", help="A saved detector.")],
    to: Annotated[Path, typer.Option(help="The graph to write, an .onnx file.")],
    check: Annotated[
        Path | None, typer.Option(help="Folder of pictures to compare the graph with torch on. [default: drawn ones]")
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="Largest difference; beyond it nothing is written.")] = 1e-4,
    encoder: Encoder = None,
    as_json: AsJson = False,
) -> None:
    """Write a detector as one .onnx file; examples/run_exported.py shows how to run it.

    A graph computes in float32, so fit with --dtype float32: a threshold of other arithmetic is dropped.

    Example: vlad export bolt.safetensors --to bolt.onnx --check good/
    """

    def work() -> int:
        if to.suffix != ".onnx":
            raise ValueError(f"--to is {to}; a graph is a file that ends in .onnx")
        model = vlad.load(detector.absolute(), encoder=encoder, device="cpu", dtype="float32")
        made = model.export(to, pictures=check, tolerance=tolerance)
        if as_json:
            print(json.dumps({"graph": str(to), "threshold": model.threshold, **made.to_dict()}))
        else:
            print(
                f"{to}: {made.bytes / 2**20:.1f} MiB; on {made.pictures} pictures it differs from torch by "
                f"{made.max_score:.1g} in the score and {made.max_map:.1g} in the map"
            )
        return 0

    guarded(work)
