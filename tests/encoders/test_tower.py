"""What every tower promises: copies, pickles, and a sentence where it cannot do a thing."""

import copy
import pickle

import pytest
import torch

import vlad
from vlad import Encoder
from vlad.encoders.dino import DinoEncoder
from vlad.methods import METHODS


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory):
    import transformers

    size = dict(hidden_size=48, num_hidden_layers=4, num_attention_heads=3, image_size=56, patch_size=14)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.Dinov2Model(transformers.Dinov2Config(**size))
    folder = tmp_path_factory.mktemp("dino")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dino(dino_folder):
    return Encoder.load(f"dino:{dino_folder}", device="cpu", dtype="float32")


@torch.no_grad()
def test_a_dino_has_dense_tokens_and_its_own_space(dino, golden_weights):
    pixels = dino.pixels([golden_weights.image(0, 80)])
    found = dino(pixels, layers=(4,))
    whole, patches = dino.dense(pixels)
    torch.testing.assert_close(torch.nn.functional.normalize(whole, dim=-1), found.image)
    torch.testing.assert_close(patches, found.patches[0])
    states = dino.model(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(dino.project(states[-1])[:, 1:], patches)
    assert not dino.reads_text and isinstance(dino, Encoder)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (lambda e, pixels: e.windows(pixels, (2,)), "looks at no windows"),
        (lambda e, pixels: e.embed(pixels), "takes no tokens of others"),
        (lambda e, pixels: e.walk(pixels), "takes no tokens of others"),
        (lambda e, pixels: e.attention(1, pixels), "takes no tokens of others"),
        (lambda e, pixels: list(e.value_walk(pixels)), "no value path"),
        (lambda e, pixels: e.text(["bolt"]), "knows pictures alone"),
        (lambda e, pixels: e.tokenize(["bolt"]), "knows pictures alone"),
        (lambda e, pixels: e.embed_text(pixels), "knows pictures alone"),
        (lambda e, pixels: e.walk_text(pixels), "knows pictures alone"),
        (lambda e, pixels: e.pool_text(pixels, pixels), "knows pictures alone"),
    ],
)
def test_what_a_dino_cannot_do_it_says_in_a_sentence(dino, asked, words):
    with pytest.raises(TypeError, match=words) as caught:
        asked(dino, torch.zeros(1, 3, 56, 56))
    assert "dino:" in str(caught.value) and "take a CLIP" in str(caught.value)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_takes_a_dino_or_refuses_it_in_a_sentence(dino, method):
    try:
        scorer = vlad.load(method, encoder=dino).scorer
    except (TypeError, ValueError) as error:  # a learned method may take it, with an adapter learned on it
        assert "dino:" in str(error) and "\n" not in str(error)
    else:
        assert scorer.words == "none"


def test_a_copy_of_a_detector_works_with_the_very_encoder_of_the_detector(tiny_encoder):
    detector = vlad.load("patch_text", "bolt", encoder=tiny_encoder)
    for made in (detector.copy(), copy.deepcopy(detector)):
        assert made.encoder is tiny_encoder and made is not detector
    assert copy.deepcopy([tiny_encoder, tiny_encoder])[0] is tiny_encoder


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny", "folder", "dino"])
def test_an_encoder_pickles_as_its_name_and_comes_back_the_same(name, small_folder, dino_folder, golden_weights):
    given = {"folder": f"local-dir:{small_folder}", "dino": f"dino:{dino_folder}"}.get(name, name)
    activation = {"activation": "gelu"} if name == "folder" else {}
    encoder = Encoder.load(given, device="cpu", dtype="bfloat16", **activation)
    written = pickle.dumps(encoder)
    assert len(written) < 1000
    again = pickle.loads(written)
    assert (again.digest, again.dtype, again.device) == (encoder.digest, torch.bfloat16, encoder.device)
    pixels = encoder.pixels([golden_weights.image(0, 112)])
    assert torch.equal(again(pixels).image, encoder(pixels).image)


def test_a_fitted_detector_pickles(tiny_encoder, golden_weights):
    pictures = [golden_weights.image(seed, 80) for seed in range(6)]
    detector = vlad.load("patch_text", "bolt", encoder=tiny_encoder).fit(pictures[:5])
    again = pickle.loads(pickle.dumps(detector))
    assert again.predict(pictures[5]).score == detector.predict(pictures[5]).score
    assert again.threshold == detector.threshold


def test_a_pickled_encoder_whose_weights_have_changed_is_refused(dino_folder, tmp_path):
    import transformers

    model = transformers.Dinov2Model.from_pretrained(dino_folder)
    model.save_pretrained(tmp_path)
    written = pickle.dumps(Encoder.load(f"dino:{tmp_path}", device="cpu"))
    with torch.no_grad():
        model.layernorm.weight += 1
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="had other weights"):
        pickle.loads(written)


def test_a_tower_that_was_built_by_hand_says_so_when_it_is_unpickled(dino):
    made = DinoEncoder(dino.model, "dino:by-hand", device="cpu")
    with pytest.raises(FileNotFoundError, match="dino:by-hand"):
        pickle.loads(pickle.dumps(made))
