"""`vlad.explain` with the tier that is always there, on drawn pictures whose defects are known to the pixel."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image

import vlad
from vlad import explain as tiers
from vlad.explain.case import Rule
from vlad.explain.reasoners.protocol import Caps
from vlad.explain.words import MARGIN, UNSPECIFIED
from vlad.images.places import PLACES
from vlad.prediction import Prediction

SCHEMA = json.loads((Path(tiers.__file__).parent / "schema.json").read_text())
BOX = (150, 20, 210, 60)  # upper right


def plate(size=(180, 240), box=BOX, level=20):
    picture = np.random.default_rng(0).integers(170, 200, (*size, 3), dtype=np.uint8)
    if box is not None:
        picture[box[1] : box[3], box[0] : box[2]] = level
    return picture


def seen(picture, *boxes, value=0.9, **changes):
    """A prediction whose map is high in the boxes."""
    amap = np.full(picture.shape[:2], 0.1, np.float32)
    for x0, y0, x1, y1 in boxes:
        amap[y0:y1, x0:x1] = value
    given = {"score": 0.9, "threshold": 0.5, "map_threshold": 0.5, "name": "steel plate"}
    return Prediction(map=amap, size=picture.shape[:2], **{**given, **changes})


@pytest.fixture(scope="module")
def detector(tiny_encoder):
    return vlad.load(name="steel plate", encoder=tiny_encoder)


@pytest.fixture
def explained(detector):
    """Explains and checks what holds of every explanation."""

    def explain(picture, prediction, **options):
        before = prediction.to_dict()
        found = vlad.explain(picture, prediction, **{"detector": detector, **options})
        plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        jsonschema.validate(plain, SCHEMA)
        assert prediction.to_dict() == before and plain["detector"]["score"] == prediction.score
        known = {one["id"] for one in plain["evidence"]}
        assert all(set(defect["evidence"]) <= known for defect in plain["defects"])
        assert all(len(defect["description"].split()) <= 40 for defect in plain["defects"])
        assert found.to_markdown() and found.to_html().startswith("<!doctype html>")
        return found

    return explain


def codes(found):
    return [limit.code for limit in found.limits]


# What is said of a defect


def test_a_dark_block_is_placed_measured_and_called_by_the_vocabulary(explained):
    found = explained(plate(), seen(plate(), BOX))
    (defect,) = found.defects
    assert found.verdict == found.detector.verdict == "anomalous" and found.agreement == "no_reasoner"
    assert defect.box == BOX and defect.location == "upper right" and defect.box_source == "map"
    assert defect.area_frac == pytest.approx(60 * 40 / (180 * 240)) and defect.size_words == "large"
    assert "darker by 6" in defect.description and "covers 5.6 % of the picture" in defect.description
    assert len(defect.alternatives) == 3 and defect.type in {one.type for one in defect.alternatives} | {UNSPECIFIED}
    assert not found.needs_review and not found.errors


def test_the_type_is_unspecified_where_the_margin_is_small(explained, detector, tiny_encoder):
    same = {"one": ["{} with a mark"], "two": ["{} with a mark."], "three": ["{} with a mark!"]}
    pack = {"normal": ["{}"], "anomalous": ["damaged {}"], "defects": same}
    found = explained(plate(), seen(plate(), BOX), prompts=pack)
    first, second, _ = found.defects[0].alternatives
    assert first.p - second.p < MARGIN and found.defects[0].type == UNSPECIFIED
    assert found.defects[0].confidence is None and "outside_vocabulary" in codes(found)


def test_a_type_that_stands_out_is_named_with_its_uncalibrated_confidence(explained, tiny_encoder):
    words = {"shade": ["{} with a dark area"], "zzz": ["flawless {}"]}
    pack = {"normal": ["{}"], "anomalous": ["perfect {}"], "defects": words, "severity": {"shade": "critical"}}
    (defect,) = explained(plate(), seen(plate(), BOX), prompts=pack).defects
    assert defect.type == "shade" and defect.confidence_source == "clip_softmax"
    assert defect.alternatives[0].p == defect.confidence > 0.5
    assert (defect.severity, defect.severity_source) == ("critical", "pack")


def test_the_first_word_decides_nothing_but_the_words(explained):
    """Order of the vocabulary does not matter."""
    pack = vlad.PromptPack.load("defects")
    turned = replace(pack, defects=dict(reversed(pack.defects.items())))
    one, other = (explained(plate(), seen(plate(), BOX), prompts=words).defects[0] for words in (pack, turned))
    assert one.type == other.type and [a.type for a in one.alternatives] == [a.type for a in other.alternatives]


def test_a_pack_of_the_user_s_own_in_the_detector_is_the_vocabulary(tiny_encoder, explained):
    own = {"normal": ["{}"], "anomalous": ["bad {}"], "defects": {"gouge": ["{} with a gouge"]}}
    detector = vlad.load(name="steel plate", encoder=tiny_encoder, prompts=own)
    (defect,) = explained(plate(), seen(plate(), BOX), detector=detector).defects
    assert [one.type for one in defect.alternatives] == ["gouge"]


@pytest.mark.parametrize("file", ["winclip.toml", "mine.toml"])
def test_a_user_s_file_is_the_vocabulary_whatever_it_is_called(tmp_path, tiny_encoder, explained, file):
    (tmp_path / file).write_text(
        'templates = ["{}"]\nnormal = ["{}"]\nanomalous = ["bad {}"]\n[defects]\npinhole = ["{} with a pinhole"]\n'
    )
    detector = vlad.load(name="steel plate", encoder=tiny_encoder, prompts=tmp_path / file)
    (defect,) = explained(plate(), seen(plate(), BOX), detector=detector).defects
    assert [one.type for one in defect.alternatives] == ["pinhole"]


def test_a_shipped_pack_in_the_detector_leaves_the_vocabulary_to_the_pack_of_defects(tiny_encoder, explained):
    detector = vlad.load(name="steel plate", encoder=tiny_encoder, prompts="winclip")
    (defect,) = explained(plate(), seen(plate(), BOX), detector=detector).defects
    assert {one.type for one in defect.alternatives} <= set(vlad.PromptPack.load("defects").defects)


# Verdicts


def test_without_a_threshold_the_verdict_is_uncalibrated_and_a_person_should_look(explained):
    found = explained(plate(), seen(plate(), BOX, threshold=None, map_threshold=None))
    assert found.verdict == "uncalibrated" and found.needs_review and "no threshold" in found.review_reasons[0]
    assert "map_uncalibrated" in codes(found) and len(found.defects) == 1


def test_a_normal_picture_has_no_defects(explained):
    found = explained(plate(box=None), seen(plate(), BOX, score=0.2))
    assert found.verdict == "normal" and not found.defects and not found.needs_review
    assert "No defect is reported" in found.to_markdown()


def test_an_anomalous_picture_without_a_region_names_the_ninth_of_the_peak_and_asks_for_review(explained):
    found = explained(plate(), seen(plate(), (170, 20, 210, 60), value=0.4))
    (defect,) = found.defects
    assert defect.region_id is None and defect.box == (160, 0, 240, 60) and defect.box_source == "cell"
    assert defect.location == "upper right" and defect.type == UNSPECIFIED and found.needs_review


def test_limits_are_computed(explained):
    found = explained(
        plate(), seen(plate(), (0, 0, 30, 30), (100, 100, 130, 130), (200, 0, 230, 30), (0, 150, 30, 180))
    )
    assert {"no_reference", "downscaled", "regions_truncated", "region_at_border"} <= set(codes(found))
    assert len(found.defects) == 3
    nameless = explained(plate(), seen(plate(), BOX, name=None), detector=None)
    assert nameless.name is None and "object_unknown" in codes(nameless)
    question = explained(plate(), seen(plate(), BOX), question="how deep is it?")
    assert question.answer is None and "question_not_answered" in codes(question)


# References


def scene(box=None):
    picture = np.tile(np.linspace(60, 220, 240, dtype=np.uint8)[None, :, None], (180, 1, 3))
    if box is not None:
        picture[box[1] : box[3], box[0] : box[2]] = 20
    return picture


def test_an_aligned_reference_is_measured_against_and_the_best_is_taken(explained):
    found = explained(scene(BOX), seen(scene(), BOX), references=[255 - scene(), scene()])
    assert "than the same place of the reference" in found.evidence[1].text
    assert not {"no_reference", "reference_misaligned"} & set(codes(found))
    assert explained(scene(BOX), seen(scene(), BOX), references=scene()).defects == found.defects


def test_a_reference_of_another_view_is_not_measured_against(explained):
    found = explained(scene(BOX), seen(scene(), BOX), references=[255 - scene()])
    assert "reference_misaligned" in codes(found) and "reference" not in found.evidence[1].text


# Rules


def test_rules_become_words_that_a_region_may_be_called(explained):
    rules = [
        Rule("", "critical", "a dark area"),
        "normal: all four screws are there [count: screw == 4]",
        "abnormal: flawless",
    ]
    words = {"zzz": ["flawless {}"]}
    pack = {"normal": ["{}"], "anomalous": ["perfect {}"], "defects": words}
    found = explained(plate(), seen(plate(), BOX), rules=rules, prompts=pack)
    (defect,) = found.defects
    assert defect.type == "a dark area" and defect.rule_ids == ("c1",)
    assert (defect.severity, defect.severity_source) == ("critical", "rule")
    assert {result.rule_id: result.verdict for result in found.rule_results} == {"c1": "violated", "a1": "unsure"}
    assert any(one.code == "rule_not_checked" and "n1" in one.text for one in found.limits)


def test_a_rule_for_another_place_is_not_broken_here(explained):
    pack = {"normal": ["{}"], "anomalous": ["perfect {}"], "defects": {"zzz": ["flawless {}"]}}
    prediction = seen(plate(), BOX)
    for place, broken in (("upper right", True), ("lower left", False)):
        rules = f"critical: a dark area [region: {place}]"
        found = explained(plate(), prediction, rules=rules, prompts=pack)
        assert (found.defects[0].rule_ids == ("c1",)) is broken


def test_what_looks_like_something_to_ignore_stays_and_is_said(explained):
    pack = {"normal": ["{}"], "anomalous": ["perfect {}"], "defects": {"zzz": ["flawless {}"]}}
    found = explained(plate(), seen(plate(), BOX), rules="ignore: a dark area", prompts=pack)
    assert found.defects[0].severity == "cosmetic" and found.needs_review and "i1" in found.review_reasons[0]
    assert not found.rule_results


# Faults


class Broken:
    name = "broken"
    caps = Caps()

    def ask(self, question):
        raise RuntimeError("boom")


def test_a_raising_reasoner_leaves_the_words_of_the_first_tier(explained):
    alone = explained(plate(), seen(plate(), BOX))
    found = explained(plate(), seen(plate(), BOX), reasoner=Broken())
    assert found.defects == alone.defects and found.verdict == alone.verdict
    assert found.reasoner.tier == "clip" and any("boom" in error for error in found.errors)
    assert "reasoner_failed" in codes(found)


def test_strict_raises_instead(explained):
    from vlad.explain.reasoners.protocol import ReasonerError

    with pytest.raises(ReasonerError, match="boom"):
        explained(plate(), seen(plate(), BOX), reasoner=Broken(), strict=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reasoner": "gpt"}, "reasoner is 'gpt'"),
        ({"rules": ["normal"]}, "line 1: a rule begins with"),
        ({"name": "a {b}"}, "name: "),
    ],
)
def test_a_mistake_of_the_user_is_one_sentence(detector, options, message):
    with pytest.raises(ValueError, match=message):
        vlad.explain(plate(), seen(plate(), BOX), detector=detector, **options)


def test_another_picture_than_the_scored_one_is_refused(detector):
    with pytest.raises(ValueError, match="give that one"):
        vlad.explain(plate(size=(90, 120), box=None), seen(plate(), BOX), detector=detector)


# Shapes and sizes


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (1, 300), (300, 2), (40, 3000)])
def test_pictures_of_any_shape_are_explained(explained, size):
    picture = plate(size=size, box=None)
    found = explained(picture, seen(picture, (0, 0, max(1, size[1] // 2), max(1, size[0] // 2))))
    (defect,) = found.defects
    assert defect.box[2] <= size[1] and defect.box[3] <= size[0] and defect.location.partition(",")[0] in PLACES


def test_a_huge_picture_is_measured_on_a_smaller_copy_with_its_own_boxes(explained):
    picture = np.full((3000, 4000, 3), 180, np.uint8)
    picture[300:900, 3000:3400] = 20
    amap = np.zeros((15, 20), np.float32)
    amap[1:5, 15:17] = 1
    found = explained(picture, Prediction(0.9, amap, (3000, 4000), 0.5, 0.5, "wall"))
    x0, y0, x1, y1 = found.defects[0].box
    assert abs(x0 - 3000) <= 120 and abs(x1 - 3400) <= 120 and abs(y0 - 200) <= 120 and abs(y1 - 1000) <= 120


def test_a_prediction_without_a_map_says_so(explained):
    found = explained(plate(), Prediction(0.9, None, (180, 240), 0.5, name="steel plate"))
    assert found.verdict == "anomalous" and not found.defects and "no_map" in codes(found)


def test_every_method_s_prediction_can_be_explained_without_its_detector(tiny_encoder):
    detector = vlad.load("winclip", "steel plate", encoder=tiny_encoder)
    found = vlad.explain(plate(), detector.predict(plate()))
    assert found.verdict == "uncalibrated" and found.detector.name is None


# What leaves


def test_a_file_s_name_changes_nothing(tmp_path, explained):
    reports = []
    for name in ("good/000.png", "scratch/deep_scratch.png"):
        path = tmp_path / name
        path.parent.mkdir()
        Image.fromarray(plate()).save(path)
        reports.append(explained(path, replace(seen(plate(), BOX), source=str(path))).to_dict())
    assert reports[0] == reports[1]


def test_words_of_users_cannot_run_on_the_page(explained):
    evil = '<img src=x onerror=alert(1)> [a](http://b) "q"'
    words = {"normal": ["{}"], "anomalous": ["bad {}"], "defects": {evil: ["{} with a dark area"]}}
    found = explained(plate(), seen(plate(), BOX), name=evil, rules=f"critical: {evil}", prompts=words)
    assert evil in {one.type for one in found.defects[0].alternatives}
    assert "<img src=x" not in found.to_html() and "<img" not in found.to_markdown()
    assert "](http" not in found.to_markdown()


def test_the_page_holds_a_crop_of_every_defect_and_loads_nothing(explained):
    page = explained(plate(), seen(plate(), BOX, (20, 120, 60, 150))).to_html()
    assert page.count("data:image/jpeg;base64,") == 3 and "http" not in page.replace("http-equiv", "")


def test_explaining_needs_no_language_model_and_importing_it_no_torch():
    code = (
        "import sys, vlad; vlad.explain; from vlad.explain import rules, verdicts, page; import vlad.explain.interview;"
        "print({'torch', 'transformers', 'openai', 'skimage'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


def test_explain_stays_callable_after_its_folder_is_imported():
    import vlad.explain.rules

    assert callable(vlad.explain) and vlad.Explanation is vlad.explain.Explanation
