"""Types and places of explanations against annotations: what counts as right, and the whole run on drawn pictures."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import vlad
from vlad import synthetic
from vlad.datasets.samples import Sample
from vlad.explain.exam import agreement, evaluate_explanations
from vlad.explain.reasoners.protocol import Answer, Caps, Choice, Usage
from vlad.prompts import PromptPack

SIZE = (60, 90)


def defect(kind, guesses, box=(60, 0, 70, 10), location="upper right"):
    alternatives = tuple(SimpleNamespace(type=guess, p=0.3) for guess in guesses)
    return SimpleNamespace(type=kind, alternatives=alternatives, location=location, box=box)


def explained(*defects, p=None, limits=(), errors=()):
    return SimpleNamespace(
        defects=defects,
        reasoner=SimpleNamespace(p_anomalous=p),
        needs_review=False,
        limits=tuple(SimpleNamespace(code=code) for code in limits),
        errors=errors,
        usage=Usage(calls=1),
    )


@pytest.fixture
def bent(tmp_path):
    """An anomalous picture whose mask is the 10 x 10 square at the upper right."""
    mask = np.zeros(SIZE, np.uint8)
    mask[0:10, 60:70] = 255
    for file, values in (("picture.png", np.zeros((*SIZE, 3), np.uint8)), ("mask.png", mask)):
        Image.fromarray(values).save(tmp_path / file)
    return Sample(tmp_path / "picture.png", tmp_path / "mask.png", 1, "screw", "bent_tip", "test")


def test_the_vocabulary_is_the_names_of_the_defect_folders_in_words():
    kinds = [("bent_tip", 1), ("scratch-head", 1), ("good", 0), ("bent_tip", 1)]
    samples = [Sample(Path(f"{i}.png"), None, label, "c", kind, "test") for i, (kind, label) in enumerate(kinds)]
    assert agreement.vocabulary(samples) == ("bent tip", "scratch head")
    pack = agreement.with_vocabulary(PromptPack.load("winclip"), agreement.vocabulary(samples))
    assert dict(pack.defects) == {"bent tip": ("{} with bent tip",), "scratch head": ("{} with scratch head",)}
    assert pack.normal == PromptPack.load("winclip").normal


def test_names_count_at_the_top_among_three_and_as_unspecified(bent):
    right = defect("bent tip", ["bent tip", "hole", "dent"])
    second = defect("hole", ["hole", "bent tip", "dent"])
    vague = defect("unspecified anomaly", ["bent tip", "hole", "dent"])
    fourth = defect("hole", ["hole", "dent", "stain", "bent tip"])
    lines = [agreement.compare(bent, explained(*found), 4) for found in ([right], [second], [vague], [fourth], [])]
    assert agreement.naming(lines) == {
        "types": 4,
        "top-1": pytest.approx(1 / 5),
        "top-3": pytest.approx(3 / 5),
        "unspecified": pytest.approx(1 / 5),
        "nothing marked": pytest.approx(1 / 5),
    }


def test_only_the_first_defect_is_named_but_any_box_may_hold_the_centre(bent):
    elsewhere = defect("hole", ["hole"], box=(0, 50, 10, 60), location="lower left")
    there = defect("bent tip", ["bent tip"])
    lines = [agreement.compare(bent, explained(elsewhere, there), 2)]
    assert agreement.naming(lines)["top-1"] == 0
    assert agreement.localisation(lines) == {"location words": 0, "box IoU": 0, "centre hit": 1}


def test_places_are_compared_with_the_masks_centre_cell_and_box(bent):
    exact = agreement.compare(bent, explained(defect("x", [])), 1)
    assert agreement.localisation([exact]) == {"location words": 1, "box IoU": 1, "centre hit": 1}
    wide = agreement.compare(bent, explained(defect("x", [], (50, 0, 70, 20), "upper right, spanning the width")), 1)
    assert agreement.localisation([wide]) == {"location words": 1, "box IoU": 0.25, "centre hit": 1}
    nothing = agreement.compare(bent, explained(), 1)
    assert agreement.localisation([exact, nothing]) == {"location words": 0.5, "box IoU": 0.5, "centre hit": 0.5}


def test_a_picture_without_a_mask_is_named_but_not_placed(bent):
    line = agreement.compare(replace(bent, mask=None), explained(defect("bent tip", [])), 1)
    assert [table.title for table in agreement.tables([line])] == ["Type naming"]


def test_a_tier_that_fell_back_to_another_was_not_measured(bent):
    fell = agreement.compare(bent, explained(limits=["reasoner_failed"], errors=("server down",)), 1)
    assert fell["error"] == "server down" and fell["unreadable"] is None
    odd = agreement.compare(bent, explained(limits=["parse_failed"], errors=("not JSON",)), 1)
    assert odd["error"] is None and odd["unreadable"] == "not JSON"


def test_a_category_with_one_type_stays_out_of_the_mean(bent):
    right = explained(defect("bent tip", ["bent tip"]))
    others = [replace(bent, category=category) for category in ("nut", "bolt")]
    lines = [agreement.compare(bent, right, 1), *(agreement.compare(one, explained(), 2) for one in others)]
    naming, places = agreement.tables(lines)
    assert [row[0] for row in naming.rows] == ["screw", "nut", "bolt", "mean over 2"]
    assert naming.rows[0][3] == 1 and naming.rows[-1][1:4] == (2, None, 0)
    assert places.rows[-1] == ("mean", 3, pytest.approx(1 / 3), pytest.approx(1 / 3), pytest.approx(1 / 3))


def test_shots_are_drawn_as_vlad_eval_draws_them():
    samples = [Sample(Path(f"{i}.png"), None, 0, "c", "good", "train") for i in range(5)]
    order = [samples[i].image for i in np.random.RandomState(0).permutation(5)]
    assert agreement.normal_shots(samples, 3) == order[:3]
    with pytest.raises(ValueError, match="6 shots asked, the train split has 5"):
        agreement.normal_shots(samples, 6)


# ---- the whole run --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A category as in MVTec AD: 3 normal pictures to train on, 2 good and 2 x 2 defective ones to test, with masks."""
    root, rng = tmp_path_factory.mktemp("data") / "tile", np.random.default_rng(3)
    for place, count in (("train/good", 3), ("test/good", 2), ("test/scratch", 2), ("test/hole", 2)):
        for index in range(count):
            drawn = synthetic.sample(rng, 128, defective="good" not in place)
            (root / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(drawn.picture).save(root / place / f"{index}.png")
            if "good" not in place:
                mask = root / place.replace("test", "ground_truth") / f"{index}_mask.png"
                mask.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(drawn.mask).save(mask)
    return root.parent


def test_the_default_tier_is_measured_without_a_language_model(root, tiny_encoder, tmp_path):
    found = evaluate_explanations(f"folder:{root}", encoder=tiny_encoder, out=tmp_path)
    assert found.lines == 6 and found.errors == 0 and found.usage["calls"] == 0
    assert found.needs_review == 6  # without a threshold every picture wants a person
    naming, places = found.tables
    assert naming.rows[0][:3] == ("tile", 4, 2) and places.rows[0][:2] == ("tile", 4)
    assert all(0 <= share <= 1 for share in (*naming.rows[0][3:], *places.rows[0][2:]))
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert {guess for line in lines for guess in line["guesses"]} <= {"scratch", "hole", "other"}
    assert sum(line["anomalous"] for line in lines) == 4


def test_shots_give_detectors_a_memory_and_change_what_is_measured(root, tiny_encoder):
    with pytest.warns(UserWarning):  # 3 normal pictures are too few for a threshold
        fitted = evaluate_explanations(f"folder:{root}", encoder=tiny_encoder, shots=3)
    assert fitted.settings["shots"] == 3
    assert fitted.tables[1].rows != evaluate_explanations(f"folder:{root}", encoder=tiny_encoder).tables[1].rows


class Judge:
    """A scripted reasoner that is sure of the same verdict for every picture and names the first type."""

    name, caps = "judge", Caps(option_probs=True)

    def ask(self, question):
        if not isinstance(question.answer, Choice):
            return Answer("a mark", "a mark", usage=Usage(calls=1))
        options = question.answer.options
        said = next((option for option in options if option == "anomalous"), options[0])
        rest = 0.1 / (len(options) - 1)
        probs = tuple(0.9 if option == said else rest for option in options)
        return Answer(said, said, probs, usage=Usage(calls=1))


def test_a_reasoners_probabilities_are_calibrated_against_the_labels(root, tiny_encoder):
    found = evaluate_explanations(f"folder:{root}", reasoner=Judge(), encoder=tiny_encoder)
    (trust,) = [table for table in found.tables if table.title.startswith("Calibration")]
    values = dict(zip(trust.columns, trust.rows[0], strict=True))
    assert values["pictures"] == 6 and found.usage["calls"] >= 6
    assert found.settings["reasoner"] == "judge"


def test_what_is_measured_is_what_the_public_call_says(root, tiny_encoder, tmp_path):
    sample = next(one for one in vlad.datasets.folder(root) if one.defect == "scratch")
    detector = vlad.load(name=sample.name, encoder=tiny_encoder)
    pack = agreement.with_vocabulary(PromptPack.load("winclip"), ("hole", "scratch"))
    direct = vlad.explain(sample.image, detector.predict(sample.image), detector=detector, prompts=pack)
    evaluate_explanations(f"folder:{root}", encoder=tiny_encoder, out=tmp_path)
    lines = map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines())
    (line,) = [line for line in lines if line["source"] == str(sample.image)]
    assert {key: line[key] for key in ("type", "boxes", "location", "guesses")} == {
        "type": direct.defects[0].type,
        "boxes": [list(one.box) for one in direct.defects],
        "location": direct.defects[0].location,
        "guesses": [one.type for one in direct.defects[0].alternatives][:3],
    }
