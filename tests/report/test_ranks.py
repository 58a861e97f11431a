"""Mean ranks and their critical difference, against the example of Demsar's paper and against SciPy's test."""

import numpy as np
import pytest
from scipy import stats

from vlad.report import Report, Row
from vlad.report.ranks import friedman

# table 6 of the paper: AUC of C4.5, C4.5+m, C4.5+cf, C4.5+m+cf on 14 data sets
TREES = """
.763 .768 .771 .798
.599 .591 .590 .569
.954 .971 .968 .967
.628 .661 .654 .657
.882 .888 .886 .898
.936 .931 .916 .931
.661 .668 .609 .685
.583 .583 .563 .625
.775 .838 .866 .875
1.000 1.000 1.000 1.000
.940 .962 .965 .962
.619 .666 .614 .669
.972 .981 .9751 .975
.957 .978 .946 .970
"""
AUC = np.array([[float(word) for word in line.split()] for line in TREES.split("\n") if line])


def test_the_papers_example_gives_its_ranks_and_its_critical_difference():
    mean, p, critical = friedman(AUC)
    assert mean == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    assert critical == pytest.approx(1.25, abs=5e-3)
    assert 0.01 < p < 0.03  # F is 3.69 there, without the correction for ties


def test_the_statistic_is_scipys_with_its_correction_for_ties():
    values = np.random.default_rng(0).integers(0, 6, (9, 5)).astype(float)
    chi = stats.friedmanchisquare(*values.T).statistic
    expected = stats.f.sf(8 * chi / (9 * 4 - chi), 4, 32)
    assert friedman(values)[1] == pytest.approx(expected)


def test_detectors_that_are_all_alike_do_not_differ_and_one_order_everywhere_does():
    assert friedman(np.ones((4, 3)))[:2] == (pytest.approx([2, 2, 2]), pytest.approx(1))
    mean, p, _ = friedman(np.tile([0.7, 0.9, 0.8], (5, 1)))
    assert mean.tolist() == [3, 1, 2] and p == 0


def report(table, missing=()):
    """A report of detector -> its values on data sets s0, s1, ..., some of them NaN."""
    rows = [
        Row(label, f"s{n}", "c", "image_auroc", float("nan") if (label, n) in missing else value, 9, 4, 5)
        for label, values in table.items()
        for n, value in enumerate(values)
    ]
    one = {"setting": "zero-shot", "method": "m", "encoder": None, "leaks": [], "device": None, "trained_on": []}
    data = {row.dataset: {"c": {"name": "c", "normal": 4, "anomalous": 5}} for row in rows}
    settings = {"detectors": dict.fromkeys(table, one), "data": data, "corrupt": [], "severities": []}
    return Report(tuple(rows), {**settings, "seconds": {}, "metric_size": "native"})


VALUES = {"a": [0.9, 0.8, 0.9, 0.9], "b": [0.8, 0.9, 0.8, 0.8], "c": [0.1, 0.2, 0.3, 0.4]}


def test_a_report_of_many_ranks_them_best_first_and_says_who_cannot_be_told_apart():
    found = report(VALUES).ranks()
    assert found.means == [("a", 1.25), ("b", 1.75), ("c", 3.0)] and found.over == "data sets"
    assert found.critical == pytest.approx(1.66, abs=0.01) and found.alike == [["a", "b"], ["b", "c"]]
    table = report(VALUES).table()
    assert "image AUROC, mean ranks over 4 data sets; Friedman test p = 0.0" in table
    assert "not told apart: a; b" in table


def test_data_sets_on_which_one_has_no_value_do_not_count_and_few_rank_nothing():
    assert report(VALUES, {("a", 1)}).ranks().places == ["s0", "s2", "s3"]
    assert report(VALUES, {("a", 1), ("b", 2)}).ranks() is None
    assert report({key: VALUES[key] for key in "ab"}).ranks() is None
    assert "mean ranks" not in report({key: VALUES[key] for key in "ab"}).table()
