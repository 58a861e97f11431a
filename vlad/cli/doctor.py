"""`vlad doctor`: what this machine has, what it lacks, and the remedy of each."""

import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import util
from pathlib import Path
from typing import Annotated, Literal

import typer

from vlad.cli.shared import AsJson, guarded
from vlad.version import __version__

DISTRIBUTION = "vlad-ad"
MODULES = {"elpv-dataset": "elpv_dataset", "faiss-cpu": "faiss", "pillow-heif": "pillow_heif"}  # imported otherwise
ADDS = {  # what an extra is for; those of developers are not named
    "anomalib": "methods trained on many pictures, to compare with: vlad eval with-anomalib",
    "data": "two public data sets as packages: vlad eval textile-elpv",
    "export": "a detector as an ONNX file that runs without torch: vlad export",
    "faiss": "a faster search in memories of very many rows: search='faiss'",
    "images": "HEIC photos and rare TIFF codecs",
    "openvino": "faster towers on a CPU: runtime='openvino'",
    "parquet": "tables in parquet files, pictures and runs in object stores",
    "ray": "more than one machine: vlad score --ray, vlad eval --ray",
    "serve": "an address for software and a page for people: vlad serve",
    "video": "clips and cameras: vlad score clip.mp4, vlad watch camera:0",
}
ROOM = 2 * 2**30  # bytes: a CLIP of the larger kind fits


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, whether it is well, and what to do."""

    what: str
    state: Literal["ok", "note", "wrong"]
    says: str
    remedy: str = ""


def doctor(
    as_json: AsJson = False,
    network: Annotated[
        bool, typer.Option("--network", help="Ask the Hugging Face hub too whether it answers.")
    ] = False,
) -> None:
    """Say what this machine has and lacks for VLAD, with a remedy for each; exit code 1 where something is wrong.

    Example: vlad doctor
    """

    def work() -> int:
        found = [*_machine(), *_extras(), *_caches(), *_weights(), *(_hub() if network else ())]
        if as_json:
            print(json.dumps([asdict(one) for one in found]))
        for one in [] if as_json else found:
            print(f"{one.state:5}  {one.what}: {one.says}{'; ' + one.remedy if one.remedy else ''}")
        return int(any(one.state == "wrong" for one in found))

    guarded(work)


def _machine() -> Iterator[Finding]:
    yield Finding("vlad", "ok", f"{__version__} in {Path(__file__).parents[1]}")
    yield Finding("python", "ok", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    try:
        import torch
    except Exception as error:  # a broken installation raises whatever its libraries do
        yield Finding("torch", "wrong", f"does not import ({error})", "pip install --force-reinstall torch")
        return
    from vlad.encoders.dtypes import checked_device, fastest_safe_dtype

    device = checked_device(None)
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    yield Finding("torch", "ok", f"{torch.__version__}, computes on {device} ({named})")
    if device.type == "cpu" and shutil.which("nvidia-smi"):
        yield Finding(
            "GPU", "note", "this machine has one, but torch does not see it", "install the torch of pytorch.org"
        )
    fast = str(fastest_safe_dtype(device)).removeprefix("torch.")
    says = "native, used by default" if fast == "bfloat16" else "not native, float32 is used"
    yield Finding("bfloat16", "ok", says)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    remedy = f"unset OMP_NUM_THREADS, or set it to {cores}" if threads < cores else ""
    yield Finding("threads", "note" if remedy else "ok", f"{threads} of {cores} cores", remedy)


def _extras() -> Iterator[Finding]:
    for extra, adds in ADDS.items():
        missing = [
            name for name in _packages(extra) if util.find_spec(MODULES.get(name, name.replace("-", "_"))) is None
        ]
        if missing:
            yield Finding(
                extra,
                "note",
                f"{', '.join(missing)} not installed; adds {adds}",
                f"pip install '{DISTRIBUTION}[{extra}]'",
            )
        else:
            yield Finding(extra, "ok", adds)


def _packages(extra: str) -> list[str]:
    """The distributions that an extra asks for."""
    from importlib import metadata  # a fifth of the start of every other command

    asked = [line for line in metadata.requires(DISTRIBUTION) or [] if re.search(rf"extra == ['\"]{extra}['\"]", line)]
    return [re.split(r"[\s<>=!~;\[]", line, maxsplit=1)[0] for line in asked]


def _caches() -> Iterator[Finding]:
    import tempfile

    from huggingface_hub import constants

    from vlad.files import cache_dir

    for what, variable, place in (
        ("cache", "VLAD_CACHE", cache_dir),
        ("weights", "HF_HOME", lambda: Path(constants.HF_HUB_CACHE)),
    ):
        try:
            folder = place()
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            yield Finding(what, "wrong", f"cannot be written ({error})", f"set {variable} to a folder that can")
            continue
        held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
        free = shutil.disk_usage(folder).free
        remedy = f"make room, or set {variable} to a folder on a larger disk" if free < ROOM else ""
        says = f"{folder}, {held / 1e6:,.0f} MB, {free / 1e9:,.0f} GB free"
        yield Finding(what, "note" if remedy else "ok", says, remedy)


def _weights() -> Iterator[Finding]:
    import open_clip
    from huggingface_hub import try_to_load_from_cache

    from vlad.encoders import dino, encoders, fetching

    def here(repo: str, names: tuple[str, ...]) -> bool:
        return any(isinstance(try_to_load_from_cache(repo, name), str) for name in names)

    tags = [name for name in encoders() if name != "tiny"]
    at_hand = [
        name for name in tags if here(*fetching.hub_files(open_clip.pretrained.get_pretrained_cfg(*name.split("/"))))
    ]
    at_hand += [f"dino:{size}" for size, repo in dino.REPOSITORIES.items() if here(repo, ("model.safetensors",))]
    if at_hand:
        yield Finding("encoders", "ok", f"tiny, {', '.join(at_hand)}")
    else:
        says = "tiny alone, a demonstration encoder; a CLIP trained on photographs finds far more from words"
        yield Finding("encoders", "note", says, "vlad fetch ViT-B-16-plus-240/laion400m_e32")


def _hub() -> Iterator[Finding]:
    from huggingface_hub import constants

    from vlad.hub.sources import reachable

    if said := reachable(constants.ENDPOINT):
        yield Finding("hub", "wrong", said, "fetch elsewhere, and give vlad fetch NAME --from FOLDER")
    else:
        yield Finding("hub", "ok", f"{constants.ENDPOINT} answers")
