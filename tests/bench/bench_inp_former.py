"""What a training step of INP-Former costs beside its counted arithmetic; by hand:
python tests/bench/bench_inp_former.py

Untrained weights at the authors' sizes (ViT-B, 392 px), features of the tower as the cache holds them. Counted is what
torch counts of forward and backward, over the rate of one matrix product of the same kind on this machine.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from vlad.encoders.dino import DinoEncoder
from vlad.learning.optimizers import StableAdamW
from vlad.learning.scorer import Batch
from vlad.methods.inp_former import InpFormer


def seconds(call: Callable[[], object], device: torch.device, runs: int) -> float:
    """The median of some runs after one that warms up; of a CPU the time that this process had it."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    took = []
    for _ in range(runs + 1):
        start = clock()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        took.append(clock() - start)
    return sorted(took[1:])[runs // 2]


def product_rate(width: int, rows: int, device: torch.device, dtype: torch.dtype, runs: int) -> float:
    """Operations a second of what most of a step is: tokens times the weights of an MLP."""
    tokens = torch.randn(rows, width, device=device, dtype=dtype)
    weights = torch.randn(width, 4 * width, device=device, dtype=dtype)
    return 2 * rows * width * 4 * width / seconds(lambda: tokens @ weights, device, 5 * runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    sizes: dict[str, Any] = {"num_attention_heads": given.width // 64, "hidden_size": given.width}
    model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes, image_size=518, patch_size=14))
    encoder = DinoEncoder(model, "untrained", given.device, given.dtype)
    scorer = InpFormer(encoder)
    places = (scorer.resolution // 14) ** 2
    features = torch.randn(given.batch, 2, places, given.width, device=encoder.device)
    batch = Batch((features,), features[:, 0, :, 0], torch.zeros(given.batch, dtype=torch.long), [""] * given.batch)
    (group,) = scorer.parameter_groups(1e-4)
    optimizer = StableAdamW([group], weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        scorer.loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(group["params"], group["clip_together"])
        optimizer.step()

    with FlopCounterMode(display=False) as counter:
        step()
    rate = product_rate(given.width, given.batch * places, encoder.device, encoder.dtype, given.runs)
    took, counted = seconds(step, encoder.device, given.runs), counter.get_total_flops() / rate
    kind = f"{given.device}, {given.dtype}, {given.batch} pictures"
    print(f"{kind}: step {took:.3f} s, counted {counted:.3f} s at {rate / 1e9:.0f} GFLOP/s: {took / counted:.2f} x")


if __name__ == "__main__":
    main()
