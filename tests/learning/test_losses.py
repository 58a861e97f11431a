"""Losses over pixels leave out the pictures that nobody has marked, whose masks are NaN."""

import math

import pytest
import torch

from vlad.learning.losses import balanced_focal, dice, focal, segmentation, whole_dice


def drawn(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


LOSSES = {
    "focal": lambda maps, masks: focal(maps.softmax(1), masks),
    "dice": lambda maps, masks: dice(maps[:, 1], masks),
    "dice by rows": lambda maps, masks: dice(maps[:, 1], masks, rows=True),
    "segmentation": lambda maps, masks: segmentation(maps.softmax(1), masks),
    "balanced focal": lambda maps, masks: balanced_focal(maps[:, 1], masks),
    "whole dice": lambda maps, masks: whole_dice(maps[:, 1], masks),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_picture_that_is_not_marked_changes_neither_the_loss_nor_its_gradient(name):
    maps, masks = drawn(4, 2, 8, 8).requires_grad_(), (drawn(4, 8, 8) > 0.5).float()
    masks[[1, 3]] = math.nan
    LOSSES[name](maps, masks).backward()
    rest = maps.detach()[[0, 2]].clone().requires_grad_()
    expected = LOSSES[name](rest, masks[[0, 2]])
    expected.backward()
    assert LOSSES[name](maps, masks).item() == expected.item() > 0
    assert torch.equal(maps.grad[[0, 2]], rest.grad) and not maps.grad[[1, 3]].any()


@pytest.mark.parametrize("name", LOSSES)
def test_where_no_picture_is_marked_the_loss_is_nothing_and_can_be_gone_back_through(name):
    maps = drawn(2, 2, 8, 8).requires_grad_()
    value = LOSSES[name](maps, torch.full((2, 8, 8), math.nan))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6) and not maps.grad.any()
