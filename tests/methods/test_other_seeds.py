"""Learned methods whose goldens have one seed, with weights and pictures of others: nothing may depend on seed 0."""

import warnings

import numpy as np
import pytest
from conftest import inp_written, metauas_written, radio_drawn
from learned_goldens import weights_file
from safetensors.torch import save_file

import vlad
from vlad.encoders import efficientnet, radio


@pytest.fixture
def files(request, tmp_path, golden_weights):
    """A function: (encoder, authors' or our file) of a method with the weights of a seed."""

    def written(method, seed):
        if method == "metauas":
            file = metauas_written(tmp_path / f"{seed}.ckpt", golden_weights, seed)
            return efficientnet.load(f"efficientnet:{file}", device="cpu"), file
        if method == "inp_former":
            (tmp_path / str(seed)).mkdir()
            tower, file = inp_written(tmp_path / str(seed), golden_weights, seed)
            return vlad.Encoder.load(f"dino:{tower}", device="cpu", dtype="float32"), file
        if method == "anomalyvfm":
            tensors = radio_drawn(golden_weights, "dora", seed)
            file = tmp_path / f"{seed}.safetensors"
            save_file({key: value.contiguous() for key, value in tensors.items()}, file)
            return radio.load(f"radio:{file}", "cpu", "float32", heads=2), file
        encoder = request.getfixturevalue("small_encoder")
        scorer = vlad.methods.method_class(method)(encoder)
        draw = lambda name, shape: golden_weights.tensor(f"{method}.{name}", shape, seed)  # noqa: E731
        return encoder, weights_file(tmp_path / f"{seed}.safetensors", scorer, draw)

    return written


@pytest.mark.parametrize(
    ("method", "side"),
    [
        pytest.param("metauas", 128, marks=pytest.mark.slow),  # three towers of full width
        ("inp_former", 112),
        ("anomalyvfm", 128),
        ("visualad", 112),
    ],
)
def test_other_weights_give_other_maps_that_are_as_sound(method, side, files, golden_weights, tmp_path):
    pictures = [golden_weights.image(seed, 150) for seed in (31, 32, 33)]
    maps = []
    for seed in (0, 1, 2):
        encoder, file = files(method, seed)
        detector = vlad.load(method, adapter=file, encoder=encoder, resolution=side)
        if method == "metauas":
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # too few for a threshold
                detector.fit(golden_weights.image(30, 150))
        together = detector.predict(pictures)
        for picture, found in zip(pictures, together, strict=True):
            low, high = detector.scorer.map_range
            assert found.map.ndim == 2 and low <= found.map.min() < found.map.max() <= high
            alone = detector.predict(picture)
            assert alone.score == pytest.approx(found.score, abs=2e-6)
            np.testing.assert_allclose(alone.map, found.map, atol=5e-6, rtol=0)
        detector.save(kept := tmp_path / f"kept{seed}.safetensors")
        again = vlad.load(kept, encoder=encoder).predict(pictures[0])
        assert again.score == pytest.approx(together[0].score, abs=2e-6)
        maps.append(np.stack([found.map for found in together]))
    assert all(np.abs(one - other).max() > 1e-3 for one, other in ((maps[0], maps[1]), (maps[1], maps[2])))
    assert np.abs(maps[0][0] - maps[0][1]).max() > 1e-4, "of other pictures too"
