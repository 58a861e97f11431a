"""DINOv2 towers with random weights behind the face of an Encoder."""

import numpy as np
import pytest
import torch

import vlad
from vlad.encoders.dino import DinoEncoder, load
from vlad.encoders.fetching import WeightsError
from vlad.encoders.views import rotated, rotated_tokens


def tower(seed=0, registers=False):
    import transformers

    size = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=3, image_size=56, patch_size=14)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if registers:
            config = transformers.Dinov2WithRegistersConfig(**size, num_register_tokens=4)
            return transformers.Dinov2WithRegistersModel(config)
        return transformers.Dinov2Model(transformers.Dinov2Config(**size))


@pytest.fixture(scope="module")
def encoder():
    return DinoEncoder(tower(), "dino:test", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def pictures(golden_weights):
    return [golden_weights.image(seed, 80) for seed in range(8)]


@torch.no_grad()
@pytest.mark.parametrize("registers", [False, True])
def test_the_last_layer_is_what_transformers_gives(registers, pictures):
    model = tower(registers=registers)
    encoder = DinoEncoder(model, "dino:test", device="cpu", dtype="float32")
    pixels = encoder.pixels(pictures[:2])
    found, expected = encoder(pixels, layers=(1, 3)), model(pixels).last_hidden_state
    torch.testing.assert_close(found.patches[1], expected[:, 5 if registers else 1 :])
    torch.testing.assert_close(found.image, torch.nn.functional.normalize(expected[:, 0], dim=-1))
    assert found.grid == (4, 4) and [p.shape for p in found.patches] == [(2, 16, 48)] * 2
    with pytest.raises(ValueError, match="layers 1 to 3"):
        encoder(pixels, layers=(4,))


def test_pictures_are_normalised_as_imagenet(encoder):
    white = encoder.pixels([np.full((20, 30, 3), 255, np.uint8)])
    assert white.shape == (1, 3, 56, 56)
    assert white[0, :, 0, 0].tolist() == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])


def test_equal_weights_have_equal_digests_and_others_do_not(encoder):
    assert encoder.digest == DinoEncoder(tower(), "dino:other", device="cpu", dtype="float32").digest
    assert encoder.digest != DinoEncoder(tower(1), "dino:test", device="cpu", dtype="float32").digest


def test_anomaly_dino_learns_saves_and_scores(encoder, pictures, tmp_path):
    detector = vlad.load("patch_memory", encoder=encoder, preset="anomaly_dino")
    assert detector.options["layers"] == [3] and detector.options["rotations"] == 8
    detector.fit(pictures[:6])
    assert len(detector.scorer.memory) == 6 * 8 * 16
    detector.save(tmp_path / "dino.safetensors")
    loaded = vlad.load(tmp_path / "dino.safetensors", encoder=encoder)
    for one, other in zip(detector.predict(pictures), loaded.predict(pictures), strict=True):
        assert one.score == other.score and one.map.shape == (56, 56)
    assert detector.predict(pictures[0]).score < 1e-6 < detector.predict(pictures[7]).score


def test_methods_of_words_refuse_it(encoder):
    with pytest.raises(TypeError, match="winclip needs an encoder of words and pictures; 'dino:test'"):
        vlad.load("winclip", "bolt", encoder=encoder)
    with pytest.raises(TypeError, match="pictures alone"):
        encoder.text(["bolt"])


def test_random_weights_warn_and_leave_the_global_generator_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match="untrained weights"):
        made = load("dino:small/random:1", device="cpu", dtype="float32")
    assert torch.equal(state, torch.get_rng_state())
    assert (made.resolution, made.depth, made.width) == (448, 12, 384)


def test_a_folder_is_read(encoder, pictures, tmp_path):
    encoder.model.save_pretrained(tmp_path)
    read = load(f"dino:{tmp_path}", device="cpu", dtype="float32")
    assert read.digest == encoder.digest
    detector = vlad.load("patch_memory", encoder=f"dino:{tmp_path}", dtype="float32", device="cpu")
    assert detector.encoder.name == f"dino:{tmp_path}"


def test_wrong_names_say_what_is_allowed():
    with pytest.raises(ValueError, match="a size of small, base, large"):
        load("dino:giant/random:0")
    with pytest.raises(FileNotFoundError, match=r"one of small, base, large"):
        load("dino:absent")
    with pytest.raises(WeightsError, match="dino:FOLDER"):
        load("dino:small")


@torch.no_grad()
@pytest.mark.parametrize("registers", [False, True])
def test_block_patches_are_what_the_blocks_leave_without_the_last_norm(registers, pictures):
    model = tower(registers=registers)
    encoder = DinoEncoder(model, "dino:test", device="cpu", dtype="float32")
    pixels = encoder.pixels(pictures[:2])
    states = model(pixels, output_hidden_states=True).hidden_states
    found = encoder.block_patches(pixels, (1, 3))
    for patches, layer in zip(found, (1, 3), strict=True):
        torch.testing.assert_close(patches, states[layer][:, 5 if registers else 1 :])
    with pytest.raises(ValueError, match="layers 1 to 3"):
        encoder.block_patches(pixels, (4,))


@torch.no_grad()
def test_turned_pictures_are_not_kept_while_passes_are_shared(encoder, pictures):
    pixels = encoder.pixels(pictures[:2])
    with encoder.sharing():
        found = rotated_tokens(encoder, pixels, 4, lambda turn: encoder.block_patches(turn, (2,))[0])
        assert list(encoder.passes.results) == [pixels]
        assert encoder.block_patches(pixels, (2,)) is encoder.block_patches(pixels, (2,))
    each = [encoder.block_patches(turn, (2,))[0] for turn in rotated(pixels, 4)]
    torch.testing.assert_close(found, torch.cat(each, 1))
