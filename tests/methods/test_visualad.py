"""VisualAD against the authors' own code (tests/golden/visualad.npz): forward, loss, gradients and two steps."""

import numpy as np
import pytest
import torch

import vlad
from vlad.learning.scorer import Batch
from vlad.maps import to_size
from vlad.methods.visualad import Realignment, SpatialAttention, VisualAD

LAYERS = (6, 12, 18, 24)
C = 128


@pytest.fixture(scope="module")
def content(golden_weights):
    """A file as the authors write it, with the golden's numbers."""

    def draw(name, *shape):
        return golden_weights.tensor(f"visualad.{name}", shape)

    square = {f"{part}_proj.weight": (C, C) for part in "qkv"}
    norms = {f"{part}_norm.{kind}": (C,) for part in "qk" for kind in ("weight", "bias")}
    rest = {"anchor_queries": (4, C), "gate.0.weight": (4, C), "gate.0.bias": (4,)}
    attention = square | norms | rest | {"out_proj.weight": (C, C), "out_proj.bias": (C,)}
    transform = {f"mlp.{n}.{kind}": shape for n in (0, 3) for kind, shape in (("weight", (C, C)), ("bias", (C,)))}
    cross, transforms = {}, {}
    for number, layer in enumerate(LAYERS):
        place = f"layer_attentions.layer_{layer}"
        cross |= {f"{place}.{key}": draw(f"cross_attn.{place}.{key}", *shape) for key, shape in attention.items()}
        cross[f"{place}.pos_encoding"] = draw(f"cross_attn.{place}.pos_encoding", 1536, C)[None]
        cross[f"{place}.res_scale"] = torch.tensor([0.2 + 0.05 * number])
        transforms[f"layer_{layer}"] = {
            key: draw(f"layer_transforms.layer_{layer}.{key}", *shape) for key, shape in transform.items()
        }
    return {
        "anomaly_token": draw("anomaly_token", 1, C)[0],
        "normal_token": draw("normal_token", 1, C)[0],
        "ln_post_weight": draw("ln_post.weight", C),
        "ln_post_bias": draw("ln_post.bias", C),
        "features_list": list(LAYERS),
        "image_size": 112,
        "epoch": 2,
        "backbone": "ViT-L/14@336px",
        "layer_transforms": transforms,
        "transform_type": "mlp",
        "cross_attn": cross,
        "cross_attn_config": {"num_anchors": 4, "dropout": 0.1, "res_scale_init": 0.01},
    }


@pytest.fixture(scope="module")
def file(content, tmp_path_factory):
    torch.save(content, path := tmp_path_factory.mktemp("visualad") / "CLIP.pth")
    return path


def training(encoder, golden, golden_weights):
    pixels = encoder.pixels([golden_weights.image(seed, 200) for seed in range(4)], 112)
    masks = torch.from_numpy(golden["train_masks"]).float()
    return Batch((pixels,), masks, torch.tensor([1, 0, 1, 0]), list("abcd"))


@pytest.mark.parametrize("side", [112, 154])
@pytest.mark.parametrize("norm", ["own", "clip"])
def test_map_and_score_are_those_of_the_authors_code(small_encoder, golden, golden_weights, file, side, norm):
    options = {} if norm == "clip" else {"clip_norm": False}
    detector = vlad.load("visualad", encoder=small_encoder, adapter=file, resolution=side, **options)
    prediction = detector.predict(golden_weights.image(0, 200))
    smooth, score = golden[f"{side}_{norm}_map_smooth"], golden[f"{side}_{norm}_score"]
    np.testing.assert_allclose(prediction.map, 1 / (1 + np.exp(-smooth)), atol=1e-6)
    np.testing.assert_allclose(prediction.score, 1 / (1 + np.exp(-score)), atol=1e-6)


@pytest.mark.parametrize("side", [112, 154])
@pytest.mark.parametrize("norm", ["own", "clip"])
@torch.no_grad()
def test_each_stage_is_that_of_the_authors_code(small_encoder, golden, golden_weights, file, side, norm):
    scorer = vlad.load("visualad", encoder=small_encoder, adapter=file, resolution=side).scorer
    pixels, key = small_encoder.pixels([golden_weights.image(0, 200)], side), f"{side}_{norm}"
    last = small_encoder.norm if norm == "clip" else scorer.ln_post
    calls = []  # module, (tokens [1, 2, C], patches [1, N, C]), tokens after it
    for layer in LAYERS:
        scorer.layer_attentions[f"layer_{layer}"].register_forward_hook(lambda *call: calls.append(call))
    _, layers = scorer.see(pixels, last)
    patches = np.stack([given[1][0] for _, given, _ in calls])  # [4, N, C]
    np.testing.assert_allclose(patches[:, : golden[f"{key}_patches"].shape[1]], golden[f"{key}_patches"], atol=5e-6)
    for row, name in enumerate(("anomaly", "normal")):
        np.testing.assert_allclose(calls[0][1][0][0, row], golden[f"{key}_{name}"], atol=2e-6)
        found = torch.cat([after for _, _, after in calls])[:, row]
        np.testing.assert_allclose(found, golden[f"{key}_{name}_layers"], atol=2e-6)
    tokens = torch.stack([scorer.anomaly_token, scorer.normal_token])
    *_, (_, _, after) = small_encoder.walk(small_encoder.embed(pixels, "bilinear", tokens))
    np.testing.assert_allclose(last(after[0, 2]), golden[f"{key}_cls"], atol=2e-6)
    upsampled = to_size(torch.from_numpy(golden[f"{key}_grids"]), (side, side))
    np.testing.assert_allclose(layers[:, 0], upsampled, atol=1e-6)
    np.testing.assert_allclose(layers.sum(0)[0], golden[f"{key}_map"], atol=1e-6)


@torch.no_grad()
def test_each_part_of_the_loss_is_that_of_the_authors_code(small_encoder, golden, golden_weights, file):
    scorer = vlad.load("visualad", encoder=small_encoder, adapter=file).scorer
    batch = training(small_encoder, golden, golden_weights)
    tokens, layers = scorer.see(batch.features[0], small_encoder.norm)
    of_picture, of_layers, of_tokens = scorer.losses(tokens, layers, batch)
    assert of_picture.item() == pytest.approx(float(golden["train_image_loss"]), rel=1e-6)
    assert of_tokens.item() == pytest.approx(float(golden["train_relation_loss"]), rel=1e-5)
    np.testing.assert_allclose(of_layers, golden["train_focal_dice"], rtol=1e-5)


def test_loss_and_gradients_are_those_of_the_authors_code(small_encoder, golden, golden_weights, file):
    detector = vlad.load("visualad", encoder=small_encoder, adapter=file)
    detector.scorer.ln_post.load_state_dict(small_encoder.visual.ln_post.state_dict())  # where their training starts
    loss = detector.scorer.loss(training(small_encoder, golden, golden_weights))
    assert loss.item() == pytest.approx(float(golden["train_total"]), rel=1e-6)
    loss.backward()
    found = {key: parameter.grad for key, parameter in detector.scorer.named_parameters()}
    assert sorted(found) == sorted(golden["grad_names"])
    for name, norm in zip(golden["grad_names"], golden["grad_norms"], strict=True):
        if not name.endswith("k_norm.bias"):  # a softmax does not see it: 0 but for rounding
            assert float(found[name].norm()) == pytest.approx(float(norm), rel=1e-3), name
    np.testing.assert_allclose(found["anomaly_token"], golden["grad_anomaly_token"], rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(found["ln_post.weight"], golden["grad_ln_post_weight"], rtol=1e-3, atol=1e-7)


def test_two_steps_of_training_are_those_of_the_authors_code(small_encoder, golden, golden_weights, file):
    detector = vlad.load("visualad", encoder=small_encoder, adapter=file)
    detector.scorer.ln_post.load_state_dict(small_encoder.visual.ln_post.state_dict())
    batch = training(small_encoder, golden, golden_weights)
    optimizer = torch.optim.AdamW(detector.scorer.parameter_groups(1e-3), betas=(0.9, 0.999), weight_decay=0.01)
    for step in (1, 2):
        # a cosine over two epochs, down to a tenth of the tokens' rate, at which the others are all the time
        expected = [1e-4 + 4.5e-4 * (1 + np.cos(np.pi * step / 2))] * 2 + [1e-4] * 2
        np.testing.assert_allclose(golden[f"step{step}_lr"], expected, rtol=1e-6)
    for step, rate in ((1, 1e-3), (2, float(golden["step1_lr"][0]))):
        optimizer.zero_grad()
        loss = detector.scorer.loss(batch)
        assert loss.item() == pytest.approx(float(golden[f"step{step}_total"]), rel=1e-6)
        loss.backward()
        for group in optimizer.param_groups[:1]:
            group["lr"] = rate
            for parameter in group["params"]:
                torch.nn.utils.clip_grad_norm_(parameter, group["clip"])
        optimizer.step()
        gate = detector.scorer.layer_attentions["layer_24"].gate[0].weight
        for key, value in (
            ("anomaly_token", detector.scorer.anomaly_token),
            ("ln_post_weight", detector.scorer.ln_post.weight),
            ("gate24", gate),
        ):
            np.testing.assert_allclose(value.detach(), golden[f"step{step}_{key}"], atol=1e-6)


def test_training_drops_apart_for_the_two_tokens_and_after_the_last_layer():
    torch.manual_seed(0)
    attention, patches = SpatialAttention(C, 4, 64).train(), torch.randn(1, 64, C)
    tokens = torch.randn(1, 1, C).expand(1, 2, C)
    both = attention(tokens, patches)
    assert not torch.allclose(both[:, 0], both[:, 1]), "equal tokens took up the same"
    torch.testing.assert_close(*attention.eval()(tokens, patches).unbind(1))
    assert 0.05 < (Realignment(C, C).train()(patches) == 0).float().mean() < 0.15


def test_realignment_starts_from_xavier_weights_and_zero_biases():
    first, last = (module for module in Realignment(C, 96).mlp if isinstance(module, torch.nn.Linear))
    bound = (6 / (C + 96)) ** 0.5
    for linear in (first, last):
        assert 0.95 * bound < linear.weight.abs().max() <= bound and not linear.bias.any()


def test_a_file_without_the_last_norm_leaves_clips_own(official_copy, small_encoder, golden_weights, file):
    bare = official_copy(file, lambda c: c.update(ln_post_weight=None, ln_post_bias=None))
    picture = golden_weights.image(0, 200)
    found = [
        vlad.load("visualad", encoder=small_encoder, adapter=one, clip_norm=norm).predict(picture).score
        for one, norm in ((bare, False), (bare, True), (file, True))
    ]
    assert found[0] == found[1] == found[2]


def test_all_that_is_learned_gets_gradients_also_with_checkpointing_and_the_encoder_none(
    small_encoder, golden_weights, file
):
    pixels = small_encoder.pixels([golden_weights.image(seed, 112) for seed in (0, 1)], 112)
    masks = torch.zeros(2, 112, 112)
    masks[0, 20:60, 30:80] = 1
    batch, gradients = Batch((pixels,), masks, torch.tensor([1, 0]), ["a", "b"]), []
    for checkpointing in (False, True):
        detector = vlad.load("visualad", encoder=small_encoder, adapter=file, checkpointing=checkpointing)
        detector.scorer.loss(batch).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in detector.scorer.parameters())
        gradients.append(detector.scorer.anomaly_token.grad)
    torch.testing.assert_close(*gradients)
    assert all(p.grad is None for p in small_encoder.model.parameters())


def test_tokens_learn_ten_times_faster_and_nothing_is_learned_twice(small_encoder, file):
    detector = vlad.load("visualad", encoder=small_encoder, adapter=file)
    tokens, others = detector.scorer.parameter_groups(1e-3)
    assert (tokens["lr"], others["lr"]) == (1e-3, pytest.approx(1e-4))
    assert [id(p) for p in tokens["params"]] == [id(detector.scorer.anomaly_token), id(detector.scorer.normal_token)]
    every = [id(p) for p in [*tokens["params"], *others["params"]]]
    assert len(every) == len(set(every)) == len(list(detector.scorer.parameters()))


def test_a_few_steps_lower_the_loss(small_encoder, golden_weights):
    torch.manual_seed(0)
    scorer = VisualAD(small_encoder)
    pixels = small_encoder.pixels([golden_weights.image(0, 112)], 112)
    masks = torch.zeros(1, 112, 112)
    masks[0, 20:60, 30:80] = 1
    batch, totals = Batch((pixels,), masks, torch.tensor([1]), ["a"]), []
    optimizer = torch.optim.AdamW(scorer.parameter_groups(1e-2), weight_decay=0.01)
    for _ in range(8):
        optimizer.zero_grad()
        loss = scorer.loss(batch)
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
    assert detector.scorer.layers == (1, 2, 3, 4) and 0 < detector.predict(golden_weights.image(0, 112)).score < 1


def test_an_official_file_gives_its_options(small_encoder, file):
    options = vlad.load("visualad", encoder=small_encoder, adapter=file).options
    assert {key: options[key] for key in ("layers", "anchors", "places", "hidden", "resolution")} == {
        "layers": list(LAYERS),
        "anchors": 4,
        "places": 1536,
        "hidden": 128,
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
        (lambda c: c.update(ln_post_weight=None), "ln_post.weight is missing"),
        (lambda c: c.update(ln_post_weight=3), "its part 'ln_post.weight' is no table of tensors"),
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
