"""The contract that every method keeps; a new method joins by its line in vlad.methods.METHODS."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import vlad
from vlad.methods import METHODS, method_class

TEXT = [name for name in METHODS if method_class(name).needs_text]


@pytest.fixture(scope="module")
def pictures(golden_weights):
    return [golden_weights.image(seed, size) for seed, size in ((0, 112), (1, 80), (2, 150))]


@pytest.fixture(params=METHODS)
def detector(request, small_encoder):
    return vlad.load(request.param, "metal bolt", encoder=small_encoder)


def test_scores_are_finite_and_maps_cover_the_picture(detector, pictures):
    for prediction, picture in zip(detector.predict(pictures), pictures, strict=True):
        assert np.isfinite(prediction.score)
        assert prediction.map.dtype == np.float32 and np.isfinite(prediction.map).all()
        low, high = detector.scale
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
    alone = [detector.predict(picture) for picture in pictures]
    for batch_size in (1, 2, 8):
        for one, other in zip(alone, detector.predict(pictures, batch_size=batch_size), strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-6)
            np.testing.assert_allclose(one.map, other.map, atol=2e-6)


def test_odd_pictures_are_scored(detector, golden_weights):
    colour = golden_weights.image(0, 64)
    odd = [
        colour[:, :, 0],
        np.dstack([colour, np.full((64, 64), 200, np.uint8)]),
        colour.astype(np.uint16) * 257,
        colour[:20],
        colour[:1, :1],
    ]
    predictions = detector.predict(odd)
    assert [p.size for p in predictions] == [(64, 64), (64, 64), (64, 64), (20, 64), (1, 1)]
    assert predictions[2].score == pytest.approx(detector.predict(colour).score, abs=1e-5), "16 bit is the same picture"


def test_saved_and_loaded_it_scores_the_same(detector, pictures, tmp_path, small_folder):
    detector.threshold, detector.map_threshold = 0.25, 0.75
    file = tmp_path / "bolt.safetensors"
    detector.save(file)
    loaded = vlad.load(file)
    assert (loaded.method, loaded.name, loaded.options) == (detector.method, "metal bolt", detector.options)
    assert loaded.pack == detector.pack and loaded.pack.name == "winclip"
    for one, other in zip(detector.predict(pictures), loaded.predict(pictures), strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-6)
        np.testing.assert_allclose(one.map, other.map, atol=1e-6)
        assert (other.threshold, other.map_threshold) == (0.25, 0.75)
        assert other.is_anomalous is (other.score >= 0.25)
        assert one.phrases == pytest.approx(other.phrases, abs=1e-6)
    assert list(tmp_path.iterdir()) == [file], "nothing is left beside the file"
    assert file.stat().st_size < 100_000, "the encoder is not in it"


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


def test_the_resolution_is_an_option(small_encoder, pictures, detector):
    coarse = vlad.load(detector.method, "metal bolt", encoder=small_encoder, resolution=56)
    assert coarse.options["resolution"] == 56
    assert coarse.predict(pictures[0]).map.shape != detector.predict(pictures[0]).map.shape
    with pytest.raises(ValueError, match="resolution"):
        vlad.load(detector.method, "x", encoder=small_encoder, resolution=57).predict(pictures[0])


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


@pytest.mark.parametrize("method", TEXT)
def test_without_a_name_a_text_method_loads_and_names_describe(method, small_encoder, pictures):
    detector = vlad.load(method, encoder=small_encoder, prompts="winclip-anomalib")
    with pytest.raises(RuntimeError, match="describe"):
        detector.predict(pictures[0])
    with pytest.raises(RuntimeError, match="describe"):
        detector.stream(pictures)
    assert detector.describe("metal bolt") is detector
    assert detector.pack.name == "winclip-anomalib"
    prediction = detector.predict(pictures[0])
    assert prediction.name == "metal bolt" and "damaged metal bolt" in prediction.phrases


@pytest.mark.parametrize("method", TEXT)
def test_words_matter_and_can_be_changed(method, small_encoder, pictures):
    detector = vlad.load(method, "metal bolt", encoder=small_encoder)
    first = detector.predict(pictures[0]).score
    own = {"normal": ["smooth {}"], "anomalous": ["{} with rust"]}
    second = detector.describe("iron pipe", prompts=own).predict(pictures[0])
    assert set(second.phrases) == {"smooth iron pipe", "iron pipe with rust"}
    assert abs(second.score - first) > 1e-4
    again = detector.describe("metal bolt", prompts="winclip").predict(pictures[0])
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
        (lambda e: vlad.load("winclip", "x", encoder=e).save("bolt.pt"), ValueError, "safetensors"),
        (lambda e: vlad.load("winclip", "x", encoder=e, prompts="absent.toml"), FileNotFoundError, "absent.toml"),
    ],
)
def test_wrong_calls_say_what_was_given_and_what_is_allowed(call, error, words, small_encoder):
    with pytest.raises(error, match=words):
        call(small_encoder)


def test_files_that_are_no_detectors_are_refused(tmp_path, small_folder):
    with pytest.raises(ValueError, match="not written by"):
        vlad.load(small_folder / "open_clip_model.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(ValueError, match="not a readable"):
        vlad.load(tmp_path / "text.safetensors")
