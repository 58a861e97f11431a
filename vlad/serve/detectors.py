"""Routes that make, change and hand out detectors."""

import asyncio
import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, HTTPException, Request, UploadFile
from fastapi.responses import FileResponse

import vlad
from vlad.detector import Detector
from vlad.methods import method_class
from vlad.serve.bodies import Change, Describe, Facts, JobFacts, Words
from vlad.serve.jobs import Job
from vlad.serve.pictures import file_name, label
from vlad.serve.scoring import Wait
from vlad.serve.server import PROBLEMS, Expected, Here, Server, finished, mendable
from vlad.serve.shelf import Held, Shelf, Unknown, check_name

router = APIRouter(prefix="/v1/detectors", tags=["detectors"], responses=PROBLEMS)

BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
RAW = {"requestBody": {"required": True, "content": BYTES}}


def facts(held: Held) -> dict[str, Any]:
    """A detector in plain values."""
    detector = held.detector
    made = detector.calibration
    return {
        "name": held.name,
        "version": held.version,
        "method": detector.method,
        "encoder": detector.encoder.name,
        "digest": detector.encoder.digest,
        "words": detector.name,
        "references": len(detector.references),
        "threshold": detector.threshold,
        "map_threshold": detector.map_threshold,
        "ignore": detector.ignore if isinstance(detector.ignore, list) else None,
        "masked": bool(detector.framing.places.mask),
        "rate": made.rate if made and made.threshold == detector.threshold else None,
        "note": made.note if made else None,
        "normal_scores": list(made.scores) if made else [],
    }


@router.get("", response_model=list[Facts])
async def all_detectors(server: Here) -> list[dict[str, Any]]:
    """What there is, by name."""
    return [facts(held) for held in server.shelf.all()]


@router.get("/{name}", response_model=Facts)
async def one_detector(server: Here, name: str) -> dict[str, Any]:
    """One of them."""
    return facts(_held(server, name))


@router.post("/{name}", response_model=Facts)
async def describe(server: Here, name: str, body: Describe, expected: Expected) -> dict[str, Any]:
    """Makes a detector from words alone; it has no threshold, so its scores only sort."""

    def made() -> Held:
        prompts = body.prompts.model_dump(exclude_none=True) if body.prompts else None
        detector = vlad.load(body.method, body.words, encoder=server.shelf.encoder, prompts=prompts)
        return server.shelf.put(name, detector, expected)

    with mendable():
        check_name(name)
        return facts(await asyncio.to_thread(made))


@router.post("/{name}/fit", response_model=Facts, responses={202: {"model": JobFacts}})
async def fit(
    server: Here,
    name: str,
    files: Annotated[list[UploadFile], File(description="Good pictures.")],
    expected: Expected,
    words: Annotated[Words | None, Form()] = None,
    method: Annotated[str | None, Form()] = None,
    add: Annotated[bool, Form(description="To the good pictures it knows, not in their place.")] = False,
    wait: Wait = 30,
) -> Any:
    """Learns from good pictures, in place of any earlier ones; from five pictures on there is a threshold.

    The detector of this name goes on answering until the new one is whole.
    """
    if len(files) > server.settings.max_pictures:
        raise HTTPException(413, f"{len(files)} pictures came; send {server.settings.max_pictures} at most at once")
    with mendable():
        check_name(name)
        sent = ExitStack()  # closed by the job
        try:
            paths = await asyncio.to_thread(_written, sent.enter_context(server.shelf.uploads()), files)
            work = partial(_fitted, server, sent, paths, words, method, add, expected)
            job = server.jobs.start("fit", name, work)
        except BaseException:
            sent.close()
            raise
    return await finished(server, job, wait)


@router.put("/{name}", response_model=Facts, openapi_extra=RAW)
async def upload(server: Here, name: str, request: Request, expected: Expected) -> dict[str, Any]:
    """Takes the bytes of a detector's `.safetensors` file, of an encoder that this server has."""
    content = await request.body()
    with mendable():
        return facts(await asyncio.to_thread(server.shelf.upload, name, content, expected))


@router.patch("/{name}", response_model=Facts)
async def change(server: Here, name: str, body: Change, expected: Expected) -> dict[str, Any]:
    """Sets thresholds by hand (null: no verdict) and the places that do not count."""
    given = body.model_dump(exclude_unset=True)
    if "ignore" in given:
        given["ignore"] = given["ignore"] or None

    def changed(detector: Detector) -> None:
        for key, value in given.items():
            setattr(detector, key, value)

    with mendable():
        return facts(await asyncio.to_thread(server.shelf.change, name, changed, expected))


@router.delete("/{name}", status_code=204)
async def delete(server: Here, name: str, expected: Expected) -> None:
    """Takes it away for good, with all its versions."""
    with mendable():
        await asyncio.to_thread(server.shelf.remove, name, expected)


@router.get("/{name}/file", response_class=FileResponse, responses={200: {"content": BYTES}})
async def download(server: Here, name: str) -> FileResponse:
    """Its file, for `vlad.load` and every verb of `vlad`."""
    held = _held(server, name)
    return FileResponse(held.path, media_type="application/octet-stream", filename=f"{name}.safetensors")


def _held(server: Server, name: str) -> Held:
    with mendable():
        return server.shelf.get(name)


def _written(folder: Path, files: list[UploadFile]) -> list[Path]:
    """Uploads as files of ours, so that a fit reads them a few at a time."""
    paths = []
    for number, file in enumerate(files):
        path = folder / file_name(label(file.filename), number)
        with path.open("wb") as copy:
            shutil.copyfileobj(file.file, copy)
        paths.append(path)
    return paths


def _fitted(
    server: Server,
    sent: ExitStack,
    paths: list[Path],
    words: str | None,
    method: str | None,
    add: bool,
    expected: int | None,
    job: Job,
) -> dict[str, Any]:
    with sent:
        try:
            detector = _begun(server.shelf, job.detector, words, method)
            detector.report_progress(lambda *far: job.progress(*far))  # no method: it is copied with its detector
            (detector.add if add else detector.fit)(paths)
            detector.report_progress(None)
            return facts(server.shelf.put(job.detector, detector, expected))
        except ValueError as error:
            raise ValueError(str(error).replace(f"{paths[0].parent}/", "")) from None


def _begun(shelf: Shelf, name: str, words: str | None, method: str | None) -> Detector:
    """What is to learn: a copy of the detector that is there, or a new one where there is none or of another method."""
    try:
        now = shelf.get(name).detector.copy()
    except Unknown:
        method = method or "patch_text"
        if words is None and method_class(method).words == "required":
            raise ValueError(
                f"{method} must know what the pictures show; say it in words, such as 'metal bolt'"
            ) from None
        return vlad.load(method, words, encoder=shelf.encoder)
    if method is not None and method != now.method:
        return vlad.load(method, words or now.name, encoder=shelf.encoder)
    return now.describe(words) if words is not None and words != now.name else now
