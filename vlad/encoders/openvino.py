"""The blocks of a CLIP in OpenVINO: one graph, made once and kept in the cache, of which only what is asked for runs.

Patches, positions, the last norm and the projection stay torch's, in float32: only the blocks are replaced, from tokens
[B, T, C] to the tokens after each block and the values beside them. B and T are dynamic, so that pictures of any size
and WinCLIP's windows go through the same graph. In int8 the ranges of activations are fixed, from pictures that are
never judged by them: `calibrate`.
"""

import hashlib
import json
import logging
import os
import secrets
import shutil
import threading
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlad.encoders.blocks import block, value_block
from vlad.encoders.dtypes import INT8
from vlad.encoders.int8 import has_int8_units, warn_of_slow_int8
from vlad.files import cache_dir

FORMAT = 1  # of the graph: raise it when what it gives changes
CUTS = 2  # compiled at the same time, the last used; each has its own packed weights
HINTS = {"float32": "f32", "bfloat16": "bf16", INT8: "f32"}
FILES = ("blocks.xml", "blocks.bin")

Run = tuple[list[Tensor], dict[int, Tensor]]  # tokens after each block, values by layer (from 1)


class Blocks(nn.Module):
    """What becomes the graph: all that may be asked of the blocks."""

    def __init__(self, blocks: Any):
        super().__init__()
        self.blocks = blocks

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """After each block, then the values of each, then the first token alone after the last; of [B, T, C]."""
        after, values = [tokens], []
        for module in self.blocks:
            passed, beside = value_block(module, after[-1])
            after.append(passed)
            values.append(beside)
        (alone,) = block(self.blocks[-1], [after[-2]], class_only=True)
        return (*after[1:], *values, alone)


class Engine:
    """Runs the blocks in OpenVINO.

    Attributes:
        calibrated: digest of the pictures that int8 took its ranges from; None before.
    """

    def __init__(self, blocks: Any, width: int, digest: str, precision: str):
        """Raises ModuleNotFoundError without the package, ValueError for another precision than HINTS."""
        if precision not in HINTS:
            raise ValueError(f"runtime='openvino' computes in {', '.join(HINTS)}; dtype is {precision!r}")
        _package("openvino")
        if precision == INT8:
            _package("nncf")
            warn_of_slow_int8()
        self.blocks, self.depth, self.width, self.precision = blocks, len(blocks), width, precision
        self.digest = digest
        self.calibrated: str | None = None
        self._lock = threading.RLock()  # OpenVINO uses all threads for one run
        self._model: Any = None
        self._cuts: dict[tuple[int, ...], Any] = {}

    def run(self, tokens: Tensor, first: int, class_only: bool = False) -> Run:
        """Tokens after each block, and the values from block `first` on, float32; see `Encoder.value_walk`."""
        numbers = list(range(self.depth)) + list(range(self.depth + first - 1, 2 * self.depth))
        if class_only:
            numbers[self.depth - 1] = 2 * self.depth
        found = self._outputs(tokens, tuple(numbers))
        return found[: self.depth], dict(zip(range(first, self.depth + 1), found[self.depth :], strict=True))

    def class_tokens(self, tokens: Tensor) -> Tensor:
        """[B, 1, C]: the first token after the last block."""
        return self._outputs(tokens, (2 * self.depth,))[0]

    def calibrate(self, samples: Sequence[Tensor]) -> None:
        """Takes int8's ranges from tokens [B, T, C]; the graph of ranges that were taken before is in the cache.

        Raises:
            ValueError: it has others already, to which thresholds belong.
        """
        digest = hashlib.sha256(b"".join(one.numpy().tobytes() for one in samples)).hexdigest()
        if self.calibrated not in (None, digest):
            raise ValueError("this encoder has taken int8's ranges from other pictures; load it anew for these")
        with self._lock:
            if not self.recall(digest):
                self._model = self._kept(digest, samples)
            self.calibrated = digest

    def recall(self, calibrated: str | None) -> bool:
        """Whether the graph with these ranges is in the cache; it is taken then."""
        if self.precision != INT8 or calibrated is None or not _whole(self._folder(calibrated)):
            return False
        self._model, self._cuts, self.calibrated = _read(self._folder(calibrated)), {}, calibrated
        return True

    def _outputs(self, tokens: Tensor, numbers: tuple[int, ...]) -> list[Tensor]:
        with self._lock:
            cut = self._cuts.pop(numbers, None) or self._compiled(numbers)
            self._cuts[numbers] = cut
            while len(self._cuts) > CUTS:
                del self._cuts[next(iter(self._cuts))]
            found = cut(tokens.detach().float().contiguous().numpy())
            return [torch.from_numpy(found[i]) for i in range(len(numbers))]  # arrays of this run alone

    def _compiled(self, numbers: tuple[int, ...]) -> Any:
        openvino = _package("openvino")
        if self._model is None:
            if self.precision == INT8:
                raise ValueError(
                    "int8 with runtime='openvino' needs pictures to take its ranges from: fit on good ones, give "
                    "calibration=FOLDER, or take runtime='torch', which needs none"
                )
            self._model = self._kept(None, ())
        outputs = [self._model.output(number) for number in numbers]
        cut = openvino.Model([one.get_node() for one in outputs], self._model.get_parameters())
        how = {"INFERENCE_PRECISION_HINT": HINTS[self.precision], "PERFORMANCE_HINT": "LATENCY"}
        return openvino.Core().compile_model(cut, "CPU", {**how, "INFERENCE_NUM_THREADS": torch.get_num_threads()})

    def _folder(self, calibrated: str | None) -> Path:
        quantised = self.precision == INT8
        packages = [_package(name).__version__ for name in (("openvino", "nncf") if quantised else ("openvino",))]
        kind = ["int8", "of 8 bits" if has_int8_units() else "of 7 bits"] if quantised else ["float"]
        facts = [FORMAT, self.digest, *kind, calibrated, torch.__version__, *packages]
        return cache_dir() / "engines" / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]

    def _kept(self, calibrated: str | None, samples: Sequence[Tensor]) -> Any:
        """The graph out of the cache, where it is made anew if it is not whole."""
        folder = self._folder(calibrated)
        if not _whole(folder):
            _write(self._made(samples), folder)
        return _read(folder)

    def _made(self, samples: Sequence[Tensor]) -> Any:
        openvino, many = _package("openvino"), torch.export.Dim.AUTO
        graph = Blocks(self.blocks).eval()
        with torch.no_grad():
            program = torch.export.export(
                graph, (torch.zeros(2, 7, self.width),), dynamic_shapes=({0: many, 1: many},), strict=False
            )
        model = openvino.convert_model(program)
        return _quantised(model, [one.numpy() for one in samples]) if samples else model


def _quantised(model: Any, samples: list[Any]) -> Any:
    nncf = _package("nncf")
    logging.getLogger("nncf").setLevel(logging.ERROR)  # its own call would quieten whatever handlers it shares
    kind, preset = nncf.ModelType.TRANSFORMER, nncf.QuantizationPreset.MIXED
    # Without units for int8, sums of two products are kept in 16 bits and overflow: weights of 7 bits then.
    narrow = nncf.OverflowFix.DISABLE if has_int8_units() else nncf.OverflowFix.ENABLE
    how = nncf.AdvancedQuantizationParameters(overflow_fix=narrow)
    return nncf.quantize(
        model,
        nncf.Dataset(samples),
        preset=preset,
        model_type=kind,
        subset_size=len(samples),
        advanced_parameters=how,
    )


def _write(model: Any, folder: Path) -> None:
    """Beside, then renamed: a second process, or a kill, leaves a whole folder or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        beside.mkdir()
        _package("openvino").save_model(model, beside / FILES[0], compress_to_fp16=False)
        sizes = {name: (beside / name).stat().st_size for name in FILES}
        (beside / "about.json").write_text(json.dumps(sizes))
        shutil.rmtree(folder, ignore_errors=True)  # it was not whole
        if not folder.exists():
            beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _whole(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / "about.json").read_text())
        return all((folder / name).stat().st_size == sizes[name] for name in FILES)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _read(folder: Path) -> Any:
    return _package("openvino").Core().read_model(folder / FILES[0])


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"runtime='openvino' needs {name}, which is not installed; pip install 'vlad-ad[openvino]'"
        ) from error
