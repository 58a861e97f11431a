import gc
import weakref

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional as F

from vlad import Encoder
from vlad.encoders.dtypes import fastest_safe_dtype
from vlad.learning.prompt_learner import read_after, read_by_picture


@pytest.fixture(scope="module")
def pixels(small_encoder, golden_weights):
    return small_encoder.pixels([golden_weights.image(s, 112) for s in (0, 1)])


@torch.no_grad()
def test_walk_reproduces_open_clips_own_layers_and_embedding(small_encoder, small_model, pixels):
    ours = small_encoder(pixels, layers=(6, 12, 24))
    theirs = small_model.visual.forward_intermediates(pixels, indices=[5, 11, 23], output_fmt="NLC")
    for mine, reference in zip(ours.patches, theirs["image_intermediates"], strict=True):
        torch.testing.assert_close(mine, reference, atol=2e-5, rtol=0)
    torch.testing.assert_close(ours.image, F.normalize(theirs["image_features"], dim=-1), atol=2e-6, rtol=0)
    assert ours.grid == (8, 8)


@torch.no_grad()
def test_sentences_come_out_as_open_clip_encodes_them_though_padding_is_cut(small_encoder, small_model):
    sentences = ["a", "a photo of a flawless metal bolt with a rather long description of what it is for"]
    reference = small_model.encode_text(open_clip.tokenize(sentences))
    torch.testing.assert_close(small_encoder.text(sentences), reference, atol=2e-5, rtol=0)


@torch.no_grad()
def test_packed_groups_come_out_as_each_group_alone(small_encoder, pixels):
    tokens = small_encoder.embed(pixels)
    groups = [tokens, tokens[:, :5], tokens[:, 3:13]]
    *_, (_, _, packed) = small_encoder.walk(groups)
    for group, together in zip(groups, packed, strict=True):
        *_, (_, _, alone) = small_encoder.walk(group)
        torch.testing.assert_close(together, alone, atol=2e-5, rtol=0)


@torch.no_grad()
def test_class_only_changes_nothing_for_the_class_token(small_encoder, pixels):
    tokens = small_encoder.embed(pixels)
    *_, (_, _, full) = small_encoder.walk(tokens)
    *_, (_, _, short) = small_encoder.walk(tokens, class_only=True)
    assert short.shape[1] == 1
    torch.testing.assert_close(short[:, 0], full[:, 0], atol=2e-5, rtol=0)


@torch.no_grad()
def test_edit_changes_what_enters_a_block(small_encoder, pixels):
    seen = []

    def edit(layer, tokens):
        seen.append(layer)
        return tokens * 2 if layer == 3 else tokens

    pairs = [(before, after) for _, before, after in small_encoder.walk(small_encoder.embed(pixels), edit)]
    assert seen == list(range(1, 25))
    torch.testing.assert_close(pairs[2][0], pairs[1][1] * 2)


@torch.no_grad()
def test_value_attention_is_attention_with_values_as_queries_and_keys(small_encoder, small_model, pixels):
    tokens = small_encoder.embed(pixels)
    block = small_model.visual.transformer.resblocks[6]
    C = tokens.shape[-1]
    v = F.linear(block.ln_1(tokens), block.attn.in_proj_weight[2 * C :], block.attn.in_proj_bias[2 * C :])
    heads = v.unflatten(-1, (2, 64)).transpose(1, 2)
    slow = (heads @ heads.transpose(-1, -2) / 8).softmax(-1) @ heads
    expected = block.attn.out_proj(slow.transpose(1, 2).flatten(2))
    torch.testing.assert_close(small_encoder.value_attention(7, tokens), expected, atol=2e-5, rtol=0)


@torch.no_grad()
def test_attention_of_several_sources_is_a_sum_of_softmaxes_with_one_bias(small_encoder, small_model, pixels):
    tokens = small_encoder.embed(pixels)
    attention = (block := small_model.visual.transformer.resblocks[6]).attn
    parts = F.linear(block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
    heads = [part.unflatten(-1, (2, 64)).transpose(1, 2) for part in parts]
    slow = sum((one @ one.mT / 8).softmax(-1) for one in heads) @ heads[2]
    expected = attention.out_proj(slow.transpose(1, 2).flatten(2))
    torch.testing.assert_close(small_encoder.value_attention(7, tokens, "qkv"), expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(small_encoder.values(7, tokens), parts[2], atol=1e-6, rtol=0)
    mixed = slow.transpose(1, 2).flatten(2)
    torch.testing.assert_close(small_encoder.joined(7, mixed), expected, atol=1e-6, rtol=0)
    C = tokens.shape[-1]
    bare = F.linear(tokens, attention.in_proj_weight[2 * C :])
    torch.testing.assert_close(small_encoder.values(7, tokens, bare=True), bare, atol=1e-6, rtol=0)


@torch.no_grad()
def test_the_dense_path_of_a_published_clip_is_clip_surgerys_value_path(small_encoder, pixels):
    stream = None
    for layer, before, _ in small_encoder.walk(small_encoder.embed(pixels)):
        if layer > 18:  # the last six of 24
            stream = (before if stream is None else stream) + small_encoder.value_attention(layer, before)
    image, patches = small_encoder.dense(pixels)
    torch.testing.assert_close(patches, small_encoder.project(stream[:, 1:]))
    torch.testing.assert_close(F.normalize(image, dim=-1), small_encoder(pixels).image)


def test_pixels_squash_without_cropping(small_encoder):
    picture = np.zeros((40, 200, 3), np.uint8)
    picture[:, :20] = 255  # a bright left edge: a centre crop would lose it
    batch = small_encoder.pixels([picture])
    assert batch.shape == (1, 3, 112, 112)
    assert batch[0, :, :, 2].mean() > batch[0, :, :, 60].mean() + 1


@torch.no_grad()
@pytest.mark.parametrize(
    ("mode", "interpolation", "antialias"),
    [("bicubic-antialias", "bicubic", True), ("bicubic", "bicubic", False), ("bilinear", "bilinear", False)],
)
def test_positions_are_resampled_as_named(small_encoder, golden_weights, mode, interpolation, antialias):
    pixels = small_encoder.pixels([golden_weights.image(0, 200)], resolution=70)
    table = small_encoder.visual.positional_embedding
    small = F.interpolate(
        table[1:].T.reshape(1, -1, 8, 8), (5, 5), mode=interpolation, antialias=antialias, align_corners=False
    )
    patches = small_encoder.visual.conv1(pixels).flatten(2).transpose(1, 2)[0] + small[0].flatten(1).T
    torch.testing.assert_close(
        small_encoder.embed(pixels, mode)[0, 1:], small_encoder.visual.ln_pre(patches), atol=1e-5, rtol=0
    )


def test_wrong_calls_say_what_is_allowed(small_encoder, pixels, golden_weights):
    with pytest.raises(ValueError, match="resolution is 113; expected a positive multiple of"):
        small_encoder.pixels([golden_weights.image(0, 112)], resolution=113)
    with pytest.raises(ValueError, match=r"layers \[25\] asked; .* has layers 1 to 24"):
        small_encoder(pixels, layers=(25,))
    with pytest.raises(ValueError, match="expected one of bicubic-antialias"):
        small_encoder.embed(pixels, positions="nearest")
    with pytest.raises(ValueError, match="dtype is 'int4'; expected 'float32'"):
        Encoder.load("tiny", dtype="int4")


def test_activation_is_selectable_and_makes_another_encoder(small_folder, small_encoder, pixels):
    gelu = Encoder.load(f"local-dir:{small_folder}", device="cpu", dtype="float32", activation="gelu")
    quick = Encoder.load(f"local-dir:{small_folder}", device="cpu", dtype="float32", activation="quickgelu")
    with torch.no_grad():
        assert torch.equal(quick(pixels).image, small_encoder(pixels).image)  # the folder's own setting
        assert (gelu(pixels).image - quick(pixels).image).abs().max() > 1e-3
    assert quick.digest == small_encoder.digest != gelu.digest


@torch.no_grad()
def test_bfloat16_blocks_stay_close_to_float32(small_folder, small_encoder, pixels):
    half = Encoder.load(f"local-dir:{small_folder}", device="cpu", dtype="bfloat16")
    image = half(pixels).image
    assert image.dtype == torch.float32
    assert F.cosine_similarity(image, small_encoder(pixels).image).min() > 0.99
    assert torch.equal(half.text(["a bolt"]), small_encoder.text(["a bolt"])), "sentences are float32 in any encoder"


def test_cpus_without_native_bfloat16_get_float32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "amx_bf16": False})
    assert fastest_safe_dtype(torch.device("cpu")) == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert fastest_safe_dtype(torch.device("cpu")) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "cpu_name": "Intel Xeon"})
    assert fastest_safe_dtype(torch.device("cpu")) == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True, "cpu_name": "Intel Xeon"})
    assert fastest_safe_dtype(torch.device("cpu")) == torch.bfloat16


@torch.no_grad()
def test_sharing_computes_a_pass_over_the_same_pixels_once(small_encoder, pixels, monkeypatch):
    walked = []
    walk = type(small_encoder).walk
    monkeypatch.setattr(type(small_encoder), "walk", lambda self, *a, **k: walked.append(1) or walk(self, *a, **k))
    with small_encoder.sharing():
        first, again = small_encoder.windows(pixels, (2,)), small_encoder.windows(pixels, (2,))
        other = small_encoder.windows(pixels.clone(), (2,))
        small_encoder.windows(pixels, (3,))
    assert first[0] is again[0] and other[0] is not first[0]
    assert len(walked) == 3
    small_encoder.windows(pixels, (2,))
    assert len(walked) == 4, "nothing is remembered once the block has ended"


def test_a_sentence_that_would_lose_its_end_is_refused(tiny_encoder):
    with pytest.raises(ValueError, match=r"too long for tiny, which reads \d+ tokens"):
        tiny_encoder.text(["a photo of a " + "electrolytic " * 20])


@torch.no_grad()
def test_sharing_belongs_to_one_thread_and_may_be_nested(small_encoder, pixels):
    import threading

    with small_encoder.sharing():
        with small_encoder.sharing():
            inner = small_encoder.windows(pixels, (2,))
        assert small_encoder.windows(pixels, (2,)) is inner
        others = []
        thread = threading.Thread(target=lambda: others.append(small_encoder.windows(pixels, (2,))))
        thread.start()
        thread.join()
    assert others[0] is not inner


@torch.no_grad()
def test_the_value_walk_is_the_walk_with_value_attention_beside_it(small_encoder, pixels):
    plain = list(small_encoder.walk(small_encoder.embed(pixels)))
    beside = list(small_encoder.value_walk(pixels, first=20))
    for (layer, before, after), (other, x, y, values) in zip(plain, beside, strict=True):
        assert layer == other and (values is None) == (layer < 20)
        torch.testing.assert_close((x, y), (before, after), atol=2e-5, rtol=0)
        if values is not None:
            torch.testing.assert_close(values, small_encoder.value_attention(layer, before), atol=2e-5, rtol=0)


@torch.no_grad()
def test_a_recorded_walk_gives_each_source_its_own_values(small_encoder, pixels):
    alone = [list(small_encoder.value_walk(pixels, first=20, sources=sources)) for sources in ("qkv", "v")]
    short = list(small_encoder.value_walk(pixels, first=20, sources="qkv", class_only=True))
    torch.testing.assert_close(short[-1][2], alone[0][-1][2][:, :1], atol=2e-5, rtol=0)
    with small_encoder.sharing():
        shared = [list(small_encoder.value_walk(pixels, first=20, sources=sources)) for sources in ("qkv", "v")]
    for one, other in zip(alone, shared, strict=True):
        for (_, _, after, values), (_, _, same, again) in zip(one[19:], other[19:], strict=True):
            torch.testing.assert_close(after, same, atol=2e-5, rtol=0)
            torch.testing.assert_close(values, again, atol=2e-5, rtol=0)


@torch.no_grad()
def test_class_only_changes_nothing_in_the_value_walk_and_a_recorded_one_stays_whole(small_encoder, pixels):
    *_, (_, _, full, values) = small_encoder.value_walk(pixels, first=24)
    *_, (_, _, short, same) = small_encoder.value_walk(pixels, first=24, class_only=True)
    *_, (_, _, plain, _) = small_encoder.value_walk(pixels, first=25, class_only=True)
    assert short.shape[1] == plain.shape[1] == 1
    torch.testing.assert_close(short[:, 0], full[:, 0], atol=2e-5, rtol=0)
    torch.testing.assert_close(plain, short, atol=2e-5, rtol=0)
    torch.testing.assert_close(same, values, atol=2e-5, rtol=0)
    with small_encoder.sharing():
        *_, (_, _, shared, _) = small_encoder.value_walk(pixels, first=24, class_only=True)
        assert shared.shape == full.shape


@torch.no_grad()
def test_while_sharing_a_walk_is_recorded_and_later_ones_get_just_what_they_ask_for(small_encoder, pixels, monkeypatch):
    alone = list(small_encoder.value_walk(pixels, first=3))
    with small_encoder.sharing():
        list(small_encoder.value_walk(pixels, first=20))
        monkeypatch.setattr("vlad.encoders.clip.block", None)  # nothing may be computed a second time
        monkeypatch.setattr("vlad.encoders.clip.value_block", None)
        again = list(
            small_encoder.value_walk(pixels, positions="bilinear", first=3)
        )  # the native grid: nothing to resample
        fewer = list(small_encoder.value_walk(pixels, first=24))
    for one, other in zip(alone, again, strict=True):
        assert (one[3] is None) == (other[3] is None)
        torch.testing.assert_close(one[2], other[2], atol=2e-5, rtol=0)
        if one[3] is not None:
            torch.testing.assert_close(one[3], other[3], atol=2e-5, rtol=0)
    assert [step[0] for step in fewer if step[3] is not None] == [24]
    monkeypatch.undo()
    kept = weakref.ref(fewer[0][1])
    del again, fewer
    gc.collect()
    assert kept() is None, "nothing is kept when the sharing ends"


@torch.no_grad()
def test_while_sharing_other_pictures_are_walked_anew(small_encoder, pixels):
    with small_encoder.sharing():
        first = small_encoder(pixels, layers=(24,)).patches[0]
        other = small_encoder(pixels.flip(-1), layers=(24,)).patches[0]
    assert (first - other).abs().max() > 1e-3


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cuda:x", "meta", "", "cpu:7"])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(device):
    with pytest.raises(ValueError, match=rf"device is '{device}'; on this machine there is 'cpu'"):
        Encoder.load("tiny", device=device)


@torch.no_grad()
def test_while_sharing_patches_are_made_once_though_their_tokens_go_different_ways(small_encoder, pixels):
    made = []
    hook = small_encoder.visual.conv1.register_forward_hook(lambda *_: made.append(1))
    try:
        with small_encoder.sharing():
            small_encoder.windows(pixels, (2,))
            small_encoder(pixels)
            first = small_encoder.embed(pixels, first=torch.ones(1, small_encoder.width))
        alone = small_encoder.embed(pixels, first=torch.ones(1, small_encoder.width))
    finally:
        hook.remove()
    assert len(made) == 1 + 1, "once for all three, once more when nothing is shared"
    assert torch.equal(first, alone)


@torch.no_grad()
def test_sentences_that_begin_alike_come_out_as_each_alone(small_encoder):
    ids = small_encoder.tokenize(["X X X a bolt.", "X X X a broken metal bolt.", "X X X one bolt."])
    words = torch.randn(2, 3, small_encoder.text_width, generator=torch.Generator().manual_seed(0))
    alone = read_by_picture(small_encoder, ids, words[:, None].expand(-1, len(ids), -1, -1))
    torch.testing.assert_close(read_after(small_encoder, ids, words), alone, atol=2e-6, rtol=0)
