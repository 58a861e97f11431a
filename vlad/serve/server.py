"""What all routes share: the detectors, the way to the encoder, the jobs, the counters; and errors as answers."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import Depends, Header, HTTPException, Request
from fastapi.responses import JSONResponse

from vlad.serve.bodies import Problem
from vlad.serve.jobs import Job, Jobs
from vlad.serve.metrics import Metrics
from vlad.serve.passes import Full, Passes
from vlad.serve.settings import Settings
from vlad.serve.shelf import Conflict, Shelf, Unknown

ON_A_GPU = 8  # pictures of a pass by default; on a CPU more than one gain nothing
IN_TIME = 0.8  # of the time for a request
CODES = {400: "malformed", 401: "no key", 403: "not allowed", 404: "there is none", 409: "changed meanwhile"}
CODES |= {411: "no length", 413: "too much", 422: "cannot be done so", 503: "no room now", 504: "took too long"}
CODES |= {507: "the disk is full"}
PROBLEMS: dict[int | str, dict[str, Any]] = {code: {"model": Problem, "description": CODES[code]} for code in CODES}


class Server:
    """What one application holds."""

    def __init__(self, shelf: Shelf, settings: Settings):
        self.shelf, self.settings = shelf, settings
        self.metrics, self.jobs = Metrics(), Jobs()
        on_cpu = shelf.encoder.device.type == "cpu"
        batch = settings.batch_size or (1 if on_cpu else ON_A_GPU)
        self.passes = Passes(settings.queue, batch, settings.max_pixels, self.metrics.passes.observe)
        self.draining = False

    def close(self) -> None:
        """Answers what is in work, then ends its threads."""
        self.draining = True
        self.passes.close()
        self.jobs.close()


def _here(request: Request) -> Server:
    return request.app.state.server


def _expected(if_match: Annotated[str | None, Header(pattern=r'^"?\d{1,9}"?$')] = None) -> int | None:
    return None if if_match is None else int(if_match.strip('"'))


Here = Annotated[Server, Depends(_here)]
Expected = Annotated[int | None, Depends(_expected)]  # the version that a client means to change


@contextmanager
def mendable() -> Iterator[None]:
    """What a client can cause and mend in here is an answer with the library's sentence."""
    try:
        yield
    except Unknown as error:
        raise HTTPException(404, str(error)) from None
    except Conflict as error:
        raise HTTPException(409, str(error)) from None
    except Full as error:
        raise HTTPException(503, str(error), {"retry-after": "1"}) from None
    except (ValueError, TypeError, RuntimeError, ImportError, FileNotFoundError) as error:
        raise HTTPException(422, str(error)) from None
    except OSError as error:
        raise HTTPException(507, f"the server cannot write it: {error.strerror or error}") from None


async def outcomes(request: Request, futures: list["Future[Any]"]) -> list[Any]:
    """What the passes make of the pictures; a client that leaves, or waits too long, takes its out of the queue."""
    found = asyncio.gather(*map(asyncio.wrap_future, futures))
    gone: asyncio.Future[Any] = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait([found, gone], return_when=asyncio.FIRST_COMPLETED)
        if not found.done():
            raise HTTPException(499, "the client has left")
        return found.result()
    except HTTPException:
        raise
    except Exception as error:
        raise HTTPException(500, "these pictures could not be computed; the server's log says why") from error
    finally:
        found.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def finished(server: Server, job: Job, wait: float) -> Any:
    """What the job gives, or after `wait` seconds, before its request has taken too long, the job itself (202)."""
    answer = asyncio.wrap_future(job.future)
    await asyncio.wait([answer], timeout=min(wait, IN_TIME * server.settings.timeout))
    if not answer.done():
        return JSONResponse(job.to_dict(), 202, {"location": f"/v1/jobs/{job.id}"})
    with mendable():
        return answer.result()
