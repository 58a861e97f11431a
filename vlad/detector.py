"""What every method shares: words in, pictures in, predictions out, one small file to keep it.

A method subclasses `Detector` and writes `forward`; reading pictures, batching, words, thresholds and files are here.
"""

import inspect
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad import __version__
from vlad.encoder import Encoder
from vlad.images import ImageError, read
from vlad.methods import METHODS, method_class
from vlad.prediction import Prediction
from vlad.prompts import PromptPack, check_name, phrase_prototypes, prototypes

logger = logging.getLogger(__name__)


class Detector(nn.Module):
    """One method looking for one kind of thing with one (shared) encoder. Build it with `vlad.load`.

    A method's class states what differs in these four, and writes `forward`:

    Attributes:
        needs_text: False for methods that look at pictures alone.
        default_prompts: name of the prompt pack the paper uses.
        scale: (low, high), the fixed colour range of its maps.
        region_level: where its maps are cut into regions when nothing was calibrated.
    """

    needs_text: ClassVar[bool] = True
    default_prompts: ClassVar[str] = "winclip"
    scale: ClassVar[tuple[float, float]] = (0.0, 1.0)
    region_level: ClassVar[float] = 0.5

    encoder: Encoder
    resolution: int
    prototypes: Tensor  # None until described
    phrase_embeddings: Tensor

    def __init__(self, encoder: Encoder, *, resolution: int | None = None):
        super().__init__()
        # past nn.Module's books: the encoder is shared and frozen, never moved, trained or saved with one detector
        object.__setattr__(self, "encoder", encoder)
        self.resolution = encoder.resolution if resolution is None else resolution
        self.options: dict[str, Any] = {"resolution": self.resolution}
        self.pack: PromptPack | None = None
        self.name: str | None = None
        self.phrases: list[str] = []
        self.threshold: float | None = None
        self.map_threshold: float | None = None
        self.register_buffer("prototypes", None)  # [2, D]
        self.register_buffer("phrase_embeddings", None)  # [phrases, D] unit

    @property
    def method(self) -> str:
        """The method's name, which is its file's name."""
        return type(self).__module__.rpartition(".")[2]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, encoder={self.encoder.name!r}, threshold={self.threshold})"

    # Words

    def describe(self, name: str, prompts: Any = None) -> Self:
        """Changes what the words look for; the encoder stays. Returns self.

        Args:
            name: what the pictures show, in plain words ("metal bolt"); goes into the prompts exactly as given.
            prompts: a prompt pack, its name, its .toml file, or a dict of its lists; None keeps the present one.

        Raises:
            ValueError, TypeError, FileNotFoundError: an empty name or a wrong pack; the detector is then unchanged.
        """
        if not self.needs_text:
            raise TypeError(f"{self.method} looks at pictures alone and takes no name")
        check_name(name)
        pack = PromptPack.load(prompts) if prompts is not None else self.pack or PromptPack.load(self.default_prompts)
        self.prototypes = prototypes(self.encoder, pack, name)
        self.phrases, self.phrase_embeddings = phrase_prototypes(self.encoder, pack, name)
        self.pack, self.name = pack, name
        return self

    # Pictures

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(score [B], finished map [B, h, w] or None, image embedding [B, D] or None) of pixels [B, 3, S, S].

        The embedding is what `Prediction.phrases` compares with the words; a method without words returns None.
        """
        raise NotImplementedError  # each method's own

    def predict(self, images: Any, *, batch_size: int = 8) -> Any:
        """One picture in, one Prediction out; a sequence in, a list out in the same order.

        Pictures are paths, PIL images, arrays [H, W(, 3|4)] or tensors [3, H, W]; see `vlad.images.read`.

        Raises:
            vlad.ImageError: a picture cannot be read; the message names it.
            RuntimeError: a text method has no name yet.
        """
        if isinstance(images, str | os.PathLike) or not (
            isinstance(images, Iterable) and getattr(images, "ndim", 4) > 3
        ):
            return next(self.stream([images], batch_size=1))
        return list(self.stream(images, batch_size=batch_size))

    def stream(self, images: Iterable[Any], *, batch_size: int = 8, on_error: str = "raise") -> Iterator[Any]:
        """Predictions of any iterable of pictures, in order, in constant memory; the next batch is read meanwhile.

        Args:
            images: what `predict` takes, as many as you like.
            batch_size: pictures per pass.
            on_error: "raise" at a picture that cannot be read, or "yield" the vlad.ImageError in its place and go on.

        Raises:
            ValueError: batch_size or on_error is wrong.
            RuntimeError: a text method has no name yet.
        """
        if on_error not in ("raise", "yield"):
            raise ValueError(f"on_error is {on_error!r}; expected 'raise' or 'yield'")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more")
        if self.needs_text and self.prototypes is None:
            raise RuntimeError(
                f"{self.method} does not know what to look for: call describe('metal bolt') first, "
                "or give vlad.load a name"
            )
        return self._stream(images, batch_size, on_error)

    def _stream(self, images: Iterable[Any], batch_size: int, on_error: str) -> Iterator[Any]:
        pending = iter(images)
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(_read_all, list(islice(pending, batch_size)))
            while batch := ahead.result():
                ahead = reader.submit(_read_all, list(islice(pending, batch_size)))
                for result in self._score(batch):
                    if isinstance(result, ImageError) and on_error == "raise":
                        raise result
                    yield result

    def _score(self, batch: Sequence[tuple[Any, np.ndarray | ImageError]]) -> Iterator[Prediction | ImageError]:
        good = [picture for _, picture in batch if not isinstance(picture, ImageError)]
        results = iter(self._forward(good)) if good else iter(())
        for image, picture in batch:
            if isinstance(picture, ImageError):
                yield picture
                continue
            score, amap, cosines = next(results)
            is_path = isinstance(image, str | os.PathLike)
            yield Prediction(
                score=score,
                map=amap,
                size=(picture.shape[0], picture.shape[1]),
                threshold=self.threshold,
                map_threshold=self.map_threshold,
                name=self.name,
                source=os.fspath(image) if is_path else None,
                phrases=cosines,
                scale=self.scale,
                region_level=self.region_level,
                picture=None if is_path else picture,
            )

    @torch.no_grad()
    def _forward(self, pictures: Sequence[np.ndarray]) -> list[tuple[float, np.ndarray | None, dict[str, float]]]:
        scores, maps, images = self.forward(self.encoder.pixels(pictures, self.resolution))
        cosines: list[dict[str, float]] = [{}] * len(pictures)
        if images is not None and self.phrase_embeddings is not None:
            rows = F.normalize(images.float(), dim=-1) @ self.phrase_embeddings.T  # [B, phrases]
            cosines = [dict(zip(self.phrases, row, strict=True)) for row in rows.tolist()]
        arrays = [None] * len(pictures) if maps is None else list(maps.float().cpu().numpy())
        return list(zip(scores.tolist(), arrays, cosines, strict=True))

    # Files

    def save(self, path: str | os.PathLike[str]) -> None:
        """One .safetensors file: prototypes and what was learnt as tensors, all settings as JSON in its header.

        The encoder is named in it with its digest, not contained. Written beside and renamed, so it is whole or absent.
        """
        from safetensors.torch import save_file

        path = Path(path)
        if path.suffix != ".safetensors":
            raise ValueError(f"a detector is saved as .safetensors; got {path.name!r}")
        header = {
            "vlad": __version__,
            "method": self.method,
            "encoder": self.encoder.name,
            "encoder_digest": self.encoder.digest,
            "dtype": str(self.encoder.dtype).removeprefix("torch."),
            "options": self.options,
            "name": self.name,
            "prompts": self.pack.to_dict() if self.pack else None,
            "prompts_name": self.pack.name if self.pack else None,
            "phrases": self.phrases,
            "threshold": self.threshold,
            "map_threshold": self.map_threshold,
        }
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
        save_file(tensors, beside, metadata={"vlad": json.dumps(header)})
        os.replace(beside, path)

    def _restore(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        for key, value in tensors.items():
            self._buffers[key] = value.to(self.encoder.device)
        self.name, self.phrases = header["name"], header["phrases"]
        self.threshold, self.map_threshold = header["threshold"], header["map_threshold"]
        if header["prompts"]:
            self.pack = replace(PromptPack.load(header["prompts"]), name=header["prompts_name"])


def load(
    method_or_file: str | os.PathLike[str] = "patch_text",
    name: str | None = None,
    *,
    encoder: str | Encoder | None = None,
    prompts: Any = None,
    adapter: str | os.PathLike[str] | None = None,
    device: str | None = None,
    dtype: Any = None,
    **options: Any,
) -> Detector:
    """A detector: of a method by its name, or one that `save` wrote.

    Args:
        method_or_file: a name of `vlad.methods()`, or a .safetensors file.
        name: what the pictures show ("metal bolt"); without it a text method loads and waits for `describe`.
        encoder: a name of `vlad.encoders()` (see `Encoder.load` for all forms) or an Encoder to share; None is "tiny"
            for a method and the recorded encoder for a file.
        prompts: a prompt pack, its name, its .toml file or a dict; None is the method's own.
        adapter: learned weights of the methods that have them.
        device, dtype: of an encoder given by name; see `Encoder.load`.
        options: the method's own keywords; each method has `resolution`, the side of the square it resizes pictures to.

    Raises:
        ValueError: unknown method or encoder, a wrong option value, or a file made with other weights.
        TypeError: an option that the method does not have; the message lists those it has.
        FileNotFoundError: the file, pack or weights named are missing.
        vlad.WeightsError: the encoder's weights are not here and cannot be fetched.
    """
    given = str(os.fspath(method_or_file))
    if given not in METHODS and (given.endswith(".safetensors") or os.sep in given):
        detector = _load_file(Path(given).expanduser(), encoder, device, dtype, options)
    else:
        kind = method_class(given)
        _check_options(given, kind, options)
        if adapter is not None:
            raise TypeError(f"{given} has no learned weights and takes no adapter; got {os.fspath(adapter)!r}")
        detector = kind(_encoder(encoder or "tiny", device, dtype), **options)
        if prompts is not None:
            if not kind.needs_text:
                raise TypeError(f"{given} looks at pictures alone and takes no prompts")
            detector.pack = PromptPack.load(prompts)
    if name is not None or (prompts is not None and detector.name is not None):
        detector.describe(name or detector.name or "", prompts)
    return detector


def _encoder(given: str | Encoder, device: str | None, dtype: Any) -> Encoder:
    if isinstance(given, str):
        return Encoder.load(given, device, dtype)
    if not isinstance(given, Encoder):
        raise TypeError(f"encoder is a {type(given).__name__}; expected a name such as 'tiny' or a vlad.Encoder")
    if device is not None or dtype is not None:
        raise TypeError(
            "device and dtype belong to the encoder: give them to Encoder.load, not beside a loaded Encoder"
        )
    return given


def _check_options(method: str, kind: type[Detector], options: Mapping[str, Any]) -> None:
    known = [p.name for p in inspect.signature(kind).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            close = get_close_matches(option, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"{method} has no option {option!r}; it has {', '.join(known)}{hint}")


def _load_file(
    path: Path, encoder: str | Encoder | None, device: str | None, dtype: Any, options: Mapping[str, Any]
) -> Detector:
    if options:
        raise TypeError(
            f"{path.name} records its own options; leave out {', '.join(options)}, or build the method anew"
        )
    if not path.is_file():
        raise FileNotFoundError(f"there is no detector file {path}")
    header, tensors = _read_file(path)
    if not isinstance(encoder, Encoder):
        encoder = _encoder(encoder or header["encoder"], device, dtype or header["dtype"])
    if encoder.digest != header["encoder_digest"]:
        raise ValueError(
            f"{path.name} was made with other weights than encoder {encoder.name!r} has: it names "
            f"{header['encoder']!r}, digest {header['encoder_digest'][:12]}, and got {encoder.digest[:12]}"
        )
    detector = method_class(header["method"])(encoder, **header["options"])
    detector._restore(header, tensors)
    return detector


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("vlad", "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no dict, though it looks like one
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable .safetensors file ({error})") from error
    if header is None:
        raise ValueError(f"{path} is a .safetensors file, but no detector: it was not written by Detector.save")
    return header, tensors


def _read_all(images: list[Any]) -> list[tuple[Any, np.ndarray | ImageError]]:
    return [(image, _read_or_error(image)) for image in images]


def _read_or_error(image: Any) -> np.ndarray | ImageError:
    try:
        return read(image)
    except ImageError as error:
        return error
