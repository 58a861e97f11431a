"""`vlad score --share` and `--ray`, and `vlad gather`: scoring past one process."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlad.cli.progress import ProgressBar
from vlad.cli.scored import Csv, Page, shown
from vlad.cli.shared import guarded, one_line

if TYPE_CHECKING:
    from vlad.detector import Detector
    from vlad.folder import Summary

Ray = Annotated[str | None, typer.Option(metavar="local|auto|ADDRESS", help="Workers of a Ray cluster do it.")]
Workers = Annotated[int | None, typer.Option(min=1, help="With --ray. [default: what the cluster has]")]
Parquet = Annotated[bool, typer.Option("--parquet", help="Write results.parquet too.")]
NAMED = 10  # missing shards that are named


@dataclass(frozen=True)
class ShardFlags:
    """Who scores which shards."""

    share: Annotated[
        str | None, typer.Option(metavar="I/N", help="Do the I-th of N shares, from 0; then `vlad gather`.")
    ] = None
    ray: Ray = None
    workers: Workers = None
    shard_size: Annotated[int, typer.Option(min=1, help="Pictures that become one part file.")] = 256

    @property
    def asked(self) -> bool:
        """Whether there are to be shards."""
        return self.share is not None or self.ray is not None

    def check(self, out: Path | None, more: bool, inputs: list[str]) -> None:
        """ValueError where they do not fit each other or `more` that is wanted; before anything is loaded."""
        from vlad.scale.inputs import is_further
        from vlad.scale.places import address

        further = [one for one in inputs if is_further(one)] + [str(out)] * (address(str(out)) is not None)
        if not self.asked and further:
            raise ValueError(f"{further[0]}: lists, tar files and stores are for runs in shards; add --share 0/1")
        _parsed(self.share)
        if self.asked and more:
            raise ValueError(
                "--share and --ray take pictures, not clips, and no --explain; give --csv and --page to `vlad gather`"
            )
        if self.asked and out is None:
            raise ValueError("--share and --ray write parts into a folder that all see; name it with --out")


def score_shards(model: "Detector", inputs: list[str], out: Path | None, shards: ShardFlags, **how: Any) -> "Summary":
    """What `vlad score` does with --share or --ray; `how` are keywords of `vlad.scale.score`."""
    from vlad import scale

    assert out is not None  # see `ShardFlags.check`
    how |= {"share": _parsed(shards.share), "ray": shards.ray, "workers": shards.workers}
    with ProgressBar("pictures", stages=model.transductive) as advance:
        model.report_progress(advance)
        how["progress"] = lambda _, done, total: advance("", done, total)
        return scale.score(model, inputs, out, shard_size=shards.shard_size, **how)


def _parsed(share: str | None) -> tuple[int, int] | None:
    if share is None:
        return None
    i, _, n = share.partition("/")
    if not (i.isdecimal() and n.isdecimal()):
        raise ValueError(f"--share is {share!r}; expected I/N, such as 0/2 and 1/2 for two processes")
    return int(i), int(n)


def gather(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="What --share or --ray wrote into --out.")],
    parquet: Parquet = False,
    csv: Csv = False,
    page: Page = False,
) -> None:
    """Put the parts of a run together: results.jsonl, as if one process had scored the pictures.

    Example: vlad gather run --csv --page
    """

    def work() -> int:
        from vlad import scale

        if missing := scale.missing(run):
            named = ", ".join(map(str, missing[:NAMED])) + (", ..." if len(missing) > NAMED else "")
            print(
                f"{len(missing)} shards are not done: {named}; what began them goes on with --resume", file=sys.stderr
            )
            return 1
        summary = scale.gather(run, parquet, then=lambda here: shown(here, csv, page, silent=False))
        verdicts = ", ".join(f"{count} {word}" for word, count in summary.verdicts.items())
        print(f"{summary.scored} pictures scored ({verdicts}), {len(summary.failed)} failed: {run}")
        if summary.unlike:
            print(summary.unlike, file=sys.stderr)
        for _, reason in summary.failed:
            print(f"failed: {one_line(reason)}", file=sys.stderr)
        return 1 if summary.failed else 0

    guarded(work)
