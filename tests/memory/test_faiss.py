"""The approximate search through faiss: never closer than the exact one, and off unless it is asked for."""

import logging
import sys

import pytest
import torch

import vlad
from vlad import memory as module
from vlad.memory import Memory
from vlad.memory.nearest import Cells, nearest, recall


def clustered(n, seed=0, width=16):
    """Rows around 40 centres, as tokens lie."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(40, width, generator=torch.Generator().manual_seed(9))
    return centres[torch.randint(40, (n,), generator=generator)] + torch.randn(n, width, generator=generator)


@pytest.fixture
def faiss():
    return pytest.importorskip("faiss", reason="faiss-cpu, the extra 'faiss', is not installed")


def test_without_faiss_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'vlad-ad\[faiss\]'"):
        Memory(search="faiss")
    Memory(search="exact")
    with pytest.raises(ValueError, match="expected 'exact' or 'faiss'"):
        Memory(search="fast")


def test_recall_counts_what_is_as_close_as_the_exact_ones():
    exact = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert recall(exact, exact) == 1
    assert recall(torch.tensor([[1.0, 5.0], [4.0, 4.0]]), exact) == 0.75


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "squared"])
@pytest.mark.parametrize("k", [1, 3])
def test_distances_are_never_below_the_exact_ones_and_seldom_above(faiss, metric, k):
    rows, queries = clustered(8000), clustered(200, 1)
    exact, index = nearest(queries, rows, k, metric=metric)
    found, numbers = Cells(rows, metric).nearest(queries, k)
    assert (found >= exact - 1e-6).all() and recall(found, exact) > 0.8
    same = (numbers == index).all(1)
    torch.testing.assert_close(found[same], exact[same])


def test_a_row_that_is_there_has_distance_zero(faiss):
    rows = clustered(4000)
    distance, index = Cells(rows, "euclidean").nearest(rows[:50])
    assert distance.max() == 0 and index[:, 0].tolist() == list(range(50))


def test_more_neighbours_than_the_cells_hold_are_searched_exactly(faiss):
    rows, queries = clustered(2000), clustered(5, 1)
    exact, found = nearest(queries, rows, 1500), Cells(rows).nearest(queries, 1500)
    torch.testing.assert_close(found[0], exact[0])
    assert Cells(rows[:3]).nearest(queries, 9)[0].shape == (5, 3)


def test_a_memory_searches_by_cells_only_when_it_is_large_and_asked_to(faiss, monkeypatch, caplog):
    monkeypatch.setattr(module, "FAISS_ROWS", 1000)
    caplog.set_level(logging.INFO, logger="vlad.memory.nearest")
    exact, fast = Memory(), Memory(search="faiss")
    queries = clustered(60, 1).view(2, 30, 16)
    for picture in range(4):
        for memory in (exact, fast):
            memory.add(clustered(500, picture + 2)[None], [f"{picture}"])
        found, expected = fast.distance(queries), exact.distance(queries)
        assert (found >= expected - 1e-6).all() and (found == expected).float().mean() > 0.6
        assert fast.distance(queries).equal(found), "the cells are kept"
        if picture < 2:
            assert found.equal(expected) and fast._cells is None
    assert exact._cells is None
    assert [record.message.split(": recall")[0] for record in caplog.records] == [
        "faiss over 1500 rows",
        "faiss over 2000 rows",
    ]
    with fast.excluding(torch.tensor([0, 1])), exact.excluding(torch.tensor([0, 1])):
        assert fast.distance(queries).equal(exact.distance(queries)), "thresholds come from the exact search"


def test_patch_memory_asks_for_it_by_an_option(small_encoder, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ModuleNotFoundError, match="faiss"):
        vlad.load("patch_memory", encoder=small_encoder, search="faiss")
    with pytest.raises(ValueError, match="expected 'exact' or 'faiss'"):
        vlad.load("patch_memory", encoder=small_encoder, search="fast")
    assert vlad.load("patch_memory", encoder=small_encoder).options["search"] == "exact"
