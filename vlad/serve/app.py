"""The application: routes, guard and page put together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as AnyHTTPException

from vlad.serve import detectors, scoring
from vlad.serve.bodies import JobFacts, ServerFacts
from vlad.serve.guard import Guard
from vlad.serve.metrics import CONTENT_TYPE
from vlad.serve.server import PROBLEMS, Here, Server
from vlad.serve.settings import Settings
from vlad.serve.shelf import Shelf
from vlad.version import __version__

PAGE = Path(__file__).parent / "page"

router = APIRouter(responses=PROBLEMS)


def application(shelf: Shelf, settings: Settings) -> FastAPI:
    """See `vlad.serve.make_app`."""
    server = Server(shelf, settings)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.close)

    app = FastAPI(title="VLAD", version=__version__, docs_url=None, redoc_url=None, lifespan=life)
    app.state.server = server
    for part in (scoring.router, detectors.router, router):
        app.include_router(part)
    app.mount("/page", StaticFiles(directory=PAGE))
    app.add_exception_handler(AnyHTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_middleware(Guard, settings=settings, metrics=server.metrics, check_room=server.passes.check_room)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["authorization", "content-type", "if-match"],
        )
    return app


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """For people."""
    return FileResponse(PAGE / "index.html")


@router.get("/v1/server", response_model=ServerFacts, tags=["server"])
async def about(server: Here) -> dict[str, Any]:
    """What this server is and allows."""
    settings = server.settings
    limits = {key: getattr(settings, key) for key in ("read_only", "max_body", "max_pictures", "max_pixels")}
    return {"vlad": __version__, "encoder": server.shelf.encoder.name, **limits}


@router.get("/v1/jobs", response_model=list[JobFacts], tags=["jobs"])
async def all_jobs(server: Here) -> list[dict[str, Any]]:
    """The last hundred, the newest first."""
    return [job.to_dict() for job in server.jobs.all()]


@router.get("/v1/jobs/{id}", response_model=JobFacts, tags=["jobs"])
async def one_job(server: Here, id: str) -> dict[str, Any]:
    """How far it is, and what came of it."""
    job = server.jobs.get(id)
    if job is None:
        raise HTTPException(404, "there is no such job; the last hundred are remembered, until the server ends")
    return job.to_dict()


@router.get("/healthz", tags=["server"])
async def alive() -> dict[str, str]:
    """It runs."""
    return {"status": "alive"}


@router.get("/readyz", tags=["server"])
async def ready(server: Here) -> dict[str, str]:
    """It takes pictures; 503 while it ends."""
    if server.draining:
        raise HTTPException(503, "the server is ending")
    return {"status": "ready"}


@router.get("/metrics", response_class=Response, tags=["server"])
async def metrics(server: Here) -> Response:
    """For Prometheus."""
    return Response(server.metrics.text(server.shelf, server.passes.count), media_type=CONTENT_TYPE)


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AnyHTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _malformed(_: Request, error: Exception) -> JSONResponse:
    """Where and what, without the client's input."""
    assert isinstance(error, RequestValidationError)
    found = [f"{'.'.join(map(str, one['loc'][1:])) or one['loc'][0]}: {one['msg']}" for one in error.errors()]
    return JSONResponse({"error": "; ".join(found)[:1000]}, 422)
