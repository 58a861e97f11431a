"""Where needed files come from: the Hugging Face hub, an address, or a mirror (a folder, or a server on the intranet).

Whatever the source, a file ends where the loaders look for it: of a repository in the hub's own cache, of an address
below VLAD's (`Needed.kept`). Each failure is one sentence with its remedy.
"""

import errno
import hashlib
import os
import shutil
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from vlad.encoders.fetching import WeightsError
from vlad.files import cache_dir
from vlad.hub.download import BLOCK, Progress, download, size_of
from vlad.hub.needed import Needed

PATIENCE = 10.0  # seconds for an answer
PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
SERVERS = ("http://", "https://")


@dataclass(frozen=True)
class Found:
    """A needed file at its source.

    Attributes:
        needed: what it is for.
        name: which of the needed names it has.
        place: where it comes from, for people.
        size: bytes, None where the source does not say.
        sha256: of its bytes, "" where nobody says.
        licence: "" where nobody says.
        here: where it already lies on this machine.
    """

    needed: Needed
    name: str
    place: str
    size: int | None = None
    sha256: str = ""
    licence: str = ""
    here: Path | None = None


def find(needed: Needed, mirror: str = "") -> Found | None:
    """The file on this machine, else at its source; None where it is optional and not there.

    Args:
        needed: the file.
        mirror: a folder or an http address that has the file in place of its own source: as <owner>/<name>/<file> of a
            repository, else under its address without "https://".

    Raises:
        vlad.WeightsError: it is not there, or the source does not answer.
    """
    if found := here(needed):
        return found
    found = _in_mirror(needed, mirror) if mirror else _at_source(needed)
    if found is None and not needed.optional:
        where = mirror or f"{constants.ENDPOINT}/{needed.repo}"
        names = [_below(needed, name) if mirror else name for name in needed.names]
        raise WeightsError(f"{where} has no {' or '.join(names)}")
    return found


def bring(found: Found, mirror: str = "", progress: Progress | None = None) -> Path:
    """The file, fetched and in its place; one that was cut goes on where it stopped.

    Args:
        found: by `find`, with the same mirror.
        mirror: as in `find`.
        progress: called with (what, bytes done, bytes in all); the hub's own client shows its own.

    Raises:
        vlad.WeightsError: the source failed, or what came is not what it should be; nothing of it is kept then.
        OSError: there is no room for it.
    """
    if found.here is not None:
        return found.here
    _check_room(found, Path(constants.HF_HUB_CACHE) if found.needed.repo else cache_dir())
    with sentences(found.place):
        if mirror or not found.needed.repo:
            return _copied(found, _in_hub_cache(found) if found.needed.repo else found.needed.kept, progress)
        path = Path(huggingface_hub.hf_hub_download(found.needed.repo, found.name, etag_timeout=PATIENCE))
    _check_digest(path.resolve(), found)
    return path


def reachable(address: str) -> str:
    """Why a server does not answer; empty where it does, with whatever status."""
    try:
        size_of(address, PATIENCE)
    except urllib.error.HTTPError:
        return ""
    except OSError as error:
        return f"{address} {_silence(error).partition('; ')[0]}"
    return ""


def here(needed: Needed) -> Found | None:
    """The file where it lies on this machine, None where it does not."""
    if not needed.repo:
        return Found(needed, needed.names[0], needed.address, here=needed.kept) if needed.kept.is_file() else None
    for name in needed.names:
        if isinstance(cached := try_to_load_from_cache(needed.repo, name), str):
            return Found(needed, name, needed.repo, Path(cached).stat().st_size, here=Path(cached))
    return None


def _at_source(needed: Needed) -> Found | None:
    if not needed.repo:
        with sentences(needed.address):
            size = size_of(needed.address, PATIENCE)
        return Found(needed, needed.names[0], needed.address, size, needed.sha256, needed.licence)
    with sentences(f"{constants.ENDPOINT}/{needed.repo}"):
        try:
            told = _told(needed.repo, constants.ENDPOINT)
        except RepositoryNotFoundError:
            if needed.optional:
                return None
            raise
    files = {file.rfilename: file for file in told.siblings or []}
    for name in needed.names:
        if file := files.get(name):
            digest = needed.sha256 or (file.lfs.sha256 if file.lfs else "")
            licence = needed.licence or _licence(told)
            return Found(needed, name, f"{constants.ENDPOINT}/{needed.repo}", file.size, digest, licence)
    return None


@lru_cache
def _told(repo: str, endpoint: str) -> huggingface_hub.ModelInfo:
    """What the hub says of a repository, asked once."""
    return huggingface_hub.HfApi(endpoint).model_info(repo, files_metadata=True, timeout=PATIENCE)


def _licence(told: huggingface_hub.ModelInfo) -> str:
    return str(told.card_data.to_dict().get("license") or "") if told.card_data else ""


def _in_mirror(needed: Needed, mirror: str) -> Found | None:
    for name in needed.names:
        path = _below(needed, name)
        if mirror.startswith(SERVERS):
            place = f"{mirror.rstrip('/')}/{path}"
            there, size = _asked(place)
        else:
            file = Path(mirror).expanduser() / path
            place, there = str(file), file.is_file()
            size = file.stat().st_size if there else None
        if there:
            return Found(needed, name, place, size, needed.sha256, needed.licence)
    return None


def _below(needed: Needed, name: str) -> str:
    """Where a mirror has the file; never under its bare name, as most are called alike."""
    return f"{needed.repo}/{name}" if needed.repo else needed.address.partition("://")[2]


def _asked(address: str) -> tuple[bool, int | None]:
    """(whether the file is there, its bytes)."""
    with sentences(address):
        try:
            return True, size_of(address, PATIENCE)
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
    return False, None


def _copied(found: Found, target: Path, progress: Progress | None) -> Path:
    """The file at its place, in pieces beside the target until it is whole and its digest is right."""
    part = target.with_name(f"{target.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    if found.place.startswith(SERVERS):
        download(found.place, part, PATIENCE, progress)
    else:
        shutil.copyfile(found.place, part)
    _check_digest(part, found)
    os.replace(part, target)
    return target


def _in_hub_cache(found: Found) -> Path:
    """Where the hub's own cache would have the file, so that all that reads it finds it without a network."""
    root = Path(constants.HF_HUB_CACHE, f"models--{found.needed.repo.replace('/', '--')}")
    main = root / "refs" / "main"
    if not main.is_file():  # a mirror knows no commit; the name stands for one
        main.parent.mkdir(parents=True, exist_ok=True)
        main.write_text(hashlib.sha256(found.needed.repo.encode()).hexdigest()[:40])
    return root / "snapshots" / main.read_text().strip() / found.name


def _check_digest(file: Path, found: Found) -> None:
    if not found.sha256:
        return
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    if digest.hexdigest() != found.sha256:
        file.unlink()
        raise WeightsError(
            f"{found.name} from {found.place} is not what was published: its sha256 is {digest.hexdigest()[:12]}..., "
            f"expected {found.sha256[:12]}...; it was deleted, so fetch it again, or look who changed it"
        )


def _check_room(found: Found, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if found.size and found.size > free:
        raise OSError(
            errno.ENOSPC,
            f"{found.name} needs {found.size / 2**30:.1f} GiB in {folder}, where {free / 2**30:.1f} GiB are free; make "
            "room there, or set HF_HOME (the hub's files) or VLAD_CACHE (all others) to a folder on a larger disk",
        )


@contextmanager
def sentences(place: str) -> Iterator[None]:
    """Turns what a source's client raises into one sentence with the remedy."""
    try:
        yield
    except WeightsError:
        raise
    except OfflineModeIsEnabled as error:
        said = "was not asked, as HF_HUB_OFFLINE is set: unset it, or give --from FOLDER"
        raise WeightsError(f"{place} {said}") from error
    except urllib.error.HTTPError as error:
        raise WeightsError(f"{place} {_refusal(error.code, error.headers.get('Retry-After'))}") from error
    except Exception as error:  # the hub's client has changed its transport, and so its errors, with each version
        answer = getattr(error, "response", None)
        if isinstance(error, HfHubHTTPError) and answer is not None:
            raise WeightsError(f"{place} {_refusal(answer.status_code, answer.headers.get('retry-after'))}") from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise WeightsError(f"{place} {_silence(error)}") from error


def _refusal(status: int, wait: str | None) -> str:
    if status in (401, 403):
        return (
            f"is not there, or asks who you are ({status}): accept its terms on its page, then run 'hf auth login' or "
            "set HF_TOKEN"
        )
    if status == 404:
        return "is not there (404): it may have been renamed; whoever has the file can give it with --from FOLDER"
    if status == 429:
        return f"answers too many questions (429): wait {wait + ' s' if wait else 'some minutes'}, then say it again"
    return f"answered {status}: say it again later; what has come is kept, and the download goes on from there"


def _silence(error: Exception) -> str:
    proxies = [name for name in PROXIES if os.environ.get(name)]
    through = f" through the proxy that {proxies[0]} names" if proxies else ""
    said = (str(error).splitlines() or [""])[0][:120] or type(error).__name__
    return (
        f"cannot be reached{through}, or the connection broke ({said}); say it again, the download goes on from there; "
        "without a network give --from FOLDER with files fetched elsewhere"
    )
