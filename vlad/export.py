"""A detector as one .onnx file that runs without torch and without VLAD, checked against torch before it is written.

The graph takes pictures as uint8 [batch, S, S, 3], RGB, already resized to its square (PIL, bicubic for most encoders),
and gives `score` [batch] and, of methods that have maps, `map` [batch, h, w]. Words, memory and learned weights are
folded into it; only operators of ONNX's default domain are used. The metadata entry "vlad" says the rest, as JSON.
"""

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vlad.files import write_whole
from vlad.images.sizes import resized
from vlad.scorer import Scorer
from vlad.version import __version__

if TYPE_CHECKING:
    from vlad.detector import Detector

OPSET = 20
DRAWN = 3  # pictures that a graph is compared on where none are given

# Option -> what a graph cannot do with it, where it has another value than the one named.
CANNOT: Mapping[str, tuple[Any, str]] = {
    "adapt": (False, "it learns from each picture anew"),
    "mask": (False, "the foreground is found by morphology"),
    "search": ("exact", "an approximate search is no graph"),
}


@dataclass(frozen=True)
class ExportReport:
    """How far a graph's answers were from torch's on the pictures it was compared on, and what was written.

    Attributes:
        max_score, max_map: largest differences; `max_map` is 0 where there are no maps.
        pictures: how many were compared.
        bytes: of the file.
    """

    max_score: float
    max_map: float
    pictures: int
    bytes: int
    opset: int = OPSET

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Graph(nn.Module):
    """A scorer from uint8 pictures [B, S, S, 3] to score [B] and map [B, h, w]."""

    def __init__(self, scorer: Scorer):
        super().__init__()
        self.scorer = scorer

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """(score, map), or the score alone."""
        pixels = self.scorer.encoder.normalised(pictures.permute(0, 3, 1, 2).float() / 255)
        score, amap = self.scorer(pixels)[:2]
        return (score.float(),) if amap is None else (score.float(), amap.float())


def export(
    detector: "Detector", path: Path, pictures: Sequence[np.ndarray] | None = None, tolerance: float = 1e-4
) -> ExportReport:
    """Writes the graph if it gives torch's scores and maps; see `Detector.export`."""
    if path.suffix != ".onnx":
        raise ValueError(f"a graph is written as .onnx; got {path.name!r}")
    _refuse(detector)
    onnx, runtime = _packages()
    scorer = detector.scorer
    seen = _drawn() if pictures is None else pictures
    given = [detector.encoder.as_seen(picture, (detector.resolution,) * 2) for picture in seen]
    if any(one.shape[:2] != (detector.resolution,) * 2 for one in given):
        raise TypeError(f"{detector.encoder.name} resizes pictures in a way of its own, which a graph cannot hold")
    model = _traced(Graph(scorer).eval(), given)
    entry = model.metadata_props.add()
    entry.key, entry.value = "vlad", json.dumps(about(detector))
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    score, amap = compared(scorer, runtime.InferenceSession(content, providers=["CPUExecutionProvider"]), given)
    width = max(1.0, scorer.map_range[1] - scorer.map_range[0])
    if not max(score, amap / width) <= tolerance:
        raise RuntimeError(
            f"the graph differs from torch by {score:.2g} in the score and {amap:.2g} in the map, more than the "
            f"tolerance of {tolerance:g}, on {len(given)} pictures; nothing was written"
        )
    write_whole(path, content, sync=True)
    return ExportReport(score, amap, len(given), len(content))


def about(detector: "Detector") -> dict[str, Any]:
    """What a graph's metadata says of it: how pictures are prepared, and what its numbers mean."""
    encoder, judge = detector.encoder, detector.judge
    unsure = judge.calibration.unsure if judge.calibration else None
    return {
        "vlad": __version__,
        "method": detector.method,
        "name": detector.name,
        "encoder": encoder.name,
        "encoder_digest": encoder.digest,
        "side": detector.resolution,
        "resampling": encoder.resampling.name.lower(),
        "threshold": judge.threshold,
        "map_threshold": judge.map_threshold,
        "unsure": None if unsure is None else list(unsure),
        "scale": list(judge.colours()),
        "region_level": judge.region_level(),
        "options": detector.options,
        "references": len(detector.references),
    }


def compared(scorer: Scorer, session: Any, pictures: Sequence[np.ndarray]) -> tuple[float, float]:
    """The largest differences of scores and of maps between a graph and torch, alone and as one batch."""
    score, amap = 0.0, 0.0
    for batch in [np.stack(pictures), *(one[None] for one in pictures)]:
        with torch.no_grad():
            expected = Graph(scorer)(torch.from_numpy(batch))
        found = session.run(None, {"pictures": batch})
        differences = [float(np.abs(a - b.numpy()).max()) for a, b in zip(found, expected, strict=True)]
        score, amap = max(score, differences[0]), max(amap, *differences[1:], 0.0)
    return score, amap


def _traced(graph: Graph, pictures: Sequence[np.ndarray]) -> Any:
    """The ONNX model, without the exporter's remarks on where in our code each operator comes from."""
    batch = torch.from_numpy(np.stack(pictures[:2] if len(pictures) > 1 else [*pictures, *pictures]))
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        outputs = ["score", "map"][: len(graph(batch))]  # what is computed once, and kept, is there after this
        quiet = logging.getLogger("torch.onnx")
        level = quiet.level
        quiet.setLevel(logging.ERROR)
        try:
            made = torch.onnx.export(
                graph,
                (batch,),
                dynamo=True,
                input_names=["pictures"],
                output_names=outputs,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
                opset_version=OPSET,
                verbose=False,
            )
        except Exception as error:  # the exporter's errors are its own, and many
            raise RuntimeError(
                f"{graph.scorer.method} could not be made a graph with these options "
                f"({str(error).strip().splitlines()[0]:.200}); it runs in torch"
            ) from error
        finally:
            quiet.setLevel(level)
    assert made is not None
    return _bare(made.model_proto)


def _bare(model: Any) -> Any:
    for part in (model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.value_info):
        part.doc_string = ""
        del part.metadata_props[:]
    return model


def _refuse(detector: "Detector") -> None:
    """Raises where no graph can be this detector."""
    scorer, encoder = detector.scorer, detector.encoder
    if detector.transductive:
        raise TypeError(f"{detector.method}, as it stands, scores a set of pictures together, and a graph has no set")
    if scorer.frames_itself:
        raise TypeError(f"{detector.method} frames pictures in a way of its own, which a graph cannot hold")
    if detector.framing.to_dict():
        options = ", ".join(detector.framing.to_dict())
        raise TypeError(f"{options}: what is done before a picture is resized is no part of a graph; leave it out")
    for option, (fine, why) in CANNOT.items():
        if detector.options.get(option, fine) != fine:
            raise TypeError(f"{detector.method} with {option}={detector.options[option]!r} is no graph: {why}")
    if encoder.precision != "float32" or encoder.runtime != "torch" or encoder.device.type != "cpu":
        raise ValueError(
            f"a graph is made from float32 on the CPU, and this detector computes in {encoder.arithmetic} on "
            f"{encoder.device}: load it with dtype='float32', device='cpu'"
        )


def _packages() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # the exporter's own, which names no extra when it is missing
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"a graph is made and checked with {error.name}, which is not installed; pip install 'vlad-ad[export]'"
        ) from error
    return onnx, onnxruntime


def _drawn() -> list[np.ndarray]:
    """Soft noise, [240, 240, 3]."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (DRAWN, 9, 9, 3), dtype=np.uint8)
    return [resized(one, (240, 240)) for one in coarse]
