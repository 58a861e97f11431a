"""`vlad eval video`: labelled videos, and the drawn belt."""

import json
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlad.cli.shared import AsJson, DetectorFlags, guarded, spelled_out
from vlad.cli.video import EventFlags

if TYPE_CHECKING:
    from vlad.detector import Detector
    from vlad.video.scoring import Timing

BELT = "belt"


@spelled_out
def eval_video(
    data: Annotated[str, typer.Argument(metavar="belt|avenue:ROOT|shanghaitech:ROOT|...")],
    flags: DetectorFlags,
    times: EventFlags,
    detector: Annotated[Path | None, typer.Option(help="A saved detector, as `vlad fit good.mp4` writes it.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Smoothed scores of at least this open an event.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the belt's drawings.")] = 0,
    out: Annotated[Path | None, typer.Option(help="File for the table, Markdown.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a detector on labelled videos, or learn from two good drawn clips and watch the others.

    Example: vlad eval video belt --roi 105,0,375,270 --every 1s --min-event 0s

    Example: vlad eval video avenue:ROOT --method patch_text --name "a street with people" --out avenue.md
    """

    def work() -> int:
        from vlad.report.values import plain
        from vlad.video import measuring

        place, _, root = data.partition(":")
        if place == BELT and detector is not None:
            raise ValueError("the belt's own good clips are learned from; give --method instead of --detector")
        when = times.timing()
        usual = None if detector else "patch_memory" if place == BELT else "patch_text"
        model, _ = replace(flags, method=flags.method or usual).load(detector)
        with tempfile.TemporaryDirectory() as folder:
            videos = _videos(place, root, Path(folder), seed, model, when)
            seen = [measuring.watched(model, one, when, threshold) for one in videos]
        rows = {one.name: measuring.figures([one]) for one in seen} | {"all": measuring.figures(seen)}
        text, told = measuring.table(rows), {key: asdict(row) for key, row in rows.items()}
        if len(seen) >= measuring.FEWEST:
            told["all"]["intervals"] = bounds = measuring.intervals(seen)
            text += "\n" + measuring.said_intervals(bounds, len(seen))
        print(json.dumps(plain(told)) if as_json else text, flush=True)
        if model.calibration is not None:
            print(f"threshold {model.threshold}: {model.calibration.note}", file=sys.stderr)
        if out is not None:
            out.write_text(text, encoding="utf-8")
        return 0

    guarded(work)


def _videos(place: str, root: str, folder: Path, seed: int, model: "Detector", when: "Timing") -> list:
    """The labelled videos; those of the belt are drawn, and the detector has learned from its good clips."""
    from vlad.video import belt, labelled
    from vlad.video.fitting import fit_clips

    if place != BELT:
        return labelled.read(place, root)
    drawn = {one.name: one for one in belt.clips(folder, list(belt.PLANS), seed)}
    fit_clips(model, [drawn.pop(name).source for name in belt.FITTED], timing=when)
    return list(drawn.values())
