"""MuSc against the official code's numbers (tests/golden/musc.npz), and its bounds of memory."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import vlad
from vlad.detector import Detector
from vlad.memory import mutual
from vlad.memory.mutual import barrier, block_sizes, interval_bounds, mutual_scores
from vlad.memory.spill import PairTable, Records
from vlad.methods import musc
from vlad.methods.musc import (
    MuSc,
    equal_parts,
    neighbourhood_features,
    quarters,
    smoothed,
    standardised,
    to_pixels,
)

GOLDEN_ATOL = 1e-5  # what parity/musc.md allows; measured below 1e-6
GRID = (8, 8)


def rscin(scores, classes, ks=(1, 2, 3)):
    """[N] float64: `smoothed` scores after rescaling to [0, 1]; scores that are all the same stay as they are.

    Source: MuSc (arXiv:2401.16753), RsCIN as in the official code.
    """
    low, high = scores.min(), scores.max()
    return smoothed((scores - low) / (high - low), classes, ks) if high > low else scores.double()


def made(encoder, **options):
    return Detector(MuSc(encoder, **options))


@pytest.fixture(scope="module")
def tokens(golden, golden_weights):
    """[L, N, 1 + P, D] by the golden's recipe, class token first."""
    seed, N, side, D, _, L, _, _ = golden["config"]
    draw, scale = golden_weights.tensor, float(D) ** 0.5
    result = torch.empty(L, N, 1 + side * side, D)
    for layer in range(L):
        base = scale * draw(f"musc.base.{layer}", (side * side + 1, D), seed)
        for n in range(N):
            result[layer, n] = base + 0.6 * scale * draw(f"musc.noise.{n}.{layer}", (side * side + 1, D), seed)
    for n, top, bottom, left, right in golden["odd"]:
        for layer in range(L):
            odd = 1.5 * scale * draw(f"musc.odd.{n}.{layer}", (1, D), seed)[0]
            result[layer, n, 1:].view(side, side, D)[top:bottom, left:right] += odd
    np.testing.assert_allclose(result[0, 0, :3], golden["tokens_l0_image0_rows0_2"], atol=1e-6)
    return result


@pytest.fixture(scope="module")
def classes(golden, golden_weights):
    seed, N, _, _, E, _, _, _ = golden["config"]
    base = golden_weights.tensor("musc.cls.base", (1, E), seed)[0]
    own = [golden_weights.tensor(f"musc.cls.{n}", (1, E), seed)[0] for n in range(N)]
    return F.normalize(torch.stack([base + 0.5 * one for one in own]), dim=-1)


@pytest.fixture(scope="module")
def features(tokens):
    """Degree -> [L, N, P, D]."""
    return {
        r: torch.stack([neighbourhood_features(standardised(layer[:, 1:]), GRID, r) for layer in tokens])
        for r in (1, 3, 5)
    }


@pytest.mark.parametrize("degree", [1, 3, 5])
def test_neighbourhood_features_match_the_official_code(features, golden, degree):
    ours = features[degree][:, int(golden["config"][7])].transpose(0, 1)  # [P, L, D]
    np.testing.assert_allclose(ours, golden[f"z_r{degree}"], atol=GOLDEN_ATOL, rtol=0)


def test_mutual_scores_maps_and_image_scores_match_the_official_code(features, golden):
    scores = torch.stack([torch.stack([mutual_scores(z) for z in features[r]]) for r in (1, 3, 5)])  # [R, L, N, P]
    np.testing.assert_allclose(scores, golden["msm"], atol=GOLDEN_ATOL, rtol=0)
    maps = scores.double().mean((0, 1))
    np.testing.assert_allclose(maps, golden["maps"], atol=GOLDEN_ATOL, rtol=0)
    up = to_pixels(maps.unflatten(1, GRID), int(golden["config"][6]))
    np.testing.assert_allclose(up[golden["up_images"]], golden["up"], atol=GOLDEN_ATOL, rtol=0)
    np.testing.assert_allclose(up.amax((1, 2)), golden["image_raw"], atol=GOLDEN_ATOL, rtol=0)


@pytest.mark.parametrize(("key", "interval"), [("interval_01_05", (0.1, 0.5)), ("interval_all", (0, 11))])
def test_other_intervals_match_the_official_code(features, golden, key, interval):
    np.testing.assert_allclose(mutual_scores(features[3][1], interval), golden[key], atol=GOLDEN_ATOL, rtol=0)


@pytest.mark.parametrize(("key", "ks"), [("rscin_1_2_3", (1, 2, 3)), ("rscin_1_8_9", (1, 8, 9)), ("rscin_2_3", (2, 3))])
def test_rscin_matches_the_official_code(golden, classes, key, ks):
    np.testing.assert_allclose(classes, golden["cls"], atol=1e-6)
    ours = rscin(torch.from_numpy(golden["image_raw"]), classes, ks)
    np.testing.assert_allclose(ours, golden[key], atol=GOLDEN_ATOL, rtol=0)


# Mutual scoring: the same numbers, whatever the blocks


def drawn_features(N, P, C, seed=0):
    noise = torch.randn(N, P, C, generator=torch.Generator().manual_seed(seed))
    return F.normalize(torch.randn(1, P, C, generator=torch.Generator().manual_seed(99)) + noise, dim=-1)


def slow_scores(z, low, high, allowed=None):
    """Ordered pairs, distances by cdist in float64, everything sorted."""
    distance = torch.cdist(z.double()[:, None], z.double()[None])  # [N, N, P, P]
    if allowed is not None:
        distance = distance.masked_fill(~allowed, torch.inf)
    closest = distance.amin(3).transpose(0, 1)  # [j, i, P]
    closest[range(len(z)), range(len(z))] = torch.inf
    return closest.sort(0).values[low:high].mean(0)


@pytest.mark.parametrize("N", [2, 3, 4, 5, 9, 14])
def test_mutual_scores_are_the_slow_computation_over_ordered_pairs(N):
    z = drawn_features(N, 12, 16)
    expected = slow_scores(z, 0, max(1, int(0.3 * (N - 1))))
    torch.testing.assert_close(mutual_scores(z).double(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("panel", "ahead"), [(1, 1), (2, 3), (4, 1), (5, 16)])
def test_block_sizes_and_a_table_in_a_file_change_nothing(monkeypatch, panel, ahead):
    z = drawn_features(11, 12, 16)
    expected = mutual_scores(z)
    monkeypatch.setattr(mutual, "block_sizes", lambda P, C: (panel, ahead))
    torch.testing.assert_close(mutual_scores(z), expected, atol=1e-6, rtol=0)
    monkeypatch.setattr(mutual, "TABLE_BYTES", 0)
    torch.testing.assert_close(mutual_scores(z), expected, atol=1e-6, rtol=0)


def test_each_unordered_pair_is_multiplied_once(monkeypatch):
    count, reported = [], []
    inner = mutual.similarities
    monkeypatch.setattr(mutual, "similarities", lambda a, b, wall: count.append(len(a)) or inner(a, b, wall))
    monkeypatch.setattr(mutual, "block_sizes", lambda P, C: (4, 3))
    mutual_scores(drawn_features(13, 6, 8), advance=reported.append)
    assert sum(count) == sum(reported) == 13 * 12 // 2


def test_blocks_stay_within_the_working_memory():
    for P, C in ((49, 64), (196, 128), (1369, 1024), (1369, 384)):
        panel, ahead = block_sizes(P, C)
        assert 4 * (panel * P * (P + C) + 3 * ahead * P * C) <= mutual.WORK_BYTES
    assert block_sizes(1369, 1024) == (3, 1) or block_sizes(1369, 1024)[0] >= 2


def test_a_radius_compares_neighbouring_places_only():
    grid = (3, 4)
    z = drawn_features(6, 12, 8)
    place = [(r, c) for r in range(3) for c in range(4)]
    allowed = torch.tensor([[max(abs(a - c), abs(b - d)) <= 1 for c, d in place] for a, b in place])
    expected = slow_scores(z, 0, 1, allowed)
    torch.testing.assert_close(mutual_scores(z, wall=barrier(grid, 1)).double(), expected, atol=2e-6, rtol=0)
    assert (mutual_scores(z, wall=barrier(grid, 0)) >= mutual_scores(z) - 1e-6).all()
    torch.testing.assert_close(mutual_scores(z, wall=barrier(grid, 3)), mutual_scores(z))


def test_the_interval_counts_at_least_one_picture_and_at_most_all():
    assert [interval_bounds(n, (0.0, 0.3)) for n in (1, 3, 4, 11, 100)] == [(0, 1), (0, 1), (0, 1), (0, 3), (0, 30)]
    assert interval_bounds(11, (0.1, 0.5)) == (1, 5)
    assert interval_bounds(11, (0, 11)) == (0, 11)
    assert interval_bounds(4, (0, 1.0)) == (0, 1), "from 1 on a bound is a number of pictures"
    assert interval_bounds(2, (5, 9)) == (1, 2)


def test_bfloat16_products_move_scores_by_little():
    z = drawn_features(10, 40, 64)
    assert (mutual_scores(z, arithmetic=torch.bfloat16) - mutual_scores(z)).abs().max() < 5e-3


def test_a_repeated_picture_scores_nearly_zero_when_one_neighbour_counts():
    z = drawn_features(3, 12, 64)
    scores = mutual_scores(torch.cat([z, z[:1]]))
    assert scores[[0, 3]].max() < 2e-2, "the square root makes 2e-2 of rounding in the cosine; see parity/musc.md"
    assert scores[[1, 2]].min() > 0.1


# RsCIN


def test_smoothing_is_rscin_without_its_rescaling(golden, classes):
    raw = torch.from_numpy(golden["image_raw"])
    plain = smoothed(raw, classes)
    rescaled = (plain - raw.min()) / (raw.max() - raw.min())
    torch.testing.assert_close(rescaled, rscin(raw, classes), atol=1e-9, rtol=0)


def test_rscin_of_equal_scores_or_few_pictures_has_no_nan(classes):
    assert torch.equal(rscin(torch.full((12,), 0.5), classes), torch.full((12,), 0.5, dtype=torch.float64))
    assert torch.isfinite(rscin(torch.tensor([0.1, 0.2]), classes[:2], (1, 8, 9))).all()
    assert torch.isfinite(rscin(torch.tensor([0.1, 0.2]), torch.stack([classes[0], -classes[0]]))).all()


def test_smoothing_in_chunks_changes_nothing(monkeypatch, golden, classes):
    raw = torch.from_numpy(golden["image_raw"])
    whole = smoothed(raw, classes)
    monkeypatch.setattr(musc, "WORK_BYTES", 24 * 12 * 5)
    torch.testing.assert_close(smoothed(raw, classes), whole, atol=1e-7, rtol=0)


# The detector


@pytest.fixture(scope="module")
def pictures(golden_weights):
    return [golden_weights.image(seed) for seed in range(9)]


@pytest.fixture(scope="module")
def predictions(small_encoder, pictures):
    return made(small_encoder).predict(pictures)


def close(one, other, atol=2e-6):
    np.testing.assert_allclose([p.score for p in one], [p.score for p in other], atol=atol)
    np.testing.assert_allclose([p.map for p in one], [p.map for p in other], atol=atol)


def test_predict_is_the_equations_in_a_row(small_encoder, pictures, predictions):
    with torch.no_grad():
        seen = small_encoder(small_encoder.pixels(pictures), quarters(24))
    parts = [
        mutual_scores(neighbourhood_features(standardised(tokens), seen.grid, r))
        for tokens in seen.patches
        for r in (1, 3, 5)
    ]
    maps = to_pixels(torch.stack(parts).double().mean(0).unflatten(1, seen.grid), 112)
    np.testing.assert_allclose([p.map for p in predictions], maps, atol=2e-6)
    scores = smoothed(maps.amax((1, 2)), seen.image)
    np.testing.assert_allclose([p.score for p in predictions], scores, atol=2e-6)


def test_at_another_resolution_positions_are_bicubic_and_not_antialiased(small_model, small_encoder, pictures):
    """Its tokens are those of open_clip's own blocks behind a table that is resampled as the official code does it."""
    visual, detector = small_model.visual, made(small_encoder, resolution=168)
    native, grid = visual.grid_size, (12, 12)
    pixels = small_encoder.pixels(pictures[:2], 168)
    with torch.no_grad():
        table = visual.positional_embedding
        square = table[1:].view(*native, -1).permute(2, 0, 1)[None]
        square = F.interpolate(square, grid, mode="bicubic", align_corners=False)[0].flatten(1).T
        x = visual.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(2, 1, -1), x], 1) + torch.cat([table[:1], square])
        x, expected = visual.ln_pre(x), {}
        for layer, module in enumerate(visual.transformer.resblocks, 1):
            x = module(x)
            expected[layer] = standardised(x[:, 1:])
        ours = dict(zip(detector.scorer.layers, detector.scorer._tokens(pixels)[1], strict=True))
        other = standardised(small_encoder(pixels, (24,)).patches[0])
    for layer, tokens in ours.items():
        torch.testing.assert_close(tokens, expected[layer], atol=2e-4, rtol=0)
    assert (other - expected[24]).abs().max() > 1e-2, "open_clip's antialiased table gives other tokens"


def test_batches_and_order_change_nothing(small_encoder, pictures, predictions):
    close(made(small_encoder).predict(pictures, batch_size=2), predictions)
    order = [4, 2, 8, 0, 7, 1, 3, 6, 5]
    close(made(small_encoder).predict([pictures[i] for i in order]), [predictions[i] for i in order])


def test_tokens_and_distances_in_files_change_nothing(small_encoder, pictures, predictions, monkeypatch):
    one = 4 * 64 * 128 * 4  # bytes of a picture's tokens: layers, patches, width, float32
    monkeypatch.setattr(musc, "TOKEN_BYTES", 3 * one)
    monkeypatch.setattr(mutual, "TABLE_BYTES", 0)
    close(made(small_encoder).predict(pictures), predictions)


def test_the_other_pictures_matter(small_encoder, pictures, predictions):
    fewer = made(small_encoder).predict(pictures[:5])
    assert abs(fewer[0].score - predictions[0].score) > 1e-4


@pytest.mark.parametrize("N", [2, 3, 4, 5])
def test_few_pictures_get_finite_scores_from_their_closest_one(small_encoder, pictures, N):
    predictions = made(small_encoder, neighbours=()).predict(pictures[:N])
    assert len(predictions) == N and all(np.isfinite(p.map).all() and p.score == p.map.max() for p in predictions)
    if N < 5:
        counted = made(small_encoder, neighbours=(), interval=(0, 1)).predict(pictures[:N])
        close(predictions, counted)


def test_one_picture_alone_is_refused_and_none_gives_none(small_encoder, pictures):
    with pytest.raises(ValueError, match="was given one; give predict the whole set"):
        made(small_encoder).predict(pictures[0])
    assert made(small_encoder).predict([]) == []


def test_stream_refuses_until_a_set_is_kept(small_encoder, pictures):
    detector = made(small_encoder)
    with pytest.raises(TypeError, match="whole set"):
        detector.stream(pictures)
    assert len(list(detector.fit(pictures[:6]).stream(pictures[6:]))) == 3


def test_a_picture_against_a_kept_set_is_that_picture_in_the_set(small_encoder, pictures):
    """Added to the set and scored with it, a picture meets the same others."""
    detector = made(small_encoder, neighbours=()).fit(pictures[:6])
    alone = [detector.predict(picture) for picture in pictures[6:]]
    for one, picture in zip(alone, pictures[6:], strict=True):
        close([one], made(small_encoder, neighbours=()).predict([*pictures[:6], picture])[6:], atol=1e-5)
    close(detector.predict(pictures[6:]), alone, atol=1e-5)


def test_the_kept_pictures_are_calibrated_by_the_others(small_encoder, pictures):
    detector = made(small_encoder, neighbours=()).fit(pictures[:7])
    together = made(small_encoder, neighbours=()).predict(pictures[:7])
    np.testing.assert_allclose(sorted(detector.calibration.scores), sorted(p.score for p in together), atol=2e-6)


def test_saved_with_its_set_it_scores_the_same(small_encoder, pictures, tmp_path):
    detector = made(small_encoder, degrees=(1, 3), layers=(12, 24)).fit(pictures[:6])
    detector.save(tmp_path / "set.safetensors")
    loaded = vlad.load(tmp_path / "set.safetensors", encoder=small_encoder)
    assert loaded.options == detector.options and loaded.transductive is False
    close([loaded.predict(pictures[8])], [detector.predict(pictures[8])])


def test_parts_are_equal_random_and_seeded(small_encoder, pictures, monkeypatch):
    groups = equal_parts(11, 3, seed=0)
    assert sorted(n for group in groups for n in group) == list(range(11))
    assert sorted(map(len, groups)) == [3, 4, 4]
    assert groups == equal_parts(11, 3, seed=0) != equal_parts(11, 3, seed=1)
    monkeypatch.setattr(musc, "SMALLEST_PART", 4)
    split = made(small_encoder, parts=2, neighbours=()).predict(pictures)
    for group in equal_parts(9, 2, seed=0):
        alone = made(small_encoder, neighbours=()).predict([pictures[i] for i in group])
        close([split[i] for i in group], alone)


def test_what_comparing_takes_is_said_once_while_a_large_set_is_read(small_encoder, pictures, monkeypatch, caplog):
    made(small_encoder).predict(pictures)
    assert "minutes" not in caplog.text
    monkeypatch.setattr(musc, "MANY", 4)
    scorer = made(small_encoder).scorer
    batches = iter([scorer.pixels(pictures[:3]), scorer.pixels(pictures[3:6]), scorer.pixels(pictures[6:])])
    said = []
    scorer.progress = lambda stage, done, total: said.append((stage, done, caplog.text.count("minutes here")))
    list(scorer.score_set(batches))
    assert [count for stage, _, count in said if stage == "reading"] == [0, 0, 1], "after the second batch"
    assert caplog.text.count("minutes here") == 1


def test_a_set_whose_table_fits_no_file_is_split_with_a_warning(small_encoder, pictures, monkeypatch, caplog):
    monkeypatch.setattr(musc, "TABLE_FILE_BYTES", 4 * 64 * 5**2)
    split = made(small_encoder).predict(pictures)
    assert "9 pictures are scored in 2 random parts" in caplog.text
    assert all(np.isfinite(p.score) for p in split)


def test_parts_too_small_to_have_typical_pictures_are_not_made(small_encoder, pictures, predictions, caplog):
    close(made(small_encoder, parts=3).predict(pictures), predictions)
    assert "1 random parts; 3 asked for" in caplog.text


def test_repeats_are_reported(small_encoder, pictures, predictions, caplog):
    made(small_encoder).predict([*pictures[:3], pictures[0], pictures[0]])
    assert "2 of 5 pictures look like another one" in caplog.text


def test_progress_counts_every_pair_and_ends_with_all_of_them(small_encoder, pictures):
    said = []
    detector = made(small_encoder)
    detector.report_progress(lambda *one: said.append(one))
    detector.predict(pictures, batch_size=4)
    assert [one for one in said if one[0] == "reading"] == [("reading", 4, 0), ("reading", 8, 0), ("reading", 9, 0)]
    total = 4 * 3 * 9 * 8 // 2
    assert said[-1] == ("comparing", total, total)


def test_it_takes_no_words_and_the_default_layers_are_the_quarters(small_encoder):
    assert [quarters(depth) for depth in (24, 12, 4, 3, 1)] == [
        (6, 12, 18, 24),
        (3, 6, 9, 12),
        (1, 2, 3, 4),
        (1, 2, 3),
        (1,),
    ]
    assert made(small_encoder).scorer.layers == (6, 12, 18, 24)
    with pytest.raises(TypeError, match="takes no name"):
        made(small_encoder).describe("bolt")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("layers", (0,)),
        ("layers", ()),
        ("layers", (25,)),
        ("degrees", (2,)),
        ("degrees", ()),
        ("interval", (0.3, 0.3)),
        ("interval", (-0.1, 0.3)),
        ("neighbours", (0,)),
        ("radius", -1),
        ("parts", 0),
    ],
)
def test_wrong_options_are_refused_by_name(small_encoder, option, value):
    with pytest.raises(ValueError, match=f"{option} is .*expected"):
        made(small_encoder, **{option: value})


# What does not fit in memory


def test_records_past_the_budget_are_read_back_from_the_file():
    drawn = torch.randn(7, 2, 3, 5, generator=torch.Generator().manual_seed(0)).half()
    records = Records(budget=2 * drawn[0].nbytes)
    for one in drawn:
        records.append(one)
    assert (len(records), records.inside) == (7, 2)
    for numbers in ([0], [6, 1, 3], range(7)):
        assert torch.equal(records.read(numbers, 1), drawn[list(numbers), 1])


def test_a_pair_table_in_a_file_is_the_one_in_memory():
    drawn = torch.randn(5, 5, 3, generator=torch.Generator().manual_seed(0))
    tables = [PairTable(5, 3, budget) for budget in (0, 10**6)]
    for table in tables:
        table.write(0, 0, drawn[:3, :2])
        table.write(0, 2, drawn[:3, 2:])
        table.write(3, 0, drawn[3:])
        assert all(torch.equal(table.row(i), drawn[i]) for i in range(5))
    assert tables[0].inside is None and tables[1].outside is None


def test_a_disk_without_room_says_how_much_is_needed():
    with pytest.raises(OSError, match=r"the table of distances needs .* GiB .* set VLAD_CACHE"):
        PairTable(10**6, 1000, 0)


@pytest.mark.parametrize("options", [{}, {"parts": 2}, {"radius": 1, "interval": (0.1, 0.5)}])
def test_rows_compared_apart_are_those_of_the_whole_set(small_encoder, options):
    scorer = MuSc(small_encoder, **options)
    N, (rows, columns) = 81, scorer.set_grid()
    kept = Records(2**30)
    draw = torch.Generator().manual_seed(0)
    for _ in range(N):
        shape = (len(scorer.layers), rows * columns, small_encoder.width)
        kept.append(standardised(torch.randn(shape, generator=draw)))
    whole = scorer._grids(kept, (rows, columns))
    apart = torch.zeros_like(whole)
    for part in scorer.set_parts(N):
        for start in range(0, len(part), 7):
            some = part[start : start + 7]
            apart[some] = scorer.set_rows(some, part, kept.read)
    torch.testing.assert_close(apart, whole, atol=1e-6, rtol=0)
