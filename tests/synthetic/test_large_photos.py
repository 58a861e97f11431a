"""Large photos: the mask is exact, and as large as was asked."""

import numpy as np
import pytest

from vlad.synthetic.large import large_photo


@pytest.mark.parametrize("defect", [4, 10, 37, 90])
@pytest.mark.parametrize("seed", range(4))
def test_the_mask_is_as_long_as_asked_and_outside_it_nothing_differs(seed, defect):
    size = (700, 1300)
    good, nothing = large_photo(np.random.default_rng(seed), size)
    bad, mask = large_photo(np.random.default_rng(seed), size, defect)
    assert good.shape == bad.shape == (*size, 3) and not nothing.any()
    rows, columns = np.nonzero(mask)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == defect
    np.testing.assert_array_equal(good[~mask], bad[~mask])
    assert np.abs(good[mask].astype(int) - bad[mask]).mean() > 20


def test_a_defect_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="a defect of 300 px in a photo of 500 x 400; expected 4 to 200"):
        large_photo(np.random.default_rng(0), (400, 500), 300)
