"""The detectors of a server, by name: in memory to answer with, and each version whole in a folder."""

import logging
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import vlad
from vlad.detector import Detector, saving
from vlad.encoders import load as load_encoder
from vlad.encoders.dtypes import arithmetic
from vlad.encoders.encoder import Encoder
from vlad.files import hold
from vlad.images import Reader

logger = logging.getLogger(__name__)

NAME = r"[a-z0-9][a-z0-9_-]{0,63}"
FILE = re.compile(rf"({NAME})\.v([1-9][0-9]{{0,8}})\.safetensors")
KEPT = 3  # versions of each detector in the folder
UPLOADS, LOCK = ".uploads-", ".lock"  # what clients have sent, while it is worked on
TRIAL = np.tile(np.arange(0, 256, 4, dtype=np.uint8)[:, None, None], (1, 64, 3))  # a picture to try a detector with


class Unknown(LookupError):
    """There is no detector of this name."""


class Conflict(RuntimeError):
    """The detector is no longer the one that was to be changed."""


@dataclass(frozen=True)
class Held:
    """A detector at one version. It is exchanged, never changed: a request goes on with the one it began with."""

    name: str
    detector: Detector
    version: int
    path: Path


class Shelf:
    """Exchanges detectors as a whole: nobody is answered by half of one, and a kill leaves the old file or the new.

    Attributes:
        encoder: of the detectors that are made here.
        encoders: (digest, arithmetic) -> encoder. A file that a client sends must be of the weights of one of these:
            it can never name another. It is served in its own arithmetic, which its thresholds belong to.
        folder: `NAME.vVERSION.safetensors`, the last KEPT versions of each.
    """

    def __init__(self, folder: Path | None = None, encoder: str | Encoder = "tiny", **placed: Any):
        """`folder` None: one that ends with the process; `placed` are device and dtype of an encoder given by name."""
        self._ending = tempfile.TemporaryDirectory(prefix="vlad-shelf-") if folder is None else None
        self.folder = Path(self._ending.name) if self._ending else Path(folder or ".").expanduser().absolute()
        self.encoder = load_encoder(encoder, **placed)
        self.encoders = {_key(self.encoder): self.encoder}
        self._held: dict[str, Held] = {}
        self._writing = threading.RLock()
        self._clear_uploads()
        self.refresh()

    def all(self) -> list[Held]:
        """What stands here, by name."""
        return sorted(self._held.values(), key=lambda held: held.name)

    def get(self, name: str) -> Held:
        """Raises Unknown, which names those that are there."""
        held = self._held.get(name)
        if held is None:
            raise Unknown(f"there is no detector {name!r:.80}; there are: {', '.join(sorted(self._held)) or 'none'}")
        return held

    def put(self, name: str, detector: Detector, expected: int | None = None) -> Held:
        """The detector as the next version of this name, tried, on disk and then in its place.

        Raises:
            Conflict: the present version is not the `expected` one.
            ValueError, RuntimeError: it cannot score a picture, or scores only sets.
            OSError: it cannot be written; the old one stays.
        """
        check_name(name)
        try_out(detector)
        with self._writing:
            self._check(name, expected)
            version = max(self._versions(name), default=0) + 1
            path = self._file(name, version)
            detector.save(path)
            held = self._held[name] = Held(name, detector, version, path)
            for old in sorted(self._versions(name))[:-KEPT]:
                self._file(name, old).unlink(missing_ok=True)
        logger.info("%s is now version %d", name, version)
        return held

    def change(self, name: str, change: Callable[[Detector], object], expected: int | None = None) -> Held:
        """The next version: a copy of the present one after `change`."""
        with self._writing:
            self._check(name, expected)
            detector = self.get(name).detector.copy()
            change(detector)
            return self.put(name, detector)

    def upload(self, name: str, content: bytes, expected: int | None = None) -> Held:
        """The detector in these bytes of a `.safetensors` file as the next version.

        Raises:
            ValueError: no detector, or one of an encoder that is not here; and what `put` raises.
        """
        check_name(name)
        with self.uploads() as folder:
            path = folder / f"{name}.safetensors"
            path.write_bytes(content)
            try:
                detector = self._load(path, foreign=False)
            except (ValueError, TypeError, FileNotFoundError) as error:
                raise ValueError(str(error).replace(f"{folder}/", "")) from None
        return self.put(name, detector, expected)

    @contextmanager
    def uploads(self) -> Iterator[Path]:
        """A folder for what a client sends; gone with the block or, after a kill, at the next start."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=UPLOADS, dir=self.folder) as made:
            folder = Path(made)
            with (folder / LOCK).open("wb") as lock:
                hold(lock)
                yield folder

    def adopt(self, path: Path) -> Held:
        """A file of the operator's under its own name: a new version, unless it is the present one already.

        It may be of an encoder of its own, by the rules of `vlad.load`; clients may then send files of it, too.
        """
        name = re.sub(r"[^a-z0-9_-]+", "-", path.stem.lower()).strip("-_")[:64]
        detector = self._load(path.expanduser().absolute())
        held = self._held.get(name)
        return held if held is not None and _same(held.path, path) else self.put(name, detector)

    def remove(self, name: str, expected: int | None = None) -> None:
        """Takes it away with all its versions; Unknown, Conflict."""
        with self._writing:
            self.get(name)
            self._check(name, expected)
            del self._held[name]
            for version in sorted(self._versions(name)):  # the newest last: a kill never brings an old one back
                self._file(name, version).unlink(missing_ok=True)

    def refresh(self) -> None:
        """Takes up the newest readable version of each name in the folder, where it is newer than the one here."""
        with self._writing:
            names = {found[1] for path in self._files() if (found := FILE.fullmatch(path.name))}
            for name in names:
                now = self._held[name].version if name in self._held else 0
                for version in sorted((one for one in self._versions(name) if one > now), reverse=True):
                    if self._take(name, version):
                        break
            for name in set(self._held) - names:
                del self._held[name]

    def _take(self, name: str, version: int) -> bool:
        path = self._file(name, version)
        try:
            detector = self._load(path)
            try_out(detector)
        except (ValueError, TypeError, RuntimeError, ImportError, OSError) as error:
            logger.warning("left out: %s", error)
            return False
        self._held[name] = Held(name, detector, version, path)
        return True

    def _load(self, path: Path, foreign: bool = True) -> Detector:
        """The detector of a file; one of weights that are not here only where it may be `foreign`."""
        encoder = self._encoder_of(path)
        if encoder is None and not foreign:
            known = ", ".join(sorted({one.name for one in self.encoders.values()}))
            raise ValueError(f"{path.name} was made with an encoder that this server does not have; it has {known}")
        detector = vlad.load(path, encoder=encoder)
        self.encoders.setdefault(_key(detector.encoder), detector.encoder)
        return detector

    def _encoder_of(self, path: Path) -> Encoder | None:
        """The encoder here with a file's weights, in the file's arithmetic; None where the weights are not here."""
        header = saving.read(path)[0]
        like = next((one for (digest, _), one in self.encoders.items() if digest == header["encoder_digest"]), None)
        if like is None:
            return None
        how = arithmetic(header["dtype"], header["runtime"], header["calibrated"])
        if (like.digest, how) in self.encoders:
            return self.encoders[like.digest, how]
        device, runtime = str(like.device), header["runtime"]
        made = Encoder.load(like.name, device, header["dtype"], like.asked_activation, runtime)
        made.recall(header["calibrated"])
        return made

    def _clear_uploads(self) -> None:
        """Deletes what killed servers left; that of one that runs is locked."""
        for left in self.folder.glob(f"{UPLOADS}*"):
            with suppress(OSError), (left / LOCK).open("wb") as lock:
                if hold(lock):
                    shutil.rmtree(left, ignore_errors=True)

    def _check(self, name: str, expected: int | None) -> None:
        if expected is None:
            return
        now = self._held[name].version if name in self._held else 0
        if now != expected:
            raise Conflict(f"{name} is at version {now} and not {expected}; look at it again before you change it")

    def _versions(self, name: str) -> list[int]:
        found = (FILE.fullmatch(path.name) for path in self._files())
        return [int(one[2]) for one in found if one and one[1] == name]

    def _files(self) -> list[Path]:
        return list(self.folder.glob("*.safetensors")) if self.folder.is_dir() else []

    def _file(self, name: str, version: int) -> Path:
        return self.folder / f"{name}.v{version}.safetensors"


def check_name(name: str) -> None:
    """ValueError where it cannot be a detector's: names become files and addresses."""
    if not re.fullmatch(NAME, name):
        raise ValueError(
            f"a detector's name is {name!r:.80}; expected 1 to 64 small letters, digits, '-' and '_', such as 'bolt-m4'"
        )


def try_out(detector: Detector) -> None:
    """Scores one picture, which also warms it up; raises what a request would have met."""
    if detector.transductive:
        raise ValueError(
            f"{detector.method} scores a set of pictures against each other, and requests come one by one: fit it first"
        )
    detector.predict(TRIAL)


def limited(detector: Detector, max_pixels: int) -> Reader:
    """How its uploads are read, with this limit; they are files, which know the order of their channels."""
    return replace(detector.reader, max_pixels=max_pixels, channels="RGB")


def _key(encoder: Encoder) -> tuple[str, str]:
    return encoder.digest, encoder.arithmetic


def _same(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.expanduser().read_bytes()
