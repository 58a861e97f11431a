"""flashback: what share of the captions closest to a picture tells of something that is not in order.

Paper: Flashback, a memory of scenes for videos (arXiv:2505.15205); its authors have released no code. Needs: captions
of normal and of anomalous scenes, `[scenes]` of the prompt pack (of one without, its phrases stand for them, templates
aside), and an encoder that knows scenes. No training, one picture at a time; scores, no maps.

1. Captions are embedded once, each behind words that name its side, which moves the two sides apart.
2. A picture's cosines with the anomalous ones count `alpha` times: what is said of anomalies is more drastic, and lies
   closer to everything.
3. The score is the share of anomalous captions among the `k` closest, weighed by a softmax of `temperature` times these
   cosines. Of equal ones normal captions come first.

The captions are the phrases of a prediction: those with the largest cosines explain it.

Known differences: the paper has about a million captions, written by a language model; here `vlad prompts make
--scenes` has as many written as are asked for. It compares short clips, this each picture, and smoothing is left to the
video. Its softmax is taken at temperature 1, as far as the paper can be read, where ten cosines weigh nearly the same
and there are eleven scores; 100 is CLIP's own. The exact words that name a side are not known.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vlad.encoders.encoder import Encoder
from vlad.prompts import PromptPack, embed
from vlad.prompts.wording import STATES
from vlad.scorer import Scorer, Scores, check_counts

SIDES = {"normal": "Normal scene: {}", "anomalous": "Anomalous scene: {}"}
KNOWS_NO_SCENES = ("tiny",)  # encoders that have learned materials and faults of parts alone


def anomalous_share(
    normal: Tensor, anomalous: Tensor, k: int = 10, alpha: float = 0.95, temperature: float = 100.0
) -> Tensor:
    """[...] of cosines with normal captions [..., P] and with anomalous ones [..., Q]; in [0, 1].

    Source: Flashback (arXiv:2505.15205), scaled anomaly penalisation and retrieval.

    >>> n, a = torch.tensor([0.30, 0.28]), torch.tensor([0.31, 0.29])
    >>> round(anomalous_share(n, a, k=3).item(), 5), round(anomalous_share(n, a, k=3, alpha=1.0).item(), 5)
    (0.33695, 0.75527)
    """
    cosines = torch.cat([normal, alpha * anomalous], -1)
    order = cosines.argsort(dim=-1, descending=True, stable=True)[..., :k]
    weights = (temperature * cosines.gather(-1, order)).softmax(-1)
    return (weights * (order >= normal.shape[-1])).sum(-1)


def captions_of(pack: PromptPack, name: str) -> dict[str, list[str]]:
    """State -> captions, filled with the name; of a pack without scenes its phrases."""
    told = pack.scenes or {"normal": pack.normal, "anomalous": pack.anomalous}
    return {state: [caption.replace("{}", name) for caption in told[state]] for state in STATES}


class Flashback(Scorer):
    """See the module. `k` captions are asked, `alpha` weighs anomalous ones, `temperature` multiplies cosines."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        resolution: int | None = None,
        k: int = 10,
        alpha: float = 0.95,
        temperature: float = 100.0,
    ):
        super().__init__(encoder, resolution=resolution)
        if encoder.name in KNOWS_NO_SCENES:
            raise ValueError(
                f"{encoder.name} knows materials and faults of parts, and no scenes; take another encoder for "
                "flashback, such as 'ViT-L-14-336/openai'"
            )
        check_counts(k=k)
        if not alpha > 0 or not temperature > 0:
            raise ValueError(f"alpha is {alpha!r} and temperature {temperature!r}; expected numbers above 0")
        self.k, self.alpha, self.temperature = k, float(alpha), float(temperature)
        self.options.update(k=k, alpha=self.alpha, temperature=self.temperature)

    def phrases_of(self, pack: PromptPack, name: str) -> tuple[list[str], Tensor]:
        captions = captions_of(pack, name)
        rows = [self._rows(pack, name, state) for state in STATES]
        return [caption for state in STATES for caption in captions[state]], torch.cat(rows)

    def prototypes_of(self, pack: PromptPack, name: str) -> Tensor:
        """The middles of the two sides; scores come of the captions themselves."""
        return torch.stack([self._rows(pack, name, state).mean(0) for state in STATES])

    def _rows(self, pack: PromptPack, name: str, state: str) -> Tensor:
        """[captions, D] unit."""
        said = [SIDES[state].replace("{}", caption) for caption in captions_of(pack, name)[state]]
        return F.normalize(embed(self.encoder, said), dim=-1)

    def forward(self, pixels: Tensor) -> Scores:
        image = self.encoder(pixels).image  # [B, D]
        cosines = image.float() @ self.phrase_embeddings.T  # [B, captions]
        count = len(captions_of(self.pack, self.name or "")["normal"]) if self.pack else 0
        share = anomalous_share(cosines[:, :count], cosines[:, count:], self.k, self.alpha, self.temperature)
        return Scores(share, image=image)
