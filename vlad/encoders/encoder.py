"""The face of every frozen tower.

Methods know this face and no tower behind it: no other file knows how open_clip or transformers names its parts. A
family of towers is one file with a subclass of `Encoder` and a function `load`, and one line in `families`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vlad.encoders.abilities import Abilities
from vlad.encoders.dtypes import INT8, Placed, arithmetic, checked_device, checked_dtype, fastest_safe_dtype, name_of
from vlad.encoders.families import TORCH, tower
from vlad.encoders.int8 import check_int8
from vlad.encoders.sharing import Passes, once
from vlad.images.sizes import resized

VALUE_PATH_BLOCKS = 6  # CLIP Surgery runs its value path through the last six blocks


@dataclass(frozen=True)
class Features:
    """What one pass over B pictures gives.

    Attributes:
        image: [B, D] unit embeddings of the class token.
        patches: one [B, N, C] per asked layer: patch tokens, class token removed.
        grid: (rows, columns), rows * columns = N.
    """

    image: Tensor
    patches: tuple[Tensor, ...]
    grid: tuple[int, int]


class Encoder(Placed, Abilities):
    """A frozen tower. Shared between detectors: it holds no state of any of them, and a copy of one is itself.

    It pickles as its name: what is unpickled loads the weights anew and compares their digest.

    Attributes:
        reads_text: whether it also reads sentences; one that does not raises TypeError where it is asked to.
        resampling: PIL's filter that resizes pictures, antialiased.
        walks: whether `embed`, `walk` and `windows` can be entered with tokens of one's own.
        name: as given to `load`.
        digest: hex, the same for the same weights whatever file they came from.
        resolution: side of the square that the model was made for, in pixels; `patch_size`: side of a patch.
        depth, width, embed_dim: number of vision blocks, C, D.
        activation: of the blocks, "gelu" or "quickgelu"; adapters work with the one they were learned with.
        text_width, text_depth: width of the tokens in the text tower and number of its blocks; None and 0 for towers
            that do not read as CLIP's does, from left to right, and so cannot be walked.
        logit_scale: what it was trained to multiply cosines of pictures and words with, before a softmax.
        temperature: of the softmax over texts that its class token was trained for: 0.01, CLIP's, or 0.07, `tiny`'s.
        dense_path: "ordinary" where patch tokens of the last block align with text, "value" where a value path does.
        norm: the last layer norm, of [..., C] tokens; `projection`: [C, D] into the space of pictures and words.
        mean, std: [1, 3, 1, 1] of the colour channels.
        device, dtype: where it runs, and the arithmetic of the blocks; all else is float32. For int8 it is bfloat16,
            which says how coarse its tokens are.
        precision: the name of the blocks' arithmetic, "float32", "bfloat16", "float16" or "int8". Thresholds belong to
            one: other arithmetic gives other scores.
        runtime: what computes the blocks, "torch" or "openvino".
        calibrated: a digest of the pictures that the runtime took its ranges from, where it needs such.
        in_int8: whether its blocks can compute in int8.
    """

    reads_text: ClassVar[bool] = True
    walks: ClassVar[bool] = True
    in_int8: ClassVar[bool] = False
    resampling: ClassVar[Image.Resampling] = Image.Resampling.BICUBIC

    runtime: str
    calibrated: str | None = None
    digest: str
    resolution: int
    patch_size: int
    depth: int
    width: int
    embed_dim: int
    activation: str
    dense_path: str
    norm: nn.Module
    projection: Tensor
    text_width: int | None = None
    text_depth: int = 0
    logit_scale: float
    temperature: float
    tokenizer: Callable[[list[str]], Tensor]

    def __init__(
        self, name: str, mean: Sequence[float], std: Sequence[float], device: Any, dtype: Any, runtime: str = "torch"
    ):
        self.name = name
        self.device = checked_device(device)
        asked = checked_dtype(dtype) or fastest_safe_dtype(self.device)
        self.precision, self.dtype = name_of(asked), asked
        self.runtime = runtime
        if self.precision == INT8:
            self._check_int8()
            self.dtype = torch.bfloat16
        self.mean = torch.tensor(mean, device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(std, device=self.device).view(1, 3, 1, 1)
        self.passes = Passes()

    @staticmethod
    def load(
        name: str = "tiny",
        device: str | None = None,
        dtype: Any = None,
        activation: str | None = None,
        runtime: str = "torch",
    ) -> "Encoder":
        """The encoder of that name.

        Args:
            name: "tiny", open_clip's "MODEL/TAG", "MODEL:FILE", "local-dir:FOLDER", "hf-hub:REPO",
                "MODEL/random:SEED" (untrained; warns), or, for pictures alone, "dino:SIZE, FOLDER or REPO",
                "efficientnet:FILE" or "radio:FILE, FOLDER or hf-hub:REPO".
            device: torch device; None takes a GPU where there is one.
            dtype: of the blocks' arithmetic ("float32", "bfloat16", torch.float16, "int8" on a CPU); None takes the
                fastest safe one, which is never int8.
            activation: "gelu" or "quickgelu" instead of the model's own; some published adapters depend on it.
            runtime: what computes the blocks, "torch" or, of a CLIP on a CPU, "openvino" (extra `openvino`).

        Raises:
            ValueError: unknown name, dtype, activation or runtime, or a device that is not here.
            TypeError: a runtime that this tower does not run on.
            ModuleNotFoundError: the runtime is not installed.
            FileNotFoundError: a local file or folder is missing.
            vlad.WeightsError: the weights are not here and cannot be fetched.
        """
        checked_dtype(dtype)  # wrong ones are refused before seconds of loading
        checked_device(device)
        encoder: Encoder = tower(name, device, dtype, activation, runtime)
        return encoder

    def __repr__(self) -> str:
        size = f"{self.resolution} px, {self.depth} blocks of width {self.width}"
        return f"Encoder({self.name!r}, {size}, {self.device}, {self.precision})"

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # frozen, and large: the copy of a detector works with the very encoder that the detector has

    def __copy__(self) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        how = self.precision, self.asked_activation, self.runtime, self.calibrated
        return _loaded_again, (self.digest, self.name, str(self.device), *how)

    def mixed(self) -> AbstractContextManager[Any]:
        """Within it torch's own layers compute in `dtype` where that is coarser than float32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.precision in ("bfloat16", "float16"))

    def _check_int8(self) -> None:
        """ValueError where this tower, device or torch cannot compute in int8."""
        if not self.in_int8:
            raise ValueError(f"{self.name} does not compute in int8; take dtype='bfloat16' or 'float32'")
        if self.runtime == TORCH:
            check_int8(self.device)

    @property
    def uncalibrated(self) -> bool:
        """Whether it computes nothing before its runtime has taken ranges from pictures."""
        return self.precision == INT8 and self.runtime != TORCH and self.calibrated is None

    def calibrate(self, pictures: Iterable[np.ndarray]) -> None:
        """Lets a runtime that needs ranges take them from uint8 pictures [H, W, 3]; does nothing elsewhere.

        They should look like those that will come, and be none of them.
        """

    def recall(self, calibrated: str | None) -> None:
        """Makes it take the ranges with this digest again, where the cache has them."""

    @property
    def arithmetic(self) -> str:
        """What scores, and so thresholds, belong to, in words."""
        return arithmetic(self.precision, self.runtime, self.calibrated)

    asked_activation: str | None = None  # as given to `load`; None is the model's own

    # Pictures

    def pixels(
        self,
        pictures: Sequence[np.ndarray],
        resolution: int | tuple[int, int] | None = None,
        like: np.ndarray | None = None,
    ) -> Tensor:
        """[B, 3, h, w] float32, normalised as the tower wants it, from uint8 [H, W, 3] pictures.

        Each is resized with `resampling`, nothing is cut off. `resolution` is the side of a square, or (h, w); None is
        the native square. `like` is the picture that all of them are parts of, for towers that level brightness.

        Raises:
            ValueError: resolution is not a positive multiple of the patch size.
        """
        given = self.resolution if resolution is None else resolution
        size = given if isinstance(given, tuple) else (given, given)
        for side in size:
            self.check_side(side)
        whole = None if like is None else self._as_floats([like])
        return self.normalised(self.in_colours(pictures, size), whole)

    def normalised(self, pixels: Tensor, whole: Tensor | None = None) -> Tensor:
        """Pixels [B, 3, h, w] in [0, 1] as the tower wants them; `whole` [1, 3, H, W] is what they are levelled by."""
        return (self.levelled(pixels, whole) - self.mean) / self.std

    def in_colours(self, pictures: Sequence[np.ndarray], size: tuple[int, int]) -> Tensor:
        """[B, 3, h, w] in [0, 1]: the pictures resized."""
        return self._as_floats([self.as_seen(picture, size) for picture in pictures])

    def _as_floats(self, pictures: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(pictures)).to(self.device).permute(0, 3, 1, 2).float() / 255

    def check_side(self, side: int) -> None:
        """ValueError where pictures cannot have this side."""
        if side < self.patch_size or side % self.patch_size:
            raise ValueError(
                f"resolution is {side}; expected a positive multiple of {self.name}'s patch size {self.patch_size}"
            )

    def as_seen(self, picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """uint8, what `pixels` of (h, w) needs of a picture [H, W, 3]: given this, it makes the same to the bit."""
        return resized(picture, size, self.resampling)

    @property
    def resizes_itself(self) -> bool:
        """Whether `pixels` resizes in a way of its own, so that it must have the picture itself."""
        return False

    def levelled(self, pixels: Tensor, like: Tensor | None = None) -> Tensor:
        """Pixels in [0, 1] as they are before mean and std: some towers level each picture's brightness first, to that
        of the picture `like` [1, 3, h, w] where it is given."""
        return pixels

    def grid(self, pixels: Tensor) -> tuple[int, int]:
        """(rows, columns) of the patches of [B, 3, H, W]."""
        return pixels.shape[-2] // self.patch_size, pixels.shape[-1] // self.patch_size

    def sharing(self) -> AbstractContextManager[None]:
        """Until the block ends, passes over the same pixels (the same tensor object) are computed once.

        For many detectors on one batch: `dense`, `windows` and the call itself are the passes that methods start from.
        """
        return self.passes.kept()

    def unshared(self) -> AbstractContextManager[None]:
        """Until the block ends, passes are not kept, though `sharing` is on: for batches that do not come again."""
        return self.passes.apart()

    @once
    def __call__(self, pixels: Tensor, layers: tuple[int, ...] = (), positions: str = "bicubic-antialias") -> Features:
        """Image embedding and the patch tokens of the asked layers (from 1), in one pass; `positions` as in `embed`.

        Raises:
            ValueError: a layer is outside 1..depth.
        """
        self.check_layers(layers)
        taps = {}
        for layer, _, after, _ in self.value_walk(pixels, positions, first=self.depth + 1):
            if layer in layers:
                taps[layer] = after[:, 1:]
        return Features(
            F.normalize(self.project(after[:, 0]), dim=-1), tuple(taps[i] for i in layers), self.grid(pixels)
        )

    def block_patches(self, pixels: Tensor, layers: tuple[int, ...]) -> tuple[Tensor, ...]:
        """[B, N, C] for each layer: patch tokens as the blocks leave them, without the norm that a call may add."""
        return self(pixels, layers=layers).patches

    @property
    def level_widths(self) -> tuple[int, ...]:
        """Of the features in `level_maps`, for every layer from 1: C, but in a convolutional tower its own."""
        return (self.width,) * self.depth

    def level_maps(self, pixels: Tensor, layers: tuple[int, ...]) -> tuple[Tensor, ...]:
        """[B, C_l, h_l, w_l] for each layer: `block_patches` on their grid, or a convolutional level's own."""
        return tuple(one.mT.unflatten(2, self.grid(pixels)) for one in self.block_patches(pixels, layers))

    @once
    def dense(
        self, pixels: Tensor, blocks: int = VALUE_PATH_BLOCKS, positions: str = "bicubic-antialias"
    ) -> tuple[Tensor, Tensor]:
        """([B, D], [B, N, D]), not normalised: class embedding, and patch embeddings that align with text.

        `tiny` is trained to align its last block's tokens. Published CLIPs do not align theirs: for them the patches
        come from the value path, a sum of value attentions of the last `blocks` beside the ordinary stream (CLIP
        Surgery, arXiv:2304.05653). `positions` as in `embed`.
        """
        beside = self.dense_path == "value"
        first = max(1, self.depth - blocks + 1) if beside else self.depth + 1
        value_path = None
        for _, before, after, values in self.value_walk(pixels, positions, first, class_only=beside):  # noqa: B007
            if values is not None:
                value_path = (before if value_path is None else value_path) + values
        patches = after if value_path is None else value_path
        return self.project(after[:, 0]), self.project(patches[:, 1:])

    def check_layers(self, layers: Sequence[int]) -> None:
        """ValueError where a layer is outside 1..depth."""
        if wrong := [layer for layer in layers if not 1 <= layer <= self.depth]:
            raise ValueError(f"layers {wrong} asked; {self.name} has layers 1 to {self.depth}")

    def project(self, tokens: Tensor) -> Tensor:
        """[..., D] joint embeddings, not normalised, of [..., C] tokens: last layer norm, then the projection."""
        return self.norm(tokens) @ self.projection

    def value_walk(
        self,
        pixels: Tensor,
        positions: str = "bicubic-antialias",
        first: int = 1,
        class_only: bool = False,
        sources: str = "v",
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor | None]]:
        """The block loop with what value paths are made of: yields (layer, tokens before, tokens after, values).

        `values` [B, T, C] is what `value_attention` gives for `sources`; None before block `first`. Within `sharing`
        the walk over a batch is recorded, and later ones over it are replayed; elsewhere `class_only` spares the last
        block's tokens after it but the first, as in `walk`. The call, `dense` and most methods are written on this one
        loop.
        """
        self.cannot("has no value path")


def _loaded_again(
    digest: str,
    name: str,
    device: str,
    dtype: str,
    activation: str | None,
    runtime: str = TORCH,
    calibrated: str | None = None,
) -> Encoder:
    """What unpickling calls."""
    encoder = Encoder.load(name, device, dtype, activation, runtime)
    encoder.recall(calibrated)
    if encoder.digest != digest:
        raise ValueError(
            f"the pickled encoder {name!r} had other weights (digest {digest[:12]}) than that name has here "
            f"({encoder.digest[:12]}); bring the same weights here under that name"
        )
    return encoder
