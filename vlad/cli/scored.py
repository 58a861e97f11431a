"""What is done with a scored folder: its worst pictures, a sheet, a page, new verdicts, and a check of a detector."""

import json
import sys
from heapq import nlargest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import vlad
from vlad.cli.shared import AsJson, BatchSize, Device, Dtype, Encoder, guarded, one_line

if TYPE_CHECKING:
    from vlad.folder.checking import Check

WORST = 10  # pictures named at the end of a run

Csv = Annotated[bool, typer.Option("--csv", help="Write results.csv, which a spreadsheet opens.")]
Page = Annotated[bool, typer.Option("--page", help="Write index.html: worst first, overlays, a threshold to try.")]


def shown(out: Path, csv: bool, page: bool, silent: bool) -> None:
    """Names the worst pictures of a scored folder, and writes its sheet and page where asked for, or there before."""
    from vlad.folder import LINES
    from vlad.folder.lines import recorded
    from vlad.folder.page import PAGE, write_page
    from vlad.folder.sheet import SHEET, write_sheet

    if not silent:
        lines = (line for line in recorded(out / LINES) if line["error"] is None and line["verdict"] != "normal")
        for line in nlargest(WORST, lines, key=lambda line: line["score"]):
            where = ", ".join(dict.fromkeys(region["location"] for region in line["regions"][:3]))
            print(f"{line['score']:.4f}  {line['verdict']:12}  {one_line(line['source'])}  {where}".rstrip())
        notes = [(line["source"], note) for line in recorded(out / LINES) for note in line.get("notes", ())]
        for source, note in notes[:WORST]:
            print(f"warning: {one_line(source)}: {note}", file=sys.stderr)
    for write, there in ((write_sheet, csv or (out / SHEET).exists()), (write_page, page or (out / PAGE).exists())):
        if there:
            print(f"written: {write(out)}", file=sys.stderr)


def judge(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that `vlad score --out` wrote.")],
    threshold: Annotated[float | None, typer.Option(help="Scores of at least this are anomalous.")] = None,
    detector: Annotated[Path | None, typer.Option(help="A saved detector whose thresholds decide.")] = None,
    encoder: Encoder = None,
    csv: Csv = False,
    page: Page = False,
    as_json: AsJson = False,
) -> None:
    """Decide again on recorded scores, without looking at the pictures.

    Example: vlad judge results --threshold 0.3
    """

    def work() -> int:
        from vlad.folder.judging import judge_folder

        model = None if detector is None else vlad.load(detector.absolute(), encoder=encoder)
        counts = judge_folder(out, threshold, model)
        print(json.dumps(counts) if as_json else ", ".join(f"{count} {word}" for word, count in counts.items()))
        shown(out, csv, page, silent=as_json)
        return 0

    guarded(work)


def check(
    detector: Annotated[Path, typer.Argument(metavar="DETECTOR", help="A saved detector.")],
    good: Annotated[list[str], typer.Option(help="Good pictures: file, folder or glob; may be repeated.")],
    bad: Annotated[list[str], typer.Option(help="Defective pictures: file, folder or glob; may be repeated.")],
    threshold: Annotated[float | None, typer.Option(help="Instead of the detector's own.")] = None,
    encoder: Encoder = None,
    batch_size: BatchSize = 8,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """How good a detector is at its own threshold: found, missed, false alarms, and which ones.

    Example: vlad check bolt.safetensors --good fresh/good --bad fresh/scratched
    """

    def work() -> int:
        from vlad.folder.checking import check as checked

        model = vlad.load(detector.absolute(), encoder=encoder, device=device, dtype=dtype)
        if threshold is not None:
            model.threshold = threshold
        made = checked(model, good, bad, batch_size)
        print(json.dumps(made.to_dict()) if as_json else _table(made))
        return 1 if made.failed else 0

    guarded(work)


def _table(made: "Check") -> str:
    rows = [
        ("threshold", f"{made.threshold:.4f}"),
        ("found", made.found),
        ("missed", made.missed),
        ("false alarms", made.false_alarms),
        *(
            (f"unsure, {kind}", one)
            for kind, one in (("bad", made.unsure_bad), ("good", made.unsure_good))
            if one.count
        ),
        ("bad of those called so", made.precision),
        ("nothing is missed up to", f"{made.nothing_missed:.4f}"),
        ("no good one is called bad from", f"{made.no_false_alarm:.4f}"),
    ]
    lines = [f"{word:32}{value}" for word, value in rows]
    lines += [f"{kind:12} {score:.4f}  {one_line(source)}" for source, kind, score in made.wrong]
    return "\n".join([*lines, *(f"failed: {one_line(reason)}" for _, reason in made.failed)])
