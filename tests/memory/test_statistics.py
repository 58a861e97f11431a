"""Sums over tokens: their moments, and that adding, leaving out and joining pictures is exact."""

import pytest
import torch

from vlad.memory.statistics import Moments, Statistics

C = 5


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(3)
    return 4 + torch.randn(6, 20, C, generator=generator)


def moments(memory):
    return memory.moments(memory.rows)


def close(one, other):
    torch.testing.assert_close(tuple(map(torch.as_tensor, one)), tuple(map(torch.as_tensor, other)), rtol=1e-9, atol=0)


def memory_of(*parts):
    memory = Statistics(C)
    for part in parts:
        memory.add(part)
    return memory


def test_sums_give_the_moments_of_all_tokens(pictures):
    close(moments(memory_of(pictures)), Moments.of(pictures.flatten(0, 1)))


def test_moments_of_two_tokens_are_those_on_paper():
    mean, covariance = torch.tensor([1.0, 2.0]).double(), torch.tensor([[1.0, 2.0], [2.0, 4.0]]).double()
    found = Moments.of(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
    close(found, Moments(2, mean, covariance, torch.tensor(25.0).double()))


def test_adding_pictures_later_is_having_them_from_the_start(pictures):
    memory = memory_of(pictures[:2])
    assert moments(memory).samples == 40
    memory.condense()
    memory.add(pictures[2:])
    assert len(memory.ids) == 6
    close(moments(memory), moments(memory_of(pictures)))


def test_a_picture_left_out_was_never_there(pictures):
    memory = memory_of(pictures)
    with memory.excluding(torch.tensor([4, 0])):
        (means,) = memory.seen(memory.moments, pictures[:2], lambda tokens, seen: (seen.mean.expand(len(tokens), -1),))
    for mean, others in zip(means, (torch.cat([pictures[:4], pictures[5:]]), pictures[1:]), strict=True):
        torch.testing.assert_close(mean, others.flatten(0, 1).double().mean(0))
    assert moments(memory).samples == 120


def test_the_order_of_pictures_changes_nothing_and_one_given_twice_counts_twice(pictures):
    close(moments(memory_of(pictures)), moments(memory_of(pictures.flip(0))))
    twice = moments(memory_of(pictures[:1], pictures[:1]))
    close(twice, Moments(40, *moments(memory_of(pictures[:1]))[1:]))


def test_condensed_it_is_one_row_whatever_the_number_of_pictures(pictures):
    memory = memory_of(pictures)
    before = moments(memory)
    memory.condense()
    assert memory.rows.shape == (1, 2 + 2 * C + C * (C + 1) // 2)
    close(moments(memory), before)


def test_what_is_made_is_made_once_until_pictures_come(pictures):
    memory, calls = memory_of(pictures[:1]), []
    for _ in range(3):
        memory.seen(calls.append, pictures, lambda *_: ())
    assert len(calls) == 1
    memory.add(pictures[1:2])
    memory.seen(calls.append, pictures, lambda *_: ())
    assert [memory.moments(rows).samples for rows in calls] == [20, 40]


def test_it_says_what_is_wrong(pictures):
    memory = memory_of(pictures)
    with pytest.raises(ValueError, match="tokens are 4 wide, the memory's are 5"):
        memory.add(pictures[..., :4])
    with pytest.raises(ValueError, match="the memory is empty"):
        Statistics(C).seen(len, pictures, lambda *_: ())
    good = {"rows": memory.rows, "owners": memory.owners}
    for change, words in [
        ({"rows": memory.rows.float()}, "sums are kept in float64"),
        ({"rows": memory.rows[:, :7]}, "rows are 7 wide"),
        ({"rows": memory.rows * torch.nan}, "not finite"),
        ({"rows": memory.rows * 0}, "of no tokens"),
        ({"owners": memory.owners + 1}, "pictures 1 to 6 of 6"),
    ]:
        with pytest.raises(ValueError, match=words):
            Statistics(C).restore({**good, **change}, memory.ids, torch.device("cpu"))
    restored = Statistics(C)
    restored.restore(good, memory.ids, torch.device("cpu"))
    close(moments(restored), moments(memory))
