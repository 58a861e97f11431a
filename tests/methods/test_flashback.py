"""Flashback's score against the numbers of its formula by hand, and what a pack of scenes must hold."""

import pytest
import torch
from torch.nn import functional as F

import vlad
from vlad.methods.flashback import anomalous_share
from vlad.prompts import PromptPack, embed

SCENES = {"normal": ["an empty street", "a {} in order"], "anomalous": ["a burning house", "a broken {}"]}
PACK = {"normal": ["{}"], "anomalous": ["bad {}"], "scenes": SCENES}


@pytest.mark.parametrize(
    ("alpha", "temperature", "score"),
    [(0.95, 1, 0.33432), (0.95, 100, 0.33695), (1, 1, 0.66668), (1, 100, 0.75527)],
)
def test_the_share_of_anomalous_captions_is_the_one_by_hand(alpha, temperature, score):
    normal, anomalous = torch.tensor([0.30, 0.28]), torch.tensor([0.31, 0.29])
    found = anomalous_share(normal, anomalous, 3, alpha, temperature)
    assert found.item() == pytest.approx(score, abs=5e-6)


def test_of_equal_captions_normal_ones_come_first_and_the_rest_is_not_asked():
    equal, low = torch.full((12,), 0.3), torch.full((40,), 0.1)
    assert anomalous_share(equal, equal, 10, alpha=1).item() == 0
    assert anomalous_share(equal[:4], torch.cat([low, equal]), 10, alpha=1).item() == pytest.approx(0.6)
    assert anomalous_share(equal[:1], equal[:2], 10, alpha=1).item() == pytest.approx(2 / 3), "fewer than are asked for"


def test_captions_are_the_phrases_and_the_score_is_of_their_cosines(small_encoder, golden_weights, tmp_path):
    detector = vlad.load("flashback", "bolt", encoder=small_encoder, prompts=PACK, k=3)
    picture = golden_weights.image(3, 112)
    prediction = detector.predict(picture)
    said = ["Normal scene: an empty street", "Normal scene: a bolt in order"]
    said += ["Anomalous scene: a burning house", "Anomalous scene: a broken bolt"]
    with torch.no_grad():
        image = small_encoder(small_encoder.pixels([picture])).image[0]
    cosines = F.normalize(embed(small_encoder, said), dim=-1) @ image
    captions = ["an empty street", "a bolt in order", "a burning house", "a broken bolt"]
    assert list(prediction.phrases) == captions and prediction.map is None
    assert list(prediction.phrases.values()) == pytest.approx(cosines.tolist(), abs=1e-5)
    assert prediction.score == pytest.approx(anomalous_share(cosines[:2], cosines[2:], 3).item(), abs=1e-4)
    detector.save(file := tmp_path / "scenes.safetensors")
    loaded = vlad.load(file, encoder=small_encoder)
    assert loaded.pack == detector.pack and loaded.pack.scenes["anomalous"] == ("a burning house", "a broken {}")
    assert loaded.predict(picture).score == pytest.approx(prediction.score, abs=1e-6)


def test_of_a_pack_without_scenes_the_phrases_are_the_captions(small_encoder, golden_weights):
    detector = vlad.load("flashback", "street", encoder=small_encoder, prompts="winclip")
    assert list(detector.predict(golden_weights.image(3, 112)).phrases)[6:8] == [
        "street without damage",
        "damaged street",
    ]


def test_what_it_cannot_do_it_says_in_a_sentence(small_encoder, tiny_encoder):
    with pytest.raises(ValueError, match="tiny knows materials and faults of parts, and no scenes; take another"):
        vlad.load("flashback", "street", encoder=tiny_encoder)
    with pytest.raises(ValueError, match="k is 0; expected a whole number"):
        vlad.load("flashback", "street", encoder=small_encoder, k=0)
    with pytest.raises(ValueError, match="alpha is 0 and temperature 100"):
        vlad.load("flashback", "street", encoder=small_encoder, alpha=0)


@pytest.mark.parametrize(
    ("scenes", "words"),
    [
        ({"normal": ["a street"]}, "scenes: expected captions of both states"),
        ({"normal": ["a street"], "anomalous": ["A  street"]}, "'a street' is also in normal"),
        ({"normal": ["a street", " "], "anomalous": ["a fire"]}, "the caption is empty"),
        ({"normal": ["a street"], "anomalous": []}, "the list is empty"),
        ({"usual": ["a street"], "anomalous": ["a fire"]}, "usual"),
    ],
)
def test_a_pack_says_what_is_wrong_with_its_scenes(scenes, words):
    with pytest.raises(ValueError, match=words):
        PromptPack.load({**PACK, "scenes": scenes})


def test_scenes_come_back_from_a_packs_file(tmp_path):
    pack = PromptPack.load(PACK)
    pack.save(tmp_path / "street.toml")
    assert PromptPack.load(tmp_path / "street.toml") == pack
    assert "scenes" not in PromptPack.load("winclip").to_dict() and PromptPack.load("flashback").scenes
