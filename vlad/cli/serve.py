"""`vlad serve`: the page and the API, at an address of this machine."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlad.cli.shared import Device, Dtype, Encoder, guarded

if TYPE_CHECKING:
    from fastapi import FastAPI

    from vlad.serve import Settings

KEY = "VLAD_SERVE_KEY"


def serve(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[DETECTOR]...", help="Saved detectors to put on the shelf.")
    ] = None,
    detectors: Annotated[
        Path, typer.Option(envvar="VLAD_SERVE_DETECTORS", help="Folder where detectors are kept.")
    ] = Path("detectors"),
    encoder: Encoder = None,
    host: Annotated[str, typer.Option(envvar="VLAD_SERVE_HOST", help="Any but 127.0.0.1 needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="VLAD_SERVE_PORT", min=0, max=65535)] = 8000,
    key_file: Annotated[
        Path | None, typer.Option(envvar="VLAD_SERVE_KEY_FILE", help=f"Its key; or in the environment as {KEY}.")
    ] = None,
    cors: Annotated[list[str] | None, typer.Option(help="Address of another page that may call it.")] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Detectors are not changed through it.")] = False,
    keep: Annotated[Path | None, typer.Option(help="Keep scored pictures and their lines in this folder.")] = None,
    max_body: Annotated[int, typer.Option(min=1, help="Largest request, in MB.")] = 32,
    max_pixels: Annotated[int, typer.Option(min=1, help="Largest picture, in millions of pixels.")] = 40,
    max_pictures: Annotated[int, typer.Option(min=1, help="Pictures of one request.")] = 64,
    queue: Annotated[int, typer.Option(min=1, help="Pictures that may wait.")] = 64,
    batch_size: Annotated[int | None, typer.Option(min=1, help="[default: 1 on a CPU, 8 on a GPU]")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for one request.")] = 60,
    reasoner: Annotated[str, typer.Option(help="Who explains, as in `vlad explain`.")] = "clip",
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Serve a page for people and an API for software, on this machine alone unless told otherwise.

    Example: vlad serve --detectors line1/
    """

    def work() -> int:
        from vlad.serve import Settings, check_installed, make_app

        check_installed()
        settings = Settings(
            host=host,
            key=_key(key_file),
            origins=tuple(cors or ()),
            read_only=read_only,
            max_body=max_body * 10**6,
            max_pixels=max_pixels * 10**6,
            max_pictures=max_pictures,
            queue=queue,
            batch_size=batch_size,
            timeout=timeout,
            reasoner=reasoner,
            keep=keep,
        )
        from vlad.serve.shelf import Shelf

        shelf = Shelf(detectors, encoder or "tiny", device=device, dtype=dtype)
        for file in files or ():
            shelf.adopt(file)
        kept = f"{len(shelf.all())} detectors from {shelf.folder}"
        run(make_app(shelf, settings), settings, port, kept)
        return 0

    guarded(work)


def run(app: "FastAPI", settings: "Settings", port: int, kept: str) -> None:
    """Until it is told to end (Ctrl+C or SIGTERM); requests in flight are answered first."""
    import uvicorn

    class Announced(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                where = self.servers[0].sockets[0].getsockname()[1]
                name = f"[{settings.host}]" if ":" in settings.host else settings.host
                print(f"http://{name}:{where}  {kept}; Ctrl+C ends it", flush=True)

        def handle_exit(self, sig: int, frame: Any) -> None:
            app.state.server.draining = True
            super().handle_exit(sig, frame)

    quiet: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
    config = uvicorn.Config(app, settings.host, port, timeout_graceful_shutdown=30, **quiet)
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again once it is through: an end, no failure
    with suppress(KeyboardInterrupt):  # the same of Ctrl+C
        Announced(config).run()


def _key(file: Path | None) -> str | None:
    if file is not None:
        return file.expanduser().read_text(encoding="utf-8").strip()
    return os.environ.get(KEY) or None
