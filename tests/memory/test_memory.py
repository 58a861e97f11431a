"""The search, the coreset and the memory against the official codes' numbers (tests/golden/patchcore.npz)."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN

from vlad.memory import Memory, coreset, coreset_start, neighbourhood_mean
from vlad.memory.nearest import nearest, reweighted


def nearest_distance(queries, memory):
    """[Q] half the cosine distance to the closest row."""
    return nearest(queries, memory, 1, metric="cosine")[0].mean(1).clamp_max(2) / 2


def patchcore_embedding(layers, size, width, target):
    """[B, N, target] of feature maps [B, C_l, rows_l, columns_l], the first with the grid that N counts.

    Each place takes its size x size neighbours, coarser layers are brought to the first one's grid (bilinear,
    align_corners=False), each layer's values are averaged down to `width`, all layers together to `target`.

    Source: PatchCore (arXiv:2106.08265), section 3.1, as in the official code.
    """
    grid = layers[0].shape[-2:]
    parts = []
    for features in layers:
        around = F.unfold(features, size, padding=(size - 1) // 2)  # [B, C_l * size * size, N_l]
        around = around.unflatten(2, features.shape[-2:])
        if features.shape[-2:] != grid:
            around = F.interpolate(around, grid, mode="bilinear", align_corners=False)
        parts.append(F.adaptive_avg_pool1d(around.flatten(2).transpose(1, 2), width))  # [B, N, width]
    return F.adaptive_avg_pool1d(torch.cat(parts, -1), target)


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "patchcore.npz")


@pytest.fixture(scope="module")
def maps(golden_weights):
    """The goldens' recipe of tokens [n, N, C], with blocks that are odd."""

    def make(tag, base, n, width, side, odd):
        scale = width**0.5
        common = scale * golden_weights.tensor(f"pc.{base}.base", (side * side, width))
        tokens = []
        for i in range(n):
            own = common + 0.6 * scale * golden_weights.tensor(f"pc.{tag}.noise.{i}", (side * side, width))
            if i in odd:
                top, bottom, left, right = odd[i]
                shift = 1.5 * scale * golden_weights.tensor(f"pc.{tag}.odd.{i}", (1, width))[0]
                own.view(side, side, width)[top:bottom, left:right] += shift
            tokens.append(own)
        return torch.stack(tokens)

    return make


@pytest.fixture(scope="module")
def patchcore(maps):
    """Reference and query embeddings of the golden, [6, 64, 128] and [3, 64, 128]."""

    def embed(parts):
        grids = [part.transpose(1, 2).unflatten(2, (side, side)) for part, side in zip(parts, (8, 4), strict=True)]
        return patchcore_embedding(grids, size=3, width=64, target=128)

    references = embed([maps("ref.a", "a", 6, 32, 8, {}), maps("ref.b", "b", 6, 48, 4, {})])
    odd = {1: (2, 5, 3, 6), 2: (0, 2, 6, 8)}, {1: (1, 3, 1, 3), 2: (0, 1, 3, 4)}
    queries = embed([maps("qry.a", "a", 3, 32, 8, odd[0]), maps("qry.b", "b", 3, 48, 4, odd[1])])
    return references, queries


@pytest.fixture(scope="module")
def bank(patchcore, golden):
    return patchcore[0].flatten(0, 1)[golden["pc_coreset_order"]]


def rows(n, width, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


# Against the official codes


def test_the_embedding_is_the_official_one(patchcore, golden):
    np.testing.assert_allclose(patchcore[0][0], golden["pc_embed_ref0"], atol=1e-6, rtol=0)
    np.testing.assert_allclose(patchcore[1][1], golden["pc_embed_query1"], atol=1e-6, rtol=0)


def test_the_exact_coreset_takes_rows_in_the_official_order(patchcore, golden):
    order = coreset(patchcore[0].flatten(0, 1), len(golden["pc_coreset_order"]), start="exact")
    assert order.tolist() == golden["pc_coreset_order"].tolist()


def test_the_approximate_coreset_takes_rows_in_the_official_order(patchcore, golden):
    all_rows = patchcore[0].flatten(0, 1)
    assert coreset_start(len(all_rows), 0) == golden["pc_approx_start"].tolist()
    order = coreset(all_rows, len(golden["pc_approx_order"]), start="approximate", seed=0)
    assert order.tolist() == golden["pc_approx_order"].tolist()


@pytest.mark.parametrize("k", [1, 5])
def test_squared_distances_to_the_coreset_are_those_of_faiss(patchcore, bank, golden, k):
    distances, index = nearest(patchcore[1].flatten(0, 1), bank, k, metric="squared")
    scores = distances.mean(1).view(3, 64)
    np.testing.assert_allclose(scores, golden[f"pc_patch_k{k}"], rtol=1e-6)
    np.testing.assert_allclose(scores.amax(1), golden[f"pc_image_k{k}"], rtol=1e-6)
    assert index[:, 0].tolist() == golden["pc_nn_index"].ravel().tolist()


def test_reweighting_matches_the_reference(patchcore, bank, golden):
    for queries, patches, image in zip(patchcore[1], golden["rw_patch"], golden["rw_image"], strict=True):
        distances = nearest(queries, bank, metric="euclidean")[0][:, 0]
        np.testing.assert_allclose(distances, patches, rtol=1e-6)
        assert float(reweighted(distances, queries, bank)) == pytest.approx(float(image), rel=1e-6)


def test_cosine_distances_are_those_of_anomaly_dino(maps, golden):
    references = maps("dino.ref", "dino", 2, 64, 20, {}).flatten(0, 1)
    queries = maps("dino.qry", "dino", 3, 64, 20, {0: (4, 8, 4, 9), 2: (15, 17, 0, 3)})
    distances = nearest(queries.flatten(0, 1), references)[0].view(3, 400)
    np.testing.assert_allclose(distances, golden["dino_patch"], atol=1e-6, rtol=0)


def test_associations_are_those_of_winclip(golden_weights, golden):
    from vlad.methods.winclip import covering_mean

    def tokens(tag, count):
        base = golden_weights.tensor(f"pc.win.{tag}.base", (1, count, 48))
        return 48**0.5 * (base + 0.5 * golden_weights.tensor(f"pc.win.{tag}", (6, count, 48)))

    levels = []
    for tag, count, size in (("p", 36, 1), ("w2", 25, 2), ("w3", 16, 3)):
        both = tokens(tag, count)
        found = nearest_distance(both[4:].flatten(0, 1), both[:4].flatten(0, 1)).view(2, count)
        levels.append(covering_mean(found, (6, 6), size))
    np.testing.assert_allclose(torch.stack(levels), golden["win_scales"], atol=2e-7, rtol=0)
    np.testing.assert_allclose(torch.stack(levels).mean(0), golden["win_few"], atol=2e-7, rtol=0)


# Properties of the search


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "squared"])
@pytest.mark.parametrize("k", [1, 4])
def test_the_search_is_the_slow_table_whatever_the_chunks(metric, k):
    queries, memory = rows(23, 9), rows(41, 9, 1)
    if metric == "cosine":
        table = 1 - torch.nn.functional.cosine_similarity(queries[:, None], memory[None], dim=-1)
    else:
        table = torch.cdist(queries.double(), memory.double()).float() ** (2 if metric == "squared" else 1)
    expected, order = table.sort(1)
    for budget in (1, 100, 1000, 10**8):
        distance, index = nearest(queries, memory, k, metric=metric, budget=budget)
        torch.testing.assert_close(distance, expected[:, :k], atol=1e-5, rtol=1e-5)
        assert torch.equal(index, order[:, :k])


def test_a_query_that_is_in_the_memory_has_distance_zero():
    memory = 100 * rows(50, 640)
    for metric in ("cosine", "euclidean", "squared"):
        distance, index = nearest(memory, memory, metric=metric)
        assert distance.max() == 0, "exactly: distances are lengths of differences"
        assert index[:, 0].tolist() == list(range(50))
    assert nearest_distance(memory, memory.half()).max() < 1e-7, "stored in float16 it is rounded"


def test_neighbours_picked_in_bfloat16_are_hardly_farther():
    queries, memory = rows(300, 64), rows(2000, 64, 1)
    exact = nearest(queries, memory)[0]
    coarse = nearest(queries, memory, arithmetic=torch.bfloat16)[0]
    assert (coarse >= exact - 1e-6).all()
    assert (coarse - exact).max() < 4e-3


def test_a_picture_that_is_left_out_is_not_seen():
    memory, owners = rows(12, 5), torch.arange(3, dtype=torch.int32).repeat_interleave(4)
    without = torch.tensor([0, 1, 2, -1] * 3, dtype=torch.int32)
    distance, index = nearest(memory, memory, owners=owners, without=without, budget=1)
    for query, number in enumerate(without.tolist()):
        others = [i for i in range(12) if owners[i] != number]
        expected = nearest(memory[query : query + 1], memory[others])[0]
        assert float(distance[query]) == pytest.approx(float(expected), abs=1e-6)
        assert int(index[query]) in others
    assert nearest(memory, memory, 99, owners=owners, without=without)[0].shape == (12, 8), "8 rows remain to each"


def test_lengths_do_not_matter_to_the_cosine():
    queries, memory = rows(7, 6), rows(9, 6, 1)
    scaled = memory * torch.linspace(0.01, 100, 9)[:, None]
    torch.testing.assert_close(nearest_distance(queries, memory), nearest_distance(5 * queries, scaled))
    assert float(nearest_distance(queries, -queries[:1])[0]) == pytest.approx(1), "opposite"


def test_wrong_searches_are_refused():
    with pytest.raises(ValueError, match="the memory is empty"):
        nearest(rows(2, 3), rows(0, 3))
    with pytest.raises(ValueError, match=r"expected \[Q, 4\]"):
        nearest(rows(2, 3), rows(2, 4))
    with pytest.raises(ValueError, match="expected one of cosine, euclidean, squared"):
        nearest(rows(2, 3), rows(2, 3), metric="manhattan")
    with pytest.raises(ValueError, match="two normal pictures or more"):
        one = torch.zeros(2, dtype=torch.int32)
        nearest(rows(2, 3), rows(2, 3), owners=one, without=one)


# Coreset and neighbourhood


def test_the_coreset_starts_with_the_row_of_the_largest_distances_and_goes_on_with_the_farthest():
    points = torch.tensor([[0.0, 0], [1, 0], [0, 1], [10, 0], [0, 7]])
    assert coreset(points, 3).tolist() == [3, 4, 1], "the last is 7.07 from (0, 7), the origin 7"
    assert sorted(coreset(points, 5).tolist()) == [0, 1, 2, 3, 4]


def test_a_coreset_of_rows_that_are_there_twice_covers_each_once():
    points = rows(20, 4).repeat(2, 1)
    taken = coreset(points, 20)
    assert len({int(i) % 20 for i in taken}) == 20


def test_a_coreset_is_the_same_for_the_same_seed_and_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    wide = rows(200, 300)
    assert torch.equal(coreset(wide, 20, seed=1), coreset(wide, 20, seed=1))
    assert not torch.equal(coreset(wide, 20, seed=1), coreset(wide, 20, seed=2))
    assert torch.equal(state, torch.get_rng_state())


def test_wrong_coresets_are_refused():
    for count in (0, 4):
        with pytest.raises(ValueError, match="expected 1 to 3"):
            coreset(rows(3, 2), count)
    with pytest.raises(ValueError, match="'exact', 'approximate' or None"):
        coreset(rows(3, 2), 1, start="random")


def test_the_neighbourhood_mean_counts_the_outside_as_zeros():
    tokens = torch.arange(1.0, 10)[None, :, None]  # 3 x 3 patches, one channel
    mean = neighbourhood_mean(tokens, (3, 3), 3)[0, :, 0]
    assert mean[4] == 5 and mean[0] == pytest.approx((1 + 2 + 4 + 5) / 9)
    assert torch.equal(neighbourhood_mean(tokens, (3, 3), 1), tokens)


# The memory


def filled(*counts, width=6):
    memory = Memory()
    for number, count in enumerate(counts):
        memory.add(rows(count, width, number)[None], [f"{number}.png"])
    return memory


def test_leaving_a_picture_out_of_a_coreset_is_a_coreset_of_the_others():
    memory, others = Memory(share=0.3), Memory(share=0.3)
    tokens = rows(60, 6).view(3, 20, 6)
    memory.add(tokens)
    others.add(tokens[1:])
    others.condense()
    with memory.excluding(torch.tensor([0])):
        left = memory.distance(tokens[:1])
    torch.testing.assert_close(left, others.distance(tokens[:1]))
    assert left.min() > 0
    memory.condense()
    assert len(memory) == 18 and memory.distance(tokens).min() == 0


def test_float16_rows_of_a_file_are_searched_exactly_where_the_encoder_is_exact():
    coarse, exact = Memory(exact=False), Memory(exact=True)
    coarse.add(rows(40, 512, 1)[None])
    coarse.ids = ["one"]
    exact.restore({"rows": coarse.rows, "owners": coarse.owners}, ["one"], torch.device("cpu"))
    assert coarse.rows.dtype == torch.float16 and exact.rows.dtype == torch.float32
    queries = rows(300, 512, 2)
    torch.testing.assert_close(exact.distance(queries[None])[0], nearest(queries, coarse.rows)[0][:, 0], atol=0, rtol=0)


@pytest.mark.parametrize("exact", [True, False])
def test_the_closest_rows_are_those_that_the_distance_is_measured_to(exact):
    memory, tokens = Memory(exact=exact), torch.stack([rows(5, 6, seed) for seed in (0, 7)])
    for number, count in enumerate((5, 9)):
        memory.add(rows(count, 6, number)[None], [f"{number}.png"])
    for without in (None, torch.tensor([0, 1])):
        with nullcontext() if without is None else memory.excluding(without):
            distance, found = memory.closest(tokens)
            torch.testing.assert_close(distance, memory.distance(tokens), atol=1e-6, rtol=1e-5)
        unit = torch.nn.functional.normalize(tokens, dim=-1)
        torch.testing.assert_close(1 - (unit * found).sum(-1), distance, atol=1e-6 if exact else 1e-3, rtol=0)
        assert (distance[0].max() < 1e-3) == (without is None), "its own rows are seen, unless they are left out"


def test_an_id_stands_for_one_picture_only():
    memory = filled(4)
    with pytest.raises(ValueError, match="not in the memory yet"):
        memory.add(rows(4, 6)[None], ["0.png"])
    with pytest.raises(ValueError, match="tokens are 5 wide"):
        memory.add(rows(4, 5)[None], ["1.png"])


def test_an_empty_memory_says_so():
    with pytest.raises(ValueError, match="the memory is empty"):
        Memory().distance(rows(4, 6)[None])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("owners"), "both rows and owners"),
        (lambda t: t.update(rows=t["rows"].double()), "float16 or float32"),
        (lambda t: t.update(rows=t["rows"][0]), r"expected \[M, C\]"),
        (lambda t: t.update(owners=t["owners"][1:]), "of int32"),
        (lambda t: t.update(owners=t["owners"].long()), "of int32"),
        (lambda t: t.update(owners=t["owners"] + 1), "pictures 1 to 2 of 2"),
        (lambda t: t.update(rows=t["rows"] * torch.nan), "not finite"),
        (lambda t: t.update(rows=t["rows"] * 2), "not of length 1"),
    ],
)
def test_tensors_that_cannot_be_a_memory_are_refused(change, words):
    memory = filled(4, 5)
    tensors = {"rows": memory.rows, "owners": memory.owners}
    change(tensors)
    with pytest.raises(ValueError, match=words):
        Memory().restore(tensors, memory.ids, torch.device("cpu"))


def test_kept_pictures_lie_in_few_blocks_and_come_back_as_they_were(monkeypatch):
    from vlad.memory import normals

    monkeypatch.setattr(normals, "BLOCK_BYTES", 1000)
    pictures = [np.random.default_rng(i).integers(0, 256, (8 + i, 10, 3), np.uint8) for i in range(9)]
    pictures.append(np.full((30, 20, 3), 7, np.uint8))  # larger than a block
    kept = normals.KeptPictures()
    for number, picture in enumerate(pictures):
        kept[2 * number] = picture.copy()
    assert len(kept) == 10 and 4 in kept and 5 not in kept
    assert kept.bytes == sum(one.nbytes for one in pictures)
    assert all(np.array_equal(kept[2 * number], picture) for number, picture in enumerate(pictures))
    assert len(kept._blocks) < 7
