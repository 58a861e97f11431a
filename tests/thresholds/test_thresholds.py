"""Thresholds keep what they promise, and promise nothing they cannot keep."""

import math

import numpy as np
import pytest
from scipy import stats

from vlad.thresholds import (
    Calibration,
    conformal,
    from_labelled,
    ladder,
    normals_needed,
    odd_one,
    p_value,
    rate_interval,
    t_bound,
)

LAWS = {
    "normal": lambda draw, shape: 10 + draw.standard_normal(shape),
    "lognormal": lambda draw, shape: draw.lognormal(0, 0.4, shape),
    "gumbel": lambda draw, shape: 10 + draw.gumbel(size=shape),
}


def alarms(rule, law, n, draws=2000):
    """The share of fresh normals that reach the threshold, over many calibration sets."""
    values = LAWS[law](np.random.RandomState(0), (draws, n + 1))
    return np.mean([row[-1] >= rule(row[:-1]).threshold for row in values])


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("n", "rate"), [(19, 0.05), (40, 0.05), (9, 0.1), (3, 0.25)])
def test_conformal_thresholds_keep_their_rate_whatever_the_law(law, n, rate):
    error = math.sqrt(rate / 2000)
    assert alarms(lambda scores: conformal(scores, rate), law, n) == pytest.approx(
        math.floor(rate * (n + 1)) / (n + 1), abs=4 * error
    )


@pytest.mark.parametrize("law", LAWS)
def test_the_middle_of_the_ladder_alarms_no_more_than_one_in_n_plus_one(law):
    for n in (5, 10, 18):
        assert alarms(ladder, law, n) <= 1 / (n + 1) + 0.02


def test_the_threshold_is_just_above_the_largest_of_19_normals():
    made = conformal(list(range(19)), 0.05)
    assert made.threshold == math.nextafter(18, math.inf)
    assert (made.method, made.n, made.rate) == ("conformal", 19, 0.05)
    assert conformal(list(range(39)), 0.05).threshold == math.nextafter(37, math.inf), "the 38th of 39"


def test_the_threshold_and_the_p_value_agree():
    scores = [0.1, 0.2, 0.2, 0.3, 0.5, 0.5, 0.6, 0.9, 1.0]
    made = conformal(scores, 0.2)
    for score in [*scores, 0.0, 0.55, 0.95, 2.0]:
        assert (score >= made.threshold) == (p_value(score, scores) <= 0.2)


def test_p_values_by_hand():
    assert p_value(5, [1, 2, 3]) == 1 / 4
    assert p_value(2, [1, 2, 3]) == 3 / 4, "an equal normal counts"
    assert p_value(0, [1, 2, 3]) == 1
    assert p_value(0, []) is None


@pytest.mark.parametrize(("rate", "needed"), [(0.05, 19), (0.01, 99), (0.5, 2), (1 / 3, 2), (0.3, 3), (0.001, 999)])
def test_a_rate_below_one_in_n_plus_one_is_refused_and_the_error_says_how_many_it_takes(rate, needed):
    assert normals_needed(rate) == needed
    assert conformal(range(needed), rate).rate == rate
    with pytest.raises(ValueError, match=f"give {needed} normal pictures or more"):
        conformal(range(needed - 1), rate)


@pytest.mark.parametrize("rate", [0, 1, -0.1, 5, math.nan])
def test_a_rate_outside_0_to_1_is_refused(rate):
    with pytest.raises(ValueError, match="expected a number between 0 and 1"):
        ladder(range(50), rate)


def test_up_to_four_normals_give_no_threshold_and_say_how_many_would():
    for n in range(5):
        made = ladder(range(n))
        assert (made.threshold, made.method, made.n, made.rate) == (None, "none", n, None)
        assert "5 or more" in made.note and "19" in made.note
    assert ladder([1, 2, 3], 0.25).threshold == math.nextafter(3, math.inf), "an explicit rate that 3 can promise"


def test_5_to_18_normals_put_the_threshold_just_above_the_largest_and_say_what_that_promises():
    made = ladder([0.10, 0.11, 0.12, 0.13, 0.14, 0.15, 0.1, 0.12])
    assert (made.threshold, made.method, made.unsure) == (math.nextafter(0.15, math.inf), "largest", None)
    assert made.rate == pytest.approx(1 / 9)
    assert made.note == "of 9 good parts about one may be called bad; give 19 good pictures for 1 in 20"
    assert ladder(list(range(1, 20))).method == "conformal", "from 19 on"


def test_a_review_leaves_what_is_between_the_largest_and_the_t_bound_to_a_person():
    even = [0.10, 0.11, 0.12, 0.13, 0.14, 0.15]
    made = ladder(even, review=True)
    assert made.threshold == pytest.approx(t_bound(even)) and made.threshold > 0.15
    assert made.unsure == (math.nextafter(0.15, math.inf), made.threshold) and "left to a person" in made.note
    lonely = [0.1] * 17 + [0.9]
    made = ladder(lonely, review=True)
    assert made.threshold == math.nextafter(0.9, math.inf) and made.unsure is None


def test_a_normal_far_out_of_the_others_is_noticed_and_an_ordinary_largest_one_is_not():
    assert odd_one([0.1, 0.11, 0.49, 0.12, 0.1, 0.13, 0.12, 0.11]) == 2
    assert odd_one([0.1, 0.11, 0.12, 5.0]) is None, "four scores cannot say so"
    for law in LAWS.values():
        draw = np.random.RandomState(0)
        assert np.mean([odd_one(law(draw, 8)) is not None for _ in range(1000)]) < 0.06


def test_the_order_of_the_normals_does_not_matter():
    draw = np.random.RandomState(1)
    for n in (3, 8, 25):
        scores = draw.lognormal(size=n)
        assert ladder(scores) == ladder(draw.permutation(scores))


def test_the_t_bound_is_the_prediction_bound_of_normal_scores():
    scores = np.random.RandomState(2).standard_normal(12)
    expected = scores.mean() + stats.t.ppf(0.95, 11) * scores.std(ddof=1) * math.sqrt(1 + 1 / 12)
    assert t_bound(scores) == pytest.approx(expected)
    assert t_bound(np.exp(scores)) == pytest.approx(math.exp(expected)), "logs of what is above 0"
    assert t_bound([0.0, 1.0]) > 1 and math.isfinite(t_bound([1e-300, 1e300]))
    with pytest.raises(ValueError, match="2 scores or more"):
        t_bound([1.0])


def test_the_rate_interval_is_the_beta_law_of_the_true_rate():
    low, high = rate_interval(19, 0.05)
    draws = np.random.RandomState(3).rand(20000, 19).max(1)  # uniform scores: the true rate is 1 - the largest
    assert np.quantile(1 - draws, [0.05, 0.95]) == pytest.approx([low, high], abs=0.005)


def test_labels_give_the_threshold_of_the_best_f1():
    made = from_labelled([0.1, 0.4, 0.35, 0.8, 0.9], [0, 0, 1, 1, 1])
    assert made.threshold == 0.35 and made.scores == (0.1, 0.4), "F1 6/7, against 4/5 at 0.8"
    with pytest.raises(ValueError, match="both 0 and 1"):
        from_labelled([1, 2], [0, 0])


def test_a_calibration_survives_its_file():
    import json

    for made in (ladder([1, 2]), ladder(range(1, 9)), ladder(range(30))):
        assert Calibration.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize("key", ["scores", "unsure", "threshold", "method", "n"])
@pytest.mark.parametrize("value", ["x", [None], math.inf, {"a": 1}])
def test_a_calibration_of_other_kinds_is_refused(key, value):
    if key == "method" and value == "x":
        return
    with pytest.raises(ValueError, match="the calibration cannot be read"):
        Calibration.from_dict({**ladder(range(30)).to_dict(), key: value})


def test_scores_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        ladder([1.0, math.nan])


CATEGORIES = [
    "aws_lookout/cookie",
    *(
        pytest.param(category, marks=pytest.mark.slow)
        for category in ("brain_mri/brain", "crackforest/road", "elpv/solar_cell_mono", "mtd/magnetic_tile")
    ),
]


@pytest.fixture(scope="module")
def distances(shared, tiny_encoder):
    """Category -> [N, N, P]: how far each patch of one good picture is from the closest patch of another."""
    import torch

    import vlad
    from vlad.images import read

    detector = vlad.load("patch_memory", encoder=tiny_encoder)

    @torch.no_grad()
    def between(category):
        files = sorted((shared / "data" / category).glob("t*/good/*"))
        batches = [files[i : i + 8] for i in range(0, len(files), 8)]
        tokens = torch.cat([detector.scorer.tokens(tiny_encoder.pixels([read(f) for f in batch])) for batch in batches])
        return torch.stack([1 - (one @ tokens.transpose(1, 2)).amax(2) for one in tokens]).numpy()

    return between


@pytest.mark.parametrize("category", CATEGORIES)
def test_conformal_thresholds_of_real_normals_keep_their_rate_on_average(category, distances, record_property):
    """Each split draws its normals, calibrates by leave-one-out and scores the good pictures that are left.

    The pictures of a split share a threshold, so single splits scatter: 10 to 90 % of them lie between 0 and about .2.
    """
    table, draw = distances(category), np.random.RandomState(0)
    for n, rate in ((19, 0.05), (19, 0.1), (8, None)):
        rates = []
        for _ in range(200):
            order = draw.permutation(len(table))
            learnt, fresh = order[:n], order[n:]
            alone = [table[i][learnt[learnt != i]].min(0).max() for i in learnt]
            threshold = ladder(alone, rate).threshold
            rates.append(np.mean(table[np.ix_(fresh, learnt)].min(1).max(1) >= threshold))
        error = np.std(rates) / 200**0.5
        record_property(f"{category} n={n} rate={rate}", f"{np.mean(rates):.3f} +- {np.std(rates):.3f}")
        assert np.mean(rates) <= (rate or 1 / (n + 1)) + 2 * error
