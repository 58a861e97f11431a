import numpy as np
import pytest
import torch
from scipy import ndimage

from vlad.maps import anomaly_probability, gaussian, harmonic_mean, smooth_map, to_size


def test_harmonic_mean_of_one_and_a_third_is_a_half():
    assert harmonic_mean([torch.tensor([1.0]), torch.tensor([1 / 3])]).item() == torch.tensor(0.5)


def test_harmonic_mean_is_zero_where_one_term_is_zero_or_below_by_rounding():
    result = harmonic_mean([torch.tensor([0.0, -1e-8, 0.5]), torch.tensor([1.0, 1.0, 0.5])])
    assert result.tolist() == [0.0, 0.0, 0.5]


def test_probability_depends_on_direction_alone():
    prototypes = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    embeddings = torch.tensor([[0.0, 3.0], [2.0, 2.0], [5.0, 0.0]])
    values = anomaly_probability(embeddings, prototypes)
    assert values[1] == 0.5
    assert values[0] > 0.999 and values[2] < 0.001
    torch.testing.assert_close(values, anomaly_probability(embeddings * 7, prototypes * 9))


def test_to_size_keeps_a_constant_map_and_its_corners():
    grown = to_size(torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]), (4, 4))[0]
    assert grown[0].tolist() == [0.0, 0.25, 0.75, 1.0]


@pytest.mark.parametrize("sigma", [0, 2, 8])
@pytest.mark.parametrize("size", [(7, 7), (56, 40), (240, 240)])
def test_smoothing_by_matrices_is_that_of_scipy(size, sigma):
    grid = torch.rand(3, 7, 5, generator=torch.Generator().manual_seed(0))
    slow = to_size(grid, size)
    expected = np.stack([ndimage.gaussian_filter(one, sigma) for one in slow.numpy()]) if sigma else slow.numpy()
    np.testing.assert_allclose(smooth_map(grid, size, sigma), expected, atol=3e-7)
    np.testing.assert_allclose(gaussian(slow, sigma), expected, atol=6e-7)  # sums of up to 65 values, twice
