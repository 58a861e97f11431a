"""A detector on the Hugging Face hub: one file and a card that says what it is; never a picture, nor a path of one."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import huggingface_hub
from huggingface_hub import CommitOperationAdd, constants
from jinja2 import Environment

from vlad.encoders.families import may_be_named
from vlad.hub import DETECTOR
from vlad.hub.sources import sentences
from vlad.version import __version__

if TYPE_CHECKING:
    from vlad.detector import Detector


CARD = """---
library_name: vlad
pipeline_tag: image-classification
tags: [anomaly-detection, visual-inspection, {{ method }}]
---

# {{ name or "Any object" }}: an anomaly detector of VLAD

```python
import vlad

detector = vlad.load("hf-hub:{{ repo }}"{{ ', encoder="' ~ encoder ~ '"' if foreign }})
print(detector.predict("part.png"))
```

| | |
| --- | --- |
| method | `{{ method }}` |
| encoder | `{{ encoder }}`, weights {{ digest }}; it is named here, not contained, and its own licence holds |
| learnt from | {{ normals }} good pictures, which are not in this repository |
| threshold | {{ "%.6g" % threshold if threshold is not none else "none: scores only sort" }} |
| what it promises | {{ promise or "nothing: no threshold was set from good pictures" }} |
| trained on | {{ trained_on or "nothing but the good pictures above" }} |
| made with | VLAD {{ version }} |

The promise holds for pictures taken like the good ones: same camera, light and place. How many defects are missed only
`vlad check` on known ones can say. Who shared this has not stated a licence here.
"""


def push(detector: "Detector", repo: str, private: bool = True) -> str:
    """Puts the detector and its card into a repository of the hub, made where there is none; its address.

    Args:
        detector: as it is now.
        repo: "owner/name".
        private: whether a new repository is seen by its owner alone.

    Raises:
        ValueError: `repo` is no "owner/name".
        vlad.WeightsError: the hub refuses or does not answer.
    """
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ValueError(f"repo is {repo!r}; expected '<owner>/<name>'")
    address = f"{constants.ENDPOINT}/{repo}"
    with TemporaryDirectory() as folder, sentences(address):
        file = Path(folder) / DETECTOR
        detector.save(file, pictures=False)
        hub = huggingface_hub.HfApi()
        hub.create_repo(repo, private=private, exist_ok=True)
        parts = [
            CommitOperationAdd(DETECTOR, file),
            CommitOperationAdd("README.md", card(detector, repo).encode()),
        ]
        hub.create_commit(repo, parts, commit_message=f"Detector of {detector.name or 'any object'}")
    return address


def card(detector: "Detector", repo: str) -> str:
    """The repository's page: what the detector is, what it promises and how it is loaded."""
    made = detector.calibration
    return (
        Environment(autoescape=False, keep_trailing_newline=True)  # Markdown; the hub escapes its own pages
        .from_string(CARD)
        .render(
            repo=repo,
            name=_plain(detector.name or ""),
            method=detector.method,
            encoder=detector.encoder.name,
            foreign=not may_be_named(detector.encoder.name),
            digest=detector.encoder.digest[:12],
            normals=len(detector.references),
            threshold=detector.threshold,
            promise=made.note if made else None,
            trained_on=", ".join(detector.trained_on),
            version=__version__,
        )
    )


def _plain(text: str) -> str:
    """Words for a heading: on one line, and without what Markdown or HTML would read as its own."""
    return " ".join("".join(char for char in text if char not in "<>[]`|*_#\\").split())
