"""AnomalyVFM against the numbers of MaticFuc/AnomalyVFM on a small RADIO (tests/golden/anomalyvfm.npz), and its files.

Two correct float32 implementations differ by 1e-5 in features and logits of size 5 and by less in what a sigmoid
leaves of them; gradients by 1e-5 of their size.
"""

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import save_file

import vlad
from vlad.encoders.radio import tower
from vlad.learning import adapter_file
from vlad.learning.scorer import Batch
from vlad.methods.anomalyvfm import adapted

LOGITS, MAPS, SCORES = 5e-5, 1e-5, 5e-6
NOISE = ("decoder.blocks.0.conv1.bias", "decoder.blocks.0.conv2.bias")  # a norm of one channel a group undoes them


@pytest.fixture(scope="module")
def files(tmp_path_factory, golden_weights, radio_content):
    """Kind of adapter -> the file as the hub has it."""
    found = {}
    for kind in ("dora", "lora"):
        found[kind] = tmp_path_factory.mktemp(kind) / "model.safetensors"
        save_file({key: value.contiguous() for key, value in radio_content(kind).items()}, found[kind])
    return found


@pytest.fixture(scope="module")
def picture(golden_weights):
    return golden_weights.image(0, 200)


@pytest.mark.parametrize("kind", ["dora", "lora"])
@pytest.mark.parametrize("side", [128, 96])
def test_scores_and_maps_match_through_the_public_api(golden, files, radio_encoder, picture, kind, side):
    how = dict(adapter=files[kind], encoder=radio_encoder, resolution=side, positions="bicubic")
    prediction = vlad.load("anomalyvfm", **how).predict(picture)
    np.testing.assert_allclose(prediction.map, golden[f"{kind}_{side}_map"], atol=MAPS, rtol=0)
    np.testing.assert_allclose(prediction.score, golden[f"{kind}_{side}_score"], atol=SCORES, rtol=0)
    evaluated = vlad.load("anomalyvfm", map_size=96, **how).predict(picture)
    np.testing.assert_allclose(evaluated.map, golden[f"{kind}_{side}_eval_map"], atol=MAPS, rtol=0)


@pytest.mark.parametrize("kind", ["dora", "lora"])
@pytest.mark.parametrize("side", [128, 96])
@torch.no_grad()
def test_features_and_logits_match(golden, files, radio_encoder, picture, kind, side):
    detector = vlad.load("anomalyvfm", adapter=files[kind], encoder=radio_encoder, positions="bicubic").scorer
    pixels = radio_encoder.pixels([picture], side)
    summary, features = detector.features(pixels)
    np.testing.assert_allclose(summary[0], golden[f"{kind}_{side}_summary"], atol=LOGITS, rtol=0)
    if kind == "dora":
        np.testing.assert_allclose(features[0], golden[f"{kind}_{side}_features"], atol=LOGITS, rtol=0)
    _, logits, confidence = detector.see(pixels)
    np.testing.assert_allclose(logits[0], golden[f"{kind}_{side}_mask_logit"], atol=LOGITS, rtol=0)
    np.testing.assert_allclose(confidence[0], golden[f"{kind}_{side}_confidence_logit"], atol=LOGITS, rtol=0)


def test_positions_are_resampled_as_the_publishers_of_radio_do_by_default(golden, files, radio_encoder, picture):
    detector = vlad.load("anomalyvfm", adapter=files["dora"], encoder=radio_encoder, resolution=96)
    prediction = detector.predict(picture)
    np.testing.assert_allclose(prediction.map, golden["dora_96_upstream_map"], atol=MAPS, rtol=0)
    np.testing.assert_allclose(prediction.score, golden["dora_96_upstream_score"], atol=SCORES, rtol=0)
    with torch.no_grad():
        logits = detector.scorer.see(radio_encoder.pixels([picture], 96))[1][0]
    np.testing.assert_allclose(logits, golden["dora_96_upstream_mask_logit"], atol=LOGITS, rtol=0)
    assert np.abs(prediction.map - golden["dora_96_map"]).max() > 1e-3, "the other rule gives other maps"


def training(golden, golden_weights, radio_encoder, file):
    detector = vlad.load("anomalyvfm", adapter=file, encoder=radio_encoder, resolution=128, positions="bicubic")
    pixels = radio_encoder.pixels([golden_weights.image(seed, 200) for seed in (0, 1)], 128)
    masks = torch.from_numpy(golden["train_mask"]).float().repeat_interleave(8, 1).repeat_interleave(8, 2)
    return detector.scorer, Batch((pixels,), masks, torch.tensor([1, 0]), ["a", "b"])


def test_losses_and_gradients_match_and_radio_learns_nothing(golden, golden_weights, files, radio_encoder):
    detector, batch = training(golden, golden_weights, radio_encoder, files["dora"])
    of_score, of_map = detector.losses(batch)
    assert of_score.item() == pytest.approx(float(golden["train_image_loss"]), rel=1e-5)
    assert of_map.item() == pytest.approx(float(golden["train_mask_loss"]), rel=1e-5)
    detector.loss(batch).backward()
    norms = {name: parameter.grad.norm().item() for name, parameter in detector.named_parameters()}
    expected = {}
    for name, norm in zip(golden["grad_names"], golden["grad_norms"], strict=True):
        expected[str(name).replace("model.net.model.blocks", "adapters").replace(".attn.", ".")] = float(norm)
    assert norms.keys() == expected.keys()
    for name in norms.keys() - set(NOISE):
        assert norms[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-9), name
    assert all(parameter.grad is None for parameter in radio_encoder.model.parameters())


def test_a_few_steps_lower_the_loss(golden, golden_weights, files, radio_encoder):
    detector, batch = training(golden, golden_weights, radio_encoder, files["lora"])
    optimizer, totals = torch.optim.AdamW(detector.parameter_groups(1e-3)), []
    for _ in range(5):
        optimizer.zero_grad()
        loss = detector.loss(batch)
        totals.append(loss.item())
        loss.backward()
        optimizer.step()
    assert totals[-1] < totals[0]


def test_it_is_trained_as_any_other_and_its_adapter_holds_no_tower(radio_file, tmp_path):
    recipe = {"method": "anomalyvfm", "encoder": f"radio:{radio_file}", "resolution": 64, "batch_size": 4}
    recipe |= {"options": {"rank": 2}, "pictures": 8, "epochs": 2, "optimizer": {"name": "adamw"}}
    made = vlad.train(recipe, "synthetic", tmp_path / "own.safetensors", device="cpu")
    with pytest.raises(ValueError, match=r"own.safetensors was learned on .* only if you name it yourself"):
        vlad.load("anomalyvfm", adapter=tmp_path / "own.safetensors", device="cpu")
    tower_name = f"radio:{radio_file}"
    loaded = vlad.load("anomalyvfm", adapter=tmp_path / "own.safetensors", encoder=tower_name, device="cpu")
    assert loaded.encoder.name == f"radio:{radio_file}"
    for name, value in made.scorer.learned().items():
        assert torch.equal(value, loaded.scorer.learned()[name])
    assert adapter_file.read(tmp_path / "own.safetensors").tensors.keys() == made.scorer.learned().keys()


def test_an_untrained_adapter_changes_nothing():
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    down, up = torch.ones(2, 4), torch.zeros(6, 2)
    torch.testing.assert_close(adapted(weight, down, up, weight.norm(dim=1)), weight, rtol=1e-6, atol=1e-6)
    assert torch.equal(adapted(weight, down, up, None), weight)
    torch.testing.assert_close(adapted(weight, down, up + 1, None), weight + 1)  # 2 * 1 * 1 over a rank of 2


def test_the_three_tables_of_a_pkl_and_a_folder_are_the_same_file(radio_content, radio_encoder, picture, tmp_path):
    content, tables = radio_content("dora"), {}
    for part, start in (("model", "model."), ("decoder", "decoder."), ("predictor", "predictor.")):
        own = {key.removeprefix(start): value for key, value in content.items() if key.startswith(start)}
        tables[f"{part}_state_dict"] = own
    torch.save(tables, tmp_path / "radio.pkl")
    (tmp_path / "hub").mkdir()
    save_file({key: value.contiguous() for key, value in content.items()}, tmp_path / "hub" / "model.safetensors")
    (tmp_path / "hub" / "config.json").write_text("{}")
    scores = set()
    for adapter in (tmp_path / "radio.pkl", tmp_path / "hub", tmp_path / "hub" / "model.safetensors"):
        detector = vlad.load("anomalyvfm", adapter=adapter, device="cpu", resolution=96)
        assert detector.encoder.name == f"radio:{adapter}" and detector.options["rank"] == 4
        scores.add(round(detector.predict(picture).score, 6))
    assert len(scores) == 1


def test_the_native_side_is_768_and_the_tower_serves_a_memory_too(radio_file, radio_encoder, golden_weights):
    detector = vlad.load("anomalyvfm", adapter=radio_file, device="cpu")
    assert detector.resolution == 768 and detector.encoder.skipped == 8
    memory = vlad.load("patch_memory", encoder=radio_encoder, resolution=96)
    with pytest.warns(UserWarning, match="no threshold"):
        memory.fit([golden_weights.image(3, 96)])
    assert memory.predict(golden_weights.image(3, 96)).score < 1e-3 < memory.predict(golden_weights.image(4, 96)).score


PROJ = "model.net.model.blocks.2.attn.proj."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop(f"{PROJ}lora_B"), "adapters.2.proj.lora_B is missing"),
        (lambda c: c.pop("model.net.model.blocks.4.attn.qkv.mag_q"), "adapters.4.qkv.mag_q is missing"),
        (lambda c: c.update({"decoder.odd": torch.zeros(1)}), "decoder.odd is unknown"),
        (lambda c: c.update({f"{PROJ}lora_A": torch.zeros(3, 64)}), r"lora_A is \[3, 64\], expected \[4, 64\]"),
        (lambda c: c["predictor.lin.bias"].fill_(torch.nan), "predictor.lin.bias is not finite"),
        (lambda c: c.pop("model.net.model.patch_generator.pos_embed"), "another tower than RADIO"),
    ],
)
def test_a_damaged_official_file_is_refused_with_what_is_wrong(radio_content, radio_encoder, tmp_path, change, words):
    content = {key: value.clone() for key, value in radio_content("dora").items()}
    change(content)
    torch.save(content, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=words):
        vlad.load("anomalyvfm", adapter=tmp_path / "bad.pth", encoder=radio_encoder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop(f"{PROJ}layer.bias"), "blocks.2.attn.proj.bias"),
        (lambda c: c[f"{PROJ}layer.weight"].fill_(torch.inf), "blocks.2.attn.proj.weight is not finite"),
        (lambda c: c.pop("model.net.model.patch_generator.pos_embed"), "the file holds no RADIO"),
    ],
)
def test_a_damaged_tower_is_refused_with_what_is_wrong(radio_content, change, words):
    content = {key: value.clone() for key, value in radio_content("dora").items()}
    change(content)
    with pytest.raises(ValueError, match=words):
        tower(content, "radio:x", heads=2)


def test_files_of_other_methods_are_named_and_so_is_the_reverse(radio_file, radio_encoder, small_encoder, tmp_path):
    with pytest.raises(ValueError, match=r"no file of anomalyvfm's authors: .* it looks adaptclip's"):
        vlad.load("anomalyvfm", adapter=GOLDEN / "adaptclip_official_format.pth")
    with pytest.raises(ValueError, match=r"no file of anomalyclip's authors: .* it looks anomalyvfm's"):
        vlad.load("anomalyclip", adapter=radio_file, encoder=small_encoder)
    with pytest.raises(TypeError, match=r"leave encoder=.* out"):
        vlad.load("anomalyvfm", adapter=radio_file, encoder=small_encoder)
    with pytest.raises(ValueError, match="positions 'bilinear'"):
        vlad.load("anomalyvfm", adapter=radio_file, encoder=radio_encoder, positions="bilinear")
    with pytest.raises(vlad.WeightsError, match=r"model.safetensors of nobody/nothing is not on this machine"):
        vlad.load("anomalyvfm", adapter="hf-hub:nobody/nothing")


def test_pictures_are_resized_bilinearly(radio_encoder, golden_weights):
    from PIL import Image

    picture = golden_weights.image(0, 200)
    small = np.asarray(Image.fromarray(picture).resize((64, 64), Image.Resampling.BILINEAR), np.float32) / 255
    pixels = radio_encoder.pixels([picture], 64)[0] * radio_encoder.std[0] + radio_encoder.mean[0]
    torch.testing.assert_close(pixels.permute(1, 2, 0), torch.from_numpy(small), atol=1e-6, rtol=0)
