"""The published arithmetic of systems for video against what their own code gave, its inputs drawn from a seed."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from scipy import ndimage

from vlad.metrics import auroc
from vlad.video import anomalyruler, anyanomaly, published

KEYWORDS, TYPES = ("bicycle", "running"), ("too_close", "bicycle", "throwing", "running", "dancing")
SIDES = {"avenue": anyanomaly.AVENUE, "shtech": anyanomaly.SHANGHAITECH}
DOINGS = (
    *("walking", "standing", "riding a bicycle", "running"),
    *("sitting on a bench", "a cart", "cartoons on a wall", "vans parked"),
)
SEED = int(os.environ.get("VLAD_VIDEO_SEED", "0"))  # another golden is compared by naming it and its seed


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(os.environ.get("VLAD_VIDEO_GOLDEN", GOLDEN / "video.npz"))) as file:
        return dict(file)


@pytest.fixture(scope="module")
def stubs(golden_weights):
    """(embed pictures, embed texts) of the golden."""
    weight = golden_weights.tensor("video.image", (64, 192), SEED)

    def pictures(batch):
        return torch.nn.functional.adaptive_avg_pool2d(batch, (8, 8)).flatten(1) @ weight.T

    def texts(sentences):
        return torch.cat([golden_weights.tensor(f"video.text.{one}", (1, 64), SEED) for one in sentences])

    return pictures, texts


@pytest.fixture(scope="module")
def segments(golden_weights):
    """Two segments of 24 frames, uint8 [240, 240, 3]."""
    made = []
    for clip in (0, 1):
        ground = golden_weights.image(100 * SEED + clip, 240)
        colour = np.random.RandomState(100 * SEED + clip + 50).randint(0, 256, 3)
        frames = []
        for k in range(24):
            frame, x = ground.copy(), (20 + 7 * k) % 200
            frame[90 + 2 * k : 130 + 2 * k, x : x + 40] = colour
            frames.append(frame)
        made.append(frames)
    return made


@pytest.fixture(scope="module")
def tracks():
    """(labels, three tracks of scores) of five videos joined."""
    draw = np.random.RandomState(SEED + 400)
    labels, scores = [], []
    for count in (48, 72, 24, 120, 96):
        truth = np.zeros(count, int)
        start = draw.randint(0, count - 20)
        truth[start : start + draw.randint(10, 40)] = 1
        share = truth.reshape(-1, 24).mean(1)
        own = [np.round(np.clip(0.6 * share + 0.5 * draw.rand(count // 24), 0, 1), 1) for _ in range(3)]
        labels.append(truth)
        scores.append([np.repeat(one, 24) for one in own])
    return np.concatenate(labels), [np.concatenate([one[k] for one in scores]) for k in range(3)]


@pytest.fixture(scope="module")
def descriptions():
    draw, state, told = np.random.RandomState(SEED + 300), 0, []
    for _ in range(90):
        if draw.rand() < 0.08:
            state = draw.randint(8)
        does = DOINGS[state if draw.rand() < 0.75 else draw.randint(8)]
        told.append(
            f"There is one person in the image, the first person is {does}, near the fence. "
            "Other than people, there is a tree."
        )
    return told


def test_the_golden_was_made_of_these_frames(golden, segments):
    assert sum(int(frame.astype(np.int64).sum()) for frame in segments[0]) == golden["frames_checksum"][0]


@pytest.mark.parametrize("clip", [0, 1])
@pytest.mark.parametrize("word", KEYWORDS)
def test_anyanomaly_chooses_the_published_frames(golden, stubs, segments, clip, word):
    batch = torch.from_numpy(np.stack(segments[clip]).astype(np.float32) / 255).permute(0, 3, 1, 2)
    units = torch.nn.functional.normalize(stubs[0](batch), dim=-1)
    cosines = (units @ torch.nn.functional.normalize(stubs[1]([word]), dim=-1)[0]).numpy()
    key = f"c{clip}_{word}_"
    assert cosines == pytest.approx(golden[key + "similarity"], abs=1e-6)
    for option, name in ((2, "clip"), (3, "grouped"), (4, "offset")):
        best, four = anyanomaly.key_frames(golden[key + "similarity"], option)
        assert [best, *four] == golden[key + f"key_{name}"].tolist(), name


@pytest.mark.parametrize("clip", [0, 1])
@pytest.mark.parametrize("word", KEYWORDS)
@pytest.mark.parametrize("windows", SIDES)
def test_anyanomalys_views_are_the_published_ones(golden, stubs, segments, clip, word, windows):
    key, frames = f"c{clip}_{word}_", segments[clip]
    best, four = anyanomaly.key_frames(golden[key + "similarity"])
    texts = anyanomaly.keyword_texts(stubs[1], TYPES)
    assert texts.numpy() == pytest.approx(golden[f"{word}_text_types"], abs=1e-6)
    one = anyanomaly.keyword_texts(stubs[1], [word])
    assert one.numpy() == pytest.approx(golden[f"{word}_text_one"], abs=1e-6)
    row = TYPES.index(word)
    alone = anyanomaly.position_map(frames[best], one, 0, stubs[0], SIDES[windows])
    among = anyanomaly.position_map(frames[best], texts, row, stubs[0], SIDES[windows])
    key += windows + "_"
    assert alone[3::7, 3::7] == pytest.approx(golden[key + "map_one"], abs=1e-6)
    assert among[3::7, 3::7] == pytest.approx(golden[key + "map_types"], abs=1e-6)
    same(anyanomaly.attended(anyanomaly.shrunk(frames[best]), among), golden[key + "attended"], grey=2)
    sheet = anyanomaly.sheet([frames[k] for k in four], stubs[1]([word]), stubs[0], SIDES[windows])
    assert sheet.cosines == pytest.approx(golden[key + "windows"], abs=1e-6)
    assert sheet.window == golden[key + "window"][0]
    same(sheet.picture, golden[key + "grid"], grey=0)


def same(picture, stored, grey):
    """A picture equals a stored one, or its sums over pixels."""
    if stored.ndim == 3:
        assert np.abs(picture.astype(int) - stored).max() <= grey
    else:
        assert picture.sum((0, 1)) == pytest.approx(stored, rel=0 if not grey else 3e-3)


def test_a_frame_is_shrunk_and_attended_within_a_grey_level_of_opencv(golden, segments, stubs):
    frame = segments[0][golden["c0_bicycle_key_offset"][0]]
    stored = golden["c0_key_frame_224"]
    if SEED == 0:
        assert np.abs(anyanomaly.shrunk(frame).astype(int) - stored).max() <= 1
    fits = anyanomaly.position_map(
        frame, anyanomaly.keyword_texts(stubs[1], TYPES), TYPES.index("bicycle"), stubs[0], anyanomaly.AVENUE
    )
    assert np.abs(anyanomaly.attended(stored, fits).astype(int) - golden["c0_bicycle_avenue_attended"]).max() <= 1


def test_a_flat_map_leaves_the_picture_and_an_unknown_choice_is_refused(segments):
    picture = anyanomaly.shrunk(segments[0][0])
    assert anyanomaly.attended(picture, np.ones((224, 224), np.float32)) is picture
    with pytest.raises(ValueError, match="option is 1; expected 2, 3 or 4"):
        anyanomaly.key_frames(np.zeros(24), 1)


def test_numbers_in_answers_are_read_as_published(golden):
    assert [anyanomaly.answered(text) for text in golden["answers"]] == golden["answer_scores"].tolist()
    assert [anyanomaly.answered(text) for text in (".5", "-0.3", "from 0 to 1: 0.9", "none")] == [5, 0.3, 0, 0]


def test_the_fused_track_is_the_published_one_and_the_search_on_labels_can_be_repeated_with_it(golden, tracks):
    labels, (whole, position, sheets) = tracks
    scores = anyanomaly.fused(whole, position, sheets)
    assert scores == pytest.approx(golden["fused_sigma15"], abs=1e-9)
    assert auroc(scores, labels) == pytest.approx(golden["fused_auc"][0], abs=1e-9)
    alone = max((auroc(ndimage.gaussian_filter1d(whole, s), labels), -s) for s in range(1, 30))
    assert (alone[0], -alone[1]) == pytest.approx(golden["searched"][:2], abs=1e-6)
    value, sigma, *weights = golden["searched"][2:]
    assert auroc(anyanomaly.fused(whole, position, sheets, weights, sigma), labels) == pytest.approx(value, abs=1e-6)


def test_anomalyruler_flags_smooths_and_repairs_as_published(golden, descriptions):
    found = anomalyruler.flags(descriptions)
    assert found.tolist() == golden["ruler_pred"].tolist()
    base = anomalyruler.base(found)
    assert base.ema == pytest.approx(golden["ruler_ema"], abs=1e-9)
    assert base.threshold == pytest.approx(golden["ruler_threshold"][0], abs=1e-9)
    assert base.smoothed.tolist() == golden["ruler_smoothed"].tolist()
    assert base.score == pytest.approx(golden["ruler_score"], abs=1e-9)
    assert anomalyruler.repaired(descriptions, found, base.smoothed) == golden["ruler_modified"].tolist()


def test_majorities_final_scores_and_phrases_are_the_published_ones(golden):
    for window in (1, 2, 5, 20):
        kept = anomalyruler.majority(golden["majority_in"], 0.5, window)
        assert kept.tolist() == golden[f"majority_{window}"].tolist(), window
    plain = anomalyruler.majority(golden["majority_in"], 0.5, 5, edge=0)
    assert plain.tolist() == golden["majority_5_edge0"].tolist()
    assert anomalyruler.final(golden["final_in"]) == pytest.approx(golden["final_span10"], abs=1e-9)
    assert [anomalyruler.confidence(text) for text in golden["phrases"]] == golden["phrase_scores"].tolist()


def test_nothing_found_gives_a_running_mean_of_nothing():
    base = anomalyruler.base(np.zeros(5, int))
    assert base.threshold == 0 and base.score.tolist() == [0] * 5


def test_lavad_reads_fills_and_refines_as_published(golden):
    assert [published.lavad_answer(text) for text in golden["lavad_answers"]] == golden["lavad_parsed"].tolist()
    filled = published.lavad_filled(golden["lavad_raw"])
    assert filled == pytest.approx(golden["lavad_filled"], abs=1e-9)
    refined = published.lavad_refined(filled, golden["lavad_neighbours"], golden["lavad_similarity"], 400)
    assert refined == pytest.approx(golden["lavad_refined"], abs=1e-9)
    for length, stored in zip((3, 10, 11, 160, 300), golden["lavad_subsample"], strict=True):
        assert published.lavad_frames(length) == stored[stored >= 0].tolist()
    assert published.interval_labels(100, [(10, 20), (80, 120)], 7).tolist() == golden["lavad_labels"].tolist()
    with pytest.raises(ValueError, match="no answer holds a score"):
        published.lavad_filled(np.array([-1.0, -1.0]))


@pytest.mark.parametrize("name", ["peak", "flat", "noise", "short"])
def test_holmes_vau_samples_the_published_frames(golden, name):
    assert published.holmes_frames(golden[f"ats_{name}_in"]).tolist() == golden[f"ats_{name}"].tolist()


def test_vera_averages_smooths_and_weighs_as_published(golden):
    own = published.vera_segments(golden["vera_features"], golden["vera_flags"])
    assert own == pytest.approx(golden["vera_segments"], abs=1e-9)
    assert published.vera_kernel() == pytest.approx(golden["vera_kernel"], abs=1e-9)
    smoothed = published.vera_smoothed(own)
    assert smoothed == pytest.approx(golden["vera_smoothed"], abs=1e-9)
    assert published.vera_frames(smoothed, 633) == pytest.approx(golden["vera_frames"], abs=1e-9)


def test_vera_with_few_segments_averages_over_all():
    features = np.eye(3)
    assert published.vera_segments(features, np.array([1.0, 0, 0]))[1] > 0
