"""The distance from tokens to the closest rows of a memory, in bounded space: one search for every method.

It picks the neighbours by matrix products over chunks and measures the distance to those it picked directly, as the
length of a difference: a token that is in the memory gets 0, where 1 - cosine would get some 1e-7, and the products may
run in bfloat16 without blurring the result.
"""

import logging
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)

BUDGET = 64 * 2**20  # bytes of one working block of a search
METRICS = ("cosine", "euclidean", "squared")
# With `tiny` the exact search over so many rows takes 2.6 times as long as the encoder, at a fourth of them less
# than it; the cells of an approximate one pay for themselves after some 6 pictures. See tests/bench/bench_memory.py.
FAISS_ROWS = 25_000


def nearest(
    queries: Tensor,
    memory: Tensor,
    k: int = 1,
    *,
    metric: str = "cosine",
    owners: Tensor | None = None,
    without: Tensor | None = None,
    arithmetic: torch.dtype = torch.float32,
    budget: int = BUDGET,
) -> tuple[Tensor, Tensor]:
    """Distances [Q, k] float32, ascending, and row numbers [Q, k] of each query's k closest rows; never [Q, M] at once.

    Args:
        queries: [Q, C].
        memory: [M, C], M >= 1, on the same device; float16 rows are widened chunk by chunk.
        k: neighbours; fewer come back where fewer rows can be asked.
        metric: "cosine" (1 - cosine, in [0, 2]; lengths do not matter), "euclidean", or its square.
        owners: [M] the number of the picture each row comes from.
        without: [Q] the picture whose rows a query must not see, -1 for none.
        arithmetic: of the products that pick neighbours; distances are float32 in any case.
        budget: bytes of a working block; changes speed and memory, never the result beyond rounding.

    Raises:
        ValueError: an unknown metric, an empty memory, other widths than the memory's, or no row left to a query.
    """
    _check(queries, memory, k, metric)
    if torch.compiler.is_exporting():  # the number of queries is not known there: no chunks
        asked = scaled(queries, metric)
        numbers = _closest(asked, scaled(memory, metric), min(k, len(memory)), metric, torch.float32, None, None)[1]
        return _measured_once(asked, memory, numbers, metric)
    k = min(k, _askable(memory, owners, without))
    queries = F.normalize(queries.float(), dim=-1) if metric == "cosine" else queries.float()
    M, C = memory.shape
    rows_at_once = max(1, min(M, budget // (4 * C)))
    asked_at_once = max(1, budget // (4 * rows_at_once))
    value = queries.new_full((len(queries), 0), 0.0)
    index = torch.zeros((len(queries), 0), dtype=torch.long, device=queries.device)
    for start in range(0, M, rows_at_once):
        part = scaled(memory[start : start + rows_at_once], metric)
        hidden = None if owners is None or without is None else owners[start : start + rows_at_once]
        found = [
            _closest(
                asked, part, k, metric, arithmetic, hidden, None if without is None else without[at : at + len(asked)]
            )
            for at, asked in zip(range(0, len(queries), asked_at_once), queries.split(asked_at_once), strict=True)
        ]
        value = torch.cat([value, torch.cat([v for v, _ in found])], 1)
        index = torch.cat([index, torch.cat([i for _, i in found]) + start], 1)
        value, best = value.topk(min(k, value.shape[1]), dim=1)
        index = index.gather(1, best)
    return _measured(queries, memory, index, metric, max(1, budget // (4 * C * k)))


def _check(queries: Tensor, memory: Tensor, k: int, metric: str) -> None:
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}; expected one of {', '.join(METRICS)}")
    if k < 1:
        raise ValueError(f"k is {k}; expected 1 neighbour or more")
    if not len(memory):
        raise ValueError("the memory is empty; remember at least one normal picture first")
    if queries.ndim != 2 or queries.shape[1] != memory.shape[1]:
        raise ValueError(f"queries are {list(queries.shape)}; expected [Q, {memory.shape[1]}], as wide as the memory")


def _askable(memory: Tensor, owners: Tensor | None, without: Tensor | None) -> int:
    """How many rows the query with the fewest may see."""
    if owners is None or without is None or not len(without):
        return len(memory)
    hidden = max(int((owners == number).sum()) for number in without.unique())
    if hidden == len(memory):
        raise ValueError("without that picture the memory is empty; remember two normal pictures or more")
    return len(memory) - hidden


def scaled(part: Tensor, metric: str) -> Tensor:
    """The rows [M, C] in float32, of length 1 where the metric does not see lengths."""
    return F.normalize(part.float(), dim=-1) if metric == "cosine" else part.float()


def _closest(
    asked: Tensor,
    part: Tensor,
    k: int,
    metric: str,
    arithmetic: torch.dtype,
    owners: Tensor | None,
    without: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Closeness (higher is closer) and row numbers within `part`, [q, <= k] each."""
    closeness = (asked.to(arithmetic) @ part.to(arithmetic).T).float()  # [q, m]
    if metric != "cosine":  # |a - b|^2 = |a|^2 - 2 (a . b - |b|^2 / 2)
        closeness -= part.square().sum(1) / 2
    if owners is not None and without is not None:
        closeness.masked_fill_(owners[None] == without[:, None], -torch.inf)
    if k == 1:
        return closeness.max(1, keepdim=True)
    return closeness.topk(min(k, len(part)), dim=1)


def _measured(queries: Tensor, memory: Tensor, index: Tensor, metric: str, at_once: int) -> tuple[Tensor, Tensor]:
    """The distances themselves, as lengths of differences, in ascending order."""
    parts = [
        _measured_once(asked, memory, numbers, metric)
        for asked, numbers in zip(queries.split(at_once), index.split(at_once), strict=True)
    ]
    distances, numbers = zip(*parts, strict=True)
    return torch.cat(distances), torch.cat(numbers)


def _measured_once(queries: Tensor, memory: Tensor, index: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    squared = (scaled(memory[index], metric) - queries[:, None]).square().sum(-1)  # [q, k]
    distance = {"cosine": squared / 2, "euclidean": squared.sqrt(), "squared": squared}[metric]
    distance, order = distance.sort(1)
    return distance, index.gather(1, order)


def reweighted(distances: Tensor, queries: Tensor, memory: Tensor, b: int = 9) -> Tensor:
    """Image score, a number: the largest patch distance, weighted down where its neighbour is itself an outlier.

    Args:
        distances: [N] of one picture's patches to their closest rows, not squared.
        queries: [N, C] those patches.
        memory: [M, C].
        b: rows around the closest one that are asked; all where there are fewer.

    Source: PatchCore (arXiv:2106.08265), eq. 7; the official code leaves it out.
    """
    worst = distances.argmax()
    patch = queries[worst : worst + 1]
    closest = nearest(patch, memory, metric="euclidean")[1][0]  # [1]
    around = nearest(memory[closest].float(), memory, b, metric="euclidean")[1][0]  # [b], the closest itself first
    around = torch.cat([closest, around[around != closest]])[:b]
    lengths = (memory[around].float() - patch.float()).norm(dim=1)
    return (1 - lengths.softmax(0)[0]) * distances[worst] if len(around) > 1 else distances[worst]


class Cells:
    """An approximate search through faiss: rows lie in cells, and a query looks into the cells closest to it alone.

    2 sqrt(M) cells by k-means, a twenty-fourth of them searched. Only the neighbours are approximate: the distances
    come from `nearest`'s own measuring, so they are never below the exact ones, and a row that is there has 0.
    It keeps a float32 copy of the rows. The recall of the first queries is logged; tests/bench/bench_memory.py measures
    it with the time.
    """

    def __init__(self, memory: Tensor, metric: str = "cosine"):
        """Sorts the rows [M, C] into cells.

        Raises:
            ModuleNotFoundError: faiss is not installed.
            ValueError: an unknown metric or an empty memory.
        """
        _check(memory, memory, 1, metric)
        faiss = faiss_module()
        faiss.omp_set_num_threads(torch.get_num_threads())
        self.memory, self.metric, self._asked = memory, metric, False
        cells = max(1, min(len(memory) // 39, int(2 * len(memory) ** 0.5)))  # faiss warns below 39 rows a cell
        rows = scaled(memory, metric).cpu().contiguous().numpy()
        self._index = faiss.index_factory(memory.shape[1], f"IVF{cells},Flat")
        self._index.cp.niter, self._index.cp.max_points_per_centroid = 5, 64
        self._index.train(rows)
        self._index.add(rows)
        self._index.nprobe = -(-cells // 24)

    def nearest(self, queries: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        """Distances [Q, k] float32, ascending, and row numbers [Q, k], as `nearest` gives them."""
        _check(queries, self.memory, k, self.metric)
        k = min(k, len(self.memory))
        asked = scaled(queries, self.metric)
        index = torch.from_numpy(self._index.search(asked.cpu().contiguous().numpy(), k)[1]).to(queries.device)
        short = (index < 0).any(1)  # the cells looked into held fewer than k rows
        if short.any():
            index[short] = nearest(queries[short], self.memory, k, metric=self.metric)[1]
        found = _measured(asked, self.memory, index, self.metric, max(1, BUDGET // (4 * asked.shape[1] * k)))
        if not self._asked and len(queries):
            self._asked, some = True, slice(None, None, -(-len(queries) // 256))
            share = recall(found[0][some], nearest(queries[some], self.memory, k, metric=self.metric)[0])
            logger.info("faiss over %d rows: recall %.3f of the first queries", len(self.memory), share)
        return found


def faiss_module() -> Any:
    """faiss; ModuleNotFoundError says how to install it."""
    try:
        return import_module("faiss")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "search='faiss' needs faiss, which is not installed; pip install 'vlad-ad[faiss]', or leave it 'exact'"
        ) from error


def recall(found: Tensor, exact: Tensor) -> float:
    """In [0, 1]: how many of the k closest rows an approximate search found, from distances [Q, k]; a tie counts."""
    return float((found <= exact[:, -1:] + 1e-6).float().mean())
