"""VisualAD against a plain re-implementation of its description, as no numbers of the official code are at hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

import vlad
from vlad.learning.scorer import Batch
from vlad.methods.visualad import VisualAD

LAYERS = (6, 12, 18, 24)
C = 128


@pytest.fixture(scope="module")
def content(golden_weights):
    """A file as the authors write it, with numbers of its own."""
    draw = golden_weights.tensor

    def table(prefix, shapes):
        return {key: draw(f"visualad.{prefix}.{key}", shape) for key, shape in shapes.items()}

    square = {f"{part}_proj.weight": (C, C) for part in "qkv"}
    norms = {f"{part}_norm.{kind}": (C,) for part in "qk" for kind in ("weight", "bias")}
    rest = {"anchor_queries": (4, C), "pos_encoding": (1, 150, C), "gate.0.weight": (4, C), "gate.0.bias": (4,)}
    attention = square | norms | rest | {"out_proj.weight": (C, C), "out_proj.bias": (C,)}
    transform = {f"mlp.{n}.{kind}": shape for n in (0, 3) for kind, shape in (("weight", (C, C)), ("bias", (C,)))}
    cross = {}
    for layer in LAYERS:
        cross |= {f"layer_attentions.layer_{layer}.{k}": v for k, v in table(f"a{layer}", attention).items()}
        cross[f"layer_attentions.layer_{layer}.res_scale"] = torch.tensor([0.3])
    return {
        "anomaly_token": draw("visualad.anomaly_token", (1, C)),
        "normal_token": draw("visualad.normal_token", (1, C)),
        "token_insert_layer": 0,
        "ln_post_weight": draw("visualad.ln_post.weight", (C,)),
        "ln_post_bias": draw("visualad.ln_post.bias", (C,)),
        "features_list": list(LAYERS),
        "image_size": 112,
        "epoch": 2,
        "backbone": "ViT-L/14@336px",
        "layer_transforms": {f"layer_{layer}": table(f"t{layer}", transform) for layer in LAYERS},
        "transform_type": "mlp",
        "cross_attn": cross,
        "cross_attn_config": {"num_anchors": 4, "dropout": 0.1, "res_scale_init": 0.01, "apply_to_layer24": True},
    }


@pytest.fixture(scope="module")
def file(content, tmp_path_factory):
    torch.save(content, path := tmp_path_factory.mktemp("visualad") / "CLIP.pth")
    return path


def plain(model, content, pixels, clip_norm=False):
    """(tokens after the last layer, one map a layer, their sum) of one picture [3, S, S], in the words of the paper."""
    visual, (side, grid) = model.visual, (pixels.shape[-1], pixels.shape[-1] // 14)
    patches = visual.conv1(pixels[None])[0].flatten(1).T
    table = visual.positional_embedding
    square = table[1:].T.reshape(1, C, 8, 8)
    square = F.interpolate(square, (grid, grid), mode="bilinear") if grid != 8 else square
    special = [content["anomaly_token"][0], content["normal_token"][0], visual.class_embedding]
    x = torch.stack([*(token + table[0] for token in special), *(patches + square[0].flatten(1).T)])
    x, taps = visual.ln_pre(x)[None], []
    for number, block in enumerate(visual.transformer.resblocks, 1):
        x = block(x)
        if number in LAYERS:
            taps.append(x[0])
    own = visual.ln_post.weight, visual.ln_post.bias
    weight, bias = own if clip_norm else (content["ln_post_weight"], content["ln_post_bias"])
    pairs, maps = [], []
    for layer, tap in zip(LAYERS, taps, strict=True):
        tokens = F.layer_norm(taps[-1][:2], (C,), weight, bias)
        rows = F.layer_norm(tap[3:], (C,), weight, bias)
        part = {k.split(".", 2)[2]: v for k, v in content["cross_attn"].items() if f"layer_{layer}." in k}
        looked = [plain_attention(part, token, rows) for token in tokens]
        mlp = content["layer_transforms"][f"layer_{layer}"]
        rows = F.linear(
            F.gelu(F.linear(rows, mlp["mlp.0.weight"], mlp["mlp.0.bias"])), mlp["mlp.3.weight"], mlp["mlp.3.bias"]
        )
        scores = [F.cosine_similarity(rows, token[None]) for token in looked]
        values = (scores[0] - scores[1]).view(1, 1, grid, grid)
        maps.append(F.interpolate(values, (side, side), mode="bilinear", align_corners=False)[0, 0])
        pairs.append(looked)
    return pairs[-1], maps, sum(maps)


def plain_attention(part, token, rows):
    def norm(x, kind):
        return F.layer_norm(x, (C,), part[f"{kind}_norm.weight"], part[f"{kind}_norm.bias"])

    gate = torch.sigmoid(part["gate.0.weight"] @ token + part["gate.0.bias"])
    gathered = torch.zeros(C)
    for anchor in range(4):
        query = norm(part["q_proj.weight"] @ part["anchor_queries"][anchor], "q")
        keys = [norm(part["k_proj.weight"] @ (row + part["pos_encoding"][0, n]), "k") for n, row in enumerate(rows)]
        weights = torch.stack([query @ key / math.sqrt(C) for key in keys]).softmax(0)
        gathered = gathered + gate[anchor] * sum(
            w * (part["v_proj.weight"] @ row) for w, row in zip(weights, rows, strict=True)
        )
    return token + part["res_scale"] * (part["out_proj.weight"] @ gathered + part["out_proj.bias"])


@pytest.mark.parametrize(("side", "clip_norm"), [(112, False), (112, True), (154, False)])
@torch.no_grad()
def test_scores_and_maps_are_those_of_a_plain_reimplementation(
    small_encoder, small_model, golden_weights, content, file, side, clip_norm
):
    picture = golden_weights.image(0, 200)
    pixels = small_encoder.pixels([picture], side)
    _, _, summed = plain(small_model, content, pixels[0], clip_norm)
    smooth = gaussian_filter(summed.numpy(), 4)
    expected = np.sort(smooth.ravel())[-int(side * side / 100) :].mean()
    detector = vlad.load("visualad", encoder=small_encoder, adapter=file, resolution=side, clip_norm=clip_norm)
    prediction = detector.predict(picture)
    np.testing.assert_allclose(prediction.map, 1 / (1 + np.exp(-smooth)), atol=2e-6)
    np.testing.assert_allclose(prediction.score, 1 / (1 + np.exp(-expected)), atol=2e-6)
    assert smooth.std() > 0.02, "not all the same"


@torch.no_grad()
def test_the_loss_is_that_of_a_plain_reimplementation(small_encoder, small_model, golden_weights, content, file):
    pixels = small_encoder.pixels([golden_weights.image(seed, 112) for seed in (0, 1)], 112)
    masks, labels = torch.zeros(2, 112, 112), torch.tensor([1.0, 0.0])
    masks[0, 20:60, 30:80] = 1
    expected, per_layer = 0.0, [[], [], [], []]
    for row in range(2):
        (anomalous, normal), maps, summed = plain(small_model, content, pixels[row])
        logit = summed.flatten().sort().values[-125:].mean()
        expected += F.softplus(-logit if labels[row] else logit) / 2
        expected += max(0, 0.5 + F.cosine_similarity(anomalous, normal, 0)) / 2
        for layer, one in zip(per_layer, maps, strict=True):
            layer.append(one.sigmoid())
    for layer in per_layer:
        p = torch.stack(layer)
        q = torch.where(masks == 1, p, 1 - p)
        expected += (-((1 - q) ** 2) * q.log()).mean()
        overlap = [(2 * (a * y).sum() + 1) / (a.sum() + y.sum() + 1) for a, y in zip(p, masks, strict=True)]
        expected += 1 - sum(overlap) / 2
    detector = vlad.load("visualad", encoder=small_encoder, adapter=file)
    batch = Batch((pixels,), masks, labels.long(), ["a", "b"])
    assert detector.loss(batch).item() == pytest.approx(float(expected), rel=1e-4)


def test_all_that_is_learned_gets_gradients_also_with_checkpointing_and_the_encoder_none(
    small_encoder, golden_weights, file
):
    pixels = small_encoder.pixels([golden_weights.image(seed, 112) for seed in (0, 1)], 112)
    masks = torch.zeros(2, 112, 112)
    masks[0, 20:60, 30:80] = 1
    batch, gradients = Batch((pixels,), masks, torch.tensor([1, 0]), ["a", "b"]), []
    for checkpointing in (False, True):
        detector = vlad.load("visualad", encoder=small_encoder, adapter=file, checkpointing=checkpointing)
        detector.loss(batch).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in detector.parameters())
        gradients.append(detector.anomaly_token.grad)
    torch.testing.assert_close(*gradients)
    assert all(p.grad is None for p in small_encoder.model.parameters())


def test_tokens_learn_ten_times_faster_and_nothing_is_learned_twice(small_encoder, file):
    detector = vlad.load("visualad", encoder=small_encoder, adapter=file)
    tokens, others = detector.parameter_groups(1e-3)
    assert (tokens["lr"], others["lr"]) == (1e-3, pytest.approx(1e-4))
    assert [id(p) for p in tokens["params"]] == [id(detector.anomaly_token), id(detector.normal_token)]
    every = [id(p) for p in [*tokens["params"], *others["params"]]]
    assert len(every) == len(set(every)) == len(list(detector.parameters()))


def test_a_few_steps_lower_the_loss(small_encoder, golden_weights):
    torch.manual_seed(0)
    detector = VisualAD(small_encoder)
    pixels = small_encoder.pixels([golden_weights.image(0, 112)], 112)
    masks = torch.zeros(1, 112, 112)
    masks[0, 20:60, 30:80] = 1
    batch, totals = Batch((pixels,), masks, torch.tensor([1]), ["a"]), []
    optimizer = torch.optim.AdamW(detector.parameter_groups(1e-2), weight_decay=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        loss = detector.loss(batch)
        totals.append(loss.item())
        loss.backward()
        optimizer.step()
    assert totals[-1] < 0.9 * totals[0]


def test_an_untrained_one_starts_from_the_encoders_last_norm_and_leaves_it_alone(small_encoder):
    state = torch.get_rng_state()
    made = VisualAD(small_encoder)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(made.ln_post.weight, small_encoder.visual.ln_post.weight)
    made.ln_post.weight.data.zero_()
    assert small_encoder.visual.ln_post.weight.abs().min() > 0 and not small_encoder.visual.ln_post.weight.requires_grad


def test_more_patches_than_places_are_refused(small_encoder):
    with pytest.raises(ValueError, match=r"places 64; expected .* the 121 patches of resolution 154 or more"):
        VisualAD(small_encoder, resolution=154, places=64)


def test_it_works_on_tiny(tiny_encoder, golden_weights, tmp_path):
    VisualAD(tiny_encoder).save_adapter(file := tmp_path / "tiny.safetensors", recipe={})
    detector = vlad.load("visualad", encoder=tiny_encoder, adapter=file)
    assert detector.layers == (1, 2, 3, 4) and 0 < detector.predict(golden_weights.image(0, 112)).score < 1


def test_an_official_file_gives_its_options(small_encoder, file):
    options = vlad.load("visualad", encoder=small_encoder, adapter=file).options
    assert {key: options[key] for key in ("layers", "anchors", "places", "resolution")} == {
        "layers": list(LAYERS),
        "anchors": 4,
        "places": 150,
        "resolution": 112,
    }


ATTENTION = "layer_attentions.layer_12."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("normal_token"), "normal_token is missing"),
        (lambda c: c.pop("ln_post_bias"), "ln_post.bias is missing"),
        (lambda c: c["cross_attn"].pop(ATTENTION + "k_norm.bias"), "layer_12.k_norm.bias is missing"),
        (lambda c: c["layer_transforms"].pop("layer_18"), "layer_transforms.layer_18.mlp.0.weight is missing"),
        (
            lambda c: c["layer_transforms"].update(layer_7={"x": torch.zeros(1)}),
            "layer_transforms.layer_7.x is unknown",
        ),
        (lambda c: c.update(anomaly_token=torch.zeros(7)), r"anomaly_token is \[7\], expected \[128\]"),
        (lambda c: c.update(ln_post_weight=None), "its part 'ln_post.weight' is no table of tensors"),
        (lambda c: c["cross_attn"][ATTENTION + "anchor_queries"].fill_(torch.inf), "anchor_queries is not finite"),
        (lambda c: c.update(features_list=[6, 12, 18, 30]), "belongs to encoder 'ViT-L-14-336-quickgelu/openai'.*30"),
        (lambda c: c.update(image_size=113), "113; expected a positive multiple"),
        (lambda c: c.update(backbone="dinov2_vitl14"), "learned on a DINO"),
        (lambda c: c.update(token_insert_layer=3), "at a later block"),
        (lambda c: c.update(optimizer=1), "it holds 'optimizer', which no file"),
        (lambda c: c.pop("anomaly_token"), "it is no file of visualad's authors: .* looks of no kind"),
    ],
)
def test_a_damaged_official_file_is_refused_with_what_is_wrong(official_copy, small_encoder, file, change, words):
    with pytest.raises(ValueError, match=words):
        vlad.load("visualad", encoder=small_encoder, adapter=official_copy(file, change))


def test_another_activation_is_refused(wide_encoder, file):
    with pytest.raises(ValueError, match=r"activation quickgelu, and encoder .* computes gelu"):
        vlad.load("visualad", encoder=wide_encoder, adapter=file)
