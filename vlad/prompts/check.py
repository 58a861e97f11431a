"""What is wrong with the words of a pack, found without any language model: against each other, and on pictures.

Three tests for each phrase. Two phrases of one state that the encoder can hardly tell apart say the same twice. An
anomalous phrase that is closer to a normal one than most normal phrases are to each other cannot separate. And, with
good pictures: an anomalous phrase that fits more than one in twenty of them better than the normal phrases do on
average raises false alarms.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.prompts import PromptPack, phrase_prototypes

if TYPE_CHECKING:
    from torch import Tensor

    from vlad.encoders.encoder import Encoder

DUPLICATE = 0.95  # cosine above which two phrases of one state are the same
QUANTILE = 0.95  # of the cosines between normal phrases
FALSE_ALARMS = 0.05  # share of good pictures that a phrase may fit better than the normal ones do


@dataclass(frozen=True)
class PhraseCheck:
    """One phrase of a pack, `{}` filled in.

    Attributes:
        state: "normal" or "anomalous".
        same_as: an earlier phrase of the state that says the same to the encoder.
        closest_normal: largest cosine with a normal phrase other than itself; None where there is no other.
        false_alarms: share of the good pictures that an anomalous phrase fits better than the mean normal one does;
            None for normal phrases and without pictures.
        mean, std: of its cosine over the good pictures.
        problems: what is wrong with it, in words; empty where nothing is.
    """

    state: str
    phrase: str
    same_as: str | None = None
    closest_normal: float | None = None
    false_alarms: float | None = None
    mean: float | None = None
    std: float | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class PackCheck:
    """Every phrase of a pack with its problems.

    Attributes:
        limit: cosine with a normal phrase above which an anomalous one cannot separate; None with one normal phrase.
        pictures: number of good pictures looked at.
    """

    name: str
    encoder: str
    phrases: tuple[PhraseCheck, ...]
    limit: float | None
    pictures: int

    @property
    def problems(self) -> int:
        """Number of phrases with a problem."""
        return sum(bool(phrase.problems) for phrase in self.phrases)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def check_pack(pack: PromptPack, name: str, encoder: "Encoder", normals: Sequence[str | Path] = ()) -> PackCheck:
    """The words of `pack` for `name`, as `encoder` reads them.

    Args:
        normals: good pictures, anything `vlad.images.read` takes.

    Raises:
        ValueError: a name that does not fit into prompts.
        vlad.ImageError: a picture that cannot be read.
    """
    filled, directions = phrase_prototypes(encoder, pack, name)  # [P, D]
    good = len(pack.normal)
    states = ["normal"] * good + ["anomalous"] * (len(filled) - good)
    cosines = (directions @ directions.T).cpu()  # [P, P]
    limit = separation_limit(cosines[:good, :good])
    fits = (embeddings(encoder, normals) @ directions.T).cpu() if normals else None  # [n, P]
    checked = []
    for index, (state, phrase) in enumerate(zip(states, filled, strict=True)):
        same = next((i for i in range(index) if states[i] == state and cosines[index, i] > DUPLICATE), None)
        others = [float(cosines[index, i]) for i in range(good) if i != index]
        facts: dict[str, Any] = {"same_as": None if same is None else filled[same]}
        facts["closest_normal"] = max(others, default=None)
        if fits is not None:
            facts["mean"] = float(fits[:, index].mean())
            facts["std"] = float(fits[:, index].std()) if len(fits) > 1 else None
            if state == "anomalous":
                facts["false_alarms"] = false_alarms(fits[:, index], fits[:, :good])
        checked.append(PhraseCheck(state, phrase, **facts, problems=_problems(state, facts, limit)))
    return PackCheck(name, encoder.name, tuple(checked), limit, len(normals))


def separation_limit(cosines: "Tensor") -> float | None:
    """The 95 % quantile of the cosines between different normal phrases [N, N]; None for a single one."""
    count = len(cosines)
    if count < 2:
        return None
    rows, columns = zip(*((i, j) for i in range(count) for j in range(i)), strict=True)
    return float(cosines[list(rows), list(columns)].quantile(QUANTILE))


def false_alarms(fit: "Tensor", normal_fits: "Tensor") -> float:
    """Share of pictures whose cosine with a phrase [n] is above their mean cosine with the normal phrases [n, N]."""
    return float((fit > normal_fits.mean(1)).float().mean())


def embeddings(encoder: "Encoder", pictures: Sequence[Any], batch_size: int = 8) -> "Tensor":
    """[n, D] unit embeddings of whole pictures."""
    import torch

    from vlad.images import read

    batches = [pictures[start : start + batch_size] for start in range(0, len(pictures), batch_size)]
    with torch.no_grad():
        return torch.cat([encoder(encoder.pixels([read(one) for one in batch])).image for batch in batches])


def _problems(state: str, facts: dict[str, Any], limit: float | None) -> tuple[str, ...]:
    found = []
    if facts["same_as"] is not None:
        found.append(f"says the same as '{facts['same_as']}'")
    if state == "anomalous" and limit is not None and facts["closest_normal"] > limit:
        found.append("too close to a normal phrase to separate")
    if (share := facts.get("false_alarms")) is not None and share > FALSE_ALARMS:
        found.append(f"fits {share:.0%} of the good pictures better than the normal phrases do")
    return tuple(found)
