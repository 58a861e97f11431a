"""Routes that look at pictures: score and explain."""

import asyncio
import io
from collections.abc import Sequence
from typing import IO, Annotated, Any

from fastapi import APIRouter, File, Form, HTTPException, Query, Request, UploadFile

import vlad
from vlad.images import ImageError, count_pages
from vlad.serve.bodies import Explained, JobFacts, Maps, Pages, ScoreBody, Scored, Threshold
from vlad.serve.jobs import Job
from vlad.serve.passes import Given, Outcome
from vlad.serve.pictures import keep, label, line
from vlad.serve.server import PROBLEMS, Here, Server, finished, mendable, outcomes
from vlad.serve.shelf import Held

router = APIRouter(prefix="/v1", tags=["pictures"], responses=PROBLEMS)

Wait = Annotated[float, Query(ge=0, le=600, description="Seconds to wait for the end; then the answer is the job.")]
DRAWN_LARGE = 8  # pictures of one answer that has them at their full size


@router.post("/score", response_model=Scored)
async def score(
    request: Request,
    server: Here,
    detector: Annotated[str, Form()],
    files: Annotated[list[UploadFile], File(description="Pictures; their file names come back as `source`.")],
    maps: Annotated[Maps, Form()] = "none",
    threshold: Annotated[Threshold | None, Form()] = None,
    pages: Annotated[Pages, Form()] = None,
) -> dict[str, Any]:
    """Scores pictures. One that cannot be read becomes a line with `error`, and the rest goes on."""
    given = [Given(label(file.filename), file.file) for file in files]
    return await _scored(request, server, detector, given, maps, threshold, pages)


@router.post("/score/json", response_model=Scored)
async def score_json(request: Request, server: Here, body: ScoreBody) -> dict[str, Any]:
    """The same with the pictures in JSON, as base64."""
    given = [Given(label(one.name), io.BytesIO(one.data)) for one in body.pictures]
    return await _scored(request, server, body.detector, given, body.maps, body.threshold, body.pages)


@router.post("/explain", response_model=Explained, responses={202: {"model": JobFacts}})
async def explain(
    request: Request,
    server: Here,
    detector: Annotated[str, Form()],
    file: Annotated[UploadFile, File()],
    question: Annotated[str | None, Form(max_length=1000)] = None,
    wait: Wait = 30,
) -> Any:
    """Says in words what is wrong with one picture."""
    with mendable():
        held = server.shelf.get(detector)
        given = [Given(label(file.filename), file.file)]
        futures = server.passes.submit(held, given, lambda name, file, outcome: outcome[1])
    (found,) = await outcomes(request, futures)
    if isinstance(found, ImageError):
        raise HTTPException(422, str(found))

    def work(job: Job) -> dict[str, Any]:
        said = vlad.explain(
            found.picture, found, detector=held.detector, reasoner=server.settings.reasoner, question=question
        )
        whose = {"detector": held.name, "version": held.version}
        return {**whose, "explanation": said.to_dict(), "markdown": said.to_markdown()}

    with mendable():
        job = server.jobs.start("explain", held.name, work)
    return await finished(server, job, wait)


async def _scored(
    request: Request,
    server: Server,
    detector: str,
    given: Sequence[Given],
    maps: str,
    threshold: float | None,
    pages: str | None,
) -> dict[str, Any]:
    most = min(server.settings.max_pictures, DRAWN_LARGE) if maps == "png" else server.settings.max_pictures
    _check_number(given, most)
    with mendable():
        held = server.shelf.get(detector)
    if (pages or held.detector.reader.pages) == "all":
        given = await asyncio.to_thread(_each_page, given, server.settings.max_pixels)
        _check_number(given, most)

    def finish(name: str, file: IO[bytes], outcome: Outcome) -> dict[str, Any]:
        made = line(name, outcome, held, maps, threshold)
        if server.settings.keep is not None:
            file.seek(0)
            keep(server.settings.keep, held, file.read(), made)
        return made

    with mendable():
        futures = server.passes.submit(held, given, finish)
    lines = await outcomes(request, futures)
    _count(server, held, lines)
    return {"detector": held.name, "version": held.version, "results": lines}


def _check_number(given: Sequence[Given], most: int) -> None:
    if len(given) > most:
        raise HTTPException(413, f"{len(given)} pictures came; send {most} at most at once")


def _each_page(given: Sequence[Given], max_pixels: int) -> list[Given]:
    """The pages of files with several as pictures of their own, "scan.tif#2"; what cannot be read stays as it is."""
    found = []
    for name, file, _ in given:
        content = file.read()  # shared by its pages
        try:
            pages = count_pages(content, max_pixels)
        except ImageError:  # reading it says so in its turn
            pages = 1
        numbers = range(1, pages + 1) if pages > 1 else [None]
        found += [Given(f"{name}#{page}" if page else name, io.BytesIO(content), page) for page in numbers]
    return found


def _count(server: Server, held: Held, lines: list[dict[str, Any]]) -> None:
    for one in lines:
        server.metrics.pictures.labels(one["verdict"] or "unreadable").inc()
        if one["score"] is not None:
            server.metrics.scores.labels(held.name).observe(one["score"])
