"""Every method, one file each: `METHODS` maps the file's name to the class in it. That is the whole registry."""

from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING

from vlad.callable_module import make_callable

if TYPE_CHECKING:
    from vlad.scorer import Scorer

METHODS = {
    "aaclip": "AaClip",
    "adaclip": "AdaClip",
    "adaptclip": "AdaptClip",
    "anomalyclip": "AnomalyClip",
    "anomalyvfm": "AnomalyVfm",
    "anovl": "AnoVl",
    "april_gan": "AprilGan",
    "bayes_pfl": "BayesPfl",
    "clip_ad": "ClipAd",
    "clip_surgery": "ClipSurgery",
    "crane": "Crane",
    "faprompt": "FaPrompt",
    "filo": "Filo",
    "flashback": "Flashback",
    "gaussian": "GaussianAD",
    "inp_former": "InpFormer",
    "laft": "Laft",
    "metauas": "MetaUas",
    "musc": "MuSc",
    "patch_memory": "PatchMemory",
    "patch_text": "PatchText",
    "sowa": "Sowa",
    "subspacead": "SubspaceAD",
    "vcpclip": "VcpClip",
    "visualad": "VisualAD",
    "winclip": "WinClip",
}


def methods() -> list[str]:
    """The names that `vlad.load` knows."""
    return sorted(METHODS)


def method_class(name: str) -> "type[Scorer]":
    """The Scorer class of a method; importing it is what costs, so only the asked one is.

    Raises:
        ValueError: no such method.
    """
    if name not in METHODS:
        close = get_close_matches(name.lower(), METHODS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        if not hint and " " in name:
            hint = f" (what the pictures show is the name: vlad.load(name={name!r}))"
        raise ValueError(f"unknown method {name!r}{hint}; known: {', '.join(methods())}")
    kind: type[Scorer] = getattr(import_module(f"vlad.methods.{name}"), METHODS[name])
    return kind


make_callable(methods)
