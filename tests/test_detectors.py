"""The contract that every method keeps; a new method joins by its line in vlad.methods.METHODS."""

import json
import warnings
from collections import defaultdict

import numpy as np
import pytest
import torch
from PIL import Image

import vlad
import vlad.detector.fitting
from vlad.encoders import efficientnet
from vlad.learning.scorer import LearnedScorer
from vlad.methods import METHODS, method_class
from vlad.scorer import Scorer

LEARNED = [name for name in METHODS if issubclass(method_class(name), LearnedScorer)]
TEXT = [name for name in METHODS if method_class(name).words == "required" and not method_class(name).needs_normals]
IMAGE_LEVEL = ("laft", "flashback")  # no maps
ONE_SIDE = ("inp_former",)  # its authors bring every map to 256 px

FITTED = [name for name in METHODS if method_class(name).remember is not Scorer.remember]


SHARP = ("adaclip",)  # its logits are 100 times a cosine of prompted towers, and so is what rounding does to them
WIDE = ("adaclip", "vcpclip", "bayes_pfl", "filo")  # methods whose encoder must have text as wide as the joint space
SIDES = {"metauas": 64, "anomalyvfm": 96}  # smaller than the sides that their files were made for


@pytest.fixture(scope="module")
def encoders(small_encoder, wide_encoder, metauas_file, radio_file):
    """Method -> the encoder it is tried on; some have towers of their own."""
    metauas = efficientnet.load(f"efficientnet:{metauas_file}", device="cpu")
    radio = vlad.Encoder.load(f"radio:{radio_file}", device="cpu", dtype="float32")
    return defaultdict(
        lambda: small_encoder, {**dict.fromkeys(WIDE, wide_encoder), "metauas": metauas, "anomalyvfm": radio}
    )


@pytest.fixture(scope="module")
def load(encoders, tmp_path_factory):
    """`vlad.load` on a small encoder, with a file of untrained weights for a method that needs learned ones."""

    def loaded(method, name=None, **options):
        kind, encoder = method_class(method), encoders[method]
        if method in SIDES:
            options.setdefault("resolution", SIDES[method])
        if method in LEARNED and kind.needs_adapter:
            torch.manual_seed(0)
            file = tmp_path_factory.mktemp(method) / "untrained.safetensors"
            kind(encoder).save_adapter(file, recipe={})
            options["adapter"] = file
        return vlad.load(method, name, encoder=encoder, **options)

    return loaded


def made(load, method, normals, **options):
    """A detector that is ready to predict: a text method has a name, one that needs normals has learnt them."""
    kind = method_class(method)
    detector = load(method, "metal bolt" if kind.words == "required" else None, **options)
    if kind.needs_normals or detector.transductive:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # too few for a threshold
            detector.fit(normals)
    return detector


@pytest.fixture(scope="module")
def pictures(golden_weights):
    return [golden_weights.image(seed, size) for seed, size in ((0, 112), (1, 80), (2, 150))]


@pytest.fixture(scope="module")
def normals(golden_weights):
    return [golden_weights.image(seed, 112) for seed in (10, 11)]


@pytest.fixture(params=METHODS)
def detector(request, load, normals):
    return made(load, request.param, normals)


def size_of(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def check_same_map(one, other, atol):
    assert (one.map is None) == (other.map is None)
    if one.map is not None:
        np.testing.assert_allclose(one.map, other.map, atol=atol)


def test_scores_are_finite_and_maps_cover_the_picture(detector, pictures):
    for prediction, picture in zip(detector.predict(pictures), pictures, strict=True):
        assert np.isfinite(prediction.score)
        assert (prediction.map is None) == (detector.method in IMAGE_LEVEL)
        if prediction.map is None:
            assert prediction.regions() == []
            continue
        assert prediction.map.dtype == np.float32 and np.isfinite(prediction.map).all()
        low, high = detector.scorer.map_range
        assert low <= prediction.map.min() <= prediction.map.max() <= high
        assert prediction.full_map().shape == picture.shape[:2] == prediction.size
        json.dumps(prediction.to_dict())


def test_one_picture_gives_one_prediction_and_a_sequence_a_list(detector, pictures, tmp_path):
    Image.fromarray(pictures[0]).save(tmp_path / "a.png")
    tensor = torch.from_numpy(pictures[0]).permute(2, 0, 1) / 255
    singles = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pictures[0]), pictures[0], tensor]
    predictions = [detector.predict(single) for single in singles]
    assert {type(p).__name__ for p in predictions} == {"Prediction"}
    assert [p.source for p in predictions] == [str(tmp_path / "a.png")] * 2 + [None] * 3
    for sequence in (singles, tuple(singles), iter(singles)):
        listed = detector.predict(sequence)
        assert isinstance(listed, list)
        for one, other in zip(predictions, listed, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-5)
    assert len(detector.predict(np.stack([pictures[0]] * 3))) == 3, "an array [B, H, W, 3] is a sequence of pictures"
    assert detector.predict([]) == []


def test_batch_size_and_company_change_nothing(detector, pictures):
    alone, atol = [detector.predict(picture) for picture in pictures], 1e-5 if detector.method in SHARP else 1e-6
    for batch_size in (1, 2, 8):
        for one, other in zip(alone, detector.predict(pictures, batch_size=batch_size), strict=True):
            assert one.score == pytest.approx(other.score, abs=atol)
            check_same_map(one, other, atol=2 * atol)


@pytest.mark.parametrize("method", ["patch_text", "patch_memory"])
def test_coarse_arithmetic_gives_the_same_scores_at_every_batch_size(method, golden_weights):
    """With `tiny`, whose kernels round a pass of 16 and more otherwise."""
    words = "bolt" if method == "patch_text" else None
    detector = vlad.load(method, words, encoder="tiny", device="cpu", dtype="bfloat16")
    pictures = [golden_weights.image(seed, 112) for seed in range(33)]
    if method == "patch_memory":
        detector.fit(pictures[:6])
    scores = [[one.score for one in detector.predict(pictures, batch_size=size)] for size in (1, 7, 16, 33)]
    for other in scores[1:]:
        assert other == pytest.approx(scores[0], abs=2e-7)


def test_odd_pictures_are_scored(detector, golden_weights):
    colour = golden_weights.image(0, 64)
    odd = [
        colour[:, :, 0],
        np.dstack([colour, np.full((64, 64), 200, np.uint8)]),
        colour.astype(np.uint16) * 257,
        colour[:20],
        colour[:1, :1],
    ]
    with pytest.warns(UserWarning, match="of one colour"):  # the last one, a single pixel
        predictions = detector.predict(odd)
    assert [p.size for p in predictions] == [(64, 64), (64, 64), (64, 64), (20, 64), (1, 1)]
    assert predictions[2].score == pytest.approx(detector.predict(colour).score, abs=1e-5), "16 bit is the same picture"


def test_saved_and_loaded_it_scores_the_same(detector, pictures, tmp_path):
    detector.threshold, detector.map_threshold = 0.25, 0.75
    file = tmp_path / "bolt.safetensors"
    detector.save(file)
    loaded = vlad.load(file, encoder=detector.encoder.name)
    assert (loaded.method, loaded.name, loaded.options) == (detector.method, detector.name, detector.options)
    assert loaded.pack == detector.pack and (loaded.pack is None or loaded.pack.name == detector.scorer.default_prompts)
    for one, other in zip(detector.predict(pictures), loaded.predict(pictures), strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-6)
        check_same_map(one, other, atol=1e-6)
        assert (other.threshold, other.map_threshold) == (0.25, 0.75)
        assert other.is_anomalous is (other.score >= 0.25)
        assert one.phrases == pytest.approx(other.phrases, abs=1e-6)
    assert list(tmp_path.iterdir()) == [file], "nothing is left beside the file"
    learned = detector.scorer.learned() if detector.method in LEARNED else {}
    own, tower = size_of(learned), size_of(detector.encoder.model.state_dict())
    assert file.stat().st_size - own < tower / 5, "the encoder is not in it"


def test_a_saved_detector_refuses_other_weights(detector, tmp_path, tiny_encoder):
    detector.save(tmp_path / "bolt.safetensors")
    with pytest.raises(ValueError, match="made with other weights than encoder 'tiny'"):
        vlad.load(tmp_path / "bolt.safetensors", encoder=tiny_encoder)


def test_encoder_weights_and_global_randomness_are_untouched(detector, pictures):
    before = {k: v.clone() for k, v in detector.encoder.model.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    detector.predict(pictures)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in detector.encoder.model.state_dict().items())
    assert torch.is_grad_enabled()


def test_a_paused_stream_leaves_gradients_on_for_its_caller(detector, pictures):
    stream = detector.stream(pictures, batch_size=1)
    next(stream)
    assert torch.is_grad_enabled()
    stream.close()


def test_the_resolution_is_an_option(load, pictures, normals, detector):
    side = 4 * detector.encoder.patch_size
    coarse = made(load, detector.method, normals, resolution=side)
    assert coarse.options["resolution"] == side
    first, second = coarse.predict(pictures[0]), detector.predict(pictures[0])
    assert first.score != second.score
    assert first.map is None or detector.method in ONE_SIDE or first.map.shape != second.map.shape
    with pytest.raises(ValueError, match="resolution"):
        made(load, detector.method, normals, resolution=side + 1).predict(pictures[0])


def test_nothing_depends_on_what_an_ignored_place_shows(load, detector, normals, pictures):
    other, places = pictures[0].copy(), [(0, 0, 112, 28), (0.5, 0.5, 0.75, 1)]
    other[:28], other[56:, 56:84] = 255 - other[:28], 0
    framed = made(load, detector.method, normals, ignore=places)
    one, same = framed.predict(pictures[0]), framed.predict(other)
    assert one.score == same.score
    check_same_map(one, same, atol=0)
    assert one.phrases == same.phrases
    if one.map is not None:
        assert one.full_map()[:28].max() == one.map.min() == framed.scorer.map_range[0]


CLOSER = {
    "tiles": {"tiles": 2, "ignore": [(0, 0, 0.5, 0.25)]},
    "looks": {"looks": (1, 2)},
    "aspect": {"keep_aspect": True},
    "scale": {"smallest_defect": 20, "roi": (0, 0, 1, 0.9)},
}
WHOLE_ONLY = {"musc": CLOSER, "inp_former": ("looks", "aspect"), "metauas": ("aspect",), "sowa": ("aspect",)}
QUICK = ("patch_text", "patch_memory", "musc", "inp_former", "metauas")  # the others look in tiles by default, no more


@pytest.mark.parametrize(
    ("method", "how"),
    [
        pytest.param(method, how, marks=[] if how == "tiles" or method in QUICK else pytest.mark.slow)
        for method in METHODS
        for how in CLOSER
    ],
)
def test_every_method_looks_closer_learns_so_and_comes_back_so(method, how, load, normals, pictures, tmp_path):
    if how in WHOLE_ONLY.get(method, ()):
        with pytest.raises(
            TypeError,
            match=f"{method} (scores a set as one|frames whole pictures|compares pictures|lays square windows)",
        ):
            made(load, method, normals, **CLOSER[how])
        return
    detector = made(load, method, normals, **CLOSER[how])
    if method in FITTED and not detector.references:
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            detector.fit(normals)
    shown = [pictures[0][:70], pictures[1]]
    found, alone = detector.predict(shown), detector.predict(shown[0])
    for prediction in found:
        low, high = detector.scorer.map_range
        assert np.isfinite(prediction.score)
        assert prediction.map is None or low <= prediction.map.min() <= prediction.map.max() <= high
    assert found[0].score == pytest.approx(alone.score, abs=1e-5 if method in SHARP else 1e-6)
    detector.save(file := tmp_path / "closer.safetensors")
    loaded = vlad.load(file, encoder=detector.encoder)
    assert loaded.framing == detector.framing and loaded.references == detector.references
    for one, other in zip(found, loaded.predict(shown), strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-6)
        check_same_map(one, other, atol=1e-6)


def test_a_broken_picture_raises_or_takes_its_place(detector, pictures, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_text("not a picture")
    mixed = [pictures[0], broken, pictures[1], tmp_path / "absent.png"]
    with pytest.raises(vlad.ImageError, match=r"broken\.png"):
        detector.predict(mixed)
    results = list(detector.stream(mixed, batch_size=2, on_error="yield"))
    assert [type(r).__name__ for r in results] == ["Prediction", "ImageError", "Prediction", "ImageError"]
    assert results[1].source == str(broken)


def test_stream_reads_no_further_than_one_batch_ahead(detector, pictures):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield pictures[0]

    stream = detector.stream(endless(), batch_size=2)
    for _ in range(4):
        next(stream)
    stream.close()
    assert len(taken) <= 8


# Normal pictures


@pytest.fixture(scope="module")
def many(golden_weights):
    return [golden_weights.image(seed, 112) for seed in range(30, 36)]


@pytest.fixture(scope="module", params=FITTED)
def fitted_file(request, load, many, tmp_path_factory):
    """A detector that has learnt from six normals, enough for a threshold."""
    kind = method_class(request.param)
    detector = load(request.param, "metal bolt" if kind.words == "required" else None).fit(many)
    detector.save(file := tmp_path_factory.mktemp(request.param) / "fitted.safetensors")
    return detector, file


@pytest.fixture
def fitted(fitted_file, encoders):
    """The same, to be changed by a test."""
    return vlad.load(fitted_file[1], encoder=encoders[fitted_file[0].method])


def test_a_fitted_detector_scores_the_same_from_its_file(fitted_file, fitted, pictures):
    fitted, loaded = fitted_file[0], fitted
    assert loaded.references == fitted.references == [str(i) for i in range(6)]
    assert (loaded.calibration, loaded.map_calibration) == (fitted.calibration, fitted.map_calibration)
    for one, other in zip(fitted.predict(pictures), loaded.predict(pictures), strict=True):
        assert one.to_dict() == other.to_dict()
        np.testing.assert_array_equal(one.map, other.map)


def test_thresholds_come_from_normals_scored_without_themselves(load, fitted, many):
    assert fitted.calibration.n == 6
    others = load(fitted.method, fitted.name).fit(many[1:])
    alone = others.predict(many[0])
    assert min(abs(score - alone.score) for score in fitted.calibration.scores) < 1e-6
    if alone.map is not None:
        assert fitted.map_calibration.n == 6
        assert min(abs(peak - float(alone.map.max())) for peak in fitted.map_calibration.scores) < 1e-6


def test_verdicts_follow_from_the_calibration(fitted, many, pictures):
    made = fitted.calibration
    assert fitted.threshold == made.threshold == np.nextafter(made.scores[-1], np.inf)
    assert made.rate == pytest.approx(1 / 7)
    for prediction in fitted.predict([*many, *pictures]):
        assert prediction.p_value == (1 + sum(score >= prediction.score for score in made.scores)) / 7
        assert prediction.map_threshold == (fitted.map_calibration and fitted.map_calibration.threshold)
        assert prediction.verdict == ("anomalous" if prediction.score >= prediction.threshold else "normal")
        assert prediction.is_anomalous is (prediction.score > made.scores[-1])
    assert fitted.predict(many[0]).is_anomalous is False, "a normal that it has seen"


def test_fitting_again_replaces_what_was_learnt(load, fitted, many, pictures):
    with pytest.warns(UserWarning, match="no threshold from 2 normals: .* 5 or more normal pictures, or 19 for"):
        fitted.fit(many[:2])
    assert fitted.references == ["0", "1"]
    assert fitted.threshold is fitted.map_threshold is None and fitted.predict(pictures[0]).is_anomalous is None
    with pytest.warns(UserWarning):
        fresh = load(fitted.method, fitted.name).fit(many[:2])
    assert fresh.predict(pictures[0]).score == pytest.approx(fitted.predict(pictures[0]).score, abs=1e-6)


def test_normals_added_later_are_as_good_as_given_at_once(load, fitted, many, pictures, tmp_path):
    with pytest.warns(UserWarning, match="no threshold from 4 normals"):
        load(fitted.method, fitted.name).fit(many[:4]).save(tmp_path / "few.safetensors")
    later = vlad.load(tmp_path / "few.safetensors", encoder=fitted.encoder)
    assert later.add(many[4:]) is later and later.references == fitted.references
    for made, expected in ((later.calibration, fitted.calibration), (later.map_calibration, fitted.map_calibration)):
        assert (made and made.scores) == pytest.approx(expected and expected.scores, abs=1e-6)
        assert (made and made.note) == (expected and expected.note)
    assert later.threshold == pytest.approx(fitted.threshold, abs=1e-6)
    for one, other in zip(later.predict(pictures), fitted.predict(pictures), strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-6)
        check_same_map(one, other, atol=1e-6)


def test_the_order_of_the_normals_changes_nothing(load, fitted, many, pictures):
    other = load(fitted.method, fitted.name).fit(many[::-1])
    assert other.threshold == pytest.approx(fitted.threshold, abs=1e-6)
    assert other.predict(pictures[0]).score == pytest.approx(fitted.predict(pictures[0]).score, abs=1e-6)


def test_a_fit_that_fails_leaves_the_detector_as_it_was(fitted, many, pictures, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_text("not a picture")
    before = fitted.predict(pictures[0]).to_dict()
    for call, error, words in [
        (lambda: fitted.fit([many[3], broken]), vlad.ImageError, "broken"),
        (lambda: fitted.fit(many[:3], max_false_positive_rate=0.05), ValueError, "give 19 normal pictures or more"),
        (lambda: fitted.fit(many, max_false_positive_rate=5), ValueError, "between 0 and 1"),
        (lambda: fitted.fit([]), ValueError, "at least one normal picture"),
    ]:
        with pytest.raises(error, match=words):
            call()
        assert fitted.predict(pictures[0]).to_dict() == before


def test_a_rate_that_the_normals_can_promise_is_kept(fitted, many):
    fitted.fit(many, max_false_positive_rate=0.2)
    assert (fitted.calibration.method, fitted.calibration.rate) == ("conformal", 0.2)
    assert fitted.threshold == np.nextafter(fitted.calibration.scores[-1], np.inf)


def test_the_same_normal_given_twice_counts_once(fitted, many, pictures, tmp_path, caplog):
    files = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"]
    for file, picture in zip(files, (many[0], many[1], many[0]), strict=True):
        Image.fromarray(picture).save(file)
    with pytest.warns(UserWarning, match="no threshold from 2 normals"):
        fitted.fit(tmp_path)
    assert fitted.references == ["a.png", "b.png"] and "c.png" in caplog.text
    assert min(fitted.calibration.scores) > 1e-3, "it is not compared with its copy either"


def test_one_normal_is_enough_to_learn_from_but_not_to_calibrate(fitted, many, pictures):
    with pytest.warns(UserWarning, match="no threshold from 1 normal"):
        fitted.fit(many[0])
    prediction = fitted.predict(pictures[0])
    assert prediction.threshold is prediction.p_value is prediction.is_anomalous is None
    assert fitted.predict(many[0]).score < prediction.score


def test_normals_that_do_not_fit_into_memory_are_read_twice_to_the_same_end(small_encoder, many, monkeypatch):
    once = vlad.load("patch_text", "bolt", encoder=small_encoder).fit(many)
    for name in ("KEPT_BYTES", "SHARED", "BATCH"):
        monkeypatch.setattr(vlad.detector.fitting, name, 2 if name == "BATCH" else 0)
    twice = vlad.load("patch_text", "bolt", encoder=small_encoder).fit(image for image in many)
    assert twice.calibration.scores == pytest.approx(once.calibration.scores, abs=1e-6)
    assert twice.references == once.references


def test_a_detector_of_coarse_arithmetic_keeps_half_the_bytes_and_still_knows_its_normals(small_folder, many):
    encoder = vlad.Encoder.load(f"local-dir:{small_folder}", device="cpu", dtype="bfloat16")
    detector = vlad.load("patch_text", "bolt", encoder=encoder).fit(many)
    assert detector.scorer.memory.rows.dtype == torch.float16
    for batch_size in (1, 4):
        maps = [p.map.max() for p in detector.predict(many, batch_size=batch_size)]
        assert max(maps) < 0.05 * detector.map_threshold


def test_a_threshold_set_by_hand_has_no_band_around_it(fitted, pictures):
    fitted.threshold = 1e-9
    prediction = fitted.predict(pictures[0])
    assert prediction.is_anomalous is True and prediction.unsure is None


def test_other_words_drop_the_thresholds(fitted, caplog):
    if fitted.scorer.words != "required":
        pytest.skip(f"{fitted.method} takes no words")
    fitted.describe("metal bolt")
    assert fitted.threshold is not None, "the same words"
    fitted.describe("iron pipe")
    assert fitted.threshold is fitted.map_threshold is fitted.calibration is None
    assert "fit again" in caplog.text and len(fitted.references) == 6


@pytest.mark.parametrize("method", [name for name in METHODS if method_class(name).needs_normals])
def test_a_method_that_needs_normals_says_so(method, load, pictures):
    detector = load(method, "metal bolt" if method_class(method).words == "required" else None)
    for call in (detector.predict, detector.stream):
        with pytest.raises(RuntimeError, match=r"call fit\(normals\)"):
            call(pictures)


@pytest.mark.parametrize("method", TEXT)
def test_without_a_name_a_text_method_loads_and_names_describe(method, load, pictures):
    detector = load(method, prompts="winclip-anomalib")
    with pytest.raises(RuntimeError, match="describe"):
        detector.predict(pictures[0])
    with pytest.raises(RuntimeError, match="describe"):
        detector.stream(pictures)
    assert detector.describe("metal bolt") is detector
    assert detector.pack.name == "winclip-anomalib"
    prediction = detector.predict(pictures[0])
    assert prediction.name == "metal bolt" and "damaged metal bolt" in prediction.phrases


@pytest.mark.parametrize("method", TEXT)
def test_words_matter_and_can_be_changed(method, load, pictures):
    detector = load(method, "metal bolt")
    first = detector.predict(pictures[0]).score
    own = {"normal": ["smooth {}"], "anomalous": ["{} with rust"]}
    second = detector.describe("iron pipe", prompts=own).predict(pictures[0])
    assert set(second.phrases) == {"smooth iron pipe", "iron pipe with rust"}
    assert abs(second.score - first) > 1e-4
    again = detector.describe("metal bolt", prompts=detector.scorer.default_prompts).predict(pictures[0])
    assert again.score == pytest.approx(first, abs=1e-6)
    with pytest.raises(ValueError):
        detector.describe(" ")
    assert detector.name == "metal bolt", "a refused name changes nothing"


def test_phrases_are_cosines_of_picture_and_words(small_encoder, pictures):
    prediction = vlad.load(
        "winclip", "bolt", encoder=small_encoder, prompts={"normal": ["{}"], "anomalous": ["bad {}"]}
    )
    with torch.no_grad():
        image = small_encoder(small_encoder.pixels(pictures[:1])).image[0]
        text = torch.nn.functional.normalize(small_encoder.text(["bolt", "bad bolt"]), dim=-1)
    expected = dict(zip(["bolt", "bad bolt"], (text @ image).tolist(), strict=True))
    assert prediction.predict(pictures[0]).phrases == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda e: vlad.load("winclipp", encoder=e), ValueError, "unknown method 'winclipp'.*did you mean 'winclip'"),
        (
            lambda e: vlad.load("winclip", encoder=e, scale=(2,)),
            TypeError,
            "resolution, scales, temperature; did you mean 'scales'",
        ),
        (lambda e: vlad.load("winclip", encoder=e, adapter="a.pth"), TypeError, "takes no adapter"),
        (lambda e: vlad.load("absent.safetensors"), FileNotFoundError, "absent.safetensors"),
        (lambda e: vlad.load("winclip", encoder=3), TypeError, "expected a name such as 'tiny'"),
        (lambda e: vlad.load("winclip", encoder=e, dtype="float32"), TypeError, "Encoder.load"),
        (lambda e: vlad.load("winclip", "x", encoder=e).predict([], batch_size=0), ValueError, "batch_size is 0"),
        (lambda e: vlad.load("winclip", "x", encoder=e).stream([], on_error="skip"), ValueError, "'raise' or 'yield'"),
        (lambda e: vlad.load("winclip", encoder=e).half(), TypeError, "load it anew with device= and dtype="),
        (lambda e: vlad.load("winclip", encoder=e).to("cuda"), TypeError, "load it anew with device= and dtype="),
        (lambda e: e.double(), TypeError, "load it anew with device= and dtype="),
        (lambda e: vlad.load("winclip", encoder=e)("part.png"), TypeError, r"not called; predict\(picture\)"),
        (lambda e: vlad.load("winclip", encoder=e, resolution=16 * 10**8), ValueError, "up to 2048"),
        (lambda e: vlad.load("winclip", encoder=e, resolution=10**400), ValueError, "up to 2048"),
        (lambda e: vlad.load("patch_memory", encoder=e, sigma=1e9), ValueError, "pixels, 0 to 256"),
        (lambda e: vlad.load("gaussian", encoder=e, sigma=float("nan")), ValueError, "pixels, 0 to 256"),
        (lambda e: setattr(vlad.load("winclip", encoder=e), "threshold", float("nan")), ValueError, "threshold is not"),
        (lambda e: setattr(vlad.load("winclip", encoder=e), "threshold", 10**400), ValueError, "threshold is not"),
        (lambda e: setattr(vlad.load("winclip", encoder=e), "map_threshold", "1"), TypeError, "map_threshold is '1'"),
        (lambda e: vlad.load("winclip", "x", encoder=e).save("bolt.pt"), ValueError, "safetensors"),
        (lambda e: vlad.load("winclip", "x", encoder=e, prompts="absent.toml"), FileNotFoundError, "absent.toml"),
    ],
)
def test_wrong_calls_say_what_was_given_and_what_is_allowed(call, error, words, small_encoder):
    with pytest.raises(error, match=words):
        call(small_encoder)


def altered(file, target, change=lambda tensors: None, checksum=True, **header):
    """The file again with other tensors or header values; the checksum is made to fit, as an attacker would."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    from vlad.detector import saving

    with safe_open(file, "pt") as opened:
        facts, tensors = json.loads(opened.metadata()["vlad"]), {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    change(tensors)
    facts |= {"sha256": saving._checksum(tensors) if checksum else facts["sha256"], **header}
    facts["header_sha256"] = saving._header_checksum(facts)
    save_file(tensors, target, {"vlad": json.dumps(facts)})
    return target


def made_of(*scores, unsure=None):
    """A calibration as the header of a file has it."""
    facts = {"threshold": 0.5, "method": "largest", "n": len(scores), "rate": 0.5, "note": ""}
    return {**facts, "scores": scores, "unsure": unsure}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"format": 99}, "newer format; update VLAD"),
        ({"method": 3}, "'method' is missing in its header or of the wrong kind"),
        ({"method": "os.system"}, "unknown method"),
        ({"options": {"resolution": "big"}}, "no detector that can be used"),
        ({"options": {"nonsense": 1}}, "no detector that can be used"),
        ({"threshold": "low"}, "'threshold'"),
        ({"threshold": True}, "'threshold'"),
        ({"threshold": 10**400}, "'threshold' is not finite or beyond"),
        ({"options": {"resolution": 1_600_000_000}}, "up to 2048"),
        ({"calibration": made_of(0.3, 0.2)}, "not in order"),
        ({"calibration": made_of(0.2, 10**400)}, "calibration cannot be read"),
        ({"calibration": made_of(0.2, unsure=[-1e9, 1e9])}, "left to a person are not those between"),
        ({"references": [1, 2]}, "something else than texts"),
        ({"normals": {"missing": "", "rate": 2, "review": False}}, "what it says of its fit"),
        ({"normals": {"missing": ""}}, "no detector that can be used"),
        ({"references": ["a"]}, "pictures 0 to 5 of 1"),
        ({"calibration": {"scores": []}}, "calibration cannot be read"),
        ({"prompts": {"normal": ["x"]}}, "no detector that can be used"),
        ({"phrases": []}, "do not fit"),
        ({"sha256": "0"}, "not those that were written"),
    ],
)
def test_headers_that_are_wrong_are_refused(header, words, small_encoder, pictures, tmp_path, recwarn):
    detector = vlad.load("patch_text", "bolt", encoder=small_encoder)
    detector.fit([np.roll(pictures[0], 9 * i, 0) for i in range(6)])
    detector.save(tmp_path / "good.safetensors")
    file = altered(tmp_path / "good.safetensors", tmp_path / "bad.safetensors", **header)
    with pytest.raises(ValueError, match=words):
        vlad.load(file, encoder=small_encoder)


def test_tensors_that_are_wrong_are_refused(fitted_file, encoders, tmp_path):
    encoder = encoders[fitted_file[0].method]
    bad, key = tmp_path / "bad.safetensors", next(k for k in fitted_file[0].scorer.state_dict() if k.endswith("rows"))
    for change, words in [
        (lambda t: t.update(extra=torch.zeros(2, 2)), "a tensor 'extra'"),
        (lambda t: t.pop(key), "both rows and owners"),
        (lambda t: t.update({key: t[key][:, :5].contiguous()}), "rows are 5 wide"),
        (lambda t: t.update({key: t[key].long()}), "float16 or float32"),
        (lambda t: t.pop("pictures.3"), "5 pictures of its 6 normals"),
        (lambda t: t.update({"pictures.3": t["pictures.3"].float()}), "'pictures.3' is no picture"),
    ]:
        with pytest.raises(ValueError, match=words):
            vlad.load(altered(fitted_file[1], bad, change), encoder=encoder)
    with pytest.raises(ValueError, match="not those that were written"):
        vlad.load(altered(fitted_file[1], bad, lambda t: t[key].mul_(-1), checksum=False), encoder=encoder)


def test_a_truncated_file_is_refused_wherever_it_was_cut(fitted_file, small_encoder, tmp_path):
    whole = fitted_file[1].read_bytes()
    for length in (0, 5, 8, 300, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a readable"):
            vlad.load(tmp_path / "cut.safetensors", encoder=small_encoder)
    (tmp_path / "huge.safetensors").write_bytes(b"\xff" * 7 + b"\x7f" + b"{}")
    with pytest.raises(ValueError, match="not a readable"):
        vlad.load(tmp_path / "huge.safetensors", encoder=small_encoder)


def test_a_save_that_fails_leaves_the_old_file(fitted, fitted_file, tmp_path, monkeypatch):
    import os

    file = tmp_path / "bolt.safetensors"
    fitted.save(file)
    before = file.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        fitted.describe("pipe").save(file) if fitted.scorer.words == "required" else fitted.save(file)
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def test_files_that_are_no_detectors_are_refused(tmp_path, small_folder):
    with pytest.raises(ValueError, match="not written by"):
        vlad.load(small_folder / "open_clip_model.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(ValueError, match="not a readable"):
        vlad.load(tmp_path / "text.safetensors")
