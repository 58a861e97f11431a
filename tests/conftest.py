"""Shared by the tests: a small encoder with known weights, and a cache folder of their own."""

import importlib.util
import json
import os
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # they share the cores; read when torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Nothing is read from or left in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLAD_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="session")
def golden_weights() -> ModuleType:
    """The module that makes the goldens' weights and pictures."""
    spec = importlib.util.spec_from_file_location("golden_weights", GOLDEN / "weights.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["golden_weights"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def small_model(golden_weights):
    """A 24-block CLIP of 112 px as open_clip builds it, with the goldens' weights."""
    import open_clip

    return golden_weights.fill_(open_clip.model.CLIP(**golden_weights.TINY_CLIP).eval(), seed=0)


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory, golden_weights, small_model) -> Path:
    """The same model as a folder for `encoder="local-dir:..."`."""
    return _written(tmp_path_factory.mktemp("small"), small_model, golden_weights.TINY_CLIP)


@pytest.fixture(scope="session")
def small_encoder(small_folder):
    from vlad import Encoder

    return Encoder.load(f"local-dir:{small_folder}", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def broad_encoder(tmp_path_factory, golden_weights):
    """A sibling whose joint width is the width of its text: Crane with a picture's word and FAPrompt ask for it."""
    return _encoder(tmp_path_factory.mktemp("broad"), golden_weights, embed_dim=128)


@pytest.fixture(scope="session")
def wide_encoder(tmp_path_factory, golden_weights):
    """A sibling whose joint width is the width of its text, with the exact GELU: AdaCLIP asks for both."""
    return _encoder(tmp_path_factory.mktemp("wide"), golden_weights, embed_dim=128, quick_gelu=False)


def _encoder(folder, golden_weights, **changes):
    import open_clip

    from vlad import Encoder

    config = {**golden_weights.TINY_CLIP, **changes}
    model = golden_weights.fill_(open_clip.model.CLIP(**config).eval(), seed=0)
    return Encoder.load(f"local-dir:{_written(folder, model, config)}", device="cpu", dtype="float32")


def _written(folder, model, config):
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return folder


@pytest.fixture(scope="module")
def picture(golden, golden_weights):
    """The one that the golden of a module is about."""
    return golden_weights.image(int(golden["seed"]), 200)


@pytest.fixture(scope="session")
def metauas_file(tmp_path_factory, golden_weights) -> Path:
    """A file as MetaUAS's authors write it, tower and all, with the golden's weights."""
    return metauas_written(tmp_path_factory.mktemp("metauas") / "metauas-256.ckpt", golden_weights, seed=0)


def metauas_written(file, golden_weights, seed):
    import timm
    import torch

    from vlad.encoders import efficientnet as b4
    from vlad.methods.metauas import MetaUas

    model = timm.create_model("tf_efficientnet_b4", num_classes=0)
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    parts = [*b4.OUTER, *(f"_blocks.{number}.{part}" for number in range(32) for part in b4.INNER)]
    names = {b4.timm_name(name): name for part in parts for kind in kinds if (name := f"{part}.{kind}")}
    shapes = {f"encoder.{names[name]}": tuple(value.shape) for name, value in model.state_dict().items()}
    learned = MetaUas(b4.EfficientNet(model, "untrained", 256, "cpu")).learned()
    shapes |= {name: tuple(value.shape) for name, value in learned.items()}
    assert len(shapes) == 820

    def drawn(name):
        made = golden_weights.tensor(f"metauas.{name}", shapes[name], seed)
        if name.endswith("num_batches_tracked"):
            return made.long()
        if name.endswith("dimensionality_reduction.weight"):
            return made * (5, 3.5, 2)[int(name.split(".")[1])]
        if not name.endswith("running_var"):
            return made
        norm = name.split(".")[-2]
        spread = 2 if "_blocks" in name and norm == "_bn0" else 0.3 if norm in ("_bn1", "_bn2") else 0.5
        return spread * (1 + made.abs())

    torch.save({name: drawn(name) for name in shapes}, file)
    return file


@pytest.fixture(scope="session")
def radio_content(golden_weights):
    """A function: the tensors of a file as AnomalyVFM's authors put it on the hub, for "dora" or "lora"."""
    return lambda kind, seed=0: radio_drawn(golden_weights, kind, seed)


def radio_drawn(golden_weights, kind, seed, width=64, blocks=6, rank=4):
    import torch

    from vlad.encoders.radio import Tower
    from vlad.methods.anomalyvfm import Decoder

    def draw(name, shape):
        return golden_weights.tensor(f"anomalyvfm.{name}", tuple(shape), seed)

    def wrapped(name, weight, part=""):
        start, mag = f"{name}.lora_", f"{name}.mag{part}" if part else f"{name}.magnitude"
        made = {f"{start}A{part}": draw(f"{start}A{part}", (rank, width))}
        made[f"{start}B{part}"] = draw(f"{start}B{part}", (width, rank))
        spread = draw(mag, (1, width))[0] * width**0.5
        return made | ({mag: weight.norm(dim=1) * (1 + 0.1 * spread)} if kind == "dora" else {})

    base, content = "model.net.model.", {}
    for name, value in Tower(width, blocks, 2, 16, 64, 8).state_dict().items():
        content[base + name] = draw(base + name, value.shape[-2:]).reshape(value.shape)
    for block in range(blocks):
        attention = f"{base}blocks.{block}.attn."
        query, _, values = content[f"{attention}qkv.weight"].chunk(3)
        content |= wrapped(f"{attention}qkv", query, "_q") | wrapped(f"{attention}qkv", values, "_v")
        content |= wrapped(f"{attention}proj", content[f"{attention}proj.weight"])
        for kept in [f"{attention}{part}.{one}" for part in ("qkv", "proj") for one in ("weight", "bias")]:
            content[f"{kept.rpartition('.')[0]}.layer.{kept.rpartition('.')[2]}"] = content.pop(kept)
    for name, value in Decoder(width).state_dict().items():
        content[f"decoder.{name}"] = draw(f"decoder.{name}", value.shape)
    for name, shape in (("weight", (1, 3 * width)), ("bias", (1,))):
        content[f"predictor.lin.{name}"] = draw(f"predictor.lin.{name}", shape)
    content |= {
        "model.net.input_conditioner.norm_mean": torch.zeros(3, 1, 1),
        "model.net.summary_idxs": torch.arange(3),
    }
    return content


@pytest.fixture(scope="session")
def radio_file(tmp_path_factory, radio_content) -> Path:
    from safetensors.torch import save_file

    file = tmp_path_factory.mktemp("radio") / "model.safetensors"
    save_file({key: value.contiguous() for key, value in radio_content("dora").items()}, file)
    return file


@pytest.fixture(scope="session")
def radio_encoder(radio_file):
    """The tower of the golden: two heads, where a published one has one for 64 of its width."""
    from vlad.encoders import radio

    return radio.load(f"radio:{radio_file}", "cpu", "float32", heads=2)


@pytest.fixture(scope="session")
def inp_files(tmp_path_factory, golden_weights) -> tuple[Path, Path]:
    """(a DINOv2 with registers as a folder of transformers, a file as INP-Former's authors write it), both small."""
    return inp_written(tmp_path_factory.mktemp("inp_former"), golden_weights, seed=0)


def inp_written(folder, golden_weights, seed):
    import torch
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    from vlad.encoders.dino import DinoEncoder
    from vlad.methods.inp_former import InpFormer

    sizes = {"hidden_size": 64, "num_hidden_layers": 12, "num_attention_heads": 2, "mlp_ratio": 4}
    config = Dinov2WithRegistersConfig(**sizes, image_size=112, patch_size=14, num_register_tokens=4)
    model, width = Dinov2WithRegistersModel(config).eval(), 64
    shapes = {"cls_token": (1, 1, width), "register_tokens": (1, 4, width), "mask_token": (1, width)}
    shapes |= {
        "pos_embed": (65, width),
        "patch_embed.proj.weight": (width, 3, 14, 14),
        "patch_embed.proj.bias": (width,),
    }
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    inner = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
    for block in range(12):
        for part, (out, into) in inner.items():
            shapes[f"blocks.{block}.{part}.weight"] = (out * width, into * width)
            shapes[f"blocks.{block}.{part}.bias"] = (out * width,)
        for part in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{block}.{part}"] = (width,)

    def draw(name, shape):
        return golden_weights.tensor(f"inp.{name}".replace(".gamma", ".weight"), tuple(shape), seed)

    content = {f"encoder.{name}": draw(f"encoder.{name}", shape) for name, shape in shapes.items()}
    content["encoder.pos_embed"] = content["encoder.pos_embed"][None]
    encoder = DinoEncoder(model, "small", "cpu", "float32")
    named = encoder.named({name.removeprefix("encoder."): value for name, value in content.items()})
    model.load_state_dict(named)
    model.save_pretrained(folder / "dino")
    learned = InpFormer(encoder, heads=2).learned()
    content |= {name: draw(name, value.shape) for name, value in learned.items()}
    torch.save(content, folder / "model.pth")
    return folder / "dino", folder / "model.pth"


@pytest.fixture(scope="session")
def tiny_encoder():
    from vlad import Encoder

    return Encoder.load("tiny", device="cpu", dtype="float32")


@pytest.fixture
def official_copy(tmp_path):
    """A function: the authors' file again, its content changed by `change`."""
    import torch

    def copied(file: Path, change) -> Path:
        content = torch.load(file, map_location="cpu", weights_only=True)
        change(content)
        torch.save(content, tmp_path / file.name)
        return tmp_path / file.name

    return copied


@pytest.fixture(scope="session")
def parity() -> Path:
    """The folder of the goldens that are too large for this repository."""
    if not (folder := SHARED / "parity").is_dir():
        pytest.skip("the goldens of ../shared/parity are not here")
    return folder


@pytest.fixture(scope="module")
def golden(request):
    """The numbers of the official code for the method that the test's file is named after."""
    name = f"{request.module.__name__.removeprefix('test_')}.npz"
    return np.load(GOLDEN / name if (GOLDEN / name).exists() else request.getfixturevalue("parity") / name)


@pytest.fixture(scope="module")
def file(request, parity) -> Path:
    """A file in the form of that method's authors."""
    return parity / f"{request.module.__name__.removeprefix('test_')}_official_format.pth"


@pytest.fixture(scope="session")
def own_weights(golden_weights, tmp_path_factory):
    """Writes a golden's own weights as a file of ours; `draw` gives them by name and shape."""
    from learned_goldens import weights_file

    def plain(prefix, name, shape):
        return golden_weights.tensor(f"{prefix}.{name.removeprefix('prompt_learner.')}", shape, 0)

    def written(scorer, draw=None):
        path = tmp_path_factory.mktemp(scorer.method) / "a.safetensors"
        return weights_file(path, scorer, draw or partial(plain, scorer.method))

    return written


@pytest.fixture(scope="session")
def shared() -> Path:
    if not (SHARED / "data").is_dir():
        pytest.skip("the real pictures of ../shared/data are not here")
    return SHARED


# An application with one fitted detector, asked in this process


@pytest.fixture(scope="session")
def fitted(tiny_encoder):
    """A detector that knows six grains."""
    from serve_pictures import drawn

    import vlad

    return vlad.load(name="grain", encoder=tiny_encoder).fit([drawn(seed) for seed in range(6)])


@pytest.fixture
def shelf(tmp_path, tiny_encoder, fitted):
    from vlad.serve.shelf import Shelf

    made = Shelf(tmp_path / "detectors", tiny_encoder)
    made.put("grain", fitted)
    return made


@pytest.fixture
def client(shelf):
    """A function: a client of an application with these settings."""
    from starlette.testclient import TestClient

    from vlad.serve import Settings, make_app

    opened = []

    def made(**settings):
        one = TestClient(make_app(shelf, Settings(**settings)), "http://localhost", raise_server_exceptions=False)
        opened.append(one)
        return one.__enter__()

    yield made
    for one in opened:
        one.__exit__(None, None, None)
