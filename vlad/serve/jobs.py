"""Work that takes longer than an answer may: one thread beside the passes, a short queue, and how far each is."""

import itertools
import logging
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from vlad.serve.passes import Full

logger = logging.getLogger(__name__)

WAITING, REMEMBERED = 4, 100

State = Literal["waiting", "running", "done", "failed"]
Work = Callable[["Job"], dict[str, Any]]


@dataclass(eq=False)
class Job:
    """One piece of work.

    Attributes:
        kind, detector: what is done, and of which detector.
        stage, done, total: how far it is; total 0: unknown.
        result: what its request would have been answered; None until done.
    """

    kind: str
    detector: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: State = "waiting"
    stage: str = ""
    done: int = 0
    total: int = 0
    result: dict[str, Any] | None = None
    error: str | None = None
    future: "Future[dict[str, Any]]" = field(default_factory=Future, repr=False)

    def progress(self, stage: str, done: int, total: int) -> None:
        """For `Detector.report_progress`."""
        self.stage, self.done, self.total = stage, done, total

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        keys = ("id", "kind", "detector", "state", "stage", "done", "total", "result", "error")
        return {key: getattr(self, key) for key in keys}


class Jobs:
    """Does one job after the other; the last REMEMBERED can be asked for."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "vlad-jobs")
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def start(self, kind: str, detector: str, work: Work) -> Job:
        """Has the work done in its turn. Full: WAITING others wait already."""
        job = Job(kind, detector)
        with self._lock:
            if sum(one.state == "waiting" for one in self._jobs.values()) >= WAITING:
                raise Full(f"{WAITING} jobs are waiting already; ask again when one is done")
            self._jobs[job.id] = job
            finished = [one.id for one in self._jobs.values() if one.state in ("done", "failed")]
            for old in itertools.islice(finished, max(0, len(self._jobs) - REMEMBERED)):
                del self._jobs[old]
        self._thread.submit(self._run, job, work)
        return job

    def get(self, id: str) -> Job | None:
        """None where it was never there or is forgotten."""
        return self._jobs.get(id)

    def all(self) -> list[Job]:
        """The newest first."""
        return list(self._jobs.values())[::-1]

    def close(self) -> None:
        """Waits for the job in work; those that wait are given up."""
        self._thread.shutdown(cancel_futures=True)

    def _run(self, job: Job, work: Work) -> None:
        job.state = "running"
        try:
            job.result = work(job)
        except Exception as error:
            job.error, job.state = str(error) or type(error).__name__, "failed"
            job.future.set_exception(error)
        else:
            job.state = "done"
            job.future.set_result(job.result)
