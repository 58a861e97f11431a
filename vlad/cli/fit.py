"""`vlad fit`: a few good pictures in, a saved detector with its threshold out."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlad.cli import video
from vlad.cli.progress import ProgressBar
from vlad.cli.shared import AsJson, Channels, DetectorFlags, Pages, Rate, guarded, spelled_out

if TYPE_CHECKING:
    from vlad.detector import Detector


@spelled_out
def fit(
    inputs: Annotated[
        list[str], typer.Argument(metavar="FOLDER|IMAGE|GLOB", help="Good pictures; folders are searched whole.")
    ],
    out: Annotated[Path, typer.Option(help="The detector to write, a .safetensors file.")],
    flags: DetectorFlags,
    filmed: video.GoodClipFlags,
    add_to: Annotated[
        Path | None, typer.Option(help="A detector that has learnt before: these pictures join those it knows.")
    ] = None,
    max_false_positive_rate: Rate = None,
    anomalous: Annotated[
        Path | None, typer.Option(help="Folder of defective pictures: the threshold is then that of the best F1.")
    ] = None,
    review: Annotated[
        bool, typer.Option("--review", help="Leave scores a little above all good pictures to a person: unsure.")
    ] = False,
    pictures: Annotated[
        bool,
        typer.Option("--pictures/--no-pictures", help="Keep the good pictures, small, for a later --add-to."),
    ] = True,
    channels: Channels = None,
    pages: Pages = None,
    as_json: AsJson = False,
) -> None:
    """Learn from a few good pictures; the detector gets a memory and, from 5 pictures on, a threshold.

    Example: vlad fit good/ --name "metal bolt" --out bolt.safetensors

    Good clips: vlad fit good1.mp4 good2.mp4 --method patch_memory --out belt.safetensors

    Further pictures later: vlad fit more/ --add-to bolt.safetensors --out better.safetensors
    """

    def work() -> int:
        from vlad.images.listing import left_out_line, list_images

        clips, ruled = video.are_clips(inputs, None), anomalous is not None or review
        _check(out, add_to, clips, ruled, max_false_positive_rate)
        left_out: Counter[str] = Counter()
        # before the encoder: a mistake is quick to see
        good = [] if clips else [found.path for found in list_images(inputs, left_out)]
        if anomalous is not None:
            list_images([anomalous], left_out)
        model, _ = flags.load(add_to, channels=channels, pages=pages)
        with ProgressBar("pictures", quiet=as_json) as advance:
            model.report_progress(advance)
            if clips:
                filmed.fit(model, inputs, max_false_positive_rate)
            elif add_to is None:
                model.fit(good, max_false_positive_rate=max_false_positive_rate, anomalous=anomalous, review=review)
            else:
                model.add(good)
        model.save(out, pictures=pictures)
        if said := left_out_line(left_out):
            print(said, file=sys.stderr)
        _told(model, out, left_out, pictures, as_json)
        return 0

    guarded(work)


def _check(out: Path, add_to: Path | None, clips: bool, ruled: bool, rate: float | None) -> None:
    """ValueError where the flags do not go together; `ruled`: --anomalous or --review."""
    if out.suffix != ".safetensors":
        raise ValueError(f"--out is {out}; a detector is a file that ends in .safetensors")
    if add_to is not None and (rate is not None or ruled):
        raise ValueError(f"--add-to goes on as {add_to} was fitted: leave out --review, --anomalous and the rate")
    if clips and (add_to is not None or ruled):
        raise ValueError("--add-to, --anomalous and --review are for pictures; fit on all good clips at once")


def _told(model: "Detector", out: Path, left_out: Counter[str], pictures: bool, as_json: bool) -> None:
    """Prints what was learnt."""
    made = model.calibration
    if as_json:
        facts = {
            "detector": str(out),
            "normals": len(model.references),
            "threshold": model.threshold,
            "map_threshold": model.map_threshold,
            "rule": made.method if made else None,
            "note": made.note if made else None,
            "left_out": dict(left_out),
        }
        print(json.dumps(facts))
        return
    cut = "no threshold" if model.threshold is None else f"threshold {model.threshold:.4f}"
    print(f"learnt from {len(model.references)} pictures, {cut}: {out}")
    if made:
        print(made.note)
    if pictures:
        print("the file holds the good pictures, small, for a later --add-to; --no-pictures leaves them out")
