"""SubspaceAD against the authors' own code (tests/golden/subspacead.npz), and what its sums must hold."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import vlad
from vlad.maps import to_size
from vlad.memory.statistics import Moments
from vlad.methods.subspacead import measured, paper_layers, subspace

SIZES = {"image_size": 112, "patch_size": 14, "hidden_size": 64, "num_hidden_layers": 20, "num_attention_heads": 2}
LAYERS = tuple(range(3, 10))  # hidden states -18 to -12 of 21


@pytest.fixture(scope="module")
def folder(golden_weights, tmp_path_factory):
    """A DINOv2 with registers in a folder, its weights by the names of the published files."""
    from safetensors.torch import save_file

    C, names = 64, {"layernorm.weight": (64,), "layernorm.bias": (64,)}
    names |= {f"embeddings.{key}": (1, n, C) for key, n in (("cls_token", 1), ("register_tokens", 4))}
    names |= {"embeddings.mask_token": (1, C), "embeddings.position_embeddings": (65, C)}
    names |= {"embeddings.patch_embeddings.projection.weight": (C, 3, 14, 14)}
    names |= {"embeddings.patch_embeddings.projection.bias": (C,)}
    for layer in range(20):
        linears = {f"attention.attention.{key}": (C, C) for key in ("query", "key", "value")}
        linears |= {"attention.output.dense": (C, C), "mlp.fc1": (4 * C, C), "mlp.fc2": (C, 4 * C)}
        linears |= {"norm1": (C,), "norm2": (C,)}
        for key, shape in linears.items():
            names[f"encoder.layer.{layer}.{key}.weight"] = shape
            names[f"encoder.layer.{layer}.{key}.bias"] = shape[:1]
        names |= {f"encoder.layer.{layer}.layer_scale{n}.lambda1": (C,) for n in (1, 2)}
    tensors = {}
    for name, shape in names.items():
        drawn = name.replace("lambda1", "weight") if "layer_scale" in name else name
        tensors[name] = golden_weights.tensor(f"subspacead.{drawn}", shape)
    tensors["embeddings.position_embeddings"] = tensors["embeddings.position_embeddings"][None]
    path = tmp_path_factory.mktemp("dino")
    save_file(tensors, path / "model.safetensors")
    kind = {"model_type": "dinov2_with_registers", "architectures": ["Dinov2WithRegistersModel"]}
    (path / "config.json").write_text(json.dumps({**kind, **SIZES, "num_register_tokens": 4, "layer_norm_eps": 1e-6}))
    return path


@pytest.fixture(scope="module")
def encoder(folder):
    from vlad.encoders.dino import load

    return load(f"dino:{folder}", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def normals(golden_weights):
    """Two pictures, each followed by the golden's three rotations."""
    pictures = []
    for seed in (100, 101):
        picture = Image.fromarray(golden_weights.image(seed, 200))
        pictures += [np.asarray(picture.rotate(angle, Image.Resampling.NEAREST)) for angle in (0, 37, 145, 260)]
    return pictures


def fitted(encoder, normals, **options):
    options = {"layers": LAYERS, "rotations": 1, "resolution": 112, **options}
    return vlad.load("subspacead", encoder=encoder, **options).fit(normals)


def unsquashed(values, detector):
    """The authors' numbers again: v is the variance of normal tokens."""
    memory = detector.scorer.memory
    v = float(detector.scorer.space_of(memory.rows).total)
    return v * values / (1 - values)


@pytest.mark.parametrize("side", [112, 154])
@pytest.mark.parametrize("share", [99, 90])
def test_maps_and_scores_are_those_of_the_authors_code(encoder, golden, golden_weights, normals, side, share):
    detector = fitted(encoder, normals, resolution=side, share=share / 100)
    found = detector.predict([golden_weights.image(0, 200), golden_weights.image(100, 200)])
    key = f"{side}_ev{share}"
    scores = [unsquashed(np.float64(one.score), detector) for one in found]
    np.testing.assert_allclose(scores, golden[f"{key}_score"], rtol=2e-5)
    for one, expected in zip(found, golden[f"{key}_map"], strict=False):  # of 90 % only the first is there
        np.testing.assert_allclose(unsquashed(one.map.astype(np.float64), detector), expected, rtol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("side", [112, 154])
def test_tokens_spectrum_and_every_measure_are_those_of_the_authors_code(
    encoder, golden, golden_weights, normals, side
):
    detector = fitted(encoder, normals, resolution=side)
    tokens = detector.scorer.tokens(encoder.pixels([golden_weights.image(0, 200)], side))[0]
    np.testing.assert_allclose(tokens, golden[f"{side}_tokens"], atol=1e-5)
    moments = detector.scorer.memory.moments(detector.scorer.memory.rows)
    np.testing.assert_allclose(moments.mean, golden[f"{side}_mu"], atol=1e-5)
    head = detector.scorer.tokens(encoder.pixels(normals, side))[:, :2]
    np.testing.assert_allclose(head, golden[f"{side}_normal_tokens_head"], atol=1e-5)
    spectrum = torch.linalg.eigvalsh(moments.covariance * (moments.samples / (moments.samples - 1))).flip(0)
    np.testing.assert_allclose(spectrum, golden[f"{side}_spectrum"], rtol=1e-5, atol=1e-7)
    for share in (99, 90):
        space = subspace(moments, share / 100)
        assert space.basis.shape[1] == golden[f"{side}_ev{share}_k"]
        np.testing.assert_allclose(space.variances, golden[f"{side}_ev{share}_eigvals"], rtol=1e-5)
        grid = golden[f"{side}_ev{share}_grid"][0]
        np.testing.assert_allclose(measured(tokens, space).view(grid.shape), grid, rtol=2e-5)
    space = subspace(moments, 0.99)
    for measure in ("mahalanobis", "euclidean", "cosine"):
        expected = golden[f"{side}_{measure}"]
        np.testing.assert_allclose(measured(tokens, space, measure).view(expected.shape), expected, 1e-5, 1e-6)
    expected = golden[f"{side}_reconstruction_drop2"]
    np.testing.assert_allclose(measured(tokens, space, drop=2).view(expected.shape), expected, rtol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("side", [112, 154])
def test_what_the_registers_look_at_least_counts_as_normal(encoder, golden, golden_weights, normals, side):
    pixels = encoder.pixels([golden_weights.image(0, 200)], side)
    expected = golden[f"{side}_saliency"]
    np.testing.assert_allclose(encoder.registers_see(pixels, 7).view(expected.shape), expected, rtol=1e-4)
    plain, masked = (
        fitted(encoder, normals, resolution=side, saliency=share).predict(golden_weights.image(0, 200)).map
        for share in (0, 0.5)
    )
    patches = [one.reshape(side // 14, 14, side // 14, 14)[:, 6, :, 6] for one in (plain, masked)]
    hidden = expected < np.median(expected)
    assert (patches[1] <= patches[0] + 1e-6).all(), "nothing is odder than without a mask"
    assert (patches[1][hidden] < 0.9 * patches[0][hidden]).all() and patches[1].max() > 0.5 * patches[0].max()


@torch.no_grad()
@pytest.mark.parametrize("seed", [1, 2])
def test_under_other_seeds_it_is_what_numpy_makes_of_the_same_tokens(small_encoder, golden_weights, seed):
    """Principal components by a decomposition of the rows themselves, the blur by slices."""
    normals, query = [golden_weights.image(seed * 10 + n, 112) for n in (1, 2)], golden_weights.image(seed * 10, 112)
    detector = fitted(small_encoder, normals, layers=(14, 15))
    tokens = [
        np.mean([one.double().numpy() for one in found], 0)
        for found in (
            small_encoder.block_patches(small_encoder.pixels(pictures), (14, 15)) for pictures in (normals, [query])
        )
    ]
    rows = tokens[0].reshape(-1, 128)
    _, lengths, components = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    count = np.searchsorted(np.cumsum(lengths**2) / np.sum(lengths**2), 0.99) + 1
    centred, kept = tokens[1][0] - rows.mean(0), components[:count]
    grid = np.square(centred - centred @ kept.T @ kept).sum(1).reshape(1, 8, 8)
    whole = np.pad(to_size(torch.from_numpy(grid), (112, 112))[0], 1, mode="reflect")
    weights = np.exp(-np.array([1, 0, 1]) / 32) / np.exp(-np.array([1, 0, 1]) / 32).sum()
    for axis in (0, 1):
        whole = sum(weight * np.take(whole, range(n, n + 112), axis) for n, weight in enumerate(weights))
    found = detector.predict(query)
    np.testing.assert_allclose(unsquashed(found.map.astype(np.float64), detector), whole, rtol=1e-4)
    assert unsquashed(found.score, detector) == pytest.approx(np.sort(whole.ravel())[-125:].mean(), rel=1e-4)


def test_layers_are_the_authors_where_they_chose_some():
    assert [paper_layers(depth) for depth in (12, 24)] == [(8, 9), (14, 15, 16, 17, 18)]
    assert paper_layers(40) == tuple(range(23, 30))
    assert [paper_layers(depth) for depth in (1, 2, 4, 20)] == [(1,), (1,), (3,), (12, 13, 14, 15)]


def test_all_in_the_subspace_is_normal_and_what_leaves_it_is_not():
    """Normal tokens vary along the first of four axes; what is added along another is the distance, squared."""
    normal = torch.zeros(50, 4)
    normal[:, 0] = torch.linspace(-3, 3, 50)
    space = subspace(Moments.of(normal), 0.99)
    asked = torch.tensor([[7.0, 0, 0, 0], [0, 0, 2.0, 0], [1.0, 3.0, 4.0, 0]])
    torch.testing.assert_close(measured(asked, space), torch.tensor([0.0, 4.0, 25.0]))
    assert space.basis.shape == (4, 1)


def test_fewer_tokens_than_directions_span_no_more_than_they_are(golden_weights):
    tokens = golden_weights.tensor("few", (5, 32))
    space = subspace(Moments.of(tokens), 0.999999)
    assert space.basis.shape[1] == 4
    assert measured(tokens, space).max() < 1e-5


def test_normals_that_are_all_one_colour_make_every_other_picture_odd(small_encoder, golden_weights):
    blank = [np.full((40, 40, 3), 128, np.uint8)]
    with pytest.warns(UserWarning, match="no threshold"):
        detector = vlad.load("subspacead", encoder=small_encoder).fit(blank)
    same, other = detector.predict([blank[0], golden_weights.image(0, 112)])
    assert 0 <= same.score < other.score <= 1 and np.isfinite(other.map).all()


@pytest.mark.parametrize("measure", ["mahalanobis", "euclidean", "cosine"])
def test_other_measures_are_saved_with_the_detector(small_encoder, golden_weights, measure, tmp_path):
    with pytest.warns(UserWarning, match="no threshold"):
        detector = vlad.load("subspacead", encoder=small_encoder, measure=measure, sigma=4).fit(golden_weights.image(1))
    detector.save(tmp_path / "a.safetensors")
    found = vlad.load(tmp_path / "a.safetensors", encoder=small_encoder).predict(golden_weights.image(0))
    assert found.score == detector.predict(golden_weights.image(0)).score and 0 < found.score < 1


def test_a_turned_normal_is_nearer_with_rotations(small_encoder, golden_weights):
    normal = golden_weights.image(1)
    scores = []
    for rotations in (1, 4):
        with pytest.warns(UserWarning, match="no threshold"):
            detector = vlad.load("subspacead", encoder=small_encoder, rotations=rotations).fit(normal)
        scores.append(unsquashed(detector.predict(np.ascontiguousarray(np.rot90(normal))).score, detector))
    assert scores[1] < 0.5 * scores[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"share": 1.0}, "above 0 and below 1"),
        ({"measure": "distance"}, "expected one of residual, mahalanobis, euclidean, cosine"),
        ({"rotations": 0}, "rotations is 0; expected a whole number, 1 or more"),
        ({"drop": -1}, "drop is -1"),
        ({"sigma": -1.0}, "pixels, 0 to 256"),
        ({"saliency": 1.0}, "0 or more and below 1"),
        ({"layers": (25,)}, "from 1 to 24"),
    ],
)
def test_wrong_settings_are_refused(options, words, small_encoder):
    with pytest.raises(ValueError, match=words):
        vlad.load("subspacead", encoder=small_encoder, **options)


@pytest.mark.parametrize("name", ["tiny", "dino:small/random:0"])
@pytest.mark.filterwarnings("ignore:.*untrained weights")
def test_saliency_asks_for_registers(name):
    with pytest.raises(TypeError, match=r"saliency asks a DINO with registers, .* is none: 'dino:base-registers' is"):
        vlad.load("subspacead", encoder=name, saliency=0.15)
