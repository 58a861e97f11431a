"""How far a long run is: a bar on a terminal's standard error, elsewhere a line every half minute."""

import sys
import time
from typing import TYPE_CHECKING

from vlad.cli.shared import one_line

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

PAUSE = 30  # seconds between lines


class ProgressBar:
    """Used as `with ProgressBar("pictures") as show`; `show(what, done, total)` then says where the run is.

    A stage begins where `total` changes or `done` falls; rate and time left are those of the stage. A run that goes on
    begins somewhere: what was done before does not count for the rate.

    Args:
        unit: what is counted where `what` is empty; a stage counts what its name says.
        quiet: nothing is shown.
        stages: a line at the end of each stage too.
    """

    def __init__(self, unit: str, quiet: bool = False, stages: bool = False) -> None:
        self.unit, self.quiet, self.stages = unit, quiet, stages
        self.bar = _bar() if sys.stderr.isatty() and not quiet else None
        self.task = self.bar.add_task("", total=None, rate="") if self.bar else None
        self.begun = self.shown = self.last = time.monotonic()
        self.first = self.done = 0
        self.total = -1

    def __enter__(self) -> "ProgressBar":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """So many of `total` are done; a total of 0 is not known."""
        if total != self.total or done < self.done:
            self.begun, self.first, self.total = self.last, max(done - 1, 0), total
            if self.bar and self.task is not None:
                self.bar.reset(self.task)
        self.done, self.last = done, time.monotonic()
        what, unit = one_line(what), "" if what else f" {self.unit}"
        rate = (done - self.first) / max(self.last - self.begun, 1e-9)
        if self.bar and self.task is not None:
            words = " ".join(filter(None, (what, f"{rate:.1f}{unit}/s")))
            self.bar.update(self.task, completed=done, total=total or None, rate=words)
        elif not self.quiet and (self.last - self.shown > PAUSE or (self.stages and done == total)):
            self.shown = self.last
            left = f" of {total}{unit}, {(total - done) / max(rate, 1e-9):.0f} s left" if total else unit
            print(f"{what + ': ' if what else ''}{done}{left}", file=sys.stderr)


def _bar() -> "Bar":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    # standard output is left alone: redirected, it would end up in this display and not in the user's pipe
    return Bar(*columns, console=Console(stderr=True), redirect_stdout=False)
