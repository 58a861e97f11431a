"""INP-Former against the numbers of luow23/INP-Former on a small DINOv2 (tests/golden/inp_former.npz), and its file.

Two correct float32 implementations differ by 1e-5 in cosines of features that went through twelve blocks and eight
more; the gradients' norms by less than a thousandth, and after two steps of an optimiser that divides by them hardly
more.
"""

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from PIL import Image

import vlad
from vlad.encoders.dino import OFFSET
from vlad.learning.optimizers import StableAdamW, warm_cosine
from vlad.learning.scorer import Batch
from vlad.methods.inp_former import VIEWS, InpFormer, view

FEATURES, GRIDS, MAPS, SCORES, TRAINING = 2e-5, 5e-5, 5e-5, 1e-5, 1e-3


@pytest.fixture(scope="module")
def encoder(inp_files):
    return vlad.Encoder.load(f"dino:{inp_files[0]}", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def load(inp_files, encoder):
    def loaded(**options):
        return vlad.load("inp_former", adapter=inp_files[1], encoder=encoder, **options)

    return loaded


def inner(prediction, side):
    """The part of a map that was looked at."""
    edge = round(side / 14)
    assert prediction.map.shape == (side + 2 * edge,) * 2 and not prediction.map[:edge].any()
    return prediction.map[edge:-edge, edge:-edge]


@pytest.mark.parametrize("side", [112, 154])
def test_scores_and_maps_match_through_the_public_api(golden, golden_weights, inp_files, load, side):
    picture, how = golden_weights.image(0, 200), dict(device="cpu", dtype="float32")
    detector = vlad.load("inp_former", adapter=inp_files[1], encoder=f"dino:{inp_files[0]}", resolution=side, **how)
    assert detector.predict(picture).score == pytest.approx(float(golden[f"{side}_score256"]), abs=SCORES)
    prediction = load(resolution=side, map_size=128).predict(picture)
    np.testing.assert_allclose(inner(prediction, 128), golden[f"{side}_map"], atol=MAPS, rtol=0)
    assert prediction.score == pytest.approx(float(golden[f"{side}_score"]), abs=SCORES)
    alone = load(resolution=side, map_size=128, zero_shot=True).predict(picture)
    np.testing.assert_allclose(inner(alone, 128), golden[f"{side}_zero_map"], atol=MAPS, rtol=0)
    assert alone.score == pytest.approx(float(golden[f"{side}_zero_score"]), abs=SCORES)


@pytest.mark.parametrize("side", [112, 154])
@torch.no_grad()
def test_each_stage_matches(golden, golden_weights, load, side):
    scorer = load(resolution=side).scorer
    pixels = scorer.pixels([golden_weights.image(0, 200)])
    np.testing.assert_allclose(pixels[0, :, :4, :4], golden[f"{side}_pixels_corner"], atol=1e-6, rtol=0)
    first = scorer.encoder.walked(pixels, 3)[3]
    np.testing.assert_allclose(first[0, :6], golden[f"{side}_tap0_first"], atol=FEATURES, rtol=0)
    (targets,) = scorer.image_side(pixels)
    patches = targets.mean(1)
    np.testing.assert_allclose(patches[0], golden[f"{side}_fused"], atol=FEATURES, rtol=0)
    prototypes = scorer.prototypes_in(patches)
    np.testing.assert_allclose(prototypes[0], golden[f"{side}_prototypes"], atol=FEATURES, rtol=0)
    distance, nearest = scorer.distance(patches, prototypes)
    np.testing.assert_allclose(distance[0], golden[f"{side}_distance"], atol=1e-5, rtol=0)
    np.testing.assert_array_equal(nearest[0], golden[f"{side}_nearest"])
    assert distance.mean().item() == pytest.approx(float(golden[f"{side}_coherence"]), abs=1e-5)
    outputs = []
    for block in scorer.decoder:
        block.register_forward_hook(lambda *call: outputs.append(call[2]))
    rebuilt, _ = scorer.rebuilt(patches)
    np.testing.assert_allclose(outputs[0][0], golden[f"{side}_decoder_first"], atol=FEATURES, rtol=0)
    np.testing.assert_allclose(outputs[-1][0], golden[f"{side}_decoder_last"], atol=5e-5, rtol=0)
    for number in (0, 1):
        grid = 1 - torch.cosine_similarity(targets[0, number], rebuilt[0, number], dim=-1)
        expected = golden[f"{side}_grid{number}"]
        np.testing.assert_allclose(grid.view(expected.shape), expected, atol=GRIDS, rtol=0)


def training(golden_weights, scorer):
    pixels = scorer.pixels([golden_weights.image(seed, 200) for seed in (0, 1)])
    with torch.no_grad():
        features = scorer.image_side(pixels)
    return Batch(features, torch.zeros(2, 112, 112), torch.zeros(2, dtype=torch.long), ["a", "b"])


def test_losses_gradients_and_two_steps_match(golden, golden_weights, load):
    scorer = load(resolution=112).scorer
    batch = training(golden_weights, scorer)
    reconstruction, coherence = scorer.losses(batch.features[0])
    assert reconstruction.item() == pytest.approx(float(golden["train_recon"]), rel=1e-5)
    assert coherence.item() == pytest.approx(float(golden["train_coherence"]), rel=1e-5)
    (group,) = scorer.parameter_groups(1e-3)
    optimizer = StableAdamW([group], weight_decay=1e-4)
    for step, rate in enumerate((5e-4, 6e-4), 1):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = scorer.loss(batch)
        loss.backward()
        if step == 1:
            norms = {name: one.grad.norm().item() for name, one in scorer.named_parameters()}
            assert norms.keys() == set(map(str, golden["grad_names"]))
            for name, norm in zip(map(str, golden["grad_names"]), golden["grad_norms"], strict=True):
                assert norms[name] == pytest.approx(float(norm), rel=TRAINING, abs=1e-7), name
            gradient = scorer.prototype_token.grad
            np.testing.assert_allclose(gradient, golden["grad_prototype_token"], atol=1e-5, rtol=TRAINING)
        norm = torch.nn.utils.clip_grad_norm_(group["params"], group["clip_together"])
        assert norm.item() == pytest.approx(float(golden[f"step{step}_norm"]), rel=TRAINING)
        assert loss.item() == pytest.approx(float(golden[f"step{step}_loss"]), rel=1e-5)
        optimizer.step()
        np.testing.assert_allclose(scorer.prototype_token.detach(), golden[f"step{step}_prototype_token"], atol=1e-5)
        scale = scorer.decoder[0].attn.learn_scale.detach()
        np.testing.assert_allclose(scale, golden[f"step{step}_learn_scale0"], atol=1e-5)


def test_the_rate_rises_for_a_hundred_steps_and_falls_as_a_cosine(golden):
    floor, peak = 1e-4, 1e-3
    for step, expected in zip((0, 1, 50, 99, 100, 101, 250, 399), golden["lr_schedule"], strict=True):
        share = warm_cosine(step // 40, 10, step % 40, 40)
        rate = peak * share if step < 100 else floor + (peak - floor) * share
        assert rate == pytest.approx(float(expected), rel=1e-6, abs=1e-12)


def test_the_views_match(golden, golden_weights, load):
    pixels = load(resolution=56).scorer.pixels([golden_weights.image(0, 200)])
    assert len(golden["augmented_means"]) == VIEWS
    made = [view(pixels, number)[0] for number in range(VIEWS)]
    means = torch.stack([one.mean((1, 2)) for one in made])
    np.testing.assert_allclose(means, golden["augmented_means"], atol=2e-5, rtol=0)
    for number, expected in zip((0, 1, 9, 17, 18, 19, 20, 21), golden["augmented_sample"], strict=True):
        np.testing.assert_allclose(made[number][0, ::7, ::7], expected, atol=5e-5, rtol=0)


def test_patches_that_are_rebuilt_well_weigh_little_in_the_gradient_and_nothing_less_in_the_loss(golden_weights, load):
    scorer = load(resolution=112).scorer
    (targets,) = training(golden_weights, scorer).features
    seen = {}
    plain = scorer.rebuilt

    def kept(patches):
        found, prototypes = plain(patches)
        seen["rebuilt"] = found
        found.retain_grad()
        return found, prototypes

    scorer.rebuilt = kept
    scorer.losses(targets)[0].backward()
    again = seen["rebuilt"].detach().requires_grad_(True)
    (1 - torch.cosine_similarity(targets.flatten(2), again.flatten(2), dim=-1)).mean().backward()
    wrong = 1 - torch.cosine_similarity(targets, again.detach(), dim=-1)
    weights = (wrong / wrong.mean((0, 2), keepdim=True)) ** 3
    torch.testing.assert_close(seen["rebuilt"].grad, again.grad * weights[..., None], rtol=1e-3, atol=1e-9)


def test_the_distance_to_prototypes_does_not_depend_on_the_decoder(golden_weights, load):
    detector = load(resolution=112, zero_shot=True)
    picture = golden_weights.image(0, 200)
    before = detector.predict(picture).score
    detector.scorer.decoder[3].mlp.fc1.weight.data.zero_()
    assert detector.predict(picture).score == before


def test_without_a_crop_the_whole_picture_is_looked_at(golden_weights, load):
    prediction = load(resolution=112, crop=False, map_size=64).predict(golden_weights.image(0, 200))
    assert prediction.map.shape == (64, 64) and (prediction.map > 0).all()


def good(folder, golden_weights, count=2):
    folder.mkdir()
    for seed in range(count):
        Image.fromarray(golden_weights.image(seed, 80)).save(folder / f"{seed}.png")
    return folder


def recipe(**changes):
    table = {"method": "inp_former", "resolution": 56, "batch_size": 16, "epochs": 6, "seed": 3}
    return {**table, "optimizer": {"name": "stable_adamw", "schedule": "warm-cosine", "floor": 1e-4}, **changes}


def test_a_folder_of_good_pictures_is_enough_to_learn_from_and_a_stopped_run_goes_on(golden_weights, encoder, tmp_path):
    pictures, steps = good(tmp_path / "good", golden_weights), []

    def stop(what, done, total):
        steps.append((what, done, total))
        if what.startswith("epoch 3"):
            raise KeyboardInterrupt

    whole = vlad.train(recipe(), pictures, tmp_path / "a.safetensors", encoder=encoder)
    with pytest.raises(KeyboardInterrupt):
        vlad.train(recipe(), pictures, tmp_path / "b.safetensors", encoder=encoder, progress=stop, store_every=0)
    assert steps[-1][1:] == (5, 12), "44 views of two pictures are two whole batches an epoch"
    resumed = vlad.train(recipe(), pictures, tmp_path / "b.safetensors", encoder=encoder)
    for name, value in whole.scorer.learned().items():
        assert torch.equal(value, resumed.scorer.learned()[name]), name
    loaded = vlad.load("inp_former", adapter=tmp_path / "a.safetensors", encoder=encoder)
    assert loaded.trained_on == () and loaded.predict(golden_weights.image(0, 80)).score > 0


def test_fit_says_that_training_is_what_learns_from_normal_pictures(load):
    with pytest.raises(TypeError, match=r"inp_former learns .* by training, not by fit: vlad train inp_former --data"):
        load().fit([np.zeros((64, 64, 3), np.uint8)])


def test_training_lowers_what_seen_pictures_score(golden_weights, encoder, tmp_path):
    pictures = good(tmp_path / "good", golden_weights, 1)
    plan = recipe(epochs=30, batch_size=11, optimizer={"name": "stable_adamw", "learning_rate": 2e-3})
    torch.manual_seed(3)
    untrained = vlad.Detector(InpFormer(encoder, resolution=56))
    trained = vlad.train(plan, pictures, tmp_path / "a.safetensors", encoder=encoder)
    seen = golden_weights.image(0, 80)
    assert trained.predict(seen).score < 0.8 * untrained.predict(seen).score


def test_shots_are_drawn_of_each_category_by_the_seed(golden_weights, tmp_path):
    from vlad.learning.data import gather_normals

    for kind in ("bolt", "nut"):
        (tmp_path / kind / "train").mkdir(parents=True)
        good(tmp_path / kind / "train" / "good", golden_weights, 5)
        (tmp_path / kind / "test").mkdir()
        good(tmp_path / kind / "test" / "good", golden_weights, 1)
    data = [f"folder:{tmp_path / kind}" for kind in ("bolt", "nut")]
    few = gather_normals(data, 2, VIEWS, 0)
    assert len(few.items) == 4 * VIEWS and [item.view for item in few.items[:VIEWS]] == list(range(VIEWS))
    assert len({item.key for item in few.items}) == len(few.items)
    other = gather_normals(data, 2, VIEWS, 1)
    assert {item.key for item in few.items} != {item.key for item in other.items}
    assert len(gather_normals(data, 0, 1, 0).items) == 10
    with pytest.raises(ValueError, match="learn from defects"):
        gather_normals("synthetic", 0, 1, 0)


def test_bfloat16_scores_nearly_the_same(inp_files, golden_weights, load):
    coarse = vlad.Encoder.load(f"dino:{inp_files[0]}", device="cpu", dtype="bfloat16")
    picture = golden_weights.image(0, 200)
    one = vlad.load("inp_former", adapter=inp_files[1], encoder=coarse, resolution=112).predict(picture)
    assert one.score == pytest.approx(load(resolution=112).predict(picture).score, abs=0.03)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("bottleneck.0.fc2.bias"), "bottleneck.0.fc2.bias is missing"),
        (lambda c: c.update(odd=torch.zeros(1)), "odd is unknown"),
        (lambda c: c.update({"decoder.7.attn.kv.bias": torch.zeros(3)}), r"kv.bias is \[3\], expected \[128\]"),
        (lambda c: c["aggregation.0.norm1.weight"].fill_(torch.nan), "aggregation.0.norm1.weight is not finite"),
        (lambda c: c["encoder.blocks.0.attn.qkv.weight"].mul_(2), "the tower in it has other weights than encoder"),
        (lambda c: c.pop("encoder.norm.bias"), "the tower in it has other weights than encoder"),
        (lambda c: c.update(epoch=3), "'epoch' in it is no tensor"),
        (lambda c: c.pop("prototype_token"), "no file of inp_former's authors"),
    ],
)
def test_a_damaged_official_file_is_refused_with_what_is_wrong(official_copy, inp_files, encoder, change, words):
    with pytest.raises(ValueError, match=words):
        vlad.load("inp_former", adapter=official_copy(inp_files[1], change), encoder=encoder)


def test_files_of_other_methods_are_named_and_so_is_the_reverse(inp_files, encoder, small_encoder):
    with pytest.raises(ValueError, match=r"no file of inp_former's authors: .* it looks adaptclip's"):
        vlad.load("inp_former", adapter=GOLDEN / "adaptclip_official_format.pth", encoder=encoder)
    with pytest.raises(ValueError, match=r"no file of anomalyclip's authors: .* it looks inp_former's"):
        vlad.load("anomalyclip", adapter=inp_files[1], encoder=small_encoder)
    with pytest.raises(ValueError, match=r"learned on 'dino:base-registers' .* is no DINO"):
        vlad.load("inp_former", adapter=inp_files[1], encoder=small_encoder)
    with pytest.raises(ValueError, match="an even number of layers"):
        InpFormer(encoder, layers=(1, 2, 3))


def test_positions_are_those_of_transformers_where_nothing_is_resampled(encoder, golden_weights):
    pixels = encoder.pixels([golden_weights.image(0, 112)], 112)
    for one, other in zip(
        encoder.block_patches(pixels, (3, 12)), encoder.block_patches(pixels, (3, 12), OFFSET), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    pixels = encoder.pixels([golden_weights.image(0, 112)], 154)
    one, other = encoder.block_patches(pixels, (3,))[0], encoder.block_patches(pixels, (3,), OFFSET)[0]
    assert (one - other).abs().max() > 1e-3


def test_view_zero_is_the_picture_itself_and_each_other_one_is_another(golden_weights):
    pixels = torch.from_numpy(golden_weights.image(0, 40)).permute(2, 0, 1)[None].float()
    made = [view(pixels, number) for number in range(VIEWS)]
    assert torch.equal(made[0], pixels)
    assert all((one - other).abs().max() > 1 for n, one in enumerate(made) for other in made[:n])
