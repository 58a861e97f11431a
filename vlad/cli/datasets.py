"""`vlad datasets check`: what was understood of a data set, before anything is measured on it."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from vlad.cli.progress import ProgressBar
from vlad.cli.shared import PLAIN, AsJson, guarded, many_lines, one_line

ODDITIES = 20  # that are printed; --json has all

datasets_app = typer.Typer(no_args_is_help=True, **PLAIN)


@datasets_app.callback()
def _datasets() -> None:
    """Labelled pictures."""


@datasets_app.command("check")
def check(
    data: Annotated[str, typer.Argument(metavar="NAME:ROOT", help="A data set; `vlad list datasets`, or a folder.")],
    sheet: Annotated[Path | None, typer.Option(help="A .png to write: 12 pictures with outlines.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what was understood of a data set: pictures by split and label, masks, sizes, oddities.

    Example: vlad datasets check folder:pictures --sheet sheet.png
    """

    def work() -> int:
        from vlad.datasets import checking
        from vlad.report.published import why_not
        from vlad.report.text import aligned

        if sheet is not None and sheet.suffix.lower() != ".png":
            raise ValueError(f"--sheet is {sheet}; the sheet is a picture, give a name that ends in .png")
        with ProgressBar("pictures") as show:
            found = checking.check(data, show)
        if sheet is not None:
            sheet.parent.mkdir(parents=True, exist_ok=True)
            checking.sheet(found.samples).save(sheet)
            print(f"written: {sheet}", file=sys.stderr)
        if as_json:
            parts = [{"place": list(place), **part.to_dict()} for place, part in found.parts.items()]
            print(json.dumps({"parts": parts, "oddities": found.oddities}))
            return 0
        print(many_lines("\n".join(aligned(found.rows()))))
        for (dataset, category, split), part in found.parts.items():
            if len(part.defects) > 1:
                kinds = ", ".join(f"{kind} {number}" for kind, number in part.defects.items())
                print(one_line(f"{dataset}/{category}, {split}: {kinds}"))
        for dataset, categories in found.tests().items():
            print(f"{dataset}: " + (why_not(dataset, categories) or "the whole set, as in published tables"))
        for oddity in found.oddities[:ODDITIES]:
            print(f"odd: {one_line(oddity)}")
        if len(found.oddities) > ODDITIES:
            print(f"and {len(found.oddities) - ODDITIES} more oddities; --json has them all")
        if not found.oddities:
            print("nothing odd was seen")
        return 0

    guarded(work)
