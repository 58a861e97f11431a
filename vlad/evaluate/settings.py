"""What an evaluation's numbers depend on, and what it cost."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.evaluate.guests import Guest
from vlad.evaluate.inputs import keeps_words
from vlad.evaluate.walk import key_of
from vlad.version import __version__

if TYPE_CHECKING:
    from vlad.detector import Detector
    from vlad.evaluate.inputs import Group, Place, Plan


def settings_of_run(
    plan: Plan, named: Mapping[str, Detector | Guest], groups: Mapping[Place, Group], leaks: Mapping[str, list[str]]
) -> dict[str, Any]:
    """Plain values for JSON: version, detectors, data, protocol."""
    data: dict[str, dict[str, Any]] = {}
    for (dataset, category), group in groups.items():
        data.setdefault(dataset, {})[category] = _category(group)
    return {
        "vlad": __version__,
        "commit": commit(),
        "shots": plan.shots,
        "seeds": list(plan.seeds) if plan.shots else [],
        "metric_size": plan.metric_size,
        "mask_resize": plan.mask_resize if plan.metric_size != "native" else "none",
        "empty_mask": plan.empty_mask,
        "bootstrap": plan.bootstrap,
        "corrupt": list(dict.fromkeys(plan.corrupt)),
        **({"paper_metrics": True} if plan.papers else {}),
        **({"maps": plan.maps.name} if plan.maps else {}),
        "severities": sorted(set(plan.severities)) if plan.corrupt else [],
        "detectors": {label: _detector(one, plan, leaks.get(label, [])) for label, one in named.items()},
        "data": data,
    }


def _category(group: Group) -> dict[str, Any]:
    anomalous = sum(sample.label for sample in group.tests)
    files = "\n".join(sorted(key_of(sample) for sample in group.tests + group.normals))
    return {
        "name": group.name,
        "normal": len(group.tests) - anomalous,
        "anomalous": anomalous,
        "train": len(group.normals),
        **({"set_aside": group.set_aside} if group.set_aside else {}),
        "digest": hashlib.sha256(files.encode(errors="surrogateescape")).hexdigest()[:16],
    }


def _detector(detector: Detector | Guest, plan: Plan, leaks: list[str]) -> dict[str, Any]:
    if isinstance(detector, Guest):
        return {
            "method": detector.method,
            "setting": setting_of(detector, plan.shots),
            "trained_on": list(detector.trained_on),
            "leaks": leaks,
            **dict.fromkeys(("encoder", "digest", "device", "dtype", "runtime", "prompts", "pack", "resolution")),
            "options": {},
        }
    encoder, pack = detector.encoder, detector.pack
    prompts = (pack.name if pack else detector.scorer.default_prompts) if detector.scorer.words == "required" else None
    return {
        "method": detector.method,
        "setting": setting_of(detector, plan.shots),
        "trained_on": list(detector.trained_on),
        "leaks": leaks,
        "encoder": encoder.name,
        "digest": encoder.digest,
        "device": device_name(encoder.device),
        "dtype": encoder.precision,
        "runtime": encoder.runtime,
        "prompts": prompts,
        "pack": pack.to_dict() if pack else None,
        **({"words": detector.name} if keeps_words(detector, plan) and prompts else {}),
        "resolution": detector.resolution,
        "options": dict(detector.options),
        **({"framing": framing} if (framing := detector.framing.to_dict()) else {}),
    }


def setting_of(detector: Detector | Guest, shots: int) -> str:
    """ "zero-shot", "4-shot", "batch" (transductive), with the auxiliary data that it was trained on."""
    kind = "batch (transductive)" if detector.transductive else "zero-shot"
    if isinstance(detector, Guest) and detector.full_shot:
        return "full-shot"
    if given := shots or len(detector.references):
        kind = f"{given}-shot" if shots else f"{given}-shot, fitted before"
    auxiliary = ", ".join(detector.trained_on)
    return f"{kind}, trained on {auxiliary}" if auxiliary else kind


def device_name(device: Any) -> str:
    """ "cpu", or the accelerator's name."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def commit() -> str | None:
    """The commit of the checkout that runs, "-dirty" with changes; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def peak_memory() -> dict[str, int]:
    """Bytes that this process held at most, so far: "process", and "accelerator" where there is one."""
    import torch

    found = {}
    try:
        import resource
    except ImportError:  # Windows
        pass
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        found["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if torch.cuda.is_available():
        found["accelerator"] = torch.cuda.max_memory_allocated()
    return found
