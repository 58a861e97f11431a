"""Metrics against goldens of the official codes, scikit-learn, slow obvious versions, and their own invariances."""

import math
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlad import metrics
from vlad.metrics import Defect, UndefinedMetricWarning
from vlad.metrics import inputs as metrics_inputs
from vlad.metrics import stream as metrics_stream
from vlad.metrics import tally as metrics_tally
from vlad.metrics.papers import aupro_200

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "metrics.npz")
EXACT = 1e-12  # sums of float64 in another order
LEVELS = [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 2, 1]
RANKED = ["plain", "coarse", "sharp"]


def golden(variant, name):
    return GOLDEN[f"{variant}.0.{name}"]


def draw_mask(kind, size, dy, dx):
    """The masks of the golden: a square, two regions, corner touch, ring, block and lone pixel, band, three."""
    boxes = {4: ["2626"], 5: ["1313", (8, 13, 8, 12)], 6: ["2424", "4646"], 7: ["3939"], 8: [(7, 12, 7, 12)]}
    boxes[10] = ["1212", (5, 6, 9, 12), (10, 13, 2, 5)]
    mask, unit = np.zeros((size, size), np.uint8), size // 16
    for top, bottom, left, right in (map(int, box) for box in boxes.get(kind, [])):
        mask[top * unit + dy : bottom * unit + dy, left * unit + dx : right * unit + dx] = 1
    if kind == 7:
        mask[5 * unit + dy : 7 * unit + dy, 5 * unit + dx : 7 * unit + dx] = 0
    if kind == 8:
        mask[unit, unit] = 1
    if kind == 9:
        mask[: 2 * unit] = 1
    return mask


def draw_fields(size=64, normals=4, kinds=(4, 5, 6, 7, 8, 9, 10, 11), levels=64):
    draw, maps, masks = np.random.RandomState(0), [], []
    for kind in [0] * normals + list(kinds):
        mask = draw_mask(kind, size, *draw.randint(0, size // 8, 2))
        coarse = np.kron(draw.randint(0, 2 * levels, (8, 8)), np.ones((size // 8, size // 8), np.int64))
        noise = draw.randint(0, levels, (4, size, size)).sum(0)
        bump = draw.randint(levels // 2, 4 * levels)
        maps.append((coarse + noise + bump * mask.astype(np.int64)) / (16.0 * levels))
        masks.append(mask)
    return np.stack(maps).astype(np.float32), np.stack(masks)


@pytest.fixture(scope="module")
def fields():
    """(maps, masks) of each golden variant, proved equal to those the goldens were made from."""
    plain, masks = draw_fields()
    sharp = plain.astype(np.float64)
    for _ in range(3):
        sharp *= sharp
    found = {"plain": (plain, masks), "coarse": (np.floor(plain * 32) / 32, masks)}
    found["sharp"] = (sharp.astype(np.float32), masks)
    found["pimo"] = draw_fields(256, 8, (4, 5, 6, 7, 8, 9, 10), 2**14)
    for variant, (maps, masks) in found.items():
        assert zlib.crc32(np.ascontiguousarray(maps)) == golden(variant, "crc32_maps")
        assert zlib.crc32(np.ascontiguousarray(masks)) == golden(variant, "crc32_masks")
    return found


def picture_scores(maps):
    """Image scores of the goldens: the maximum, and the mean of the 40 highest pixels."""
    flat = np.sort(maps.reshape(len(maps), -1).astype(np.float64), axis=1)
    return {"max": flat[:, -1], "top1pct": flat[:, -40:].mean(1)}


# ---------------------------------------------------------------- goldens


@pytest.mark.parametrize("variant", [*RANKED, "pimo"])
def test_pixel_metrics_equal_scikit_learn_and_the_official_aupro(fields, variant):
    maps, masks = fields[variant]
    values, reasons = metrics.pixel_metrics(maps, masks, limits=(0.3, 0.05, 0.01))
    assert not reasons
    assert values["auroc"] == pytest.approx(golden(variant, "pixel_auroc_sklearn"), abs=EXACT)
    assert values["ap"] == pytest.approx(golden(variant, "pixel_ap_sklearn"), abs=EXACT)
    assert values["f1_max"] == pytest.approx(golden(variant, "pixel_f1max_sklearn"), abs=EXACT)
    assert values["f1_max_threshold"] == pytest.approx(golden(variant, "pixel_f1max_threshold"), abs=EXACT)
    for limit in (0.3, 0.05, 0.01):
        assert values[f"aupro_{limit}"] == pytest.approx(golden(variant, f"aupro_{limit}_exact"), abs=EXACT)
        assert values[f"aupro_{limit}"] == pytest.approx(golden(variant, f"aupro_{limit}_mvtec_official"), abs=1e-8)
        if f"{variant}.0.aupro_{limit}_anomalib" in GOLDEN:
            assert values[f"aupro_{limit}"] == pytest.approx(golden(variant, f"aupro_{limit}_anomalib"), abs=1e-6)


@pytest.mark.parametrize("variant", [*RANKED, "pimo"])
def test_the_aupro_of_200_steps_is_that_of_the_papers_programs(fields, variant):
    maps, masks = fields[variant]
    found = aupro_200(maps.astype(np.float32), masks)
    assert found == pytest.approx(float(golden(variant, "aupro_0.3_anomalyclip_200steps")), abs=EXACT)


@pytest.mark.parametrize("variant", RANKED)
def test_single_functions_equal_the_joint_one(fields, variant):
    maps, masks = fields[variant]
    values = metrics.pixel_metrics(maps, masks).values
    assert metrics.auroc(maps, masks) == values["auroc"]
    assert metrics.average_precision(maps, masks) == values["ap"]
    assert metrics.f1_max(maps, masks) == (values["f1_max"], values["f1_max_threshold"])
    assert metrics.aupro(maps, masks) == values["aupro_0.3"]
    assert metrics.aupro(maps, masks, limit=0.05) == values["aupro_0.05"]


@pytest.mark.parametrize("variant", RANKED)
@pytest.mark.parametrize("kind", ["max", "top1pct"])
def test_score_metrics_equal_scikit_learn(fields, variant, kind):
    values = metrics.score_metrics(picture_scores(fields[variant][0])[kind], golden(variant, "labels")).values
    for ours, theirs in (("auroc", "auroc"), ("ap", "ap"), ("f1_max", "f1max")):
        assert values[ours] == pytest.approx(golden(variant, f"image_{theirs}_{kind}_sklearn"), abs=EXACT)


def test_aupimo_equals_the_exact_values_and_the_official_ones_where_its_bounds_are_attained(fields):
    maps, masks = fields["pimo"]
    name = "aupimo_1e-5_1e-4_exact"
    np.testing.assert_allclose(metrics.aupimo(maps, masks), golden("pimo", name), atol=EXACT, rtol=0)
    values = metrics.aupimo(maps, masks, bounds=(8 / 524288, 64 / 524288))
    np.testing.assert_allclose(values, golden("pimo", "aupimo_8_64_over_524288_exact"), atol=EXACT, rtol=0)
    np.testing.assert_allclose(values, golden("pimo", "aupimo_8_64_over_524288_jpcbertoldo"), atol=1e-9, rtol=0)
    summary = metrics.aupimo_summary(values)
    assert summary["aupimo"] == pytest.approx(np.nanmean(values))
    assert summary["aupimo_zeros"] == 0


@pytest.mark.parametrize("variant", RANKED)
def test_severity_and_sample_metrics_equal_their_libraries(fields, variant):
    values = metrics.severity_metrics(golden(variant, "image_max"), LEVELS).values
    assert values["kendall_tau_b"] == pytest.approx(golden(variant, "severity_kendall_tau_b_scipy"), abs=EXACT)
    assert values["concordance"] == pytest.approx(golden(variant, "severity_c_index_lifelines"), abs=EXACT)
    for level in (1, 2, 3):
        expected = golden(variant, f"severity_auroc_0_vs_{level}_sklearn")
        assert values[f"auroc_0_vs_{level}"] == pytest.approx(expected, abs=EXACT)
    grouped = metrics.per_sample(golden(variant, "image_max"), golden(variant, "labels"), np.arange(12) // 2)
    values = metrics.score_metrics(*grouped).values
    for ours, theirs in (("auroc", "auroc"), ("ap", "ap"), ("f1_max", "f1max")):
        assert values[ours] == pytest.approx(golden(variant, f"sample_{theirs}_sklearn"), abs=EXACT)


@pytest.mark.parametrize("variant", RANKED)
def test_threshold_and_fixed_rate_metrics_equal_the_goldens(fields, variant):
    maps, masks = fields[variant]
    threshold = metrics.mean_std_threshold(maps[:2])
    assert threshold == pytest.approx(golden(variant, "segf1_threshold_mean3std"), abs=EXACT)
    at = metrics.threshold_metrics(maps[2:], masks[2:], threshold).values
    assert at["f1"] == pytest.approx(golden(variant, "segf1_mean3std"), abs=EXACT)
    assert at["iou"] == pytest.approx(at["f1"] / (2 - at["f1"]))
    rates = metrics.fixed_rate_metrics(picture_scores(maps)["top1pct"], golden(variant, "labels")).values
    for percent in (2, 5, 10):
        expected = golden(variant, f"overkill_at_escape{percent}_top1pct_adaptclip")
        assert rates[f"overkill_at_escape_{percent / 100:g}"] == pytest.approx(expected, abs=1e-6)
    assert rates["pg"] == pytest.approx(golden(variant, "pg_default_top1pct_anomalib"), abs=1e-6)
    assert rates["pb"] == pytest.approx(golden(variant, "pb_default_top1pct_anomalib"), abs=1e-6)


@pytest.mark.parametrize("variant", [*RANKED, "pimo"])
def test_regions_are_8_connected(fields, variant):
    counts = [metrics_tally.region_weights(mask != 0)[1] for mask in fields[variant][1]]
    assert counts == golden(variant, "regions_8conn").tolist()


def test_a_mask_is_labelled_once_for_all_methods(fields):
    metrics_tally._labelled.cache_clear()
    for maps in (fields["plain"][0], fields["sharp"][0]):
        metrics.aupro(maps, fields["plain"][1])
    assert metrics_tally._labelled.cache_info().misses == 7  # anomalous masks


# ---------------------------------------------------------------- streaming


@pytest.mark.parametrize("variant", [*RANKED, "pimo"])
def test_streamed_metrics_lie_within_their_own_narrow_bounds(fields, variant):
    maps, masks = fields[variant]
    counted = metrics_stream.histogram(iter(maps), iter(masks), metrics_stream.choose_edges(maps[masks == 0]))
    exact = metrics.pixel_metrics(maps, masks).values
    best, threshold = metrics_stream.f1_max(counted)
    streamed = {"auroc": metrics_stream.auroc(counted), "ap": metrics_stream.average_precision(counted), "f1_max": best}
    streamed |= {f"aupro_{limit}": metrics_stream.aupro(counted, limit) for limit in (0.3, 0.05)}
    for name, bounded in streamed.items():
        assert bounded.low - EXACT <= exact[name] <= bounded.high + EXACT, name
        assert bounded.low - EXACT <= bounded.value <= bounded.high + EXACT, name
        assert bounded.high - bounded.low < 0.02, name
    assert metrics.threshold_metrics(maps, masks, threshold).values["f1"] == pytest.approx(best.value, abs=EXACT)


def test_streamed_bounds_on_the_large_golden_are_those_promised(fields):
    maps, masks = fields["pimo"]
    edges = metrics_stream.choose_edges(maps[masks == 0])
    assert len(edges) <= 1020
    counted = metrics_stream.histogram(maps, masks, edges)
    area, overlap = metrics_stream.auroc(counted), metrics_stream.aupro(counted)
    assert (area.high - area.low) / 2 < 3.2e-4
    assert (overlap.high - overlap.low) / 2 < 9e-4
    assert abs(area.value - metrics.auroc(maps, masks)) < 1e-5
    assert abs(overlap.value - metrics.aupro(maps, masks)) < 2e-4


def test_streamed_metrics_of_maps_with_few_levels_are_exact(fields):
    maps, masks = fields["coarse"]
    counted = metrics_stream.histogram(maps, masks, metrics_stream.choose_edges(maps[masks == 0]))
    exact = metrics.pixel_metrics(maps, masks).values
    best, threshold = metrics_stream.f1_max(counted)
    assert threshold == exact["f1_max_threshold"]
    streamed = {"auroc": metrics_stream.auroc(counted), "ap": metrics_stream.average_precision(counted), "f1_max": best}
    streamed |= {f"aupro_{limit}": metrics_stream.aupro(counted, limit) for limit in (0.3, 0.05)}
    for name, bounded in streamed.items():
        assert tuple(bounded) == pytest.approx([exact[name]] * 3, abs=EXACT), name


def test_merged_histograms_equal_one_over_all(fields):
    maps, masks = fields["plain"]
    edges = metrics_stream.choose_edges(maps)
    whole = metrics_stream.histogram(maps, masks, edges)
    halves = [metrics_stream.histogram(maps[part], masks[part], edges) for part in (slice(5), slice(5, None))]
    merged = metrics_stream.merge(halves)
    for name in ("normal", "anomalous", "weight", "regions"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), rtol=EXACT)
    with pytest.raises(ValueError, match="same edges"):
        metrics_stream.merge([whole, metrics_stream.histogram(maps, masks, edges[:-1])])


# ---------------------------------------------------------------- slow obvious versions and scikit-learn


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(1, 12))
def test_score_metrics_equal_scikit_learn_on_random_scores_with_ties(seed, number, levels):
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    draw = np.random.default_rng(seed)
    scores, labels = draw.integers(0, levels, number) / 7, draw.integers(0, 2, number)
    labels[:2] = 0, 1
    assert metrics.auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=EXACT)
    expected = average_precision_score(labels, scores)
    assert metrics.average_precision(scores, labels) == pytest.approx(expected, abs=EXACT)
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    value, threshold = metrics.f1_max(scores, labels)
    assert value == pytest.approx(f1.max(), abs=EXACT)
    assert threshold == thresholds[np.flatnonzero(f1[:-1] > f1.max() - EXACT)[-1]]


def slow_area(maps, normal, overlap_at, limit):
    """Area under overlap against false positive rate up to the limit, threshold by threshold."""
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(np.concatenate([m.ravel() for m in maps]))[::-1]:
        rates.append(
            sum((m[n] >= threshold).sum() for m, n in zip(maps, normal, strict=True)) / sum(map(np.sum, normal))
        )
        overlaps.append(overlap_at(threshold))
    rates, overlaps = np.array(rates), np.array(overlaps)
    if limit < 1:
        after = np.argmax(rates > limit)
        share = (limit - rates[after - 1]) / (rates[after] - rates[after - 1])
        end = overlaps[after - 1] + share * (overlaps[after] - overlaps[after - 1])
        rates, overlaps = np.append(rates[:after], limit), np.append(overlaps[:after], end)
    return np.trapezoid(overlaps, rates) / limit


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_aupro_and_spro_equal_a_loop_over_all_thresholds_on_maps_of_different_sizes(limit):
    draw = np.random.default_rng(1)
    maps = [draw.integers(0, 40, shape) / 8 for shape in [(9, 14), (20, 11), (16, 16)]]
    masks = [np.zeros(m.shape, int) for m in maps]
    masks[0][2:5, 2:7], masks[0][6:8, 10:13], masks[1][4:9, 1:9] = 1, 2, 3
    regions = [(0, masks[0] == 1), (0, masks[0] == 2), (1, masks[1] == 3)]
    normal = [mask == 0 for mask in masks]

    def overlap(threshold):
        return np.mean([(maps[i][region] >= threshold).mean() for i, region in regions])

    def saturated(threshold):
        found = [(maps[i][region] >= threshold).sum() for i, region in regions]
        return np.mean([min(found[0] / 4, 1), min(found[1] / 6, 1), min(found[2] / (0.33 * 40), 1)])

    assert metrics.aupro(maps, masks, limit) == pytest.approx(slow_area(maps, normal, overlap, limit), abs=EXACT)
    defects = [[Defect(masks[0] == 1, 4), Defect(masks[0] == 2, 1000)], [Defect(masks[1], 0.33, relative=True)], []]
    assert metrics.spro(maps, defects, limit) == pytest.approx(slow_area(maps, normal, saturated, limit), abs=EXACT)


def slow_aupimo(scores, normals, bounds):
    """Integral over ln F, sampled at very many rates, of the linear interpolation inside each group of ties."""
    thresholds = np.unique(np.concatenate([n.ravel() for n in normals]))[::-1]
    rates = [np.mean([(n >= t).mean() for n in normals]) for t in thresholds]
    points = [(-np.inf, 0.0)]
    for threshold, before, after in zip(thresholds, [0.0, *rates], rates, strict=False):
        points.append((np.log(max(before, 1e-300)), (scores > threshold).mean()))
        points.append((np.log(after), (scores >= threshold).mean()))
    x, y = np.array(points[3:]).T
    fine = np.linspace(*np.log(bounds), 400_001)
    return np.interp((fine[1:] + fine[:-1]) / 2, x, y).mean()


def test_aupimo_equals_a_slow_integral_on_maps_of_different_sizes_with_ties():
    draw = np.random.default_rng(2)
    maps = [draw.integers(0, 300, shape) / 64 for shape in [(30, 40), (25, 25), (60, 20), (20, 20)]]
    maps[3] = maps[3] + 1
    masks = [None, None, None, draw.integers(0, 2, (20, 20))]
    bounds = (0.01, 0.2)
    values = metrics.aupimo(maps, masks, bounds)
    assert np.isnan(values[:3]).all()
    assert values[3] == pytest.approx(slow_aupimo(maps[3][masks[3] == 1], maps[:3], bounds), abs=1e-5)  # its grid


def test_the_area_under_the_drawn_curves_is_that_of_the_metrics(fields):
    maps, masks = fields["coarse"]
    drawn = metrics.curve(maps, masks)
    assert np.trapezoid(drawn.true_positive_rate, drawn.false_positive_rate) == pytest.approx(
        metrics.auroc(maps, masks)
    )
    overlap = np.trapezoid(drawn.region_overlap, drawn.false_positive_rate)
    assert overlap == pytest.approx(metrics.aupro(maps, masks, limit=1.0))
    recall_area = np.trapezoid(drawn.precision, drawn.true_positive_rate)
    assert recall_area == pytest.approx(golden("coarse", "pixel_aupr_trapezoid_sklearn"))
    thinned = metrics.curve(*fields["pimo"])
    assert len(thinned.precision) <= 1002
    assert np.trapezoid(thinned.true_positive_rate, thinned.false_positive_rate) == pytest.approx(
        metrics.auroc(*fields["pimo"]), abs=1e-3
    )


# ---------------------------------------------------------------- invariances


@st.composite
def small_sets(draw):
    """A few integer-valued maps with masks; every set has an anomalous and a normal pixel."""
    seed, number, levels = draw(st.integers(0, 2**32 - 1)), draw(st.integers(2, 6)), draw(st.integers(1, 60))
    generator = np.random.default_rng(seed)
    shapes = [tuple(generator.integers(3, 12, 2)) for _ in range(number)]
    maps = [generator.integers(-levels, levels + 1, shape).astype(np.float64) for shape in shapes]
    masks = [generator.random(shape) < generator.choice([0.0, 0.3]) for shape in shapes]
    masks[0][:], masks[1][0, 0] = False, True
    return maps, masks


def everything(maps, masks):
    """Every rank metric in one vector, thresholds left out."""
    values = metrics.pixel_metrics(maps, masks, limits=(0.3, 0.05, 1.0)).values
    values.pop("f1_max_threshold")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)  # few pixels attain no low rate
        pimo = metrics.aupimo(maps, masks, bounds=(0.05, 0.5))
    defects = [[Defect(mask, 0.6, relative=True)] for mask in masks]
    return [*values.values(), metrics.spro(maps, defects), *np.sort(pimo)]


@settings(max_examples=30, deadline=None)
@given(small_sets(), st.sampled_from([lambda x: 3 * x + 1, np.cbrt, np.arctan, lambda x: np.exp(x / 9)]))
def test_metrics_do_not_move_under_a_monotone_rescaling(pictures, rescale):
    maps, masks = pictures
    np.testing.assert_array_equal(everything([rescale(m) for m in maps], masks), everything(maps, masks))


@settings(max_examples=30, deadline=None)
@given(small_sets(), st.randoms())
def test_metrics_do_not_move_under_a_permutation_of_pictures(pictures, random):
    order = list(range(len(pictures[0])))
    random.shuffle(order)
    permuted = everything(*([part[i] for i in order] for part in pictures))
    np.testing.assert_allclose(permuted, everything(*pictures), rtol=0, atol=EXACT)


@settings(max_examples=30, deadline=None)
@given(small_sets(), st.integers(0, 5), st.integers(2, 40))
def test_streamed_metrics_do_not_move_under_chunking_and_bound_the_exact_ones(pictures, cut, bins):
    maps, masks = pictures
    edges = metrics_stream.choose_edges(maps[0], bins)
    chunks = [metrics_stream.histogram(maps[part], masks[part], edges) for part in (slice(cut), slice(cut, None))]
    counted, whole = metrics_stream.merge(chunks), metrics_stream.histogram(maps, masks, edges)
    exact = metrics.pixel_metrics(maps, masks).values
    for name, metric in {"auroc": metrics_stream.auroc, "ap": metrics_stream.average_precision}.items():
        assert metric(counted) == metric(whole)
        assert metric(whole).low - EXACT <= exact[name] <= metric(whole).high + EXACT
    best = metrics_stream.f1_max(whole)[0]
    assert best.low - EXACT <= exact["f1_max"] <= best.high + EXACT
    for limit in (0.3, 0.05):
        bounded = metrics_stream.aupro(whole, limit)
        np.testing.assert_allclose(metrics_stream.aupro(counted, limit), bounded, atol=EXACT)
        assert bounded.low - EXACT <= exact[f"aupro_{limit}"] <= bounded.high + EXACT


# ---------------------------------------------------------------- kinds of input


def test_arrays_lists_and_tensors_give_the_same(fields):
    torch = pytest.importorskip("torch")
    maps, masks = fields["plain"]
    expected = everything(maps, masks)
    assert everything(list(maps), list(masks)) == pytest.approx(expected, nan_ok=True)
    tensor = torch.from_numpy(maps)
    assert everything(tensor, torch.from_numpy(masks)) == pytest.approx(expected, nan_ok=True)
    assert everything(list(tensor.requires_grad_()), masks) == pytest.approx(expected, nan_ok=True)
    assert everything([tensor[0].double(), *maps[1:]], masks) == pytest.approx(expected, nan_ok=True)
    assert metrics.auroc(tensor[:, 0, 0], masks[:, 2, 2]) == metrics.auroc(maps[:, 0, 0].tolist(), masks[:, 2, 2])
    half = tensor.detach().bfloat16()
    assert metrics.aupro(half, masks) == metrics.aupro(half.float().numpy(), masks)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_metrics_computed_on_the_device_of_the_maps_are_the_same(fields, device, monkeypatch):
    torch = pytest.importorskip("torch")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    expected = {variant: everything(*fields[variant]) for variant in RANKED}
    curves = metrics.curve(*fields["plain"])
    counted = metrics_stream.histogram(*fields["plain"], metrics_stream.choose_edges(fields["plain"][0]))
    if device == "cpu":  # walk the tensors' path without a device
        monkeypatch.setattr(metrics_inputs, "_floating", lambda values, what: torch.as_tensor(values))
    for variant in RANKED:
        maps, masks = (torch.from_numpy(array).to(device) for array in fields[variant])
        np.testing.assert_allclose(everything(maps, masks), expected[variant], rtol=0, atol=EXACT)
    maps, masks = (torch.from_numpy(array).to(device) for array in fields["plain"])
    np.testing.assert_array_equal(metrics.curve(maps, masks).region_overlap, curves.region_overlap)
    again = metrics_stream.histogram(maps, masks, metrics_stream.choose_edges(maps))
    np.testing.assert_array_equal(again.normal, counted.normal)
    np.testing.assert_array_equal(again.anomalous, counted.anomalous)
    assert metrics.threshold_metrics(maps, masks, 0.3) == metrics.threshold_metrics(*fields["plain"], 0.3)


def test_any_nonzero_mask_value_is_anomalous_and_none_is_a_normal_picture(fields):
    maps, masks = fields["plain"]
    expected = metrics.pixel_metrics(maps, masks)
    assert metrics.pixel_metrics(maps, masks.astype(int) * 255) == expected
    assert metrics.pixel_metrics(maps, [mask if mask.any() else None for mask in masks]) == expected


def test_the_input_is_left_as_it_was(fields):
    maps, masks = fields["coarse"][0].copy(), fields["coarse"][1].copy()
    everything(maps, masks)
    np.testing.assert_array_equal(maps, fields["coarse"][0])
    np.testing.assert_array_equal(masks, fields["coarse"][1])


# ---------------------------------------------------------------- edge cases


def test_constant_maps_get_what_chance_gets():
    maps, masks = np.full((3, 8, 8), 0.7, np.float32), np.zeros((3, 8, 8))
    masks[0, :2, :3] = 1
    share = 6 / 192
    values = metrics.pixel_metrics(maps, masks).values
    assert values["auroc"] == 0.5
    assert values["ap"] == pytest.approx(share)
    assert values["f1_max"] == pytest.approx(2 * share / (1 + share))
    assert values["f1_max_threshold"] == np.float32(0.7)
    assert values["aupro_0.3"] == pytest.approx(0.15)


@pytest.mark.parametrize("labels, missing", [([0, 0], "anomalous"), ([1, 1], "normal")])
def test_a_metric_is_nan_with_its_reason_where_one_kind_is_missing(labels, missing):
    found = metrics.score_metrics([0.2, 0.4], labels)
    assert all(math.isnan(value) for value in found.values.values())
    assert set(found.reasons.values()) == {f"nothing is {missing}"}
    for metric in (metrics.auroc, metrics.average_precision, metrics.f1_max):
        with pytest.warns(UndefinedMetricWarning, match=missing) as caught:
            assert np.isnan(metric([0.2, 0.4], labels)).all()
        assert caught[0].filename == __file__
    assert metrics.fixed_rate_metrics([0.2, 0.4], labels).reasons["pg"] == f"nothing is {missing}"


def test_no_mask_pixel_at_all_is_nan_for_maps_and_streams():
    maps, masks = np.random.default_rng(0).random((2, 4, 4)), np.zeros((2, 4, 4))
    assert set(metrics.pixel_metrics(maps, masks).reasons.values()) == {"nothing is anomalous"}
    for metric in (metrics.aupro, metrics.aupimo, lambda maps, masks: metrics.spro(maps, [[], []])):
        with pytest.warns(UndefinedMetricWarning, match="anomalous"):
            assert np.isnan(metric(maps, masks)).all()
    counted = metrics_stream.histogram(maps, masks, metrics_stream.choose_edges(maps))
    for metric in (metrics_stream.auroc, metrics_stream.average_precision, metrics_stream.aupro):
        with pytest.warns(UndefinedMetricWarning, match="anomalous") as caught:
            assert np.isnan(metric(counted)).all()
        assert caught[0].filename == __file__


def test_nothing_at_all_is_nan_too():
    assert set(metrics.pixel_metrics([], []).reasons.values()) == {"nothing is anomalous or normal"}
    assert set(metrics.score_metrics([], []).reasons.values()) == {"nothing is anomalous or normal"}
    with pytest.warns(UndefinedMetricWarning):
        assert metrics.aupimo([], []).shape == (0,)


def test_only_anomalous_pictures_have_pixel_metrics_but_no_aupimo(fields):
    maps, masks = (array[4:11] for array in fields["plain"])
    assert not metrics.pixel_metrics(maps, masks).reasons
    with pytest.warns(UndefinedMetricWarning, match="no picture is normal"):
        assert np.isnan(metrics.aupimo(maps, masks)).all()


def test_aupimo_is_nan_where_the_normal_pixels_are_too_few_for_the_lower_bound(fields):
    with pytest.warns(UndefinedMetricWarning, match="above the lower bound 1e-05"):
        assert np.isnan(metrics.aupimo(*fields["plain"])).all()


def test_an_anomalous_picture_with_an_empty_mask_is_normal_skipped_or_unscored(fields):
    maps, masks = fields["plain"]
    labels = golden("plain", "labels")
    assert metrics.empty_masks(masks, labels) == [11]
    assert metrics.pixel_metrics(maps, masks, labels) == metrics.pixel_metrics(maps, masks)
    skipped = metrics.pixel_metrics(maps, masks, labels, empty_mask="skip")
    assert skipped == metrics.pixel_metrics(maps[:11], masks[:11])
    bounds = (1e-3, 1e-2)
    with_labels = metrics.aupimo(maps, masks, bounds, labels=labels)
    np.testing.assert_array_equal(with_labels[:11], metrics.aupimo(maps[:11], masks[:11], bounds))
    assert np.isnan(with_labels[11])
    assert not np.array_equal(with_labels, metrics.aupimo(maps, masks, bounds), equal_nan=True)
    with pytest.raises(ValueError, match="picture 4 is labelled normal"):
        metrics.aupimo(maps, masks, bounds, labels=[0] * 12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused_with_place_and_count(bad):
    maps, masks = np.zeros((3, 4, 4)), np.zeros((3, 4, 4))
    maps[1, 2, 3] = maps[1, 3, 0] = maps[2] = bad
    with pytest.raises(ValueError, match=r"map 1: 2 of 16 values are NaN or infinite, the first at \(2, 3\)"):
        metrics.auroc(maps, masks)
    with pytest.raises(ValueError, match="map 1: 2 of 16"):
        metrics_stream.histogram(iter(maps), iter(masks), np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"the scores: 1 of 2 .* first at \(1,\)"):
        metrics.score_metrics([0.5, bad], [0, 1])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: metrics.auroc(np.zeros((2, 4, 6)), np.zeros((2, 6, 4))), "mask 0 .*transposed"),
        (lambda: metrics.auroc(np.zeros((2, 4, 6)), np.zeros((2, 8, 12))), "mask 0 .*resize the map"),
        (lambda: metrics.auroc(np.zeros((2, 4, 6)), np.zeros((3, 4, 6))), "2 maps or scores came with 3 masks"),
        (lambda: metrics.auroc(np.zeros((4, 6)), np.zeros((4, 6))), r"map 0 has shape \(6,\); expected \[H, W\]"),
        (lambda: metrics.auroc(np.zeros((1, 2, 2)), np.full((1, 2, 2), np.nan)), "mask 0 has NaN"),
        (lambda: metrics.aupro([0.1, 0.2], [0, 1]), "give maps"),
        (lambda: metrics.aupimo([0.1, 0.2], [0, 1]), "give maps"),
        (lambda: metrics.fixed_rate_metrics(np.zeros((2, 3, 3)), np.zeros((2, 3, 3))), "picture scores"),
        (lambda: metrics.aupro(np.zeros((1, 2, 2)), np.zeros((1, 2, 2)), limit=0), "limit is 0"),
        (lambda: metrics.aupimo(np.zeros((1, 2, 2)), np.zeros((1, 2, 2)), bounds=(1e-4, 1e-5)), "0 < lower < upper"),
        (lambda: metrics.pixel_metrics([], [], empty_mask="drop"), "known: normal, skip"),
        (lambda: metrics.pixel_metrics([], [], empty_mask="skip"), "needs labels"),
        (lambda: metrics.spro(np.zeros((1, 2, 2)), [[Defect(np.ones((2, 2)), 0)]]), "saturates at 0"),
        (lambda: metrics.spro(np.zeros((1, 2, 2)), []), "1 maps came with 0 lists"),
        (lambda: metrics.mean_std_threshold([]), "at least one map"),
        (lambda: metrics.severity_metrics([0.1, 0.2], [0, -1]), "level of 0 or more"),
        (lambda: metrics.per_sample([0.1, 0.2], [0, 1], ["a"]), "1 samples came with 2 scores"),
        (lambda: metrics.threshold_metrics([0.1], [1], math.nan), "threshold is NaN"),
        (lambda: metrics_stream.choose_edges(np.zeros(0)), "sample of scores is empty"),
        (lambda: metrics_stream.merge([]), "cannot merge 0"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_scores_that_are_no_numbers_are_a_type_error():
    with pytest.raises(TypeError, match="expected numbers"):
        metrics.auroc(np.array(["a", "b"]), [0, 1])


def test_severity_says_why_a_value_is_missing_and_rounds_half_levels_up():
    assert metrics.severity_metrics([1, 2, 3], [0, 0.5, 1.5]).values == {
        "kendall_tau_b": 1.0,
        "concordance": 1.0,
        "auroc_0_vs_1": 1.0,
        "auroc_0_vs_2": 1.0,
        "auroc_0_vs_all": 1.0,
    }
    assert metrics.severity_metrics([1, 1, 1], [0, 1, 2]).reasons == {"kendall_tau_b": "all scores are equal"}
    assert set(metrics.severity_metrics([1, 2], [1, 2]).reasons) == {"auroc_0_vs_all"}
    assert set(metrics.severity_metrics([1, 2], [1, 1]).reasons.values()) == {"all are of one level"}


def test_threshold_metrics_on_a_hand_counted_example():
    found = metrics.threshold_metrics([0.1, 0.5, 0.6, 0.5, 0.9, 0.2], [0, 0, 0, 1, 1, 1], 0.5)
    assert found.values == pytest.approx(
        {"f1": 4 / 7, "iou": 0.4, "balanced_accuracy": 0.5, "fpr": 2 / 3, "fnr": 1 / 3}
    )
    only_normal = metrics.threshold_metrics([0.1, 0.5], [0, 0], 0.5)
    assert only_normal.values["fpr"] == 0.5
    assert set(only_normal.reasons) == {"f1", "iou", "balanced_accuracy", "fnr"}


def test_the_false_positive_rate_at_a_recall_is_the_lowest_that_reaches_it():
    scores, labels = np.arange(40) % 20 + np.repeat([0.0, 5.5], 20), np.repeat([0, 1], 20)
    assert (
        metrics.fixed_rate_metrics(scores, labels).values["fpr_at_tpr_0.95"] == 13 / 20
    )  # 19 of 20 lie at 6.5 or above


def test_macro_mean_leaves_out_and_names_what_is_undefined():
    assert metrics.macro_mean({"bolt": 0.5, "nut": math.nan, "cap": 1.0}) == (0.75, ["nut"])
    mean, left_out = metrics.macro_mean({"nut": math.nan})
    assert math.isnan(mean) and left_out == ["nut"]


def test_counts_beyond_float32_stay_exact():
    """2^24 + 2 normal pixels: a float32 sum would lose the last ones."""
    maps = [np.zeros((4096, 4097), np.float32), np.array([[0.0, 1.0, 1.0]], np.float32)]
    masks = [None, np.array([[0, 0, 1]])]
    normals = 4096 * 4097 + 2
    assert metrics.auroc(maps, masks) == 1 - 1 / (2 * normals)
