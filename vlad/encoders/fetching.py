"""Weights that lie on a hub: from the local cache, fetched, or a sentence that says how to put them in place."""

import contextlib
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip

HUB_PATIENCE = 5.0  # seconds to wait for the hub before saying that it cannot be reached


class WeightsError(RuntimeError):
    """Weights that are neither on this machine nor to be fetched; the message says how to put them in place."""


def fetch(pretrained: dict[str, Any], what: str, instead: str) -> Path:
    """The weight file from the local cache, else from its hub, else WeightsError without minutes of retries."""
    from huggingface_hub import constants, try_to_load_from_cache

    repo, names = hub_files(pretrained)
    for candidate in names if repo else []:
        if isinstance(cached := try_to_load_from_cache(repo, candidate), str):
            return Path(cached)
    source = f"{constants.ENDPOINT}/{repo}" if repo else pretrained["url"]
    if not repo and (old := Path("~/.cache/clip", Path(source).name).expanduser()).is_file():
        return old
    try:
        _reach(source)
        return Path(open_clip.download_pretrained(pretrained))
    except Exception as error:  # whatever the hub's client raises, the way out for the user is the same
        raise WeightsError(
            f"{what} not on this machine and could not be fetched ({str(error).splitlines()[0][:150]}): "
            f"download {' or '.join(dict.fromkeys(names)) if repo else Path(source).name} from {source} "
            f"on a machine with a network and pass {instead}"
        ) from error


def hub_files(pretrained: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """("owner/name", names that the weights may have there, the best first) of an entry of open_clip's table."""
    repo, _, file = pretrained.get("hf_hub", "").rpartition("/")
    names = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    return repo, (*(f"{n[:-4]}.safetensors" for n in names if n.endswith((".bin", ".pth"))), *names)


def from_hub(repo: str, file: str, instead: str) -> Path:
    """A file of a repository of the Hugging Face hub, from the local cache or fetched; `instead` is the way out.

    Raises:
        ValueError: `repo` is no "owner/name".
        WeightsError: it is not here and cannot be fetched.
    """
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ValueError(f"'hf-hub:{repo}': expected 'hf-hub:<owner>/<repository>'")
    return fetch({"hf_hub": f"{repo}/{file}"}, f"{file} of {repo} is", instead)


def require_repository(repo: str, what: str) -> None:
    """WeightsError unless something of the repository is in the local cache or the hub answers."""
    from huggingface_hub import constants, try_to_load_from_cache

    if any(isinstance(try_to_load_from_cache(repo, file), str) for file in ("config.json", "tokenizer_config.json")):
        return
    try:
        _reach(f"{constants.ENDPOINT}/{repo}")
    except OSError as error:
        raise WeightsError(
            f"{what}, which is not on this machine and could not be fetched ({error}): run 'hf download {repo}' where "
            "there is a network, and copy the Hugging Face cache here"
        ) from error


def _reach(url: str) -> None:
    """One short question whether the host answers at all; the hub's own client would retry for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ConnectionError("HF_HUB_OFFLINE is set")
    with contextlib.suppress(
        urllib.error.HTTPError
    ):  # it answered; what it says of the file is the download's business
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=HUB_PATIENCE).close()
