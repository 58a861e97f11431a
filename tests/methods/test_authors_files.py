"""What authors publish is told apart: a file of one method is refused by every other one, with the name of its own."""

import pytest
import torch
from conftest import GOLDEN

from vlad.encoders.authors_file import read_official
from vlad.learning.scorer import LearnedScorer
from vlad.methods import METHODS, method_class

READERS = [name for name in METHODS if issubclass(method_class(name), LearnedScorer)]

OWN = ("metauas", "inp_former", "anomalyvfm", "visualad", "adaclip", "adaptclip", "anomalyclip", "crane")


@pytest.fixture(scope="module")
def contents(metauas_file, inp_files, radio_file):
    """Method -> what a file of its authors holds."""
    files = {"metauas": metauas_file, "inp_former": inp_files[1], "anomalyvfm": radio_file}
    files |= {name: GOLDEN / f"{name}_official_format.pth" for name in OWN[4:]}
    found = {name: read_official(file) for name, file in files.items()}
    return found | {"visualad": {"anomaly_token": torch.zeros(8), "normal_token": torch.zeros(8), "cross_attn": {}}}


@pytest.mark.parametrize(("own", "method"), [(own, method) for own in OWN for method in READERS if method != own])
def test_a_file_of_one_method_is_refused_by_every_other_by_name(contents, own, method):
    with pytest.raises(ValueError, match=rf"no file of {method}'s authors: .* it looks {own}'s"):
        method_class(method).official(contents[own])
