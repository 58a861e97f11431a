"""Smoothing and events by hand: what the numbers of the specification's examples must become."""

import numpy as np
import pytest

from vlad.prediction import Region
from vlad.video.events import Event, Finder, Rule, events, followed, overlap
from vlad.video.smoothing import Smoother, gaussian, smoothed

TIMES = [k / 2 for k in range(13)]
RAW = [0.1, 0.1, 0.6, 0.1, 0.7, 0.8, 0.9, 0.5, 0.2, 0.7, 0.1, 0.1, 0.1]
EVEN = [0.1, 0.1, 0.2967, 0.2193, 0.4085, 0.5625, 0.6953, 0.6185, 0.4538, 0.5507, 0.3733, 0.2658, 0.2006]


def spans(values, rule, times=TIMES):
    return [(one.start, one.end) for one in events(zip(times, values, strict=True), rule)]


def test_a_second_of_smoothing_is_the_example_worked_by_hand():
    assert smoothed(TIMES, RAW, 1.0) == pytest.approx(EVEN, abs=5e-5)
    assert smoothed(TIMES, RAW, 0) == RAW


def test_smoothing_means_the_same_however_often_frames_are_taken():
    coarse = smoothed([0, 1, 2, 3], [0, 1, 1, 1], 1.0)
    fine = smoothed(np.arange(0, 3.01, 0.1).tolist(), [0.0] + [1.0] * 30, 1.0)
    assert coarse[-1] == pytest.approx(fine[-1], abs=1e-9)


def test_a_gaussian_is_scipys_away_from_the_ends():
    from scipy.ndimage import gaussian_filter1d

    values = np.random.default_rng(0).random(200)
    ours = gaussian(np.arange(200.0).tolist(), values.tolist(), 5.0)
    assert ours[20:-20] == pytest.approx(gaussian_filter1d(values, 5.0)[20:-20].tolist(), abs=1e-9)
    assert gaussian([0, 1], [0.2, 0.4], 0) == [0.2, 0.4]


@pytest.mark.parametrize("tau", [-1, float("nan"), float("inf")])
def test_a_time_constant_that_is_none_is_refused(tau):
    with pytest.raises(ValueError, match="smoothing is"):
        Smoother(tau)


def test_the_examples_events_come_out():
    assert spans(RAW, Rule(0.6, 0.4, least=0.5, gap=1)) == [(1.0, 4.5)]
    assert spans(RAW, Rule(0.6, 0.4, least=0, gap=0.5)) == [(1.0, 1.0), (2.0, 3.5), (4.5, 4.5)]
    found = list(events(zip(TIMES, EVEN, strict=True), Rule(0.4, 0.3, least=0.5, gap=1)))
    assert [(one.start, one.end, one.peak_time, one.peak) for one in found] == [(2.0, 5.0, 3.0, 0.6953)]


def test_an_event_at_the_end_is_closed_and_a_short_one_dropped():
    assert spans([0.9, 0.1, 0.1, 0.9, 0.9], Rule(0.5, 0.3, least=0.5, gap=0.5), TIMES[:5]) == [(1.5, 2.0)]


def test_a_hole_in_time_ends_an_event():
    rule = Rule(0.5, 0.3, least=0, gap=1, hole=2)
    found = list(events([(0, 0.9), (0.5, 0.9), (9, 0.9)], rule))
    assert [(one.start, one.end, one.reason) for one in found] == [(0, 0.5, "gap"), (9, 9, "stopped")]
    assert [one.id for one in found] == [1, 2]


def test_ids_count_kept_events_alone():
    find = Finder(Rule(0.5, 0.3, least=1, gap=0.5))
    closed = [
        one
        for time, value in zip(TIMES, [0.9, 0, 0, 0.9, 0.9, 0.9, 0, 0, 0, 0, 0, 0, 0], strict=True)
        for one in find(time, value)
    ]
    assert [(one.id, one.start, one.end) for one in closed] == [(1, 1.5, 2.5)]


def test_the_usual_rule_lies_half_way_down_to_the_calibrations_median():
    assert Rule.of(0.6, 0.5, median=0.2) == Rule(0.6, 0.4, 0.5, 1.0, 2.5)
    assert Rule.of(0.6, 2.0) == Rule(0.6, 0.3, 2.0, 4.0, 10.0)
    with pytest.raises(ValueError, match=r"opens at 0\.3 and would close at 0.5"):
        Rule(0.3, 0.5)


def region(box, peak):
    return Region(box, 10, peak, peak, (0, 0), "centre")


def test_a_region_is_followed_by_its_overlap():
    strong, near = region((50, 50, 60, 60), 0.9), region((1, 1, 11, 11), 0.5)
    assert followed([strong, near], (0, 0, 10, 10)) is near
    assert followed([strong], (0, 0, 10, 10)) is strong
    assert followed([], (0, 0, 10, 10)) is None
    assert overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)


def test_a_line_of_an_event_says_all_of_it():
    said = Event(3, 1.0, 2.0, 1.5, 0.8, region((1, 2, 3, 4), 0.8), ((1.5, (1, 2, 3, 4)),)).to_dict()
    assert said["event"] == 3 and "id" not in said
    assert said["region"]["box"] == (1, 2, 3, 4) and said["reason"] == "ended"


def test_the_track_of_hours_is_thinned_evenly_and_the_last_place_still_followed():
    find = Finder(Rule(on=0.5, off=0.5, least=0, gap=1))
    for k in range(5000):
        find(k / 2, 1.0, Region((k, 0, k + 9, 9), 81, 1.0, 1.0, (0, 0), "centre"))
        assert len(find.track) <= 1001
    (event,) = find.close()
    steps = np.diff([time for time, _ in event.track])
    assert 500 <= len(event.track) <= 1001 and set(steps) == {4.0} and event.track[-1][0] >= 2490
    assert event.end == 2499.5
