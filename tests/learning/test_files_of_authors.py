"""Files of the authors' code: each belongs to one method and to one activation, and is taken for no other's."""

import shutil

import pytest
import torch
from conftest import GOLDEN

import vlad
from vlad.encoders.authors_file import read_official
from vlad.files import resource
from vlad.learning.scorer import LearnedScorer, official_method
from vlad.methods import METHODS, method_class

KINDS = {name: kind for name in METHODS if issubclass(kind := method_class(name), LearnedScorer)}
READERS = [name for name, kind in KINDS.items() if kind.official.__func__ is not LearnedScorer.official.__func__]
ONE_WIDTH = ("bayes_pfl", "filo", "vcpclip")  # text tokens as wide as the joint space
SHIPPED = sorted(path.stem for path in resource("adapters/weights").glob("*-tiny.safetensors"))


@pytest.fixture(scope="session")
def files(parity, tmp_path_factory, metauas_file, radio_file, inp_files):
    """Method -> a file, or a folder of files, as its authors write it."""
    place = tmp_path_factory.mktemp("official")
    found = {name: GOLDEN / f"{name}_official_format.pth" for name in ("adaclip", "adaptclip", "anomalyclip", "crane")}
    found |= {name: parity / f"{name}_official_format.pth" for name in ("bayes_pfl", "faprompt", "filo", "vcpclip")}
    found |= {"sowa": parity / "sowa_official_format.ckpt", "metauas": metauas_file, "anomalyvfm": radio_file}
    found |= {"inp_former": inp_files[1], "aaclip": place / "aaclip"}
    for part in ("text", "image"):
        (place / "aaclip").mkdir(exist_ok=True)
        shutil.copy(parity / f"aaclip_official_format_{part}_adapter.pth", place / "aaclip" / f"{part}_adapter.pth")
    layers = {"fc.0.weight": torch.zeros(2, 2), "fc.0.bias": torch.zeros(2)}
    drawn = {"april_gan": {"trainable_linearlayer": layers}, "clip_ad": {"linear_layers": layers}}
    drawn["visualad"] = {"anomaly_token": torch.zeros(2), "normal_token": torch.zeros(2)}
    for name, content in drawn.items():
        torch.save(content, found.setdefault(name, place / f"{name}.pth"))
    return found


def test_every_method_that_reads_files_of_its_authors_is_here(files):
    assert sorted(files) == sorted(READERS)
    assert {name: official_method(read_official(file)) for name, file in files.items()} == {
        name: name for name in files
    }


@pytest.mark.parametrize("method", READERS)
def test_a_file_of_any_other_methods_authors_is_refused_by_its_name(files, wide_encoder, method):
    for owner, file in files.items():
        if owner != method:
            with pytest.raises(ValueError, match=f"no file of {method}'s authors: .* looks {owner}'s"):
                vlad.load(method, "bolt", encoder=wide_encoder, adapter=file)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_file_of_ours_is_refused_by_every_other_method(tiny_encoder, name):
    own = "clip_ad" if name.startswith("clip_ad") else name.removesuffix("-tiny")
    for method in KINDS:
        if method != own:
            with pytest.raises(ValueError, match=f"is an adapter of {own}, not of {method}"):
                vlad.load(method, "bolt", encoder=tiny_encoder, adapter=name)


@pytest.mark.parametrize("method", ["aaclip", "bayes_pfl", "crane", "faprompt", "filo", "sowa", "vcpclip"])
def test_an_encoder_of_the_other_activation_is_refused(files, method, wide_encoder):
    wanted = method_class(method).official_activation
    other = {"gelu": "quickgelu", "quickgelu": "gelu"}[wanted]
    encoder = vlad.Encoder.load(wide_encoder.name, device="cpu", dtype="float32", activation=other)
    with pytest.raises(ValueError, match=rf"activation {wanted}, .* computes {other}: .* 'ViT-L-14-336"):
        vlad.load(method, "bolt", encoder=encoder, adapter=files[method])


@pytest.mark.parametrize("method", ONE_WIDTH)
def test_an_encoder_whose_text_is_not_as_wide_as_the_joint_space_is_refused(small_encoder, method):
    with pytest.raises(ValueError, match=r"as wide as the joint space; .* has 128 and 64: take 'ViT-L-14-336/openai'"):
        method_class(method)(small_encoder)
