"""FiLo against the numbers of CASIA-IVA-Lab/FiLo (../shared/parity/filo.npz), and its authors' files.

Two correct float32 implementations differ by rounding through 24 blocks: some 1e-5 in tokens, 1e-6 in probabilities.
Gradients, and the totals of AdamW's steps, which divide by them, are held to 1e-3 of their size.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from learned_goldens import batch_of, check_gradients, check_steps, close

import vlad
from vlad.learning.losses import dice, focal
from vlad.methods.filo import KERNELS, PLACES, Filo, looked_at, place_of

TOKENS, MAPS, SCORES, TRAINING = 1e-4, 1e-5, 1e-5, 1e-3
SIDES = (112, 154)
NAME = "metal nut"
PHRASES = (
    "cracks",
    "irregular threading",
    "corrosion",
    "missing",
    "distortion",
    "signs of discoloration",
    "excessive wear on contact surfaces",
    "inconsistent texture",
)
BOXES = [(10.7, 20.2, 60.9, 80.1), (70, 5.5, 99.9, 33.3)]


@pytest.fixture(scope="module")
def pack():
    """The golden's words: the shipped pack's general ones, and its own phrases for the defects of a nut."""
    own = vlad.PromptPack.load("filo").to_dict()
    return {**own, "anomalous": [f"abnormal {{}} with {one}" for one in PHRASES] + own["anomalous"][-5:]}


@pytest.fixture(scope="module")
def weights(own_weights, wide_encoder):
    return own_weights(Filo(wide_encoder))


@pytest.fixture(scope="module")
def load(weights, wide_encoder, pack):
    def loaded(file=weights, encoder=wide_encoder, **options):
        return vlad.load("filo", NAME, encoder=encoder, adapter=file, prompts=pack, **options)

    return loaded


def cosines(scorer, image, places=PLACES):
    """Of the picture with both states, whose length is the root of a half."""
    seen = scorer.seen(image)
    return (scorer.states(seen, [NAME], [places]) @ seen[..., None])[0, :, 0]


@pytest.mark.parametrize("side", SIDES)
def test_scores_and_maps_match_through_the_public_api(golden, picture, load, side):
    prediction = load(resolution=side).predict(picture)
    close(prediction.score, golden[f"s{side}_score"], SCORES)
    close(prediction.map, golden[f"s{side}_map"], MAPS)
    for key, positions in (("pos1", ["top left"]), ("pos2", ["bottom", "right"])):
        placed = load(resolution=side, positions=positions).predict(picture)
        close(placed.score, golden[f"s{side}_{key}_score"], SCORES)
        if f"s{side}_{key}_map" in golden:
            close(placed.map, golden[f"s{side}_{key}_map"], MAPS)


@pytest.mark.parametrize("side", SIDES)
@torch.no_grad()
def test_what_both_towers_give_matches(golden, picture, load, side):
    scorer, encoder = load().scorer, load().encoder
    pixels = encoder.pixels([picture], side)
    resized = ((pixels * encoder.std + encoder.mean)[0] * 255).permute(1, 2, 0)
    close(resized, golden[f"s{side}_resized_uint8"], 1e-3)
    image, *tokens = scorer.image_side(pixels)
    seen = scorer.seen(image)
    close(image[0], golden[f"s{side}_image_feature"], TOKENS)
    close(seen[0], golden[f"s{side}_image_feature_adapted"], SCORES)
    close(torch.cat(tokens), golden[f"s{side}_taps_qkv"][:, 1:], TOKENS)
    close(tokens[0][0], golden[f"s{side}_tap_vv"][1:], TOKENS)
    linear, grid = scorer.decoder_linear(tokens), (side // 14, side // 14)
    close(F.normalize(torch.cat(linear), dim=-1), golden[f"s{side}_linear"], MAPS)
    bank = scorer.decoder_cov([tokens[0]] * 3, grid)
    close(F.normalize(torch.cat(bank), dim=-1), golden[f"s{side}_mmci"], MAPS)
    words = scorer.normal_prompt_learner(seen), scorer.abnormal_prompt_learner(seen)
    close(words[0][0], golden[f"s{side}_context_normal"], SCORES)
    close(words[1][0], golden[f"s{side}_context_abnormal"], SCORES)
    normal, anomalous = scorer.sentences(NAME)
    close(scorer.read(words[0], normal)[0], golden[f"s{side}_text_normal_each"], SCORES)
    states = scorer.states(seen, [NAME], [PLACES])
    close(states[0], golden[f"s{side}_text_features"], SCORES)
    close(cosines(scorer, image), golden[f"s{side}_text_prob"], SCORES)
    close(cosines(scorer, image, ["top left"]), golden[f"s{side}_pos1_text_prob"], SCORES)
    close(cosines(scorer, image, ["right", "bottom"]), golden[f"s{side}_pos2_text_prob"], SCORES)
    close(cosines(load(stage=1).scorer, image), golden[f"s{side}_noadapter_text_prob"], SCORES)
    if side == 112:
        close(scorer.read(words[1], anomalous)[0], golden["s112_text_abnormal_each"], SCORES)
        maps = scorer.maps(tokens, states, (side, side))
        close(torch.cat(maps)[:, 1], golden["s112_map_each"], MAPS)


def test_sentences_are_the_official_ones(golden, load):
    detector = load()
    for sentences, key in zip(detector.scorer.sentences(NAME), ("normal", "abnormal"), strict=True):
        ids = detector.encoder.tokenize([" ".join(["X"] * 12 + [one]) for one in sentences])
        np.testing.assert_array_equal(ids, golden[f"tokens_{key}"])


def test_a_pack_of_ones_own_needs_no_template_and_every_template_is_read_at_every_place(load):
    detector = load()
    detector.describe("bolt", {"normal": ["{}"], "anomalous": ["bent {}", "{} with rust"]})
    normal, anomalous = detector.scorer.sentences("bolt", ["top", "center"])
    assert normal == ["bolt."]
    assert anomalous == [
        "bent bolt at top.",
        "bent bolt at center.",
        "bolt with rust at top.",
        "bolt with rust at center.",
    ]
    both = {"templates": ["{}.", "a {}."], "normal": ["{}"], "anomalous": ["bent {}"]}
    _, anomalous = detector.describe("bolt", both).scorer.sentences("bolt", ["top", "center"])
    assert anomalous == ["bent bolt at top.", "bent bolt at center.", "a bent bolt at top.", "a bent bolt at center."]


def test_the_papers_taps_match(golden, picture, load):
    prediction = load(resolution=112, taps="separate").predict(picture)
    close(prediction.score, golden["s112_separate_taps_score"], SCORES)
    close(prediction.map, golden["s112_separate_taps_map"], MAPS)


# Boxes


def test_boxes_dampen_what_is_outside_them_and_leave_the_score(golden, picture, load):
    for side in SIDES:
        boxes = [[edge * side / 112 for edge in box] for box in BOXES]
        prediction = load(resolution=side, boxes=boxes).predict(picture)
        close(prediction.score, golden[f"s{side}_score"], SCORES)
        if side == 112:
            close(prediction.map, golden["s112_map_boxes"], MAPS)
        else:
            close(prediction.map.mean(), golden["s154_map_boxes_mean"], MAPS)


def test_a_models_boxes_are_asked_for_with_the_pixels_and_choose_the_place(golden, picture, golden_weights, load):
    asked = []

    def model(pixels):
        asked.append(pixels.shape)
        return [[(*box, confidence) for box, confidence in zip(BOXES, (0.3, 0.9), strict=True)], []][: len(pixels)]

    pictures = [picture, golden_weights.image(5, 200)]
    found = load(resolution=112, boxes=model, positions="boxes").predict(pictures)
    assert asked == [(2, 3, 112, 112)]
    weights = looked_at(BOXES, (112, 112)).numpy()
    right, middle = (load(resolution=112, positions=[place]).predict(pictures) for place in ("top right", "center"))
    close(found[0].score, right[0].score, 1e-6)
    close(found[0].map, weights * right[0].map, 1e-6)
    close(found[1].score, middle[1].score, 1e-6)
    close(found[1].map, 0.7 * middle[1].map, 1e-6)


def test_the_place_of_a_box_is_that_of_its_centre():
    assert place_of((0, 0, 20, 20), 112) == ["top left"] and place_of((40, 90, 60, 112), 112) == ["bottom"]
    assert place_of((500, 240, 518, 260), 518) == ["right"] and place_of(None, 154) == ["center"]
    assert place_of((172.5, 0, 172.5, 10), 518) == list(PLACES), "a centre between two thirds lies in neither"


def test_boxes_are_cut_to_whole_pixels_and_to_the_picture():
    weights = looked_at([(-3, 1.9, 2.9, 99)], (4, 4))
    assert weights[1:, :2].eq(1).all() and weights.sum().item() == pytest.approx(6 + 10 * 0.7)


def test_fixed_boxes_and_positions_are_kept_and_a_model_is_not(load, picture, tmp_path, wide_encoder):
    kept = load(boxes=BOXES, positions=["top"])
    kept.save(tmp_path / "kept.safetensors")
    again = vlad.load(tmp_path / "kept.safetensors", encoder=wide_encoder).predict(picture)
    np.testing.assert_array_equal(again.map, kept.predict(picture).map)
    load(boxes=lambda pixels: [[]] * len(pixels)).save(tmp_path / "model.safetensors")
    bare = vlad.load(tmp_path / "model.safetensors", encoder=wide_encoder).predict(picture)
    np.testing.assert_array_equal(bare.map, load().predict(picture).map)


# Training


def adamw(scorer, rate):
    return torch.optim.AdamW(scorer.parameter_groups(rate), betas=(0.5, 0.999), weight_decay=0.01)


def test_the_first_stage_matches_in_losses_gradients_and_steps(golden, golden_weights, load):
    scorer = load(stage=1, row_dice=True).scorer
    batch = batch_of(scorer, golden, golden_weights, [NAME])
    with torch.no_grad():
        image, *tokens = batch.features
        maps = scorer.maps(tokens, scorer.states(scorer.seen(image), [NAME], [PLACES]), (112, 112))
    y, parts, whole = batch.masks, [], []
    for m in maps:
        parts.append([focal(m, y), dice(m[:, 1], y, rows=True), dice(m[:, 0], 1 - y, rows=True)])
        whole.append([dice(m[:, 1], y), dice(m[:, 0], 1 - y)])
    np.testing.assert_allclose(parts, golden["train1_parts_focal_dice1_dice0"], rtol=5e-5)
    np.testing.assert_allclose(whole, golden["train1_dice_per_image"], rtol=5e-5)
    each = np.sum(whole) + np.sum([row[0] for row in parts])
    assert load(stage=1).scorer.loss(batch).item() == pytest.approx(each, rel=1e-5)
    check_gradients(golden, scorer, scorer.loss(batch), TRAINING, "train1_")
    check_steps(golden, scorer, batch, adamw(scorer, 1e-3), TRAINING, "train1_totals_3_steps")


def test_the_second_stage_matches_in_gradients_and_steps(golden, golden_weights, load):
    scorer = load().scorer
    batch = batch_of(scorer, golden, golden_weights, [NAME])
    check_gradients(golden, scorer, scorer.loss(batch), TRAINING, "train2_")
    check_steps(golden, scorer, batch, adamw(scorer, 1e-5), 1e-5, "train2_totals_3_steps")


@torch.no_grad()
def test_the_merged_kernel_is_the_sum_of_the_six_convolutions(load):
    bank = load().scorer.decoder_cov
    tokens = torch.randn(2, 12, 128, generator=torch.Generator().manual_seed(0))
    grid = tokens.mT.unflatten(-1, (3, 4))
    six = sum(
        bank.get_submodule(f"{name}.1")(F.pad(grid, (w // 2, w // 2, h // 2, h // 2)))
        for name, (h, w) in KERNELS.items()
    )
    close(bank([tokens] * 3, (3, 4))[1], six.flatten(2).mT, 1e-4)


# Encoders and options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"taps": "paper"}, "taps is 'paper'; expected one of as_published, separate"),
        ({"positions": ["middle"]}, "positions are .*; expected 'boxes' or some of top left"),
        ({"positions": []}, "positions are"),
        ({"boxes": [(1, 2, 3)]}, "boxes are .*; expected"),
        ({"n_ctx": 0}, "n_ctx is 0"),
        ({"stage": 0}, "stage is 0"),
    ],
)
def test_options_out_of_range_are_refused(wide_encoder, options, words):
    with pytest.raises(ValueError, match=words):
        Filo(wide_encoder, **options)


def test_it_works_on_tiny_whose_ordinary_tokens_are_taken_as_they_are(tiny_encoder, picture):
    made = Filo(tiny_encoder)
    pixels = tiny_encoder.pixels([picture])
    with torch.no_grad():
        _, first, *_, last = made.image_side(pixels)
    assert torch.equal(first, last)


# The authors' files


def test_the_authors_file_gives_the_official_codes_numbers(golden, picture, load, file):
    detector = load(file, resolution=112)
    prediction = detector.predict(picture)
    close(prediction.score, golden["pth_s112_score"], SCORES)
    close(prediction.map, golden["pth_s112_map"], MAPS)
    with torch.no_grad():
        image = detector.scorer.image_side(detector.encoder.pixels([picture], 112))[0]
        close(cosines(detector.scorer, image), golden["pth_s112_text_prob"], SCORES)


def test_an_official_file_gives_the_number_of_learned_words_by_shape(load, official_copy, file):
    def shorter(content):
        table = {key: value for key, value in content["filo"].items() if not key.startswith(("clip_model.", "text_e"))}
        content["filo"] = table | {key: value[:7] for key, value in table.items() if key.endswith(".ctx")}

    assert load(file).options["n_ctx"] == 12 and load(official_copy(file, shorter)).options["n_ctx"] == 7


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("adapter.fc.2.weight"), "adapter.fc.2.weight is missing"),
        (lambda t: t.pop("decoder_cov.fc_51.2.bias"), "decoder_cov.fc_51.2.bias is missing"),
        (lambda t: t.update(more=torch.zeros(1)), "more is unknown"),
        (lambda t: t.update({"adapter.fc.0.weight": torch.zeros(3, 128)}), r"is \[3, 128\], expected \[64, 128\]"),
        (lambda t: t["normal_prompt_learner.ctx"].fill_(torch.nan), "normal_prompt_learner.ctx is not finite"),
    ],
)
def test_a_damaged_official_file_is_refused_with_what_is_wrong(load, official_copy, file, change, words):
    def changed(content):
        for key in [key for key in content["filo"] if key.startswith(("clip_model.", "text_encoder."))]:
            del content["filo"][key]
        change(content["filo"])

    with pytest.raises(ValueError, match=words):
        load(official_copy(file, changed))
