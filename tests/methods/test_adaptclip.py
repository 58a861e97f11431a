"""AdaptCLIP against the numbers of gaobb/AdaptCLIP (tests/golden/adaptclip.npz), and its authors' files.

Two correct float32 implementations differ by rounding through 24 blocks, some 1e-5 in features of size 5; adapters and
softmax leave less than 1e-6 of it. Gradient norms: the golden's own float32 and float64 agree to 1e-4.
"""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import GOLDEN, _written

import vlad
from vlad.detector import Detector
from vlad.learning.losses import dice, focal, whole_picture
from vlad.learning.prompt_learner import value_stream
from vlad.learning.scorer import Batch
from vlad.methods.adaptclip import AdaptClip, anomalous, closest

FILE = GOLDEN / "adaptclip_official_format.pth"
FEATURES, MAPS, SCORES, TRAINING = 5e-5, 5e-6, 2e-6, 5e-4
QUARTERS = (6, 12, 18, 24)


def trained(detector):
    """The detector, in the mode in which its layers learn."""
    detector.scorer.train()
    return detector


@pytest.fixture(scope="module")
def picture(golden, golden_weights):
    return golden_weights.image(int(golden["seed"]), 200)


@pytest.fixture(scope="module")
def shots(golden, golden_weights):
    return [golden_weights.image(int(golden["seed"]) + 100 + number, 200) for number in range(2)]


def official(small_folder, file=FILE, normals=(), **options):
    encoder = f"local-dir:{small_folder}"
    detector = vlad.load("adaptclip", encoder=encoder, adapter=file, device="cpu", dtype="float32", **options)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # too few for a threshold
        return detector.fit(normals) if normals else detector


@pytest.mark.parametrize("side", [112, 154])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_scores_and_maps_match_through_the_public_api(golden, picture, shots, small_folder, side, count):
    key = f"s{side}_shot{count}" if count else f"s{side}_zero"
    for sigma, smooth in ((0, ""), (4, "_smooth")):
        prediction = official(small_folder, normals=shots[:count], resolution=side, sigma=sigma).predict(picture)
        np.testing.assert_allclose(prediction.map, golden[f"{key}_map{smooth}"], atol=MAPS, rtol=0)
    np.testing.assert_allclose(prediction.score, golden[f"{key}_score"][0], atol=SCORES, rtol=0)


@pytest.mark.parametrize("side", [112, 154])
@torch.no_grad()
def test_features_and_what_each_adapter_says_match(golden, picture, small_folder, side):
    detector = official(small_folder, resolution=side)
    encoder = detector.encoder
    pixels = encoder.pixels([picture], side)
    resized = ((pixels * encoder.std + encoder.mean)[0] * 255).permute(1, 2, 0)
    np.testing.assert_allclose(resized, golden[f"s{side}_resized_uint8"], atol=1e-3, rtol=0)
    image, *taps = detector.scorer.image_side(pixels)
    np.testing.assert_allclose(image[0], golden[f"s{side}_image_feature"], atol=FEATURES, rtol=0)
    np.testing.assert_allclose(torch.cat(taps), golden[f"s{side}_patch_features"], atol=FEATURES, rtol=0)
    for judged, name in zip(detector.scorer.adapted(image, taps[-1], (side, side)), ("visual", "textual"), strict=True):
        score, amap = anomalous(judged)
        np.testing.assert_allclose(score, golden[f"s{side}_{name}_score"], atol=SCORES, rtol=0)
        np.testing.assert_allclose(amap[0], golden[f"s{side}_{name}_map"], atol=MAPS, rtol=0)


@pytest.mark.parametrize("side", [112, 154])
@pytest.mark.parametrize("count", [1, 2])
@torch.no_grad()
def test_the_comparison_with_normals_matches(golden, picture, shots, small_folder, side, count, monkeypatch):
    detector, logits = official(small_folder, normals=shots[:count], resolution=side), []
    detector.scorer.pq_learner.register_forward_hook(lambda module, given, judged: logits.append(judged[0]))
    taps = detector.scorer.image_side(detector.encoder.pixels([picture], side))[1:]
    (score, amap), distance = detector.scorer.compared(taps, (side, side))
    key = f"s{side}_shot{count}"
    np.testing.assert_allclose(torch.cat(logits), golden[f"{key}_pq_logits"], atol=MAPS, rtol=0)
    np.testing.assert_allclose(score, golden[f"{key}_pq_score"], atol=SCORES, rtol=0)
    np.testing.assert_allclose(amap[0], golden[f"{key}_pq_map"], atol=MAPS, rtol=0)
    np.testing.assert_allclose(distance[0], golden[f"{key}_align_map"], atol=MAPS, rtol=0)


@torch.no_grad()
def test_sentences_match(golden, small_folder):
    detector = official(small_folder)
    np.testing.assert_array_equal(detector.scorer.textual_learner.ids, golden["tokens"])
    learned = detector.scorer.textual_learner(detector.encoder)
    np.testing.assert_allclose(learned, golden["learned_text_features"], atol=FEATURES, rtol=0)
    np.testing.assert_allclose(detector.scorer.prototypes, golden["static_text_features"], atol=FEATURES, rtol=0)


# Normal pictures


def test_a_normal_that_it_has_seen_scores_zero(small_folder, picture, shots):
    detector = official(small_folder, normals=shots)
    seen, other = detector.predict([shots[0], picture])
    assert seen.score == pytest.approx(0, abs=1e-6) and seen.map.max() < 1e-6
    assert other.score > 0.1 and np.isfinite(other.map).all()


def test_more_normals_come_closer_never_farther(small_folder, picture, shots):
    pixels = official(small_folder).encoder.pixels([picture])
    distances = []
    for count in (1, 2):
        detector = official(small_folder, normals=shots[:count])
        with torch.no_grad():
            distances.append(detector.scorer.compared(detector.scorer.image_side(pixels)[1:], (112, 112))[1])
    assert (distances[1] <= distances[0] + 1e-6).all() and (distances[1] < distances[0]).any()


def test_a_name_fills_phrases_and_changes_no_score(small_folder, picture, shots):
    detector = official(small_folder, normals=shots)
    before = detector.predict(picture)
    after = detector.describe("bolt").predict(picture)
    assert before.score == after.score and before.phrases == {} and "damaged bolt" in after.phrases


# Training


@pytest.fixture
def training(golden, golden_weights, small_folder):
    """The official learners in training, and the golden's batch of four with a normal picture beside each."""
    detector, seed = trained(official(small_folder, resolution=112)), int(golden["seed"])
    with torch.no_grad():
        seen = [
            detector.scorer.image_side(
                detector.encoder.pixels([golden_weights.image(seed + first + i, 200) for i in range(4)], 112)
            )
            for first in (0, 100)
        ]
    masks = torch.from_numpy(golden["train_masks"]).float()
    return detector, Batch(seen[0], masks, torch.from_numpy(golden["train_labels"]), list("abcd"), seen[1])


def ours(name):
    """Our name of a parameter of the official code."""
    if name.startswith("pq_learner") and "_adapter.0." in name:
        return name.replace("_adapter.0.", "_adapter.")
    return name.replace("local_adater", "local_adapter")


def test_each_part_of_the_loss_matches_and_running_means_move_as_they_do_there(golden, training):
    detector, batch = training
    masks, parts = batch.masks, []
    with torch.no_grad():
        judged = detector.scorer.judged(batch)
    for logits, maps in judged:
        dices = [dice(maps[:, 1], masks), dice(maps[:, 0], 1 - masks)]
        parts.append([float(value) for value in (whole_picture(logits, batch.labels), focal(maps, masks), *dices)])
    assert list(golden["train_part_names"]) == ["visual", "textual", "pq0", "pq1", "pq2", "pq3"]
    np.testing.assert_allclose(parts, golden["train_parts_ce_focal_dice1_dice0"], rtol=1e-5)
    buffers = dict(detector.scorer.named_buffers())
    for key in [key for key in golden.files if key.startswith("bn_after_")]:
        np.testing.assert_allclose(buffers[ours(key.removeprefix("bn_after_"))], golden[key], atol=1e-6)


def test_the_loss_and_gradients_match_and_the_encoder_gets_none(golden, training):
    detector, batch = training
    total = detector.scorer.loss(batch)
    total.backward()
    np.testing.assert_allclose(total.item(), golden["train_total"], rtol=1e-5)
    np.testing.assert_allclose(total.item(), golden["train_total_float64"], rtol=1e-5)
    parameters = dict(detector.scorer.named_parameters())
    assert {ours(name) for name in golden["grad_names"]} == set(parameters)
    norms = [parameters[ours(name)].grad.norm().item() for name in golden["grad_names"]]
    np.testing.assert_allclose(norms, golden["grad_norms"], rtol=TRAINING)
    np.testing.assert_allclose(norms, golden["grad_norms_float64"], rtol=TRAINING)
    words = golden["grad_textual_learner.ctx_pos"]
    found = parameters["textual_learner.ctx_pos"].grad
    np.testing.assert_allclose(found, words, atol=TRAINING * np.abs(words).max(), rtol=0)
    assert all(p.grad is None for p in detector.encoder.model.parameters())


def test_adapters_learn_apart_from_each_other(training):
    detector, batch = training
    image, *taps = batch.features
    for part, touched in zip(detector.scorer.adapted(image, taps[-1], (112, 112)), ("visual", "textual"), strict=True):
        detector.scorer.zero_grad()
        (part[0].sum() + part[1][:, 1].sum()).backward()
        learners = {name.split("_")[0] for name, p in detector.scorer.named_parameters() if p.grad is not None}
        assert learners == {touched}


def test_steps_lower_the_loss_and_an_adapter_in_use_keeps_its_statistics(training, picture, tmp_path):
    detector, batch = training
    optimizer, totals = torch.optim.Adam(detector.scorer.parameters(), lr=1e-3, betas=(0.5, 0.999)), []
    for _ in range(5):
        optimizer.zero_grad()
        totals.append(loss := detector.scorer.loss(batch))
        loss.backward()
        optimizer.step()
    assert all(later < sooner for sooner, later in pairwise(totals))
    detector.scorer.eval().save_adapter(tmp_path / "a.safetensors", recipe={})
    learned = {key: value.clone() for key, value in detector.scorer.learned().items()}
    score = detector.predict(picture).score
    assert all(torch.equal(value, learned[key]) for key, value in detector.scorer.learned().items())
    again = vlad.load("adaptclip", encoder=detector.encoder, adapter=tmp_path / "a.safetensors")
    assert again.predict(picture).score == score and again.options == detector.options
    assert int(again.scorer.pq_learner.sharebn[0].num_batches_tracked) == 5


def test_the_closest_reference_patch_is_looked_for_in_its_own_picture_only():
    patches = torch.nn.functional.normalize(torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    found = closest(patches[:, :3], patches)
    assert torch.equal(found, patches[:, :3])
    swapped = closest(patches[:, :3], patches.flip(0))
    for queries, rows, others in zip(patches[:, :3], swapped, patches.flip(0), strict=True):
        for query, row in zip(queries, rows, strict=True):
            assert torch.equal(row, max(others, key=lambda other: float(query @ other)))


# Untrained


def test_untrained_adapters_follow_the_global_seed_and_leave_it_alone(small_encoder):
    def start(seed):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        made = AdaptClip(small_encoder, hidden=8)
        assert torch.equal(before, torch.get_rng_state())
        return torch.nn.utils.parameters_to_vector(made.parameters()).detach()

    assert torch.equal(start(1), start(1)) and not torch.equal(start(1), start(2))


def test_it_works_on_tiny_with_and_without_normals(tiny_encoder, picture, shots):
    made = Detector(AdaptClip(tiny_encoder))
    assert made.scorer.layers == (1, 2, 3, 4)
    zero = made.predict(picture)
    with pytest.warns(UserWarning, match="no threshold from 2 normals"):
        few = made.fit(shots).predict(picture)
    assert zero.map.shape == few.map.shape == (224, 224) and zero.score != few.score
    with torch.no_grad():
        pixels = tiny_encoder.pixels([picture])
        image, *taps = made.scorer.image_side(pixels)
        dense = tiny_encoder.dense(pixels)
    assert torch.equal(image, dense[0]) and torch.equal(taps[-1][:, 1:], dense[1])
    torch.testing.assert_close(taps[-1][:, 0], image)


@pytest.mark.parametrize("options", [{"reduction": 0}, {"reduction": 65}, {"hidden": 1}, {"n_ctx": 0}, {"n_ctx": 99}])
def test_wrong_options_say_what_is_allowed(small_encoder, options):
    (name, value), *_ = options.items()
    with pytest.raises(ValueError, match=f"{name} .*{value}"):
        AdaptClip(small_encoder, **options)


# The authors' files


def test_an_official_file_gives_its_options_by_shape(small_folder):
    options = official(small_folder).options
    assert {key: options[key] for key in ("n_ctx", "reduction", "hidden")} == dict(n_ctx=12, reduction=4, hidden=32)


def part(name, **changes):
    """A change of one part: tensors to put in, or None to take out."""

    def change(content):
        for key, value in changes.items():
            if value is None:
                del content[name][key]
            else:
                content[name][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (part("textual_learner", ctx_pos=None), "textual_learner.ctx_pos is missing"),
        (part("visual_learner", **{"global_adapter.fc.3.weight": None}), "global_adapter.fc.3.weight is missing"),
        (part("visual_learner", **{"local_adater.fc.0.weight": None}), "local_adapter.fc.0.weight is missing"),
        (part("visual_learner", **{"local_adater.fc.1.running_var": None}), "fc.1.running_var is missing"),
        (part("pq_learner", **{"sharebn.3.bias": None}), "pq_learner.sharebn.3.bias is missing"),
        (part("pq_learner", **{"local_adapter.0.0.weight": None}), "pq_learner.local_adapter.0.0.weight is missing"),
        (part("pq_learner", **{"local_adapter.2.8.bias": None}), "pq_learner.local_adapter.2.8.bias is missing"),
        (part("pq_learner", **{"global_adapter.1.6.weight": torch.zeros(2, 16)}), "global_adapter.*not that of copy"),
        (part("pq_learner", odd=torch.zeros(1)), "pq_learner.odd is unknown"),
        (part("visual_learner", odd=torch.zeros(1)), "visual_learner.odd is unknown"),
        (part("textual_learner", odd=torch.zeros(1)), "textual_learner.odd is unknown"),
        (
            part("visual_learner", **{"global_adapter.fc.0.weight": torch.zeros(8, 64)}),
            r"global_adapter.fc.0.weight is \[8, 64\], expected \[16, 64\]",
        ),
        (part("visual_learner", **{"local_adater.fc.0.weight": torch.zeros(16)}), r"is \[16\], expected \[16, 64\]"),
        (
            part("visual_learner", **{"local_adater.fc.1.running_mean": torch.full((16,), torch.nan)}),
            "running_mean is not finite",
        ),
        (part("visual_learner", odd="text"), "'visual_learner' is no table of tensors"),
        (lambda c: c.pop("pq_learner"), "it holds 'textual_learner', 'visual_learner'; a file of adaptclip's authors"),
    ],
)
def test_a_damaged_official_file_is_refused_with_what_is_wrong(official_copy, small_folder, change, words):
    with pytest.raises(ValueError, match=words):
        official(small_folder, official_copy(FILE, change))


def test_a_file_that_was_cut_is_refused(small_folder, tmp_path):
    whole = FILE.read_bytes()
    for length in (0, len(whole) // 2, len(whole) - 50):
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="no checkpoint of plain tensors"):
            official(small_folder, tmp_path / "cut.pth")


def test_a_file_for_anomalyclip_is_named_and_so_is_the_reverse(small_folder):
    with pytest.raises(ValueError, match=r"no file of adaptclip's authors: .*'prompt_learner' it looks anomalyclip's"):
        official(small_folder, GOLDEN / "anomalyclip_official_format.pth")
    with pytest.raises(ValueError, match=r"no file of anomalyclip's authors: .* it looks adaptclip's"):
        vlad.load("anomalyclip", encoder=f"local-dir:{small_folder}", adapter=FILE, device="cpu", dtype="float32")


def test_an_encoder_of_another_activation_or_width_is_refused(small_folder, golden_weights, tmp_path):
    encoder = vlad.Encoder.load(f"local-dir:{small_folder}", device="cpu", dtype="float32", activation="gelu")
    with pytest.raises(ValueError, match="learned with the activation quickgelu"):
        vlad.load("adaptclip", encoder=encoder, adapter=FILE)
    import open_clip

    config = {**golden_weights.TINY_CLIP, "embed_dim": 128}
    folder = _written(tmp_path, open_clip.model.CLIP(**config), config)
    encoder = vlad.Encoder.load(f"local-dir:{folder}", device="cpu", dtype="float32")
    with pytest.raises(ValueError, match=r"joint width 128\): it belongs to encoder 'ViT-L-14-336-quickgelu/openai'"):
        vlad.load("adaptclip", encoder=encoder, adapter=FILE)


def test_quarters_before_the_value_stream_are_the_ordinary_stream(small_encoder, picture):
    with torch.no_grad():
        pixels = small_encoder.pixels([picture])
        ordinary = small_encoder(pixels, layers=(5,)).patches[0]
        _, _, taps = value_stream(small_encoder, pixels, (5, 6))
    assert torch.equal(taps[0][:, 1:], small_encoder.project(ordinary))
    assert not torch.allclose(taps[1], small_encoder.project(small_encoder(pixels, layers=(6,)).patches[0][:, :1]))
